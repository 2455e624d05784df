# SPDX-License-Identifier: Apache-2.0
"""Every op's torch.library schema, fake and batching rule, and the registration of all that belongs to an op.

The ops are pure functions of tensors, but for those named `_out`, which declare their mutation. Their
derivatives (`_autograd.py`) are registered with them. A coefficient is a float32 or float64 tensor [1] or
[B]. A key is three host integers (seed, stream, draw), or int64 rows [1, 3] or [B, 3] on the device, or
absent.

One Python function serves all dispatch keys below autograd: it asks `backends` which implementation
takes the call, so that a choice of backend holds under torch.compile as well.

The batching rules serve torch.func.vmap and what is built on it (jacrev, jacfwd, hessian). Every op treats
each image of its batch by itself. So a mapped axis of N becomes part of the batch axis: images
[N, B, C, H, W] become [N B, C, H, W], and coefficients, masks and noise keys follow. A key gives each of the
N slices the noise that it would get alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _autograd
from .backends import dispatcher
from .noise import key_rows

_softdiff = torch.ops.softdiff

_KEY = "SymInt[] key, Tensor? key_rows"

_LOSS = "Tensor prediction, Tensor target, Tensor blur_std, Tensor? weight, float floor, str reduction"
_SPECTRAL_LOSS = "Tensor prediction, Tensor target, Tensor mask, Tensor? weight, str reduction"
_MIX = f"Tensor[] inputs, Tensor[] masks, Tensor? noise_mask, {_KEY}, Tensor? noise"

_SCHEMAS = {
    "dct2": "(Tensor x, bool inverse) -> Tensor",
    "identity": "(Tensor x) -> Tensor",  # template: copy this for a new op
    "blur": "(Tensor x, Tensor blur_std, Tensor? scale, float floor) -> Tensor",
    "corrupt": (
        "(Tensor x0, Tensor blur_std, Tensor noise_std, Tensor? scale, float floor, "
        f"{_KEY}, Tensor? noise, bool return_residual) -> (Tensor, Tensor)"
    ),
    # rule "given": first = a, second = b; "large" or "small": first = noise_std_t, second = noise_std_s.
    # (An argument named "mode" collides with one of torch's own where step_out is functionalised.)
    "step": (
        "(Tensor? x_t, Tensor x0_hat, Tensor blur_std_t, Tensor blur_std_s, Tensor first, Tensor second, "
        f"str rule, float floor, {_KEY}, Tensor? noise) -> Tensor"
    ),
    "step_out": (
        "(Tensor? x_t, Tensor x0_hat, Tensor blur_std_t, Tensor blur_std_s, Tensor first, Tensor second, "
        f"str rule, float floor, {_KEY}, Tensor? noise, Tensor(a!) out) -> ()"
    ),
    # The loss, reduced to [] or [B]; the gradient of its sum for the prediction.
    "soft_score_loss": f"({_LOSS}) -> Tensor",
    "soft_score_loss_and_gradient": f"({_LOSS}) -> (Tensor, Tensor)",
    "spectral_loss": f"({_SPECTRAL_LOSS}) -> Tensor",
    "spectral_loss_and_gradient": f"({_SPECTRAL_LOSS}) -> (Tensor, Tensor)",
    "spectral_mix": f"({_MIX}) -> Tensor",
    "spectral_mix_out": f"({_MIX}, Tensor(a!) out) -> ()",
    "normal": f"(SymInt[] shape, {_KEY}, ScalarType dtype, Device device) -> Tensor",
}


def _fake_dct2(x: Tensor, inverse: bool) -> Tensor:
    return torch.empty_like(x)


def _fake_identity(x: Tensor) -> Tensor:
    """template: copy this for a new op. The result's shape, dtype and strides."""
    return torch.empty_like(x)


def _fake_blur(x: Tensor, blur_std: Tensor, scale: Tensor | None, floor: float) -> Tensor:
    return torch.empty_like(x)


def _fake_corrupt(x0: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x0, dtype=image_dtype(x0))
    return out, torch.empty_like(out) if args[-1] else out.new_empty(0)


def _fake_step(x_t: Tensor | None, x0_hat: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x0_hat if x_t is None else x_t)


def _fake_out(*args: Any) -> None:
    return None


def _fake_loss(prediction: Tensor, *args: Any) -> Tensor:
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    return prediction.new_empty([prediction.shape[0]] if args[-1] == "none" else [], dtype=dtype)


