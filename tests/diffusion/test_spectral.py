# SPDX-License-Identifier: Apache-2.0
"""Corruptions over DCT frequencies: their gains and noise, files, priors, and what they refuse."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch

import softdiff_kernels as sk
from softdiff_kernels import spectrum
from softdiff_kernels.diffusion import (
    DDIM,
    PRIORS,
    SAMPLERS,
    Ancestral,
    BlurCorruption,
    Corruption,
    LinearCorruption,
    MaskCorruption,
    Momentum,
    SoftDenoiser,
    SpectralCorruption,
    power_spectrum,
    prior_from_state,
    register,
    sample_ancestral,
    sample_momentum,
    time_steps,
)

SIZE = (6, 8)
F64 = torch.float64
KEY = sk.NoiseKey(3, stream=40)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# All the corruptions that files can hold, beside blur: the tests of what they have in common run over these.
STORED: dict[str, Corruption] = {
    "tables": SpectralCorruption(
        SIZE, _random(3, *SIZE).sort(0, descending=True)[0] + 0.2, [0.1, 0.2, 0.3], t=[0, 0.2, 1]
    ),
    "by channel": SpectralCorruption(
        SIZE, -_random(3, 2, *SIZE).sort(0, descending=True)[0], _random(3, *SIZE).sort(0)[0] + 0.1
    ),
    "equal-snr": SpectralCorruption.equal_snr(_random(2, *SIZE)),
    "anisotropic": SpectralCorruption.anisotropic(SIZE, 2.0, 0.5),
    "low-pass": SpectralCorruption.ideal_low_pass(SIZE),
    "mask": MaskCorruption(SIZE),
    "map": MaskCorruption(SIZE, 2 * _random(*SIZE), softness=0.5, noise_std_max=0.3),
    "region": MaskCorruption.region(_random(*SIZE) > 0.5),
    "motion-blur": LinearCorruption.motion_blur(SIZE, 3.0, 30.0, noise_full_at=0.5),
    "downsampling": LinearCorruption.downsampling(SIZE, 4, noise_std_min=0.02),
    "channel-blur": LinearCorruption.channel_blur(SIZE, [0.5, 2.0]),
}


@pytest.mark.parametrize("name", STORED)
def test_files_hold_the_corruption(name: str) -> None:
    c = STORED[name]
    again = Corruption.from_dict(json.loads(json.dumps(c.to_dict())))
    assert type(again) is type(c) and again.to_dict() == c.to_dict()
    assert (again.name, again.image_size, again.channels) == (c.name, c.image_size, c.channels)
    x0, t = torch.rand(3, 2, *SIZE), torch.tensor([0.0, 0.4, 1.0])
    for other in (again, copy.deepcopy(c)):
        assert torch.equal(other.corrupt(x0, t, key=KEY), c.corrupt(x0, t, key=KEY))
    changed = {**c.to_dict(), "surprise": 1}
    with pytest.raises(ValueError, match=r"expected its complete configuration: .*surprise"):
        Corruption.from_dict(changed)


@pytest.mark.parametrize("name", STORED)
def test_numbers_and_tensors_are_the_same_time(name: str) -> None:
    # A number gives float64 on the CPU; a tensor its own dtype and device, one row for each image.
    c, t = STORED[name], torch.tensor([0.0, 0.1, 0.55, 1.0], dtype=F64)
    for value in [c.noise] if c.basis == "" else [c.gain, c.noise]:
        rows = value(t)
        assert rows.dtype == F64 and rows.dim() == 4 and len(rows) == 4
        for i, time in enumerate(t.tolist()):
            assert torch.equal(value(time), rows[i : i + 1])
        single = value(t.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), rows, rtol=1e-5, atol=1e-6)
        assert value(t.to("meta")).device.type == "meta"
        assert value(t.to("meta")).shape == rows.shape
        traced = torch.compile(value, fullgraph=True, backend="eager")
        torch.testing.assert_close(traced(t), rows, rtol=0, atol=1e-15)
        for bad in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match="expected t as a finite number of at least 0 and at most 1"):
                value(bad)
            with pytest.raises(ValueError, match="expected t as finite numbers of at least 0 and at most 1"):
                value(torch.tensor([0.5, bad]))
        with pytest.raises(ValueError, match="t requires grad"):
            value(t.clone().requires_grad_())


@pytest.mark.parametrize("name", STORED)
def test_images_of_every_kind(name: str) -> None:
    # uint8 is decoded; small dtypes are computed in float32 and rounded once; other sizes are refused.
    c = STORED[name]
    levels = torch.randint(0, 256, (2, 2, *SIZE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x0, t = levels.float() / 127.5 - 1, torch.tensor([0.2, 0.7])
    n = c.white(x0, KEY)
    truth = c.corrupt(x0.double(), t.double(), noise=n.double())
    got, residual = c.corrupt(levels, t, key=KEY, return_residual=True)
    assert got.dtype == residual.dtype == torch.float32
    torch.testing.assert_close(got.double(), truth, rtol=0, atol=5e-6)
    torch.testing.assert_close(residual.double(), x0.double() - truth, rtol=0, atol=5e-6)
    small = c.corrupt(x0.bfloat16(), t, noise=n.bfloat16())
    assert small.dtype == torch.bfloat16
    torch.testing.assert_close(small.double(), truth, rtol=2**-6, atol=2**-6)
    assert c.corrupt(x0[:0], 0.5).shape == (0, 2, *SIZE)
    with pytest.raises(ValueError, match=r"for images of 6 x 8, got .*\[1, 2, 8, 6\]"):
        c.corrupt(torch.zeros(1, 2, 8, 6), 0.5)
    if c.channels is not None:
        with pytest.raises(ValueError, match=r"for images of 2 channels, got .*\[1, 3, 6, 8\]"):
            c.corrupt(torch.zeros(1, 3, *SIZE), 0.5)


@pytest.mark.parametrize("name", STORED)
def test_every_sampler_and_loss_takes_it_or_says_why(name: str) -> None:
    # With the true image every sampler that takes the process returns it.
    c, x0 = STORED[name], torch.rand(2, 2, *SIZE)
    denoiser = SoftDenoiser(lambda x, t: x0, c, prediction="sample", weight="uniform")
    for sampler in SAMPLERS.values():
        if c.basis == "" and sampler is sample_ancestral:
            with pytest.raises(ValueError, match="expected a corruption that is diagonal in a basis"):
                sampler(denoiser, c.corrupt(x0, 1.0), time_steps(4), disable=True)
            continue
        got = sampler(denoiser, c.corrupt(x0, 1.0, key=KEY), time_steps(4), disable=True, key=KEY)
        assert torch.equal(got, x0)
    for loss in ("soft", "plain", "increment", "ihdm"):
        parameter = torch.zeros(1, requires_grad=True)
        one = SoftDenoiser(lambda x, t, p=parameter: x * p, c, loss=loss)
        if c.basis == "" and loss in ("increment", "ihdm"):
            with pytest.raises(ValueError, match='take the losses "soft" or "plain"'):
                one.loss(x0, key=KEY)
            continue
        losses = one.loss(x0, torch.tensor([0.3, 0.9]), key=KEY)
        losses.sum().backward()
        assert losses.shape == (2,) and losses.isfinite().all() and (losses > 0).any()
        assert parameter.grad.abs() > 0


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", STORED)
def test_priors_draw_what_the_corruption_makes(name: str, prior: str) -> None:
    # The variance of every coefficient at t = 1, of data whose own are unequal: to six standard errors, 0.3.
    c = STORED[name]
    x0 = sk.idct2(_random(2, *SIZE, seed=7).float() * sk.normal([800, 2, *SIZE], sk.NoiseKey(1)))
    x0 = x0 + torch.linspace(-1, 1, 2).view(1, 2, 1, 1)
    if prior == "plain" and c.noise(1.0).numel() > 1:
        with pytest.raises(ValueError, match=r"^PlainGaussianPrior.fit: expected white noise at t = 1, got"):
            PRIORS[prior].fit([x0], c)
        return
    fitted = PRIORS[prior].fit([x0[:300], x0[300:]], c)
    again = prior_from_state(json.loads(json.dumps(fitted.config())), fitted.state_dict())
    got = fitted.sample(800, key=KEY)
    assert torch.equal(again.sample(800, key=KEY), got) and again.describe() == fitted.describe()
    truth = c.corrupt(x0, 1.0, key=sk.NoiseKey(9))
    if prior == "plain":
        assert (got.square().mean() / truth.square().mean()).item() == pytest.approx(1.0, abs=0.05)
        return
    for back in (sk.dct2, lambda x: x):
        ratio = back(got).var(dim=0) / back(truth).var(dim=0)
        assert (ratio.log().abs() < 0.35).all(), ratio.log().abs().max()
    spread = truth.std(dim=0) * 6 * math.sqrt(2 / 800)
    assert ((got.mean(dim=0) - truth.mean(dim=0)).abs() < spread + 1e-3).all()


@pytest.mark.parametrize("name", STORED)
def test_nothing_reads_a_tensor_of_a_device(name: str) -> None:
    # On "meta" there is nothing to read: what passes there waits for no device, and mixes no two of them.
    c, x, t = STORED[name], torch.empty(3, 2, *SIZE, device="meta"), torch.empty(3, device="meta")
    network = SoftDenoiser(lambda x, t: x, c)
    rules = [Momentum(), DDIM(eta=1.0), *([] if c.basis == "" else [Ancestral()])]
    for got in (
        c.corrupt(x, t, key=KEY),
        c.corrupt(x, 0.5, key=KEY),
        c.corrupt(x, t, noise=x),
        network(x, t),
        *(rule.step(c, x, x, 0.5, 0.4, KEY) for rule in rules),
    ):
        assert got.shape == x.shape and got.device.type == "meta"
    assert network.loss(x, t, key=KEY).device.type == "meta"


class Shaped(Corruption):
    """Gains and noise of any shape that broadcasts, in float32, as a user may give them."""

    def __init__(self, gain: torch.Tensor, noise: torch.Tensor, basis: str = "dct") -> None:
        self.image_size, self.ends, self.basis = SIZE, (gain, noise), basis  # type: ignore[misc]

    def gain(self, t: float | torch.Tensor) -> torch.Tensor:
        return 1 - torch.as_tensor(t).float().reshape(-1, 1, 1, 1) * (1 - self.ends[0])

    def noise(self, t: float | torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(t).float().reshape(-1, 1, 1, 1) * self.ends[1]

    def config(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("basis", ["dct", "pixels"])
@pytest.mark.parametrize("gain", [(), SIZE, (1, *SIZE), (2, 1, 1), (2, *SIZE)])
@pytest.mark.parametrize("noise", [(), SIZE, (2, 1, 1)])
def test_gains_and_noise_of_any_shape(basis: str, gain: tuple, noise: tuple) -> None:
    # Rule: what broadcasts to [B, C, H, W] means the same everywhere as its expanded form.
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(shape, generator=generator) * 0.5 + 0.2 for shape in (gain, noise)]
    c = Shaped(*masks, basis)
    # White noise stays a number: as a mask it is drawn over the basis.
    wide = Shaped(*(m.expand(1, 2, *SIZE) if m.dim() or m is masks[0] else m for m in masks), basis)
    x0 = torch.randn(60, 2, *SIZE, generator=generator)
    t = torch.linspace(0, 1, 60)
    torch.testing.assert_close(c.corrupt(x0, t, noise=x0), wide.corrupt(x0, t, noise=x0), rtol=0, atol=1e-6)
    for rule in (DDIM(), Ancestral()):
        steps = [rule.step(one, x0, x0 / 2, 0.8, 0.5, KEY) for one in (c, wide)]
        torch.testing.assert_close(*steps, rtol=0, atol=2e-6)
    for loss in ("soft", "plain", "increment"):
        for prediction in ("sample", "noise"):
            one, other = (
                SoftDenoiser(lambda x, t: x / 2, v, prediction, "uniform", loss).loss(x0, t, noise=x0 / 3)
                for v in (c, wide)
            )
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert c.loss(x0, 0 * x0, t, mask=masks[0]).item() == pytest.approx(
        wide.loss(x0, 0 * x0, t, mask=masks[0].expand(1, 2, *SIZE)).item(), rel=1e-5
    )
    for name in ("gaussian", "blurred"):
        drawn = [PRIORS[name].fit([x0], v).sample(5, key=KEY) for v in (c, wide)]
        torch.testing.assert_close(*drawn, rtol=0, atol=1e-4)
    if basis == "dct":
        spent = [time_steps(4, "w2", corruption=v, spectrum=power_spectrum([x0])) for v in (c, wide)]
        torch.testing.assert_close(*spent, rtol=1e-4, atol=1e-5)


class Mirrored(Shaped):
    """A basis of one's own, as simple as can be: the pixels of the mirror image."""

    def to_basis(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(3)

    from_basis = to_basis


def test_priors_of_a_basis_of_ones_own() -> None:
    # They keep the pixels of C_1 x; only coloured noise, of which they know nothing, is refused.
    gain = torch.linspace(0, 1, 8).expand(SIZE)
    x0 = torch.randn(500, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    c = Mirrored(gain, torch.tensor(0.1), "mirrored")
    truth = c.corrupt(x0, 1.0, key=KEY)
    for prior in (PRIORS["gaussian"], PRIORS["blurred"]):
        got = prior.fit([x0], c).sample(500, key=KEY)
        assert (got.var(dim=0) / truth.var(dim=0)).log().abs().max() < 0.35
        assert got.var(dim=0)[0, :, 0].mean() > 10 * got.var(dim=0)[0, :, 7].mean()
        with pytest.raises(ValueError, match=r"expected white noise at t = 1, got .* Mirrored; draw x_1 by"):
            prior.fit([x0], Mirrored(gain, gain, "mirrored"))


def test_tables_are_linear_between_their_nodes() -> None:
    gain, noise = _random(3, 2, *SIZE) - 0.5, _random(3, *SIZE)
    c = SpectralCorruption(SIZE, gain, noise, t=[0, 0.2, 1])
    for i, t in enumerate((0.0, 0.2, 1.0)):
        assert torch.equal(c.gain(t), gain[i : i + 1]) and torch.equal(c.noise(t)[0, 0], noise[i])
    torch.testing.assert_close(c.gain(0.6)[0], (gain[1] + gain[2]) / 2, rtol=0, atol=1e-15)
    torch.testing.assert_close(c.noise(0.05)[0, 0], 0.75 * noise[0] + 0.25 * noise[1], rtol=0, atol=1e-15)
    assert c.channels == 2 and SpectralCorruption(SIZE, gain[:, 0], noise).channels is None
    assert c.noise(0.5).shape == (1, 1, *SIZE)
    white = SpectralCorruption(SIZE, [1.0, 0.5], [0.1, 0.2])
    assert white.noise(0.5).shape == (1, 1, 1, 1) and white.gain(0.5).shape == (1, 1, *SIZE)


def test_the_mean_is_the_gain_of_the_whole_image() -> None:
    # Where it is over 0 and alike in all channels; then a process that grows, or fades, in mean is legal.
    grows = SpectralCorruption(SIZE, [1.0, 1.7], [0.1, 0.4])
    assert grows.mean(0.5) == pytest.approx(1.35) and STORED["anisotropic"].mean(0.5) == 1.0
    gain = torch.ones(2, 2, *SIZE)
    gain[1, 1, 0, 0] = 0.5
    assert SpectralCorruption(SIZE, gain, [0.1, 0.1]).mean(1.0) == 1.0
    gain[1, :, 0, 0] = 0.0
    assert SpectralCorruption(SIZE, gain, [0.1, 0.1]).mean(1.0) == 1.0
    # The same process as tables of a blur.
    blur = BlurCorruption.from_tables(SIZE, [0, 1], [0, 0], [0.1, 0.4], mean=[1.0, 1.7])
    for t, s in ((1.0, 0.4), (0.3, 0.2)):
        assert grows.mean(t) == pytest.approx(blur.mean(t))
        torch.testing.assert_close(grows.gain(t), blur.gain(t), rtol=1e-14, atol=0)
        torch.testing.assert_close(grows.gain_ratio(t, s), blur.gain_ratio(t, s), rtol=1e-12, atol=0)


def test_noise_that_falls_is_legal() -> None:
    falling = SpectralCorruption(SIZE, [1.0, 0.1], [0.5, 0.1])
    x0 = torch.rand(2, 1, *SIZE)
    for loss in ("soft", "plain", "increment"):
        wrong = SoftDenoiser(lambda x, t: x0 + 1, falling, prediction="sample", loss=loss)
        assert (wrong.loss(x0, torch.tensor([0.2, 0.9]), key=KEY) > 1).all(), loss
    denoiser = SoftDenoiser(lambda x, t: x0, falling, prediction="sample")
    start = falling.corrupt(x0, 1.0, key=KEY)
    with pytest.raises(ValueError, match=r"^momentum: expected noise over mean that does not rise .* ddim"):
        # Over its mean, 0.1, the noise of t = 1 is larger than at t = 0; between, it is not.
        rising = SpectralCorruption(SIZE, [1.0, 1.0], [0.5, 0.1])
        sample_momentum(SoftDenoiser(lambda x, t: x0, rising), start, time_steps(3), disable=True)
    got = SAMPLERS["ddim"](denoiser, start, time_steps(3), disable=True)
    assert torch.equal(got, x0)


def test_equal_snr_takes_a_spectrum_or_its_variances() -> None:
    images = torch.randn(64, 2, *SIZE, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.5
    data = power_spectrum([images])
    c = SpectralCorruption.equal_snr(data)
    assert c.image_size == SIZE and c.channels == 2
    # The variance about the mean, not the power, which at (0, 0) is mostly the mean's.
    colour = c.noise(1.0)[0] / c.noise(1.0)[0].max()
    torch.testing.assert_close(colour.square(), data.variance / data.variance.max(), rtol=1e-9, atol=1e-12)
    assert (data.power / data.variance)[0, 0, 0] > 5
    assert SpectralCorruption.equal_snr(_random(*SIZE)).channels is None
    # A frequency that the data never have still gets noise, so that 1 / noise is finite.
    holes = _random(1, *SIZE)
    holes[0, 2, 3] = 0.0
    least = SpectralCorruption.equal_snr(holes).noise(1.0)[0, 0, 2, 3].item()
    assert least == pytest.approx(math.sqrt(1e-6 * holes.mean().item()), rel=1e-3)
    for bad in ("x", torch.zeros(6, 8), -holes, holes[..., None], holes * math.nan, [[1.0], [1.0, 2.0]]):
        with pytest.raises(ValueError, match=r"equal_snr: expected the spectrum as variances \[C, H, W\]"):
            SpectralCorruption.equal_snr(bad)
    for low, high in ((3.0, 3.0), (5.0, -5.0), (-200.0, 0.0)):
        with pytest.raises(ValueError, match=r"equal_snr: expected -100 <= logsnr_min < logsnr_max <= 100"):
            SpectralCorruption.equal_snr(holes, logsnr_min=low, logsnr_max=high)


def test_anisotropic_is_a_blur_of_each_axis() -> None:
    # Alike along both axes it is the Gaussian blur; along one it leaves the other alone.
    for t in (0.0, 0.3, 1.0):
        both = SpectralCorruption.anisotropic(SIZE, 2.0, 2.0).gain(t)
        torch.testing.assert_close(
            both, spectrum.heat_gain(torch.tensor([2.0 * t], dtype=F64), *SIZE), rtol=1e-13, atol=0
        )
    c = SpectralCorruption.anisotropic(SIZE, 0.0, 3.0)
    rows = torch.randn(1, 1, 6, 1, dtype=F64).expand(1, 1, *SIZE)
    torch.testing.assert_close(c.corrupt(rows, 1.0, noise=0 * rows), rows.clone(), rtol=0, atol=1e-12)
    # Never 0 / 0: the ratio of gains that are both 0 in float64, from the difference of the blurs.
    strong = SpectralCorruption.anisotropic(SIZE, 40.0, 40.0)
    assert strong.gain(0.99)[0, 0, 5, 7] == 0 and strong.gain_ratio(1.0, 0.999)[0, 0, 5, 7] > 0
    ratio = c.gain(0.8) / c.gain(0.5)
    torch.testing.assert_close(c.gain_ratio(0.8, 0.5), ratio, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"anisotropic: expected blur_std_w as a finite number of at least"):
        SpectralCorruption.anisotropic(SIZE, 1.0, -1.0)
    with pytest.raises(ValueError, match="noise_std_min <= noise_std_max"):
        SpectralCorruption.anisotropic(SIZE, 1.0, 1.0, noise_std_min=1.0)


def test_the_low_passs_cutoff_falls() -> None:
    c = SpectralCorruption.ideal_low_pass((8, 8), cutoff=0.25, edge=0.5)
    gains = torch.cat([c.gain(t) for t in torch.linspace(0, 1, 201, dtype=F64).tolist()])[:, 0]
    # All is kept at t = 0, and at t = 1 only what is under the cutoff; nothing ever comes back.
    assert (gains[0] == 1).all() and (gains.diff(dim=0) <= 0).all() and (gains[:, 0, 0] == 1).all()
    k = torch.arange(8, dtype=F64) / 8
    frequency = torch.hypot(k[:, None], k[None, :])
    assert torch.equal(gains[-1] > 0, frequency < 0.25)
    # A higher frequency is never kept more than a lower one.
    order = frequency.flatten().argsort()
    assert (gains.flatten(1)[:, order].diff(dim=1) <= 1e-12).all()
    # Half of a gain is half of the edge over the cutoff: 1/4 octave.
    single = gains[:, 0, 4]
    at = int((single - 0.5).abs().argmin())
    start, end = 0.5 + 0.5, math.log2(0.25)
    assert start + (end - start) * at / 200 == pytest.approx(math.log2(0.5) + 0.25, abs=0.02)
    # Without a cutoff, that of the paper's strongest blur: only a few frequencies are left.
    assert (SpectralCorruption.ideal_low_pass((64, 64)).gain(1.0) > 0).sum() == 3
    for name, value in (("cutoff", 0.0), ("cutoff", 1.5), ("edge", 0.0), ("edge", -1.0)):
        with pytest.raises(ValueError, match=rf"ideal_low_pass: expected {name} "):
            SpectralCorruption.ideal_low_pass((8, 8), **{name: value})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"gain": torch.ones(2, 8, 6)},
            r"expected gain as \[N\], \[N, 6, 8\] or \[N, C, 6, 8\], got \[2, 8, 6",
        ),
        ({"gain": torch.ones(2, 6)}, r"expected gain as \[N\], .* got \[2, 6\]"),
        ({"gain": [1.0, math.nan]}, "expected gain as finite numbers"),
        ({"gain": "abc"}, "expected gain as a table of numbers"),
        ({"gain": []}, "expected gain as finite numbers, at least one"),
        ({"gain": [1.0], "noise": [0.1]}, "expected t as at least 2 times that rise from 0 to 1"),
        ({"gain": torch.ones(2, requires_grad=True)}, "gain requires grad"),
        ({"noise": [0.1, 0.2, 0.3]}, "expected noise at 2 times, as many as t and the gain have, got 3"),
        ({"noise": [0.1, -0.2]}, "expected noise of at least 0, got -0.2"),
        ({"t": [0.0, 0.9]}, "expected t as at least 2 times that rise from 0 to 1"),
        ({"t": [0.0, 0.5, 1.0]}, "expected gain at 3 times"),
        ({"t": "01"}, "expected t as a list of numbers"),
        ({"image_size": 6}, r"expected image_size as \(H, W\)"),
        (
            {"gain": torch.ones(2, 2, *SIZE), "noise": torch.ones(2, 3, *SIZE)},
            r"expected gain and noise of as many channels, got \[2, 3\]",
        ),
    ],
)
def test_bad_tables_are_refused(change: dict[str, Any], sentence: str) -> None:
    good: dict[str, Any] = {"image_size": SIZE, "gain": [1.0, 0.5], "noise": [0.1, 0.2], "t": None}
    SpectralCorruption(**good)
    with pytest.raises(ValueError, match=f"^SpectralCorruption: {sentence}"):
        SpectralCorruption(**{**good, **change})


