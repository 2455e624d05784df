# SPDX-License-Identifier: Apache-2.0
"""A corruption schedule as the shortest Wasserstein path from the data to its corruption.

In three steps: the power spectrum of the data, in one pass; from it the exact Wasserstein distances between
all levels of blur; and the shortest path through the levels in steps of limited length.

Gaussian blurs commute and are positive, so `C_s x -> C_t x` is the gradient of a convex function. By
Brenier's theorem it is then the optimal map, for the empirical distribution too: every image is paired with
itself. With P the mean power of the DCT,

    W2^2(C_s X, C_t X) = sum_k (m_s[k] - m_t[k])^2 P[k].

The sum needs its digits where levels are near each other, so nothing here subtracts large, nearly equal
quantities: differences of neighbouring levels come from expm1, and all others are sums of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _arguments as args
from .. import functional
from .. import spectrum as dct
from .._version import __version__
from ..images import decode, pieces
from ..noise import NoiseKey
from .schedule import PIXEL_DISTANCE, Schedule, geometric_noise_std, noise_range, paper_blur_std_max

Levels = Sequence[float] | np.ndarray | Tensor
NOISE_TERMS = ("shared", "gaussian")
_MOST_ROUNDS = 12
_COARSE = 64
_FEATURE_BATCH = 250
_COLUMNS = 2**16
# In units of epsilon. Without it the sum hardly distinguishes paths with needless short steps, and nodes are
# lost to those: 4 of 31 steps of scikit-learn's digits were under a quarter of the limit, and none with it.
_STEP_COST = 1e-3


@dataclass(frozen=True)
class PowerSpectrum:
    """First and second moments of the images' orthonormal 2-D DCT, per channel and frequency.

    Attributes:
        mean: E[DCT2(x)] of images in [-1, 1], float64 [C, H, W] on the CPU.
        power: E[DCT2(x)^2], likewise.
        count: The number of images.

    Examples:
        >>> spectrum = power_spectrum([torch.ones(4, 1, 8, 8)])
        >>> round(spectrum.power[0, 0, 0].item(), 3)  # the frequency (0, 0) is the mean times sqrt(H W)
        64.0
    """

    mean: Tensor
    power: Tensor
    count: int

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.power.shape[1], self.power.shape[2]

    @property
    def channels(self) -> int:
        """C."""
        return self.power.shape[0]

    @property
    def variance(self) -> Tensor:
        """Var[DCT2(x)], float64 [C, H, W]."""
        return (self.power - self.mean.square()).clamp(min=0)


class SpectrumSums:
    """The sums of a `power_spectrum`, for a pass over the images that computes more than that.

    `add` takes float32 images [B, C, H, W] in [-1, 1], all of one size; `result` gives the moments of all.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._squares: Tensor | None = None
        self._count = 0

    @torch.no_grad()
    def add(self, images: Tensor) -> None:
        """Adds a piece, transformed and squared in float32, summed in float64."""
        spectrum = functional.dct2(images)
        first = spectrum.sum(dim=0, dtype=torch.float64)
        second = spectrum.square_().sum(dim=0, dtype=torch.float64)
        self._total = first if self._total is None else self._total.add_(first)
        self._squares = second if self._squares is None else self._squares.add_(second)
        self._count += images.shape[0]

    def result(self) -> PowerSpectrum:
        """The moments; ValueError for no images, and for those that are not finite."""
        if self._total is None or self._squares is None:
            raise ValueError("power_spectrum: expected at least one image, got none")
        if not bool(torch.isfinite(self._squares).all()):
            raise ValueError("power_spectrum: expected finite images, got NaN or infinite values")
        mean, power = self._total / self._count, self._squares / self._count
        return PowerSpectrum(mean.cpu(), power.cpu(), self._count)


def power_spectrum(batches: Iterable[Any]) -> PowerSpectrum:
    """Moments of the DCT over a stream of batches.

    One pass, in pieces of bounded size: transformed and squared in float32, summed in float64.

    Args:
        batches: Images [B, C, H, W], uint8, or floating-point in [-1, 1].

    Raises:
        ValueError: If images differ in size, are not finite, or if there are none.

    Examples:
        >>> images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
        >>> spectrum = power_spectrum([images[:8], images[8:]])  # any iterable of batches
        >>> spectrum.count, spectrum.image_size, spectrum.channels
        (16, (8, 8), 1)
    """
    sums = SpectrumSums()
    for images in pieces("power_spectrum", batches):
        sums.add(images)
    return sums.result()


