# SPDX-License-Identifier: Apache-2.0
"""The transform's matrices as the kernels read them: float16 high and low parts, padded with zeros."""

from __future__ import annotations

import math
import threading

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
        if device.type != "cuda":
            found = _tables[key] = _build(n, padded, device)
        elif capturing(device):
            found = _build(n, padded, device)
        else:
            found = _tables[key] = _build_aside(n, padded, device)
    return found


def _build_aside(n: int, padded: int, device: torch.device) -> Tensor:
    """Built by a thread and a stream of its own: torch.compile's warm-up for CUDA graphs puts whatever the
    calling thread allocates into the graph's memory, and may give it away again.
    """
    result: list[Tensor] = []

    def work() -> None:
        stream = torch.cuda.Stream(device)
        with torch.cuda.device(device), torch.cuda.stream(stream), torch.no_grad():
            result.append(_build(n, padded, device))
        stream.synchronize()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if not result:
        raise RuntimeError(f"the transform's table for {n} px could not be built on {device}")
    return result[0]


def _build(n: int, padded: int, device: torch.device) -> Tensor:
    k = torch.arange(n, dtype=torch.int64, device=device)[:, None]
    i = torch.arange(n, dtype=torch.int64, device=device)[None, :]
    # The angle is reduced in integers, as `spectrum.dct_basis` does.
    basis = torch.cos(((k * (2 * i + 1)) % (4 * n)).double() * (math.pi / (2 * n)))
    basis *= math.sqrt(2.0 / n) * TABLE_GAIN
    basis[0] *= math.sqrt(0.5)
    high = basis.half()
    out = torch.zeros(2, padded, padded, dtype=torch.float16, device=device)
    out[0, :n, :n] = high
    out[1, :n, :n] = (basis - high.double()).half()
    return out
