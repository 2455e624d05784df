# SPDX-License-Identifier: Apache-2.0
"""The list of what each op is timed against: what a user would write in eager PyTorch, compile, or install.

A baseline is an op's function over the arguments of `cases.py`, in order, made for one image size. Where an
op draws noise, `noise=None` means that the baseline draws its own, as it would in use; the tests pass theirs.
Of bfloat16 and float16 images a baseline computes in float32, as it must to keep their digits.

To add a baseline: a transform or blur in PyTorch is a class in `forms.py`, one that a package provides is a
class in `packages.py`, each named in the list at the end of its file; either gives every op that it can
compute. A formula for one op is a function below, named in `_special`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import packages
from .cases import FLOOR, LOSSES
from .config import OPS
from .forms import FORMS, DctForm, FftDct, FoldedTwoProduct, Form, FourProduct, TwoProductBmm
from .packages import PACKAGES

Op = Callable[..., Any]
HALVES = (torch.bfloat16, torch.float16)
# The forms that torch.compile is tried on, beside the FFT-DCT: the fastest few.
COMPILED: tuple[type[Form], ...] = (TwoProductBmm, FoldedTwoProduct, FourProduct)
_NEAREST_OPS = ("blur", "corrupt")
_GENERATOR = np.random.default_rng(0)


@dataclass(frozen=True)
class Baseline:
    """One way to compute an op.

    group: "main" for those that the ratio is taken to; "fft" for the FFT-based DCT in PyTorch, which has a
    ratio of its own; "extra" for what few would write: shown, also where it is the fastest; "nearest" for
    what another package calls a Gaussian blur.
    same: whether it computes the op. If not, `difference` says what it computes instead, its error is shown
    however large it is, and no ratio is taken to it.
    """

    name: str
    group: str
    source: str
    call: Op
    same: bool = True
    difference: str = ""
    compiled: bool = False


def _column(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


def torch_noise(like: Tensor) -> Tensor:
    return torch.randn_like(like)


def numpy_noise(like: Tensor) -> Tensor:
    """numpy's float32 normals, PCG64 and a ziggurat: what comes with scipy."""
    return torch.from_numpy(_GENERATOR.standard_normal(tuple(like.shape), dtype=np.float32))


def _drawn(noise: Tensor | None, like: Tensor) -> Tensor:
    return torch_noise(like) if noise is None else noise


def widened(op: Op) -> Op:
    """The op in float32 on bfloat16 and float16 images, its image results rounded once to their dtype.

    What one writes to keep the digits; coefficients become float32, too. Other images pass as they are.
    """

    def narrow(result: Any, dtype: torch.dtype) -> Any:
        if isinstance(result, tuple):
            return tuple(narrow(part, dtype) for part in result)
        return result.to(dtype) if result.dim() == 4 else result

    def call(*arguments: Tensor, noise: Tensor | None = None) -> Any:
        dtype = arguments[0].dtype
        half = dtype in HALVES
        wide = [a.float() for a in arguments] if half else arguments
        given = {} if noise is None else {"noise": noise.float() if half else noise}
        result = op(*wide, **given)
        return narrow(result, dtype) if half else result

    return call


def corrupt(form: Form, draw: Callable[[Tensor], Tensor] = torch_noise) -> Op:
    """`blur(x0) + noise_std n`, the sum in one pass. Daras et al. 2022, eq. 1."""

    def call(x0: Tensor, blur_std: Tensor, noise_std: Tensor, noise: Tensor | None = None) -> Tensor:
        noise = draw(x0) if noise is None else noise
        return torch.addcmul(form.blur(x0, blur_std), _column(noise_std), noise)

    return call


