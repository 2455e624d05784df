# SPDX-License-Identifier: Apache-2.0
"""Priors: the law of x_1 that they stand for, what an image depends on, and their saved state."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import softdiff_kernels as sk
from softdiff_kernels import spectrum
from softdiff_kernels.diffusion import (
    PRIORS,
    BlurCorruption,
    BlurredImagesPrior,
    Corruption,
    GaussianDCTPrior,
    PlainGaussianPrior,
    Prior,
    prior_from_state,
)
from softdiff_kernels.noise import key_rows, pack_key, philox_words, words_after

PAPER = BlurCorruption.paper((8, 12))


def _images(count: int, channels: int = 2, height: int = 8, width: int = 12) -> Tensor:
    """Images with a mean, with channels that go together, and with more power at low frequencies."""
    noise = sk.normal((count, channels, height, width), sk.NoiseKey(3), dtype=torch.float64)
    lam = spectrum.eigenvalues_2d(height, width)
    coefficients = noise / (0.1 + lam)
    coefficients[:, 1:] = 0.8 * coefficients[:, :1] + 0.3 * coefficients[:, 1:]
    return 0.1 * sk.idct2(coefficients) - 0.2


def _gain(c: Corruption) -> Tensor:
    return spectrum.heat_gain(torch.tensor([c.blur_std(1.0)], dtype=torch.float64), *c.image_size)[0, 0]


def _fit(name: str, images: Tensor, corruption: Corruption = PAPER) -> Prior:
    return PRIORS[name].fit(images.split(7), corruption)


def test_the_papers_blur_leaves_39_numbers_of_a_64_pixel_colour_image() -> None:
    prior = GaussianDCTPrior.fit([torch.rand(50, 3, 64, 64)], BlurCorruption.paper((64, 64)))
    assert prior.surviving.size == 39 and prior.factor.shape == (39, 39)
    assert "39 surviving DCT coefficients" in prior.describe() and "full covariance" in prior.describe()


def test_gaussian_prior_has_the_mean_and_covariance_of_blurred_data() -> None:
    images = _images(4000)
    prior = _fit("gaussian", images)
    samples = prior.sample(4000, key=sk.NoiseKey(1), dtype=torch.float64)
    kept = _gain(PAPER) > 1e-3
    blurred = (_gain(PAPER) * sk.dct2(images))[:, :, kept].flatten(1)
    drawn = sk.dct2(samples)[:, :, kept].flatten(1)
    noise = PAPER.noise_std(1.0) ** 2 * torch.eye(blurred.shape[1], dtype=torch.float64)
    truth = blurred.T.cov() + noise
    spread = truth.diagonal().sqrt()
    # Five standard errors of 4000 draws for a mean; for a covariance sqrt((1 + rho^2) / 4000), twice 1.
    assert ((drawn.mean(0) - blurred.mean(0)) / spread).abs().max() < 5 / math.sqrt(4000)
    assert ((drawn.T.cov() - truth) / torch.outer(spread, spread)).abs().max() < 5 * math.sqrt(2 / 4000)
    # Channels of these images go together, so a diagonal fit would fail here.
    correlation = truth / torch.outer(spread, spread)
    assert correlation[0, drawn.shape[1] // 2] > 0.5


def test_frequencies_that_do_not_survive_hold_noise_alone() -> None:
    for name in ("gaussian", "blurred"):
        samples = _fit(name, _images(100)).sample(400, key=sk.NoiseKey(2), dtype=torch.float64)
        lost = sk.dct2(samples)[:, :, _gain(PAPER) <= 1e-3]
        count = lost.numel()
        assert lost.mean().abs() < 5 * PAPER.noise_std(1.0) / math.sqrt(count)
        assert lost.std().item() == pytest.approx(PAPER.noise_std(1.0), rel=5 / math.sqrt(2 * count))


def test_gaussian_fit_does_not_depend_on_the_batches() -> None:
    images = _images(60)
    whole = GaussianDCTPrior.fit([images], PAPER)
    cut = GaussianDCTPrior.fit([(images[:1], "label"), images[1:30], images[30:]], PAPER)
    # Moments are summed in float64, but the transform is float32: 1e-6 of a coefficient, and the root
    # of a covariance at most doubles a relative error.
    torch.testing.assert_close(cut.mean, whole.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cut.factor @ cut.factor.T, whole.factor @ whole.factor.T, rtol=1e-5, atol=1e-5)


def test_gaussian_fit_keeps_its_digits_far_from_zero() -> None:
    # Of a covariance near 1e-4 beside a mean square near 96: E[x^2] - E[x]^2 in float32 would be noise.
    images = 0.999 + 1e-3 * _images(500)
    prior = GaussianDCTPrior.fit(images.split(50), PAPER)
    kept = _gain(PAPER) > 1e-3
    exact = (_gain(PAPER) * sk.dct2(images))[:, :, kept].flatten(1).T.cov(correction=0)
    torch.testing.assert_close(prior.factor @ prior.factor.T, exact, rtol=0, atol=2e-2 * exact.max().item())


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_images_than_numbers_are_enough(count: int) -> None:
    # The covariance is singular then; samples lie in the span of what was seen.
    images = _images(count)
    prior = GaussianDCTPrior.fit(
        [images], BlurCorruption.paper((8, 12), noise_std_min=1e-6, noise_std_max=1e-6)
    )
    samples = prior.sample(5, key=sk.NoiseKey(1), dtype=torch.float64)
    assert samples.isfinite().all()
    if count == 1:
        blurred = sk.blur(images, PAPER.blur_std(1.0))
        # Left out: gains under 1e-3 of coefficients up to 3. On top comes a root of rounding, 1e-4.
        torch.testing.assert_close(samples, blurred.expand_as(samples), rtol=0, atol=1e-2)


def test_many_surviving_coefficients_get_variances_alone() -> None:
    mild = BlurCorruption.paper((24, 24), blur_std_max=0.3)
    prior = GaussianDCTPrior.fit([_images(30, 2, 24, 24)], mild)
    assert prior.surviving.size == 2 * 24 * 24 > 1024
    assert prior.factor.dim() == 1 and "variances alone" in prior.describe()
    exact = (_gain(mild) * sk.dct2(_images(30, 2, 24, 24))).flatten(1).std(dim=0, correction=0)
    torch.testing.assert_close(prior.factor, exact, rtol=1e-4, atol=1e-5)


def test_blurred_images_are_those_of_the_data_each_as_often() -> None:
    images = _images(8)
    quiet = BlurCorruption.paper((8, 12), noise_std_min=1e-6, noise_std_max=1e-6)
    prior = BlurredImagesPrior.fit(images.split(3), quiet)
    samples = prior.sample(4000, key=sk.NoiseKey(9), dtype=torch.float64)
    distance = torch.cdist(samples.flatten(1), sk.blur(images, quiet.blur_std(1.0)).flatten(1))
    nearest, which = distance.min(dim=1)
    # Left out: gains under 1e-3 of coefficients up to 3, a dozen of them.
    assert nearest.max() < 1e-2
    # Eight equal chances in 4000 draws: 500 each, five deviations of sqrt(4000 / 8 * 7 / 8) = 21.
    assert (which.bincount(minlength=8) - 500).abs().max() < 5 * 21


def test_blurred_images_are_kept_up_to_a_bound() -> None:
    prior = BlurredImagesPrior.fit(_images(20).split(6), PAPER, most=8)
    assert prior.values.shape[0] == prior.count == 8
    torch.testing.assert_close(prior.values, BlurredImagesPrior.fit([_images(8)], PAPER).values)


def test_blurred_images_stop_reading_when_full() -> None:
    def stream():
        yield _images(10)
        raise AssertionError("read on")

    assert BlurredImagesPrior.fit(stream(), PAPER, most=10).count == 10


def test_plain_gaussian_has_the_power_of_x_1() -> None:
    images = _images(300)
    prior = _fit("plain", images)
    power = sk.blur(images, PAPER.blur_std(1.0)).square().mean() + PAPER.noise_std(1.0) ** 2
    assert prior.noise_std == pytest.approx(power.sqrt().item(), rel=1e-5)
    samples = PlainGaussianPrior((8, 12), 3, 0.7).sample(200, key=sk.NoiseKey(1))
    assert samples.std().item() == pytest.approx(0.7, rel=5 / math.sqrt(2 * samples.numel()))
    assert samples.mean().abs() < 5 * 0.7 / math.sqrt(samples.numel())


@pytest.mark.parametrize("name", PRIORS)
def test_an_image_depends_on_its_seed_and_stream_alone(name: str) -> None:
    prior = _fit(name, _images(30))
    whole = prior.sample(6, key=sk.NoiseKey(4, stream=50))
    assert whole.shape == (6, 2, 8, 12) and whole.dtype == torch.float32
    # To the rounding of float64 sums, and of the float32 transform, in another order.
    same: dict[str, Callable[[], Tensor]] = {
        "in parts": lambda: torch.cat(
            [prior.sample(2, key=sk.NoiseKey(4, 50)), prior.sample(4, key=sk.NoiseKey(4, 52))]
        ),
        "by streams": lambda: prior.sample(torch.arange(50, 56), key=sk.NoiseKey(4)),
        "by the key's streams": lambda: prior.sample(6, key=sk.NoiseKey(4, torch.arange(50, 56))),
        "at another draw": lambda: prior.sample(6, key=sk.NoiseKey(4, 50, draw=9)),
    }
    for how, again in same.items():
        torch.testing.assert_close(again(), whole, rtol=0, atol=1e-5, msg=how)
    assert (prior.sample(6, key=sk.NoiseKey(5, 50)) - whole).abs().amax(dim=(1, 2, 3)).min() > 1e-2
    assert (whole[0] - whole[1]).abs().max() > 1e-2


def test_noise_is_the_first_of_an_images_stream_and_the_rest_comes_after() -> None:
    # Else a prior's coefficients and its noise would go together.
    prior = _fit("gaussian", _images(30))
    key = sk.NoiseKey(4, 50)
    x = prior.sample(3, key=key, dtype=torch.float64)
    mean = x - prior.noise_std * sk.normal((3, 2, 8, 12), key, dtype=torch.float64)
    lost = sk.dct2(mean)[:, :, _gain(PAPER) <= 1e-3]
    assert lost.abs().max() < 1e-12


@pytest.mark.parametrize(
    "key",
    [
        sk.NoiseKey(2**63 + 5, stream=2**64 - 3, draw=7),
        sk.NoiseKey(torch.tensor(-5), stream=11),
        sk.NoiseKey(5, stream=torch.tensor([2**40, -1, 7, 7])),
        sk.NoiseKey(5, stream=torch.tensor([9]), draw=torch.tensor([0, 1, 2, 3])),
    ],
)
def test_words_after_an_images_noise_continue_its_stream(key: sk.NoiseKey) -> None:
    # The words after those of 10 elements, which take 3 blocks, are words 12 on of the whole stream.
    device = torch.device("cpu")
    stream = philox_words(key_rows(*pack_key(key, 4, device), 4, device), 12 + 9)
    assert torch.equal(words_after(key, 4, 10, 9, device), stream[:, 12:])


@pytest.mark.parametrize("name", PRIORS)
def test_saved_state_gives_the_same_prior_back(name: str) -> None:
    prior = _fit(name, _images(30))
    config = json.loads(json.dumps(prior.config()))
    tensors = {k: v.clone() for k, v in prior.state_dict().items()}
    assert all(v.is_contiguous() for v in tensors.values())
    again = prior_from_state(config, tensors)
    assert (
        type(again) is type(prior) and again.describe() == prior.describe() and prior.name in again.describe()
    )
    key = sk.NoiseKey(1)
    assert torch.equal(again.sample(4, key=key), prior.sample(4, key=key))


def test_descriptions_are_those_of_earlier_records() -> None:
    """Rule: a folder of samples is added to only if its record has the same description, so none changes."""
    corruption, images = BlurCorruption.paper((8, 8)), _images(30, 1, 8, 8)
    tail = "13 surviving DCT coefficients (blur 2.875 px, gain over 0.001) of 30 images, plus noise 0.1"
    assert [PRIORS[name].fit([images], corruption).describe() for name in ("gaussian", "blurred")] == [
        f"gaussian-dct: Gaussian (full covariance) of the {tail}",
        f"blurred-images: blurred training images, the {tail}",
    ]
    mild = GaussianDCTPrior.fit([_images(30, 2, 24, 24)], BlurCorruption.paper((24, 24), blur_std_max=0.3))
    assert mild.describe().startswith("gaussian-dct: Gaussian (variances alone, they are many) of the ")
    plain = PlainGaussianPrior((8, 8), 1, 0.25)
    assert plain.describe() == "plain-gaussian: white noise of deviation 0.25, mean 0"


def test_foreign_state_is_refused() -> None:
    prior = _fit("gaussian", _images(30))
    config, tensors = prior.config(), prior.state_dict()
    with pytest.raises(ValueError, match=r"expected one of 'gaussian-dct', .*, got 'other'"):
        prior_from_state({"prior": "other"}, {})
    with pytest.raises(ValueError, match="complete configuration and tensors"):
        prior_from_state(config, {"mean": tensors["mean"]})
    with pytest.raises(ValueError, match="complete configuration and tensors"):
        prior_from_state({k: v for k, v in config.items() if k != "blur_std"}, tensors)
    with pytest.raises(ValueError, match=r"expected a mean of \d+ numbers"):
        prior_from_state({**config, "image_size": [16, 16]}, tensors)


@pytest.mark.parametrize("name", PRIORS)
def test_bad_data_and_requests_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least one image, got none"):
        PRIORS[name].fit([], PAPER)
    with pytest.raises(ValueError, match="for images of 8 x 12"):
        PRIORS[name].fit([torch.zeros(1, 1, 8, 8)], PAPER)
    with pytest.raises(ValueError, match="one size"):
        PRIORS[name].fit([_images(2), _images(2, 3)], PAPER)
    prior = _fit(name, _images(5))
    assert prior.sample(0, key=sk.NoiseKey(1)).shape == (0, 2, 8, 12)
    with pytest.raises(ValueError, match="int of at least 0, got -1"):
        prior.sample(-1)
    with pytest.raises(TypeError, match=r"int64 tensor \[B\], got torch.float32"):
        prior.sample(torch.zeros(3))


def test_without_a_key_torchs_seed_rules() -> None:
    prior = _fit("gaussian", _images(30))
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(prior.sample(2))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_numbers_of_any_library_are_taken_and_nothing_else() -> None:
    images, key = _images(12), sk.NoiseKey(1)
    prior = GaussianDCTPrior.fit([images], PAPER, threshold=0.25)
    same = GaussianDCTPrior.fit([images], PAPER, threshold=Fraction(1, 4))
    assert torch.equal(same.sample(np.int64(3), key=key), prior.sample(3, key=key))
    assert same.config() == prior.config() and json.dumps(same.config())
    for wrong in ("3", True, np.bool_(True), 3.0, None, -1):
        with pytest.raises(ValueError, match=r"^sample: expected the number of images as .*, got "):
            prior.sample(wrong, key=key)
        with pytest.raises(
            (TypeError, ValueError), match=r"^BlurredImagesPrior.fit: expected most as a whole"
        ):
            BlurredImagesPrior.fit([], PAPER, most=wrong)
    with pytest.raises(ValueError, match=r"as an int of at least 0 and under 2\^31, got 10\^400 or so$"):
        prior.sample(10**400, key=key)
    for wrong in ("1", True, 1j, [1.0], 10**400):
        with pytest.raises((TypeError, ValueError), match=r"^prior: expected threshold as a .*number"):
            GaussianDCTPrior.fit([images], PAPER, threshold=wrong)
        with pytest.raises((TypeError, ValueError), match=r"^prior: expected noise_std as a .*number"):
            PlainGaussianPrior((8, 8), 1, wrong)
