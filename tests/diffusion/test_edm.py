# SPDX-License-Identifier: Apache-2.0
"""EDM (Karras et al. 2022, arXiv 2206.00364) as its paper prints it, in float64: table 1 and algorithm 1.

The transcriptions are of sigma alone; the library's t enters by sigma(t), the noise over the mean.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import softdiff_kernels as sk
from softdiff_kernels.diffusion import (
    BlurCorruption,
    Corruption,
    LinearCorruption,
    MaskCorruption,
    SoftDenoiser,
    SpectralCorruption,
    sample_ddim,
    sample_heun,
    sample_multistep,
    time_steps,
    time_warp,
)
from softdiff_kernels.diffusion.denoiser import preconditioning

F64 = torch.float64
SIZE = (6, 8)
DATA_STD = 0.62  # of MNIST, not the default 0.5
NOISE = BlurCorruption.noise_only(SIZE, noise_std_min=0.01, noise_std_max=20.0)
# Variance preserving: x_t = a_t x_0 + s_t n with a_t^2 + s_t^2 = 1.
PRESERVING = BlurCorruption.blurring_diffusion(SIZE, blur_std_max=0.0)
PROCESSES = {"noise": NOISE, "preserving": PRESERVING}
BLUR = BlurCorruption.paper(SIZE)
TIMES = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=F64)
KEY = sk.NoiseKey(5, stream=10)


def c_skip(sigma: Tensor) -> Tensor:
    return DATA_STD**2 / (sigma**2 + DATA_STD**2)


def c_out(sigma: Tensor) -> Tensor:
    return sigma * DATA_STD / torch.sqrt(DATA_STD**2 + sigma**2)


def c_in(sigma: Tensor) -> Tensor:
    return 1 / torch.sqrt(sigma**2 + DATA_STD**2)


def weight(sigma: Tensor) -> Tensor:
    return (sigma**2 + DATA_STD**2) / (sigma * DATA_STD) ** 2


def _sigma(corruption: BlurCorruption, t: Tensor) -> Tensor:
    return (corruption.noise_std(t) / corruption.mean(t)).view(-1, 1, 1, 1)


class F(nn.Module):
    """A raw network, nonlinear and mixing pixels, within c_in and c_out."""

    def __init__(self, corruption: BlurCorruption) -> None:
        super().__init__()
        self.corruption = corruption
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=F64))

    def raw(self, x: Tensor, t: Tensor) -> Tensor:
        return self.scale * torch.tanh(x.roll(1, dims=3) - 0.4 * x + t.view(-1, 1, 1, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        sigma = _sigma(self.corruption, t)
        return c_out(sigma) * self.raw(c_in(sigma) * x / self.corruption.mean(t).view(-1, 1, 1, 1), t)


def _denoiser(corruption: BlurCorruption, **options: Any) -> SoftDenoiser:
    return SoftDenoiser(F(corruption), corruption, "edm", data_std=DATA_STD, **options)


def _x0(batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 2, *SIZE, dtype=F64, generator=generator) * 2 - 1


@pytest.mark.parametrize("process", PROCESSES)
def test_the_denoiser_is_equation_7(process: str) -> None:
    # D(x; sigma) = c_skip x + c_out F(c_in x), with x = x_t / a_t, theirs. Float64 numbers of up to 20.
    c = PROCESSES[process]
    network, x_t = F(c), c.corrupt(_x0(), TIMES, key=KEY)
    assert isinstance(x_t, Tensor)
    sigma, x = _sigma(c, TIMES), x_t / c.mean(TIMES).view(-1, 1, 1, 1)
    expected = c_skip(sigma) * x + c_out(sigma) * network.raw(c_in(sigma) * x, TIMES)
    torch.testing.assert_close(_denoiser(c)(x_t, TIMES), expected, rtol=1e-12, atol=1e-12)
    # Wrong by as little as the paper's other data_std, it is another one.
    other = SoftDenoiser(network, c, "edm")(x_t, TIMES)
    assert (other - expected).abs().max() > 0.01


@pytest.mark.parametrize("process", PROCESSES)
def test_the_loss_is_equation_8(process: str) -> None:
    # lambda(sigma) ||D(y + n; sigma) - y||^2: the error of F against (y - c_skip (y + n)) / c_out.
    c, y = PROCESSES[process], _x0()
    n = sk.normal(y.shape, KEY, dtype=F64)
    sigma = _sigma(c, TIMES)
    network, x = F(c), y + sigma * n
    error = c_skip(sigma) * x + c_out(sigma) * network.raw(c_in(sigma) * x, TIMES) - y
    expected = (weight(sigma) * error**2).sum(dim=(1, 2, 3))
    of_F = network.raw(c_in(sigma) * x, TIMES) - (y - c_skip(sigma) * x) / c_out(sigma)
    torch.testing.assert_close((of_F**2).sum(dim=(1, 2, 3)), expected, rtol=1e-9, atol=0)
    denoiser = _denoiser(c, weight="edm", loss="plain")
    # At sigma = 0.01 the target is 0.01 of an image that is known to 1e-16.
    torch.testing.assert_close(denoiser.loss(y, TIMES, key=KEY), expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(denoiser.loss(y, TIMES, noise=n), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("prediction", ["residual", "sample", "noise"])
def test_the_weight_is_of_the_images_error_whatever_is_predicted(prediction: str) -> None:
    y, n = _x0(), sk.normal((4, 2, *SIZE), KEY, dtype=F64)
    sigma = _sigma(NOISE, TIMES)
    wrong = 0.25  # of the output
    truth = {"residual": -sigma * n, "sample": y, "noise": n}[prediction]
    model: Any = lambda x, t: truth + wrong  # noqa: E731
    denoiser = SoftDenoiser(model, NOISE, prediction, "edm", "plain", data_std=DATA_STD)
    of_image = -sigma * wrong if prediction == "noise" else torch.full_like(sigma, wrong)
    expected = (weight(sigma) * of_image**2).reshape(-1) * y[0].numel()
    torch.testing.assert_close(denoiser.loss(y, TIMES, noise=n), expected, rtol=1e-10, atol=0)


def test_input_and_target_have_the_variance_1_and_c_skip_is_the_best() -> None:
    # The paper's appendix B.6, in closed form: images of the variance data_std^2, noise of sigma^2.
    sigma = _sigma(NOISE, TIMES)
    made = preconditioning(NOISE, TIMES, DATA_STD)
    torch.testing.assert_close(
        made.c_in**2 * (DATA_STD**2 + sigma**2), torch.ones_like(sigma), rtol=1e-12, atol=0
    )

    def target(skip: Tensor) -> Tensor:
        return (1 - skip) ** 2 * DATA_STD**2 + skip**2 * sigma**2

    # At sigma = 0.01, 1 - c_skip keeps 12 of its digits.
    torch.testing.assert_close(
        target(made.c_skip) / made.c_out**2, torch.ones_like(sigma), rtol=1e-11, atol=0
    )
    for off in (0.99, 1.01):
        assert bool((target(made.c_skip * off) > target(made.c_skip)).all())


def test_what_the_network_sees_of_t_is_linear_in_c_noise() -> None:
    # c_noise = ln(sigma) / 4; the table of sigma is linear between nodes that are 3.2e-4 of it off at most.
    t = torch.linspace(0, 1, 101, dtype=F64)
    c_noise = NOISE.noise_std(t).log() / 4
    linear = c_noise[0] + (c_noise[-1] - c_noise[0]) * t
    torch.testing.assert_close(c_noise, linear, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_a_network_that_gives_the_target_gives_the_image(dtype: torch.dtype) -> None:
    # What the target lacks is what x0_hat adds: of the x_t that the network sees, rounded or not.
    y = ((_x0() + 1) * 127.5).round().to(dtype) if dtype == torch.uint8 else _x0().to(dtype)
    x_t = NOISE.corrupt(y, TIMES.float(), key=KEY)
    assert isinstance(x_t, Tensor)
    clean = y.float() / 127.5 - 1 if dtype == torch.uint8 else y.float()
    skip = c_skip(_sigma(NOISE, TIMES)).float()
    model: Any = lambda x, t: clean - skip * x.float()  # noqa: E731
    denoiser = SoftDenoiser(model, NOISE, "edm", "uniform", data_std=DATA_STD)
    x0_hat = denoiser(x_t, TIMES.float())
    # One rounding of the result's type, and a few of float32.
    torch.testing.assert_close(x0_hat, clean.to(x_t.dtype), rtol=torch.finfo(x_t.dtype).eps, atol=1e-6)
    assert denoiser.loss(y, TIMES.float(), key=KEY).max() < y[0].numel() * (1e-6) ** 2


def test_other_processes_and_bad_deviations_are_refused() -> None:
    coloured = SpectralCorruption.equal_snr(torch.linspace(4.0, 0.1, 48).view(SIZE))
    others: tuple[Corruption, ...] = (
        BLUR,
        BlurCorruption.blurring_diffusion(SIZE),
        MaskCorruption(SIZE),
        LinearCorruption.downsampling(SIZE),
        coloured,
    )
    for corruption in others:
        for options in ({"prediction": "edm", "weight": "uniform"}, {"weight": "edm"}):
            with pytest.raises(ValueError, match=r'expected white noise alone for "edm", such as .*, got a '):
                SoftDenoiser(nn.Identity(), corruption, **options)  # type: ignore[arg-type]
    for wrong in (0.0, -0.5, math.nan, math.inf, "0.5", None):
        with pytest.raises((TypeError, ValueError), match=r"^SoftDenoiser: expected data_std "):
            SoftDenoiser(nn.Identity(), NOISE, "edm", data_std=wrong)  # type: ignore[arg-type]
    silent = BlurCorruption.from_tables(SIZE, [0, 1], [0, 0], [0, 20])
    with pytest.raises(ValueError, match="noise over 0 for the weight"):
        SoftDenoiser(nn.Identity(), silent, "edm", "edm")
    # Where there is no noise, c_skip is 1 and x_t the image.
    clean = SoftDenoiser(lambda x, t: 0 * x, silent, "edm", "uniform")(_x0(), 0.0)  # type: ignore[arg-type]
    assert torch.equal(clean, _x0())


def test_it_compiles_and_is_differentiated() -> None:
    denoiser, y = _denoiser(NOISE, weight="edm", loss="plain"), _x0()
    loss = torch.compile(denoiser.loss, fullgraph=True, backend="aot_eager")
    expected = denoiser.loss(y, TIMES, key=KEY)
    torch.testing.assert_close(loss(y, TIMES, key=KEY), expected, rtol=1e-10, atol=0)
    expected.sum().backward()
    grad = denoiser.inner_model.scale.grad
    assert isinstance(grad, Tensor) and grad.abs() > 0


def test_log_normal_is_the_density_of_ln_sigma_cut_to_the_processes_range() -> None:
    # Rule: u is the probability of the normal ln(sigma), mean -1.2 and deviation 1.2, between its ends.
    wide = BlurCorruption.noise_only(SIZE, noise_std_min=0.002, noise_std_max=80.0)
    for c in (wide, NOISE, PRESERVING):
        u = torch.linspace(0, 1, 1001, dtype=F64)
        probability = torch.special.ndtr(
            (_sigma(c, time_warp("log_normal", c)(u)).log() + 1.2) / 1.2
        ).reshape(-1)
        low, high = probability[0], probability[-1]
        # The warp is linear between 2049 times.
        torch.testing.assert_close((probability - low) / (high - low), u, rtol=0, atol=5e-5)
    # The paper's range cuts off less than 1e-3, so that moments of ln(sigma) are nearly the normal's.
    u = (torch.arange(20000, dtype=F64) + 0.5) / 20000
    drawn = wide.noise_std(time_warp("log_normal", wide)(u)).log()
    assert drawn.mean().item() == pytest.approx(-1.2, abs=5e-3) and drawn.std().item() == pytest.approx(
        1.2, abs=1e-2
    )
    # It is what training draws.
    denoiser = _denoiser(wide, time=time_warp("log_normal", wide))
    t = denoiser.draw_time(torch.zeros(4000, 1, *SIZE), KEY)
    # Five standard errors of the mean of 4000.
    assert wide.noise_std(t).log().mean().item() == pytest.approx(-1.2, abs=5 * 1.2 / math.sqrt(4000))


def test_karras_steps_are_equation_5() -> None:
    # sigma_i = (max^(1/rho) + i / (N - 1) (min^(1/rho) - max^(1/rho)))^rho, i = 0 ... N - 1, of N = 18.
    N, rho = 18, 7
    for least, most in ((0.002, 80.0), (0.01, 20.0)):
        c = BlurCorruption.noise_only(SIZE, noise_std_min=least, noise_std_max=most)
        got = c.noise_std(time_steps(N - 1, "karras", corruption=c))
        i = torch.arange(N, dtype=F64) / (N - 1)
        expected = (most ** (1 / rho) + i * (least ** (1 / rho) - most ** (1 / rho))) ** rho
        # Linear between 2049 times, and tables that are linear between their own nodes.
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)
        assert got[0] == most and got[-1] == least
        assert (
            c.noise_std(time_steps(N - 1)) / expected - 1
        ).abs().max() > 0.5  # even in t is another spacing


@pytest.mark.parametrize("spacing", ["log_normal", "karras"])
def test_spacings_in_the_noise_need_white_noise_that_grows(spacing: str) -> None:
    coloured = SpectralCorruption.equal_snr(torch.linspace(4.0, 0.1, 48).view(SIZE))
    for corruption, sentence in (
        (coloured, "expected white noise .* got the coloured noise of EqualSNR"),
        (BLUR, r"expected noise over mean that grows with t .*, got noise that does not at t = 0\.25"),
        (BlurCorruption.from_tables(SIZE, [0, 0.5, 1], [0, 0, 0], [0.1, 3, 2]), r"does not at t = 0\.5$"),
        (BlurCorruption.ihdm(SIZE), "does not at t = 0$"),
        (None, "expected a corruption for the spacing"),
    ):
        with pytest.raises(ValueError, match=sentence):
            time_steps(5, spacing, corruption=corruption)
    # Without noise at t = 0 both begin there; and blur may come with it.
    silent = BlurCorruption.from_tables(SIZE, [0, 1], [0, 3], [0, 20])
    assert time_steps(5, spacing, corruption=silent)[-1] == 0.0


def algorithm_1(D: Any, x: Tensor, sigmas: list[float]) -> Tensor:
    """The paper's algorithm 1 with S_churn = 0, and s(t) = 1, t = sigma; sigmas end in 0."""
    for t, after in itertools.pairwise(sigmas):
        d = (x - D(x, t)) / t
        ahead = x + (after - t) * d
        if after != 0:
            d_after = (ahead - D(ahead, after)) / after
            ahead = x + (after - t) * (d / 2 + d_after / 2)
        x = ahead
    return x


