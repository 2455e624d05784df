# SPDX-License-Identifier: Apache-2.0
"""One training step and one sampling step of the reference trainer: what the ops take, eager and fused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import functional
from ..diffusion import SoftDenoiser
from . import eager_step
from .eager_step import EagerDenoiser
from .end_to_end_table import table as table
from .forms import FftDct, Form
from .measure import Timing, differs
from .networks import NETWORKS, batch_of, make_trainer, parameters
from .turns import OURS, a_few, agree, contest, in_turn

if TYPE_CHECKING:
    from ..training.trainer import Trainer

# A step of the sampler in the quarter of the time where the noise grows, so that it is drawn.
TIME_T, TIME_S = 0.2, 0.18
_CHECKED_WHOLE = "small"
Say = Callable[[str], None]


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Op:
    """An op's seconds: fused, by the fastest eager form, by the FFT-DCT; and the floor of the noise."""

    fused: float
    eager: float
    fft: float
    form: str
    noise: float


def _op(what: str, ours: Any, others: Mapping[str, Any], device: torch.device, budget: float) -> Op:
    """Times an op after its results have been compared. `others`: by each form, the FFT-DCT among them."""
    timings, floors = contest(ours, others, device, budget=budget)
    best = min((name for name in others if name != FftDct.name), key=lambda name: timings[name].median)
    return Op(timings[OURS].median, timings[best].median, timings[FftDct.name].median, best, floors[best])


def _corruption(
    trainer: Trainer, x0: Tensor, time: Tensor, key: Any, forms: Mapping[str, Form], budget: float
) -> Op:
    corruption = trainer.denoiser.corruption
    std, sigma = corruption.blur_std(time), corruption.noise_std(time)
    noise = torch.randn(x0.shape, device=trainer.device)
    exact = functional.corrupt(x0, std, sigma, noise=noise, return_residual=True)
    for name, form in forms.items():
        result = eager_step.corruption_and_residual(form, x0, std, sigma, noise)
        agree(f"corruption, {name}", exact, result)

    def by(form: Form) -> Callable[[], object]:
        return lambda: eager_step.corruption_and_residual(form, x0, std, sigma)

    fused = lambda: functional.corrupt(x0, std, sigma, key=key, return_residual=True)  # noqa: E731
    return _op("corruption", fused, {n: by(f) for n, f in forms.items()}, trainer.device, budget)


