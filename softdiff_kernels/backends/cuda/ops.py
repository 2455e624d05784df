# SPDX-License-Identifier: Apache-2.0
"""The ops' arguments made into launches of csrc/cuda. `_ops.py` says what each argument is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .. import _addresses as at
from .. import _memory
from .._checks import check, check_step
from . import tables

_cuda: Any = import_module("softdiff_kernels._cuda")

_FILTER, _LOSS, _TRANSFORM, _MIX = range(4)
_RULES = {"given": 0, "large": 1, "small": 2}
_SMALL, _CLUSTER = 0, 3  # engines of plan.h
_NOWHERE = (0, 0, 0, 0)


# Whether planes of 129 to 256 px go to clusters of two blocks where a GPU has them; else passes take them.
_clusters = os.environ.get("SOFTDIFF_CUDA_CLUSTERS", "1") != "0"


@contextmanager
def clusters(wanted: bool) -> Iterator[None]:
    """With or without clusters inside the block, to compare both."""
    global _clusters
    before, _clusters = _clusters, wanted
    try:
        yield
    finally:
        _clusters = before


@lru_cache(maxsize=4096)
def _plan(kind: int, shape: tuple[int, ...], inputs: int, device: int, clusters: bool) -> tuple[int, ...]:
    """(engine, table sides of H and W, planes at a time, floats of scratch, parts of a loss): plan.h."""
    return _cuda.plan(kind, shape, inputs, device, clusters)


def takes_clusters(height: int, width: int, device: int) -> bool:
    """Whether clusters take planes of this size on a device (but for spectral_mix)."""
    return _plan(_FILTER, (1, 1, height, width), 1, device, True)[0] == _CLUSTER


class _Call:
    """Where a call runs, and what it needs there; alive until the kernels are in the stream."""

    def __init__(self, kind: int, x: Tensor, inputs: int = 1) -> None:
        device = x.device
        self.shape = tuple(x.shape)
        self.plan = _plan(kind, self.shape, inputs, device.index or 0, _clusters)
        engine, side_h, side_w, _, scratch, parts = self.plan
        table = tables.plain if engine == _SMALL else tables.fragments
        self.tables = table(self.shape[2], side_h, device), table(self.shape[3], side_w, device)
        self.scratch = torch.empty(scratch, dtype=torch.float32, device=device) if scratch else None
        count = self.shape[0] * parts if kind == _LOSS else 0
        self.parts = torch.empty(count, dtype=torch.float64, device=device) if count else None
        memory = (*self.tables, self.scratch, self.parts)
        self.where = (*_stream(device), *(0 if m is None else m.data_ptr() for m in memory))


def _stream(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return 0, 0
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _launch(function: Callable[..., None], device: torch.device, *arguments: Any) -> None:
    """Calls on the images' device, as torch changes to one: without a context on the one it comes back to."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        function(*arguments)
        return
    with torch.cuda.device(device):
        function(*arguments)


def _coefficient(c: Tensor | None) -> Any:
    """A number from host memory goes along with the launch; what lies on the device is read there."""
    if c is None:
        return None
    return c.item() if c.is_cpu and c.numel() == 1 else at.coefficient(c)


def dct2(x: Tensor, inverse: bool) -> Tensor:
    out = torch.empty_like(x)
    call = _Call(_TRANSFORM, x)
    _launch(_cuda.transform, x.device, call.where, call.plan, call.shape, at.image(x), at.image(out), inverse)
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
    check(op, ("blur_std", blur_std), ("noise_std", noise_std), ("scale", scale), signed="scale")
    call = _Call(_FILTER, x0)
    coefficients = (_coefficient(c) for c in (blur_std, noise_std, scale))
    images = (at.image(noise), at.image(out), at.image(residual))
    shaped = (op, call.where, call.plan, call.shape, at.image(x0))
    _launch(_cuda.corrupt, x0.device, *shaped, *coefficients, floor, key, *images)


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


def step(*args: Any) -> Tensor:
    out = torch.empty_like(args[1] if args[0] is None else args[0])
    _step(*(*args, out))
    return out


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
    rows = rows if rows is None else rows.contiguous()
    call = _Call(_FILTER, out)
    images = at.image(x_t), at.image(x0_hat)
    coefficients = (_coefficient(c) for c in (blur_std_t, blur_std_s, first, second))
    rest = (at.key(key, rows), at.image(noise), at.image(out))
    shaped = (_RULES[rule], call.where, call.plan, call.shape)
    _launch(_cuda.step, out.device, *shaped, *images, *coefficients, floor, *rest)


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
    check("soft_score_loss", ("blur_std", blur_std), ("weight", weight))
    loss = prediction.new_empty(prediction.shape[0], dtype=torch.float32)
    slope = torch.empty_like(prediction) if gradient else None
    call = _Call(_LOSS, prediction)
    coefficients = (_coefficient(c) for c in (blur_std, weight))
    images = at.image(prediction), at.image(target)
    scales = (floor, gradient_scale)
    result = (loss.data_ptr(), at.image(slope))
    shaped = (call.where, call.plan, call.shape)
    _launch(_cuda.soft_score_loss, loss.device, *shaped, *images, *coefficients, *scales, *result)
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
    call = _Call(_MIX, out, len(inputs))
    spread = (at.mask(noise_mask, shape), at.key(key, rows), at.image(out))
    pairs = tuple(map(at.image, inputs)), tuple(at.mask(m, shape) for m in masks)
    _launch(_cuda.spectral_mix, out.device, call.where, call.plan, call.shape, *pairs, *spread)
    return out


def normal(
    shape: Sequence[int], key: Sequence[int], rows: Tensor | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    out = torch.empty(list(shape), dtype=dtype, device=device)
    batch = shape[0]
    count = out.numel() // batch if batch else 0
    rows = rows if rows is None else rows.contiguous()
    if count:
        where = (*_stream(out.device), *_NOWHERE)
        _launch(_cuda.normal, out.device, where, batch, count, at.key(key, rows), at.flat(out, count))
    return out
