# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance of a conditional denoiser (Ho & Salimans 2022), for the samplers."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _arguments as args
from .denoiser import SoftDenoiser


class Guided:
    """A denoiser of images whose classes are chosen: what a sampler takes in the denoiser's place.

    denoiser: its network takes `class_labels` int64 [B], and hides an image's class where none are given,
    as it did for some in training. class_labels: int64 [B], on the images' device. weight w:
    `x0_hat = x0_hat(any) + w (x0_hat(class) - x0_hat(any))`; 1 is the conditional model alone, at the cost
    of one evaluation instead of two, and more than 1 buys likeness to the class with variety.
    """

    def __init__(self, denoiser: SoftDenoiser, class_labels: Tensor, weight: float = 1.0) -> None:
        if (
            not isinstance(class_labels, Tensor)
            or class_labels.dim() != 1
            or class_labels.dtype != torch.int64
        ):
            raise TypeError(f"Guided: expected class_labels as int64 [B], got {args.describe(class_labels)}")
        self.denoiser = denoiser
        self.class_labels = class_labels
        self.weight: float = args.number("Guided", "weight", weight, nonnegative=False)
        self.corruption = denoiser.corruption

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        """x0_hat [B, C, H, W] of x_t."""
        conditional: Tensor = self.denoiser(x, t, class_labels=self.class_labels)
        if self.weight == 1.0:
            return conditional
        free: Tensor = self.denoiser(x, t)
        return torch.lerp(free, conditional, self.weight)
