# SPDX-License-Identifier: Apache-2.0
"""Launches of the CUDA kernels (csrc/cuda): the plan of a call, its stream, and the memory that it is lent.

Among that memory are the transform's matrices, as the kernels read them: folded by parity, padded with zeros.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ...caches import Tables
from ..gpu import dct_basis

_cuda: Any = import_module("softdiff_kernels._cuda")


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


plain = Tables("cuda tables", _plain)


@lru_cache(maxsize=4096)  # six numbers: some 600 bytes an entry with its key, 3 MiB in all
def _plan(kernel: str, shape: tuple[int, ...], inputs: int, device: int) -> tuple[int, ...]:
    """(engine, table sides of H and W, planes at a time, floats of scratch, parts of a loss): plan.h."""
    return _cuda.plan(kernel, shape, inputs, device)


class _Call:
    """Where a call runs, and the memory that it needs there; alive until the kernels are in the stream."""

    def __init__(self, kernel: str, x: Tensor, inputs: int) -> None:
        device, shape = x.device, tuple(x.shape)
        plan = _plan(kernel, shape, inputs, device.index or 0)
        _, side_h, side_w, _, scratch, parts = plan
        # No side, no table: the fast DCT has its numbers in its code.
        along_h = plain(shape[2], side_h, device) if side_h else None
        square = shape[2] == shape[3] and side_h == side_w
        along_w = along_h if square else plain(shape[3], side_w, device) if side_w else None
        count = shape[0] * parts if kernel.endswith("_loss") else 0
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
