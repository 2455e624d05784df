# SPDX-License-Identifier: Apache-2.0
"""Every coefficient of every op, for the tests that give each a bad value."""

from __future__ import annotations

import pytest
from checks import picture

import softdiff_kernels as sk

X = picture(2, 3, 4, 5)
NAN, INF = float("nan"), float("inf")


def reverse(x=X, y=X, **changes):
    return sk.reverse_step(x, y, **{"blur_std_t": 2.0, "blur_std_s": 1.0, "a": 0.5, "b": 0.1, **changes})


def momentum(x=X, y=X, **changes):
    stds = {"blur_std_t": 2.0, "blur_std_s": 0.2, "noise_std_t": 0.3, "noise_std_s": 0.2}
    return sk.momentum_step(x, y, **{**stds, **changes})


# Every coefficient: the op, its name, a call, and whether it may be negative.
COEFFICIENTS = [
    ("blur", "blur_std", lambda c: sk.blur(X, c), False),
    ("blur", "scale", lambda c: sk.blur(X, 1.0, scale=c), True),
    ("corrupt", "blur_std", lambda c: sk.corrupt(X, c, 0.1), False),
    ("corrupt", "noise_std", lambda c: sk.corrupt(X, 1.0, c), False),
    ("corrupt", "scale", lambda c: sk.corrupt(X, 1.0, 0.1, scale=c), True),
    ("reverse_step", "blur_std_t", lambda c: reverse(blur_std_t=c), False),
    ("reverse_step", "blur_std_s", lambda c: reverse(blur_std_s=c), False),
    ("reverse_step", "a", lambda c: reverse(a=c), True),
    ("reverse_step", "b", lambda c: reverse(b=c), False),
    ("momentum_step", "blur_std_t", lambda c: momentum(blur_std_t=c), False),
    ("momentum_step", "blur_std_s", lambda c: momentum(blur_std_s=c), False),
    ("momentum_step", "noise_std_t", lambda c: momentum(noise_std_t=c), False),
    ("momentum_step", "noise_std_s", lambda c: momentum(noise_std_s=c), False),
    ("soft_score_loss", "blur_std", lambda c: sk.soft_score_loss(X, X, c), False),
    ("soft_score_loss", "weight", lambda c: sk.soft_score_loss(X, X, 1.0, weight=c), False),
    ("spectral_loss", "weight", lambda c: sk.spectral_loss(X, X, X, weight=c), False),
]
EACH = pytest.mark.parametrize(
    ("op", "name", "call", "any_sign"), COEFFICIENTS, ids=lambda v: v if isinstance(v, str) else ""
)
