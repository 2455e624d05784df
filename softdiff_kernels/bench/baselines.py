# SPDX-License-Identifier: Apache-2.0
"""The baselines of each op: what a user would write in eager PyTorch, compile, or install.

A baseline is an op's function over the arguments of `cases.py`, made for one image size. Where an op draws
noise, `noise=None` means that the baseline draws its own, as it would in use; the tests give it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .forms import FORMS, DctForm, FftDct, Form, FourProduct, ScipyDct, TwoProductBmm

Op = Callable[..., Any]
OPS = (
    "corrupt",
    "momentum_step",
    "reverse_step",
    "soft_score_loss",
    "blur",
    "dct2",
    "idct2",
    "spectral_mix",
    "normal",
)
_GENERATOR = np.random.default_rng(0)


@dataclass(frozen=True)
class Baseline:
    """One way to do an op.

    group: "main" for those that the ratio is taken to, "fft" for the FFT-based DCT, which has a ratio of its
    own, "extra" for what few would write: shown, and not hidden where it is the fastest.
    """

    name: str
    group: str
    source: str
    call: Op
    same: bool = True
    difference: str = ""


def _column(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


def torch_noise(like: Tensor) -> Tensor:
    return torch.randn_like(like)


def numpy_noise(like: Tensor) -> Tensor:
    """numpy's float32 normals, PCG64 and a ziggurat: what comes with scipy."""
    return torch.from_numpy(_GENERATOR.standard_normal(tuple(like.shape), dtype=np.float32))


def corrupt(form: Form, draw: Callable[[Tensor], Tensor] = torch_noise) -> Op:
    """`blur(x0) + noise_std n`, the sum in one pass. Daras et al. 2022, eq. 1."""

    def call(x0: Tensor, blur_std: Tensor, noise_std: Tensor, noise: Tensor | None = None) -> Tensor:
        noise = draw(x0) if noise is None else noise
        return torch.addcmul(form.blur(x0, blur_std), _column(noise_std), noise)

    return call


