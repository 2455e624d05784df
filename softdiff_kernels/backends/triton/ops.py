# SPDX-License-Identifier: Apache-2.0
"""The ops' arguments made into launches. `_ops.py` says what each argument is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import _memory
from .._checks import check, check_step
from . import configs
from .coefficients import blurs, coefficient, tau, weights
from .kernels.corrupt import corrupt_kernel
from .kernels.loss import loss_kernel
from .kernels.mix import mix_kernel
from .kernels.noise import normal_kernel
from .kernels.step import step_kernel
from .kernels.transform import transform_kernel
from .launch import FAST, Argument, launch
from .run import MOST_CHANNELS_IN_A_PROGRAM, energies_shape, run

_RULES = {"given": 0, "large": 1, "small": 2}
_ABSENT = (0, 0, 0, 0)
NORMALS = (32, 256)  # rows and columns of a program of `normal_kernel`


def _key(key: Sequence[int], rows: Tensor | None) -> tuple[tuple[Argument, ...], int, bool]:
    """((rows, seed, stream, draw), the rows' step, whether there is a key)."""
    if rows is not None:
        return (rows.contiguous(), 0, 0, 0), 3 if rows.shape[0] > 1 else 0, True
    return (None, *(key or (0, 0, 0))), -1, bool(key)


def _layout(x: Tensor | None) -> tuple[int, ...]:
    return _ABSENT if x is None else tuple(x.stride())


def _split(image: Tensor) -> bool:
    """Whether products keep all digits: not for bfloat16, whose rounding is coarser than float16's."""
    return image.dtype != torch.bfloat16


def _plan(op: str, x: Tensor, split: bool) -> configs.Plan:
    return configs.plan(op, x.shape[2], x.shape[3], configs.architecture(x.device), split)


def dct2(x: Tensor, inverse: bool) -> Tensor:
    out = torch.empty_like(x)
    split = True  # the mean's coefficient is too large beside the others to be rounded with them
    plan = _plan("dct2", x, split)
    constants = (plan.sizes, _layout(x), _layout(out))
    run(transform_kernel, plan, x, (x, out), constants, (split, inverse), groups=2)
    return out


def blur(x: Tensor, blur_std: Tensor, scale: Tensor | None, floor: float) -> Tensor:
    check("blur", ("blur_std", blur_std), ("scale", scale), signed="scale")
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
    residual: bool,
) -> tuple[Tensor, Tensor]:
    check("corrupt", ("blur_std", blur_std), ("noise_std", noise_std), ("scale", scale), signed="scale")
    out = torch.empty_like(x0, dtype=torch.float32) if x0.dtype == torch.uint8 else torch.empty_like(x0)
    rest = torch.empty_like(out) if residual else None
    _corrupt(x0, blur_std, noise_std, scale, floor, key, rows, noise, out, rest)
    return out, out.new_empty(0) if rest is None else rest


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
    rest: Tensor | None,
) -> None:
    split = _split(x) or rest is not None  # a residual may be far smaller than the image
    plan = _plan("corrupt", x, split)
    std, std_step = tau(blur_std)
    sigma, sigma_step = coefficient(noise_std)
    factor, factor_step = coefficient(scale)
    named, key_step, keyed = _key(key, rows)
    arguments = (x, out, rest, noise, std, sigma, factor, *named, float(floor))
    steps = (std_step, sigma_step, factor_step, key_step)
    layouts = (_layout(x), _layout(out), _layout(rest), _layout(noise))
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


def step_out(*args: Any) -> None:
    _memory.step_out(step, _step, args)


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
    check_step(blur_std_t, blur_std_s, first, second, rule)
    split = _split(out)
    plan = _plan("step", out, split)
    std_t, std_s, t_step, s_step = blurs(blur_std_t, blur_std_s, out.device)
    keep, inject, rest, keep_step, inject_step = weights(first, second, rule, out.device)
    named, key_step, keyed = _key(key, rows)
    arguments = (x_t, x0_hat, out, noise, std_t, std_s, keep, inject, rest, *named, float(floor))
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
    gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    check("soft_score_loss", ("blur_std", blur_std), ("weight", weight))
    # The loss is float32 for every image, and keeps float32's digits.
    split = True
    plan = _plan("soft_score_loss", prediction, split)
    slope = torch.empty_like(prediction) if gradient else None
    energies = prediction.new_empty(energies_shape(plan, prediction), dtype=torch.float32)
    std, std_step = tau(blur_std)
    factor, factor_step = coefficient(weight)
    arguments = (prediction, target, slope, std, factor, energies, float(floor), float(gradient_scale))
    layouts = (_layout(prediction), _layout(target), _layout(slope))
    static = (plan.sizes, (std_step, factor_step), *layouts)
    channels = prediction.shape[1] if prediction.shape[1] <= MOST_CHANNELS_IN_A_PROGRAM else 1
    groups = 3 if gradient else 2
    run(loss_kernel, plan, prediction, arguments, (static,), (split,), channels=channels, groups=groups)
    loss = energies.view(-1) if energies.numel() == prediction.shape[0] else energies.sum(1)
    return loss, slope


def spectral_mix(
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    noise_mask: Tensor | None,
    key: Sequence[int],
    rows: Tensor | None,
) -> Tensor:
    out = torch.empty_like(inputs[0])
    split = True  # masks may leave far less than they were given
    plan = _plan("spectral_mix", out, split)
    named, key_step, keyed = _key(key, rows)
    absent = [None] * (4 - len(inputs))
    images = (*inputs, *absent)
    spread = (*(m.expand(out.shape) for m in masks), *absent)
    noisy = noise_mask.expand(out.shape) if noise_mask is not None and keyed else None
    arguments = (*images, *spread, noisy, out, *named)
    layouts = map(_layout, (*images, *spread, noisy, out))
    static = (plan.sizes, *layouts, key_step, FAST)
    run(mix_kernel, plan, out, arguments, (static,), (split,), groups=1, totals=True)
    return out


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
    named, key_step, _ = _key(key, rows)
    arguments = (out, *named, count, parts)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        launch(normal_kernel, (batch * parts, 1), arguments, (grain, key_step, *NORMALS, FAST), 4)
    return out
