# SPDX-License-Identifier: Apache-2.0
"""The baselines of each op: what a user would write in eager PyTorch, compile, or install.

A baseline is an op's function over the arguments of `cases.py`, made for one image size. Where an op draws
noise, `noise=None` means that the baseline draws its own, as it would in use; the tests give it. Of bfloat16
and float16 images a baseline computes in float32, as it must for their digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from . import forms as _forms
from .builders import (
    HALVES,
    Baseline,
    Op,
    algorithm_2,
    by,
    corrupt,
    corrupt_in_one_product,
    loss,
    loss_and_gradient,
    loss_and_gradient_by_hand,
    numpy_noise,
    of,
    one_line_momentum,
    reverse_step,
    spectral_mix,
    torch_noise,
    widened,
    with_gradient,
)
from .config import OPS
from .folded import FoldedTwoProduct
from .forms import FftDct, Form, FourProduct, ScipyDct, TwoProductBmm
from .peers import absent, peers

__all__ = [
    "OPS",
    "Baseline",
    "Op",
    "absent",
    "algorithm_2",
    "baselines",
    "compiled",
    "corrupt",
    "loss_and_gradient",
    "loss_and_gradient_by_hand",
    "numpy_noise",
    "one_line_momentum",
    "peers",
    "reverse_step",
    "spectral_mix",
    "torch_noise",
    "widened",
]

FORMS: tuple[type[Form], ...] = (*_forms.FORMS, FoldedTwoProduct)
# The forms that torch.compile is tried on, beside the FFT-DCT: the fastest few.
COMPILED: tuple[type[Form], ...] = (TwoProductBmm, FoldedTwoProduct, FourProduct)


def _known(op: str) -> None:
    if op not in OPS:
        raise ValueError(f"baselines: expected one of {', '.join(OPS)}, got {op!r}")


def _computed(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALVES else dtype


def _fit(found: Sequence[Baseline], dtype: torch.dtype) -> list[Baseline]:
    """Baselines of float32 as those of a narrower dtype."""
    if dtype not in HALVES:
        return list(found)
    return [replace(one, call=widened(one.call)) for one in found]


def baselines(
    op: str,
    height: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> list[Baseline]:
    """The eager baselines of an op for images of one size, other packages' at the end.

    Raises ValueError for an unknown op.
    """
    _known(op)
    on_cpu = torch.device(device).type == "cpu"
    with_scipy = on_cpu and find_spec("scipy") is not None
    if op == "normal":
        found = [Baseline("torch.randn", "main", "ATen", torch_noise)]
        if on_cpu:
            found.append(Baseline("numpy standard_normal", "main", "numpy.random", numpy_noise))
        return _fit(found, dtype)
    kinds = [kind for kind in FORMS if with_scipy or kind is not ScipyDct]
    forms = [kind(height, width, _computed(dtype)).to(device) for kind in kinds]
    if op == "soft_score_loss":
        forms = [form for form in forms if not isinstance(form, ScipyDct)]
    found = [by(form, call) for form in forms if (call := of(op, form)) is not None]
    found += _more(op, height, width, _computed(dtype), device, with_scipy)
    return [*_fit(found, dtype), *peers(op, height, width, dtype, device)]


def _more(
    op: str, height: int, width: int, dtype: torch.dtype, device: torch.device | str, with_scipy: bool
) -> list[Baseline]:
    """What belongs to one op alone."""
    if op == "corrupt":
        onto = corrupt_in_one_product(TwoProductBmm(height, width, dtype).to(device))
        own = Baseline("two-product baddbmm", "main", "torch.baddbmm onto the scaled noise", onto)
        if not with_scipy:
            return [own]
        call = corrupt(ScipyDct(height, width, dtype), numpy_noise)
        return [own, Baseline("scipy, numpy noise", "main", "scipy.fft, numpy.random", call)]
    four = FourProduct(height, width, dtype).to(device)
    if op == "momentum_step":
        one_line = one_line_momentum(four)
        return [Baseline("one mask, four-product", "extra", "algebra on Algorithm 2", one_line)]
    if op == "soft_score_loss":
        own = Baseline(
            "four-product by hand", "main", "the gradient written out", loss_and_gradient_by_hand(four)
        )
        if not with_scipy:
            return [own]
        scipy = ScipyDct(height, width, dtype)
        call = loss_and_gradient_by_hand(scipy)
        return [own, Baseline("scipy by hand", "extra", "scipy.fft, no autograd", call)]
    return []


def compiled(
    op: str,
    height: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    backend: str = "inductor",
    fft: bool | None = None,
) -> list[Baseline]:
    """The PyTorch baselines of an op under torch.compile, compiled at their first call; none of `normal`.

    fft: whether the FFT-DCT is among them; None: for `corrupt` alone. Its code takes several times as long to
    compile as any other, and has been slower than the eager form wherever it was measured on a CPU.

    On a CPU random numbers are left to ATen: the generated code's own made the whole of `corrupt` take four
    times as long (64 px, one thread). Another size compiles anew. Raises ValueError for an unknown op.
    """
    _known(op)
    with_fft = op == "corrupt" if fft is None else fft
    kinds = (*COMPILED, FftDct) if with_fft else COMPILED
    ours = backend == "inductor" and torch.device(device).type == "cpu"
    options: dict[str, Any] | None = {"fallback_random": True} if ours else None

    def late(call: Op) -> Op:
        whole = widened(call) if dtype in HALVES else call
        return torch.compile(whole, dynamic=False, backend=backend, options=options)

    found = []
    for kind in kinds if op != "normal" else ():
        form = kind(height, width, _computed(dtype)).to(device)
        if op == "soft_score_loss":
            # The loss is compiled, and its backward pass with it; autograd's call is the user's.
            found.append(_late(form, form.name, with_gradient(late(loss(form)))))
            if isinstance(form, FourProduct):
                by_hand = late(loss_and_gradient_by_hand(form))
                found.append(_late(form, f"{form.name} by hand", by_hand))
        elif (call := of(op, form)) is not None:
            found.append(_late(form, form.name, late(call)))
        if op == "momentum_step" and isinstance(form, FourProduct):
            one_line = _late(form, f"one mask, {form.name}", late(one_line_momentum(form)))
            found.append(replace(one_line, group="extra"))
    return found


def _late(form: Form, name: str, call: Op) -> Baseline:
    return Baseline(f"{name} compiled", form.group, "torch.compile", call, compiled=True)
