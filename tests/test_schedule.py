# SPDX-License-Identifier: Apache-2.0
"""The schedule: power spectrum, exact Wasserstein distances, shortest path, and its file."""

from __future__ import annotations

import itertools
import json
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment

from softdiff_kernels import reference, spectrum
from softdiff_kernels.diffusion import (
    Corruption,
    PowerSpectrum,
    Schedule,
    power_spectrum,
    shortest_path_schedule,
    wasserstein_distances,
)
from softdiff_kernels.diffusion.schedule import path_with_nodes, shortest_path

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def _random_spectrum(seed: int, channels: int, height: int, width: int) -> PowerSpectrum:
    """A spectrum that falls with frequency, as images' do."""
    generator = torch.Generator().manual_seed(seed)
    lam = spectrum.eigenvalues_2d(height, width)
    scale = 1 / (0.05 + lam)
    mean = 0.3 * torch.randn(channels, height, width, dtype=torch.float64, generator=generator) * scale.sqrt()
    variance = (0.2 + torch.rand(channels, height, width, dtype=torch.float64, generator=generator)) * scale
    return PowerSpectrum(mean, variance + mean.square(), 100)


@pytest.fixture(scope="module")
def digits() -> PowerSpectrum:
    images = torch.tensor(sklearn_datasets.load_digits().images / 8 - 1, dtype=torch.float32)[:, None]
    return power_spectrum(images.split(500))


# --- power spectrum


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


# --- distances


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


def test_bad_levels_are_refused() -> None:
    moments = _random_spectrum(4, 1, 4, 4)
    for blur, noise, term, sentence in (
        ([1, 0.5], [0, 0], "shared", "never fall"),
        ([0, 1], [0, 0, 0], "shared", "as many noise levels"),
        ([0, float("nan")], [0, 0], "shared", "finite numbers"),
        ([0, 1], [-1, 0], "shared", "at least 0"),
        ([0, 1], [0, 0], "sinkhorn", "noise_term as one of"),
    ):
        with pytest.raises(ValueError, match=sentence):
            wasserstein_distances(moments, blur, noise, term)


# --- shortest path


def _line(count: int) -> np.ndarray:
    return np.abs(np.subtract.outer(np.arange(count), np.arange(count))).astype(float)


def test_path_on_a_line_by_hand() -> None:
    distances = _line(11)
    # Steps of at most 3 over a way of 10: at least 4 steps. Below 1 there is no step at all.
    path = shortest_path(distances, 3.0)
    assert path is not None and path[0] == 0 and path[-1] == 10
    assert max(b - a for a, b in itertools.pairwise(path)) <= 3
    assert shortest_path(distances, 0.9) is None
    assert shortest_path(distances, 10.0) == [0, 10]


def test_levels_at_no_distance_can_be_passed() -> None:
    # A stored zero is a step of no length, not a missing one.
    distances = np.array([[0, 0, 2.0], [0, 0, 2.0], [2.0, 2.0, 0]])
    assert shortest_path(distances, 2.0) in ([0, 2], [0, 1, 2])
    only = np.array([[0, 0, 3.0], [0, 0, 2.0], [3.0, 2.0, 0]])
    assert shortest_path(only, 2.5) == [0, 1, 2]


def test_node_count_is_met_or_the_nearest_is_taken() -> None:
    # On a line of equal steps the number of nodes is 11 for a limit in [1, 2), 6 for one in [2, 3).
    epsilon, path = path_with_nodes(_line(11), 6)
    assert (epsilon, len(path)) == (2.0, 6)
    assert path_with_nodes(_line(11), 11) == (1.0, list(range(11)))
    assert path_with_nodes(_line(11), 2) == (10.0, [0, 10])
    # 8 is not attainable: 6 is nearer than 11.
    assert len(path_with_nodes(_line(11), 8)[1]) == 6


