# SPDX-License-Identifier: Apache-2.0
"""Fréchet and kernel distances against closed forms, scipy and sums written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softdiff_kernels.evaluation import FeatureStatistics, frechet_distance, kernel_distance


def covariance(rng: np.random.Generator, d: int, rank: int | None = None) -> np.ndarray:
    factor = rng.normal(size=(d, rank or 2 * d))
    return factor @ factor.T / factor.shape[1]


def test_diagonal_gaussians_have_the_closed_form() -> None:
    # Independent coordinates: the squared distances of mean and of standard deviation add up.
    m1, m2 = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    s1, s2 = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 0.25])
    wanted = ((m1 - m2) ** 2).sum() + ((np.sqrt(s1) - np.sqrt(s2)) ** 2).sum()
    assert frechet_distance(m1, np.diag(s1), m2, np.diag(s2)) == pytest.approx(wanted, rel=1e-14)


def test_commuting_covariances_have_the_closed_form() -> None:
    # In a common eigenbasis the covariances are diagonal, and a rotation changes no distance.
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    s1, s2 = rng.uniform(0, 3, 30), rng.uniform(0, 3, 30)
    value = frechet_distance(np.zeros(30), basis * s1 @ basis.T, np.zeros(30), basis * s2 @ basis.T)
    assert value == pytest.approx(((np.sqrt(s1) - np.sqrt(s2)) ** 2).sum(), rel=1e-12)


def test_it_is_a_distance_also_where_covariances_are_singular() -> None:
    rng = np.random.default_rng(1)
    for rank in (None, 5):
        m1, m2 = rng.normal(size=(2, 40))
        s1, s2 = covariance(rng, 40, rank), covariance(rng, 40, rank)
        # Nothing is at a distance from itself; rounding leaves a part in 10^13 of the variance.
        assert frechet_distance(m1, s1, m1, s1) <= 1e-13 * np.trace(s1)
        # Either order gives the same.
        there, back = frechet_distance(m1, s1, m2, s2), frechet_distance(m2, s2, m1, s1)
        assert there == pytest.approx(back, rel=1e-13)
        # It is the square of a metric: the triangle inequality holds for its root.
        m3, s3 = (m1 + m2) / 2, (s1 + s2) / 2
        parts = np.sqrt(frechet_distance(m1, s1, m3, s3)) + np.sqrt(frechet_distance(m3, s3, m2, s2))
        assert np.sqrt(there) <= parts


def test_it_equals_the_matrix_square_root() -> None:
    # The definition's own words, by scipy's general square root of the product.
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(2)
    m1, m2 = rng.normal(size=(2, 25))
    s1, s2 = covariance(rng, 25), 3 * covariance(rng, 25)
    root = linalg.sqrtm(s1 @ s2).real
    wanted = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    assert frechet_distance(m1, s1, m2, s2) == pytest.approx(wanted, rel=1e-11)
    # Tensors are taken as arrays are.
    tensors = [torch.from_numpy(x) for x in (m1, s1, m2, s2)]
    assert frechet_distance(*tensors) == frechet_distance(m1, s1, m2, s2)


def test_wrong_shapes_and_numbers_are_refused() -> None:
    eye = np.eye(2)
    with pytest.raises(ValueError, match=r"expected \[D\], \[D, D\]"):
        frechet_distance(np.zeros(2), eye, np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.zeros(2), eye, np.zeros(2), eye * np.nan)
    with pytest.raises(ValueError, match="finite"):
        FeatureStatistics().update(np.full((2, 2), np.inf))
    with pytest.raises(ValueError, match=r"expected \[N, 2\]"):
        FeatureStatistics().update(np.zeros((2, 2))).update(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least 2"):
        _ = FeatureStatistics().update(np.zeros((1, 2))).covariance
    with pytest.raises(ValueError, match=r"\[N, D\] and \[M, D\]"):
        kernel_distance(np.zeros((4, 2)), np.zeros((4, 3)))


def test_batches_give_the_statistics_of_the_whole() -> None:
    # Far from 0, where a sum of squares would have lost 8 of 16 digits.
    features = np.random.default_rng(3).normal(size=(501, 7)) + 1e4
    statistics = FeatureStatistics()
    for batch in np.split(features, [1, 1, 2, 100, 400]):
        statistics.update(batch)
    assert statistics.count == 501
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), rtol=1e-10, atol=1e-12)


def test_the_kernel_distance_is_the_sum_over_pairs() -> None:
    # One subset that holds all rows: the estimator of Bińkowski et al., pair by pair.
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 4)) + 0.5

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        pairs = [(i, j) for i in range(6) for j in range(6) if not (same and i == j)]
        return float(np.mean([(a[i] @ b[j] / 4 + 1) ** 3 for i, j in pairs]))

    wanted = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    value, spread = kernel_distance(x, y, subsets=3)
    assert value == pytest.approx(wanted, rel=1e-12) and spread == pytest.approx(0, abs=1e-12)


def test_the_kernel_distance_is_unbiased_and_repeats() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(2, 2000, 8))
    value, spread = kernel_distance(x, y, subsets=50, subset_size=200)
    # One distribution: 0 within the spread of the subsets; another: well over it.
    assert abs(value) < spread
    assert kernel_distance(x, y + 1, subsets=50, subset_size=200)[0] > 10 * spread
    # The subsets come from the seed alone.
    assert kernel_distance(x, y, subsets=5, seed=1) == kernel_distance(x, y, subsets=5, seed=1)
    assert kernel_distance(x, y, subsets=5, seed=1) != kernel_distance(x, y, subsets=5, seed=2)
