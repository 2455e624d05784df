# SPDX-License-Identifier: Apache-2.0
"""The published algorithms of the family, written as they are printed, against the samplers here, in float64.

Each has its mistakes as negative tests: what has been seen in other transcriptions must fail.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import softdiff_kernels as sk
from softdiff_kernels import reference
from softdiff_kernels.diffusion import (
    DDIM,
    Ancestral,
    BlurCorruption,
    Corruption,
    LinearCorruption,
    MaskCorruption,
    SpectralCorruption,
    sample_ddim,
    sample_ihdm,
    sample_momentum,
    sample_naive,
    sample_tacos,
)

KEY = sk.NoiseKey(7, stream=100)
SIZE = (6, 8)
F64 = torch.float64


def _model(c: Corruption, function: Callable[..., Tensor]) -> Any:
    def model(x: Tensor, t: Tensor) -> Tensor:
        return function(x, t)

    model.corruption = c  # type: ignore[attr-defined]
    return model


def _bent(x: Tensor, t: Tensor) -> Tensor:
    """A nonlinear estimate that mixes pixels and depends on t."""
    return torch.tanh(1.3 * x.roll(1, dims=3) - 0.4 * x + t.view(-1, 1, 1, 1).to(x.dtype))


def _x1(batch: int = 3) -> Tensor:
    return torch.randn(batch, 2, *SIZE, dtype=F64, generator=torch.Generator().manual_seed(0))


def _dense(x: Tensor, t: Tensor) -> Tensor:
    """A dense C_t: a random matrix over all pixels of a channel, more and more of it."""
    n = SIZE[0] * SIZE[1]
    matrix = torch.randn(n, n, dtype=F64, generator=torch.Generator().manual_seed(1)) / math.sqrt(n)
    time = t.to(x.dtype).view(-1, 1, 1, 1)
    return (1 - time) * x + time * (x.flatten(2) @ matrix.to(x.dtype).T).view_as(x)


# A corruption, C_t as a function of images and a time, and its noise.
NOISE = (0.01, 0.1, 0.25)
PAPER = BlurCorruption.paper(SIZE)
Given = tuple[Corruption, Callable[[Tensor, float], Tensor], Callable[[float], float]]
WAVES = SpectralCorruption(SIZE, torch.linspace(1, -1, 96, dtype=F64).view(2, *SIZE), [0.05, 0.1])
CASES: dict[str, Given] = {
    "blur": (PAPER, lambda x, t: reference.blur(x, PAPER.blur_std(t)), PAPER.noise_std),
    "frequencies": (
        WAVES,
        lambda x, t: reference.idct2(WAVES.gain(t) * reference.dct2(x)),
        lambda t: 0.05 + t * 0.05,
    ),
    "pixels": (
        MASK := MaskCorruption(SIZE),
        lambda x, t: MASK.gain(t) * x,
        lambda t: 0.01 * 10 ** min(t / 0.25, 1),
    ),
    "dense": (
        LinearCorruption(_dense, SIZE),
        lambda x, t: _dense(x, torch.full((len(x),), t, dtype=F64)),
        lambda t: 0.01 * 10 ** min(t / 0.25, 1),
    ),
}


def _algorithm_2(case: str, x: Tensor, ts: list[float], wrong: str = "") -> Tensor:
    """Daras et al. 2022, the Momentum Sampler, line by line."""
    c, C, sigma = CASES[case]
    for i, (t, s) in enumerate(itertools.pairwise(ts)):
        x0_hat = _bent(x, torch.full((len(x),), t, dtype=torch.float32))
        y_t = C(x0_hat, t)
        eta = c.white(x, KEY.at(i + 1))
        eps = y_t - x
        sign = -1 if wrong == "sign" else 1
        z = x - sign * (sigma(s) ** 2 - sigma(t) ** 2) / sigma(t) ** 2 * eps
        z = z + math.sqrt(sigma(t) ** 2 - sigma(s) ** 2) * eta
        y_s = C(x0_hat, t if wrong == "no deblurring" else s)
        x = z + (y_s - y_t)
    return x


TIMES = [1.0, 0.6, 0.2, 0.1, 0.03]


@pytest.mark.parametrize("case", CASES)
def test_momentum_is_the_papers_algorithm_2(case: str) -> None:
    # Must hold 1: in any basis, and in none. The same algebra in another order: about 1e-15 a step.
    got = sample_momentum(_model(CASES[case][0], _bent), _x1(), TIMES, disable=True, key=KEY)
    torch.testing.assert_close(got, _algorithm_2(case, _x1(), TIMES), rtol=0, atol=1e-12)
    for wrong in ("sign", "no deblurring"):
        assert (got - _algorithm_2(case, _x1(), TIMES, wrong)).abs().max() > 1e-3, wrong


# Blurring Diffusion, appendix A of Hoogeboom & Salimans 2022, with their names.

D_MIN, BLUR_MAX, LOGSNR = 0.001, 20.0, 10.0


def _frequency_scaling(t: float, size: tuple[int, int], wrong: str = "") -> Tensor:
    dissipation_time = (BLUR_MAX * math.sin(t * math.pi / 2) ** 2) ** 2 / 2
    divisors = [n - 1 for n in size] if wrong == "freqs / (n - 1)" else list(size)
    down, across = (math.pi * torch.arange(n, dtype=F64) / by for n, by in zip(size, divisors, strict=True))
    labda = down[:, None] ** 2 + across[None, :] ** 2
    floor = D_MIN / 100 if wrong == "no min_scale" else D_MIN  # 0 would be 0 / 0
    return torch.exp(-labda * dissipation_time) * (1 - D_MIN) + floor


def _alpha_sigma(t: float, size: tuple[int, int], wrong: str = "") -> tuple[Tensor, float]:
    limit_max = math.atan(math.exp(-0.5 * LOGSNR))
    limit_min = math.atan(math.exp(0.5 * LOGSNR)) - limit_max
    logsnr = -2 * math.log(math.tan(limit_min * t + limit_max))
    a, sigma = (math.sqrt(1 / (1 + math.exp(-sign * logsnr))) for sign in (1, -1))
    return a * _frequency_scaling(t, size, wrong), sigma


def _denoise(z_t: Tensor, hat_eps: Tensor, eps: Tensor, t: float, s: float, wrong: str = "") -> Tensor:
    """The pseudo-code of the ancestral step; eps is its noise over the frequencies."""
    delta, size = 1e-8, (z_t.shape[2], z_t.shape[3])
    alpha_s, sigma_s = _alpha_sigma(s, size, wrong)
    alpha_t, sigma_t = _alpha_sigma(t, size, wrong)
    alpha_ts = alpha_t / alpha_s
    alpha_st = alpha_s if wrong == "alpha_s for alpha_st" else 1 / alpha_ts
    sigma2_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    sigma2_denoise = 1 / (
        1 / max(sigma_s**2, delta) + 1 / (sigma_t**2 / alpha_ts**2 - sigma_s**2).clamp(min=delta)
    ).clamp(min=delta)
    coeff_term1 = alpha_ts * sigma2_denoise / (sigma2_ts + delta)
    coeff_term2 = alpha_st * sigma2_denoise / max(sigma_s**2, delta)
    u_t = reference.dct2(z_t)
    mu = coeff_term1 * u_t + coeff_term2 * (u_t - sigma_t * reference.dct2(hat_eps))
    return reference.idct2(mu + sigma2_denoise.sqrt() * eps)


BLURRING = BlurCorruption.blurring_diffusion((16, 16))


def _diffused(t: float) -> tuple[Tensor, Tensor, Tensor]:
    """z_t, an estimate of its noise, and x_0 by that estimate."""
    generator = torch.Generator().manual_seed(2)
    x0, eps, off = torch.randn(3, 2, 2, 16, 16, dtype=F64, generator=generator)
    alpha, sigma = _alpha_sigma(t, (16, 16))
    z_t = reference.idct2(alpha * reference.dct2(x0)) + sigma * eps
    hat_eps = eps + 0.1 * off
    x0_hat = reference.idct2((reference.dct2(z_t) - sigma * reference.dct2(hat_eps)) / alpha)
    return z_t, hat_eps, x0_hat


STEPS = [(0.05, 0.04), (0.2, 0.18), (0.4, 0.3), (0.62, 0.6), (0.8, 0.5)]


def test_blurring_diffusions_coefficients_are_the_published_ones_at_any_t() -> None:
    # 1e-3 of each coefficient, between the nodes of the tables, too.
    between = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=F64).tolist()
    for t in [0.0, 1.0, *between]:
        alpha, sigma = _alpha_sigma(t, (16, 16))
        assert ((BLURRING.gain(t) - alpha) / alpha).abs().max() < 1e-3, t
        assert BLURRING.noise(t).item() == pytest.approx(sigma, rel=1e-3)
    wrong, _ = _alpha_sigma(0.3, (16, 16), "freqs / (n - 1)")
    assert ((BLURRING.gain(0.3) - wrong) / wrong).abs().max() > 0.01


@pytest.mark.parametrize(("t", "s"), STEPS)
def test_ancestral_is_blurring_diffusions_pseudo_code(t: float, s: float) -> None:
    # Must hold 2, to what the pseudo-code's delta and the tables' chords are off.
    z_t, hat_eps, x0_hat = _diffused(t)
    eps = sk.normal(z_t.shape, KEY, dtype=F64)
    got = BLURRING.step(z_t, x0_hat, t, s, *Ancestral()(BLURRING, t, s), key=KEY)
    truth = _denoise(z_t, hat_eps, eps, t, s)
    # x0_hat is up to 1e3 where a frequency is all but lost; its rounding and the tables' are relative to it.
    torch.testing.assert_close(got, truth, rtol=0, atol=2e-4)
    for wrong in ("alpha_s for alpha_st", "freqs / (n - 1)", "no min_scale"):
        # Of a floor the first steps know nothing.
        if wrong != "no min_scale" or t > 0.3:
            assert (got - _denoise(z_t, hat_eps, eps, t, s, wrong)).abs().max() > 2e-3, wrong


@pytest.mark.parametrize(("t", "s"), STEPS)
def test_ddim_is_blurring_diffusions_ddim(t: float, s: float) -> None:
    # z_s = (alpha_s / alpha_t) (z_t - sigma_t eps_hat) + sigma_s eps_hat, here by the fused path on z / a.
    z_t, hat_eps, _ = _diffused(t)
    alpha_t, alpha_s = BLURRING.gain(t), BLURRING.gain(s)
    sigma_t, sigma_s = BLURRING.noise(t), BLURRING.noise(s)
    signal = reference.dct2(z_t - sigma_t * hat_eps)
    x0_hat = reference.idct2(signal / alpha_t)
    truth = reference.idct2(alpha_s / alpha_t * signal) + sigma_s * hat_eps
    got = sample_ddim(_model(BLURRING, lambda x, time: x0_hat), z_t, [t, s], disable=True)
    torch.testing.assert_close(got, truth, rtol=0, atol=1e-12 * x0_hat.abs().max().item())
    stays = sample_tacos(_model(BLURRING, lambda x, time: x0_hat), z_t, [t, s], disable=True)
    assert (stays - truth).abs().max() > 1e-3


def test_ihdms_sampler_is_ihdm() -> None:
    # Must hold 3. Rissanen et al. 2022, Algorithm 2: u <- u + f(u, k) + delta n, and the last mean is the
    # image. With the network that knows x_0, u + f(u, k) is the blur of x_0 at the next level.
    c, delta, ts = BlurCorruption.ihdm((16, 16)), 0.025, [1.0, 0.9, 0.8, 0.0]
    x0 = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=F64) * 2 - 1
    model = _model(c, lambda x, t: x0)
    u = start = c.corrupt(x0, 1.0, key=KEY)
    for i, s in enumerate(ts[1:-1]):
        f = reference.blur(x0, c.blur_std(s)) - u
        u = u + f + delta * sk.normal(u.shape, KEY.at(i + 1), dtype=F64)
    got = sample_ihdm(model, start, ts[:-1], disable=True, key=KEY, delta=delta)
    torch.testing.assert_close(got, u, rtol=0, atol=1e-12)
    assert (got - sample_ihdm(model, start, ts[:-1], disable=True, key=KEY, delta=0.01)).abs().max() > 0.01
    assert torch.equal(sample_ihdm(model, start, ts, disable=True, key=KEY), x0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_ihdms_step_is_naives_with_its_own_noise_bit_for_bit(dtype: torch.dtype) -> None:
    # Must hold 3. The process of naive has delta for its noise; both are one call of the op.
    c, x = BlurCorruption.ihdm((16, 16), noise_std=0.02), torch.rand(3, 1, 16, 16, dtype=dtype)
    own = BlurCorruption.ihdm((16, 16), noise_std=0.025)
    ts = [1.0, 0.9, 0.8]
    wanted = sample_naive(_model(own, _bent), x, ts, disable=True, key=KEY)
    for options in ({"delta": 0.025}, {}):  # by default 1.25 times the noise
        assert torch.equal(sample_ihdm(_model(c, _bent), x, ts, disable=True, key=KEY, **options), wanted)
    x0_hat = _bent(x, torch.full((3,), 1.0))
    levels = {"blur_std_t": c.blur_std(1.0), "blur_std_s": c.blur_std(0.9)}
    op = sk.reverse_step(x, x0_hat, **levels, a=0.0, b=0.025, key=KEY.at(1))
    got = sample_ihdm(_model(c, _bent), x, ts[:2], disable=True, key=KEY, delta=0.025)
    assert torch.equal(got, op)


CONSTANT: dict[str, tuple[Corruption, Callable[[Tensor, float], Tensor]]] = {
    "blur": (
        HELD := BlurCorruption.from_tables(SIZE, [0, 1], [0.01, 3], [0.1, 0.1]),
        lambda x, t: reference.blur(x, HELD.blur_std(t)),
    ),
    "frequencies": (
        SpectralCorruption(SIZE, torch.linspace(1, -1, 96, dtype=F64).view(2, *SIZE), [0.1, 0.1]),
        CASES["frequencies"][1],
    ),
    "pixels": (MaskCorruption(SIZE, noise_std_min=0.1), CASES["pixels"][1]),
    "dense": (LinearCorruption(_dense, SIZE, noise_std_min=0.1), CASES["dense"][1]),
}


@pytest.mark.parametrize("case", CONSTANT)
def test_tacos_is_cold_diffusions_algorithm_2_and_momentum_at_constant_noise(case: str) -> None:
    # Must hold 4. Bansal et al. 2022: x_s = x_t - D(x0_hat, t) + D(x0_hat, s).
    c, D = CONSTANT[case]
    x = _x1()
    for t, s in itertools.pairwise(TIMES):
        x0_hat = _bent(x, torch.full((3,), t, dtype=torch.float32))
        x = x - D(x0_hat, t) + D(x0_hat, s)
    model = _model(c, _bent)
    torch.testing.assert_close(sample_tacos(model, _x1(), TIMES, disable=True), x, rtol=0, atol=1e-12)
    for variance in ("large", "small"):
        momentum = sample_momentum(model, _x1(), TIMES, disable=True, key=KEY, variance=variance)
        torch.testing.assert_close(momentum, x, rtol=0, atol=1e-12)
    if case in CASES:  # with noise that changes it is another
        other = sample_momentum(_model(CASES[case][0], _bent), _x1(), TIMES, disable=True, key=KEY)
        assert (other - x).abs().max() > 1e-3


def test_equal_snr_keeps_the_ratio_and_ddim_its_marginal() -> None:
    # Must hold 5: SNR_k = m^2 C_k / s_k^2 is e^logsnr at every k; with the true x_0, DDIM stays on
    # x_t = m_t x_0 + s_t n for one n.
    variance = torch.rand(2, *SIZE, dtype=F64, generator=torch.Generator().manual_seed(0)) + 0.01
    c = SpectralCorruption.equal_snr(variance)
    for t in (0.0, 0.3, 0.77, 1.0):
        snr = c.gain(t) ** 2 * variance / c.noise(t) ** 2
        assert (snr / snr.max() - 1).abs().max() < 1e-12
    assert snr.log().mean().item() == pytest.approx(-10.0)
    assert (c.gain(0.0) ** 2 * variance / c.noise(0.0) ** 2).log().mean().item() == pytest.approx(10.0)
    x0, n = torch.randn(2, 3, 2, *SIZE, dtype=F64, generator=torch.Generator().manual_seed(1))
    model = _model(c, lambda x, t: x0)
    for stop in (0.6, 0.11, 0.02):
        ts = torch.linspace(1, stop, 6, dtype=F64)
        got = sample_ddim(model, c.corrupt(x0, 1.0, noise=n), ts, disable=True)
        torch.testing.assert_close(got, c.corrupt(x0, stop, noise=n), rtol=0, atol=1e-12)
        white = BlurCorruption.from_tables(SIZE, [0, 1], [0, 0], [0.1, 1.0])
        assert (got - white.corrupt(x0, stop, noise=n)).abs().max() > 0.01
    # The same keeps the variance with fresh noise: A^2 s_t^2 + B^2 = s_s^2, mask by mask.
    for eta in (0.0, 0.4, 1.0):
        A, B = DDIM(eta=eta)(c, 0.7, 0.5)
        torch.testing.assert_close(A**2 * c.noise(0.7) ** 2 + B**2, c.noise(0.5) ** 2, rtol=1e-12, atol=0)
