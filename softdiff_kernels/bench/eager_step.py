# SPDX-License-Identifier: Apache-2.0
"""The trainer's step and the sampler's step with the ops as one writes them in eager PyTorch, by any form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from ..diffusion import SoftDenoiser
from ..noise import NoiseKey
from .baselines import algorithm_2
from .forms import DctForm, FftDct, Form, FourProduct, TwoProduct, TwoProductBmm

FORMS_OF_A_BATCH: tuple[type[Form], ...] = (TwoProductBmm, FourProduct)
"""For a blur of its own for each image, as in training: those that were fastest on the machines tried."""


class OneOperator(TwoProduct):
    """`A x A` where all images have one blur, as in sampling: A is made once and shared by the batch."""

    name = "two-product, one operator"
    source = "the separable form; every image of a sampler's step has the same t"

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        """x: [B, C, H, W]; blur_std: [1]."""
        a_h, a_w = self.operators(blur_std)
        return shared_product(a_h[0], x, a_w[0])


def shared_product(a_h: Tensor, x: Tensor, a_w: Tensor) -> Tensor:
    """`A_H x A_W` for images [B, C, H, W] and one operator along each axis: [H, H], [W, W]."""
    batch, channels, height, width = x.shape
    y = (x.reshape(-1, width) @ a_w).view(batch * channels, height, width)
    return torch.bmm(a_h.expand(batch * channels, height, height), y).view(x.shape)


FORMS_OF_ONE_TIME: tuple[type[Form], ...] = (OneOperator, FourProduct)
"""For one blur for all images, as in sampling."""


def placed(form: Form, device: torch.device) -> Form:
    """The form with its tables on the device."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, dict):
            return {k: move(v) for k, v in value.items()}
        return tuple(move(v) for v in value) if isinstance(value, tuple) else value

    for name, value in vars(form).items():
        setattr(form, name, move(value))
    return form


def forms(kinds: tuple[type[Form], ...], size: int, device: torch.device) -> dict[str, Form]:
    """The forms for square images, by name, and last the FFT-DCT, which published code uses."""
    made = [kind(size, size) for kind in kinds] + [FftDct(size, size)]
    return {form.name: placed(form, device) for form in made}


def decoded(x0: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1], in place after the one conversion; others as they are."""
    return x0.float().div_(127.5).sub_(1.0) if x0.dtype == torch.uint8 else x0


def corruption_and_residual(
    form: Form, x0: Tensor, blur_std: Tensor, noise_std: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x_t and the target x_0 - x_t, of uint8 or float32 x0 [B, C, H, W]. Daras et al. 2022, eq. 1."""
    clean = decoded(x0)
    noise = torch.randn_like(clean) if noise is None else noise
    x_t = torch.addcmul(form.blur(clean, blur_std), noise_std.view(-1, 1, 1, 1), noise)
    return x_t, clean - x_t


def soft_loss(form: Form, prediction: Tensor, target: Tensor, blur_std: Tensor, weight: Tensor) -> Tensor:
    """`w ||C (prediction - target)||^2` [B], over the frequencies where the form has them."""
    error = prediction - target
    if isinstance(form, DctForm):
        filtered = form.gain(blur_std) * form.dct2(error)
    else:
        filtered = form.blur(error, blur_std)
    return weight * filtered.square().sum(dim=(1, 2, 3))


class EagerDenoiser(SoftDenoiser):
    """A SoftDenoiser whose loss is taken in eager PyTorch; t, schedule and weight are as they were."""

    def __init__(self, denoiser: SoftDenoiser, form: Form) -> None:
        super().__init__(denoiser.inner_model, denoiser.corruption, denoiser.prediction, denoiser.weight)
        args.choice("EagerDenoiser", "prediction", denoiser.prediction, ("residual",))
        self.form = form

    def loss(
        self,
        x0: Tensor,
        t: float | Tensor | None = None,
        *,
        key: NoiseKey | None = None,
        noise: Tensor | None = None,
        reduction: str = "none",
        **kw: Any,
    ) -> Tensor:
        """As `SoftDenoiser.loss`; without given noise it comes from torch's generator, not from the key."""
        time = self._time(x0, self.draw_time(x0, key) if t is None else t)
        blur_std, noise_std = self.corruption.blur_std(time), self.corruption.noise_std(time)
        x_t, residual = corruption_and_residual(self.form, x0, blur_std, noise_std, noise)
        out = self._predict(x_t, time, kw)
        weight = self._weight(time)
        assert weight is not None
        loss = soft_loss(self.form, out, residual, self.corruption.blur_std(time), weight)
        return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def momentum(form: Form, device: torch.device) -> Any:
    """Algorithm 2 as printed: `step(x_t, x0_hat, *levels, noise=None)`.

    levels: blur_std_t, blur_std_s, noise_std_t, noise_std_s, as numbers.
    """
    printed = algorithm_2(form)

    def step(x_t: Tensor, x0_hat: Tensor, *levels: float, noise: Tensor | None = None) -> Tensor:
        # Filled on the device: a copy from the host would be waited for.
        return printed(
            x_t, x0_hat, *(torch.full((1,), level, device=device) for level in levels), noise=noise
        )

    return step
