# SPDX-License-Identifier: Apache-2.0
"""The shim that executes CUDA kernels on the CPU: it computes what a GPU would, and catches mistakes.

Kernels: tests/cuda_shim/kernels/.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from cuda_shim.loaded import address, k, order, path

__all__ = ["k", "order", "path"]  # fixtures


@pytest.mark.parametrize("lanes", [0, 1, 2, 5, 16, 31])
def test_shuffle(k, order, lanes):
    # Each lane gets the number of the lane of its own warp that `lanes` bits apart name.
    out = np.full(64, -1, np.int32)
    k.shuffle(lanes, address(out))
    assert np.array_equal(out, np.arange(64) ^ lanes)


@pytest.mark.parametrize("lanes", [[], [0], [31], [3, 40], list(range(64))], ids=str)
def test_votes(k, order, lanes):
    # A vote sees one warp.
    votes, out = np.zeros(64, np.int32), np.full(64, -1, np.int32)
    votes[lanes] = 2
    k.votes(address(votes), address(out), 64)
    assert np.array_equal(out, np.repeat(votes.reshape(2, 32).any(1), 32))


def test_half_to_float_for_all_halves(k):
    # Exact for all 65536 halves, by F16C and by integers; NaN stays NaN.
    words = np.arange(1 << 16, dtype=np.uint16)
    out, portable = np.zeros(1 << 16, np.float32), np.zeros(1 << 16, np.float32)
    k.from_half(address(words), 1 << 15, address(out), address(portable))
    truth = words.view(np.float16).astype(np.float32)
    for got in (out, portable):
        assert np.array_equal(got, truth, equal_nan=True)
        assert np.array_equal(np.signbit(got), np.signbit(truth))


def many_floats():
    """Every half, the middle between each and the next, the floats beside all these, and random words."""
    half = np.arange(1 << 15, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = half[np.isfinite(half)]
    middle = np.append((finite[1:] + finite[:-1]) / 2, np.float32(65520))
    near = [np.nextafter(v, np.float32(s)) for v in (finite, middle) for s in (0, np.inf)]
    rng = np.random.default_rng(0)
    words = rng.integers(0, 1 << 32, 1 << 19, dtype=np.uint32).view(np.float32)
    ordinary = rng.standard_normal(1 << 18) * 2.0 ** rng.integers(-26, 17, 1 << 18)
    values = np.concatenate([half, middle, *near, words, ordinary.astype(np.float32)])
    return np.concatenate([values, -values])


def test_float_to_half(k):
    # Bit by bit what numpy gives: nearest, ties to even; overflow to infinity; NaN kept.
    values = many_floats()
    n = len(values)
    pair, portable = np.zeros((n, 2), np.uint16), np.zeros(n, np.uint16)
    k.to_half(address(values), n, address(pair), address(portable))
    with np.errstate(over="ignore", invalid="ignore"):
        truth = values.astype(np.float16)
    nan = np.isnan(values)
    assert nan.any() and np.isinf(truth).any()
    # The first argument of __floats2half2_rn is the low half.
    for got, sign in ((pair[:, 0], 0), (portable, 0), (pair[:, 1], 0x8000)):
        assert np.array_equal(got[~nan] ^ np.uint16(sign), truth.view(np.uint16)[~nan])
        assert np.all(np.isnan(got.view(np.float16)[nan]))


@pytest.mark.parametrize("a, b", [(0, 5), (2**31, 3), (0x12345678, 0x9ABCDEF0), (2**32 - 1, 2**32 - 1)])
def test_bit_functions(k, a, b):
    words, out = np.array([a, b], np.uint32), np.zeros(2, np.uint32)
    k.bits(address(words), address(out))
    assert out.tolist() == [a * b >> 32, a & 0x7F000000]


@pytest.mark.parametrize(("errors", "side"), [("down", -1), ("none", 0), ("up", 1)])
def test_approximate_functions_err_by_what_is_documented_and_to_one_side(k, monkeypatch, errors, side):
    # At most the bound, on the side asked for, and within a last bit of the bound; where none is asked for,
    # half a last bit. ex2(0) = 1, so that the mean's gain is exact. Denormals are zero to sqrt and lg2.
    monkeypatch.setenv("SOFTDIFF_SHIM_ERRORS", errors)
    x = np.exp2(np.linspace(-20, 6, 5001)).astype(np.float32)
    out, wide = np.zeros((4, len(x)), np.float32), x.astype(np.float64)
    k.functions(address(x), len(x), address(out))
    exact = [np.sqrt(wide), np.log2(wide), np.exp2(-wide), np.expm1(-wide)]
    log_bound = np.maximum(np.abs(exact[1]), 1) * 2.0**-22
    ulps = [np.spacing(np.abs(e.astype(np.float32))).astype(np.float64) for e in exact]
    bounds = [exact[0] * 2.0**-23, log_bound, 2 * ulps[2], ulps[3]]
    for i, (got, truth, bound) in enumerate(zip(out, exact, bounds, strict=True)):
        rounded = truth if i < 2 else truth.astype(np.float32).astype(np.float64)
        off = (got - rounded) * np.sign(truth)
        last = np.spacing(np.abs(got)).astype(np.float64)
        assert np.all(np.abs(off) <= (bound if side else last / 2))
        assert not side or np.all(off * side >= bound - last)
    special, results = np.array([0.0, 1e-40, np.inf, np.nan], np.float32), np.zeros((4, 4), np.float32)
    k.functions(address(special), 4, address(results))
    assert np.array_equal(results[0], np.float32([0, 0, np.inf, np.nan]), equal_nan=True)
    assert np.array_equal(results[1], np.float32([-np.inf, -np.inf, np.inf, np.nan]), equal_nan=True)
    assert results[2:, 0].tolist() == [1, 0]
    assert results[2:, 2].tolist() == [0, -1] and np.isnan(results[2:, 3]).all()


def test_an_unknown_side_is_refused(k, monkeypatch):
    monkeypatch.setenv("SOFTDIFF_SHIM_ERRORS", "left")
    with pytest.raises(RuntimeError, match="expected down, up or none"):
        k.functions(address(np.zeros(1, np.float32)), 0, address(np.zeros(1, np.float32)))


def test_every_thread_of_every_block_runs_once(k, order):
    marks = np.zeros((5, 3, 2, 2, 4, 8), np.int32)  # grid (2, 3, 5), block (8, 4, 2)
    k.visit(address(marks))
    y = 10 * np.arange(3).reshape(1, 3, 1, 1, 1, 1)
    z = np.arange(2).reshape(1, 1, 1, 2, 1, 1)
    assert np.array_equal(marks, np.broadcast_to(1 + y + z, marks.shape))


def test_speed(k):
    # 8 warps, 4000 shuffles each: more than seconds would make whole images impossible.
    out = np.zeros(256, np.float32)
    start = time.perf_counter()
    k.many(4000, address(out))
    assert time.perf_counter() - start < 5
    assert np.all(out == 4000)