def _loss(trainer: Trainer, x0: Tensor, time: Tensor, forms: Mapping[str, Form], budget: float) -> Op:
    """The loss and its gradient for the network's answer."""
    corruption = trainer.denoiser.corruption
    std = corruption.blur_std(time)
    weight = corruption.noise_std(time).square().reciprocal()
    x_t, residual = functional.corrupt(x0, std, corruption.noise_std(time), return_residual=True)
    prediction = 0.1 * x_t

    def differentiated(loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        leaf = prediction.detach().requires_grad_()
        loss = loss_of(leaf).mean()
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def fused() -> tuple[Tensor, Tensor]:
        return differentiated(
            lambda leaf: functional.soft_score_loss(leaf, residual, std, weight=weight, reduction="none")
        )

    def by(form: Form) -> Callable[[], tuple[Tensor, Tensor]]:
        return lambda: differentiated(lambda leaf: eager_step.soft_loss(form, leaf, residual, std, weight))

    others = {name: by(form) for name, form in forms.items()}
    for name, call in others.items():
        agree(f"loss, {name}", fused(), call())
    return _op("loss", fused, others, trainer.device, budget)


def _sampler_step(trainer: Trainer, x_t: Tensor, x0_hat: Tensor, key: Any, budget: float) -> Op:
    """The Momentum Sampler's step, its levels as Python numbers, as `sample_momentum` takes it."""
    device, corruption = trainer.device, trainer.denoiser.corruption
    t, s = TIME_T, TIME_S
    levels = (
        corruption.blur_std(t),
        corruption.blur_std(s),
        corruption.noise_std(t),
        corruption.noise_std(s),
    )
    names = ("blur_std_t", "blur_std_s", "noise_std_t", "noise_std_s")
    given: dict[str, Any] = dict(zip(names, levels, strict=True))
    forms = eager_step.forms(eager_step.FORMS_OF_ONE_TIME, x_t.shape[-1], device)
    noise = torch.randn_like(x_t)
    exact = functional.momentum_step(x_t, x0_hat, **given, noise=noise)
    steps = {name: eager_step.momentum(form, device) for name, form in forms.items()}
    for name, step in steps.items():
        agree(f"sampler step, {name}", exact, step(x_t, x0_hat, *levels, noise=noise))
    others = {name: (lambda step=step: step(x_t, x0_hat, *levels)) for name, step in steps.items()}
    fused = lambda: functional.momentum_step(x_t, x0_hat, **given, key=key)  # noqa: E731
    return _op("sampler step", fused, others, device, budget)


def _look_up(trainer: Trainer) -> tuple[Tensor, ...]:
    """What both ways do before and beside the ops: the batch, t, and the schedule's values at t."""
    x0, key, _ = trainer.batch(0, trainer.config.batch)
    denoiser = trainer.denoiser
    time = denoiser._time(x0, denoiser.draw_time(x0, key))
    corruption, weight = denoiser.corruption, denoiser._weight(time)
    assert weight is not None
    return x0, corruption.blur_std(time), corruption.noise_std(time), corruption.blur_std(time), weight


def _optimiser(trainer: Trainer) -> None:
    """As `Trainer.advance` ends: clipping, Adam, the averages."""
    from ..training.trainer import learning_rate

    config = trainer.config
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), config.grad_clip or math.inf)
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate(config, trainer.step)
    trainer.optimizer.step()
    for average in trainer.averages:
        average.update_parameters(trainer.model)


def _network(trainer: Trainer, x_t: Tensor, time: Tensor) -> None:
    trainer.optimizer.zero_grad(set_to_none=True)
    out = trainer.model(x_t, time)
    out.backward(x_t)


def _whole(trainer: Trainer, form: Form, budget: float) -> dict[str, Any]:
    """Real steps of the trainer with the fused ops, and with eager ones in their place, in turn."""
    fused: SoftDenoiser = trainer.denoiser
    eager = EagerDenoiser(fused, form)

    def by(denoiser: SoftDenoiser) -> Callable[[], object]:
        def step() -> object:
            trainer.denoiser = denoiser
            return trainer.advance()

        return step

    try:
        calls = {"fused": by(fused), "eager": by(eager)}
        taken = in_turn(calls, trainer.device, budget=budget, least=3, most=40)
    finally:
        trainer.denoiser = fused
    return {
        "eager_ms": 1e3 * taken["eager"].median,
        "fused_ms": 1e3 * taken["fused"].median,
        "doubt_percent": 100 * math.hypot(taken["eager"].doubt, taken["fused"].doubt),
        "rounds": min(t.rounds for t in taken.values()),
    }


def _row(about: dict[str, Any], step: str, ops: dict[str, Op], common: dict[str, Timing]) -> dict[str, Any]:
    """The parts' times, their sums, and what follows from them; see `end_to_end`."""
    ms = {
        name: {way: 1e3 * getattr(op, way) for way in ("eager", "fused", "fft")} for name, op in ops.items()
    }
    for name, timing in common.items():
        ms[name] = dict.fromkeys(("eager", "fused", "fft"), 1e3 * timing.median)
    total = {way: sum(part[way] for part in ms.values()) for way in ("eager", "fused", "fft")}
    of_ops = {way: sum(ms[name][way] for name in ops) for way in total}
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
        **{f"{way}_share": of_ops[way] / total[way] for way in total},
        "gain_percent": gain,
        "fft_gain_percent": 100 * (total["fft"] - total["fused"]) / total["fft"],
        "doubt_percent": doubt if math.isfinite(doubt) else None,
        "ops_noise": floor,
        "within_noise": not (measured and abs(gain) > doubt),
        "whole": None,
    }


