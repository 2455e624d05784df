# SPDX-License-Identifier: Apache-2.0
"""What a schedule is made of: the power spectrum of images and the exact Wasserstein distances of levels."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment

from softdiff_kernels import NoiseKey, reference, spectrum
from softdiff_kernels.diffusion import FeatureDistance, PowerSpectrum, power_spectrum, wasserstein_distances


def _random_spectrum(seed: int, channels: int, height: int, width: int) -> PowerSpectrum:
    """A spectrum that falls with frequency, as images' do."""
    generator = torch.Generator().manual_seed(seed)
    lam = spectrum.eigenvalues_2d(height, width)
    scale = 1 / (0.05 + lam)
    mean = 0.3 * torch.randn(channels, height, width, dtype=torch.float64, generator=generator) * scale.sqrt()
    variance = (0.2 + torch.rand(channels, height, width, dtype=torch.float64, generator=generator)) * scale
    return PowerSpectrum(mean, variance + mean.square(), 100)


def test_power_spectrum_is_the_moments_of_scipys_dct() -> None:
    images = torch.randint(0, 256, (23, 3, 10, 7), dtype=torch.uint8)
    got = power_spectrum([images[:4], (images[4:5], "label"), images[5:5], images[5:].float() / 127.5 - 1])
    truth = dctn(images.double().numpy() / 127.5 - 1, axes=(2, 3), norm="ortho")
    assert got.count == 23 and got.channels == 3 and got.image_size == (10, 7)
    assert got.mean.dtype == got.power.dtype == torch.float64
    # A float32 DCT of values up to 1 has errors of about sqrt(10 + 7) 2^-24 of the image's norm, < 10.
    np.testing.assert_allclose(got.mean.numpy(), truth.mean(0), atol=1e-5)
    np.testing.assert_allclose(got.power.numpy(), (truth**2).mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.variance.numpy(), truth.var(0), rtol=1e-4, atol=1e-4)


def test_power_spectrum_does_not_depend_on_the_batches() -> None:
    # Sums are in float64: cutting the stream elsewhere moves only their last digits, and each image's
    # float32 transform at most by its rounding.
    images = torch.rand(50, 1, 6, 6) * 2 - 1
    whole, cut = power_spectrum([images]), power_spectrum(images.split(7))
    torch.testing.assert_close(whole.power, cut.power, rtol=1e-6, atol=1e-7)


def test_power_spectrum_refuses_what_is_no_stream_of_like_images() -> None:
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"one size, got \[3, 8, 9\] in batch 1 after \[3, 8, 8\]"):
        power_spectrum([x, torch.zeros(2, 3, 8, 9)])
    with pytest.raises(ValueError, match="at least one image, got none"):
        power_spectrum([])
    with pytest.raises(ValueError, match="at least one image, got none"):
        power_spectrum([x[:0]])
    with pytest.raises(TypeError, match="an iterable of batches"):
        power_spectrum(x)
    with pytest.raises(TypeError, match=r"uint8\), got int64"):
        power_spectrum([x.long()])
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        power_spectrum([x[0]])
    with pytest.raises(ValueError, match="expected finite images"):
        power_spectrum([x * float("nan")])


def test_distances_are_those_of_images_paired_with_themselves_and_no_pairing_is_shorter() -> None:
    images = torch.rand(40, 2, 5, 6, dtype=torch.float64) * 2 - 1
    blurs = [0.3, 0.9, 4.0]
    moments = power_spectrum([images])
    got = wasserstein_distances(moments, blurs, [0.0] * 3)
    blurred = [reference.blur(images, b).flatten(1) for b in blurs]
    for i, j in itertools.combinations(range(3), 2):
        cost = torch.cdist(blurred[i], blurred[j]).square().numpy()
        rows, columns = linear_sum_assignment(cost)
        # Brenier: the identity is the optimal assignment of the empirical distributions.
        assert (rows == columns).all()
        # The spectrum's float32 DCT bounds the accuracy: about 1e-6 of the power.
        assert got[i, j] == pytest.approx(np.sqrt(cost[rows, columns].mean()), rel=1e-5)
        assert got[i, j] == got[j, i]
    assert (np.diag(got) == 0).all()


