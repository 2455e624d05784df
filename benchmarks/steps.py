# SPDX-License-Identifier: Apache-2.0
"""A training step and a sampling step of the reference trainer: what the ops take of them, eager and fused.

    python -m benchmarks.steps --out FOLDER [--quick] [--device cpu] [--threads 2]

With a network of two layers and a small, a medium and a paper-sized U-Net at 32, 64 and 128 px. Writes
FOLDER/steps.json and FOLDER/steps.md; `command.compete` describes a row. Needs the extra `train`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from softdiff_kernels import functional
from softdiff_kernels.bench import baselines, cases
from softdiff_kernels.bench.forms import FftDct, Form, FourProduct, TwoProduct, TwoProductBmm
from softdiff_kernels.bench.timing import Timing, clock_of, few
from softdiff_kernels.diffusion import BlurCorruption, Corruption, SoftDenoiser, TrainingLoss
from softdiff_kernels.errors import need

from .command import Op, Rows, absent, agree, compete, main

if TYPE_CHECKING:
    from softdiff_kernels.training.trainer import Trainer

SIZES = (32, 64, 128)
# The standard deviation of the last layer's weights, that of a layer some way into training. The trainer
# starts it at 0, and all gradients before it would be zeros, which some machines multiply faster.
_LAST_STD = 0.01
_WHOLE_CALLS = 17  # of a whole step at least: two to compare, six to warm up, three rounds of three
TIMES = {"t": 0.2, "s": 0.18}  # in the quarter of the time where the noise grows, so that a step draws it
TWO_LAYERS = "two layers"
# Options of the trainer's U-Net, and images of a step at SIZES: on a CPU so few that a step of the largest
# takes seconds, on a GPU so many that it is busy.
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    # Costs next to nothing: `TwoLayers` takes the U-Net's place.
    TWO_LAYERS: ({}, (16, 16, 4), (128, 128, 128)),
    # For a few cores: half the width and depth of the default.
    "small U-Net": ({"width": 32, "blocks": 1}, (8, 4, 2), (128, 128, 32)),
    # The trainer's default.
    "medium U-Net": ({"width": 64, "blocks": 2}, (4, 2, 1), (128, 64, 16)),
    # The paper's (NCSN++) are width, multipliers, 4 residual blocks a level and attention at 16 px. Ours are
    # diffusers' blocks, attention below 16 px too, plain down- and upsampling.
    "paper-sized U-Net": ({"width": 128, "blocks": 4, "multipliers": (1, 2, 2, 2)}, (1, 1, 1), (128, 32, 8)),
}


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


FOR_A_BATCH: tuple[type[Form], ...] = (TwoProductBmm, FourProduct, FftDct)
"""For a blur of its own for each image, as in training: those that were fastest on the machines tried, and
the FFT-DCT, which published code uses."""
FOR_ONE_TIME: tuple[type[Form], ...] = (OneOperator, FourProduct, FftDct)
"""For one blur for all images, as in sampling."""


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

    def forward(  # type: ignore[override]
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


class TwoLayers(nn.Module):
    """`f(x, t)`: two 3 x 3 convolutions with 16 channels between them; t is left out."""

    def __init__(self) -> None:
        super().__init__()
        last = nn.Conv2d(16, cases.CHANNELS, 3, padding=1)
        self.net = nn.Sequential(nn.Conv2d(cases.CHANNELS, 16, 3, padding=1), nn.SiLU(), last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: [B, 3, H, W]; t: [B]."""
        return self.net(x)