def wasserstein_distances(
    spectrum: PowerSpectrum,
    blur_std_levels: Levels,
    noise_std_levels: Levels,
    noise_term: str = "shared",
) -> np.ndarray:
    """W2 between `C_i X + noise_std_i N` and `C_j X + noise_std_j N`, for all i, j: float64 [L, L].

    The distance is a 2-norm of images: in the images' units times the root of the number of elements. Noise
    enters in one of two ways:

    - "shared": both levels share N, `+ (noise_std_i - noise_std_j)^2 d`, d the number of elements of an
      image: an upper bound for any data, exact without noise.
    - "gaussian": exact if X were Gaussian with a covariance diagonal in the DCT, mean mu and
      variances v: `sum_k (sqrt(m_i^2 v + s_i^2) - sqrt(m_j^2 v + s_j^2))^2 + (m_i - m_j)^2 mu^2`
      (Dowson & Landau 1982).

    Args:
        spectrum: Moments of the data X.
        blur_std_levels: L blurs in pixels, nondecreasing.
        noise_std_levels: As many standard deviations of noise.
        noise_term: "shared" or "gaussian".

    Examples:
        >>> spectrum = power_spectrum([torch.rand(32, 1, 16, 16)])
        >>> distances = wasserstein_distances(spectrum, [0.0, 1.0, 2.0], [0.01, 0.01, 0.01])
        >>> bool(distances[0, 2] > distances[0, 1] > distances[0, 0] == 0)
        True
    """
    op = "wasserstein_distances"
    args.choice(op, "noise_term", noise_term, NOISE_TERMS)
    blur, noise = _blur_and_noise(op, blur_std_levels, noise_std_levels)
    if np.any(np.diff(blur) < 0):
        raise ValueError(f"{op}: expected nondecreasing blur_std_levels, got {args.shown(blur.tolist())}")

    height, width = spectrum.image_size
    gain = dct.heat_gain(torch.from_numpy(blur), height, width).reshape(len(blur), -1).numpy()
    step = 0.5 * (np.diff(blur) * (blur[1:] + blur[:-1]))[:, None]
    lam = dct.eigenvalues_2d(height, width).reshape(-1).numpy()
    drop = gain[:-1] * np.expm1(-lam * step)
    if noise_term == "shared":
        power = spectrum.power.numpy().sum(axis=0).reshape(-1)
        return np.sqrt(
            _double_sums((drop * power) @ drop.T)
            + (noise[:, None] - noise[None, :]) ** 2 * spectrum.power.numel()
        )
    mean = spectrum.mean.numpy().reshape(spectrum.channels, -1)
    gram = (drop * np.square(mean).sum(axis=0)) @ drop.T
    for variance in spectrum.variance.numpy().reshape(spectrum.channels, -1):
        change = _deviation_changes(gain, drop, variance, noise)
        gram += change @ change.T
    return np.sqrt(_double_sums(gram))


def _blur_and_noise(
    op: str, blur_std_levels: Levels, noise_std_levels: Levels
) -> tuple[np.ndarray, np.ndarray]:
    blur = _levels(op, "blur_std_levels", blur_std_levels)
    noise = _levels(op, "noise_std_levels", noise_std_levels)
    if blur.shape != noise.shape:
        raise ValueError(
            f"{op}: expected as many noise levels as blur levels, got {len(noise)} and {len(blur)}"
        )
    return blur, noise


def _levels(op: str, name: str, values: Levels) -> np.ndarray:
    levels = args.numbers(op, name, values, "levels")
    if min(levels, default=0.0) < 0:
        raise ValueError(f"{op}: expected {name} as numbers of at least 0, got {min(levels)!r}")
    return np.array(levels, dtype=np.float64)


