# SPDX-License-Identifier: Apache-2.0
"""The transform's matrices as the kernels read them: float16 high and low parts, padded with zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from ...caches import Tables
from .._device_tables import dct_basis
from .kernels.device import TABLE_GAIN


def _build(n: int, padded: int, device: torch.device) -> Tensor:
    """64 D of the DCT-II of length n as float16 [2, padded, padded]: high and low, D = (high + low) / 64."""
    basis = dct_basis(n, device) * TABLE_GAIN
    high = basis.half()
    out = torch.zeros(2, padded, padded, dtype=torch.float16, device=device)
    out[0, :n, :n] = high
    out[1, :n, :n] = (basis - high.double()).half()
    return out


table = Tables("triton tables", _build)