def make_trainer(name: str, size: int, device: torch.device) -> Trainer:
    """A trainer of a network on synthetic images, with the paper's ranges of blur and noise."""
    for package in ("diffusers", "safetensors"):
        need(package, "timing whole steps")
    from softdiff_kernels.data.image_set import ImageSet
    from softdiff_kernels.training import trainer as training

    options, cpu, cuda = NETWORKS[name]
    batch = (cuda if device.type == "cuda" else cpu)[SIZES.index(size)]
    config = training.TrainConfig(data="synthetic", batch=batch, loss="soft", schedule="paper", **options)
    images = ImageSet(cases.synthetic_photographs(max(2 * batch, 16), size), "synthetic")
    build = (lambda *_: TwoLayers()) if name == TWO_LAYERS else training.build_model
    with patch.object(training, "build_model", build):
        trainer = training.Trainer(config, images, BlurCorruption.paper((size, size)), None, device)
    generator = torch.Generator(device).manual_seed(cases.SEED)
    for model in (trainer.model, trainer.averages[0].module):
        last = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)][-1]
        nn.init.normal_(last.weight, std=_LAST_STD, generator=generator)
    return trainer


def training_ops(about: dict[str, Any], corruption: Corruption, x0: Tensor, budget: float) -> Rows:
    """The ops of a training step: x_t and the residual of uint8 x0, and the loss with its gradient."""
    size, device = x0.shape[-1], x0.device
    forms = [kind(size, size).to(device) for kind in FOR_A_BATCH]
    t = torch.linspace(0.05, 0.95, len(x0), device=device)
    std, sigma = corruption.blur_std(t), corruption.noise_std(t)

    def corrupt(noise: Tensor | None = None) -> Any:
        return functional.corrupt(x0, std, sigma, noise=noise, return_residual=True)

    others: dict[str, Op] = {f.name: partial(corruption_and_residual, f, x0, std, sigma) for f in forms}
    check = (torch.randn(x0.shape, device=device),)
    timed = compete({**about, "what": "corruption"}, corrupt, others, device, check=check, budget=budget)
    x_t, residual = corrupt()
    weight = sigma.square().reciprocal()
    given = {"prediction": 0.1 * x_t, "target": residual, "blur_std": std, "weight": weight}
    loss = partial(cases.ours, cases.Case("soft_score_loss", size, size, given, None))
    others = {form.name: partial(baselines.loss_and_gradient(form), *given.values()) for form in forms}
    return timed + compete({**about, "what": "loss and gradient"}, loss, others, device, budget=budget)


def whole_training(trainer: Trainer, x0: Tensor, about: dict[str, Any], form: Form, **limits: Any) -> Rows:
    """Real steps of the trainer, with its loss and with the eager one, which are compared before."""
    fused, eager = trainer.loss, EagerLoss(trainer.denoiser, form)
    noise, t = torch.randn(x0.shape, device=x0.device), torch.linspace(0.05, 0.95, len(x0), device=x0.device)
    with torch.no_grad():
        agree(f"{about['what']}, {form.name}", fused(x0, t, noise=noise), eager(x0, t, noise=noise))

    def step(loss: TrainingLoss) -> None:
        trainer.loss = loss
        trainer.advance()

    others = {form.name: partial(step, eager)}
    return compete(about, partial(step, fused), others, x0.device, check=None, **limits)


@torch.no_grad()
def sampling(
    estimate: Op, x_t: Tensor, about: dict[str, Any], *forms: Form, corruption: Corruption, **limits: Any
) -> Rows:
    """A step of the Momentum Sampler, its levels as numbers, with `estimate(x_t)` in the network's place."""
    levels: dict[str, Any] = {f"blur_std_{at}": corruption.blur_std(time) for at, time in TIMES.items()}
    levels |= {f"noise_std_{at}": corruption.noise_std(time) for at, time in TIMES.items()}

    def ours(noise: Tensor | None = None) -> Tensor:
        return functional.momentum_step(x_t, estimate(x_t), **levels, noise=noise)

    def by(form: Form) -> Op:
        step = momentum(form, x_t.device)
        return lambda noise=None: step(x_t, estimate(x_t), *levels.values(), noise=noise)

    others = {form.name: by(form) for form in forms}
    return compete(about, ours, others, x_t.device, check=(torch.randn_like(x_t),), **limits)


