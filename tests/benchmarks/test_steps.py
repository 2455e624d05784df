# SPDX-License-Identifier: Apache-2.0
"""The timings of whole steps: sums and shares, right eager formulas, a sentence that follows the numbers."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks import eager, steps
from softdiff_kernels import functional
from softdiff_kernels.bench import baselines, cases, timing
from softdiff_kernels.bench.forms import FftDct, Form
from softdiff_kernels.bench.timing import Timing
from softdiff_kernels.diffusion import Corruption, SoftDenoiser
from softdiff_kernels.training.build import UNet

CPU = torch.device("cpu")
# Float32 has 6e-8; products of 16 terms, twice, and a sum of squares stay under a hundred of that. A blur or
# level that is off by a part in a hundred changes the results by more than 1e-4.
ROUNDING = 1e-5
WAYS = ("eager", "fused", "fft")


@pytest.fixture
def nano(monkeypatch: pytest.MonkeyPatch) -> str:
    """A network of 3,279 weights in the place of the one whose step is also timed whole."""
    network = steps.Network(4, 1, (1,), {"cpu": {8: 2}}, "of the tests")
    monkeypatch.setitem(steps.NETWORKS, "small", network)
    return "small"


def on_cuda(*_: object) -> None:
    raise AssertionError("CUDA was used")


def test_rows(nano: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: times are finite and positive, a step is the sum of its parts, shares and gain follow from these,
    the rows are JSON, and on a CPU nothing touches CUDA."""
    for name in ("_lazy_init", "synchronize", "Event"):
        monkeypatch.setattr(torch.cuda, name, on_cuda)
    rows = steps.steps_of(nano, 8, 2, CPU, 0.05)
    assert [row["step"] for row in rows] == ["training", "sampling"]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    names = ({"corruption", "loss", "network", "optimiser", "look-up"}, {"sampler step", "network"})
    for row, expected in zip(rows, names, strict=True):
        assert set(row["ms"]) == expected and (row["px"], row["batch"], row["device"]) == (8, 2, "cpu")
        for way in WAYS:
            parts = [part[way] for part in row["ms"].values()]
            assert all(math.isfinite(ms) and ms > 0 for ms in parts)
            assert row[f"{way}_ms"] == pytest.approx(sum(parts))
            ops = sum(row["ms"][name][way] for name in row["forms"])
            assert row[f"{way}_share"] == pytest.approx(ops / sum(parts)) and 0 < row[f"{way}_share"] < 1
        assert row["gain_percent"] == pytest.approx(100 * (1 - row["fused_ms"] / row["eager_ms"]))
        assert FftDct.name not in row["forms"].values() and row["rounds"] >= 1 and row["parameters"] > 0
    whole = rows[0]["whole"]
    assert whole["rounds"] >= 3 and whole["eager_ms"] > 0 and whole["fused_ms"] > 0
    assert rows[1]["whole"] is None


def denoiser(size: int) -> SoftDenoiser:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 3, 3, padding=1)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    return SoftDenoiser(Network(), Corruption.paper((size, size)))


