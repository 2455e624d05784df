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


def _image(size: int, dim: int | None, x: Any) -> Any:
    """[N B, C, H, W]; None of None."""
    return None if x is None else _front(size, dim, x).flatten(0, 1)


def _coefficient(size: int, dim: int | None, value: Tensor | None, batch: int) -> Tensor | None:
    """[1] or [N B]."""
    if value is None or (dim is None and value.shape[0] == 1):
        return value
    return _front(size, dim, value).expand(size, batch).flatten()


def _mask(size: int, dim: int | None, value: Tensor | None, batch: int) -> Tensor | None:
    """Broadcasting to [N B, C, H, W]; what is the same for all images stays as it is."""
    if value is None or (dim is None and (value.dim() < 4 or value.shape[0] == 1)):
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


def _dct2(info: Any, dims: Any, x: Tensor, inverse: bool) -> Any:
    size = info.batch_size
    return _apart(size, _batch(dims[0], x), _ops.dct2.default(_image(size, dims[0], x), inverse)), 0


def _blur(info: Any, dims: Any, x: Tensor, blur_std: Tensor, scale: Tensor | None, floor: float) -> Any:
    size = info.batch_size
    image, batch = _image(size, dims[0], x), _batch(dims[0], x)
    std, factor = (_coefficient(size, d, c, batch) for d, c in zip(dims[1:3], (blur_std, scale), strict=True))
    return _apart(size, batch, _ops.blur.default(image, std, factor, floor)), 0


def _corrupt(info: Any, dims: Any, x0: Tensor, *others: Any) -> Any:
    *coefficients, floor, key, rows, noise, residual = others
    size = info.batch_size
    image, batch = _image(size, dims[0], x0), _batch(dims[0], x0)
    folded = [_coefficient(size, d, c, batch) for d, c in zip(dims[1:4], coefficients, strict=True)]
    table = _key(size, dims[6], key, rows, batch, image.device)
    x_t, rest = _ops.corrupt.default(image, *folded, floor, [], table, _image(size, dims[7], noise), residual)
    rest = _apart(size, batch, rest) if residual else rest
    return (_apart(size, batch, x_t), rest), (0, 0 if residual else None)


def _step(info: Any, dims: Any, x_t: Tensor | None, x0_hat: Tensor, *others: Any) -> Any:
    *coefficients, rule, floor, key, rows, noise = others
    size = info.batch_size
    clean, batch = _image(size, dims[1], x0_hat), _batch(dims[1], x0_hat)
    folded = [_coefficient(size, d, c, batch) for d, c in zip(dims[2:6], coefficients, strict=True)]
    table = _key(size, dims[9], key, rows, batch, clean.device)
    x_s = _ops.step.default(
        _image(size, dims[0], x_t), clean, *folded, rule, floor, [], table, _image(size, dims[10], noise)
    )
    return _apart(size, batch, x_s), 0


def _step_out(info: Any, dims: Any, *arguments: Any) -> Any:
    out, dim = arguments[-1], dims[-1]
    if dim is None:
        raise ValueError(
            "step_out: expected out= with the axis that vmap maps over, got one tensor for all slices; "
            "drop out=, or map over it too"
        )
    # Written at once, when every slice has been read: out may be one of the images.
    x_s, _ = _step(info, dims[:-1], *arguments[:-1])
    out.movedim(dim, 0).copy_(x_s)
    return None, None


def _soft_score_loss(info: Any, dims: Any, *arguments: Any) -> Any:
    size = info.batch_size
    folded, batch, reduction = _loss_arguments(size, dims, *arguments)
    return reduce(_apart(size, batch, _ops.soft_score_loss.default(*folded, "none")), reduction), 0


def _soft_score_loss_and_gradient(info: Any, dims: Any, *arguments: Any) -> Any:
    size = info.batch_size
    folded, batch, reduction = _loss_arguments(size, dims, *arguments)
    loss, gradient = _ops.soft_score_loss_and_gradient.default(*folded, "none")
    loss, gradient = _apart(size, batch, loss), _apart(size, batch, gradient)
    each = share(reduction, batch)
    return (reduce(loss, reduction), gradient if each == 1.0 else gradient * each), (0, 0)


def _loss_arguments(size: int, dims: Any, *arguments: Any) -> tuple[list[Any], int, str]:
    prediction, target, blur_std, weight, floor, reduction = arguments
    images = [_image(size, d, x) for d, x in zip(dims[:2], (prediction, target), strict=True)]
    batch = _batch(dims[0], prediction)
    factors = [_coefficient(size, d, c, batch) for d, c in zip(dims[2:4], (blur_std, weight), strict=True)]
    return [*images, *factors, floor], batch, reduction


def _spectral_mix(
    info: Any,
    dims: Any,
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    noise_mask: Tensor | None,
    key: Sequence[int],
    rows: Tensor | None,
) -> Any:
    size = info.batch_size
    images = [_image(size, d, x) for d, x in zip(dims[0], inputs, strict=True)]
    batch = _batch(dims[0][0], inputs[0])
    folded = [_mask(size, d, m, batch) for d, m in zip(dims[1], masks, strict=True)]
    table = _key(size, dims[4], key, rows, batch, images[0].device)
    mixed = _ops.spectral_mix.default(images, folded, _mask(size, dims[2], noise_mask, batch), [], table)
    return _apart(size, batch, mixed), 0


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


RULES: dict[str, Callable[..., Any]] = {
    "dct2": _dct2,
    "blur": _blur,
    "corrupt": _corrupt,
    "step": _step,
    "step_out": _step_out,
    "soft_score_loss": _soft_score_loss,
    "soft_score_loss_and_gradient": _soft_score_loss_and_gradient,
    "spectral_mix": _spectral_mix,
    "normal": _normal,
}
