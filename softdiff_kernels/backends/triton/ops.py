# SPDX-License-Identifier: Apache-2.0
"""The ops' arguments made into launches. `protocol.py` says what each argument is.

A coefficient becomes a number where the host has it, else an address and a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ... import _arguments as args
from .. import memory
from . import configs
from .kernels.corrupt import corrupt_kernel
from .kernels.dct2 import dct2_kernel
from .kernels.identity import identity_kernel
from .kernels.normal import normal_kernel
from .kernels.soft_score_loss import soft_score_loss_kernel, spectral_loss_kernel
from .kernels.spectral_mix import spectral_mix_kernel
from .kernels.step import step_kernel
from .launch import FAST, MOST_CHANNELS_IN_A_PROGRAM, Argument, energies_shape, launch, run

_RULES = {"given": 0, "large": 1, "small": 2}
_ABSENT = (0, 0, 0, 0)
TILE = (16, 64)  # of `identity_kernel`
NORMALS = (32, 256)  # rows and columns of a program of `normal_kernel`


def _key(key: Sequence[int], rows: Tensor | None) -> tuple[tuple[Argument, ...], int, bool]:
    """What `device.key_of` takes, and whether there is a key: (seed, stream, draw) or (rows, step, count)."""
    if rows is not None:
        # Numbers, so that a row each and one row for all, as in a batch of one, share a kernel.
        each = rows.shape[0] > 1
        return (rows.contiguous(), 3 if each else 0, 0 if each else 1, 0), 0, True
    return (None, *(key or (0, 0, 0))), -1, bool(key)


def _layout(x: Tensor | None) -> tuple[int, ...]:
    return _ABSENT if x is None else tuple(x.stride())


def _split(image: Tensor) -> bool:
    """Whether products keep all digits: not for bfloat16, whose rounding is coarser than float16's."""
    return image.dtype != torch.bfloat16


def _plan(op: str, x: Tensor, split: bool) -> configs.Plan:
    return configs.plan(op, x.shape[2], x.shape[3], configs.architecture(x.device), split)


def number(c: Tensor) -> float | None:
    """A coefficient that is a number in host memory; None where it has to be read on the device."""
    return c.item() if c.is_cpu and c.numel() == 1 else None


def _pointer(c: Tensor, batch: int) -> tuple[Tensor, int]:
    """What is read on the device: the tensor [1] or [batch], and its step from sample to sample. In a batch
    of one it is the step of [batch], which larger batches have, so that they share a kernel.
    """
    return c, c.stride(0) if c.shape[0] == batch else 0


def coefficient(c: Tensor | None, batch: int) -> tuple[Argument, int]:
    """What `device.coefficient` takes: (number, -1), (tensor, step) or (None, -1)."""
    if c is None:
        return None, -1
    value = number(c)
    return _pointer(c, batch) if value is None else (value, -1)


def tau(blur_std: Tensor, batch: int) -> tuple[Argument, int]:
    """The same of blur_std^2 / 2; a tensor stays blur_std, which the kernel squares."""
    value = number(blur_std)
    return _pointer(blur_std, batch) if value is None else (0.5 * value * value, -1)


def blurs(std_t: Tensor, std_s: Tensor, out: Tensor) -> tuple[Argument, Argument, int, int]:
    """Both blurs as `device.exponents` takes them; two numbers are combined here, in float64."""
    t, s = number(std_t), number(std_s)
    if t is None or s is None:
        t_at, t_step = _pointer(args.on(std_t, out.device), out.shape[0])
        s_at, s_step = _pointer(args.on(std_s, out.device), out.shape[0])
        return t_at, s_at, t_step, s_step
    weaker = min(t, s)
    return 0.5 * (t - s) * (t + s), 0.5 * weaker * weaker, -1, -1


def weights(
    first: Tensor, second: Tensor, rule: str, out: Tensor
) -> tuple[Argument, Argument, float, int, int]:
    """keep, inject and 1 - keep of two numbers, in float64; or where both stand on the device."""
    t, s = number(first), number(second)
    if t is None or s is None:
        first_at, first_step = _pointer(args.on(first, out.device), out.shape[0])
        second_at, second_step = _pointer(args.on(second, out.device), out.shape[0])
        return first_at, second_at, 0.0, first_step, second_step
    if rule == "given":
        return t, s, 1.0 - t, -1, -1
    if t == 0:
        return 1.0, 0.0, 0.0, -1, -1
    ratio, gap = s / t, (t - s) * (t + s)
    inject = math.sqrt(max(gap, 0.0)) * (ratio if rule == "small" else 1.0)
    return ratio * ratio, inject, gap / t / t, -1, -1


def dct2(x: Tensor, inverse: bool) -> Tensor:
    out = torch.empty_like(x)
    split = True  # the mean's coefficient is too large beside the others to be rounded with them
    plan = _plan("dct2", x, split)
    constants = (plan.sizes, _layout(x), _layout(out))
    run(dct2_kernel, plan, x, (x, out), constants, (split, inverse), groups=2)
    return out


