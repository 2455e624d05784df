# SPDX-License-Identifier: Apache-2.0
"""The trainer's step and the sampler's step with the ops as one writes them in eager PyTorch, beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softdiff_kernels import functional
from softdiff_kernels.bench import baselines
from softdiff_kernels.bench.forms import FftDct, Form, FourProduct, TwoProduct, TwoProductBmm
from softdiff_kernels.diffusion import Corruption, SoftDenoiser, TrainingLoss

from .command import Op, Rows, agree, compete

TIME_T, TIME_S = 0.2, 0.18
"""A step of the sampler in the quarter of the time where the noise grows, so that it is drawn."""


class OneOperator(TwoProduct):
    """`A x A` where all images have one blur, as in sampling: A is computed once and shared by the batch."""

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


FOR_A_BATCH: tuple[type[Form], ...] = (TwoProductBmm, FourProduct)
"""For a blur of its own for each image, as in training: those that were fastest on the machines tried."""
FOR_ONE_TIME: tuple[type[Form], ...] = (OneOperator, FourProduct)
"""For one blur for all images, as in sampling."""


def forms(kinds: Sequence[type[Form]], size: int, device: torch.device) -> dict[str, Form]:
    """The forms for square images, by name, and last the FFT-DCT, which published code uses."""
    return {kind.name: kind(size, size).to(device) for kind in (*kinds, FftDct)}


def decoded(x0: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1], in place after the one conversion; others as they are."""
    return x0.float().div_(127.5).sub_(1.0) if x0.dtype == torch.uint8 else x0


def corruption_and_residual(
    form: Form, x0: Tensor, blur_std: Tensor, noise_std: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x_t and the target x_0 - x_t, of uint8 or float32 x0 [B, C, H, W]. Daras et al. 2022, eq. 1."""
    clean = decoded(x0)
    x_t = baselines.corrupt(form)(clean, blur_std, noise_std, noise)
    return x_t, clean - x_t


class EagerLoss(TrainingLoss):
    """A TrainingLoss (of the prediction "residual", the mask "soft") in eager PyTorch, by a form."""

    def __init__(self, denoiser: SoftDenoiser, form: Form) -> None:
        super().__init__(denoiser)
        assert (denoiser.prediction, denoiser.loss_mask, denoiser.weight) == ("residual", "soft", "paper")
        self.form = form

    def forward(
        self, x0: Tensor, t: Tensor | None = None, *, key: Any = None, noise: Tensor | None = None, **kw: Any
    ) -> Tensor:
        """As `SoftDenoiser.loss`; without given noise it comes from torch's generator, not from the key."""
        corruption = self.denoiser.corruption
        time = self.denoiser.draw_time(x0, key) if t is None else t
        levels = corruption.blur_std(time), corruption.noise_std(time)
        x_t, residual = corruption_and_residual(self.form, x0, *levels, noise)
        out = self.denoiser.inner_model(x_t, time, **kw)
        # Looked up again, as the fused loss does.
        blur_std, weight = corruption.blur_std(time), corruption.noise_std(time).square().reciprocal()
        return baselines.losses(self.form)(out, residual, blur_std, weight)


def momentum(form: Form, device: torch.device) -> Callable[..., Tensor]:
    """Algorithm 2 as printed: `step(x_t, x0_hat, *levels, noise=None)`, levels: numbers, in its order."""
    printed = baselines.algorithm_2(form)

    def step(x_t: Tensor, x0_hat: Tensor, *levels: float, noise: Tensor | None = None) -> Tensor:
        # Filled on the device: a copy from the host would be waited for.
        filled = (torch.full((1,), level, device=device) for level in levels)
        return printed(x_t, x0_hat, *filled, noise=noise)

    return step


@torch.no_grad()
def compete_sampling(
    estimate: Op, x_t: Tensor, about: Mapping[str, Any], others: Mapping[str, Form], **limits: Any
) -> Rows:
    """A step of the Momentum Sampler, its levels as numbers, with `estimate(x_t)` in the network's place."""
    corruption = Corruption.paper((x_t.shape[-2], x_t.shape[-1]))
    of = {"blur_std": corruption.blur_std, "noise_std": corruption.noise_std}
    times = {"t": TIME_T, "s": TIME_S}
    levels: dict[str, Any] = {
        f"{name}_{at}": table(time) for name, table in of.items() for at, time in times.items()
    }

    def ours(noise: Tensor | None = None) -> Tensor:
        return functional.momentum_step(x_t, estimate(x_t), **levels, noise=noise)

    def by(form: Form) -> Op:
        step = momentum(form, x_t.device)
        return lambda noise=None: step(x_t, estimate(x_t), *levels.values(), noise=noise)

    eager = {name: by(form) for name, form in others.items()}
    return compete(about, ours, eager, x_t.device, check=(torch.randn_like(x_t),), **limits)


def compete_training(
    fused: TrainingLoss,
    x0: Tensor,
    step_of: Callable[[TrainingLoss], Op],
    about: Mapping[str, Any],
    others: Mapping[str, Form],
    **limits: Any,
) -> Rows:
    """Whole training steps, `step_of(loss)`; before, losses and gradients on one batch x0 are compared."""
    eager = {name: EagerLoss(fused.denoiser, form) for name, form in others.items()}
    noise, t = torch.randn(x0.shape, device=x0.device), torch.linspace(0.05, 0.95, len(x0), device=x0.device)

    def loss_and_gradient(loss: TrainingLoss) -> tuple[Tensor, Tensor]:
        loss.zero_grad()
        losses = loss(x0, t, noise=noise)
        losses.mean().backward()
        gradients = [p.grad.flatten() for p in loss.parameters() if p.grad is not None]
        return losses.detach(), torch.cat(gradients)

    exact = loss_and_gradient(fused)
    for name, loss in eager.items():
        agree(f"{about['what']}, {name}", exact, loss_and_gradient(loss))
    steps = {name: step_of(loss) for name, loss in eager.items()}
    return compete(about, step_of(fused), steps, x0.device, check=None, **limits)
