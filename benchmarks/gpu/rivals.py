# SPDX-License-Identifier: Apache-2.0
"""The baselines on a GPU: the forms of `benchmarks.forms`, eager, compiled, with TF32, and in a CUDA graph.

Of bfloat16 images a form computes in float32, as it must to be accurate, or in bfloat16 throughout, as it is
under autocast; both are timed, and the errors stand beside the times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softdiff_kernels.bench import baselines, clock
from softdiff_kernels.bench.baselines import widened
from softdiff_kernels.bench.forms import (
    DctForm,
    FftDct,
    Form,
    FourProduct,
    RealFftDct,
    TwoProduct,
    TwoProductBmm,
)

Op = Callable[..., Any]
# Eager forms that a row always has, and those that torch.compile is tried on: the fastest few as a rule.
EAGER: tuple[type[Form], ...] = (TwoProduct, TwoProductBmm, FourProduct, FftDct, RealFftDct)
COMPILED: tuple[type[Form], ...] = (TwoProductBmm, FourProduct, FftDct)


@dataclass(frozen=True)
class Rival:
    """A baseline; `fair`: whether it has the digits that ours has, so that the ratio counts it."""

    name: str
    call: Op
    fair: bool = True


class _HalfProduct(TwoProductBmm):
    """Products in bfloat16 of operators made in float32."""

    name = "two-product bmm in bfloat16"

    def operators(self, blur_std: Tensor) -> tuple[Tensor, Tensor]:
        a_h, a_w = super().operators(blur_std)
        return a_h.bfloat16(), a_w.bfloat16()


def _with_tf32(op: Op) -> Op:
    def call(*arguments: Tensor, **given: Any) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return op(*arguments, **given)
        finally:
            torch.set_float32_matmul_precision(before)

    return call


def _of(op: str, form: Form) -> Op | None:
    """An op by a form; None where the form lacks what the op needs."""
    if op == "corrupt":
        return baselines.corrupt(form)
    if op == "momentum_step":
        return baselines.algorithm_2(form)
    if op == "soft_score_loss":
        return baselines.loss_and_gradient(form)
    if op == "blur":
        return form.blur
    if op == "dct2":
        return form.dct2 if isinstance(form, DctForm) else None
    raise ValueError(f"rivals: no baseline of {op!r}")


def _more(op: str, form: Form) -> list[tuple[str, Op]]:
    """What few would write, but is fast."""
    if isinstance(form, DctForm) and op == "momentum_step":
        return [(f"one mask, {form.name}", baselines.one_line_momentum(form))]
    if isinstance(form, DctForm) and op == "soft_score_loss":
        return [(f"{form.name} by hand", baselines.loss_and_gradient_by_hand(form))]
    return []


def eager(op: str, size: int, dtype: torch.dtype, device: torch.device) -> list[Rival]:
    """The eager baselines of an op for square images."""
    if op == "normal":
        return [Rival("torch.randn", torch.randn_like)]
    found: list[Rival] = []
    for kind in EAGER:
        form = kind(size, size).to(device)
        named = [(form.name, _of(op, form)), *(_more(op, form) if kind is FourProduct else [])]
        for name, call in named:
            if call is None:
                continue
            if dtype == torch.float32:
                found.append(Rival(name, call))
                if kind in (TwoProductBmm, FourProduct) and device.type == "cuda":
                    found.append(Rival(f"{name}, TF32", _with_tf32(call), fair=False))
            else:
                found.append(Rival(f"{name} in float32", widened(call)))
    if dtype != torch.float32 and op in ("corrupt", "momentum_step", "blur"):
        half = _HalfProduct(size, size).to(device)
        call = _of(op, half)
        assert call is not None
        found.append(Rival(half.name, _as_bfloat16(call)))
    return found


def _as_bfloat16(op: Op) -> Op:
    """The op's result rounded to bfloat16: float32 coefficients widen what they multiply."""

    def call(*arguments: Tensor, **given: Any) -> Any:
        return op(*arguments, **given).bfloat16()

    return call


def compiled(
    op: str, size: int, dtype: torch.dtype, device: torch.device, backend: str = "inductor"
) -> list[Rival]:
    """The same under torch.compile in its default mode, compiled at their first call."""
    if op == "normal":
        return []
    found = []
    for kind in COMPILED:
        form = kind(size, size).to(device)
        by_hand = op == "soft_score_loss" and kind is FourProduct
        call = baselines.loss_and_gradient_by_hand(form) if by_hand else _of(op, form)
        if call is None or (op == "soft_score_loss" and not by_hand):
            continue
        full = call if dtype == torch.float32 else widened(call)
        name = form.name + (" by hand" if by_hand else "") + (" in float32" if full is not call else "")
        found.append(Rival(f"{name}, compiled", torch.compile(full, dynamic=False, backend=backend)))
    if dtype != torch.float32 and op in ("corrupt", "momentum_step", "blur"):
        half = _HalfProduct(size, size).to(device)
        call = _of(op, half)
        assert call is not None
        late = torch.compile(_as_bfloat16(call), dynamic=False, backend=backend)
        found.append(Rival(f"{half.name}, compiled", late))
    return found


def graphed(call: Callable[[], Any], device: torch.device) -> Callable[[int], object]:
    """A call as the replay of a CUDA graph; the call itself where there are none."""
    if device.type != "cuda":
        return lambda i: call()
    replay = clock.graphed(call)
    return lambda i: replay()
