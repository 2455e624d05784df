# SPDX-License-Identifier: Apache-2.0
"""Tables on a device that outlive the call that needed them first."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


def capturing(device: torch.device) -> bool:
    """Whether what is allocated now belongs to a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Tables:
    """Keeps what `build(*key, device)` makes, which it computes on the device: a first call inside a CUDA
    graph's capture then needs no copy from the host. Such a table belongs to the graph and is not kept.
    Otherwise the host waits for it, once for each key, so that every stream may read what is kept.
    """

    def __init__(self, build: Callable[..., Tensor]) -> None:
        self._build = build
        self._kept: dict[Hashable, Tensor] = {}

    def __call__(self, *key: Any) -> Tensor:
        found = self._kept.get(key)
        if found is None:
            device = key[-1]
            if device.type != "cuda":
                found = self._kept[key] = self._build(*key)
            elif capturing(device):
                found = self._build(*key)
            else:
                found = self._kept[key] = self._build_aside(key, device)
        return found

    def _build_aside(self, key: tuple[Any, ...], device: torch.device) -> Tensor:
        """Built by a thread and a stream of its own: torch.compile's warm-up for CUDA graphs puts whatever
        the calling thread allocates into the graph's memory, and may give it away again.
        """
        result: list[Tensor] = []

        def work() -> None:
            stream = torch.cuda.Stream(device)
            with torch.cuda.device(device), torch.cuda.stream(stream), torch.no_grad():
                result.append(self._build(*key))
            stream.synchronize()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if not result:
            raise RuntimeError(f"the transform's table for {key[0]} px could not be built on {device}")
        return result[0]


def dct_basis(n: int, device: torch.device) -> Tensor:
    """`spectrum.dct_basis` in float64, computed on the device."""
    k = torch.arange(n, dtype=torch.int64, device=device)[:, None]
    i = torch.arange(n, dtype=torch.int64, device=device)[None, :]
    # The angle is reduced in integers, as `spectrum.dct_basis` does.
    basis = torch.cos(((k * (2 * i + 1)) % (4 * n)).double() * (math.pi / (2 * n)))
    basis *= math.sqrt(2.0 / n)
    basis[0] *= math.sqrt(0.5)
    return basis
