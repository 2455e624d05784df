# SPDX-License-Identifier: Apache-2.0
"""The transform's matrices as the CUDA kernels read them: folded by parity, padded with zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from ...caches import Tables
from .._device_tables import dct_basis

_GAIN = 64.0  # kTableGain in csrc/cuda/products.h


def _parities(n: int, side: int, device: torch.device) -> Tensor:
    """D by parity, float64 [2, side, side]: row r of parity p is frequency 2 r + p, over half the pixels."""
    basis = dct_basis(n, device)
    out = torch.zeros(2, side, side, dtype=torch.float64, device=device)
    half = (n + 1) // 2
    for parity in range(2):
        rows = basis[parity::2, :half]
        out[parity, : rows.shape[0], :half] = rows
    return out


def _both(n: int, side: int, device: torch.device) -> Tensor:
    """D and its transpose: [2, 2, side, side]."""
    folded = _parities(n, side, device)
    return torch.stack((folded, folded.transpose(1, 2)))


def _plain(n: int, side: int, device: torch.device) -> Tensor:
    return _both(n, side, device).float().contiguous()


def _fragments(n: int, side: int, device: torch.device) -> Tensor:
    """64 D as float16 high and low parts, in the order of the tensor cores' first operand (PTX's m16n8k16).

    Lane 4 g + t of a 16 x 16 tile holds rows g and g + 8, columns 2 t, 2 t + 1, 2 t + 8, 2 t + 9, as words
    (g, 2 t), (g + 8, 2 t), (g, 2 t + 8), (g + 8, 2 t + 8).
    """
    both = _both(n, side, device) * _GAIN
    high = both.half()
    parts = torch.stack((high, (both - high.double()).half()))
    tiles = side // 16
    shaped = parts.view(2, 2, 2, tiles, 2, 8, tiles, 2, 4, 2)
    # (part, transposed, parity, row tile, lower half, g, column tile, right half, t, pair)
    return shaped.permute(1, 2, 3, 6, 0, 5, 8, 7, 4, 9).contiguous()


plain = Tables("cuda tables", _plain)
fragments = Tables("cuda fragments", _fragments)