@pytest.mark.parametrize("term", ["shared", "gaussian"])
def test_distances_equal_the_direct_sums(term: str) -> None:
    moments = _random_spectrum(0, 3, 9, 12)
    blur = np.sort(np.concatenate([np.linspace(0, 6, 25), [0.0, 6.0, 1e-3]]))
    noise = np.minimum(0.01 * 10 ** (np.arange(len(blur)) / 9), 0.1)
    gain = np.exp(-0.5 * spectrum.eigenvalues_2d(9, 12).numpy() * blur[:, None, None] ** 2)
    got = wasserstein_distances(moments, blur, noise, term)
    power, variance, mean = moments.power.numpy(), moments.variance.numpy(), moments.mean.numpy()
    for i, j in itertools.product(range(len(blur)), repeat=2):
        if term == "shared":
            squared = ((gain[i] - gain[j]) ** 2 * power).sum() + (noise[i] - noise[j]) ** 2 * power.size
        else:
            a, b = (np.sqrt(gain[n] ** 2 * variance + noise[n] ** 2) for n in (i, j))
            squared = ((a - b) ** 2 + (gain[i] - gain[j]) ** 2 * mean**2).sum()
        # The direct sum itself cancels to about 1e-16 over the smallest difference, 5e-7.
        assert got[i, j] == pytest.approx(np.sqrt(squared), rel=1e-8, abs=1e-13)


@pytest.mark.parametrize("term", ["shared", "gaussian"])
def test_near_levels_keep_their_digits(term: str) -> None:
    moments = _random_spectrum(1, 1, 8, 8)
    blur = 2.0 + np.arange(40) * 1e-9
    got = wasserstein_distances(moments, blur, np.full(40, 0.05), term)
    # To first order in the step, W2 = |d m / d blur| step, exact to 1e-7 relative here.
    lam = spectrum.eigenvalues_2d(8, 8).numpy()
    gain = np.exp(-0.5 * lam * 4.0)
    slope = lam * 2.0 * gain
    if term == "shared":
        speed = np.sqrt((slope**2 * moments.power.numpy()[0]).sum())
    else:
        variance, mean = moments.variance.numpy()[0], moments.mean.numpy()[0]
        deviation = np.sqrt(gain**2 * variance + 0.05**2)
        speed = np.sqrt(((gain * slope * variance / deviation) ** 2 + (slope * mean) ** 2).sum())
    apart = np.abs(blur[:, None] - blur[None, :])
    np.testing.assert_allclose(got, speed * apart, rtol=1e-6)
    # What this guards against: expanding the square loses everything at this distance.
    every = np.exp(-0.5 * lam.reshape(-1) * blur[:, None] ** 2)
    gram = (every * moments.power.numpy().reshape(-1)) @ every.T
    expanded = np.sqrt(np.abs(gram[0, 0] + gram[1, 1] - 2 * gram[0, 1]))
    exact_shared = np.sqrt((slope**2 * moments.power.numpy()[0]).sum()) * (blur[1] - blur[0])
    assert abs(expanded / exact_shared - 1) > 1e-2


def test_gaussian_term_is_the_bures_distance_of_the_full_covariances() -> None:
    # Against the general closed form, |m_1 - m_2|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), in pixel space.
    moments = _random_spectrum(2, 1, 3, 4)
    basis = np.kron(spectrum.dct_basis(3).numpy(), spectrum.dct_basis(4).numpy())
    blur, noise = [0.2, 1.1, 2.0], [0.01, 0.06, 0.1]
    got = wasserstein_distances(moments, blur, noise, "gaussian")
    means, covariances = [], []
    for b, s in zip(blur, noise, strict=True):
        gain = np.exp(-0.5 * spectrum.eigenvalues_2d(3, 4).numpy().reshape(-1) * b**2)
        means.append(basis.T @ (gain * moments.mean.numpy().reshape(-1)))
        spread = gain**2 * moments.variance.numpy().reshape(-1) + s**2
        covariances.append(basis.T @ np.diag(spread) @ basis)
    for i, j in itertools.combinations(range(3), 2):
        root = sqrtm(covariances[i])
        cross = sqrtm(root @ covariances[j] @ root)
        squared = ((means[i] - means[j]) ** 2).sum() + np.trace(
            covariances[i] + covariances[j] - 2 * cross
        ).real
        # The trace cancels: 1e-15 of a total of about 50 against a distance^2 of about 1.
        assert got[i, j] ** 2 == pytest.approx(squared, rel=1e-9)


def test_256_levels_at_64_pixels_fit_in_memory() -> None:
    moments = _random_spectrum(3, 3, 64, 64)
    blur, noise = np.linspace(0.01, 23, 256), np.linspace(0.01, 0.1, 256)
    for term in ("shared", "gaussian"):
        tracemalloc.start()
        try:
            distances = wasserstein_distances(moments, blur, noise, term)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert distances.shape == (256, 256) and np.isfinite(distances).all()
        assert peak < 500e6


