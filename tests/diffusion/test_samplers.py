# SPDX-License-Identifier: Apache-2.0
"""Samplers: the paper's algorithms as printed, known limits, exact paths, and what images depend on."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import softdiff_kernels as sk
from softdiff_kernels import reference, spectrum
from softdiff_kernels.diffusion import (
    SAMPLERS,
    BlurCorruption,
    Corruption,
    PlainGaussianPrior,
    SoftDenoiser,
    generate,
    sample_ddim,
    sample_momentum,
    sample_naive,
    sample_tacos,
    time_steps,
)
from softdiff_kernels.diffusion.rules import DDIM


class Denoiser:
    """A function of (x, t) with a corruption, as a model."""

    def __init__(self, corruption: Corruption, function: Callable[..., Tensor]) -> None:
        self.corruption = corruption
        self.function = function

    def __call__(self, x: Tensor, t: Tensor, **kw: Any) -> Tensor:
        return self.function(x, t, **kw)


def _bent(x: Tensor, t: Tensor) -> Tensor:
    """A nonlinear estimate that mixes pixels and depends on t."""
    return torch.tanh(1.3 * x.roll(1, dims=3) - 0.4 * x + t.view(-1, 1, 1, 1).to(x.dtype))


def _x1(batch: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, 2, 6, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))


PAPER = BlurCorruption.paper((6, 8))
KEY = sk.NoiseKey(7, stream=100)


def test_momentum_is_the_papers_algorithm_2() -> None:
    x, ts = _x1(), [1.0, 0.6, 0.2, 0.1, 0.03]
    got = sample_momentum(
        Denoiser(PAPER, _bent), x, torch.tensor(ts, dtype=torch.float64), disable=True, key=KEY
    )
    for i, (t, s) in enumerate(itertools.pairwise(ts)):
        sigma_t, sigma_s = PAPER.noise_std(t), PAPER.noise_std(s)
        x0_hat = _bent(x, torch.full((3,), t, dtype=torch.float32))
        y_t = reference.blur(x0_hat, PAPER.blur_std(t))
        eta = sk.normal(x.shape, KEY.at(i + 1), dtype=torch.float64)
        eps = y_t - x
        z = x - (sigma_s**2 - sigma_t**2) / sigma_t**2 * eps + math.sqrt(sigma_t**2 - sigma_s**2) * eta
        x = z + (reference.blur(x0_hat, PAPER.blur_std(s)) - y_t)
    # The same algebra in another order, in float64: rounding of about 1e-15 a step.
    torch.testing.assert_close(got, x, rtol=0, atol=1e-12)


def test_naive_is_the_papers_algorithm_1() -> None:
    x, ts = _x1(), [1.0, 0.6, 0.2, 0.03]
    got = sample_naive(
        Denoiser(PAPER, _bent), x, torch.tensor(ts, dtype=torch.float64), disable=True, key=KEY
    )
    for i, (t, s) in enumerate(itertools.pairwise(ts)):
        x0_hat = _bent(x, torch.full((3,), t, dtype=torch.float32))
        eta = sk.normal(x.shape, KEY.at(i + 1), dtype=torch.float64)
        x = reference.blur(x0_hat, PAPER.blur_std(s)) + PAPER.noise_std(s) * eta
    torch.testing.assert_close(got, x, rtol=0, atol=1e-12)


def test_tacos_is_cold_diffusions_algorithm_2() -> None:
    x, ts = _x1(), [1.0, 0.6, 0.2, 0.03]
    got = sample_tacos(Denoiser(PAPER, _bent), x, torch.tensor(ts, dtype=torch.float64), disable=True)
    for t, s in itertools.pairwise(ts):
        x0_hat = _bent(x, torch.full((3,), t, dtype=torch.float32))
        x = x - reference.blur(x0_hat, PAPER.blur_std(t)) + reference.blur(x0_hat, PAPER.blur_std(s))
    torch.testing.assert_close(got, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variance", ["large", "small"])
def test_momentum_under_constant_noise_is_tacos(variance: str) -> None:
    # r = 1 leaves neither denoising nor fresh noise.
    c = BlurCorruption.from_tables((6, 8), [0, 1], [0.01, 3], [0.1, 0.1])
    model = Denoiser(c, _bent)
    momentum = sample_momentum(model, _x1(), time_steps(5), disable=True, variance=variance, key=KEY)
    torch.testing.assert_close(
        momentum, sample_tacos(model, _x1(), time_steps(5), disable=True), rtol=0, atol=1e-12
    )


def test_without_blur_the_step_is_the_gaussian_posterior() -> None:
    # Bayes for x_s given x_t = x_s + sqrt(s_t^2 - s_s^2) n and the prior N(x0_hat, s_s^2): precisions add.
    sigma_t, sigma_s = 0.7, 0.3
    c = BlurCorruption.from_tables((32, 32), [0, 0.5, 1], [0, 0, 0], [0.1, sigma_s, sigma_t])
    x0_hat = torch.full((8, 3, 32, 32), 0.25, dtype=torch.float64)
    x = x0_hat + 1.5
    got = sample_momentum(
        Denoiser(c, lambda x, t: x0_hat), x, torch.tensor([1.0, 0.5]), disable=True, variance="small", key=KEY
    )
    variance = 1 / (1 / sigma_s**2 + 1 / (sigma_t**2 - sigma_s**2))
    mean = variance * (0.25 / sigma_s**2 + 1.75 / (sigma_t**2 - sigma_s**2))
    count = got.numel()
    # Five standard errors of a mean and of a deviation over 24,576 normals.
    assert got.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
    assert got.std().item() == pytest.approx(math.sqrt(variance), rel=5 / math.sqrt(2 * count))
    large = sample_momentum(
        Denoiser(c, lambda x, t: x0_hat), x, torch.tensor([1.0, 0.5]), disable=True, key=KEY
    )
    # The paper's variance is larger by s_t^2 / s_s^2.
    assert ((large - mean).std() / got.std()).item() == pytest.approx(
        sigma_t / sigma_s, rel=5 / math.sqrt(count)
    )


def test_ddim_with_full_eta_is_momentum_with_the_small_variance() -> None:
    model = Denoiser(PAPER, _bent)
    ddim = sample_ddim(model, _x1(), time_steps(9), disable=True, key=KEY, eta=1.0)
    small = sample_momentum(model, _x1(), time_steps(9), disable=True, key=KEY, variance="small")
    torch.testing.assert_close(ddim, small, rtol=0, atol=1e-11)


def test_ddim_keeps_the_marginal_deviation_for_every_nu() -> None:
    # a^2 noise_std(t)^2 + b^2 = noise_std(s)^2, whatever part of it is fresh.
    falling = BlurCorruption.from_tables((6, 8), [0, 1], [0, 1], [0.05, 0.09])
    for nu, eta in ((0.0, None), (0.02, None), (0.05, None), (0.0, 0.0), (0.0, 0.4), (0.0, 1.0)):
        a, b = DDIM(nu, eta)(falling, 1.0, 0.0)
        assert a**2 * 0.09**2 + b**2 == pytest.approx(0.05**2, rel=1e-12)
        assert b == pytest.approx(nu if eta is None else eta * 0.05 * math.sqrt(0.09**2 - 0.05**2) / 0.09)
    silent = BlurCorruption.from_tables((6, 8), [0, 1], [0, 1], [0, 0])
    assert DDIM()(silent, 1.0, 0.0) == (1.0, 0.0)


def test_with_the_true_image_deterministic_samplers_follow_the_forward_path() -> None:
    # Where x0_hat = x_0, DDIM keeps x_t = C_t x_0 + noise_std(t) n for one n, and TACoS with all of n.
    x0, n = _x1().clamp(-1, 1), sk.normal((3, 2, 6, 8), KEY, dtype=torch.float64)
    start = PAPER.corrupt(x0, 1.0, noise=n)
    for stop in (0.6, 0.11, 0.02):
        ts = torch.linspace(1, stop, 6, dtype=torch.float64)
        model = Denoiser(PAPER, lambda x, t: x0)
        ddim = sample_ddim(model, start, ts, disable=True)
        torch.testing.assert_close(ddim, PAPER.corrupt(x0, stop, noise=n), rtol=0, atol=1e-12)
        tacos = sample_tacos(model, start, ts, disable=True)
        expected = reference.blur(x0, PAPER.blur_std(stop)) + PAPER.noise_std(1.0) * n
        torch.testing.assert_close(tacos, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_with_the_true_image_every_sampler_returns_it(name: str) -> None:
    x0 = _x1(dtype=torch.float32).clamp(-1, 1)
    start = PAPER.corrupt(x0, 1.0, key=KEY)
    got = SAMPLERS[name](Denoiser(PAPER, lambda x, t: x0), start, time_steps(20), disable=True, key=KEY)
    # The last step returns x0_hat itself.
    assert torch.equal(got, x0)


@pytest.mark.parametrize("name", ["naive", "momentum", "small", "ddim"])
def test_with_the_true_image_the_noise_left_is_as_derived(name: str) -> None:
    # x_s - C_s x_0 is noise of variance v_s: a^2 v_t + b^2, step by step. Momentum's "large" overshoots.
    c = BlurCorruption.paper((32, 32))
    x0 = torch.zeros(8, 3, 32, 32)
    ts = [1.0, 0.3, 0.2, 0.15, 0.1, 0.05]
    model = Denoiser(c, lambda x, t: x0)
    run = {
        "naive": sample_naive,
        "momentum": sample_momentum,
        "small": lambda *args, **kw: sample_momentum(*args, variance="small", **kw),
        "ddim": lambda *args, **kw: sample_ddim(*args, nu=0.01, **kw),
    }[name]
    got = run(
        model, c.corrupt(x0, 1.0, key=KEY), torch.tensor(ts, dtype=torch.float64), disable=True, key=KEY
    )
    variance = c.noise_std(1.0) ** 2
    for t, s in itertools.pairwise(ts):
        before, after = c.noise_std(t) ** 2, c.noise_std(s) ** 2
        variance = (after / before) ** 2 * variance + before - after if name == "momentum" else after
    if name == "momentum":
        assert variance > 1.2 * c.noise_std(ts[-1]) ** 2
    # Five standard errors over 24,576 normals.
    assert got.std().item() == pytest.approx(math.sqrt(variance), rel=5 / math.sqrt(2 * got.numel()))


def _wiener(c: Corruption, variance: Tensor) -> Denoiser:
    """The best denoiser of Gaussian images with these DCT variances: E[x_0 | x_t]."""

    def function(x: Tensor, t: Tensor) -> Tensor:
        time = float(t[0])
        gain = spectrum.heat_gain(torch.tensor([c.blur_std(time)], dtype=torch.float64), 4, 4)
        mask = gain * variance / (gain.square() * variance + c.noise_std(time) ** 2)
        return sk.idct2(mask * sk.dct2(x))

    return Denoiser(c, function)


@pytest.mark.parametrize("name", ["momentum", "small", "ddim"])
def test_samplers_recover_the_spectrum_of_gaussian_images(name: str) -> None:
    # With the exact posterior mean, small steps carry x_1's law to the data's: every DCT variance.
    variance = 0.3 / (0.3 + spectrum.eigenvalues_2d(4, 4))
    c = BlurCorruption.from_tables((4, 4), [0, 0.25, 1], [0.05, 0.3, 1.0], [0.02, 0.1, 0.1])
    count = 4000
    x0 = sk.idct2(variance.sqrt() * sk.normal((count, 1, 4, 4), sk.NoiseKey(0), dtype=torch.float64))
    x1 = c.corrupt(x0, 1.0, key=sk.NoiseKey(1, stream=10**6))
    run: Callable[..., Tensor] = {
        "momentum": sample_momentum,
        "small": lambda *args, **kw: sample_momentum(*args, variance="small", **kw),
        "ddim": sample_ddim,
    }[name]
    samples = run(_wiener(c, variance), x1, time_steps(150), disable=True, key=sk.NoiseKey(2))
    ratio = sk.dct2(samples).var(dim=0)[0] / variance
    # Five standard errors of a variance over 4000 is 11 %; the steps' own error is under 10 %.
    assert (ratio - 1).abs().max() < 0.2, ratio
    naive = sample_naive(_wiener(c, variance), x1, time_steps(150), disable=True, key=sk.NoiseKey(2))
    # The naive sampler forgets x_t at every step and loses the detail: the paper's Figure 4.
    assert (sk.dct2(naive).var(dim=0)[0] / variance)[3, 3] < 0.5


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_depends_on_its_stream_alone(name: str) -> None:
    # One batch of 6, its parts, and its rows in another order give the same images: to float32
    # rounding, for a library may sum in another order at another batch size.
    model, ts = Denoiser(PAPER, _bent), time_steps(7)
    x = _x1(6, torch.float32)
    whole = SAMPLERS[name](model, x, ts, disable=True, key=KEY)
    parts = [
        SAMPLERS[name](model, x[:1], ts, disable=True, key=KEY),
        SAMPLERS[name](model, x[1:], ts, disable=True, key=sk.NoiseKey(7, stream=101)),
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = SAMPLERS[name](model, x[order], ts, disable=True, key=sk.NoiseKey(7, stream=100 + order))
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-5)
    if name in ("naive", "momentum"):
        other = SAMPLERS[name](model, x, ts, disable=True, key=sk.NoiseKey(8, stream=100))
        assert (other - whole).abs().max() > 1e-3


def test_without_a_key_torchs_seed_rules() -> None:
    model = Denoiser(PAPER, _bent)
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(sample_naive(model, _x1(), time_steps(3), disable=True))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_callback_extra_arguments_and_inputs(name: str) -> None:
    seen: list[dict] = []

    def function(x: Tensor, t: Tensor, shift: float) -> Tensor:
        assert t.shape == (3,) and t.dtype == torch.float32
        return x + shift

    x, ts = _x1(), time_steps(4)
    before = x.clone()
    got = SAMPLERS[name](Denoiser(PAPER, function), x, ts, {"shift": 0.5}, seen.append, True, key=KEY)
    assert torch.equal(x, before)
    assert [s["i"] for s in seen] == [0, 1, 2, 3] and [s["t"] for s in seen] == ts.tolist()[:-1]
    assert torch.equal(seen[0]["x"], x) and all(torch.equal(s["denoised"], s["x"] + 0.5) for s in seen)
    assert torch.equal(got, seen[-1]["denoised"])


@pytest.mark.parametrize("name", SAMPLERS)
def test_small_float_dtypes_and_empty_batches(name: str) -> None:
    x = _x1(dtype=torch.bfloat16)
    got = SAMPLERS[name](Denoiser(PAPER, lambda x, t: x.float()), x, time_steps(3), disable=True, key=KEY)
    assert got.dtype == torch.bfloat16 and got.isfinite().all()
    assert SAMPLERS[name](Denoiser(PAPER, _bent), x[:0], time_steps(3), disable=True).shape == (0, 2, 6, 8)


@pytest.mark.parametrize("name", SAMPLERS)
def test_generate_draws_one_image_per_seed_at_any_batch_size(name: str) -> None:
    model, prior = SoftDenoiser(nn.Conv2d(2, 2, 3, padding=1), PAPER), PlainGaussianPrior((6, 8), 2, 0.3)
    model.inner_model.forward = lambda x, t, f=model.inner_model.forward: f(x)  # type: ignore[method-assign]
    states: list[Tensor] = []
    steps: list[int] = []

    def on_step() -> None:
        steps.append(1)

    images = generate(model, prior, range(5), sampler=name, steps=4, batch=2, states=states, on_step=on_step)
    assert images.shape == (5, 2, 6, 8) and images.dtype == torch.uint8 and len(steps) == 3 * 4
    assert len(states) == 5 and all(state.shape == (2, 2, 6, 8) for state in states)
    assert torch.equal(states[-1], images[:2])
    chosen = generate(model, prior, [3, 1], sampler=name, ts=time_steps(4), device="cpu")
    # A convolution may sum in another order at another batch size: off by one level.
    assert (chosen.int() - images[[3, 1]].int()).abs().max() <= 1
    assert generate(model, prior, [], sampler=name).shape == (0, 2, 6, 8)


def test_generate_refuses_unknown_samplers_and_ends_where_a_step_raises() -> None:
    model, prior = SoftDenoiser(nn.Identity(), PAPER), PlainGaussianPrior((6, 8), 2, 0.3)
    with pytest.raises(ValueError, match=r"generate: expected sampler as one of 'naive', .*, got 'euler'"):
        generate(model, prior, [1], sampler="euler")

    def stop() -> None:
        raise InterruptedError

    model.inner_model.forward = lambda x, t: x  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):
        generate(model, prior, [1], on_step=stop)


def test_progress_bar_is_optional(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Denoiser(PAPER, _bent)
    sample_tacos(model, _x1(), time_steps(3), disable=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    sample_tacos(model, _x1(), time_steps(3))
    assert capsys.readouterr().err == ""


def test_time_steps() -> None:
    assert time_steps(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert torch.equal(time_steps(np.int64(4)), time_steps(4))
    for bad in (0, -1, 2.5, True, np.bool_(True), "4", 4.0, None, 10**400, 2**31, [4]):
        with pytest.raises(ValueError, match="at least 1, got"):
            time_steps(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ts",
    [[1.0], [[1.0, 0.0]], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [1.2, 0.0], [1.0, -0.1], [1.0, math.nan, 0.0]],
)
def test_times_that_do_not_fall_from_1_to_0_are_refused(ts: list) -> None:
    with pytest.raises(ValueError, match=r"sample_naive: expected ts .*, got"):
        sample_naive(Denoiser(PAPER, _bent), _x1(), torch.tensor(ts), disable=True)


def test_bad_models_images_and_options_are_refused() -> None:
    model = Denoiser(PAPER, _bent)
    with pytest.raises(TypeError, match=r"with a Corruption as its \.corruption, got function"):
        sample_tacos(_bent, _x1(), time_steps(3), disable=True)
    with pytest.raises(ValueError, match="for images of 6 x 8"):
        sample_momentum(model, torch.zeros(1, 1, 8, 6), time_steps(3), disable=True)
    with pytest.raises(TypeError, match="expected x as float64"):
        sample_ddim(model, torch.zeros(1, 1, 6, 8, dtype=torch.int64), time_steps(3), disable=True)
    with pytest.raises(ValueError, match="variance as one of"):
        sample_momentum(model, _x1(), time_steps(3), disable=True, variance="medium")
    with pytest.raises(ValueError, match="expected nu or eta, got both"):
        sample_ddim(model, _x1(), time_steps(3), disable=True, nu=0.01, eta=0.5)
    with pytest.raises(ValueError, match="at most 1"):
        sample_ddim(model, _x1(), time_steps(3), disable=True, eta=1.5)
    with pytest.raises(ValueError, match=r"expected nu of at most noise_std\(s\)"):
        sample_ddim(model, _x1(), time_steps(20), disable=True, nu=0.05)


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_that_is_written_into_reaches_the_callers_tensors(name: str) -> None:
    # Rule: the callback gets tensors of its own. What it writes the step takes, as in k-diffusion; x_1 and
    # what the network keeps stay as they are, and so does what the result was made from.
    x, kept = _x1(), _x1().tanh()
    x_before, kept_before = x.clone(), kept.clone()

    def write(state: dict[str, Any]) -> None:
        state["x"].fill_(0.5)
        state["denoised"].fill_(0.25)

    model = Denoiser(PAPER, lambda x, t: kept)
    steered = SAMPLERS[name](model, x, time_steps(3), None, write, True, key=KEY)
    assert torch.equal(x, x_before) and torch.equal(kept, kept_before)
    assert bool((steered == 0.25).all())
    SAMPLERS[name](model, x, time_steps(3), disable=True, key=KEY).fill_(7.0)
    assert torch.equal(kept, kept_before)
    # A network that returns its argument, and one that writes into it.
    SAMPLERS[name](Denoiser(PAPER, lambda x, t: x), x, [1.0, 0.0], disable=True, key=KEY).fill_(7.0)
    SAMPLERS[name](Denoiser(PAPER, lambda x, t: x.mul_(0.5)), x, time_steps(3), disable=True, key=KEY)
    assert torch.equal(x, x_before)


def test_what_a_callback_writes_steers_the_next_step() -> None:
    x, seen = _x1(), []

    def write(state: dict[str, Any]) -> None:
        seen.append(state["x"].clone())
        state["x"].zero_()
        state["denoised"].zero_()

    sample_tacos(Denoiser(PAPER, _bent), x, time_steps(3), None, write, True)
    assert torch.equal(seen[0], x) and all(bool((s == 0).all()) for s in seen[1:])


def test_times_are_numbers_of_any_library_or_a_floating_point_tensor() -> None:
    model, x = Denoiser(PAPER, _bent), _x1()
    expected = sample_tacos(model, x, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64), disable=True)
    for ts in (
        [1, 0.5, 0],
        (np.int64(1), Fraction(1, 2), np.float32(0)),
        np.array([1.0, 0.5, 0.0]),
        torch.tensor([1.0, 0.5, 0.0]),
        [torch.tensor(1.0), torch.tensor(0.5), torch.tensor(0.0)],
    ):
        assert torch.equal(sample_tacos(model, x, ts, disable=True), expected)
    with pytest.raises(TypeError, match=r"^sample_tacos: expected ts as .*, got int64 tensor \[2\] on cpu$"):
        sample_tacos(model, x, torch.tensor([1, 0]), disable=True)
    ts = torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match=r"^sample_tacos: ts requires grad, but .* in their times"):
        sample_tacos(model, x, ts.clone().requires_grad_(), disable=True)
    with pytest.raises(ValueError, match=r"^sample_tacos: ts carries a tangent"):
        torch.func.jvp(lambda ts: sample_tacos(model, x, ts, disable=True), (ts,), (ts,))
    for wrong in (
        None,
        1.0,
        "10",
        [1.0, "0.5"],
        [True, False],
        np.array(["1", "0"]),
        [1.0, 10**400],
        "x" * 10**6,
    ):
        with pytest.raises(ValueError, match=r"^sample_tacos: expected ts as .*, got ") as refused:
            sample_tacos(model, x, wrong, disable=True)
        assert len(str(refused.value)) < 250


def test_options_are_numbers_of_any_library() -> None:
    model = Denoiser(PAPER, _bent)

    def run(**options: Any) -> Tensor:
        return sample_ddim(model, _x1(), time_steps(3), disable=True, key=KEY, **options)

    assert torch.equal(run(eta=Fraction(1, 2)), run(eta=0.5)) and torch.equal(
        run(eta=np.int64(1)), run(eta=1.0)
    )
    assert torch.equal(run(nu=np.float32(0.0)), run()) and torch.equal(run(nu=np.array(0)), run())
    for wrong in ("0.5", True, np.bool_(True), 0.5j, 10**400, math.nan, -0.5):
        for name in ("nu", "eta"):
            with pytest.raises(
                (TypeError, ValueError), match=rf"^sample_ddim: expected {name} as a .*number"
            ):
                run(**{name: wrong})
