# SPDX-License-Identifier: Apache-2.0
"""A corruption schedule as the shortest Wasserstein path from the data to its corruption."""

from __future__ import annotations

from datetime import datetime, timezone
from importlib import metadata

import numpy as np

from . import _images
from .corruption import geometric_noise_std, paper_blur_std_max
from .power_spectrum import PowerSpectrum
from .schedule_file import Schedule
from .wasserstein import wasserstein_distances

_MOST_ROUNDS = 30

__all__ = ["Schedule", "shortest_path", "shortest_path_schedule"]


def shortest_path(distances: np.ndarray, epsilon: float) -> list[int] | None:
    """Shortest way from the first level to the last by steps of at most epsilon; None where none is.

    distances: float64 [L, L]. Dijkstra's algorithm, by scipy.sparse.csgraph. Without the limit the
    direct step is a shortest path, by the triangle inequality: the limit makes the nodes.
    """
    try:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import dijkstra
    except ImportError:
        raise ImportError("the schedule's shortest path needs scipy: pip install scipy") from None
    count = len(distances)
    # Steps lead towards more corruption only. Stored zeros are edges of no length, not missing ones.
    start, end = np.nonzero(np.triu(distances <= epsilon, 1))
    graph = csr_array((distances[start, end], (start, end)), shape=(count, count))
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
    low, high = -1, len(limits) - 1
    while high - low > 1 or best is None:
        middle = (low + high) // 2 if high - low > 1 else high
        path = shortest_path(distances, limits[middle])
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

    Noise follows the path's own t: geometric, full at noise_full_at. A level's noise thus depends on
    the path that is sought, so path and noise are found in turn until they agree; the first path is
    that of the levels' even spacing (our choice: the paper does not say).
    """
    op = "shortest_path_schedule"
    if not isinstance(levels, int) or not isinstance(nodes, int) or not 2 <= nodes <= levels:
        raise ValueError(
            f"{op}: expected 2 <= nodes <= levels as ints, got nodes {nodes!r} and levels {levels!r}"
        )
    size = _images.image_size(op, spectrum.image_size)
    most = paper_blur_std_max(size) if blur_std_max is None else float(blur_std_max)
    if not 0 <= blur_std_min < most < np.inf:
        raise ValueError(
            f"{op}: expected 0 <= blur_std_min < blur_std_max, got {blur_std_min!r} and {most!r}"
        )
    candidates = np.linspace(blur_std_min, most, levels)
    t_of_level = np.linspace(0.0, 1.0, levels)
    seen: list[list[int]] = []
    for _ in range(_MOST_ROUNDS):
        noise = geometric_noise_std(t_of_level, noise_std_min, noise_std_max, noise_full_at)
        distances = wasserstein_distances(spectrum, candidates, noise, noise_term)
        if not distances[0, -1] > 0:
            raise ValueError(
                f"{op}: the corruption leaves these images as they are, so there is no path to find"
            )
        epsilon, path = path_with_nodes(distances, nodes)
        if path in seen:
            break
        seen.append(path)
        t_of_level = np.interp(np.arange(levels), path, np.linspace(0.0, 1.0, len(path)))
    steps = distances[path[:-1], path[1:]]
    try:
        version = metadata.version("softdiff_kernels")
    except metadata.PackageNotFoundError:
        version = "unknown"
    return Schedule(
        image_size=size,
        channels=spectrum.channels,
        blur_std=tuple(candidates[path].tolist()),
        steps=tuple(steps.tolist()),
        epsilon=epsilon,
        nodes_wanted=nodes,
        levels=levels,
        noise_term=noise_term,
        noise_std_min=float(noise_std_min),
        noise_std_max=float(noise_std_max),
        noise_full_at=float(noise_full_at),
        images=spectrum.count,
        dataset=dataset,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=version,
    )