def test_the_callers_tables_are_copied() -> None:
    gain = torch.ones(2, dtype=F64)
    c = SpectralCorruption(SIZE, gain, gain)
    gain.zero_()
    assert c.gain(0.5).min() == 1 and c.noise(0.5).min() == 1


def test_a_basis_that_nobody_knows_is_refused() -> None:
    # Rule: a corruption in another basis is never computed in the DCT.
    class Fade(Corruption):
        basis = "wavelets"
        image_size = SIZE

        def gain(self, t: float | torch.Tensor) -> torch.Tensor:
            return torch.ones(1, 1, *SIZE)

        def noise(self, t: float | torch.Tensor) -> torch.Tensor:
            return torch.ones(1, 1, 1, 1)

        def config(self) -> dict[str, Any]:
            return {}

    x = torch.zeros(1, 1, *SIZE)
    for call in (
        lambda c: c.corrupt(x, 0.5),
        lambda c: c.step(x, x, 0.5, 0.2, 0.5, 0.1),
        lambda c: c.loss(x, x, torch.tensor([0.5])),
        lambda c: c.white(x, KEY),
    ):
        with pytest.raises(
            NotImplementedError, match=r"^Fade: expected to_basis and from_basis for the basis"
        ):
            call(Fade())
    with pytest.raises(ValueError, match="Fade: expected a class with a name in files, got none"):
        Fade().to_dict()
    with pytest.raises(ValueError, match="register: expected a name that is free, got 'spectral'"):
        register("spectral")(Fade)