def _setting(name: str, size: int, batch: int, device: torch.device, budget: float) -> list[dict[str, Any]]:
    """Both steps of one network at one size."""
    network = NETWORKS[name]
    trainer = make_trainer(network, size, batch, device)
    forms = eager_step.forms(eager_step.FORMS_OF_A_BATCH, size, device)
    about = {
        **{"px": size, "network": name, "origin": network.origin, "parameters": parameters(trainer.model)},
        **{"batch": batch, "device": device.type},
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
    }
    each = min(0.2, budget / 10)
    x0, key, _ = trainer.batch(0, batch)
    time = trainer.denoiser._time(x0, trainer.denoiser.draw_time(x0, key))
    ops = {
        "corruption": _corruption(trainer, x0, time, key, forms, each),
        "loss": _loss(trainer, x0, time, forms, each),
    }
    x_t = eager_step.decoded(x0)
    common = {
        "network": a_few(lambda: _network(trainer, x_t, time), device, budget),
        "optimiser": a_few(lambda: _optimiser(trainer), device, each, most=9),
        "look-up": in_turn({"": lambda: _look_up(trainer)}, device, budget=each / 2)[""],
    }
    training = _row(about, "training", ops, common)
    if name == _CHECKED_WHOLE:
        training["whole"] = _whole(trainer, forms[ops["loss"].form], budget)
    trainer.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        step = {"sampler step": _sampler_step(trainer, x_t, 0.9 * x_t, key, each)}
        forward = {"network": a_few(lambda: trainer.averaged(x_t, TIME_T), device, budget / 2)}
    return [training, _row(about, "sampling", step, forward)]


def end_to_end(
    device: torch.device | str,
    *,
    sizes: Sequence[int] = (32, 64, 128),
    networks: Sequence[str] = ("small", "medium", "paper"),
    budget: float = 3.0,
    quick: bool = False,
    say: Say = _silent,
) -> list[dict[str, Any]]:
    """Both steps of the trainer with each network at each size: a row each for training and sampling.

    budget: seconds for the repetitions of a network's training step; its forward pass has half of that, each
    op a fifteenth. quick: the small network at 32 px alone, in a batch of 4. say: gets a line for each
    setting. Backend and CPU threads are those in force. Raises WrongTwin where a baseline is wrong, and
    UserError where a package that training needs is missing.

    px, network, batch, device, threads (None on a GPU); parameters: how many the network learns; origin: what
    of it is the paper's. step: "training" or "sampling". ms: for each part {"eager", "fused", "fft"}, in
    milliseconds: "corruption" (x_t and the residual, from uint8), "loss" (with its gradient), "network"
    (forward and backward, or forward), "optimiser" (clipping, Adam, average), "look-up" (batch, t, schedule),
    "sampler step" (momentum; eager: Algorithm 2 as printed). "eager" is the fastest form here, named in
    `forms`; "fft" the FFT-DCT; what is no op of ours is one number for all three. eager_ms, fused_ms, fft_ms:
    their sums; eager_share, fused_share, fft_share: what part of them the ops are, 0 to 1. gain_percent: of
    the eager step, what fusing saves; fft_gain_percent: of the FFT-DCT's. rounds: repetitions of the network
    that were timed. doubt_percent: of the eager step, the doubt in the network's median; None after one
    repetition. ops_noise: the floor under which the ops' ratio means nothing. within_noise: whether a
    stopwatch on so many whole steps, or on the ops, would not show the gain. whole, of the small network's
    training, else None: the real step as one piece, both ways in turn: eager_ms, fused_ms, their
    doubt_percent, rounds.
    """
    device = torch.device(device)
    if quick:
        sizes, networks, budget = (32,), ("small",), min(budget, 0.5)
    rows = []
    for size in sizes:
        for name in networks:
            batch = 4 if quick else batch_of(name, size, device)
            say(f"end to end: {name} U-Net, {size} px, batch {batch}")
            rows += _setting(name, size, batch, device, budget)
    return rows