def test_path_is_the_shortest_of_all_by_trying_them() -> None:
    generator = np.random.default_rng(5)
    points = np.cumsum(generator.random((9, 3)), axis=0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    for epsilon in np.quantile(distances[distances > 0], [0.3, 0.5, 0.8]):
        best = np.inf
        for size in range(8):
            for inner in itertools.combinations(range(1, 8), size):
                steps = [distances[a, b] for a, b in itertools.pairwise((0, *inner, 8))]
                best = min(best, sum(steps)) if max(steps) <= epsilon else best
        path = shortest_path(distances, epsilon)
        if path is None:
            assert best == np.inf
        else:
            assert sum(distances[a, b] for a, b in itertools.pairwise(path)) == pytest.approx(best, rel=1e-12)


def test_a_steps_cost_lengthens_the_path_by_no_more_than_the_steps_it_saves(digits: PowerSpectrum) -> None:
    # If length + cost n is least, then length - least length <= cost (n of the shortest - n).
    distances = wasserstein_distances(digits, np.linspace(0.01, 2.9, 200), np.full(200, 0.1))
    saved = 0
    for epsilon in np.linspace(0.1, 1.0, 10):
        free, charged = shortest_path(distances, epsilon), shortest_path(distances, epsilon, 1e-3)
        assert free is not None and charged is not None
        lengths = [sum(distances[a, b] for a, b in itertools.pairwise(path)) for path in (free, charged)]
        assert (
            lengths[0] - 1e-9 <= lengths[1] <= lengths[0] + 1e-3 * epsilon * (len(free) - len(charged)) + 1e-9
        )
        saved += len(free) - len(charged)
    assert saved > 0


@pytest.mark.parametrize("term", ["shared", "gaussian"])
def test_without_a_limit_the_direct_step_is_the_shortest(digits: PowerSpectrum, term: str) -> None:
    # Both distances are metrics, so the triangle inequality holds: only the limit makes nodes.
    distances = wasserstein_distances(digits, np.linspace(0.01, 2.9, 64), np.linspace(0.01, 0.1, 64), term)
    assert shortest_path(distances, np.inf) == [0, 63]


# --- schedule


@pytest.mark.parametrize("term", ["shared", "gaussian"])
def test_schedule_of_the_digits(digits: PowerSpectrum, term: str) -> None:
    s = shortest_path_schedule(digits, noise_term=term, dataset="digits")
    assert s.exact and len(s.blur_std) == 32 and s.levels == 256 and s.images == 1797
    assert (s.blur_std[0], s.blur_std[-1]) == (0.01, pytest.approx(23 * 8 / 64))
    assert (s.noise_std[0], s.noise_std[-1]) == (pytest.approx(0.01), 0.1)
    # Every step is the distance of its two nodes, none over the limit, and the length is their sum.
    distances = wasserstein_distances(digits, s.blur_std, s.noise_std, term)
    np.testing.assert_allclose(s.steps, np.diagonal(distances, 1), rtol=1e-9)
    assert max(s.steps) <= s.epsilon * (1 + 1e-12) and s.length == pytest.approx(sum(s.steps))
    if term == "shared":
        # What the cost of a step is for: no step is left over that is under half the limit.
        assert min(s.steps) > 0.5 * s.epsilon
    # The noise is full within half a node of a quarter: at node 8 of 31, and no more than one sooner.
    assert s.noise_std[9] == 0.1 > s.noise_std[7]
    # The limit makes more steps than the direct one, hence a longer way, but far fewer than the levels.
    assert s.length > distances[0, -1]
    for word in (term, "32 nodes of 256 levels", "1797 images of digits"):
        assert word in s.describe()


def test_schedule_says_when_the_node_count_is_not_attainable(digits: PowerSpectrum) -> None:
    s = shortest_path_schedule(digits, levels=24, nodes=23)
    assert not s.exact and s.nodes_wanted == 23 and "23 wanted" in s.describe()


def test_corruption_follows_the_schedule(digits: PowerSpectrum) -> None:
    s = shortest_path_schedule(digits, nodes=12)
    c = Corruption.from_schedule(s)
    assert c.image_size == (8, 8)
    for t, blur, noise in zip(s.t, s.blur_std, s.noise_std, strict=True):
        assert c.blur_std(t) == pytest.approx(blur, rel=1e-12) and c.noise_std(t) == pytest.approx(
            noise, rel=1e-12
        )
    middle = (s.t[3] + s.t[4]) / 2
    assert c.blur_std(middle) == pytest.approx((s.blur_std[3] + s.blur_std[4]) / 2, rel=1e-12)


def test_images_that_nothing_changes_or_only_noise_does() -> None:
    flat = power_spectrum([torch.full((3, 1, 4, 4), 0.5)])
    with pytest.raises(ValueError, match="got a path of no length"):
        shortest_path_schedule(flat, noise_std_min=0.1, noise_std_max=0.1)
    s = shortest_path_schedule(flat, levels=64, nodes=8)
    assert s.length == pytest.approx(0.09 * 4, rel=1e-6)  # (0.1 - 0.01) sqrt(16), all of it noise


def test_bad_schedule_arguments_are_refused(digits: PowerSpectrum) -> None:
    for arguments, sentence in (
        ({"nodes": 1}, "2 <= nodes <= levels"),
        ({"nodes": 33, "levels": 32}, "2 <= nodes <= levels"),
        ({"blur_std_max": 0.0}, "blur_std_min < blur_std_max"),
        ({"noise_std_min": 0.0}, "noise_std_min"),
        ({"noise_term": "none"}, "noise_term as one of"),
    ):
        with pytest.raises(ValueError, match=sentence):
            shortest_path_schedule(digits, **arguments)


# --- file


@pytest.fixture
def saved(digits: PowerSpectrum, tmp_path: Path) -> tuple[Schedule, Path]:
    s = shortest_path_schedule(digits, levels=64, nodes=8, dataset="digits")
    s.save(tmp_path / "schedule.json")
    return s, tmp_path / "schedule.json"


def test_file_gives_the_same_schedule_back(saved: tuple[Schedule, Path]) -> None:
    schedule, path = saved
    assert Schedule.load(path) == schedule == Schedule.load(path, image_size=(8, 8))
    assert os.listdir(path.parent) == ["schedule.json"]
    content = json.loads(path.read_text())
    assert content["noise_term"] == "shared" and content["images"] == 1797 and content["dataset"] == "digits"


def test_schedule_for_another_image_size_is_refused(saved: tuple[Schedule, Path]) -> None:
    with pytest.raises(ValueError, match="expected one for images of 32 x 32, got one for 8 x 8"):
        Schedule.load(saved[1], image_size=(32, 32))


def test_truncated_files_are_refused(saved: tuple[Schedule, Path]) -> None:
    whole = saved[1].read_bytes().rstrip()
    for length in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        saved[1].write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"schedule .*schedule\.json: expected a whole JSON file"):
            Schedule.load(saved[1])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "softdiff-corruption"}, "of format 'softdiff-schedule'"),
        ({"epsilon": ...}, "epsilon missing"),
        ({"blur_std": [3, 2, 1]}, "expected blur_std as"),
        ({"blur_std": "abc"}, "schedule .*schedule.json: "),
        ({"noise_std": [0.1]}, "expected noise_std as"),
        ({"steps": [1.0]}, "expected 7 steps"),
        ({"image_size": [8]}, "expected image_size"),
    ],
)
def test_foreign_files_are_refused(saved: tuple[Schedule, Path], change: dict, sentence: str) -> None:
    content = {**json.loads(saved[1].read_text()), **change}
    saved[1].write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    with pytest.raises(ValueError, match=sentence):
        Schedule.load(saved[1])
    saved[1].write_text("[1, 2]")
    with pytest.raises(ValueError, match="of format"):
        Schedule.load(saved[1])


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(
    saved: tuple[Schedule, Path], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    before = saved[1].read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="No space left"):
        saved[0].save(saved[1])
    assert saved[1].read_bytes() == before and os.listdir(saved[1].parent) == ["schedule.json"]


def test_plot_writes_a_picture_or_names_what_is_missing(
    saved: tuple[Schedule, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    picture = saved[1].with_suffix(".png")
    saved[0].plot(picture)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and picture.stat().st_size > 5000
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="needs matplotlib"):
        saved[0].plot(picture)
