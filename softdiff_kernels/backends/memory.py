# SPDX-License-Identifier: Apache-2.0
"""Tensors as addresses: as the compiled modules take them (csrc/parse.h), and when two share memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
    """(address, dtype code, strides of the four axes in elements), or None.

    The caller keeps the tensor alive until the call returns. A dtype without a code raises KeyError.
    """
    return None if x is None else (x.data_ptr(), CODES[x.dtype], *x.stride())


def mask(x: Tensor | None, shape: torch.Size) -> tuple[int, ...] | None:
    """The same of a mask that broadcasts to `shape`: its broadcast axes have stride 0."""
    return None if x is None else image(x.expand(shape))


def key(key: Sequence[int], rows: Tensor | None) -> tuple[int, ...] | None:
    """A packed key (`noise.pack_key`). `rows` is contiguous, and the caller keeps it alive."""
    if rows is not None:
        return rows.data_ptr(), rows.shape[0]
    return tuple(key) if key else None


def flat(out: Tensor, count: int) -> tuple[int, ...]:
    """A contiguous batch, `count` numbers a sample, as images of one row."""
    return out.data_ptr(), CODES[out.dtype], count, 0, 0, 1


def _span(x: Tensor) -> tuple[int, int]:
    """The addresses from x's first byte to past its last; strides are never negative."""
    start = x.data_ptr()
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return start, start + (last + 1) * x.element_size() if x.numel() else start


def overlaps(out: Tensor, x: Tensor) -> bool:
    """Whether writing `out` could change elements of `x` that are still to be read.

    The same memory in the same order is fine: each plane is read before it is written. Addresses are
    compared, not storages: two tensors made from one numpy array share none. A mask of fewer elements is read
    for several planes.
    """
    (start, end), (x_start, x_end) = _span(out), _span(x)
    if end <= x_start or x_end <= start:
        return False
    same = start == x_start and out.stride() == x.stride() and out.shape == x.shape
    return not same or out.dtype != x.dtype


def step_out(fresh: Callable[..., Tensor], into: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """The op `step_out` by a backend's two forms of `step`.

    fresh: returns a new tensor. into: writes into its last argument, `out`. arguments: those of `step_out`.
    """
    _write(fresh, into, arguments, (arguments[0], arguments[1], arguments[10]))


def spectral_mix_out(
    fresh: Callable[..., Tensor], into: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """The same of `spectral_mix_out`."""
    inputs, masks, noise_mask, _, _, noise, _ = arguments
    _write(fresh, into, arguments, (*inputs, *masks, noise_mask, noise))


def _write(
    fresh: Callable[..., Tensor],
    into: Callable[..., None],
    arguments: tuple[Any, ...],
    read: tuple[Tensor | None, ...],
) -> None:
    """read: the tensors that the op reads, other than its coefficients."""
    out = arguments[-1]
    if any(overlaps(out, x) for x in read if x is not None):
        out.copy_(fresh(*arguments[:-1]))
        return
    into(*arguments)
    if not out.is_inference():  # autograd cannot see what is written through an address
        torch.autograd.graph.increment_version(out)
