# SPDX-License-Identifier: Apache-2.0
"""The timings of whole steps: their parts and shares, and right eager formulas."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks import command, steps
from softdiff_kernels import functional
from softdiff_kernels.bench import baselines, cases, timing
from softdiff_kernels.bench.forms import FftDct, Form
from softdiff_kernels.bench.timing import Timing
from softdiff_kernels.diffusion import BlurCorruption, SoftDenoiser, TrainingLoss
from softdiff_kernels.training.build import UNet

CPU = torch.device("cpu")
# Float32 has 6e-8; products of 16 terms, twice, and a sum of squares stay under a hundred of that. A blur or
# level that is off by a part in a hundred changes the results by more than 1e-4.
ROUNDING = 1e-5


@pytest.fixture(params=["U-Net", steps.TWO_LAYERS])
def nano(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network of 3,279 weights, and the one of two layers, at 8 px in batches of 2."""
    options = {"width": 4, "blocks": 1, "multipliers": (1,)} if request.param == "U-Net" else {}
    monkeypatch.setattr(steps, "SIZES", (8,))
    monkeypatch.setitem(steps.NETWORKS, request.param, (options, (2,), (2,)))
    return request.param


def on_cuda(*_: object) -> None:
    raise AssertionError("CUDA was used")


def test_rows(nano: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: times are finite and positive, both steps have all their parts and are timed whole, an op is
    beside the fastest form and the FFT-DCT with its share of the parts, the rows are JSON, and on a CPU
    nothing touches CUDA."""
    for name in ("_lazy_init", "synchronize", "Event"):
        monkeypatch.setattr(torch.cuda, name, on_cuda)
    monkeypatch.setattr(steps, "_WHOLE_CALLS", 0)
    rows = steps.steps_of(CPU, nano, 8, 0.05)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    for step, ops in (("training", ["corruption", "loss and gradient"]), ("sampling", ["sampler step"])):
        of_step = [row for row in rows if row["case"].endswith(step)]
        forms = list(dict.fromkeys(row["other_name"] for row in of_step if row["what"] in ops))
        assert len(forms) == 2 and forms[1] == FftDct.name
        expected = [*((op, form) for op in ops for form in forms), ("network", ""), ("whole step", forms[0])]
        assert [(row["what"], row["other_name"]) for row in of_step] == expected
        network = next(row["ours"] for row in of_step if row["what"] == "network")
        for row in of_step:
            assert (row["size"], row["batch"], row["unit"]) == (8, 2, "ms")
            times = [row["ours"]] if row["what"] == "network" else [row["ours"], row["other"]]
            assert all(math.isfinite(ms) and ms > 0 for ms in times)
            if row["what"] in ops:
                same = [r for r in of_step if r["what"] in ops and r["other_name"] == row["other_name"]]
                shares = [row[way] / (network + sum(r[way] for r in same)) for way in ("ours", "other")]
                assert row["note"] == "{:.2%} of ops and network, {:.2%} by the other".format(*shares)


def test_a_step_that_takes_too_long_is_not_timed_whole(nano: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: where the whole step cannot be repeated within ten times the budget, its rows say so."""
    monkeypatch.setattr(steps, "_WHOLE_CALLS", math.inf)
    whole = [row for row in steps.steps_of(CPU, nano, 8, 0.01) if row["what"] == "whole step"]
    assert [(row["ours"], row["other"]) for row in whole] == [(None, None)] * 2
    assert all("not timed whole" in row["note"] for row in whole)


def denoiser(size: int) -> SoftDenoiser:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 3, 3, padding=1)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    return SoftDenoiser(Network(), BlurCorruption.paper((size, size)))