def off(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float((result - exact).norm() / exact.norm())


@pytest.mark.parametrize("form", eager.forms(eager.FOR_A_BATCH, 16, CPU).values(), ids=lambda f: f.name)
def test_eager_loss_and_gradient_are_the_fused_ones(form: Form) -> None:
    """Rule: on the same images, times and noise the eager trainer's loss, and its gradient for every weight,
    equal the fused one's to float32 rounding; a blur 1 % stronger does not."""
    fused = denoiser(16)
    x0 = cases.synthetic_photographs(4, 16)
    t, noise = torch.tensor([0.03, 0.1, 0.3, 0.6]), torch.randn(4, 3, 16, 16)

    def of(model: SoftDenoiser) -> list[torch.Tensor]:
        model.zero_grad()
        loss = model.loss(x0, t, noise=noise)
        loss.mean().backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    exact = of(fused)
    assert len(exact) == 3
    for result, wanted in zip(of(eager.EagerDenoiser(fused, form)), exact, strict=True):
        assert off(result, wanted) < ROUNDING
    right = form.gains
    form.gains = lambda blur_std: right(1.01 * blur_std)  # type: ignore[method-assign]
    try:
        wrong = of(eager.EagerDenoiser(fused, form))
    finally:
        del form.gains
    assert off(wrong[0], exact[0]) > 10 * ROUNDING


@pytest.mark.parametrize("form", eager.forms(eager.FOR_ONE_TIME, 16, CPU).values(), ids=lambda f: f.name)
def test_eager_momentum_is_the_fused_step(form: Form) -> None:
    """Rule: Algorithm 2 as printed, of numbers, equals the fused step to float32 rounding."""
    torch.manual_seed(0)
    x_t, x0_hat, noise = torch.randn(3, 2, 3, 16, 16).unbind(0)
    levels = (4.0, 3.5, 0.09, 0.08)
    names = ("blur_std_t", "blur_std_s", "noise_std_t", "noise_std_s")
    exact = functional.momentum_step(x_t, x0_hat, **dict(zip(names, levels, strict=True)), noise=noise)
    step = eager.momentum(form, CPU)
    assert off(step(x_t, x0_hat, *levels, noise=noise), exact) < ROUNDING
    assert off(step(x_t, x0_hat, 4.0, 3.4, 0.09, 0.08, noise=noise), exact) > 10 * ROUNDING


@pytest.mark.parametrize("broken", ["corruption_and_residual", "losses", "momentum"])
def test_a_wrong_baseline_is_not_timed(nano: str, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: where a baseline is 1 % off, nothing is timed: the run ends with its name."""
    where: Any = baselines if broken == "losses" else eager
    right: Any = getattr(where, broken)

    def wrong(*arguments: Any, **given: Any) -> Any:
        result = right(*arguments, **given)
        if broken in ("losses", "momentum"):
            return lambda *a, **kw: 1.01 * result(*a, **kw)
        return (1.01 * result[0], result[1]) if isinstance(result, tuple) else 1.01 * result

    monkeypatch.setattr(where, broken, wrong)
    with pytest.raises(eager.WrongResult, match=r"relative error 1\.\de-02"):
        steps.steps_of(nano, 8, 2, CPU, 0.01)


def test_agreement() -> None:
    """Rule: the same passes; a shape, one wrong row, zeros and NaN do not."""
    x = torch.linspace(-1, 1, 48).view(2, 3, 2, 4)
    eager.agree("op", (x, x), (x, x.clone()))
    row = x.clone()
    row[1, 2, 1] *= 1.1
    for other in (x[:1], row, torch.zeros_like(x), torch.full_like(x, math.nan)):
        with pytest.raises(eager.WrongResult, match="op"):
            eager.agree("op", (x, x), (x, other))


@pytest.mark.parametrize(
    ("seconds", "calls", "rounds"), [(1.0, 6, 5), (3.0, 3, 2), (13.0, 2, 1), (41.0, 1, 1)]
)
def test_slow_calls_are_made_a_few_times(seconds: float, calls: int, rounds: int) -> None:
    """Rule: within 10 s a call is made once to warm up and up to five times more, once more at least, but a
    call of over 40 s is made once in all."""
    now, made = [0.0], []

    def call() -> None:
        now[0] += seconds
        made.append(seconds)

    seen = timing.few(call, timing.Clock(lambda: now[0]), 10.0)
    assert (len(made), seen.rounds, seen.median) == (calls, rounds, seconds)


def row(eager: float, fused: float, network: Timing, noise: float = 0.01) -> dict[str, Any]:
    about = {"px": 64, "network": "medium", "origin": "", "parameters": 10_000_000, "batch": 1}
    ops = {"sampler step": steps.Op(fused, eager, 2 * eager, "four-product", noise)}
    return steps.row_of(about, "sampling", ops, {"network": network})


def test_what_the_noise_hides() -> None:
    """Rule: a gain counts where it is more than the doubt in the network's time and the ops differ; after one
    repetition that doubt is unknown."""
    still = Timing(1.0, 1.0, 1.0, 5, 0.001)
    assert not row(0.10, 0.02, still)["within_noise"]
    assert row(0.10, 0.02, Timing(1.0, 0.9, 1.1, 5, 0.2))["within_noise"]
    assert row(0.10, 0.02, still, noise=2.0)["within_noise"]
    once = row(0.10, 0.02, Timing(1.0, 1.0, 1.0, 1, math.inf))
    assert once["within_noise"] and once["doubt_percent"] is None


def test_the_table_follows_the_numbers() -> None:
    """Rule: each row has its shares and its gain, marked where the network's noise hides it."""
    still = Timing(1.0, 1.0, 1.0, 5, 0.001)
    text = steps.table([row(0.02, 0.01, still), {**row(1.0, 0.25, still), "network": "tiny"}])
    assert (
        text.count("\n| 64 |") == 2 and "50.00% > 20.00%" in text and "(?)" not in text.partition("\n\n")[0]
    )
    assert "| 0.98 %" in text and "| 37.50 %" in text and "| tiny, 10.0 M" in text
    hidden = row(1.0, 0.25, Timing(1.0, 0.5, 1.5, 2, 0.9))
    assert "| 37.50 % (?)" in steps.table([hidden])


def test_the_plan_has_every_network_at_every_size() -> None:
    """Rule: three networks at three sizes, each a call that can be made; quick, the small one alone."""
    full, quick = list(steps.plan(CPU, False)), list(steps.plan(CPU, True))
    assert {step.args[:2] for _, step in full} == {
        (n, size) for n in steps.NETWORKS for size in (32, 64, 128)
    }
    assert len(full) == 9 and [name for name, _ in quick] == ["small U-Net, 32 px, batch 4"]
    for _, step in [*full, *quick]:
        inspect.signature(step.func).bind(*step.args, **step.keywords)


def test_the_paper_sized_network() -> None:
    """Rule: NCSN++'s size: about 60 million parameters, 4 blocks a level, attention at 16 px of 64."""
    paper = steps.NETWORKS["paper"]
    with torch.device("meta"):
        unet = UNet(3, (64, 64), paper.width, paper.multipliers, paper.blocks)
    assert 55e6 < sum(p.numel() for p in unet.parameters()) < 75e6
    attends = ["Attn" in type(block).__name__ for block in unet.net.down_blocks]
    assert attends == [False, False, True, True]
    assert all(len(block.resnets) == 4 for block in unet.net.down_blocks)


def test_synthetic_images_have_the_spectrum_of_photographs() -> None:
    """Rule: power falls as 1/f^2: from frequency 4 to 16 by 16, within a factor of two over 64 images."""
    pixels = cases.synthetic_photographs(64, 64).float()
    power = torch.fft.rfft2(pixels - pixels.mean()).abs().square().mean(dim=(0, 1))
    assert 8 < float(power[0, 4] / power[0, 16]) < 32
    assert steps.NETWORKS["paper"].batch(100, CPU) == 1
