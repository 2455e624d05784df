# SPDX-License-Identifier: Apache-2.0
"""The fused CPU kernels (csrc/cpu) behind the ops' schemas.

Covers float32, bfloat16, float16 and uint8 images on the CPU; float64 takes the reference. The module is
loaded on first use. Values inside coefficient tensors are checked in C++, before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .. import caches
from . import _addresses as at
from . import _build_record, _memory, _shadow


@lru_cache(maxsize=1)
def _load() -> tuple[Any, str]:
    """The module, or None, and the reason. ValueError, and nothing kept, where the bound of the caches is no
    number: it is no reason to take plain PyTorch, which needs it as well."""
    try:
        _native = import_module("softdiff_kernels._native")
        _shadow.refuse_foreign(_native)
    except ImportError as error:
        record = _build_record.read()  # its reason is empty where it left nothing
        reason = _shadow.reason("_native") or (not record.native and record.reason) or error
        return None, f"{reason}; see docs/building.md"
    wanted = os.environ.get("SOFTDIFF_CPU_ISA")
    if wanted and not _native.use_instruction_set(wanted):
        return (
            None,
            f"SOFTDIFF_CPU_ISA: expected avx512, avx2 or portable, as this CPU has it; got {wanted!r}",
        )
    caches.attach(_native)
    return _native, f"fused CPU kernels ({_native.instruction_set()}, threads from {_native.thread_source()})"


def status() -> tuple[bool, str]:
    """Whether the kernels are here, and the reason in words."""
    module, reason = _load()
    return module is not None, reason


def covers(op: str, device: torch.device, arguments: Sequence[Any]) -> bool:
    """Whether the call is on the CPU. (float64 images reach no kernel; coefficients may be float64.)"""
    return device.type == "cpu"


def dct2(x: Tensor, inverse: bool) -> Tensor:
    out = torch.empty_like(x)
    _load()[0].transform(tuple(x.shape), at.image(x), at.image(out), inverse, torch.get_num_threads())
    return out


def _corrupt(
    op: str,
    x0: Tensor,
    blur_std: Tensor,
    noise_std: Tensor | None,
    scale: Tensor | None,
    floor: float,
    key: tuple[int, ...] | None,
    noise: Tensor | None,
    out: Tensor,
    residual: Tensor | None,
) -> None:
    _load()[0].corrupt(
        op,
        tuple(x0.shape),
        at.image(x0),
        at.coefficient(blur_std),
        at.coefficient(noise_std),
        at.coefficient(scale),
        floor,
        key,
        at.image(noise),
        at.image(out),
        at.image(residual),
        torch.get_num_threads(),
    )


def blur(x: Tensor, blur_std: Tensor, scale: Tensor | None, floor: float) -> Tensor:
    out = torch.empty_like(x)
    _corrupt("blur", x, blur_std, None, scale, floor, None, None, out, None)
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
    out = torch.empty_like(x0, dtype=torch.float32) if x0.dtype == torch.uint8 else torch.empty_like(x0)
    rest = torch.empty_like(out) if residual else None
    rows = rows if rows is None else rows.contiguous()
    _corrupt("corrupt", x0, blur_std, noise_std, scale, floor, at.key(key, rows), noise, out, rest)
    return out, out.new_empty(0) if rest is None else rest


def step(
    x_t: Tensor | None,
    x0_hat: Tensor,
    blur_std_t: Tensor,
    blur_std_s: Tensor,
    first: Tensor,
    second: Tensor,
    mode: str,
    floor: float,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    out = torch.empty_like(x0_hat if x_t is None else x_t)
    _step(x_t, x0_hat, blur_std_t, blur_std_s, first, second, mode, floor, key, rows, noise, out)
    return out


def _step(
    x_t: Tensor | None,
    x0_hat: Tensor,
    blur_std_t: Tensor,
    blur_std_s: Tensor,
    first: Tensor,
    second: Tensor,
    mode: str,
    floor: float,
    key: Sequence[int],
    rows: Tensor | None,
    noise: Tensor | None,
    out: Tensor,
) -> None:
    rows = rows if rows is None else rows.contiguous()
    images = (at.image(x_t), at.image(x0_hat))
    coefficients = tuple(map(at.coefficient, (blur_std_t, blur_std_s, first, second)))
    rest = (at.key(key, rows), at.image(noise), at.image(out), torch.get_num_threads())
    shape = tuple(x0_hat.shape)
    if mode == "given":
        _load()[0].reverse_step(shape, *images, *coefficients, floor, *rest)
    else:
        _load()[0].momentum_step(shape, *images, *coefficients, mode == "small", *rest)


def step_out(*args: Any) -> None:
    _memory.step_out(step, _step, args)


def soft_score_loss(
    prediction: Tensor,
    target: Tensor,
    blur_std: Tensor,
    weight: Tensor | None,
    floor: float,
    gradient_scale: float,
    gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    loss = torch.empty(prediction.shape[0], dtype=torch.float32)
    slope = torch.empty_like(prediction) if gradient else None
    _load()[0].soft_score_loss(
        tuple(prediction.shape),
        at.image(prediction),
        at.image(target),
        at.coefficient(blur_std),
        at.coefficient(weight),
        floor,
        gradient_scale,
        loss.data_ptr(),
        at.image(slope),
        torch.get_num_threads(),
    )
    return loss, slope


def spectral_mix(
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    noise_mask: Tensor | None,
    key: Sequence[int],
    rows: Tensor | None,
) -> Tensor:
    shape = inputs[0].shape
    out = torch.empty_like(inputs[0])
    rows = rows if rows is None else rows.contiguous()
    _load()[0].spectral_mix(
        tuple(shape),
        tuple(at.image(x) for x in inputs),
        tuple(at.mask(m, shape) for m in masks),
        at.mask(noise_mask, shape),
        at.key(key, rows),
        at.image(out),
        torch.get_num_threads(),
    )
    return out


def normal(
    shape: Sequence[int], key: Sequence[int], rows: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    out = torch.empty(list(shape), dtype=dtype)
    batch = shape[0]
    count = out.numel() // batch if batch else 0
    rows = rows if rows is None else rows.contiguous()
    _load()[0].normal(batch, count, at.key(key, rows), at.flat(out, count), torch.get_num_threads())
    return out
