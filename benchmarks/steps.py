# SPDX-License-Identifier: Apache-2.0
"""One training step and one sampling step of the reference trainer: what the ops take, eager and fused.

    python -m benchmarks.steps --out FOLDER [--quick] [--device cpu] [--threads 2]

With a small, a medium and a paper-sized U-Net at 32, 64 and 128 px. Writes FOLDER/steps.json and
FOLDER/steps.md; `steps_of` describes a row. Needs the extra `train`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from softdiff_kernels import functional
from softdiff_kernels.bench import baselines, report
from softdiff_kernels.bench.cases import SEED, synthetic_photographs
from softdiff_kernels.bench.forms import FftDct, Form
from softdiff_kernels.bench.timing import OURS, Call, Timing, clock_of, contest, differs, few, interleaved
from softdiff_kernels.diffusion import Corruption, SoftDenoiser
from softdiff_kernels.errors import need

from . import command, eager
from .eager import TIME_T, EagerDenoiser, agree

if TYPE_CHECKING:
    from softdiff_kernels.training.trainer import Trainer

_CHECKED_WHOLE = "small"
# The standard deviation of the last layer's weights, that of a layer some way into training. The trainer
# starts it at 0, and all gradients before it would be zeros, which some machines multiply faster.
_LAST_STD = 0.01
_WAYS = ("eager", "fused", "fft")


@dataclass(frozen=True)
class Network:
    """A U-Net of the trainer's class by its options.

    batches: images of a step by device and size; on a CPU so few that a step of the largest takes seconds, on
    a GPU so many that it is busy. origin: what of it is the paper's, and what is this library's choice.
    """

    width: int
    blocks: int
    multipliers: tuple[int, ...]
    batches: Mapping[str, Mapping[int, int]]
    origin: str

    def batch(self, size: int, device: torch.device) -> int:
        """Images of a step: those of the nearest size that is listed."""
        table = self.batches["cuda" if device.type == "cuda" else "cpu"]
        return table[min(table, key=lambda listed: abs(listed - size))]


NETWORKS = {
    "small": Network(
        *(32, 1, ()),
        {"cpu": {32: 8, 64: 4, 128: 2}, "cuda": {32: 128, 64: 128, 128: 32}},
        "ours: a U-Net for a few cores, half the width and depth of the default",
    ),
    "medium": Network(
        *(64, 2, ()),
        {"cpu": {32: 4, 64: 2, 128: 1}, "cuda": {32: 128, 64: 64, 128: 16}},
        "ours: the trainer's default",
    ),
    "paper": Network(
        *(128, 4, (1, 2, 2, 2)),
        {"cpu": {32: 1, 64: 1, 128: 1}, "cuda": {32: 128, 64: 32, 128: 8}},
        "the paper's (NCSN++): width, multipliers, 4 residual blocks a level, attention at 16 px; ours: "
        "diffusers' blocks, attention below 16 px too, plain down- and upsampling",
    ),
}


def make_trainer(network: Network, size: int, batch: int, device: torch.device) -> Trainer:
    """A trainer of the network on synthetic images, with the paper's ranges of blur and noise.

    Raises UserError where a package that training needs is missing.
    """
    for package in ("diffusers", "safetensors"):
        need(package, "timing whole steps")
    from softdiff_kernels.data.image_set import ImageSet
    from softdiff_kernels.training.config import TrainConfig
    from softdiff_kernels.training.trainer import Trainer

    options = {"width": network.width, "blocks": network.blocks, "multipliers": network.multipliers}
    config = TrainConfig(data="synthetic", batch=batch, schedule="paper", **options)
    images = ImageSet(synthetic_photographs(max(2 * batch, 16), size), "synthetic")
    trainer = Trainer(config, images, Corruption.paper((size, size)), None, device)
    generator = torch.Generator(device).manual_seed(SEED)
    for unet in (trainer.model, trainer.averages[0].module):
        nn.init.normal_(unet.net.conv_out.weight, std=_LAST_STD, generator=generator)  # type: ignore
    return trainer


@dataclass(frozen=True)
class Op:
    """An op's seconds: fused, by the fastest eager form, by the FFT-DCT; and the noise floor of the ratio."""

    fused: float
    eager: float
    fft: float
    form: str
    noise: float


