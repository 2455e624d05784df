# SPDX-License-Identifier: Apache-2.0
"""The DCT basis, the eigenvalues and the gains, by their definitions and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import torch

from softdiff_kernels import spectrum

SIZES = [1, 2, 3, 7, 8, 31, 64, 97, 257]


@pytest.mark.parametrize("n", SIZES)
def test_basis_is_orthonormal(n):
    # Entries are right to 2.2e-16 / sqrt(n) each, and a product sums n of them: 1e-13 is ample up to 257.
    basis = spectrum.dct_basis(n)
    assert (basis @ basis.T - torch.eye(n, dtype=torch.float64)).abs().max() < 1e-13


@pytest.mark.parametrize("n", SIZES)
def test_basis_is_scipys_dct_ii(n):
    # Column i is the transform of the i-th unit vector; both are good to a few units in the last place.
    columns = scipy.fft.dct(np.eye(n), type=2, norm="ortho", axis=0)
    assert np.abs(spectrum.dct_basis(n).numpy() - columns).max() < 1e-14


def test_basis_rounds_once_to_the_dtype():
    # The float32 table is the float64 one rounded, not one computed in float32.
    assert torch.equal(spectrum.dct_basis(97, dtype=torch.float32), spectrum.dct_basis(97).float())


def test_basis_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"expected n >= 1, got 0"):
        spectrum.dct_basis(0)


@pytest.mark.parametrize("n", [2, 3, 8, 31])
def test_basis_vectors_obey_the_half_sample_boundary(n):
    # Extended by its own mirror image about the edge, cos(pi k (2 i + 1) / 2n) goes on as a cosine: the
    # second difference with mirrored ends is -(2 - 2 cos(pi k / n)) times the vector.
    basis = spectrum.dct_basis(n).numpy()
    padded = np.pad(basis, ((0, 0), (1, 1)), mode="symmetric")
    second = padded[:, 2:] - 2 * basis + padded[:, :-2]
    expected = -(2 - 2 * np.cos(np.pi * np.arange(n) / n))[:, None] * basis
    assert np.abs(second - expected).max() < 1e-14


def test_eigenvalues_by_hand():
    # (pi k / n)^2 for n = 4: 0, pi^2/16, pi^2/4, 9 pi^2/16; in 2-D the two axes add.
    along = spectrum.eigenvalues(4)
    assert along.tolist() == pytest.approx([0.0, math.pi**2 / 16, math.pi**2 / 4, 9 * math.pi**2 / 16])
    both = spectrum.eigenvalues_2d(4, 2)
    assert both.shape == (4, 2)
    assert float(both[3, 1]) == pytest.approx(9 * math.pi**2 / 16 + math.pi**2 / 4)
    assert float(both[0, 0]) == 0.0


@pytest.mark.parametrize(("floor", "scale"), [(0.0, 1.0), (0.25, 1.0), (0.0, 0.5), (0.1, 2.0)])
def test_heat_gain_by_definition(floor, scale):
    # scale ((1 - floor) exp(-lambda std^2 / 2) + floor), number by number.
    std = [0.0, 0.5, 3.0]
    gain = spectrum.heat_gain(torch.tensor(std, dtype=torch.float64), 3, 5, floor=floor, scale=scale)
    assert gain.shape == (3, 1, 3, 5)
    for b, value in enumerate(std):
        for k in range(3):
            for j in range(5):
                lam = (math.pi * k / 3) ** 2 + (math.pi * j / 5) ** 2
                expected = scale * ((1 - floor) * math.exp(-lam * value**2 / 2) + floor)
                assert float(gain[b, 0, k, j]) == pytest.approx(expected, rel=1e-14)


def test_heat_gain_takes_a_scale_for_each_sample():
    std = torch.tensor([1.0, 1.0], dtype=torch.float64)
    gain = spectrum.heat_gain(std, 4, 4, scale=torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert torch.equal(gain[1], 3 * gain[0])


@pytest.mark.parametrize("floor", [0.0, 0.2])
@pytest.mark.parametrize(("t", "s"), [(3.0, 2.0), (2.0, 3.0), (1.0, 0.0), (2.0, 2.0), (5.0, 4.999)])
@pytest.mark.parametrize("a", [0.0, 0.9, 1.0, -0.5])
def test_reverse_gain_is_the_difference_of_two_heat_gains(t, s, a, floor):
    # In float64 the plain difference is right to 2.2e-16 of the larger gain, which is at most 1 + |a|.
    std_t, std_s, keep = (torch.tensor([v], dtype=torch.float64) for v in (t, s, a))
    plain = spectrum.heat_gain(std_s, 9, 16, floor=floor) - a * spectrum.heat_gain(std_t, 9, 16, floor=floor)
    gain = spectrum.reverse_gain(std_t, std_s, 1 - keep, 9, 16, floor=floor)
    assert (gain - plain).abs().max() < 1e-15 * (1 + abs(a)) * 4


def test_reverse_gain_keeps_its_digits_in_float32():
    # A small step with a = 1: C_s - C_t is 1e-4 of either. Subtracted in float32 it is off by some 1e-3 of
    # itself where it is large; by expm1 by under 1e-5.
    std_t, std_s = torch.tensor([5.0]), torch.tensor([4.9995])
    exact = spectrum.reverse_gain(std_t.double(), std_s.double(), torch.zeros(1, dtype=torch.float64), 64, 64)
    kept = spectrum.reverse_gain(std_t, std_s, torch.zeros(1), 64, 64)
    naive = spectrum.heat_gain(std_s, 64, 64) - spectrum.heat_gain(std_t, 64, 64)

    def error(gain):
        return float((gain.double() - exact).norm() / exact.norm())

    assert error(kept) < 1e-5
    assert error(naive) > 10 * error(kept)
