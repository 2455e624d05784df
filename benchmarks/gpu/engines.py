# SPDX-License-Identifier: Apache-2.0
"""The library's own candidates: a backend, or the CUDA backend without the clusters that it would take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

import softdiff_kernels as sk

PASSES = "cuda, no clusters"


@contextmanager
def using(candidate: str) -> Iterator[None]:
    """Takes a candidate inside the block."""
    if candidate != PASSES:
        with sk.use_backend(candidate):
            yield
        return
    from softdiff_kernels.backends.cuda import launch

    with sk.use_backend("cuda"), launch.clusters(False):
        yield


def candidates(backends: tuple[str, ...], op: str, size: int, device: torch.device) -> tuple[str, ...]:
    """The backends, and the passes beside the clusters that take images of this size."""
    if "cuda" not in backends or op == "normal":
        return backends
    from softdiff_kernels.backends.cuda import launch

    return (*backends, PASSES) if launch.takes_clusters(size, size, device.index or 0) else backends