def _op(ours: Call, others: Mapping[str, Call], device: torch.device, budget: float) -> Op:
    """Times an op whose results have been compared. `others`: by each form, the FFT-DCT among them."""
    limits = {"budget": budget, "most": 100, "block": 8 if device.type == "cuda" else 1}
    timings, floors = contest(ours, others, clock_of(device), **limits)
    best = min((name for name in others if name != FftDct.name), key=lambda name: timings[name].median)
    return Op(timings[OURS].median, timings[best].median, timings[FftDct.name].median, best, floors[best])


def _corruption(
    trainer: Trainer, x0: Tensor, time: Tensor, key: Any, forms: Mapping[str, Form], budget: float
) -> Op:
    corruption = trainer.denoiser.corruption
    given = (x0, corruption.blur_std(time), corruption.noise_std(time))
    noise = torch.randn(x0.shape, device=trainer.device)
    exact = functional.corrupt(*given, noise=noise, return_residual=True)
    for name, form in forms.items():
        agree(f"corruption, {name}", exact, eager.corruption_and_residual(form, *given, noise))
    others = {name: partial(eager.corruption_and_residual, form, *given) for name, form in forms.items()}
    fused = partial(functional.corrupt, *given, key=key, return_residual=True)
    return _op(fused, others, trainer.device, budget)


def _loss(trainer: Trainer, x0: Tensor, time: Tensor, forms: Mapping[str, Form], budget: float) -> Op:
    """The loss and its gradient for the network's answer."""
    corruption = trainer.denoiser.corruption
    std, sigma = corruption.blur_std(time), corruption.noise_std(time)
    weight = sigma.square().reciprocal()
    x_t, residual = functional.corrupt(x0, std, sigma, return_residual=True)
    given = (0.1 * x_t, residual, std, weight)

    def fused_loss(prediction: Tensor, *_: Tensor) -> Tensor:
        losses = functional.soft_score_loss(prediction, residual, std, weight=weight, reduction="none")
        return losses.mean()

    fused = partial(baselines.with_gradient(fused_loss), *given)
    others = {name: partial(baselines.loss_and_gradient(form), *given) for name, form in forms.items()}
    for name, call in others.items():
        agree(f"loss, {name}", fused(), call())
    return _op(fused, others, trainer.device, budget)


def _sampler_step(trainer: Trainer, x_t: Tensor, x0_hat: Tensor, key: Any, budget: float) -> Op:
    """The Momentum Sampler's step, its levels as Python numbers, as `sample_momentum` takes it."""
    given = eager.sampler_levels(trainer.denoiser.corruption)
    noise = torch.randn_like(x_t)
    exact = functional.momentum_step(x_t, x0_hat, **given, noise=noise)
    others = {}
    for name, form in eager.forms(eager.FOR_ONE_TIME, x_t.shape[-1], trainer.device).items():
        step = eager.momentum(form, trainer.device)
        agree(f"sampler step, {name}", exact, step(x_t, x0_hat, *given.values(), noise=noise))
        others[name] = partial(step, x_t, x0_hat, *given.values())
    fused = partial(functional.momentum_step, x_t, x0_hat, **given, key=key)
    return _op(fused, others, trainer.device, budget)


def _look_up(trainer: Trainer) -> tuple[Any, ...]:
    """What both ways do before and beside the ops: the batch, t, and the schedule's values at t."""
    x0, key, _ = trainer.batch(0, trainer.config.batch)
    denoiser = trainer.denoiser
    time = denoiser._time(x0, denoiser.draw_time(x0, key))
    corruption = denoiser.corruption
    stds = corruption.blur_std(time), corruption.noise_std(time), corruption.blur_std(time)
    return x0, stds, denoiser._weight(time)


def _optimiser(trainer: Trainer) -> None:
    """As `Trainer.advance` ends: clipping, Adam, the averages."""
    from softdiff_kernels.training.trainer import learning_rate

    config = trainer.config
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), config.grad_clip or math.inf)
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate(config, trainer.step)
    trainer.optimizer.step()
    for average in trainer.averages:
        average.update_parameters(trainer.model)


def _network(trainer: Trainer, x_t: Tensor, time: Tensor) -> None:
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.model(x_t, time).backward(x_t)