def rows_of(
    about: dict[str, Any], ops: Rows, network: Timing, whole: Op, forms: dict[str, Form], budget: float
) -> Rows:
    """The ops of a step by the fastest form and by the FFT-DCT, the network, and the whole step.

    The note of an op is its share of all parts, by ours and by the other. The network's noise is the doubt in
    its median, as a fraction; None after one repetition. whole: times the step beside the fastest of `forms`;
    only called where its calls take less than ten times the budget.
    """
    ms, about = 1e3 * network.median, {**about, "what": "whole step"}
    total: dict[str, dict[str, float]] = {}
    for row in ops:
        of_form = total.setdefault(row["other_name"], {"ours": ms, "other": ms})
        for way in of_form:
            of_form[way] += row[way]
    fastest = min((name for name in total if name != FftDct.name), key=lambda name: total[name]["other"])
    kept = [row for row in ops if row["other_name"] in (fastest, FftDct.name)]
    for row in kept:
        ours, other = (row[way] / total[row["other_name"]][way] for way in ("ours", "other"))
        row["note"] = f"{ours:.2%} of ops and network, {other:.2%} by the other"
    alone = absent({**about, "what": "network"}, "", "ms", f"repetitions: {network.rounds}")
    alone |= {"ours": ms, "noise": network.doubt if math.isfinite(network.doubt) else None}
    seconds = _WHOLE_CALLS * network.median
    if seconds < 10 * budget:
        return [*kept, alone, *whole(about, forms[fastest], budget=budget, least=3, most=40)]
    return [*kept, alone, absent(about, fastest, "ms", f"not timed whole: it would take {seconds:.0f} s")]


def steps_of(device: torch.device, name: str, size: int, budget: float) -> Rows:
    """Both steps of one network at one size.

    budget: seconds for the repetitions of a network's training step; its forward pass has half of that, each
    op a fifteenth. Raises WrongResult where a baseline is wrong, and UserError where a package that training
    needs is missing.
    """
    trainer = make_trainer(name, size, device)
    clock, corruption, each = clock_of(device), trainer.denoiser.corruption, budget / 15
    x0 = trainer.batch(0, trainer.config.batch)[0]
    x_t, t = decoded(x0), torch.full((len(x0),), TIMES["t"], device=device)
    case = f"{name}, {sum(p.numel() for p in trainer.model.parameters()):,} weights"
    about = {"case": f"{case}, training", "size": size, "batch": len(x0)}
    forms: dict[str, Form] = {kind.name: kind(size, size).to(device) for kind in FOR_A_BATCH + FOR_ONE_TIME}

    def network() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.model(x_t, t).backward(x_t)

    def forward(x: Tensor) -> Tensor:
        return trainer.averaged(x, TIMES["t"])

    alone, ops = few(network, clock, budget), training_ops(about, corruption, x0, each)
    rows = rows_of(about, ops, alone, partial(whole_training, trainer, x0), forms, budget)
    trainer.optimizer.zero_grad(set_to_none=True)
    about["case"] = f"{case}, sampling"
    what, used = {**about, "what": "sampler step"}, [forms[kind.name] for kind in FOR_ONE_TIME]
    ops = sampling(lambda x: 0.9 * x, x_t, what, *used, corruption=corruption, budget=each)
    with torch.no_grad():
        alone = few(partial(forward, x_t), clock, budget / 2)
    whole = partial(sampling, forward, x_t, corruption=corruption)
    return rows + rows_of(about, ops, alone, whole, forms, budget)


FULL = [partial(steps_of, name=name, size=size, budget=3.0) for size in SIZES for name in NETWORKS]
QUICK = [partial(steps_of, name=name, size=32, budget=0.5) for name in (TWO_LAYERS, "small U-Net")]

if __name__ == "__main__":
    sys.exit(main("steps", FULL, QUICK, sys.argv[1:]))
