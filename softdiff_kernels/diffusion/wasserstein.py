# SPDX-License-Identifier: Apache-2.0
"""Exact Wasserstein distances between the levels of a blur corruption, from a power spectrum.

Gaussian blurs commute and are positive, so `C_s x -> C_t x` is the gradient of a convex function and,
by Brenier's theorem, the optimal map: every image is paired with itself, for the empirical
distribution too. Hence, P the mean power of the DCT,

    W2^2(C_s X, C_t X) = sum_k (m_s[k] - m_t[k])^2 P[k].

Near levels are where the sum's digits are needed, so nothing here subtracts large like quantities:
differences of neighbouring levels come from expm1, all others are sums of those.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import _arguments as args
from .. import spectrum as dct
from .power_spectrum import PowerSpectrum

NOISE_TERMS = ("shared", "gaussian")


def wasserstein_distances(
    spectrum: PowerSpectrum,
    blur_std_levels: Sequence[float] | np.ndarray | Tensor,
    noise_std_levels: Sequence[float] | np.ndarray | Tensor,
    noise_term: str = "shared",
) -> np.ndarray:
    """W2 between `C_i X + noise_std_i N` and `C_j X + noise_std_j N`, for all i, j: float64 [L, L].

    blur_std_levels: pixels, never falling; noise_std_levels: as many. In the images' units times the
    root of the number of elements (the 2-norm of an image). noise_term says how noise enters:

    - "shared": both share N, `+ (noise_std_i - noise_std_j)^2 d`, d elements an image: an upper
      bound for any data, exact where no noise is.
    - "gaussian": exact if X were Gaussian with a covariance diagonal in the DCT, mean mu and
      variances v: `sum_k (sqrt(m_i^2 v + s_i^2) - sqrt(m_j^2 v + s_j^2))^2 + (m_i - m_j)^2 mu^2`
      (Dowson & Landau 1982).
    """
    op = "wasserstein_distances"
    args.choice(op, "noise_term", noise_term, NOISE_TERMS)
    blur = _levels(op, "blur_std_levels", blur_std_levels)
    noise = _levels(op, "noise_std_levels", noise_std_levels)
    if blur.shape != noise.shape:
        raise ValueError(
            f"{op}: expected as many noise levels as blur levels, got {len(noise)} and {len(blur)}"
        )
    if np.any(np.diff(blur) < 0):
        raise ValueError(f"{op}: expected blur_std_levels that never fall, got {args.shown(blur.tolist())}")

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


def _levels(op: str, name: str, values: Sequence[float] | np.ndarray | Tensor) -> np.ndarray:
    levels = args.numbers(op, name, values, "levels")
    if min(levels, default=0.0) < 0:
        raise ValueError(f"{op}: expected {name} as numbers of at least 0, got {min(levels)!r}")
    return np.array(levels, dtype=np.float64)


def _double_sums(gram: np.ndarray) -> np.ndarray:
    """sum of gram[n, n'] over n, n' in [i, j), for all i <= j, and its mirror: [L, L] of [L - 1, L - 1].

    With gram the inner products of the changes between neighbouring levels, these are the squared
    distances. Running sums alone: where the changes are of one sign nothing cancels, and elsewhere
    the rounding is that of the way between the levels over their distance, squared.
    """
    count = len(gram)
    # above[i, n] = sum of gram[i..n-1, n]: level n + 1's change against all since level i.
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