def _whole(trainer: Trainer, form: Form, budget: float) -> dict[str, Any]:
    """Real steps of the trainer with the fused ops, and with eager ones in their place, interleaved."""
    fused = trainer.denoiser

    def by(denoiser: SoftDenoiser) -> Callable[[], object]:
        def step() -> object:
            trainer.denoiser = denoiser
            return trainer.advance()

        return step

    try:
        calls = {"fused": by(fused), "eager": by(EagerDenoiser(fused, form))}
        seen = interleaved(calls, clock_of(trainer.device), budget=budget, least=3, most=40)
    finally:
        trainer.denoiser = fused
    return {
        "eager_ms": 1e3 * seen["eager"].median,
        "fused_ms": 1e3 * seen["fused"].median,
        "doubt_percent": 100 * math.hypot(seen["eager"].doubt, seen["fused"].doubt),
        "rounds": min(t.rounds for t in seen.values()),
    }


def row_of(
    about: Mapping[str, Any], step: str, ops: Mapping[str, Op], common: Mapping[str, Timing]
) -> dict[str, Any]:
    """The parts' times, their sums, and what follows from them; see `steps_of`."""
    ms = {name: {way: 1e3 * getattr(op, way) for way in _WAYS} for name, op in ops.items()}
    ms |= {name: dict.fromkeys(_WAYS, 1e3 * timing.median) for name, timing in common.items()}
    total = {way: sum(part[way] for part in ms.values()) for way in _WAYS}
    of_ops = {way: sum(ms[name][way] for name in ops) for way in _WAYS}
    network = common["network"]
    doubt = 100 * network.doubt * ms["network"]["fused"] / total["eager"]
    gain = 100 * (total["eager"] - total["fused"]) / total["eager"]
    floor = max(op.noise for op in ops.values())
    measured = differs(of_ops["eager"] / of_ops["fused"], floor)
    return {
        **about,
        "step": step,
        "rounds": network.rounds,
        "forms": {name: op.form for name, op in ops.items()},
        "ms": ms,
        **{f"{way}_ms": value for way, value in total.items()},
        **{f"{way}_share": of_ops[way] / total[way] for way in _WAYS},
        "gain_percent": gain,
        "fft_gain_percent": 100 * (total["fft"] - total["fused"]) / total["fft"],
        "doubt_percent": doubt if math.isfinite(doubt) else None,
        "ops_noise": floor,
        "within_noise": not (measured and abs(gain) > doubt),
        "whole": None,
    }


def steps_of(name: str, size: int, batch: int, device: torch.device, budget: float) -> list[dict[str, Any]]:
    """Both steps of one network at one size: a row each for training and sampling.

    budget: seconds for the repetitions of a network's training step; its forward pass has half of that, each
    op a fifteenth. Raises WrongResult where a baseline is wrong, and UserError where a package that training
    needs is missing.

    px, network, batch, device, threads (None on a GPU); parameters: how many the network learns; origin: what
    of it is the paper's. step: "training" or "sampling". ms: for each part {"eager", "fused", "fft"}, in
    milliseconds: "corruption" (x_t and the residual, from uint8), "loss" (with its gradient), "network"
    (forward and backward, or forward), "optimiser" (clipping, Adam, average), "look-up" (batch, t, schedule),
    "sampler step" (momentum; eager: Algorithm 2 as printed). "eager" is the fastest form here, named in
    `forms`; "fft" the FFT-DCT; what is no op of ours is one number for all three. eager_ms, fused_ms, fft_ms:
    their sums; eager_share, fused_share, fft_share: the ops' fraction of them, 0 to 1. gain_percent: of the
    eager step, what fusing saves; fft_gain_percent: of the FFT-DCT's. rounds: repetitions of the network that
    were timed. doubt_percent: of the eager step, the doubt in the network's median; None after one
    repetition. ops_noise: the floor under which the ops' ratio means nothing. within_noise: whether a
    stopwatch on so many whole steps, or on the ops, would not show the gain. whole, of the small network's
    training, else None: the real step timed as one piece, both ways interleaved: eager_ms, fused_ms, their
    doubt_percent, rounds.
    """
    network = NETWORKS[name]
    trainer = make_trainer(network, size, batch, device)
    forms = eager.forms(eager.FOR_A_BATCH, size, device)
    about = {
        **{"px": size, "network": name, "origin": network.origin, "batch": batch, "device": device.type},
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
    }
    each, clock = min(0.2, budget / 10), clock_of(device)
    x0, key, _ = trainer.batch(0, batch)
    time = trainer.denoiser._time(x0, trainer.denoiser.draw_time(x0, key))
    x_t = eager.decoded(x0)
    ops = {
        "corruption": _corruption(trainer, x0, time, key, forms, each),
        "loss": _loss(trainer, x0, time, forms, each),
    }
    common = {
        "network": few(partial(_network, trainer, x_t, time), clock, budget),
        "optimiser": few(partial(_optimiser, trainer), clock, each, most=9),
        **interleaved({"look-up": partial(_look_up, trainer)}, clock, budget=each / 2, most=100),
    }
    training = row_of(about, "training", ops, common)
    if name == _CHECKED_WHOLE:
        training["whole"] = _whole(trainer, forms[ops["loss"].form], budget)
    trainer.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        step = {"sampler step": _sampler_step(trainer, x_t, 0.9 * x_t, key, each)}
        forward = {"network": few(partial(trainer.averaged, x_t, TIME_T), clock, budget / 2)}
    return [training, row_of(about, "sampling", step, forward)]


