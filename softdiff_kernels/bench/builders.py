# SPDX-License-Identifier: Apache-2.0
"""Each op over a form of the blur or of the transform, as a user would write it.

The arguments are those of `cases.py`, in order, one row for each sample. Where an op draws noise,
`noise=None` means that it draws its own, as it would in use; the tests give it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .forms import DctForm, Form, TwoProductBmm

Op = Callable[..., Any]
HALVES = (torch.bfloat16, torch.float16)
_GENERATOR = np.random.default_rng(0)


@dataclass(frozen=True)
class Baseline:
    """One way to do an op.

    group: "main" for those that the ratio is taken to; "fft" for the FFT-based DCT, which has a ratio of its
    own; "extra" for what few would write: shown, and not hidden where it is the fastest; "nearest" for what
    another package calls a Gaussian blur.
    same: whether it computes the op. If not, `difference` says what it does instead, its error is shown
    whatever it is, and no ratio is taken to it.
    """

    name: str
    group: str
    source: str
    call: Op
    same: bool = True
    difference: str = ""
    compiled: bool = False


def by(form: Form, call: Op) -> Baseline:
    """An op's function as a baseline under the name of its form."""
    return Baseline(form.name, form.group, form.source, call, form.same, form.difference)


def _column(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


def torch_noise(like: Tensor) -> Tensor:
    return torch.randn_like(like)


def numpy_noise(like: Tensor) -> Tensor:
    """numpy's float32 normals, PCG64 and a ziggurat: what comes with scipy."""
    return torch.from_numpy(_GENERATOR.standard_normal(tuple(like.shape), dtype=np.float32))


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


def loss(form: Form) -> Op:
    """The mean loss, over the frequencies where the form has them. Daras et al. 2022, eq. 12."""

    def call(prediction: Tensor, target: Tensor, blur_std: Tensor, weight: Tensor) -> Tensor:
        error = prediction - target
        filtered = (
            form.gain(blur_std) * form.dct2(error)
            if isinstance(form, DctForm)
            else form.blur(error, blur_std)
        )
        return (weight * filtered.square().sum(dim=(1, 2, 3))).mean()

    return call


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


def of(op: str, form: Form) -> Op | None:
    """An op by a form as one writes it first; None where the form lacks what the op needs."""
    if op == "blur":
        return form.blur
    if op == "momentum_step":
        return algorithm_2(form)
    anywhere: dict[str, Callable[[Any], Op]] = {
        "corrupt": corrupt,
        "reverse_step": reverse_step,
        "soft_score_loss": loss_and_gradient,
    }
    if op in anywhere:
        return anywhere[op](form)
    if not isinstance(form, DctForm):
        return None
    if op == "spectral_mix":
        return spectral_mix(form)
    return {"dct2": form.dct2, "idct2": form.idct2}.get(op)
