# SPDX-License-Identifier: Apache-2.0
"""The reference backend: the eager twins of `softdiff_kernels.reference` behind the ops' schemas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from .. import reference
from ..noise import NoiseKey, key_rows, philox_normal


def status() -> tuple[bool, str]:
    """It works everywhere."""
    return True, "plain PyTorch, any device"


def covers(op: str, device: torch.device, arguments: Sequence[Any]) -> bool:
    """It takes every call."""
    return True


def _key(key: Sequence[int], rows: Tensor | None, batch: int, device: torch.device) -> NoiseKey | None:
    if rows is None and not key:
        return None
    table = key_rows(key, rows, batch, device)
    # A key from torch's generator has 64 random bits in each place; 32 of the draw's count.
    return NoiseKey(table[:, 0], table[:, 1], table[:, 2] & 0xFFFFFFFF)


def _noise(key: NoiseKey | None, noise: Tensor | None, like: Tensor) -> Tensor | None:
    """The noise to pass on: zeros where there is neither noise nor key, which must draw nothing."""
    if key is None and noise is None:
        return torch.zeros((), dtype=torch.float32, device=like.device).expand(like.shape)
    return noise


def _laid_out(result: Tensor, like: Tensor) -> Tensor:
    """`result` with the strides that the fakes promise."""
    out = torch.empty_like(like, dtype=result.dtype)
    return result if out.stride() == result.stride() else out.copy_(result)


def dct2(x: Tensor, inverse: bool) -> Tensor:
    return _laid_out(reference.idct2(x) if inverse else reference.dct2(x), x)


def identity(x: Tensor) -> Tensor:
    """template: copy this for a new op. The twin, with the strides that the fake promises."""
    return _laid_out(reference.identity(x), x)


def blur(x: Tensor, blur_std: Tensor, scale: Tensor | None, floor: float) -> Tensor:
    return _laid_out(reference.blur(x, blur_std, floor=floor, scale=1.0 if scale is None else scale), x)


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
    noise_key = _key(key, rows, x0.shape[0], x0.device)
    x_t, residual = reference.corrupt(
        x0,
        blur_std,
        noise_std,
        floor=floor,
        scale=1.0 if scale is None else scale,
        key=noise_key,
        noise=_noise(noise_key, noise, x0),
        return_residual=True,
    )
    return _laid_out(x_t, x0), _laid_out(residual, x0) if return_residual else x_t.new_empty(0)


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
    if x_t is None:
        x_t = torch.zeros_like(x0_hat)
    noise_key = _key(key, rows, x_t.shape[0], x_t.device)
    noise = _noise(noise_key, noise, x_t)
    if rule == "given":
        x_s = reference.reverse_step(
            x_t,
            x0_hat,
            blur_std_t=blur_std_t,
            blur_std_s=blur_std_s,
            a=first,
            b=second,
            floor=floor,
            key=noise_key,
            noise=noise,
        )
    else:
        x_s = reference.momentum_step(
            x_t,
            x0_hat,
            blur_std_t=blur_std_t,
            blur_std_s=blur_std_s,
            noise_std_t=first,
            noise_std_s=second,
            variance=rule,
            floor=floor,
            key=noise_key,
            noise=noise,
        )
    return _laid_out(x_s, x_t)


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
    x_s = step(x_t, x0_hat, blur_std_t, blur_std_s, first, second, rule, floor, key, rows, noise)
    out.copy_(x_s)


def soft_score_loss(
    prediction: Tensor,
    target: Tensor,
    blur_std: Tensor,
    weight: Tensor | None,
    floor: float,
    gradient_scale: float,
    return_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    loss = reference.soft_score_loss(
        prediction, target, blur_std, weight=weight, floor=floor, reduction="none"
    )
    if not return_gradient:
        return loss, None

    def filtered(v: Tensor) -> Tensor:
        return reference.blur(v, blur_std, floor=floor)

    return loss, _gradient(loss, prediction, target, filtered, weight, gradient_scale)


def _gradient(
    loss: Tensor,
    prediction: Tensor,
    target: Tensor,
    filtered: Callable[[Tensor], Tensor],
    weight: Tensor | None,
    gradient_scale: float,
) -> Tensor:
    """filtered: C v, so that the loss is w |C (prediction - target)|^2."""
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    twice = filtered(filtered(prediction.to(dtype) - target.to(dtype)))
    factor = torch.full_like(loss, 2.0 * gradient_scale)
    if weight is not None:
        factor = factor * args.on(weight, loss.device)
    return _laid_out((factor.to(dtype).view(-1, 1, 1, 1) * twice).to(prediction.dtype), prediction)


def spectral_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    weight: Tensor | None,
    gradient_scale: float,
    return_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    loss = reference.spectral_loss(prediction, target, mask, weight=weight, reduction="none")
    if not return_gradient:
        return loss, None

    def filtered(v: Tensor) -> Tensor:
        return reference.spectral_mix([v], [mask])

    return loss, _gradient(loss, prediction, target, filtered, weight, gradient_scale)


def spectral_mix(
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    noise_mask: Tensor | None,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    first = inputs[0]
    noise_key = _key(key, rows, first.shape[0], first.device)
    if noise_key is None and noise is None:
        noise_mask = None
    mixed = reference.spectral_mix(inputs, masks, noise_mask=noise_mask, key=noise_key, noise=noise)
    return _laid_out(mixed, first)


def spectral_mix_out(
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    noise_mask: Tensor | None,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
    out: Tensor,
) -> None:
    out.copy_(spectral_mix(inputs, masks, noise_mask, key, rows, noise))


def normal(
    shape: Sequence[int], key: Sequence[int], rows: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return philox_normal(tuple(shape), key_rows(key, rows, shape[0], device), dtype)