class Denoiser:
    """D(x / a_t; sigma), nonlinear, for a corruption, and how often it was asked."""

    def __init__(self, corruption: BlurCorruption, ts: Tensor) -> None:
        self.corruption = corruption
        self.times = {float(t.float()): float(t) for t in ts}
        self.asked: list[float] = []

    def D(self, x: Tensor, sigma: float) -> Tensor:
        return torch.tanh((1.3 * x.roll(1, dims=3) - 0.4 * x) / (1 + sigma) + math.log(sigma) / 4)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.times[float(t[0])]  # that of the sampler in float64, which a model gets in float32
        self.asked.append(time)
        return self.D(
            x / self.corruption.mean(time), float(_sigma(self.corruption, torch.tensor(time, dtype=F64)))
        )


@pytest.mark.parametrize("spacing", ["t", "karras"])
@pytest.mark.parametrize("process", PROCESSES)
def test_heun_is_algorithm_1(process: str, spacing: str) -> None:
    # Rule: the same images; our last step, to t = 0, is theirs to sigma = 0. Float64 numbers of up to 20,
    # times the corrections' factors of up to 7.
    c, n = PROCESSES[process], 8
    ts = time_steps(n, spacing, corruption=c)
    model, x = Denoiser(c, ts), _x0() * c.noise_std(1.0)
    got = sample_heun(model, x, ts, disable=True)
    sigmas = [float(s) for s in _sigma(c, ts[:-1])] + [0.0]
    expected = algorithm_1(model.D, x / c.mean(1.0), sigmas)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    # 2 n - 1 evaluations: both ends of each step, but of the last.
    pairs = [pair for pair in itertools.pairwise(ts[:-1].tolist())]
    assert model.asked == [time for pair in pairs for time in pair] + [float(ts[-2])]
    # A chain that ends before is theirs, too, without the step to 0.
    before = sample_heun(model, x, ts[:-1], disable=True) / c.mean(float(ts[-2]))
    torch.testing.assert_close(before, algorithm_1(model.D, x / c.mean(1.0), sigmas[:-1]), rtol=0, atol=1e-11)
    # It is neither Euler's method nor a mean of the estimates.
    for other in (sample_ddim, sample_multistep):
        assert (other(model, x, ts, disable=True) - got).abs().max() > 1e-3


