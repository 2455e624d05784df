# SPDX-License-Identifier: Apache-2.0
"""Labelled images that a classifier learns in a second."""

from __future__ import annotations

import torch
from torch import Tensor


def bars(count: int, seed: int = 0, shape: tuple[int, int, int] = (1, 8, 8)) -> tuple[Tensor, Tensor]:
    """Noisy images of four classes: a bar across, down, both, or none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    pixels = torch.randint(0, 90, (count, *shape), generator=generator)
    pixels[labels % 2 == 1, :, shape[1] // 2] += 120
    pixels[labels >= 2, :, :, shape[2] // 2] += 120
    return pixels.clamp(max=255).to(torch.uint8), labels