def _double_sums(gram: np.ndarray) -> np.ndarray:
    """sum of gram[n, n'] over n, n' in [i, j), for all i <= j, and its mirror: [L, L] from [L - 1, L - 1].

    If gram holds the inner products of the changes between neighbouring levels, these are the squared
    distances. Only running sums are used: where the changes have one sign nothing cancels; elsewhere the
    relative rounding is that of the square of (length of the way between the levels / their distance).
    """
    count = len(gram)
    # above[i, n] = sum of gram[i..n-1, n]: level n + 1's change against all changes since level i.
    above = np.triu(np.cumsum(np.triu(gram, 1)[::-1], axis=0)[::-1])
    added = np.triu(2.0 * above + np.diag(gram)[None, :])
    squared = np.zeros((count + 1, count + 1))
    squared[:count, 1:] = np.cumsum(added, axis=1)
    return np.maximum(squared + squared.T, 0.0)


def _deviation_changes(
    gain: np.ndarray, drop: np.ndarray, variance: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """a_{n+1} - a_n of a = sqrt(m^2 v + s^2), for one channel: [L - 1, K], from a^2 - b^2 over a + b."""
    deviation = np.sqrt(gain**2 * variance + noise[:, None] ** 2)
    change = variance * drop * (gain[1:] + gain[:-1])
    change += (np.diff(noise) * (noise[1:] + noise[:-1]))[:, None]
    total = deviation[1:] + deviation[:-1]
    return np.divide(change, total, out=np.zeros_like(change), where=total > 0)


Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From blur_std and noise_std of L levels, float64 [L] each, to the distances between all, float64 [L, L]."""


class FeatureDistance:
    """The distance between levels of corruption on the features f of images, in place of the images.

    `sqrt(E |f(C_i x + noise_std_i n) - f(C_j x + noise_std_j n)|^2)`, with the same x and n in both:
    an upper bound of W2 between the features' distributions, and a metric, as the path needs. If f is the
    identity, it is `wasserstein_distances` with "shared" noise. The Fréchet distance would be a lower bound
    of W2; it needs a matrix root for each pair of levels, and far more images than features.

    The features of the last call's levels are kept, for a call that has some of them again: 4 L N D bytes.

    Args:
        images: [N, C, H, W], uint8, or floating-point in [-1, 1]. The mean over them is the estimate of E.
        features: From float32 images [B, C, H, W] to [B, ...]. It is called without gradients, on parts of
            the images.
        seed: Of the noise.

    Raises:
        ValueError: If features are not finite, or not one row for each image.

    Examples:
        >>> images = torch.rand(32, 1, 16, 16)
        >>> distance = FeatureDistance(images, lambda x: x.diff(dim=-1))  # edges alone
        >>> distance([0.0, 1.0, 2.0], [0.01, 0.01, 0.01]).shape
        (3, 3)
    """

    def __init__(self, images: Tensor, features: Callable[[Tensor], Tensor], *, seed: int = 0) -> None:
        args.image("FeatureDistance", "images", images, uint8=True)
        if not len(images):
            raise ValueError("FeatureDistance: expected at least one image, got none")
        self._images, self._features, self._seed = images, features, seed
        self._last: dict[tuple[float, float], np.ndarray] = {}

    def __call__(self, blur_std_levels: Levels, noise_std_levels: Levels) -> np.ndarray:
        """float64 [L, L], for blur_std and noise_std of L levels."""
        blur, noise = _blur_and_noise("FeatureDistance", blur_std_levels, noise_std_levels)
        levels = [*zip(blur.tolist(), noise.tolist(), strict=True)]
        self._last = {level: self._last[level] for level in levels if level in self._last}
        for level in levels:
            if level not in self._last:
                self._last[level] = self._at(*level)
        rows = np.stack([self._last[level] for level in levels])
        gram = np.zeros((len(levels) - 1, len(levels) - 1))
        for start in range(0, rows.shape[1], _COLUMNS):
            change = np.diff(rows[:, start : start + _COLUMNS].astype(np.float64), axis=0)
            gram += change @ change.T
        return np.sqrt(_double_sums(gram / len(self._images)))

    @torch.no_grad()
    def _at(self, blur_std: float, noise_std: float) -> np.ndarray:
        """The features of all images at one level, float32 [N D]."""
        parts = []
        for start in range(0, len(self._images), _FEATURE_BATCH):
            part = decode(self._images[start : start + _FEATURE_BATCH]).float()
            x_t = functional.corrupt(part, blur_std, noise_std, key=NoiseKey(self._seed, stream=start))
            assert isinstance(x_t, Tensor)
            features = self._features(x_t)
            if features.shape[:1] != part.shape[:1] or not bool(torch.isfinite(features).all()):
                raise ValueError(
                    f"FeatureDistance: expected finite features [{len(part)}, ...], one row for each image, "
                    f"got {args.describe(features)} for blur_std {blur_std:g}, noise_std {noise_std:g}"
                )
            parts.append(features.float().flatten().cpu())
        return torch.cat(parts).numpy()


def shortest_path(distances: np.ndarray, epsilon: float, step_cost: float = 0.0) -> list[int] | None:
    """Shortest path from the first level to the last in steps of at most epsilon; None if there is none.

    distances: float64 [L, L]. step_cost: what each step costs beyond its length, in units of epsilon.
    Returns the levels on the path. Dijkstra's algorithm, by scipy.sparse.csgraph. Without the limit the
    direct step is a shortest path, by the triangle inequality: the limit creates the nodes.
    """
    try:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import dijkstra
    except ImportError:
        raise ImportError("the shortest-path schedule needs scipy: pip install scipy") from None
    count = len(distances)
    # Steps lead towards more corruption only. A stored zero is an edge of length 0, not a missing one.
    start, end = np.nonzero(np.triu(distances <= epsilon, 1))
    cost = distances[start, end] + (step_cost * epsilon if step_cost else 0.0)
    graph = csr_array((cost, (start, end)), shape=(count, count))
    _, predecessors = dijkstra(graph, indices=0, return_predecessors=True)
    path = [count - 1]
    while path[-1] != 0:
        previous = int(predecessors[path[-1]])
        if previous < 0:
            return None
        path.append(previous)
    return path[::-1]


def path_with_nodes(distances: np.ndarray, nodes: int) -> tuple[float, list[int]]:
    """(step limit, path), of the path whose number of nodes is nearest to `nodes`.

    Only the distances themselves matter as limits. Bisection over them finds the smallest limit whose path
    has at most `nodes`. Of all paths that it computes, the one with the nearest number of nodes is returned,
    and among several of those the one with the smallest limit.
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
        error = abs(len(path) - nodes)
        if best is None or (error, limits[middle]) < best[:2]:
            best = (error, float(limits[middle]), path)
        if len(path) > nodes:
            low = middle
        else:
            high = middle
    assert best is not None, "the largest limit allows the direct step"
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
    distance: Distance | None = None,
    distance_name: str = "",
) -> Schedule:
    """The schedule of Daras et al. 2022: the smallest total W2 from data to corruption, in limited steps.

    Needs scipy. The step limit epsilon is found by bisection.

    A step costs a thousandth of epsilon beyond its length (ours). Among paths of nearly equal length, this
    selects one without needless short steps.

    The noise of a level is geometric in the share of the data's total W2 that blur alone has covered at
    that level, and full from some share on. That share is found by bisection, so that the noise is full at
    t = noise_full_at of the path, to within half a node if some path allows it (our choice: the paper gives
    noise over t only, and how noise entered its distances is not known).

    Args:
        spectrum: Moments of the data (`power_spectrum`).
        levels: Number of candidates, linear in blur_std; with `distance`, even in it without noise, since
            features may change so fast that a step from one linear level to the next is a long one.
        nodes: Number of nodes on the path, including both ends. If no limit gives that number, the nearest is
            taken (see `Schedule.nodes_wanted` and `.exact`).
        blur_std_min: Blur of the first level in pixels.
        blur_std_max: Blur of the last level. None is the paper's 23 px at 64 px, times max(H, W) / 64.
        noise_std_min: Noise at t = 0.
        noise_std_max: Noise from t = noise_full_at on.
        noise_full_at: The time at which the noise is full.
        noise_term: As in `wasserstein_distances`.
        dataset: A description for the file.
        distance: The distance between levels in W2's place, such as a `FeatureDistance`. noise_term then does
            not apply.
        distance_name: A description of it for the file, required with it.

    Examples:
        >>> spectrum = power_spectrum([torch.rand(32, 1, 16, 16)])  # your images, in batches
        >>> schedule = shortest_path_schedule(spectrum, levels=64, nodes=8)
        >>> schedule.blur_std[0], schedule.blur_std[-1]
        (0.01, 5.75)
    """
    op = "shortest_path_schedule"
    nodes, levels = args.integer(op, "nodes", nodes), args.integer(op, "levels", levels)
    if not 2 <= nodes <= levels:
        raise ValueError(f"{op}: expected 2 <= nodes <= levels, got nodes {nodes} and levels {levels}")
    size = args.image_size(op, spectrum.image_size)
    blur_std_min = args.number(op, "blur_std_min", blur_std_min)
    most = paper_blur_std_max(size) if blur_std_max is None else args.number(op, "blur_std_max", blur_std_max)
    if not blur_std_min < most:
        raise ValueError(
            f"{op}: expected 0 <= blur_std_min < blur_std_max, got {blur_std_min!r} and {most!r}"
        )
    args.choice(op, "noise_term", noise_term, NOISE_TERMS)
    if distance is None:
        if distance_name:
            raise ValueError(f"{op}: distance_name {distance_name!r} needs a distance")
        distance_name = PIXEL_DISTANCE

        def distance(blur: np.ndarray, noise: np.ndarray) -> np.ndarray:
            return wasserstein_distances(spectrum, blur, noise, noise_term)

        candidates = np.linspace(blur_std_min, most, levels)
        covered = _share_covered(distance, candidates)
    elif not distance_name or noise_term != "shared":
        raise ValueError(
            f"{op}: expected a distance with distance_name, a description of it, and without noise_term"
        )
    else:
        coarse = blur_std_min + (most - blur_std_min) * np.linspace(0.0, 1.0, _COARSE) ** 2
        covered = np.linspace(0.0, 1.0, levels)
        candidates = np.interp(covered, _share_covered(distance, coarse), coarse)
        candidates[[0, -1]] = blur_std_min, most  # also where nothing changes next to an end
    least_noise, most_noise, full_at = noise_range(op, noise_std_min, noise_std_max, noise_full_at)
    best: _Candidate | None = None
    low, high, target = 0.0, 1.0, full_at
    for _ in range(_MOST_ROUNDS):
        noise = geometric_noise_std(covered, least_noise, most_noise, full_at)
        distances = _checked(op, distance(candidates, noise), levels)
        if not distances[0, -1] > 0:
            raise ValueError(f"{op}: expected images that blur or noise changes, got a path of length 0")
        epsilon, path = path_with_nodes(distances, nodes)
        # The level at which the noise becomes full, then its time on the path.
        level = np.interp(full_at, covered, np.arange(levels))
        reached = float(np.interp(level, path, np.linspace(0.0, 1.0, len(path))))
        errors = (abs(len(path) - nodes), abs(reached - target))
        if best is None or errors < best.errors:
            best = _Candidate(errors, epsilon, path, noise, distances)
        if least_noise == most_noise or (errors[0] == 0 and errors[1] <= 0.5 / (len(path) - 1)):
            break
        low, high = (full_at, high) if reached < target else (low, full_at)
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
        noise_term=noise_term if distance_name == PIXEL_DISTANCE else "",
        images=spectrum.count,
        dataset=dataset,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=__version__,
        distance=distance_name,
    )


class _Candidate(NamedTuple):
    """A path. errors: how far its number of nodes and its time of full noise are from the requested ones."""

    errors: tuple[int, float]
    epsilon: float
    path: list[int]
    noise: np.ndarray
    distances: np.ndarray


def _checked(op: str, distances: np.ndarray, levels: int) -> np.ndarray:
    if distances.shape != (levels, levels) or not (distances >= 0).all() or not np.isfinite(distances).all():
        raise ValueError(
            f"{op}: expected finite distances [{levels}, {levels}] of at least 0, got {list(distances.shape)}"
        )
    return distances


def _share_covered(distance: Distance, blur_std_levels: np.ndarray) -> np.ndarray:
    """The share, 0 to 1, of the whole way through all levels that is covered at each level, without noise."""
    steps = np.diagonal(distance(blur_std_levels, np.zeros_like(blur_std_levels)), 1)
    total = steps.sum()
    if not total > 0:
        return np.linspace(0.0, 1.0, len(blur_std_levels))
    return np.append(0.0, np.cumsum(steps) / total)
