# SPDX-License-Identifier: Apache-2.0
"""Tensors as the compiled modules take them (csrc/parse.h): addresses, dtype codes and strides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CODES = {
    torch.float64: 0,
    torch.float32: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.uint8: 4,
}


def image(x: Tensor | None) -> tuple[int, ...] | None:
    return None if x is None else (x.data_ptr(), CODES[x.dtype], *x.stride())


def mask(x: Tensor | None, shape: torch.Size) -> tuple[int, ...] | None:
    return None if x is None else image(x.expand(shape))


def coefficient(x: Tensor | None) -> tuple[int, int, int] | None:
    if x is None:
        return None
    return x.data_ptr(), CODES[x.dtype], x.stride(0) if x.numel() > 1 else 0


def key(key: Sequence[int], rows: Tensor | None) -> tuple[int, ...] | None:
    """`rows` contiguous, and kept alive by the caller."""
    if rows is not None:
        return rows.data_ptr(), rows.shape[0]
    return tuple(key) if key else None


def flat(out: Tensor, count: int) -> tuple[int, ...]:
    """A contiguous batch of `count` numbers each, of any shape, as an image of one row."""
    return out.data_ptr(), CODES[out.dtype], count, 0, 0, 1
