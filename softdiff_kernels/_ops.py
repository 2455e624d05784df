# SPDX-License-Identifier: Apache-2.0
"""Every op's torch.library schema and fake, side by side, and the registration of all that belongs to an op.

The ops are pure functions of tensors (`step_out` apart, which declares its mutation). Their derivatives
(`_autograd.py`) and batching rules (`_vmap.py`) are registered with them. A coefficient is a float32 or
float64 tensor [1] or [B]. A key is three host integers (seed, stream, draw), or int64 rows [1, 3] or [B, 3]
on the device, or absent.

One Python function serves all dispatch keys below autograd: it asks `backends` which implementation
takes the call, so that a choice of backend holds under torch.compile as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _autograd, _vmap
from .backends import dispatcher

_KEY = "SymInt[] key, Tensor? key_rows"

_LOSS = "Tensor prediction, Tensor target, Tensor blur_std, Tensor? weight, float floor, str reduction"

_SCHEMAS = {
    "dct2": "(Tensor x, bool inverse) -> Tensor",
    "identity": "(Tensor x) -> Tensor",  # template: copy this for a new op
    "blur": "(Tensor x, Tensor blur_std, Tensor? scale, float floor) -> Tensor",
    "corrupt": (
        "(Tensor x0, Tensor blur_std, Tensor noise_std, Tensor? scale, float floor, "
        f"{_KEY}, Tensor? noise, bool residual) -> (Tensor, Tensor)"
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
    "spectral_mix": f"(Tensor[] inputs, Tensor[] masks, Tensor? noise_mask, {_KEY}) -> Tensor",
    "normal": f"(SymInt[] shape, {_KEY}, ScalarType dtype, Device device) -> Tensor",
}


def _fake_dct2(x: Tensor, inverse: bool) -> Tensor:
    return torch.empty_like(x)


def _fake_identity(x: Tensor) -> Tensor:
    """template: copy this for a new op. Shape, dtype and strides of the result."""
    return torch.empty_like(x)


def _fake_blur(x: Tensor, blur_std: Tensor, scale: Tensor | None, floor: float) -> Tensor:
    return torch.empty_like(x)


def _fake_corrupt(x0: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x0, dtype=image_dtype(x0))
    return out, torch.empty_like(out) if args[-1] else out.new_empty(0)


def _fake_step(x_t: Tensor | None, x0_hat: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x0_hat if x_t is None else x_t)


def _fake_step_out(*args: Any) -> None:
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
    "step_out": _fake_step_out,
    "soft_score_loss": _fake_loss,
    "soft_score_loss_and_gradient": _fake_loss_and_gradient,
    "spectral_mix": _fake_mix,
    "normal": _fake_normal,
}


def image_dtype(x0: Tensor) -> torch.dtype:
    """The dtype of an image made from x0: x0's own, or float32 for uint8."""
    return torch.float32 if x0.dtype == torch.uint8 else x0.dtype


def _losses() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Both ops of the loss, by the backends' function: each image's loss, and the gradient times a factor."""
    each = dispatcher("soft_score_loss")

    def loss(
        prediction: Tensor, target: Tensor, std: Tensor, weight: Tensor | None, floor: float, reduction: str
    ) -> Tensor:
        found, _ = each(prediction, target, std, weight, floor, 1.0, False)
        return _autograd.reduce(found, reduction)

    def loss_and_gradient(
        prediction: Tensor, target: Tensor, std: Tensor, weight: Tensor | None, floor: float, reduction: str
    ) -> tuple[Tensor, Tensor]:
        share = _autograd.share(reduction, prediction.shape[0])
        found, gradient = each(prediction, target, std, weight, floor, share, True)
        return _autograd.reduce(found, reduction), gradient

    return loss, loss_and_gradient


# Kernels for dispatch keys are taken back when their library goes.
_library = torch.library.Library("softdiff", "DEF")
_RULES = {rule.op: rule for rule in _autograd.RULES}
_DIRECT = dict(zip(("soft_score_loss", "soft_score_loss_and_gradient"), _losses(), strict=True))


def _register(name: str) -> Any:
    qualified = f"softdiff::{name}"
    direct = _DIRECT.get(name) or dispatcher(name)
    _library.define(name + _SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, direct, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, _FAKES[name], lib=_library)
    torch.library.register_vmap(qualified, _vmap.rule(name), lib=_library)
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
spectral_mix = _register("spectral_mix")
normal = _register("normal")