def blurring_corrupt(form: Form) -> Op:
    """`IDCT(alpha DCT(x0)) + noise_std n`, `diffuse` of Blurring Diffusion. Hoogeboom & Salimans 2022."""

    def call(x0: Tensor, blur_std: Tensor, *stds: Tensor, noise: Tensor | None = None) -> Tensor:
        noise_std, scale = map(_column, stds)
        if isinstance(form, DctForm):
            alpha = scale * (form.gain(blur_std) * (1 - FLOOR) + FLOOR)
            blurred = form.idct2(alpha * form.dct2(x0))
        else:
            blurred = scale * torch.lerp(form.blur(x0, blur_std), x0, FLOOR)
        return torch.addcmul(blurred, noise_std, _drawn(noise, x0))

    return call


def corrupt_in_one_product(form: TwoProductBmm) -> Op:
    """The same with the sum in the second product: `torch.baddbmm` onto the noise, scaled in place."""

    def call(x0: Tensor, blur_std: Tensor, noise_std: Tensor, noise: Tensor | None = None) -> Tensor:
        a_h, a_w = form.operators(blur_std)
        batch, channels, height, width = x0.shape
        sigma = _column(noise_std)
        scaled = torch.randn_like(x0).mul_(sigma) if noise is None else noise * sigma
        y = torch.bmm(x0.reshape(batch, channels * height, width), a_w).view(-1, height, width)
        a_h = a_h.repeat_interleave(channels, 0)
        return scaled.reshape(-1, height, width).baddbmm_(a_h, y).view(x0.shape)

    return call


def algorithm_2(form: Form) -> Op:
    """The Momentum Sampler's step as it is printed: two blurs. Daras et al. 2022, Algorithm 2."""

    def call(x_t: Tensor, x0_hat: Tensor, *stds: Tensor, noise: Tensor | None = None) -> Tensor:
        blur_std_t, blur_std_s, noise_std_t, noise_std_s = stds
        var_t, var_s = _column(noise_std_t).square(), _column(noise_std_s).square()
        y_hat_t = form.blur(x0_hat, blur_std_t)
        eta = _drawn(noise, x_t)
        eps_hat = y_hat_t - x_t
        z = x_t - (var_s - var_t) / var_t * eps_hat + (var_t - var_s).sqrt() * eta
        y_hat_s = form.blur(x0_hat, blur_std_s)
        return z + (y_hat_s - y_hat_t)

    return call


def one_line_momentum(form: DctForm) -> Op:
    """The same step with one mask, `r x_t + (C_s - r C_t) x0_hat + ...`, once that form is known."""
    step = reverse_step(form)

    def call(x_t: Tensor, x0_hat: Tensor, *stds: Tensor, noise: Tensor | None = None) -> Tensor:
        blur_std_t, blur_std_s, noise_std_t, noise_std_s = stds
        var_t, var_s = noise_std_t.square(), noise_std_s.square()
        a, b = var_s / var_t, (var_t - var_s).sqrt()
        return step(x_t, x0_hat, blur_std_t, blur_std_s, a, b, noise=noise)

    return call


def reverse_step(form: Form) -> Op:
    """`a x_t + (C_s - a C_t) x0_hat + b n`: one mask where the form has a transform, else two blurs."""

    def call(x_t: Tensor, x0_hat: Tensor, *coefficients: Tensor, noise: Tensor | None = None) -> Tensor:
        blur_std_t, blur_std_s, a, b = coefficients
        keep = _column(a)
        if isinstance(form, DctForm):
            mask = form.gain(blur_std_s) - keep * form.gain(blur_std_t)
            moved = form.idct2(mask * form.dct2(x0_hat))
        else:
            moved = torch.addcmul(form.blur(x0_hat, blur_std_s), -keep, form.blur(x0_hat, blur_std_t))
        return torch.addcmul(torch.addcmul(moved, keep, x_t), _column(b), _drawn(noise, x_t))

    return call


def _gain(form: Form, seen: Tensor) -> Tensor:
    """The third argument of a loss as a mask: blur_std [B], or a mask already."""
    return seen if seen.dim() == 4 else form.gain(seen)


