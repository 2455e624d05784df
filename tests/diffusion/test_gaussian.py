# SPDX-License-Identifier: Apache-2.0
"""Gaussian images with the best denoiser: what every rule makes of the data's variances, and of which order.

With variances P over the basis the best denoiser is Wiener's, x0_hat = w_t x_t, w_t = m_t P / (m_t^2 P +
s_t^2), element by element. A step is then a number for each element, x_s = k x_t + B n with
k = A + (m_s - A m_t) w_t, and variances go as v_s = k^2 v_t + B^2. True are v_t = m_t^2 P + s_t^2. This sees
errors of temperature, which a denoiser that knows x_0 cannot show. Everything is in float64.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import softdiff_kernels as sk
from softdiff_kernels import spectrum
from softdiff_kernels.diffusion import (
    DDIM,
    IHDM,
    SAMPLERS,
    Ancestral,
    BlurCorruption,
    Corruption,
    Langevin,
    MaskCorruption,
    Momentum,
    Naive,
    SpectralCorruption,
    TACoS,
    sample,
    sample_heun,
    sample_multistep,
)

F64 = torch.float64
SIZE = (4, 4)
P = 0.3 / (0.3 + spectrum.eigenvalues_2d(*SIZE))[None, None]
PROCESSES: dict[str, Corruption] = {
    "blur": BlurCorruption.from_tables(SIZE, [0, 0.25, 1], [0.05, 0.3, 1.5], [0.02, 0.1, 0.1]),
    "constant": BlurCorruption.from_tables(SIZE, [0, 1], [0.05, 1.5], [0.1, 0.1]),
    "blurring": BlurCorruption.blurring_diffusion(SIZE, blur_std_max=2.0),
    "equal-snr": SpectralCorruption.equal_snr(P[0] * torch.linspace(0.5, 2, 16, dtype=F64).view(SIZE)),
    "mask": MaskCorruption(SIZE, softness=0.5),
}
RULES: dict[str, Any] = {
    "momentum": Momentum(),
    "small": Momentum("small"),
    "ddim": DDIM(),
    "eta": DDIM(eta=0.5),
    "tacos": TACoS(),
    "ancestral": Ancestral(),
    "langevin": Langevin(),
    "naive": Naive(),
    "ihdm": IHDM(),
}


def _true(c: Corruption, t: float) -> Tensor:
    return c.gain(t) ** 2 * P + c.noise(t) ** 2


def _wiener(c: Corruption, t: float) -> Tensor:
    return c.gain(t) * P / _true(c, t)


def _factors(c: Corruption, rule: Any, t: float, s: float) -> tuple[Tensor, Tensor]:
    A, B = rule(c, t, s)
    k = A + (c.gain(s) - A * c.gain(t)) * _wiener(c, t)
    return k, torch.as_tensor(B, dtype=F64)


def _variances(c: Corruption, rule: Any, ts: Tensor) -> Tensor:
    v = _true(c, float(ts[0]))
    for t, s in itertools.pairwise(ts.tolist()):
        k, B = _factors(c, rule, t, s)
        v = k**2 * v + B**2
    return v


def _times(steps: int, stop: float = 0.05) -> Tensor:
    return torch.linspace(1.0, stop, steps + 1, dtype=F64)


def _off(c: Corruption, rule: Any, steps: int) -> float:
    """The largest relative error of a variance at the end."""
    return float((_variances(c, rule, _times(steps)) / _true(c, 0.05) - 1).abs().max())


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("rule", ["momentum", "small", "ddim", "eta", "ancestral"])
def test_a_rule_reaches_the_datas_variances_as_its_steps_grow(rule: str, process: str) -> None:
    # Must hold 7: the error falls as 1 / steps, so to a quarter at four times the steps.
    few, many = (_off(PROCESSES[process], RULES[rule], steps) for steps in (150, 600))
    assert many < 0.04, many
    assert many < 0.35 * few or many < 1e-9, (few, many)


@pytest.mark.parametrize("process", PROCESSES)
def test_naive_and_ihdm_do_not(process: str) -> None:
    # The same measure must fail for steps of the wrong temperature, which is why it is one.
    for rule in ("naive", "ihdm"):
        few, many = (_off(PROCESSES[process], RULES[rule], steps) for steps in (150, 600))
        assert many > 0.1 and many > 0.8 * few, (rule, few, many)


def test_tacos_does_where_the_noise_is_constant() -> None:
    # Nothing denoises it where the noise falls.
    few, many = (_off(PROCESSES["constant"], TACoS(), steps) for steps in (150, 600))
    assert many < 0.04 and many < 0.35 * few
    assert _off(PROCESSES["blur"], TACoS(), 600) > 0.5


def test_at_constant_noise_naive_and_langevin_reach_their_own_fixed_points() -> None:
    # With S = m^2 P / s^2, naive's v = (m w)^2 v + s^2 is at s^2 (1 + S)^2 / (1 + 2 S). Langevin's, with
    # k = (1 + m w) / 2, is at 4 s^2 (1 + S)^2 / (3 + 4 S): the truth s^2 (1 + S), and the bias of its step.
    c, stop = PROCESSES["constant"], 0.05
    square = c.noise(stop) ** 2
    S = c.gain(stop) ** 2 * P / square
    naive = square * (1 + S) ** 2 / (1 + 2 * S)
    langevin = 4 * square * (1 + S) ** 2 / (3 + 4 * S)
    errors = {}
    for steps in (1000, 4000):
        for rule, fixed in (("naive", naive), ("langevin", langevin)):
            v = _variances(c, RULES[rule], _times(steps, stop))
            errors[rule, steps] = float((v / fixed - 1).abs().max())
    # The process moves under them, by less at smaller steps.
    for rule in ("naive", "langevin"):
        assert errors[rule, 4000] < 0.08 and errors[rule, 4000] < 0.35 * errors[rule, 1000], errors
    bias = langevin / _true(c, stop)
    assert bias.min() >= 1.0 and bias.max() <= 4 / 3
    # The wrong temperature loses half of the variance of what the noise barely hides.
    assert (naive / _true(c, stop)).min() < 0.55


def test_langevins_temperature_is_1_and_naives_a_half() -> None:
    # x_s = x_t + (1 - a) s^2 score + b n, so T = b^2 / (2 (1 - a) s^2).
    c = PROCESSES["constant"]
    for rule, temperature in ((Langevin(), 1.0), (Naive(), 0.5), (IHDM(), 1.25**2 / 2)):
        A, B = rule(c, 0.5, 0.49)
        got = B**2 / (2 * (1 - A) * 0.1**2)
        assert got == pytest.approx(temperature)
    A, B = DDIM(0.05)(c, 0.5, 0.49)
    got = B**2 / (2 * (1 - A) * 0.1**2)
    assert got == pytest.approx((1 + A) / 2)


class Wiener:
    """The best denoiser of these images, as a model."""

    def __init__(self, corruption: Corruption) -> None:
        self.corruption = corruption

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        c, mask = self.corruption, _wiener(self.corruption, float(t[0].double()))
        return c.from_basis(mask.to(x.dtype) * c.to_basis(x))


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", [n for n in SAMPLERS if n in RULES])
def test_the_samplers_make_what_their_rules_say(name: str, process: str) -> None:
    # The variances of 4000 samples against the recursion above, element by element.
    c, count = PROCESSES[process], 4000
    # Times that float32, in which the model gets them, holds.
    ts = torch.tensor([1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0625], dtype=F64)
    x0 = c.from_basis(P.sqrt() * sk.normal((count, 1, *SIZE), sk.NoiseKey(0), dtype=F64))
    start = c.corrupt(x0, 1.0, key=sk.NoiseKey(1, stream=10**6))
    got = SAMPLERS[name](Wiener(c), start, ts, disable=True, key=sk.NoiseKey(2))
    ratio = c.to_basis(got).var(dim=0)[0] / _variances(c, RULES[name], ts)[0, 0]
    # Five standard errors of a variance over 4000, and of the mean of 16 of them.
    assert (ratio - 1).abs().max() < 5 * math.sqrt(2 / count)
    assert abs(ratio.mean().item() - 1) < 5 * math.sqrt(2 / count / 16)


SMOOTH = BlurCorruption.from_tables(SIZE, [0, 1], [0.3, 2.0], [0.05, 0.5])


def _slopes(
    run: Any, spaced: Any, c: Corruption = SMOOTH, counts: tuple[int, ...] = (64, 128, 256)
) -> list[float]:
    """How much the error falls, in powers of 2, each time that the steps are doubled.

    Truth: the deterministic flow keeps each element's place in its Gaussian, so it multiplies by the root of
    the ratio of the variances.
    """
    start = torch.randn(4, 1, *SIZE, dtype=F64, generator=torch.Generator().manual_seed(0))
    exact = c.to_basis(start) * (_true(c, 0.125) / _true(c, 1.0)).sqrt()
    errors = []
    for steps in counts:
        ts = spaced(torch.linspace(0, 1, steps + 1, dtype=F64))
        errors.append(float((c.to_basis(run(start, ts)) - exact).norm()))
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


class Exact(Wiener):
    """The same, at the times of the sampler in float64, which a model gets in float32."""

    def __init__(self, ts: Tensor, c: Corruption = SMOOTH, ends: int = 1) -> None:
        super().__init__(c)
        # With ends = 2 each step's end is asked for, too.
        self.left = (
            ts.tolist() if ends == 1 else [time for step in itertools.pairwise(ts.tolist()) for time in step]
        )

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return super().__call__(x, torch.tensor([self.left.pop(0)], dtype=F64))


def _alternating(u: Tensor) -> Tensor:
    """Steps of 1/2 and 3/2 of the even ones in turn, for which the weight 3/2 of even steps is wrong."""
    moved = u.clone()
    moved[1::2] -= 0.5 * u[1]
    return 1 - 0.875 * moved


SPACED = {
    "alternating": _alternating,
    "even": lambda u: 1 - 0.875 * u,
    "uneven": lambda u: 1 - 0.875 * (0.5 * u + 0.5 * u**2),
}


@pytest.mark.parametrize("spaced", SPACED)
def test_second_order_is_of_second_order_and_ddim_of_first(spaced: str) -> None:
    # Must hold 8.
    second = _slopes(lambda x, ts: sample_multistep(Exact(ts), x, ts, disable=True), SPACED[spaced])
    first = _slopes(lambda x, ts: sample(Exact(ts), x, ts, DDIM(), disable=True), SPACED[spaced])
    again = _slopes(lambda x, ts: sample(Exact(ts), x, ts, DDIM(), order=2, disable=True), SPACED[spaced])
    assert all(0.9 < slope < 1.15 for slope in first), first
    assert all(1.8 < slope < 2.3 for slope in second), second
    assert again == second


CURVED: dict[str, Corruption] = {
    "blur": SMOOTH,
    "noise": BlurCorruption.noise_only(SIZE, noise_std_min=0.01, noise_std_max=5.0),
    **{name: PROCESSES[name] for name in ("constant", "blurring", "equal-snr")},
}


@pytest.mark.parametrize("process", CURVED)
def test_heun_is_of_second_order_for_every_corruption(process: str) -> None:
    c = CURVED[process]

    def heun(x: Tensor, ts: Tensor) -> Tensor:
        return sample_heun(Exact(ts, c, 2), x, ts, disable=True)

    def end(x: Tensor, ts: Tensor) -> Tensor:
        """Steps from the estimate at their end alone, for the same evaluations: of first order."""
        model = Exact(ts, c, 2)
        for t, s in itertools.pairwise(ts.tolist()):
            A, _ = DDIM()(c, t, s)
            x0_hat = model(c.step(x, model(x, torch.zeros(1)), t, s, A, 0.0), torch.zeros(1))
            x = c.step(x, x0_hat, t, s, A, 0.0)
        return x

    right, wrong = (_slopes(run, _alternating, c, (16, 32, 64)) for run in (heun, end))
    assert all(1.8 < slope < 2.2 for slope in right), right
    assert all(slope < 1.4 for slope in wrong), wrong


def test_a_wrong_extrapolation_is_of_first_order() -> None:
    # 2 x0_hat - x0_hat_before, the estimate at the end of the step and not at its middle.
    def run(x: Tensor, ts: Tensor) -> Tensor:
        model, last = Exact(ts), None
        for t, s in itertools.pairwise(ts.tolist()):
            x0_hat = model(x, torch.zeros(1))
            end = x0_hat if last is None else 2 * x0_hat - last
            A, B = DDIM()(SMOOTH, t, s)
            x, last = SMOOTH.step(x, end, t, s, A, B), x0_hat
        return x

    assert all(slope < 1.3 for slope in _slopes(run, SPACED["even"]))