def _edges(x: torch.Tensor) -> torch.Tensor:
    """Features that are neither linear nor one number for each pixel."""
    return x.diff(dim=-1).relu()


def test_feature_distances_equal_the_direct_means() -> None:
    # Rule: root of E|f(x_i) - f(x_j)|^2 with one image and one noise in both, whatever the batches.
    images = torch.randint(0, 256, (600, 2, 7, 6), dtype=torch.uint8)
    blur, noise = np.array([0.0, 0.5, 0.52, 3.0]), np.array([0.01, 0.05, 0.05, 0.1])
    got = FeatureDistance(images, _edges, seed=7)(blur, noise)
    x0 = images.double() / 127.5 - 1
    drawn = reference.normal((600, 2, 7, 6), NoiseKey(7), dtype=torch.float64)
    features = [
        _edges(reference.blur(x0, b) + s * drawn).flatten(1) for b, s in zip(blur, noise, strict=True)
    ]
    for i, j in itertools.product(range(4), repeat=2):
        truth = (features[i] - features[j]).square().sum(1).mean().sqrt().item()
        # Features are float32: rounded by about 1e-6 of numbers up to 2, where the nearest differ by 1e-2.
        assert got[i, j] == pytest.approx(truth, rel=1e-4, abs=0)


def test_distances_of_the_identity_as_features_are_those_in_pixels() -> None:
    images = torch.rand(100, 1, 8, 8) * 2 - 1
    blur = np.linspace(0.0, 4.0, 9)
    distance = FeatureDistance(images, lambda x: x)
    truth = wasserstein_distances(power_spectrum([images]), blur, np.zeros(9))
    np.testing.assert_allclose(distance(blur, np.zeros(9)), truth, rtol=1e-4)
    # Where noise alone differs, the mean of |n|^2 over 6400 normals deviates by sqrt(2 / 6400) = 1.8 %.
    noise = np.linspace(0.0, 0.1, 5)
    got = distance(np.full(5, 1.0), noise)
    np.testing.assert_allclose(got, np.abs(np.subtract.outer(noise, noise)) * 8, rtol=5 * 0.018 / 2)


def test_levels_of_the_call_before_are_not_computed_again() -> None:
    counts = []

    def features(x: torch.Tensor) -> torch.Tensor:
        counts.append(len(x))
        return _edges(x)

    distance = FeatureDistance(torch.rand(10, 1, 8, 8), features)
    first = distance(np.array([0.0, 1.0, 2.0]), np.array([0.1, 0.1, 0.1]))
    again = distance(np.array([0.0, 1.0, 2.0]), np.array([0.05, 0.1, 0.1]))
    assert len(counts) == 4  # the same blur under other noise is another level
    assert again[1, 2] == first[1, 2] and again[0, 1] != first[0, 1]


def test_what_is_no_table_of_features_is_refused() -> None:
    images, one = torch.rand(10, 1, 8, 8), np.ones(1)
    for features in (lambda x: x[:3], lambda x: x.mean(), lambda x: x * float("nan")):
        with pytest.raises(ValueError, match=r"finite features \[10, \.\.\.\], one row for each image, got"):
            FeatureDistance(images, features)(one, one)
    with pytest.raises(ValueError, match=r"expected images as \[B, C, H, W\]"):
        FeatureDistance(images[0], _edges)
    with pytest.raises(ValueError, match="FeatureDistance: expected as many noise levels"):
        FeatureDistance(images, _edges)([0.0, 1.0], [0.1])
    with pytest.raises(ValueError, match="at least one image"):
        FeatureDistance(images[:0], _edges)


def test_bad_levels_are_refused() -> None:
    moments = _random_spectrum(4, 1, 4, 4)
    for blur, noise, term, sentence in (
        ([1, 0.5], [0, 0], "shared", "nondecreasing"),
        ([0, 1], [0, 0, 0], "shared", "as many noise levels"),
        ([0, float("nan")], [0, 0], "shared", "finite numbers"),
        ([0, 1], [-1, 0], "shared", "at least 0"),
        ([0, 1], [0, 0], "sinkhorn", "noise_term as one of"),
    ):
        with pytest.raises(ValueError, match=sentence):
            wasserstein_distances(moments, blur, noise, term)
