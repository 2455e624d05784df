# SPDX-License-Identifier: Apache-2.0
"""Coefficients made into kernel arguments: a number where the host has it, else an address and a step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import _arguments as args
from .launch import Argument


def number(c: Tensor) -> float | None:
    """A coefficient that is a number in host memory; None where it has to be read on the device."""
    return c.item() if c.is_cpu and c.numel() == 1 else None


def _pointer(c: Tensor) -> tuple[Tensor, int]:
    """What is read on the device: the tensor, and its step from sample to sample."""
    return c, c.stride(0) if c.shape[0] > 1 else 0


def coefficient(c: Tensor | None) -> tuple[Argument, int]:
    """What `device.coefficient` takes: (number, -1), (tensor, step) or (None, -1)."""
    if c is None:
        return None, -1
    value = number(c)
    return _pointer(c) if value is None else (value, -1)


def tau(blur_std: Tensor) -> tuple[Argument, int]:
    """The same of blur_std^2 / 2; a tensor stays blur_std, which the kernel squares."""
    value = number(blur_std)
    return _pointer(blur_std) if value is None else (0.5 * value * value, -1)


def blurs(std_t: Tensor, std_s: Tensor, device: torch.device) -> tuple[Argument, Argument, int, int]:
    """Both blurs as `device.exponents` takes them; two numbers are combined here, in float64."""
    t, s = number(std_t), number(std_s)
    if t is None or s is None:
        t_at, t_step = _pointer(args.on(std_t, device))
        s_at, s_step = _pointer(args.on(std_s, device))
        return t_at, s_at, t_step, s_step
    weaker = min(t, s)
    return 0.5 * (t - s) * (t + s), 0.5 * weaker * weaker, -1, -1


def weights(
    first: Tensor, second: Tensor, rule: str, device: torch.device
) -> tuple[Argument, Argument, float, int, int]:
    """keep, inject and 1 - keep of two numbers, in float64; or where both stand on the device."""
    t, s = number(first), number(second)
    if t is None or s is None:
        first_at, first_step = _pointer(args.on(first, device))
        second_at, second_step = _pointer(args.on(second, device))
        return first_at, second_at, 0.0, first_step, second_step
    if rule == "given":
        return t, s, 1.0 - t, -1, -1
    if t == 0:
        return 1.0, 0.0, 0.0, -1, -1
    ratio, gap = s / t, (t - s) * (t + s)
    inject = math.sqrt(max(gap, 0.0)) * (ratio if rule == "small" else 1.0)
    return ratio * ratio, inject, gap / t / t, -1, -1
