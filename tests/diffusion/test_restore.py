# SPDX-License-Identifier: Apache-2.0
"""Restoration: the start in the model's distribution, exact answers for known data, inpainting, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import softdiff_kernels as sk
from softdiff_kernels.diffusion import (
    DDIM,
    SAMPLERS,
    Ancestral,
    BlurCorruption,
    Corruption,
    Momentum,
    Naive,
    PowerSpectrum,
    SoftDenoiser,
    TACoS,
    blur_gain,
    inpaint,
    power_spectrum,
    restore,
    start_time,
    wiener,
)
from softdiff_kernels.diffusion.restore import ORDERED_RULES, natural_sampler

SIZE = (6, 8)
KEY = sk.NoiseKey(3, stream=50)
PAPER = BlurCorruption.paper(SIZE, blur_std_max=3.0)
CORRUPTIONS = {
    "paper": PAPER,
    "ihdm": BlurCorruption.ihdm(SIZE, noise_std=0.02),
    "noise": BlurCorruption.noise_only(SIZE, noise_std_max=50.0),
    "blurring": BlurCorruption.blurring_diffusion(SIZE, blur_std_max=4.0),
}


class Denoiser:
    """A function of (x, t) with a corruption, as a model."""

    def __init__(self, corruption: Corruption, function: Callable[..., Tensor]) -> None:
        self.corruption, self.function = corruption, function

    def __call__(self, x: Tensor, t: Tensor, **kw: Any) -> Tensor:
        return self.function(x, t, **kw)


class Window(Corruption):
    """Masks that close from the right: at t the columns from W (1 - t) on are gone, with a soft edge."""

    basis = "pixels"

    def __init__(self, image_size: tuple[int, int], noise_std: float = 0.05) -> None:
        self.image_size, self.noise_std = image_size, noise_std

    def gain(self, t: float | Tensor) -> Tensor:
        times = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1)
        width = self.image_size[1]
        left = width * (1 - times) - torch.arange(width)
        return left.clamp(0, 1).expand(-1, 1, *self.image_size)

    def noise(self, t: float | Tensor) -> Tensor:
        return torch.full((torch.as_tensor(t).numel(), 1, 1, 1), self.noise_std, dtype=torch.float64)

    def config(self) -> dict[str, Any]:
        return {"image_size": list(self.image_size), "noise_std": self.noise_std}


WINDOW = Window(SIZE)
POWER = (4.0 / (1 + torch.arange(6.0)[:, None] ** 2 + torch.arange(8.0) ** 2)).double()[None]
"""Variances of independent Gaussian DCT coefficients of mean 0, [1, H, W]."""


def gaussian(corruption: Corruption) -> Denoiser:
    """E[x_0 | x_t] of the Gaussian data: in each frequency m P / (m^2 P + s^2) x_t."""

    def estimate(x: Tensor, t: Tensor) -> Tensor:
        gain, noise = corruption.gain(t.double()), corruption.noise(t.double())
        return sk.idct2(sk.dct2(x) * gain * POWER / (gain**2 * POWER + noise**2))

    return Denoiser(corruption, estimate)


def data(batch: int = 3, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, channels, *SIZE, dtype=torch.float64, generator=generator)
    return sk.idct2(z * POWER.sqrt())


def starts(model: Any, y: Tensor, gain: Any, noise_std: float, **options: Any) -> list[dict[str, Any]]:
    """What the model got, at each step."""
    seen: list[dict[str, Any]] = []
    restore(model, y, gain, noise_std, key=KEY, callback=lambda d: seen.append(dict(d)), **options)
    return seen


@pytest.mark.parametrize("noise_std", [0.005, 0.02, 0.09])
@pytest.mark.parametrize("name", ["paper", "blurring"])
def test_the_start_has_the_models_distribution(name: str, noise_std: float) -> None:
    # x_t is affine in y and in the fresh noise n, so its distribution is read off: y = V(g u) must give
    # m_t u, and what y's noise (of noise_std) and the fresh noise add up to must have the deviation s_t.
    corruption, gain = CORRUPTIONS[name], blur_gain(SIZE, 0.8)
    u = torch.randn(1, 1, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = Denoiser(corruption, lambda x, t: x)
    clean, empty = (starts(model, sk.idct2(gain * v), gain, noise_std, steps=1)[0] for v in (u, 0 * u))
    t = clean["t"]
    m, s = corruption.gain(t), corruption.noise(t)
    known = m * noise_std <= gain * s * (1 + 1e-9)
    of_u = sk.dct2(clean["x"] - empty["x"]) / u
    assert torch.allclose(of_u[known[:1]], m[known], atol=1e-9)
    assert bool((m[~known] <= 0.1 * s.max()).all())  # what the model takes for noise
    fresh = sk.dct2(empty["x"]) / sk.normal(u.shape, KEY.at(0), dtype=torch.float64)
    total = fresh**2 + (of_u / gain * noise_std) ** 2
    assert torch.allclose(total, s**2 + 0 * total, rtol=1e-6)
    # A start without the added noise is noticed.
    assert not torch.allclose(total - fresh**2, s**2 + 0 * total, rtol=1e-2)


def test_start_time_is_that_of_the_same_blur_at_the_same_noise() -> None:
    corruption = CORRUPTIONS["ihdm"]
    t = start_time(corruption, blur_gain(SIZE, 1.7), 0.02)
    assert corruption.blur_std(t) == pytest.approx(1.7, abs=1e-5)


def test_start_time_is_the_first_at_which_the_model_knows_no_more() -> None:
    gain = blur_gain(SIZE, 0.5)

    def knows_more(t: float, noise_std: float) -> bool:
        ratio = PAPER.gain(t) * noise_std - gain * PAPER.noise(t)
        return bool((ratio > 1e-8).any())

    times = [start_time(PAPER, gain, noise_std) for noise_std in (0.02, 0.05, 0.1)]
    # More noise in the observation needs a later start; each is the first that will do.
    assert times == sorted(times) and times[0] < times[-1]
    for t, noise_std in zip(times, (0.02, 0.05, 0.1), strict=True):
        assert not knows_more(t, noise_std) and knows_more(t - 1e-3, noise_std)
    assert PAPER.noise_std(times[1]) >= 0.05 - 1e-6


def test_a_state_of_the_process_itself_starts_at_its_time() -> None:
    # The gain and noise of any t are an observation that the process knows exactly.
    for corruption in (PAPER, CORRUPTIONS["blurring"], WINDOW):
        for t in (0.13, 0.5, 0.875):
            found = start_time(corruption, corruption.gain(t), corruption.noise(t).item())
            assert found == pytest.approx(t, abs=2e-3)
            assert torch.allclose(corruption.gain(found), corruption.gain(t), atol=1e-3)


@pytest.mark.parametrize(("blur_std", "noise_std"), [(4.0, 0.02), (1.0, 0.12)])
def test_what_the_process_never_loses_is_refused(blur_std: float, noise_std: float) -> None:
    with pytest.raises(ValueError, match="lost more"):
        start_time(PAPER, blur_gain(SIZE, blur_std), noise_std)


@pytest.mark.parametrize("rule", [DDIM(), Momentum("small"), Ancestral()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_every_state_has_the_models_distribution_if_x0_is_known(name: str, rule: Any) -> None:
    # With the true x_0 for x0_hat, x_t - m_t x_0 must be noise of deviation s_t at every step, whatever y has
    # to say in it: 400 images of 48 coefficients have the variance within 5 sqrt(2 / 400) = 0.36 of each.
    corruption, gain, noise_std = CORRUPTIONS[name], blur_gain(SIZE, 0.7), 0.015
    if name in ("ihdm", "noise") and not isinstance(rule, DDIM):
        return
    x0 = data(400)
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    y = sk.idct2(gain * sk.dct2(x0)) + noise_std * noise
    model = Denoiser(corruption, lambda x, t: x0)
    steps = starts(model, y, gain, noise_std, steps=5, rule=rule)
    off = []
    for step in steps:
        m, s = corruption.gain(step["t"]), corruption.noise(step["t"])
        left = sk.dct2(step["x"]) - m * sk.dct2(x0)
        known = (m <= 0.1 * s) | (m * noise_std <= gain * s * (1 + 1e-9)) if step["i"] == 0 else m > 0
        ratio = (left / s).square().mean(dim=0)[known[0]]
        off.append((ratio - 1).abs().max().item())
    assert max(off) < 0.4, off
    # Noise of a wrong size is noticed: the same y under a claim of half its noise.
    wrong = starts(model, y + 3 * noise_std * noise, gain, noise_std, steps=5, rule=rule)
    end = wrong[-1]
    left = sk.dct2(end["x"]) - corruption.gain(end["t"]) * sk.dct2(x0)
    assert (left / corruption.noise(end["t"])).square().mean(dim=0).sub(1).abs().max() > 0.4


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("rule", [DDIM(), TACoS(), Momentum(), Naive(), Ancestral()], ids=repr)
def test_a_network_that_knows_the_image_returns_it(rule: Any, project: bool) -> None:
    x0 = data()
    y = sk.corrupt(x0, 1.0, 0.02, key=sk.NoiseKey(1))
    model = Denoiser(PAPER, lambda x, t: x0)
    got = restore(model, y, blur_gain(SIZE, 1.0), 0.02, rule=rule, steps=4, project=project, key=KEY)
    assert torch.allclose(got, x0, atol=1e-12)


@pytest.mark.parametrize(("blur_std", "noise_std"), [(1.0, 0.02), (0.0, 0.05), (2.0, 0.1)])
def test_one_step_is_wieners_filter_for_gaussian_data(blur_std: float, noise_std: float) -> None:
    # With the Wiener denoiser, and y in the place of the noisier x_t, the estimate is the mean given y.
    gain, x0 = blur_gain(SIZE, blur_std), data()
    y = sk.corrupt(x0, blur_std, noise_std, key=sk.NoiseKey(1))
    spectrum = PowerSpectrum(torch.zeros_like(POWER), POWER, 1)
    best = wiener(y, gain, noise_std, spectrum)
    model = gaussian(PAPER)
    got = restore(model, y, gain, noise_std, steps=1, power=POWER, key=KEY)
    # t is float32 for the network: 1e-7 of the gain.
    assert torch.allclose(got, best, atol=1e-5)
    if noise_std < 0.1:  # the start has added noise, so without the correction the estimate differs
        without = restore(model, y, gain, noise_std, steps=1, key=KEY)
        assert not torch.allclose(without, best, atol=1e-3)


def transfer(model: Any, gain: Tensor, noise_std: float, **options: Any) -> tuple[Tensor, Tensor]:
    """(the factor of y's coefficients in the result, what the fresh noise leaves in it), each [1, 1, H, W]:
    for Gaussian data a restoration is affine and diagonal."""
    ones = torch.ones(1, 1, *SIZE, dtype=torch.float64)
    of_y, none = (restore(model, sk.idct2(v), gain, noise_std, key=KEY, **options) for v in (ones, 0 * ones))
    return sk.dct2(of_y - none), sk.dct2(none)


def test_many_steps_without_noise_map_the_observation_to_the_data() -> None:
    # The flow of DDIM without error scales a coefficient of variance g^2 P + sigma^2 to one of variance P:
    # by f = sqrt(P / (g^2 P + sigma^2)), the error being 2 P (1 - f g), between Wiener's and twice that.
    gain, noise_std = blur_gain(SIZE, 0.6), 0.03
    exact = (POWER / (gain**2 * POWER + noise_std**2)).sqrt()
    errors = []
    for steps in (50, 200):
        factor, fresh = transfer(gaussian(PAPER), gain, noise_std, steps=steps)
        errors.append(max((factor / exact - 1).abs().max().item(), (fresh / POWER.sqrt()).abs().max().item()))
    assert errors[-1] < 0.01 and errors[-1] < 0.4 * errors[0], errors
    # Not so without the projection: the noise that the start adds stays, and the map is that of s_t.
    factor, fresh = transfer(gaussian(PAPER), gain, noise_std, steps=50, project=False)
    assert (factor / exact - 1).abs().max() > 0.05
    assert (fresh / POWER.sqrt()).abs().max() > 0.3


def test_projection_lowers_the_error_of_gaussian_data() -> None:
    gain, noise_std = blur_gain(SIZE, 0.6), 0.01

    def error(**options: Any) -> float:
        """E |result - x_0|^2 over an image, of 1000 images."""
        x0 = data(1000)
        y = sk.corrupt(x0, 0.6, noise_std, key=sk.NoiseKey(2))
        got = restore(gaussian(PAPER), y, gain, noise_std, steps=20, key=KEY, **options)
        return float((got - x0).square().sum(dim=(1, 2, 3)).mean())

    least = float((POWER * noise_std**2 / (gain**2 * POWER + noise_std**2)).sum())
    projected, plain = error(), error(project=False)
    # No restoration is under Wiener's error; one made by the data's flow is at most at twice it.
    assert 0.95 * least < projected < 2.1 * least < plain


def test_noise_in_each_step_samples_the_posterior() -> None:
    # The ancestral rule draws x_0 given y: for Gaussian data a draw has Wiener's estimate as its mean and
    # Wiener's error, P sigma^2 / (g^2 P + sigma^2), as its variance. Of 1000 draws, 5 deviations of the mean
    # are 5 / sqrt(1000) = 0.16 deviations of a draw, and of the variance 5 sqrt(2 / 1000) = 0.22 of it.
    gain, noise_std = blur_gain(SIZE, 0.6), 0.03
    y = sk.idct2(torch.ones(1000, 1, *SIZE, dtype=torch.float64))
    got = sk.dct2(restore(gaussian(PAPER), y, gain, noise_std, rule=Ancestral(), steps=200, key=KEY))
    exact = (POWER * noise_std**2 / (gain**2 * POWER + noise_std**2))[0]
    best = (gain * POWER / (gain**2 * POWER + noise_std**2))[0]
    # Besides, the steps' own error (1 %), and what the last step drops at t = 0: under 0.01^2.
    assert bool(((got.mean(dim=0) - best).abs() < 0.16 * exact.sqrt() + 0.01 * best).all())
    assert bool(((got.var(dim=0) - exact).abs() < 0.25 * exact + 2e-4).all())


def test_second_order_needs_fewer_steps() -> None:
    gain, noise_std = blur_gain(SIZE, 1.0), 0.02
    model = gaussian(CORRUPTIONS["ihdm"])  # whose noise is that of y, so that the flow is all there is
    exact = transfer(model, gain, noise_std, steps=400, order=2)[0]
    first, second = (
        (transfer(model, gain, noise_std, steps=80, order=order)[0] / exact - 1).abs().max()
        for order in (1, 2)
    )
    assert second < 0.5 * first


def test_an_image_is_the_same_in_any_batch() -> None:
    y = sk.corrupt(data(4), 1.0, 0.02, key=sk.NoiseKey(1))
    model, gain = gaussian(PAPER), blur_gain(SIZE, 1.0)
    for options in ({}, {"project": False}, {"rule": Momentum()}):
        whole = restore(model, y, gain, 0.02, key=KEY, **options)
        third = restore(model, y[2:3], gain, 0.02, key=sk.NoiseKey(3, stream=52), **options)
        assert torch.equal(whole[2:3], third)
        assert not torch.equal(whole[1:2], third)


def test_dtypes_and_bytes() -> None:
    x0 = data(2, 3)
    bytes_ = ((x0.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    denoiser = SoftDenoiser(torch.nn.Conv2d(3, 3, 1), PAPER)
    denoiser.inner_model.forward = lambda x, t: torch.zeros_like(x)  # type: ignore[assignment, method-assign]
    gain = blur_gain(SIZE, 1.0)
    exact = restore(denoiser, bytes_.double() / 127.5 - 1, gain, 0.02, key=KEY)
    assert exact.dtype == torch.float64
    got = restore(denoiser, bytes_, gain, 0.02, key=KEY)
    assert got.dtype == torch.float32 and torch.allclose(got.double(), exact, atol=1e-4)
    half = restore(denoiser, (bytes_ / 127.5 - 1).to(torch.bfloat16), gain, 0.02, key=KEY)
    assert half.dtype == torch.bfloat16


def test_inpainting_keeps_what_is_known_and_starts_where_all_else_is_hidden() -> None:
    x0 = torch.rand(3, 2, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known = (torch.arange(8) < 5).expand(1, 1, *SIZE)
    y = torch.where(known, x0, torch.nan)
    times: list[float] = []
    model = Denoiser(WINDOW, lambda x, t: torch.tanh(x.roll(1, dims=3)))
    got = inpaint(model, y, known, steps=6, key=KEY, callback=lambda d: times.append(d["t"]))
    assert times[0] == pytest.approx(3 / 8, abs=1e-6)  # the mask has closed over three of eight columns
    assert torch.equal(got[..., :5], x0[..., :5])
    assert bool(torch.isfinite(got).all()) and not torch.equal(got[..., 5:], x0[..., 5:])
    # With a network that knows the image, all of it comes back.
    oracle = Denoiser(WINDOW, lambda x, t: x0)
    assert torch.equal(inpaint(oracle, y, known, key=KEY), x0)
    # Noise of the known pixels stays of its size (0.02; three times that here at most).
    noisy = inpaint(oracle, y + 0.02, known, 0.02, key=KEY)
    assert torch.equal(noisy[..., 5:], x0[..., 5:]) and (noisy - x0).abs().max() < 0.06


def test_inpainting_follows_the_mask_of_each_image() -> None:
    x0 = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known = torch.stack([torch.arange(8) < n for n in (7, 3)])[:, None, None].expand(2, 1, *SIZE)
    model = Denoiser(WINDOW, lambda x, t: torch.zeros_like(x))
    got = inpaint(model, x0, known, key=KEY)
    assert torch.equal(got[known], x0[known])
    assert float(got[~known].abs().max()) == 0.0


def test_wiener_is_the_best_factor() -> None:
    x0, gain = data(5) + 0.3, blur_gain(SIZE, 1.0)
    y = sk.corrupt(x0, 1.0, 0.1, key=sk.NoiseKey(0))
    spectrum = power_spectrum([x0.float()])
    got = wiener(y, gain, 0.1, spectrum)
    # The formula, written out as regression of x_0 on y with the mean taken off.
    u, mean = sk.dct2(y), spectrum.mean
    factor = gain * spectrum.variance / (gain**2 * spectrum.variance + 0.01)
    assert torch.allclose(sk.dct2(got), mean + factor * (u - gain * mean), atol=1e-12)
    assert (got - x0).square().mean() < (y - x0).square().mean()
    # A coefficient that is gone, without noise, is the mean's and not 0 / 0.
    gone = torch.zeros(SIZE, dtype=torch.float64)
    assert torch.allclose(sk.dct2(wiener(y, gone, 0.0, spectrum))[0], mean, atol=1e-12)


def test_every_sampler_has_its_rule() -> None:
    assert set(ORDERED_RULES) == set(SAMPLERS) - {"heun"}  # two evaluations a step
    natural = {name: natural_sampler(corruption) for name, corruption in CORRUPTIONS.items()}
    assert natural == {"paper": "ddim", "ihdm": "ddim", "noise": "ddim", "blurring": "ancestral"}
    y, gain = sk.corrupt(data(2), 1.0, 0.02, key=sk.NoiseKey(1)), blur_gain(SIZE, 1.0)
    for name, corruption in CORRUPTIONS.items():
        rule, _ = ORDERED_RULES[natural[name]]
        got = [restore(gaussian(corruption), y, gain, 0.02, rule=r, key=KEY) for r in (None, rule)]
        assert torch.equal(*got)


def test_refusals() -> None:
    y, gain, model = data(2), blur_gain(SIZE, 1.0), gaussian(PAPER)
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (TypeError, r"Corruption as its \.corruption", lambda: restore(len, y, gain, 0.02)),
        (ValueError, "images of 6 x 8", lambda: restore(model, y[..., 1:], gain, 0.02)),
        (ValueError, "broadcasts to", lambda: restore(model, y, gain[..., 1:], 0.02)),
        (ValueError, "broadcasts to", lambda: restore(model, y, gain.expand(3, 1, 6, 8), 0.02)),
        (ValueError, "at least 0", lambda: restore(model, y, -gain, 0.02)),
        (ValueError, "at least 0", lambda: restore(model, y, gain * math.nan, 0.02)),
        (ValueError, "noise_std", lambda: restore(model, y, gain, -0.1)),
        (ValueError, "noise_std over 0", lambda: restore(model, y, blur_gain(SIZE, 2.0), 0.0)),
        (ValueError, "steps", lambda: restore(model, y, gain, 0.02, steps=0)),
        (ValueError, "falling times", lambda: restore(model, y, gain, 0.02, ts=torch.tensor([0.1, 0.0]))),
        (ValueError, "falling times", lambda: restore(model, y, gain, 0.02, ts=torch.tensor([0.5, 0.9]))),
        (ValueError, "order as 1 or 2", lambda: restore(model, y, gain, 0.02, order=3)),
        (ValueError, "rule without noise", lambda: restore(model, y, gain, 0.02, order=2, rule=Momentum())),
        (ValueError, "over pixels", lambda: inpaint(model, y, y > 0)),
        (TypeError, "bool", lambda: inpaint(gaussian(WINDOW), y, torch.ones(SIZE))),
        (ValueError, "size", lambda: wiener(y, gain, 0.1, power_spectrum([torch.rand(2, 3, 6, 8)]))),
        (ValueError, "blur_std", lambda: blur_gain(SIZE, -1.0)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
