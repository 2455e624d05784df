# SPDX-License-Identifier: Apache-2.0
"""The DCT basis made on the device, so that a first call in the capture of a CUDA graph copies nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dct_basis(n: int, device: torch.device) -> Tensor:
    """`spectrum.dct_basis` in float64, computed on the device."""
    k = torch.arange(n, dtype=torch.int64, device=device)[:, None]
    i = torch.arange(n, dtype=torch.int64, device=device)[None, :]
    # The angle is reduced in integers, as `spectrum.dct_basis` does.
    basis = torch.cos(((k * (2 * i + 1)) % (4 * n)).double() * (math.pi / (2 * n)))
    basis *= math.sqrt(2.0 / n)
    basis[0] *= math.sqrt(0.5)
    return basis