def plan(device: torch.device, quick: bool) -> Iterator[command.Step]:
    """Every network at every size; quick: the small one at 32 px, in a batch of 4."""
    if quick:
        yield "small U-Net, 32 px, batch 4", partial(steps_of, "small", 32, 4, device, 0.5)
        return
    for size in (32, 64, 128):
        for name, network in NETWORKS.items():
            batch = network.batch(size, device)
            step = partial(steps_of, name, size, batch, device, 3.0)
            yield f"{name} U-Net, {size} px, batch {batch}", step


_LEGEND = (
    "Milliseconds of one step, as the sum of its parts, each the median over repetitions. eager: the fastest "
    "form in eager PyTorch here (the sampler's step: Algorithm 2 as printed); FFT: the FFT-DCT of published "
    "code. other parts: optimiser and average, batch, t and schedule. share: of the ops in the step, "
    "eager > fused. gain: what fusing saves of the eager step; (?): less than this timing of the network can "
    "show. repeats: of the network. whole step: the real training step timed as one piece, eager > fused."
)


def _op_cell(row: Mapping[str, Any], *names: str) -> str:
    part = next((row["ms"][name] for name in names if name in row["ms"]), None)
    return "" if part is None else f"{part['eager']:.2f} / {part['fft']:.2f} / {part['fused']:.2f}"


def _other_parts(row: Mapping[str, Any]) -> float:
    return sum(row["ms"][name]["fused"] for name in ("optimiser", "look-up") if name in row["ms"])


def _change(values: Mapping[str, Any] | None, key: str, pattern: str) -> str:
    return f"{values[f'eager_{key}']:{pattern}} > {values[f'fused_{key}']:{pattern}}" if values else ""


_COLUMNS: list[report.Column] = [
    ("px", lambda r: str(r["px"])),
    ("U-Net", lambda r: f"{r['network']}, {r['parameters'] / 1e6:.1f} M"),
    ("step", lambda r: r["step"]),
    ("batch", lambda r: str(r["batch"])),
    ("corruption or sampler step: eager / FFT / fused", lambda r: _op_cell(r, "corruption", "sampler step")),
    ("loss and gradient: eager / FFT / fused", lambda r: _op_cell(r, "loss")),
    ("network", lambda r: f"{r['ms']['network']['fused']:.1f}"),
    ("repeats", lambda r: str(r["rounds"])),
    ("other parts", lambda r: f"{_other_parts(r):.2f}"),
    ("step", lambda r: _change(r, "ms", ".1f")),
    ("share", lambda r: _change(r, "share", ".2%")),
    ("gain", lambda r: f"{r['gain_percent']:.2f} %{' (?)' if r['within_noise'] else ''}"),
    ("whole step", lambda r: _change(r["whole"], "ms", ".1f")),
]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table, and a legend."""
    return f"{report.table(_COLUMNS, rows)}\n\n{_LEGEND}"


if __name__ == "__main__":
    sys.exit(command.main("steps", plan, table, sys.argv[1:]))
