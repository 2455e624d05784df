# SPDX-License-Identifier: Apache-2.0
"""That the noise is normal and independent, over millions of numbers, on every backend.

The keys are fixed, so that a test passes or fails for good.
"""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from checks import BACKENDS, needs_native

import softdiff_kernels as sk


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"seed": 7 + 2**32}, {"stream": 2}, {"stream": 1 + 2**32}, {"draw": 1}]
)
def test_every_part_of_the_key_matters(name, change):
    # Independent normals of 4000 elements correlate by 1/sqrt(4000) = 0.016 or so; 0.08 is five of those.
    base = {"seed": 7, "stream": 1, "draw": 0}
    with sk.use_backend(name):
        one, other = (sk.normal((1, 4000), sk.NoiseKey(**k))[0].double() for k in (base, {**base, **change}))
    assert abs(float(one @ other)) / 4000 < 0.08


@pytest.mark.parametrize("name", BACKENDS)
def test_moments_and_distribution(name):
    # Two million normals: the first four moments within five standard errors of 0, 1, 0 and 3, the errors
    # being sqrt(1, 2, 15, 96) / sqrt(n); Kolmogorov-Smirnov distance under 2.2/sqrt(n), chance 1e-4.
    n = 1 << 21
    with sk.use_backend(name):
        z = sk.normal((8, n // 8), sk.NoiseKey(20))
    z = z.double().flatten()
    assert abs(float(z.mean())) < 5 / math.sqrt(n)
    assert abs(float(z.square().mean()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float(z.pow(3).mean())) < 5 * math.sqrt(15 / n)
    assert abs(float(z.pow(4).mean()) - 3) < 5 * math.sqrt(96 / n)
    grid = torch.linspace(-4.5, 4.5, 901, dtype=torch.float64)
    below = torch.searchsorted(z.sort().values, grid).double() / n
    distance = (below - torch.from_numpy(scipy.stats.norm.cdf(grid.numpy()))).abs().max()
    assert float(distance) < 2.2 / math.sqrt(n)


@pytest.mark.parametrize("name", BACKENDS)
def test_neighbours_in_every_direction_are_independent(name):
    # Correlations at lags 1 to 4 (inside and across blocks), across planes and across images: each under
    # five standard errors, 5/sqrt(n).
    with sk.use_backend(name):
        z = sk.normal((64, 4096), sk.NoiseKey(6)).double()
    pairs = [(z[:, lag:], z[:, :-lag]) for lag in (1, 2, 3, 4, 1024)] + [(z[1:], z[:-1])]
    for one, other in pairs:
        assert abs(float((one * other).mean())) < 5 / math.sqrt(one.numel())


@needs_native
def test_the_rarest_words_agree_too():
    # The largest and smallest u lie in the tails, which a short run misses: over 4 million normals |z| passes
    # 5, and the worst difference still stays under 2e-6.
    key = sk.NoiseKey(31)
    truth = sk.reference.normal((4, 1 << 20), key, dtype=torch.float64)
    assert float(truth.abs().max()) > 5.0
    with sk.use_backend("native"):
        assert float((sk.normal((4, 1 << 20), key).double() - truth).abs().max()) < 2e-6
