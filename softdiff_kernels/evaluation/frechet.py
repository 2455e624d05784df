# SPDX-License-Identifier: Apache-2.0
"""Distances between two sets of images by their features: Fréchet (Heusel et al. 2017) and kernel
(Bińkowski et al. 2018), whatever network the features come from; and METRICS, the list of what `softdiff
evaluate` computes, from which `--metric`, its help and a test of the docs derive."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]


def _float64(values: Tensor | Array) -> Array:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def _root(covariance: Array) -> Array:
    """R [K, D] with R^T R = covariance. By Cholesky if the matrix allows it, an order of magnitude faster;
    otherwise by eigenvectors, without the directions whose variance is rounding error."""
    symmetric = (covariance + covariance.T) / 2
    try:
        factor: Array = np.linalg.cholesky(symmetric).T
        return factor
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(symmetric)
    rounding = max(float(values.max(initial=0)), 0.0) * len(values) * np.finfo(np.float64).eps
    kept = values > rounding
    return np.sqrt(values[kept])[:, None] * vectors.T[kept]


def frechet_distance(
    mean1: Tensor | Array, cov1: Tensor | Array, mean2: Tensor | Array, cov2: Tensor | Array
) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    mean1, mean2: [D]; cov1, cov2: [D, D], symmetric, possibly singular. In units of a squared
    feature; computed in float64. Dowson & Landau 1982; for images Heusel et al. 2017, eq. 6.
    Raises ValueError if shapes do not fit or a number is not finite.
    """
    m1, s1, m2, s2 = (_float64(x) for x in (mean1, cov1, mean2, cov2))
    d = m1.size
    if m1.shape != (d,) or m2.shape != (d,) or s1.shape != (d, d) or s2.shape != (d, d):
        shapes = ", ".join(str(list(x.shape)) for x in (m1, s1, m2, s2))
        raise ValueError(f"frechet_distance: expected [D], [D, D], [D], [D, D], got {shapes}")
    if not all(np.isfinite(x).all() for x in (m1, s1, m2, s2)):
        raise ValueError("frechet_distance: expected finite means and covariances")
    # With S = R^T R, tr (S1 S2)^(1/2) is the sum of the singular values of R1 R2^T. The eigenvalues of
    # S1 S2 are their squares, in which the small ones would keep only half their digits.
    shared = np.linalg.svd(_root(s1) @ _root(s2).T, compute_uv=False).sum()
    difference = m1 - m2
    distance = difference @ difference + np.trace(s1) + np.trace(s2) - 2 * shared
    return max(0.0, float(distance))


class FeatureStatistics:
    """Mean and covariance of features that come in batches, in float64.

    Batches are merged by Chan, Golub & LeVeque 1979, so that features far from 0 lose no digits.
    source: a description of the images and the features.
    """

    def __init__(self, source: str = "") -> None:
        self.source = source
        self.count = 0
        self._mean: Array = np.zeros(0)
        self._scatter: Array = np.zeros((0, 0))

    def update(self, features: Tensor | Array) -> FeatureStatistics:
        """Adds a batch [N, D]. Raises ValueError for another D or a number that is not finite."""
        batch = _float64(features)
        if batch.ndim != 2 or (self.count and batch.shape[1] != self._mean.size):
            width = self._mean.size if self.count else "D"
            raise ValueError(f"FeatureStatistics: expected [N, {width}], got {list(batch.shape)}")
        if not np.isfinite(batch).all():
            raise ValueError("FeatureStatistics: expected finite features")
        if len(batch) == 0:
            return self
        if not self.count:
            width = batch.shape[1]
            self._mean, self._scatter = np.zeros(width), np.zeros((width, width))
        mean = batch.mean(axis=0)
        centred = batch - mean
        step = mean - self._mean
        total = self.count + len(batch)
        self._scatter += centred.T @ centred + np.outer(step, step) * (self.count * len(batch) / total)
        self._mean = self._mean + step * (len(batch) / total)
        self.count = total
        return self

    @property
    def mean(self) -> Array:
        """float64 [D]."""
        return self._mean

    @property
    def covariance(self) -> Array:
        """float64 [D, D], with N - 1 in the denominator. Raises ValueError below two images."""
        if self.count < 2:
            raise ValueError(f"FeatureStatistics: a covariance needs at least 2 images, got {self.count}")
        return self._scatter / (self.count - 1)

    def distance(self, other: FeatureStatistics) -> float:
        """The Fréchet distance to the statistics of other images."""
        return frechet_distance(self.mean, self.covariance, other.mean, other.covariance)