def losses(form: Form) -> Op:
    """Each image's loss, over the frequencies where the form has them. Daras et al. 2022, eq. 12."""

    def call(prediction: Tensor, target: Tensor, seen: Tensor, weight: Tensor) -> Tensor:
        error = prediction - target
        if isinstance(form, DctForm):
            filtered = _gain(form, seen) * form.dct2(error)
        else:
            filtered = form.blur(error, seen)
        return weight * filtered.square().sum(dim=(1, 2, 3))

    return call


def loss(form: Form) -> Op:
    """The mean loss of a batch."""
    each = losses(form)
    return lambda *arguments: each(*arguments).mean()


def with_gradient(value: Op) -> Op:
    """A loss and its gradient by autograd."""

    def call(prediction: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        leaf = prediction.detach().requires_grad_()
        result = value(leaf, *others)
        return result.detach(), torch.autograd.grad(result, leaf)[0]

    return call


def loss_and_gradient(form: Form) -> Op:
    """The mean loss and its gradient by autograd."""
    return with_gradient(loss(form))


def loss_and_gradient_by_hand(form: DctForm) -> Op:
    """The same without autograd: the gradient is `2 w IDCT2(m^2 DCT2(error)) / B`."""

    def call(prediction: Tensor, target: Tensor, seen: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        gain = _gain(form, seen)
        filtered = form.dct2(prediction - target).mul_(gain)
        loss = (weight * filtered.square().sum(dim=(1, 2, 3))).mean()
        return loss, form.idct2(filtered.mul_(_column(weight * (2.0 / len(weight))) * gain))

    return call


def ancestral(form: DctForm) -> Op:
    """Blurring Diffusion's `denoise` as it is printed: five transforms. Hoogeboom & Salimans 2022."""

    def call(x_t: Tensor, x0_hat: Tensor, *masks: Tensor, noise: Tensor | None = None) -> Tensor:
        mask_t, mask_0, noise_mask = masks
        mu = form.idct2(mask_t * form.dct2(x_t)) + form.idct2(mask_0 * form.dct2(x0_hat))
        return mu + form.idct2(noise_mask * _drawn(noise, x_t))

    return call


def spectral_mix(form: DctForm) -> Op:
    """The same with one inverse transform, `IDCT2(m_t DCT2(x_t) + m_0 DCT2(x0_hat) + d n)`."""

    def call(x_t: Tensor, x0_hat: Tensor, *masks: Tensor, noise: Tensor | None = None) -> Tensor:
        mask_t, mask_0, noise_mask = masks
        total = torch.addcmul(mask_t * form.dct2(x_t), mask_0, form.dct2(x0_hat))
        return form.idct2(torch.addcmul(total, noise_mask, _drawn(noise, x_t)))

    return call


_OVER_FORM: dict[str, Callable[[Any], Op]] = {
    "corrupt": corrupt,
    "blurring_corrupt": blurring_corrupt,
    "momentum_step": algorithm_2,
    "reverse_step": reverse_step,
    "soft_score_loss": loss_and_gradient,
    "spectral_loss": loss_and_gradient,
    "blur": lambda form: form.blur,
    "dct2": lambda form: form.dct2,
    "idct2": lambda form: form.idct2,
    "spectral_mix": ancestral,
}
NEEDS_TRANSFORM = ("dct2", "idct2", "spectral_loss", "spectral_mix")


def of(op: str, form: Form) -> Op | None:
    """An op by a form as one writes it first; None where the form lacks what the op needs."""
    if op in NEEDS_TRANSFORM and not isinstance(form, DctForm):
        return None
    if op in LOSSES and not form.autograd:
        return loss_and_gradient_by_hand(form) if isinstance(form, DctForm) else None
    return _OVER_FORM[op](form)


def _check_op(op: str) -> None:
    if op not in OPS:
        raise ValueError(f"baselines: expected one of {', '.join(OPS)}, got {op!r}")


def baselines(
    op: str, height: int, width: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> list[Baseline]:
    """The eager baselines of an op for images of one size, those of other packages at the end.

    Raises ValueError for an unknown op.
    """
    _check_op(op)
    device = torch.device(device)
    if op == "normal":
        numpy = Baseline("numpy standard_normal", "main", "numpy.random", numpy_noise)
        aten = Baseline("torch.randn", "main", "ATen", torch_noise)
        listed = [aten, numpy] if device.type == "cpu" else [aten]
    else:
        size = (height, width, torch.float32 if dtype in HALVES else dtype, device)
        listed = list(_by_forms(op, (*FORMS, *PACKAGES), *size))
    return [replace(one, call=widened(one.call)) for one in listed] if dtype in HALVES else listed


def _by_forms(op: str, kinds: Sequence[type[Form]], *size: Any) -> Iterator[Baseline]:
    for kind in kinds:
        form, _ = packages.make(kind, *size)
        if form is not None and (form.same or op in _NEAREST_OPS):
            yield from _by_form(op, form)


def _by_form(op: str, form: Form) -> Iterator[Baseline]:
    """An op by a form as one writes it first, and then the formulas of `_special`."""
    call = of(op, form)
    if call is None:
        return
    first = Baseline(form.name, form.group, form.source, call, form.same, form.difference)
    if op in LOSSES and not form.autograd:
        source = f"{form.source}; the gradient written out"
        yield replace(first, name=f"{form.name} by hand", group="extra", source=source)
        return
    yield first
    for name, group, source, call in _special(op, form):
        yield replace(first, name=name, group=group, source=source, call=call)


def _special(op: str, form: Form) -> Iterator[tuple[str, str, str, Op]]:
    """Formulas for one op by one form: name, group, source and function."""
    if op == "corrupt" and isinstance(form, packages.ScipyDct):
        yield "scipy, numpy noise", "main", "scipy.fft, numpy.random", corrupt(form, numpy_noise)
    if op == "corrupt" and isinstance(form, TwoProductBmm):
        onto_noise = corrupt_in_one_product(form)
        yield "two-product baddbmm", "main", "torch.baddbmm onto the scaled noise", onto_noise
    if op == "momentum_step" and isinstance(form, FourProduct):
        yield "one mask, four-product", "extra", "algebra on Algorithm 2", one_line_momentum(form)
    if op == "spectral_mix" and isinstance(form, FourProduct):
        yield "one inverse, four-product", "extra", "algebra on the pseudo-code", spectral_mix(form)
    if op in LOSSES and isinstance(form, FourProduct):
        by_hand = loss_and_gradient_by_hand(form)
        yield "four-product by hand", "main", "the gradient written out", by_hand


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

    fft: whether the FFT-DCT is among them; None: for `corrupt` only. Its code takes several times as long to
    compile as any other, and has been slower than the eager form wherever it was measured on a CPU.

    On a CPU random numbers are left to ATen: with the generated code's own, `corrupt` took four times as
    long (64 px, one thread). Another size compiles again. Raises ValueError for an unknown op.
    """
    _check_op(op)
    if op == "normal":
        return []
    with_fft = op == "corrupt" if fft is None else fft
    on_cpu = backend == "inductor" and torch.device(device).type == "cpu"
    compiler: dict[str, Any] = {"dynamic": False, "backend": backend}
    compiler["options"] = {"fallback_random": True} if on_cpu else None

    def late(call: Op) -> Op:
        return torch.compile(widened(call) if dtype in HALVES else call, **compiler)

    listed = []
    for kind in (*COMPILED, FftDct) if with_fft else COMPILED:
        form = kind(height, width, torch.float32 if dtype in HALVES else dtype).to(device)
        for one in _by_form(op, form):
            # Of the loss by autograd, the loss is compiled with its backward pass; the user calls autograd.
            by_autograd = op in LOSSES and one.name == form.name
            call = with_gradient(late(loss(form))) if by_autograd else late(one.call)
            name = f"{one.name} compiled"
            listed.append(replace(one, name=name, source="torch.compile", call=call, compiled=True))
    return listed
