# SPDX-License-Identifier: Apache-2.0
"""The trainer's step and the sampler's step with the ops as one writes them in eager PyTorch, by any form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from softdiff_kernels.bench import baselines, cases
from softdiff_kernels.bench.forms import FftDct, Form, FourProduct, TwoProduct, TwoProductBmm
from softdiff_kernels.diffusion import Corruption, SoftDenoiser
from softdiff_kernels.noise import NoiseKey

WRONG = 1e-3
"""The relative error (L2) from which on a baseline computes something else: rounding is under 1e-4, a wrong
formula over 1e-2."""
TIME_T, TIME_S = 0.2, 0.18
"""A step of the sampler in the quarter of the time where the noise grows, so that it is drawn."""


class WrongResult(AssertionError):
    """A baseline whose result is not ours; it must not be timed."""


def agree(what: str, ours: Any, other: Any, bound: float = WRONG) -> None:
    """Raises WrongResult where the results (tensors, or tuples of them) differ by more than `bound` (L2)."""
    pairs = zip(ours, other, strict=True) if isinstance(ours, tuple) else [(ours, other)]
    for mine, theirs in pairs:
        if mine.shape != theirs.shape:
            raise WrongResult(f"{what}: expected shape {list(mine.shape)}, got {list(theirs.shape)}")
        error = cases.relative_error(theirs, mine.double())
        if not error < bound:
            raise WrongResult(f"{what}: relative error {error:.1e}, expected under {bound:g}")


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


class EagerDenoiser(SoftDenoiser):
    """A SoftDenoiser (of the prediction "residual") whose loss is computed in eager PyTorch by a form."""

    def __init__(self, denoiser: SoftDenoiser, form: Form) -> None:
        super().__init__(denoiser.inner_model, denoiser.corruption, denoiser.prediction, denoiser.weight)
        assert denoiser.prediction == "residual"
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
        # Looked up again, as the fused loss does.
        blur_std = self.corruption.blur_std(time)
        loss = baselines.losses(self.form)(out, residual, blur_std, self._weight(time))
        return loss if reduction == "none" else getattr(loss, reduction)()


def sampler_levels(corruption: Corruption) -> dict[str, float]:
    """The arguments of `momentum_step` for a step from TIME_T to TIME_S, as numbers."""
    of = {"blur_std": corruption.blur_std, "noise_std": corruption.noise_std}
    times = {"t": TIME_T, "s": TIME_S}
    return {f"{name}_{at}": table(time) for name, table in of.items() for at, time in times.items()}


def momentum(form: Form, device: torch.device) -> Callable[..., Tensor]:
    """Algorithm 2 as printed: `step(x_t, x0_hat, *levels, noise=None)`, levels as of `sampler_levels`."""
    printed = baselines.algorithm_2(form)

    def step(x_t: Tensor, x0_hat: Tensor, *levels: float, noise: Tensor | None = None) -> Tensor:
        # Filled on the device: a copy from the host would be waited for.
        filled = (torch.full((1,), level, device=device) for level in levels)
        return printed(x_t, x0_hat, *filled, noise=noise)

    return step