def test_heun_does_not_correct_a_step_to_no_noise() -> None:
    # Algorithm 1, line 6: the slope at sigma = 0 is not defined. Without any noise it is Heun's of the gain.
    silent = BlurCorruption.from_tables(SIZE, [0, 0.5, 1], [0, 0, 0], [0, 0, 20])
    ts = torch.tensor([1.0, 0.5, 0.25], dtype=F64)
    seen: list[float] = []

    def function(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return torch.tanh(x + t[0])

    model: Any = SoftDenoiser(function, silent, "sample", "uniform")  # type: ignore[arg-type]
    x = _x0() * 20
    got = sample_heun(model, x, ts[:2], disable=True)
    assert seen == [1.0] and torch.equal(got, torch.tanh(x + 1))
    assert sample_heun(model, x, ts, disable=True).isfinite().all()
    cold = BlurCorruption.from_tables(SIZE, [0, 1], [0.5, 3], [0, 0])
    ones = torch.ones(1, 2, *SIZE, dtype=F64) * 0.5
    means: Any = SoftDenoiser(lambda x, t: t.view(-1, 1, 1, 1) * ones, cold, "sample", "uniform")  # type: ignore[arg-type]
    wave = sample_heun(means, _x0(), ts, disable=True)
    gain = [cold.gain(float(t)) for t in ts]
    moved = sum(
        (after - g) * ((t + s) / 2)
        for (g, after), (t, s) in zip(itertools.pairwise(gain), itertools.pairwise(ts), strict=True)
    )
    expected = _x0() + sk.idct2(moved * sk.dct2(ones))
    torch.testing.assert_close(wave, expected, rtol=0, atol=1e-12)
