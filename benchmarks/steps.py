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
from softdiff_kernels.bench.forms import FftDct, Form
from softdiff_kernels.bench.timing import Timing, clock_of, few
from softdiff_kernels.diffusion import Corruption, TrainingLoss
from softdiff_kernels.errors import need

from . import eager
from .command import Op, Rows, absent, compete, main
from .eager import TIME_T, compete_sampling, compete_training

if TYPE_CHECKING:
    from softdiff_kernels.training.trainer import Trainer

SIZES = (32, 64, 128)
# The standard deviation of the last layer's weights, that of a layer some way into training. The trainer
# starts it at 0, and all gradients before it would be zeros, which some machines multiply faster.
_LAST_STD = 0.01
_WHOLE_CALLS = 17  # of a whole step at least: to compare, to warm up, and three rounds of three
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
    "paper-sized U-Net": (
        {"width": 128, "blocks": 4, "multipliers": (1, 2, 2, 2)},
        *((1, 1, 1), (128, 32, 8)),
    ),
}


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
    """A trainer of a network on synthetic images, with the paper's ranges of blur and noise.

    Raises UserError where a package that training needs is missing.
    """
    for package in ("diffusers", "safetensors"):
        need(package, "timing whole steps")
    from softdiff_kernels.data.image_set import ImageSet
    from softdiff_kernels.training import trainer as training

    options, cpu, cuda = NETWORKS[name]
    batch = (cuda if device.type == "cuda" else cpu)[SIZES.index(size)]
    config = training.TrainConfig(data="synthetic", batch=batch, schedule="paper", **options)
    images = ImageSet(cases.synthetic_photographs(max(2 * batch, 16), size), "synthetic")
    build = (lambda *_: TwoLayers()) if name == TWO_LAYERS else training.build_model
    with patch.object(training, "build_model", build):
        trainer = training.Trainer(config, images, Corruption.paper((size, size)), None, device)
    generator = torch.Generator(device).manual_seed(cases.SEED)
    for model in (trainer.model, trainer.averages[0].module):
        last = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)][-1]
        nn.init.normal_(last.weight, std=_LAST_STD, generator=generator)
    return trainer


def training_ops(
    about: dict[str, Any], corruption: Corruption, x0: Tensor, forms: dict[str, Form], budget: float
) -> Rows:
    """The ops of a training step: x_t and the residual of uint8 x0, and the loss with its gradient."""
    t = torch.linspace(0.05, 0.95, len(x0), device=x0.device)
    std, sigma = corruption.blur_std(t), corruption.noise_std(t)

    def corrupt(noise: Tensor | None = None) -> Any:
        return functional.corrupt(x0, std, sigma, noise=noise, return_residual=True)

    others: dict[str, Op] = {
        name: partial(eager.corruption_and_residual, form, x0, std, sigma) for name, form in forms.items()
    }
    noise = torch.randn(x0.shape, device=x0.device)
    what = {**about, "what": "corruption"}
    timed = compete(what, corrupt, others, x0.device, check=(noise,), budget=budget)
    x_t, residual = corrupt()
    weight = sigma.square().reciprocal()
    given = {"prediction": 0.1 * x_t, "target": residual, "blur_std": std, "weight": weight}
    loss = partial(cases.ours, cases.Case("soft_score_loss", *x0.shape[2:], given, None))
    others = {n: partial(baselines.loss_and_gradient(form), *given.values()) for n, form in forms.items()}
    return timed + compete({**about, "what": "loss and gradient"}, loss, others, x0.device, budget=budget)


def parts(about: dict[str, Any], ops: Rows, network: Timing) -> Rows:
    """The rows of the form that is the fastest over all ops and of the FFT-DCT, and the network's row.

    The note of an op is its share of all parts, by ours and by the other. The network's noise is the doubt in
    its median, as a fraction; None after one repetition.
    """
    ms = 1e3 * network.median
    total: dict[str, dict[str, float]] = {}
    for row in ops:
        of_form = total.setdefault(row["other_name"], {"ours": ms, "other": ms})
        for way in of_form:
            of_form[way] += row[way]
    fastest = min((name for name in total if name != FftDct.name), key=lambda name: total[name]["other"])
    kept = [row for row in ops if row["other_name"] in (fastest, FftDct.name)]
    for row in kept:
        ours, other = (row[way] / total[row["other_name"]][way] for way in ("ours", "other"))
        row["note"] = f"{ours:.2%} of the step, {other:.2%} by the other"
    doubt = network.doubt if math.isfinite(network.doubt) else None
    repeats = absent({**about, "what": "network"}, "", "ms", f"repetitions: {network.rounds}")
    return [*kept, {**repeats, "ours": ms, "noise": doubt}]


def steps_of(device: torch.device, name: str, size: int, budget: float) -> Rows:
    """The parts of both steps of one network at one size, and both steps as one piece.

    budget: seconds for the repetitions of a network's training step; its forward pass has half of that, each
    op a fifteenth. A whole step is timed, beside the fastest form, where its calls take less than ten times
    the budget. Raises WrongResult where a baseline is wrong, and UserError where a package that training
    needs is missing.
    """
    trainer = make_trainer(name, size, device)
    clock, each = clock_of(device), budget / 15
    x0 = trainer.batch(0, trainer.config.batch)[0]
    x_t = eager.decoded(x0)
    t = torch.full((len(x0),), TIME_T, device=device)
    weights = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    about = {"what": "whole step", "size": size, "batch": len(x0)}
    training = {"case": f"{name}, {weights:.1f} M, training", **about}
    sampling = {"case": f"{name}, {weights:.1f} M, sampling", **about}

    def network() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.model(x_t, t).backward(x_t)

    def forward(x: Tensor) -> Tensor:
        return trainer.averaged(x, TIME_T)

    def step_of(loss: TrainingLoss) -> Op:
        def step() -> None:
            trainer.loss = loss
            trainer.advance()

        return step

    def whole(compete_step: Callable[..., Rows], about: dict[str, Any], ops: Rows, alone: Timing) -> Rows:
        """The whole step beside the form of the first row, unless it takes too long."""
        form = ops[0]["other_name"]
        seconds = _WHOLE_CALLS * alone.median
        if seconds > 10 * budget:
            return [absent(about, form, "ms", f"not timed whole: it would take {seconds:.0f} s")]
        return compete_step(about, {form: forms[form]}, budget=budget, least=3, most=40)

    forms = eager.forms(eager.FOR_A_BATCH, size, device)
    alone = few(network, clock, budget)
    ops = parts(training, training_ops(training, trainer.denoiser.corruption, x0, forms, each), alone)
    rows = [*ops, *whole(partial(compete_training, trainer.loss, x0, step_of), training, ops, alone)]
    trainer.optimizer.zero_grad(set_to_none=True)
    forms = eager.forms(eager.FOR_ONE_TIME, size, device)
    with torch.no_grad():
        alone = few(partial(forward, x_t), clock, budget / 2)
    what = {**sampling, "what": "sampler step"}
    ops = parts(sampling, compete_sampling(lambda x: 0.9 * x, x_t, what, forms, budget=each), alone)
    return [*rows, *ops, *whole(partial(compete_sampling, forward, x_t), sampling, ops, alone)]


FULL = [partial(steps_of, name=name, size=size, budget=3.0) for size in SIZES for name in NETWORKS]
QUICK = [partial(steps_of, name=name, size=32, budget=0.5) for name in (TWO_LAYERS, "small U-Net")]

if __name__ == "__main__":
    sys.exit(main("steps", FULL, QUICK, sys.argv[1:]))