def identity(x: Tensor) -> Tensor:
    """template: copy this for a new op. (`run`, not `launch`, lends a kernel the transform's matrices.)"""
    out = torch.empty_like(x)
    batch, channels, height, width = x.shape
    rows, columns = TILE
    sizes = (height, width, -(-height // rows) * rows, -(-width // columns) * columns)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        launch(identity_kernel, (batch, channels), (x, out), (sizes, _layout(x), _layout(out), TILE), 4)
    return out


def blur(x: Tensor, blur_std: Tensor, scale: Tensor | None, floor: float) -> Tensor:
    _check_corrupt("blur", blur_std, None, scale)
    out = torch.empty_like(x)
    _corrupt(x, blur_std, None, scale, floor, [], None, None, out, None)
    return out


def corrupt(
    x0: Tensor,
    blur_std: Tensor,
    noise_std: Tensor,
    scale: Tensor | None,
    floor: float,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
    return_residual: bool,
) -> tuple[Tensor, Tensor]:
    _check_corrupt("corrupt", blur_std, noise_std, scale)
    out = torch.empty_like(x0, dtype=torch.float32) if x0.dtype == torch.uint8 else torch.empty_like(x0)
    residual = torch.empty_like(out) if return_residual else None
    _corrupt(x0, blur_std, noise_std, scale, floor, key, rows, noise, out, residual)
    return out, out.new_empty(0) if residual is None else residual


def _check_corrupt(op: str, blur_std: Tensor, noise_std: Tensor | None, scale: Tensor | None) -> None:
    args.host_values(op, "blur_std", blur_std)
    args.host_values(op, "noise_std", noise_std)
    args.host_values(op, "scale", scale, signed=True)


def _corrupt(
    x: Tensor,
    blur_std: Tensor,
    noise_std: Tensor | None,
    scale: Tensor | None,
    floor: float,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
    out: Tensor,
    residual: Tensor | None,
) -> None:
    split = _split(x) or residual is not None  # a residual may be far smaller than the image
    plan = _plan("corrupt", x, split)
    batch = x.shape[0]
    std, std_step = tau(blur_std, batch)
    sigma, sigma_step = coefficient(noise_std, batch)
    factor, factor_step = coefficient(scale, batch)
    key_parts, key_step, keyed = _key(key, rows)
    arguments = (x, out, residual, noise, std, sigma, factor, *key_parts, float(floor))
    steps = (std_step, sigma_step, factor_step, key_step)
    layouts = (_layout(x), _layout(out), _layout(residual), _layout(noise))
    run(corrupt_kernel, plan, x, arguments, ((plan.sizes, steps, *layouts, keyed, FAST),), (split,))


def step(
    x_t: Tensor | None,
    x0_hat: Tensor,
    blur_std_t: Tensor,
    blur_std_s: Tensor,
    first: Tensor,
    second: Tensor,
    rule: str,
    floor: float,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    out = torch.empty_like(x0_hat if x_t is None else x_t)
    _step(x_t, x0_hat, blur_std_t, blur_std_s, first, second, rule, floor, key, rows, noise, out)
    return out


def step_out(
    x_t: Tensor | None,
    x0_hat: Tensor,
    blur_std_t: Tensor,
    blur_std_s: Tensor,
    first: Tensor,
    second: Tensor,
    rule: str,
    floor: float,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
    out: Tensor,
) -> None:
    coefficients = (blur_std_t, blur_std_s, first, second)
    memory.step_out(step, _step, (x_t, x0_hat, *coefficients, rule, floor, key, rows, noise, out))


def _check_step(std_t: Tensor, std_s: Tensor, first: Tensor, second: Tensor, rule: str) -> None:
    given = rule == "given"
    op = "reverse_step" if given else "momentum_step"
    args.host_values(op, "blur_std_t", std_t)
    args.host_values(op, "blur_std_s", std_s)
    args.host_values(op, "a" if given else "noise_std_t", first, signed=given)
    args.host_values(op, "b" if given else "noise_std_s", second)
    if not given:
        args.host_order(op, "blur_std_s", std_s, "blur_std_t", std_t)
        args.host_order(op, "noise_std_s", second, "noise_std_t", first)


def _step(
    x_t: Tensor | None,
    x0_hat: Tensor,
    blur_std_t: Tensor,
    blur_std_s: Tensor,
    first: Tensor,
    second: Tensor,
    rule: str,
    floor: float,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
    out: Tensor,
) -> None:
    _check_step(blur_std_t, blur_std_s, first, second, rule)
    split = _split(out)
    plan = _plan("step", out, split)
    std_t, std_s, t_step, s_step = blurs(blur_std_t, blur_std_s, out)
    keep, inject, one_minus_keep, keep_step, inject_step = weights(first, second, rule, out)
    key_parts, key_step, keyed = _key(key, rows)
    weighted = (keep, inject, one_minus_keep)
    arguments = (x_t, x0_hat, out, noise, std_t, std_s, *weighted, *key_parts, float(floor))
    steps = (t_step, s_step, keep_step, inject_step, key_step)
    layouts = (_layout(x_t), _layout(x0_hat), _layout(out), _layout(noise))
    static = (plan.sizes, steps, *layouts, keyed, FAST, _RULES[rule])
    run(step_kernel, plan, out, arguments, (static,), (split,))


def soft_score_loss(
    prediction: Tensor,
    target: Tensor,
    blur_std: Tensor,
    weight: Tensor | None,
    floor: float,
    gradient_scale: float,
    return_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    args.host_values("soft_score_loss", "blur_std", blur_std)
    args.host_values("soft_score_loss", "weight", weight)
    std, step = tau(blur_std, prediction.shape[0])
    options = (float(floor),)
    given = (soft_score_loss_kernel, prediction, target, std, step, None, weight, options)
    return _loss("soft_score_loss", *given, gradient_scale, return_gradient)


def spectral_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    weight: Tensor | None,
    gradient_scale: float,
    return_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    args.host_values("spectral_loss", "weight", weight)
    spread = mask.expand(prediction.shape)
    given = (spectral_loss_kernel, prediction, target, spread, -1, _layout(spread), weight, ())
    return _loss("spectral_loss", *given, gradient_scale, return_gradient)


def _loss(
    op: str,
    kernel: Any,
    prediction: Tensor,
    target: Tensor,
    filtered_by: Argument,
    step: int,
    mask_layout: tuple[int, ...] | None,
    weight: Tensor | None,
    options: tuple[float, ...],
    gradient_scale: float,
    return_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """filtered_by: a blur as `tau` gives it with its step, or a mask and its layout."""
    # The loss is float32 for every image, and keeps float32's digits.
    split = True
    plan = _plan(op, prediction, split)
    gradient = torch.empty_like(prediction) if return_gradient else None
    energies = prediction.new_empty(energies_shape(plan, prediction), dtype=torch.float32)
    factor, factor_step = coefficient(weight, prediction.shape[0])
    numbers = (*options, float(gradient_scale))
    arguments = (prediction, target, gradient, filtered_by, factor, energies, *numbers)
    layouts = (_layout(prediction), _layout(target), _layout(gradient), mask_layout)
    static = (plan.sizes, (step, factor_step), *layouts)
    channels = prediction.shape[1] if prediction.shape[1] <= MOST_CHANNELS_IN_A_PROGRAM else 1
    groups = 3 if return_gradient else 2
    run(kernel, plan, prediction, arguments, (static,), (split,), channels=channels, groups=groups)
    loss = energies.view(-1) if energies.numel() == prediction.shape[0] else energies.sum(1)
    return loss, gradient


def spectral_mix(
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    noise_mask: Tensor | None,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    out = torch.empty_like(inputs[0])
    _spectral_mix(inputs, masks, noise_mask, key, rows, noise, out)
    return out


def spectral_mix_out(
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    noise_mask: Tensor | None,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
    out: Tensor,
) -> None:
    arguments = (inputs, masks, noise_mask, key, rows, noise, out)
    memory.spectral_mix_out(spectral_mix, _spectral_mix, arguments)


def _spectral_mix(
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    noise_mask: Tensor | None,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
    out: Tensor,
) -> None:
    split = True  # masks may leave far less than they were given
    plan = _plan("spectral_mix", out, split)
    key_parts, key_step, keyed = _key(key, rows)
    absent = [None] * (4 - len(inputs))
    images = (*inputs, *absent)
    spread = (*(m.expand(out.shape) for m in masks), *absent)
    noisy = noise_mask.expand(out.shape) if noise_mask is not None and (keyed or noise is not None) else None
    arguments = (*images, *spread, noisy, noise, out, *key_parts)
    layouts = map(_layout, (*images, *spread, noisy, noise, out))
    static = (plan.sizes, *layouts, key_step, FAST)
    run(spectral_mix_kernel, plan, out, arguments, (static,), (split,), groups=1, totals=True)


def normal(
    shape: Sequence[int], key: Sequence[int], rows: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    out = torch.empty(list(shape), dtype=dtype, device=device)
    if out.numel() == 0:
        return out
    batch = shape[0]
    count = out.numel() // batch
    tile = math.prod(NORMALS)
    parts = -(-count // tile)
    grain = next(g for g in (tile, 4, 1) if count % g == 0)
    key_parts, key_step, _ = _key(key, rows)
    arguments = (out, *key_parts, count, parts)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        launch(normal_kernel, (batch * parts, 1), arguments, (grain, key_step, *NORMALS, FAST), 4)
    return out
