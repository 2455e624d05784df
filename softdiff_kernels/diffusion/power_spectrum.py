# SPDX-License-Identifier: Apache-2.0
"""The DCT statistics of a data set, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import functional
from . import _images


@dataclass(frozen=True)
class PowerSpectrum:
    """First and second moments of the images' orthonormal 2-D DCT, per channel and frequency.

    mean: E[DCT2(x)], power: E[DCT2(x)^2], both float64 [C, H, W] on the CPU; images in [-1, 1].
    count: how many images.
    """

    mean: Tensor
    power: Tensor
    count: int

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.power.shape[1], self.power.shape[2]

    @property
    def channels(self) -> int:
        """C."""
        return self.power.shape[0]

    @property
    def variance(self) -> Tensor:
        """Var[DCT2(x)], float64 [C, H, W]."""
        return (self.power - self.mean.square()).clamp(min=0)


@torch.no_grad()
def power_spectrum(batches: Iterable[Any]) -> PowerSpectrum:
    """Moments of the DCT over a stream of batches: uint8 or floating-point [B, C, H, W].

    One pass, a bounded piece at a time: transformed and squared in float32, summed in float64. Raises
    ValueError where images differ in size or there are none.
    """
    total: Tensor | None = None
    squares: Tensor | None = None
    count = 0
    for images in _images.chunks("power_spectrum", batches):
        spectrum = functional.dct2(images)
        first = spectrum.sum(dim=0, dtype=torch.float64)
        second = spectrum.square_().sum(dim=0, dtype=torch.float64)
        total = first if total is None else total.add_(first)
        squares = second if squares is None else squares.add_(second)
        count += images.shape[0]
    if total is None or squares is None:
        raise ValueError("power_spectrum: expected at least one image, got none")
    if not bool(torch.isfinite(squares).all()):
        raise ValueError("power_spectrum: expected finite images, got NaN or infinite values")
    return PowerSpectrum((total / count).cpu(), (squares / count).cpu(), count)
