# SPDX-License-Identifier: Apache-2.0
"""Launches of the CUDA kernels (csrc/cuda): the plan of a call, its stream, and the memory that it is lent.

Among that memory are the transform's matrices, as the kernels read them: folded by parity, padded with zeros.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ...caches import Tables
from ..gpu import dct_basis

_cuda: Any = import_module("softdiff_kernels._cuda")

_CLUSTER = 3  # engines of csrc/cuda/plan.h
_GAIN = 64.0  # kTableGain of csrc/cuda/products.h


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

# Whether planes of 129 to 256 px go to clusters of two blocks where a GPU has them; else passes take them.
_clusters = os.environ.get("SOFTDIFF_CUDA_CLUSTERS", "1") != "0"


@contextmanager
def clusters(wanted: bool) -> Iterator[None]:
    """With or without clusters inside the block, to compare both."""
    global _clusters
    before, _clusters = _clusters, wanted
    try:
        yield
    finally:
        _clusters = before


@lru_cache(maxsize=4096)  # six numbers: some 600 bytes an entry with its key, 3 MiB in all
def _plan(kernel: str, shape: tuple[int, ...], inputs: int, device: int, clusters: bool) -> tuple[int, ...]:
    """(engine, table sides of H and W, planes at a time, floats of scratch, parts of a loss): plan.h."""
    return _cuda.plan(kernel, shape, inputs, device, clusters)


def takes_clusters(height: int, width: int, device: int) -> bool:
    """Whether clusters take planes of this size on a device (except for spectral_mix)."""
    return _plan("corrupt", (1, 1, height, width), 1, device, True)[0] == _CLUSTER


class _Call:
    """Where a call runs, and the memory that it needs there; alive until the kernels are in the stream."""

    def __init__(self, kernel: str, x: Tensor, inputs: int) -> None:
        device, shape = x.device, tuple(x.shape)
        plan = _plan(kernel, shape, inputs, device.index or 0, _clusters)
        _, side_h, side_w, _, scratch, parts = plan
        # No side, no table: the fast DCT has its numbers in its code.
        along_h = plain(shape[2], side_h, device) if side_h else None
        square = shape[2] == shape[3] and side_h == side_w
        along_w = along_h if square else plain(shape[3], side_w, device) if side_w else None
        count = shape[0] * parts if kernel == "soft_score_loss" else 0
        self.memory = (
            along_h,
            along_w,
            torch.empty(scratch, dtype=torch.float32, device=device) if scratch else None,
            torch.empty(count, dtype=torch.float64, device=device) if count else None,
        )
        addresses = (0 if m is None else m.data_ptr() for m in self.memory)
        self.where = (*_stream(device), *addresses), plan


def _stream(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return 0, 0
    return device.index, torch.cuda.current_stream(device).cuda_stream


def launch(kernel: str, x: Tensor, arguments: tuple[object, ...], inputs: int) -> None:
    """Puts a kernel of `_cuda` into the current stream of x's device: `CompiledOps.launch`."""
    device, call = x.device, None if kernel == "normal" else _Call(kernel, x, inputs)
    where = (*_stream(device), 0, 0, 0, 0) if call is None else call.where
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        getattr(_cuda, kernel)(where, arguments)
        return
    # As torch changes the device: without a context on the one that it comes back to.
    with torch.cuda.device(device):
        getattr(_cuda, kernel)(where, arguments)
