# SPDX-License-Identifier: Apache-2.0
"""A corruption schedule as the shortest Wasserstein path from the data to its corruption."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import NamedTuple

import numpy as np

from .. import _arguments as args
from .._version import __version__
from . import _images
from .corruption import geometric_noise_std, noise_range, paper_blur_std_max
from .power_spectrum import PowerSpectrum
from .schedule_file import Schedule
from .wasserstein import wasserstein_distances

_MOST_ROUNDS = 12
# The sum alone hardly minds a step that is left over, and nodes are lost to those: 4 of 31 steps of
# scikit-learn's digits came out under a quarter of the limit, and none at this cost.
_STEP_COST = 1e-3

__all__ = ["Schedule", "shortest_path", "shortest_path_schedule"]


def shortest_path(distances: np.ndarray, epsilon: float, step_cost: float = 0.0) -> list[int] | None:
    """Shortest way from the first level to the last by steps of at most epsilon; None where none is.

    distances: float64 [L, L]. step_cost: what each step costs beyond its length, in epsilons.
    Dijkstra's algorithm, by scipy.sparse.csgraph. Without the limit the direct step is a shortest
    path, by the triangle inequality: the limit makes the nodes.
    """
    try:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import dijkstra
    except ImportError:
        raise ImportError("the schedule's shortest path needs scipy: pip install scipy") from None
    count = len(distances)
    # Steps lead towards more corruption only. Stored zeros are edges of no length, not missing ones.
    start, end = np.nonzero(np.triu(distances <= epsilon, 1))
    cost = distances[start, end] + (step_cost * epsilon if step_cost else 0.0)
    graph = csr_array((cost, (start, end)), shape=(count, count))
    _, before = dijkstra(graph, indices=0, return_predecessors=True)
    path = [count - 1]
    while path[-1] != 0:
        previous = int(before[path[-1]])
        if previous < 0:
            return None
        path.append(previous)
    return path[::-1]


def path_with_nodes(distances: np.ndarray, nodes: int) -> tuple[float, list[int]]:
    """The step limit, and its path, whose number of nodes is nearest to `nodes`.

    Only the distances themselves matter as limits. Bisection over them finds the least limit whose
    path has at most `nodes`; of all paths met on the way, the one nearest in number (of those, of
    the least limit) is taken.
    """
    limits = np.unique(distances[np.triu_indices(len(distances), 1)])
    best: tuple[int, float, list[int]] | None = None
    low, high = -1, len(limits)
    while high - low > 1:
        middle = (low + high) // 2
        path = shortest_path(distances, limits[middle], _STEP_COST)
        if path is None:
            low = middle
            continue
        off = abs(len(path) - nodes)
        if best is None or (off, limits[middle]) < best[:2]:
            best = (off, float(limits[middle]), path)
        if len(path) > nodes:
            low = middle
        else:
            high = middle
    assert best is not None, "the largest limit joins everything"
    return best[1], best[2]


def shortest_path_schedule(
    spectrum: PowerSpectrum,
    *,
    levels: int = 256,
    nodes: int = 32,
    blur_std_min: float = 0.01,
    blur_std_max: float | None = None,
    noise_std_min: float = 0.01,
    noise_std_max: float = 0.10,
    noise_full_at: float = 0.25,
    noise_term: str = "shared",
    dataset: str = "",
) -> Schedule:
    """The schedule of Daras et al. 2022: least total W2 from data to corruption, in limited steps.

    spectrum: of the data (`power_spectrum`). levels: candidates, linear in blur_std from blur_std_min
    to blur_std_max pixels (None: the paper's 23 px at 64 px, times max(H, W) / 64). nodes: wanted on
    the path, both ends counted; the step limit epsilon is found by bisection, and where no limit
    gives that number the nearest is taken (`Schedule.nodes_wanted` and `.exact` tell). noise_term:
    see `wasserstein_distances`. dataset: a description for the file.

    A step costs a thousandth of epsilon beyond its length (ours), which decides between paths of
    nearly one length for the one without needless short steps.

    A level's noise is geometric in the share of the data's W2 way that blur alone has gone by then,
    and full from some share on. That share is found by bisection so that the noise is full at
    t = noise_full_at of the path, to within half a node where a path allows it (our choice: the
    paper gives noise over t alone, and how it entered its distances is not known).
    """
    op = "shortest_path_schedule"
    nodes, levels = args.integer(op, "nodes", nodes), args.integer(op, "levels", levels)
    if not 2 <= nodes <= levels:
        raise ValueError(f"{op}: expected 2 <= nodes <= levels, got nodes {nodes} and levels {levels}")
    size = _images.image_size(op, spectrum.image_size)
    blur_std_min = args.number(op, "blur_std_min", blur_std_min)
    most = paper_blur_std_max(size) if blur_std_max is None else args.number(op, "blur_std_max", blur_std_max)
    if not blur_std_min < most:
        raise ValueError(
            f"{op}: expected 0 <= blur_std_min < blur_std_max, got {blur_std_min!r} and {most!r}"
        )
    candidates = np.linspace(blur_std_min, most, levels)
    least_noise, most_noise, full_at = noise_range(op, noise_std_min, noise_std_max, noise_full_at)
    way = _share_of_way(spectrum, candidates)
    best: _Found | None = None
    low, high, wanted = 0.0, 1.0, full_at
    for _ in range(_MOST_ROUNDS):
        noise = geometric_noise_std(way, least_noise, most_noise, full_at)
        distances = wasserstein_distances(spectrum, candidates, noise, noise_term)
        if not distances[0, -1] > 0:
            raise ValueError(f"{op}: expected images that blur or noise can change, got a path of no length")
        epsilon, path = path_with_nodes(distances, nodes)
        # Where the noise becomes full, as a level, and then in the path's own time.
        level = np.interp(full_at, way, np.arange(levels))
        reached = float(np.interp(level, path, np.linspace(0.0, 1.0, len(path))))
        off = (abs(len(path) - nodes), abs(reached - wanted))
        if best is None or off < best.off:
            best = _Found(off, epsilon, path, noise, distances)
        if least_noise == most_noise or (off[0] == 0 and off[1] <= 0.5 / (len(path) - 1)):
            break
        low, high = (full_at, high) if reached < wanted else (low, full_at)
        full_at = 0.5 * (low + high)
    assert best is not None
    path = best.path
    return Schedule(
        image_size=size,
        channels=spectrum.channels,
        blur_std=tuple(candidates[path].tolist()),
        noise_std=tuple(best.noise[path].tolist()),
        steps=tuple(best.distances[path[:-1], path[1:]].tolist()),
        epsilon=best.epsilon,
        nodes_wanted=nodes,
        levels=levels,
        noise_term=noise_term,
        images=spectrum.count,
        dataset=dataset,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=__version__,
    )


class _Found(NamedTuple):
    off: tuple[int, float]
    epsilon: float
    path: list[int]
    noise: np.ndarray
    distances: np.ndarray


def _share_of_way(spectrum: PowerSpectrum, blur_std_levels: np.ndarray) -> np.ndarray:
    """How much of the W2 way through all levels lies behind each, without noise: 0 .. 1."""
    steps = np.diagonal(wasserstein_distances(spectrum, blur_std_levels, np.zeros_like(blur_std_levels)), 1)
    total = steps.sum()
    if not total > 0:
        return np.linspace(0.0, 1.0, len(blur_std_levels))
    return np.append(0.0, np.cumsum(steps) / total)