def kernel_distance(
    features1: Tensor | Array,
    features2: Tensor | Array,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Kernel inception distance: the unbiased estimate of the squared maximum mean discrepancy under
    the kernel (x.y / D + 1)^3, its mean and standard deviation over random subsets.

    features1 [N, D], features2 [M, D], at least 2 rows each; a subset is no larger than the smaller
    set. Being unbiased, it can be negative. Bińkowski et al. 2018, section 4. Raises ValueError
    if shapes do not fit or a number is not finite.
    """
    x, y = _float64(features1), _float64(features2)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        got = f"{list(x.shape)}, {list(y.shape)}"
        raise ValueError(f"kernel_distance: expected [N, D] and [M, D], got {got}")
    size = min(subset_size, len(x), len(y))
    if size < 2 or subsets < 1:
        raise ValueError(f"kernel_distance: expected a subset of 2 or more images, got {size}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("kernel_distance: expected finite features")
    order = np.random.default_rng(seed)
    estimates = []
    for _ in range(subsets):
        a = x[order.choice(len(x), size, replace=False)]
        b = y[order.choice(len(y), size, replace=False)]
        estimates.append(_discrepancy(a, b))
    return float(np.mean(estimates)), float(np.std(estimates))


def _discrepancy(a: Array, b: Array) -> float:
    """The unbiased estimate for two sets of one size: an image is never compared with itself."""
    n, d = a.shape
    within = [(k.sum() - np.trace(k)) / (n * (n - 1)) for k in ((s @ s.T / d + 1) ** 3 for s in (a, b))]
    return math.fsum((*within, -2 * ((a @ b.T / d + 1) ** 3).mean()))


def _frechet(ours: Tensor, theirs: Tensor, seed: int) -> tuple[float, float | None]:
    """No random numbers are drawn, and there is no spread."""
    return FeatureStatistics().update(ours).distance(FeatureStatistics().update(theirs)), None


def _kernel(ours: Tensor, theirs: Tensor, seed: int) -> tuple[float, float | None]:
    return kernel_distance(ours, theirs, seed=seed)


@dataclass(frozen=True)
class Metric:
    """A distance on the features of one network.

    title: its name in results; summary: in the help of `--metric`. features: of the user's own `classifier`,
    or of `inception`. distance(ours, theirs, seed): features [N, D] and [M, D] to the value, and its spread
    over random subsets if it has one. fewest: images below which it is refused without `--num`. published:
    images that published figures are computed from, 0 if there are none.
    """

    title: str
    summary: str
    features: str
    distance: Callable[[Tensor, Tensor, int], tuple[float, float | None]]
    fewest: int
    published: int = 0


METRICS = {
    # Several images for each of 64 features.
    "classifier": Metric(
        "classifier Fréchet distance",
        "Fréchet distance on a small classifier's features",
        "classifier",
        _frechet,
        fewest=500,
    ),
    # Several images for each of 2048 features.
    "fid": Metric(
        "FID (Fréchet inception distance)",
        "Fréchet distance on Inception's features",
        "inception",
        _frechet,
        fewest=10_000,
        published=50_000,
    ),
    # It has no bias; this is the size of its subsets.
    "kid": Metric(
        "KID (kernel inception distance)",
        "kernel distance on Inception's features",
        "inception",
        _kernel,
        fewest=1_000,
    ),
}
