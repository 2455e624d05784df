# SPDX-License-Identifier: Apache-2.0
"""When an op may write `out` while it still reads its images."""

from __future__ import annotations

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
