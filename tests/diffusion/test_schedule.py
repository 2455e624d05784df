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

from softdiff_kernels.diffusion import (
    BlurCorruption,
    PowerSpectrum,
    Schedule,
    power_spectrum,
    shortest_path_schedule,
    wasserstein_distances,
)
from softdiff_kernels.diffusion.shortest_path import path_with_nodes, shortest_path
from softdiff_kernels.errors import UserError

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