def algorithm_2(form: Form) -> Op:
    """The Momentum Sampler's step as it is printed: two blurs. Daras et al. 2022, Algorithm 2."""

    def call(
        x_t: Tensor,
        x0_hat: Tensor,
        blur_std_t: Tensor,
        blur_std_s: Tensor,
        noise_std_t: Tensor,
        noise_std_s: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        var_t, var_s = _column(noise_std_t).square(), _column(noise_std_s).square()
        y_hat_t = form.blur(x0_hat, blur_std_t)
        eta = torch.randn_like(x_t) if noise is None else noise
        eps_hat = y_hat_t - x_t
        z = x_t - (var_s - var_t) / var_t * eps_hat + (var_t - var_s).sqrt() * eta
        y_hat_s = form.blur(x0_hat, blur_std_s)
        return z + (y_hat_s - y_hat_t)

    return call


def one_line_momentum(form: DctForm) -> Op:
    """The same step with one mask, `r x_t + (C_s - r C_t) x0_hat + ...`, once that form is known."""
    step = reverse_step(form)

    def call(
        x_t: Tensor,
        x0_hat: Tensor,
        blur_std_t: Tensor,
        blur_std_s: Tensor,
        noise_std_t: Tensor,
        noise_std_s: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        var_t, var_s = noise_std_t.square(), noise_std_s.square()
        return step(x_t, x0_hat, blur_std_t, blur_std_s, var_s / var_t, (var_t - var_s).sqrt(), noise)

    return call


def reverse_step(form: Form) -> Op:
    """`a x_t + (C_s - a C_t) x0_hat + b n`: one mask where the form has a transform, else two blurs."""

    def call(
        x_t: Tensor,
        x0_hat: Tensor,
        blur_std_t: Tensor,
        blur_std_s: Tensor,
        a: Tensor,
        b: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        keep = _column(a)
        if isinstance(form, DctForm):
            mask = form.gain(blur_std_s) - keep * form.gain(blur_std_t)
            moved = form.idct2(mask * form.dct2(x0_hat))
        else:
            moved = torch.addcmul(form.blur(x0_hat, blur_std_s), -keep, form.blur(x0_hat, blur_std_t))
        noise = torch.randn_like(x_t) if noise is None else noise
        return torch.addcmul(torch.addcmul(moved, keep, x_t), _column(b), noise)

    return call


def loss_and_gradient(form: Form) -> Op:
    """The mean loss and its gradient by autograd, over the frequencies where the form has them."""

    def call(prediction: Tensor, target: Tensor, blur_std: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        leaf = prediction.detach().requires_grad_()
        error = leaf - target
        filtered = (
            form.gain(blur_std) * form.dct2(error)
            if isinstance(form, DctForm)
            else form.blur(error, blur_std)
        )
        loss = (weight * filtered.square().sum(dim=(1, 2, 3))).mean()
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    return call


def loss_and_gradient_by_hand(form: DctForm) -> Op:
    """The same without autograd: the gradient is `2 w IDCT2(m^2 DCT2(error)) / B`."""

    def call(prediction: Tensor, target: Tensor, blur_std: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        gain = form.gain(blur_std)
        filtered = form.dct2(prediction - target).mul_(gain)
        loss = (weight * filtered.square().sum(dim=(1, 2, 3))).mean()
        return loss, form.idct2(filtered.mul_(_column(weight * (2.0 / len(weight))) * gain))

    return call


def spectral_mix(form: DctForm) -> Op:
    """`IDCT2(m_t DCT2(x_t) + m_0 DCT2(x0_hat) + d n)`. Hoogeboom & Salimans 2022, appendix A."""

    def call(
        x_t: Tensor,
        x0_hat: Tensor,
        mask_t: Tensor,
        mask_0: Tensor,
        noise_mask: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        total = torch.addcmul(mask_t * form.dct2(x_t), mask_0, form.dct2(x0_hat))
        return form.idct2(torch.addcmul(total, noise_mask, torch.randn_like(x_t) if noise is None else noise))

    return call


def _each(make: Callable[[Any], Op], forms: Sequence[Form]) -> list[Baseline]:
    return [Baseline(form.name, form.group, form.source, make(form)) for form in forms]


def baselines(op: str, height: int, width: int, dtype: torch.dtype = torch.float32) -> list[Baseline]:
    """The eager baselines of an op for images of one size. Raises ValueError for an unknown op."""
    forms = [form(height, width, dtype) for form in FORMS]
    transforms = [form for form in forms if isinstance(form, DctForm)]
    four, scipy = FourProduct(height, width, dtype), ScipyDct(height, width, dtype)
    if op == "corrupt":
        numpy = Baseline("scipy, numpy noise", "main", "scipy.fft, numpy.random", corrupt(scipy, numpy_noise))
        return [*_each(corrupt, forms), numpy]
    if op == "momentum_step":
        one_line = Baseline(
            "one mask, four-product", "extra", "algebra on Algorithm 2", one_line_momentum(four)
        )
        return [*_each(algorithm_2, forms), one_line]
    if op == "reverse_step":
        return _each(reverse_step, forms)
    if op == "soft_score_loss":
        by_hand = Baseline(
            "scipy by hand", "extra", "scipy.fft, no autograd", loss_and_gradient_by_hand(scipy)
        )
        return [*_each(loss_and_gradient, [f for f in forms if not isinstance(f, ScipyDct)]), by_hand]
    if op == "blur":
        return _each(lambda form: form.blur, forms)
    if op == "dct2":
        return _each(lambda form: form.dct2, transforms)
    if op == "idct2":
        return _each(lambda form: form.idct2, transforms)
    if op == "spectral_mix":
        return _each(spectral_mix, transforms)
    if op == "normal":
        return [
            Baseline("torch.randn", "main", "ATen", torch_noise),
            Baseline("numpy standard_normal", "main", "numpy.random", numpy_noise),
        ]
    raise ValueError(f"baselines: expected one of {', '.join(OPS)}, got {op!r}")


def compiled(op: str, height: int, width: int) -> list[Baseline]:
    """Corrupt's PyTorch baselines under torch.compile, compiled at their first call; none for other ops.

    Random numbers are left to ATen: the generated code's own take several times as long on a CPU.
    """
    if op != "corrupt":
        return []
    kinds: tuple[type[Form], ...] = (TwoProductBmm, FourProduct, FftDct)
    return [
        Baseline(
            f"{kind.name} compiled",
            kind.group,
            "torch.compile",
            torch.compile(corrupt(kind(height, width)), dynamic=False, options={"fallback_random": True}),
        )
        for kind in kinds
    ]