def _fake_loss_and_gradient(prediction: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _fake_loss(prediction, *args), torch.empty_like(prediction)


def _fake_mix(inputs: Sequence[Tensor], *args: Any) -> Tensor:
    return torch.empty_like(inputs[0])


def _fake_normal(
    shape: Sequence[int], key: Sequence[int], rows: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.empty(list(shape), dtype=dtype, device=device)


_FAKES: dict[str, Callable[..., Any]] = {
    "dct2": _fake_dct2,
    "identity": _fake_identity,
    "blur": _fake_blur,
    "corrupt": _fake_corrupt,
    "step": _fake_step,
    "step_out": _fake_out,
    "soft_score_loss": _fake_loss,
    "soft_score_loss_and_gradient": _fake_loss_and_gradient,
    "spectral_loss": _fake_loss,
    "spectral_loss_and_gradient": _fake_loss_and_gradient,
    "spectral_mix": _fake_mix,
    "spectral_mix_out": _fake_out,
    "normal": _fake_normal,
}


def image_dtype(x0: Tensor) -> torch.dtype:
    """The dtype of an image made from x0: x0's own, or float32 for uint8."""
    return torch.float32 if x0.dtype == torch.uint8 else x0.dtype


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


def _vmap_dct2(info: Any, dims: Any, x: Tensor, inverse: bool) -> Any:
    size = info.batch_size
    return _apart(size, _batch(dims[0], x), _softdiff.dct2.default(_image(size, dims[0], x), inverse)), 0


def _vmap_identity(info: Any, dims: Any, x: Tensor) -> Any:
    """template: copy this for a new op. The result, and the place of the mapped axis in it."""
    size = info.batch_size
    return _apart(size, _batch(dims[0], x), _softdiff.identity.default(_image(size, dims[0], x))), 0


def _vmap_blur(info: Any, dims: Any, x: Tensor, blur_std: Tensor, scale: Tensor | None, floor: float) -> Any:
    size = info.batch_size
    image, batch = _image(size, dims[0], x), _batch(dims[0], x)
    std, factor = (_coefficient(size, d, c, batch) for d, c in zip(dims[1:3], (blur_std, scale), strict=True))
    return _apart(size, batch, _softdiff.blur.default(image, std, factor, floor)), 0


def _vmap_corrupt(info: Any, dims: Any, x0: Tensor, *others: Any) -> Any:
    *coefficients, floor, key, rows, noise, return_residual = others
    size = info.batch_size
    image, batch = _image(size, dims[0], x0), _batch(dims[0], x0)
    folded = [_coefficient(size, d, c, batch) for d, c in zip(dims[1:4], coefficients, strict=True)]
    table = _key(size, dims[6], key, rows, batch, image.device)
    x_t, residual = _softdiff.corrupt.default(
        image, *folded, floor, [], table, _image(size, dims[7], noise), return_residual
    )
    residual = _apart(size, batch, residual) if return_residual else residual
    return (_apart(size, batch, x_t), residual), (0, 0 if return_residual else None)


def _vmap_step(info: Any, dims: Any, x_t: Tensor | None, x0_hat: Tensor, *others: Any) -> Any:
    *coefficients, rule, floor, key, rows, noise = others
    size = info.batch_size
    clean, batch = _image(size, dims[1], x0_hat), _batch(dims[1], x0_hat)
    folded = [_coefficient(size, d, c, batch) for d, c in zip(dims[2:6], coefficients, strict=True)]
    table = _key(size, dims[9], key, rows, batch, clean.device)
    x_s = _softdiff.step.default(
        _image(size, dims[0], x_t), clean, *folded, rule, floor, [], table, _image(size, dims[10], noise)
    )
    return _apart(size, batch, x_s), 0


def _vmap_out(op: str, fresh: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of an op that writes to its last argument, by that of the one that returns a new tensor."""

    def rule(info: Any, dims: Any, *arguments: Any) -> Any:
        out, dim = arguments[-1], dims[-1]
        if dim is None:
            raise ValueError(
                f"{op}: expected out= with the axis that vmap maps over, got one tensor for all slices; "
                "drop out=, or map over it too"
            )
        # Written at once, when every slice has been read: out may be one of the images.
        result, _ = fresh(info, dims[:-1], *arguments[:-1])
        out.movedim(dim, 0).copy_(result)
        return None, None

    return rule


def _vmap_losses(op: str, fold: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The rules of a loss and of it with its gradient. fold: of what filters the error, `_coefficient` for a
    blur_std, `_mask` for a mask."""
    both = f"{op}_and_gradient"

    def folded(size: int, dims: Any, arguments: Any) -> tuple[list[Any], int, str]:
        prediction, target, given, weight, *options, reduction = arguments
        images = [_image(size, d, x) for d, x in zip(dims[:2], (prediction, target), strict=True)]
        batch = _batch(dims[0], prediction)
        filtered, factor = fold(size, dims[2], given, batch), _coefficient(size, dims[3], weight, batch)
        return [*images, filtered, factor, *options], batch, reduction

    def loss(info: Any, dims: Any, *arguments: Any) -> Any:
        size = info.batch_size
        values, batch, reduction = folded(size, dims, arguments)
        each = _apart(size, batch, getattr(_softdiff, op).default(*values, "none"))
        return _autograd.reduce(op, each, reduction), 0

    def loss_and_gradient(info: Any, dims: Any, *arguments: Any) -> Any:
        size = info.batch_size
        values, batch, reduction = folded(size, dims, arguments)
        each, gradient = (_apart(size, batch, x) for x in getattr(_softdiff, both).default(*values, "none"))
        share = _autograd.share(reduction, batch)
        return (_autograd.reduce(op, each, reduction), gradient if share == 1.0 else gradient * share), (0, 0)

    return loss, loss_and_gradient


def _vmap_mix(
    info: Any,
    dims: Any,
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    noise_mask: Tensor | None,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
) -> Any:
    size = info.batch_size
    images = [_image(size, d, x) for d, x in zip(dims[0], inputs, strict=True)]
    batch = _batch(dims[0][0], inputs[0])
    folded = [_mask(size, d, m, batch) for d, m in zip(dims[1], masks, strict=True)]
    table = _key(size, dims[4], key, rows, batch, images[0].device)
    mixed = _softdiff.spectral_mix.default(
        images, folded, _mask(size, dims[2], noise_mask, batch), [], table, _image(size, dims[5], noise)
    )
    return _apart(size, batch, mixed), 0


def _vmap_normal(
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
    drawn = _softdiff.normal.default([size * batch, *shape[1:]], [], table, dtype, device)
    return _apart(size, batch, drawn), 0


_BATCHING: dict[str, Callable[..., Any]] = {
    "dct2": _vmap_dct2,
    "identity": _vmap_identity,
    "blur": _vmap_blur,
    "corrupt": _vmap_corrupt,
    "step": _vmap_step,
    "step_out": _vmap_out("step_out", _vmap_step),
    "spectral_mix": _vmap_mix,
    "spectral_mix_out": _vmap_out("spectral_mix_out", _vmap_mix),
    "normal": _vmap_normal,
}
_LOSSES: dict[str, Callable[..., Any]] = {"soft_score_loss": _coefficient, "spectral_loss": _mask}
for _name, _fold in _LOSSES.items():
    _BATCHING[_name], _BATCHING[f"{_name}_and_gradient"] = _vmap_losses(_name, _fold)


def _losses(op: str) -> dict[str, Callable[..., Any]]:
    """Both ops of a loss, by the backends' function: each image's loss, and the gradient times a factor."""
    each = dispatcher(op)

    def loss(*arguments: Any) -> Tensor:
        *given, reduction = arguments
        losses, _ = each(*given, 1.0, False)
        return _autograd.reduce(op, losses, reduction)

    def loss_and_gradient(prediction: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        *given, reduction = arguments
        share = _autograd.share(reduction, prediction.shape[0])
        losses, gradient = each(prediction, *given, share, True)
        return _autograd.reduce(op, losses, reduction), gradient

    return {op: loss, f"{op}_and_gradient": loss_and_gradient}


# Kernels for dispatch keys are removed when their library goes.
_library = torch.library.Library("softdiff", "DEF")
_RULES = {rule.op: rule for rule in _autograd.RULES}
_DIRECT = {name: direct for op in _LOSSES for name, direct in _losses(op).items()}


def _register(name: str) -> Any:
    qualified = f"softdiff::{name}"
    direct = _DIRECT.get(name) or dispatcher(name)
    _library.define(name + _SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, direct, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, _FAKES[name], lib=_library)
    torch.library.register_vmap(qualified, _BATCHING[name], lib=_library)
    if name in _RULES:  # normal takes no image
        rule = _RULES[name]
        rule.direct = staticmethod(direct)
        _library.impl(name, rule.kernel(), "Autograd", with_keyset=True)
    return getattr(torch.ops.softdiff, name).default


dct2 = _register("dct2")
identity = _register("identity")
blur = _register("blur")
corrupt = _register("corrupt")
step = _register("step")
step_out = _register("step_out")
soft_score_loss = _register("soft_score_loss")
soft_score_loss_and_gradient = _register("soft_score_loss_and_gradient")
spectral_loss = _register("spectral_loss")
spectral_loss_and_gradient = _register("spectral_loss_and_gradient")
spectral_mix = _register("spectral_mix")
spectral_mix_out = _register("spectral_mix_out")
normal = _register("normal")
