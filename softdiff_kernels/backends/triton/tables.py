# SPDX-License-Identifier: Apache-2.0
"""The transform's matrices as the kernels read them: float16 high and low parts, padded with zeros."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .kernels.device import TABLE_GAIN

_tables: dict[tuple[int, int, torch.device], Tensor] = {}


def capturing(device: torch.device) -> bool:
    """Whether what is allocated now belongs to a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def table(n: int, padded: int, device: torch.device) -> Tensor:
    """64 D of the DCT-II of length n as float16 [2, padded, padded]: high and low, D = (high + low) / 64.

    Computed on the device, so that a first call inside a CUDA graph's capture needs no copy from the host;
    such a table belongs to the graph and is not kept. Otherwise the host waits for it, once for each size, so
    that every stream may read what is kept.
    """
    key = (n, padded, device)
    found = _tables.get(key)
    if found is None:
        found = _build(n, padded, device)
        if not capturing(device):
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
            _tables[key] = found
    return found


def _build(n: int, padded: int, device: torch.device) -> Tensor:
    k = torch.arange(n, dtype=torch.int64, device=device)[:, None]
    i = torch.arange(n, dtype=torch.int64, device=device)[None, :]
    # The angle is reduced in integers, as `spectrum.dct_basis` does.
    basis = torch.cos(((k * (2 * i + 1)) % (4 * n)).double() * (math.pi / (2 * n)))
    basis *= torch.where(k == 0, math.sqrt(1.0 / n), math.sqrt(2.0 / n)) * TABLE_GAIN
    high = basis.half()
    out = torch.zeros(2, padded, padded, dtype=torch.float16, device=device)
    out[0, :n, :n] = high
    out[1, :n, :n] = (basis - high.double()).half()
    return out