def off(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float((result - exact).norm() / exact.norm())


@pytest.mark.parametrize("form", [k(16, 16) for k in steps.FOR_A_BATCH], ids=lambda f: f.name)
def test_eager_loss_and_gradient_are_the_fused_ones(form: Form) -> None:
    """Rule: on the same images, times and noise the eager trainer's loss, and its gradient for every weight,
    equal the fused one's to float32 rounding; a blur 1 % stronger does not."""
    fused = TrainingLoss(denoiser(16))
    x0 = cases.synthetic_photographs(4, 16)
    t, noise = torch.tensor([0.03, 0.1, 0.3, 0.6]), torch.randn(4, 3, 16, 16)

    def of(model: TrainingLoss) -> list[torch.Tensor]:
        model.zero_grad()
        loss = model(x0, t, noise=noise)
        loss.mean().backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    exact = of(fused)
    assert len(exact) == 3
    for result, wanted in zip(of(steps.EagerLoss(fused.denoiser, form)), exact, strict=True):
        assert off(result, wanted) < ROUNDING
    right = form.gains
    form.gains = lambda blur_std: right(1.01 * blur_std)  # type: ignore[method-assign]
    try:
        wrong = of(steps.EagerLoss(fused.denoiser, form))
    finally:
        del form.gains
    assert off(wrong[0], exact[0]) > 10 * ROUNDING


@pytest.mark.parametrize("form", [k(16, 16) for k in steps.FOR_ONE_TIME], ids=lambda f: f.name)
def test_eager_momentum_is_the_fused_step(form: Form) -> None:
    """Rule: Algorithm 2 as printed, of numbers, equals the fused step to float32 rounding."""
    torch.manual_seed(0)
    x_t, x0_hat, noise = torch.randn(3, 2, 3, 16, 16).unbind(0)
    levels = (4.0, 3.5, 0.09, 0.08)
    names = ("blur_std_t", "blur_std_s", "noise_std_t", "noise_std_s")
    exact = functional.momentum_step(x_t, x0_hat, **dict(zip(names, levels, strict=True)), noise=noise)
    step = steps.momentum(form, CPU)
    assert off(step(x_t, x0_hat, *levels, noise=noise), exact) < ROUNDING
    assert off(step(x_t, x0_hat, 4.0, 3.4, 0.09, 0.08, noise=noise), exact) > 10 * ROUNDING


@pytest.mark.parametrize("broken", ["corruption_and_residual", "losses", "momentum"])
def test_a_wrong_baseline_is_not_timed(nano: str, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: where a baseline is 1 % off, nothing is timed: the run ends with its name."""
    where: Any = baselines if broken == "losses" else steps
    right: Any = getattr(where, broken)

    def wrong(*arguments: Any, **given: Any) -> Any:
        result = right(*arguments, **given)
        if broken in ("losses", "momentum"):
            return lambda *a, **kw: 1.01 * result(*a, **kw)
        return (1.01 * result[0], result[1]) if isinstance(result, tuple) else 1.01 * result

    monkeypatch.setattr(where, broken, wrong)
    with pytest.raises(command.WrongResult, match=r"relative error 1\.\de-02"):
        steps.steps_of(CPU, nano, 8, 0.01)


def test_agreement() -> None:
    """Rule: the same passes; a shape, one wrong row, zeros and NaN do not."""
    x = torch.linspace(-1, 1, 48).view(2, 3, 2, 4)
    command.agree("op", (x, x), (x, x.clone()))
    row = x.clone()
    row[1, 2, 1] *= 1.1
    for other in (x[:1], row, torch.zeros_like(x), torch.full_like(x, math.nan)):
        with pytest.raises(command.WrongResult, match="op"):
            command.agree("op", (x, x), (x, other))


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


def op(form: str, ours: float, other: float) -> dict[str, Any]:
    about = {"case": "training", "what": "corruption", "size": 64, "batch": 1}
    return {**command.absent(about, form, "ms", ""), "ours": ours, "other": other}


@pytest.mark.parametrize(("rounds", "doubt"), [(5, 0.2), (1, math.inf)])
def test_the_parts_of_a_step(rounds: int, doubt: float) -> None:
    """Rule: the fastest form and the FFT-DCT stay, with the op's shares of the parts; the network has its
    doubt, which is unknown after one repetition."""
    ops = [op("bmm", 0.25, 3.0), op("four-product", 0.25, 1.0), op(FftDct.name, 0.25, 9.0)]
    network = Timing(1e-3, 1e-3, 1e-3, rounds, doubt)
    about = {"case": "training", "size": 64, "batch": 1}
    whole = lambda about, form, **_: [command.absent(about, form, "ms", "whole")]  # noqa: E731
    rows = steps.rows_of(about, ops, network, whole, {"four-product": "four-product"}, 1.0)
    assert [row["other_name"] for row in rows] == ["four-product", FftDct.name, "", "four-product"]
    notes = [
        "20.00% of ops and network, 50.00% by the other",
        "20.00% of ops and network, 90.00% by the other",
    ]
    assert [row["note"] for row in rows] == [*notes, f"repetitions: {rounds}", "whole"]
    assert rows[2]["ours"] == 1.0 and rows[2]["noise"] == (doubt if rounds > 1 else None)
    text = command.table(rows)
    assert all(note in text for note in notes) and "none" not in text.splitlines()[4]


def test_the_plan_has_every_network_at_every_size() -> None:
    """Rule: four networks at three sizes, each a call that can be made; quick, the two smallest ones."""
    arguments = [case.keywords for case in steps.FULL]
    assert {(a["name"], a["size"]) for a in arguments} == {
        (n, s) for n in steps.NETWORKS for s in steps.SIZES
    }
    assert len(arguments) == 12 and steps.SIZES == (32, 64, 128)
    assert [case.keywords["name"] for case in steps.QUICK] == [steps.TWO_LAYERS, "small U-Net"]
    for case in [*steps.FULL, *steps.QUICK]:
        inspect.signature(case.func).bind(CPU, **case.keywords)


def test_the_paper_sized_network() -> None:
    """Rule: NCSN++'s size: about 60 million parameters, 4 blocks a level, attention at 16 px of 64."""
    options, *batches = steps.NETWORKS["paper-sized U-Net"]
    assert all(len(counts) == len(steps.SIZES) for counts in batches)
    with torch.device("meta"):
        unet = UNet(3, (64, 64), options["width"], options["multipliers"], options["blocks"])
    assert 55e6 < sum(p.numel() for p in unet.parameters()) < 75e6
    attends = ["Attn" in type(block).__name__ for block in unet.net.down_blocks]
    assert attends == [False, False, True, True]
    assert all(len(block.resnets) == 4 for block in unet.net.down_blocks)


def test_synthetic_images_have_the_spectrum_of_photographs() -> None:
    """Rule: power falls as 1/f^2: from frequency 4 to 16 by 16, within a factor of two over 64 images."""
    pixels = cases.synthetic_photographs(64, 64).float()
    power = torch.fft.rfft2(pixels - pixels.mean()).abs().square().mean(dim=(0, 1))
    assert 8 < float(power[0, 4] / power[0, 16]) < 32
