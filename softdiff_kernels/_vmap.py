# SPDX-License-Identifier: Apache-2.0
"""Batching rules of the registered ops, for torch.func.vmap and what stands on it (jacrev, jacfwd, hessian).

Every op treats each image of its batch by itself. So a mapped axis of N becomes part of the batch axis:
images [N, B, C, H, W] become [N B, C, H, W], and coefficients, masks and noise keys follow. A key gives each
of the N slices the noise that it would get alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._autograd import reduce, share
from .noise import key_rows

_ops = torch.ops.softdiff


def _front(size: int, dim: int | None, x: Tensor) -> Tensor:
    """x with the mapped axis in front, [N, ...]."""
    return x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _image(size: int, dim: int | None, x: Tensor) -> Tensor:
    """[N B, C, H, W]."""
    return _front(size, dim, x).flatten(0, 1)


def _coefficient(size: int, dim: int | None, value: Tensor, batch: int) -> Tensor:
    """[1] or [N B]."""
    if dim is None and value.shape[0] == 1:
        return value
    return _front(size, dim, value).expand(size, batch).flatten()


def _mask(size: int, dim: int | None, value: Tensor, batch: int) -> Tensor:
    """Broadcasting to [N B, C, H, W]; what is the same for all images stays as it is."""
    if dim is None and (value.dim() < 4 or value.shape[0] == 1):
        return value
    full = _front(size, dim, value)
    full = full.reshape(size, *[1] * (5 - full.dim()), *full.shape[1:])
    return full.expand(size, batch, *full.shape[2:]).flatten(0, 1)


def _key(
    size: int, dim: int | None, ints: Sequence[int], rows: Tensor | None, batch: int, device: torch.device
) -> Tensor | None:
    """int64 rows [N B, 3]: a row for each image."""
    if rows is None and not ints:
        return None
    if dim is None:
        return key_rows(ints, rows, batch, device).repeat(size, 1)
    assert rows is not None
    full = rows.movedim(dim, 0)
    if full.shape[1] == 1:
        full = full + key_rows((0, 0, 0), None, batch, device)  # sample b's stream is that of the row + b
    return full.flatten(0, 1)


def _apart(size: int, batch: int, x: Tensor) -> Tensor:
    """[N B, ...] as [N, B, ...], of which one may be 0."""
    return x.unflatten(0, (size, batch))


def _batch(dim: int | None, x: Tensor) -> int:
    """B of images [B, C, H, W], of which the mapped axis is one more."""
    return x.shape[0] if dim is None else x.movedim(dim, 0).shape[1]


# What the arguments of the schemas are, by their names. Another tensor is a coefficient.
_IMAGES = frozenset(("x", "x0", "x_t", "x0_hat", "noise", "prediction", "target", "inputs"))
_MASKS = frozenset(("masks", "noise_mask"))


def _folded(op: Any, size: int, dims: Any, arguments: Sequence[Any]) -> tuple[list[Any], int]:
    """An op's arguments with the mapped axis in the batch axis, by the names in its schema; and B."""
    names = [argument.name for argument in op._schema.arguments]
    images = [
        (d, a) for n, d, a in zip(names, dims, arguments, strict=True) if n in _IMAGES and a is not None
    ]
    dim, first = (images[0][0][0], images[0][1][0]) if names[0] == "inputs" else images[0]
    batch = _batch(dim, first)

    def fold(name: str, dim: Any, value: Any) -> Any:
        if isinstance(value, (list, tuple)):  # a list of tensors; of numbers, a key
            return [] if name == "key" else [fold(name, d, v) for d, v in zip(dim, value, strict=True)]
        if name == "key_rows":
            return _key(size, dim, arguments[names.index("key")], value, batch, first.device)
        if not isinstance(value, Tensor):
            return value
        if name in _IMAGES:
            return _image(size, dim, value)
        return (_mask if name in _MASKS else _coefficient)(size, dim, value, batch)

    return [fold(*one) for one in zip(names, dims, arguments, strict=True)], batch


def rule(name: str) -> Callable[..., Any]:
    """The op's batching rule: that of the table below, or else what its schema says."""

    def by_schema(info: Any, dims: Any, *arguments: Any) -> Any:
        op = getattr(_ops, name).default
        folded, batch = _folded(op, info.batch_size, dims, arguments)
        return _apart(info.batch_size, batch, op(*folded)), 0

    return _RULES.get(name, by_schema)


def _corrupt(info: Any, dims: Any, *arguments: Any) -> Any:
    folded, batch = _folded(_ops.corrupt.default, info.batch_size, dims, arguments)
    x_t, residual = _ops.corrupt.default(*folded)
    wanted = arguments[-1]
    residual = _apart(info.batch_size, batch, residual) if wanted else residual
    return (_apart(info.batch_size, batch, x_t), residual), (0, 0 if wanted else None)


def _step_out(info: Any, dims: Any, *arguments: Any) -> Any:
    out, dim = arguments[-1], dims[-1]
    if dim is None:
        raise ValueError(
            "step_out: expected out= with the axis that vmap maps over, got one tensor for all slices; "
            "drop out=, or map over it too"
        )
    # Written at once, when every slice has been read: out may be one of the images.
    x_s, _ = rule("step")(info, dims[:-1], *arguments[:-1])
    out.movedim(dim, 0).copy_(x_s)
    return None, None


def _soft_score_loss(info: Any, dims: Any, *arguments: Any) -> Any:
    (*folded, reduction), batch = _folded(_ops.soft_score_loss.default, info.batch_size, dims, arguments)
    loss = _ops.soft_score_loss.default(*folded, "none")
    return reduce(_apart(info.batch_size, batch, loss), reduction), 0


def _soft_score_loss_and_gradient(info: Any, dims: Any, *arguments: Any) -> Any:
    size, op = info.batch_size, _ops.soft_score_loss_and_gradient.default
    (*folded, reduction), batch = _folded(op, size, dims, arguments)
    loss, gradient = op(*folded, "none")
    loss, gradient = _apart(size, batch, loss), _apart(size, batch, gradient)
    each = share(reduction, batch)
    return (reduce(loss, reduction), gradient if each == 1.0 else gradient * each), (0, 0)


def _normal(
    info: Any,
    dims: Any,
    shape: Sequence[int],
    key: Sequence[int],
    rows: Tensor | None,
    dtype: Any,
    device: Any,
) -> Any:
    size, batch = info.batch_size, shape[0]
    table = _key(size, dims[2], key, rows, batch, device)
    drawn = _ops.normal.default([size * batch, *shape[1:]], [], table, dtype, device)
    return _apart(size, batch, drawn), 0


_RULES: dict[str, Callable[..., Any]] = {
    "corrupt": _corrupt,
    "step_out": _step_out,
    "soft_score_loss": _soft_score_loss,
    "soft_score_loss_and_gradient": _soft_score_loss_and_gradient,
    "normal": _normal,
}
