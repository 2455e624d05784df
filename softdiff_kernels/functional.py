# SPDX-License-Identifier: Apache-2.0
"""The public ops: argument checks, then one registered op each.

Each has an eager twin of the same name and signature in `reference`, whose docstring it shares.
Differentiable any number of times in every image argument; not in the coefficients, which are refused if they
require grad. Nothing synchronises with a device: values inside coefficient tensors are checked on the CPU
alone. Under autocast, arithmetic is in float32 and the result has the image's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from . import _arguments as args
from . import _ops, reference
from .noise import NoiseKey, pack_key

Coefficient = float | Tensor
F = TypeVar("F", bound=Callable[..., object])

__all__ = [
    "blur",
    "corrupt",
    "dct2",
    "idct2",
    "momentum_step",
    "normal",
    "reverse_step",
    "soft_score_loss",
    "spectral_mix",
]


def _twin(fn: F) -> F:
    """Shares the docstring of the eager twin, which specifies the op."""
    fn.__doc__ = getattr(reference, fn.__name__).__doc__
    return fn


def _silent(value: Coefficient) -> bool:
    """Whether the noise is known to be multiplied by nothing, so that none need be drawn."""
    return args.equals(value, 0)


def _key(
    op: str, key: NoiseKey | None, noise: Tensor | None, like: Tensor, std: Coefficient
) -> tuple[list[int], Tensor | None]:
    if noise is not None:
        if key is not None:
            raise ValueError(f"{op}: expected key or noise, got both")
        args.image(op, "noise", noise, like=like)
        return [], None
    if key is not None and not isinstance(key, NoiseKey):
        raise TypeError(f"{op}: expected key as a NoiseKey, got {args.describe(key)}")
    if _silent(std):
        return [], None
    return pack_key(key, like.shape[0], like.device)


def _optional(
    op: str, name: str, value: Coefficient | None, x: Tensor, *, any_sign: bool = False
) -> Tensor | None:
    """A factor that is absent where it is one."""
    if value is None or args.equals(value, 1):
        return None
    return args.coefficient(op, name, value, x.shape[0], x.device, nonnegative=not any_sign)


@_twin
def dct2(x: Tensor) -> Tensor:
    args.image("dct2", "x", x)
    return _ops.dct2(x, False)


@_twin
def idct2(u: Tensor) -> Tensor:
    args.image("idct2", "u", u)
    return _ops.dct2(u, True)


@_twin
def identity(x: Tensor) -> Tensor:  # template: copy this for a new op, and add its name to __all__
    args.image("identity", "x", x)
    return _ops.identity(x)


@_twin
def blur(x: Tensor, blur_std: Coefficient, *, floor: float = 0.0, scale: Coefficient = 1.0) -> Tensor:
    args.image("blur", "x", x)
    floor = args.number("blur", "floor", floor, most=1.0)
    std = args.coefficient("blur", "blur_std", blur_std, x.shape[0], x.device)
    factor = _optional("blur", "scale", scale, x, any_sign=True)
    return _ops.blur(x, std, factor, floor)


@_twin
def corrupt(
    x0: Tensor,
    blur_std: Coefficient,
    noise_std: Coefficient,
    *,
    floor: float = 0.0,
    scale: Coefficient = 1.0,
    key: NoiseKey | None = None,
    noise: Tensor | None = None,
    return_residual: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    op = "corrupt"
    args.image(op, "x0", x0, uint8=True)
    floor = args.number(op, "floor", floor, most=1.0)
    batch, device = x0.shape[0], x0.device
    std = args.coefficient(op, "blur_std", blur_std, batch, device)
    sigma = args.coefficient(op, "noise_std", noise_std, batch, device)
    factor = _optional(op, "scale", scale, x0, any_sign=True)
    packed, rows = _key(op, key, noise, x0, noise_std)
    x_t, residual = _ops.corrupt(x0, std, sigma, factor, floor, packed, rows, noise, return_residual)
    return (x_t, residual) if return_residual else x_t


def _step(
    op: str,
    x_t: Tensor,
    x0_hat: Tensor,
    coefficients: dict[str, Coefficient],
    rule: str,
    floor: float,
    key: NoiseKey | None,
    noise: Tensor | None,
    silent: Coefficient,
    out: Tensor | None,
) -> Tensor:
    args.image(op, "x_t", x_t)
    args.image(op, "x0_hat", x0_hat, like=x_t)
    floor = args.number(op, "floor", floor, most=1.0)
    args.output(op, out, x_t, x0_hat, noise)
    batch, device = x_t.shape[0], x_t.device
    tensors = [
        args.coefficient(op, name, value, batch, device, nonnegative=name != "a")
        for name, value in coefficients.items()
    ]
    packed, rows = _key(op, key, noise, x_t, silent)
    if out is not None:
        _ops.step_out(x_t, x0_hat, *tensors, rule, floor, packed, rows, noise, out)
        return out
    return _ops.step(x_t, x0_hat, *tensors, rule, floor, packed, rows, noise)


@_twin
def reverse_step(
    x_t: Tensor,
    x0_hat: Tensor,
    *,
    blur_std_t: Coefficient,
    blur_std_s: Coefficient,
    a: Coefficient,
    b: Coefficient,
    floor: float = 0.0,
    key: NoiseKey | None = None,
    noise: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    coefficients = {"blur_std_t": blur_std_t, "blur_std_s": blur_std_s, "a": a, "b": b}
    return _step("reverse_step", x_t, x0_hat, coefficients, "given", floor, key, noise, b, out)


@_twin
def momentum_step(
    x_t: Tensor,
    x0_hat: Tensor,
    *,
    blur_std_t: Coefficient,
    blur_std_s: Coefficient,
    noise_std_t: Coefficient,
    noise_std_s: Coefficient,
    variance: str = "large",
    key: NoiseKey | None = None,
    noise: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    op = "momentum_step"
    args.choice(op, "variance", variance, ("large", "small"))
    coefficients = {
        "blur_std_t": blur_std_t,
        "blur_std_s": blur_std_s,
        "noise_std_t": noise_std_t,
        "noise_std_s": noise_std_s,
    }
    for low, high in (("blur_std_s", "blur_std_t"), ("noise_std_s", "noise_std_t")):
        args.ordered_numbers(op, low, coefficients[low], high, coefficients[high])
    return _step(op, x_t, x0_hat, coefficients, variance, 0.0, key, noise, 1.0, out)


@_twin
def soft_score_loss(
    prediction: Tensor,
    target: Tensor,
    blur_std: Coefficient,
    *,
    weight: Coefficient | None = None,
    floor: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    op = "soft_score_loss"
    args.image(op, "prediction", prediction)
    args.image(op, "target", target, like=prediction)
    floor = args.number(op, "floor", floor, most=1.0)
    args.choice(op, "reduction", reduction, ("none", "mean", "sum"))
    std = args.coefficient(op, "blur_std", blur_std, prediction.shape[0], prediction.device)
    factor = _optional(op, "weight", weight, prediction)
    return _ops.soft_score_loss(prediction, target, std, factor, floor, reduction)


@_twin
def spectral_mix(
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    noise_mask: Tensor | None = None,
    key: NoiseKey | None = None,
) -> Tensor:
    reference.check_mix("spectral_mix", inputs, masks, noise_mask)
    packed, rows = _key("spectral_mix", key, None, inputs[0], 0.0 if noise_mask is None else 1.0)
    return _ops.spectral_mix(inputs, masks, noise_mask, packed, rows)


@_twin
def normal(
    shape: Sequence[int],
    key: NoiseKey,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    shape = reference.check_normal(shape, key, dtype)
    where = args.indexed(torch.device(device))
    return _ops.normal(shape, *pack_key(key, shape[0], where), dtype, where)
