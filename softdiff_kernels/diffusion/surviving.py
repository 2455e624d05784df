# SPDX-License-Identifier: Apache-2.0
"""The few DCT coefficients of an image that survive the strongest blur."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from .. import functional, spectrum
from . import _images
from .corruption import Corruption


class Surviving:
    """Gathers `m_1 DCT2(x)` where the gain m_1 at t = 1 exceeds `threshold`, and puts it back.

    At the paper's strongest blur 13 frequencies have m_1 > 1e-3: 39 numbers for an RGB image.
    index: int64 [K], positions in the flattened [H, W] of the frequencies kept, by rising position.
    """

    def __init__(self, image_size: tuple[int, int], channels: int, blur_std: float, threshold: float) -> None:
        self.image_size = _images.image_size("prior", image_size)
        self.channels: int = args.integer("prior", "channels", channels, least=1)
        blur_std = args.number("prior", "blur_std", blur_std)
        threshold = args.number("prior", "threshold", threshold)
        std = torch.tensor([blur_std], dtype=torch.float64)
        gain = spectrum.heat_gain(std, *self.image_size).reshape(-1)
        self.index = (gain > threshold).nonzero()[:, 0]
        self.gain = gain[self.index]

    @property
    def size(self) -> int:
        """Numbers an image: channels times frequencies kept."""
        return self.channels * len(self.index)

    def gather(self, images: Tensor) -> Tensor:
        """Blurred coefficients of images [B, C, H, W]: float64 [B, size], channel by channel."""
        kept = functional.dct2(images).flatten(2)[:, :, self.index.to(images.device)].double()
        return (kept * self.gain.to(images.device)).flatten(1)

    def scatter(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Blurred images [B, C, H, W] of coefficients [B, size]."""
        batch = values.shape[0]
        coefficients = values.new_zeros(batch, self.channels, self.image_size[0] * self.image_size[1])
        coefficients[:, :, self.index.to(values.device)] = values.view(batch, self.channels, len(self.index))
        return functional.idct2(coefficients.view(batch, self.channels, *self.image_size)).to(dtype)


def stream(
    op: str, batches: Iterable[Any], corruption: Corruption, threshold: float
) -> Iterator[tuple[Surviving, Tensor]]:
    """The surviving coefficients of a stream of batches, piece by piece: (Surviving, [b, size])."""
    kept: Surviving | None = None
    for images in _images.chunks(op, batches):
        _images.check_size(op, images, corruption.image_size)
        if kept is None:
            kept = Surviving(corruption.image_size, images.shape[1], corruption.blur_std(1.0), threshold)
        yield kept, kept.gather(images)
    if kept is None:
        raise ValueError(f"{op}: expected at least one image, got none")
