# SPDX-License-Identifier: Apache-2.0
"""When an op may write `out` while it still reads its images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _span(x: Tensor) -> tuple[int, int]:
    """The addresses from x's first byte to past its last; strides are never negative."""
    start = x.data_ptr()
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return start, start + (last + 1) * x.element_size() if x.numel() else start


def overlaps(out: Tensor, x: Tensor) -> bool:
    """Whether writing `out` could change elements of `x` that are still to be read.

    The same memory in the same order is fine: each plane is read before it is written. Addresses are
    compared, not storages: two tensors made from one numpy array share none.
    """
    (start, end), (x_start, x_end) = _span(out), _span(x)
    if end <= x_start or x_end <= start:
        return False
    return start != x_start or out.stride() != x.stride() or out.dtype != x.dtype


def step_out(fresh: Callable[..., Tensor], into: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """The op `step_out` by a backend's two forms of `step`: `into` writes where the last argument says."""
    out, images = arguments[-1], (arguments[0], arguments[1], arguments[10])
    if any(overlaps(out, x) for x in images if x is not None):
        out.copy_(fresh(*arguments[:-1]))
        return
    into(*arguments)
    if not out.is_inference():  # autograd cannot see what is written through an address
        torch.autograd.graph.increment_version(out)
