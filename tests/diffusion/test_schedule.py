# SPDX-License-Identifier: Apache-2.0
"""The schedule: the shortest path between levels, what is made of it, and its file."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from softdiff_kernels.commands import schedule as command
from softdiff_kernels.commands.schedule import ScheduleConfig, make_schedule
from softdiff_kernels.data import ImageSet, load_images
from softdiff_kernels.diffusion import (
    BlurCorruption,
    FeatureDistance,
    PowerSpectrum,
    Schedule,
    power_spectrum,
    shortest_path_schedule,
    wasserstein_distances,
)
from softdiff_kernels.diffusion.shortest_path import path_with_nodes, shortest_path
from softdiff_kernels.errors import UserError
from softdiff_kernels.evaluation import train_classifier

sklearn_datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def digits() -> PowerSpectrum:
    images = torch.tensor(sklearn_datasets.load_digits().images / 8 - 1, dtype=torch.float32)[:, None]
    return power_spectrum(images.split(500))


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


def test_a_given_distance_that_is_the_one_in_pixels_gives_nearly_the_same_schedule(
    digits: PowerSpectrum,
) -> None:
    # The candidates differ: linear in blur, or even in the distance. Both are much finer than the nodes.
    expected = shortest_path_schedule(digits, levels=512, nodes=8)
    got = shortest_path_schedule(
        digits,
        levels=512,
        nodes=8,
        distance=lambda blur, noise: wasserstein_distances(digits, blur, noise),
        distance_name="W2 again",
    )
    assert got.exact and (got.blur_std[0], got.blur_std[-1]) == (expected.blur_std[0], expected.blur_std[-1])
    assert got.length == pytest.approx(expected.length, rel=0.01)
    np.testing.assert_allclose(got.blur_std, expected.blur_std, rtol=0.05)
    np.testing.assert_allclose(got.noise_std, expected.noise_std, rtol=0.1)
    assert (got.noise_term, got.distance, expected.distance) == ("", "W2 again", "W2 in pixels")
    assert "of W2 again, from" in got.describe()


def test_schedule_of_features_has_even_steps_and_another_pace(digits: PowerSpectrum) -> None:
    # Features that see differences of neighbouring pixels alone lose them sooner than the images lose power.
    images = torch.tensor(sklearn_datasets.load_digits().images[:300] / 8 - 1, dtype=torch.float32)[:, None]
    distance = FeatureDistance(images, lambda x: x.diff(dim=-1))
    options = {"levels": 128, "nodes": 12, "noise_std_max": 0.01}
    got = shortest_path_schedule(digits, distance=distance, distance_name="edges", **options)
    pixels = shortest_path_schedule(digits, **options)
    assert min(got.steps[:-1]) > 0.8 * got.epsilon and max(got.steps) <= got.epsilon
    corruptions = [BlurCorruption.from_schedule(s) for s in (got, pixels)]
    assert corruptions[0].blur_std(0.7) < 0.9 * corruptions[1].blur_std(0.7)


def test_ends_at_which_the_distance_does_not_change_are_kept(digits: PowerSpectrum) -> None:
    def between(blur: np.ndarray, noise: np.ndarray) -> np.ndarray:
        seen = np.clip(blur, 1.0, 2.0) + noise
        return np.abs(np.subtract.outer(seen, seen))

    s = shortest_path_schedule(digits, levels=64, nodes=8, distance=between, distance_name="from 1 to 2 px")
    assert (s.blur_std[0], s.blur_std[-1]) == (0.01, 23 * 8 / 64)


def test_bad_distances_are_refused(digits: PowerSpectrum) -> None:
    def good(blur: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return wasserstein_distances(digits, blur, noise)

    for arguments, sentence in (
        ({"distance": good}, "distance_name"),
        ({"distance_name": "of nothing"}, "needs a distance"),
        ({"distance": good, "distance_name": "W2", "noise_term": "gaussian"}, "without noise_term"),
        ({"distance": lambda b, s: good(b, s)[1:], "distance_name": "cut"}, "finite distances"),
        ({"distance": lambda b, s: good(b, s) * np.nan, "distance_name": "nan"}, "finite distances"),
        ({"distance": lambda b, s: -good(b, s), "distance_name": "below 0"}, "of at least 0"),
        ({"distance": lambda b, s: 0 * good(b, s), "distance_name": "none"}, "a path of length 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            shortest_path_schedule(digits, levels=32, nodes=4, **arguments)


def _digits_file(path: Path, count: int, channels: int = 1, side: int = 8) -> ImageSet:
    digits = sklearn_datasets.load_digits()
    pixels = torch.tensor(digits.images[:count] * 15.9, dtype=torch.uint8)[:, None]
    pixels = pixels.repeat(1, channels, side // 8, side // 8)
    np.savez(path, images=pixels.permute(0, 2, 3, 1).numpy(), labels=digits.target[:count])
    return load_images(str(path))


def test_command_takes_a_classifiers_features_and_refuses_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors")
    images = _digits_file(tmp_path / "digits.npz", 300)
    classifier = train_classifier(images.pixels, images.labels, epochs=6, say=lambda _: None, name="digits")
    classifier.save(tmp_path / "c.safetensors")
    monkeypatch.setattr(command, "MOST_IMAGES", 120)

    def config(data: str = "digits.npz", features: str = "c.safetensors", **more: object) -> ScheduleConfig:
        values = {"levels": 16, "nodes": 4, "out": str(tmp_path / "s.json"), "overwrite": True, **more}
        return ScheduleConfig(data=str(tmp_path / data), features=str(tmp_path / features), **values)

    said: list[str] = []
    made = make_schedule(config(), said.append)
    assert Schedule.load(tmp_path / "s.json", image_size=(8, 8)) == made
    # Rule: a reader of the file knows the distance, the weights and the number of images.
    for word in ("E|f(x_s) - f(x_t)|^2", classifier.digest(), "over 120 images", "c.safetensors"):
        assert word in made.distance and word in said[0]

    _digits_file(tmp_path / "few.npz", 99)
    _digits_file(tmp_path / "rgb.npz", 200, channels=3)
    _digits_file(tmp_path / "large.npz", 200, side=16)
    for arguments, sentence in (
        ({"data": "few.npz"}, "--features needs 100 or more images, got 99"),
        ({"data": "rgb.npz"}, r"images \[3, 8, 8\].*got one of \[1, 8, 8\]"),
        ({"data": "large.npz"}, r"images \[1, 16, 16\].*got one of \[1, 8, 8\]"),
        ({"features": "absent.safetensors"}, "absent.safetensors"),
        ({"features": "digits.npz"}, "digits.npz"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_schedule(config(**arguments), said.append)
    with pytest.raises(UserError, match="--noise-term gaussian"):
        config(noise_term="gaussian")
    classifier.accuracy = classifier.chance
    classifier.save(tmp_path / "guesses.safetensors")
    with pytest.raises(UserError, match="its features are meaningful from"):
        make_schedule(config(features="guesses.safetensors"), said.append)


def test_corruption_follows_the_schedule(digits: PowerSpectrum) -> None:
    s = shortest_path_schedule(digits, nodes=12)
    c = BlurCorruption.from_schedule(s)
    assert c.image_size == (8, 8)
    for t, blur, noise in zip(s.t, s.blur_std, s.noise_std, strict=True):
        assert c.blur_std(t) == pytest.approx(blur, rel=1e-12) and c.noise_std(t) == pytest.approx(
            noise, rel=1e-12
        )
    middle = (s.t[3] + s.t[4]) / 2
    assert c.blur_std(middle) == pytest.approx((s.blur_std[3] + s.blur_std[4]) / 2, rel=1e-12)


def test_images_that_nothing_changes_or_only_noise_does() -> None:
    flat = power_spectrum([torch.full((3, 1, 4, 4), 0.5)])
    with pytest.raises(ValueError, match="got a path of length 0"):
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


def test_file_of_before_there_was_another_distance_is_one_in_pixels(saved: tuple[Schedule, Path]) -> None:
    content = json.loads(saved[1].read_text())
    assert content.pop("distance") == "W2 in pixels"
    saved[1].write_text(json.dumps(content))
    assert Schedule.load(saved[1]) == saved[0]


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
    with pytest.raises(UserError, match="No space left"):
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


def test_schedule_numbers_of_any_library(digits: PowerSpectrum) -> None:
    # Rule: a number of numpy is that number; what is none is refused by our sentence.
    expected = shortest_path_schedule(digits, levels=24, nodes=6)
    got = shortest_path_schedule(
        digits, levels=np.int64(24), nodes=np.int32(6), noise_std_min=np.float64(0.01)
    )
    assert (got.blur_std, got.noise_std) == (expected.blur_std, expected.noise_std)
    assert type(got.nodes_wanted) is type(got.levels) is int
    for name, wrong in (
        ("levels", 24.0),
        ("nodes", True),
        ("nodes", "6"),
        ("blur_std_max", "3"),
        ("noise_std_min", True),
    ):
        with pytest.raises(
            TypeError, match=rf"^shortest_path_schedule: expected {name} as a (whole )?number, got "
        ):
            shortest_path_schedule(digits, **{"levels": 24, "nodes": 6, name: wrong})
