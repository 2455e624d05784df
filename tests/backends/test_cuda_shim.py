# SPDX-License-Identifier: Apache-2.0
"""The shim that executes CUDA kernels on the CPU: it computes what a GPU would, and catches mistakes.

Kernels: tests/cuda_shim/kernels/. The layouts of fragments are written here once more, from the PTX ISA.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from cuda_shim.loaded import address, k, order, path

__all__ = ["k", "order", "path"]  # fixtures


def halves(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def mma(k, a, b, c):
    """a [warps, 16, 16], b [warps, 16, 8] float16, c [warps, 16, 8] float32; fragments as in the PTX ISA."""
    warps = len(a)
    words = np.zeros((warps, 32, 10), np.uint32)
    pairs, floats = words.view(np.float16), words.view(np.float32)
    spots = [(lane, i) for lane in range(32) for i in range(4)]
    place = [(lane, i, lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)) for lane, i in spots]
    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for i in range(8):  # a_i: row groupID for i in 0, 1, 4, 5, else groupID + 8; columns 8 on for i >= 4
            row, column = group + (0 if i in (0, 1, 4, 5) else 8), thread * 2 + (i & 1) + (8 if i >= 4 else 0)
            pairs[:, lane, i] = a[:, row, column]
        for i in range(4):  # b_i: row in the thread's pair, 8 further for i >= 2; column groupID
            pairs[:, lane, 8 + i] = b[:, thread * 2 + (i & 1) + (8 if i >= 2 else 0), group]
    for lane, i, row, column in place:
        floats[:, lane, 6 + i] = c[:, row, column]
    out = np.full((warps, 32, 4), np.nan, np.float32)
    k.mma(address(words), address(out), 32 * warps)
    d = np.zeros_like(c)
    for lane, i, row, column in place:
        d[:, row, column] = out[:, lane, i]
    return d


def test_mma(k, order):
    a, b = halves(2, 16, 16), halves(2, 16, 8, seed=1)
    c = np.random.default_rng(2).standard_normal((2, 16, 8)).astype(np.float32)
    truth = a.astype(np.float64) @ b.astype(np.float64) + c
    d = mma(k, a, b, c)
    # The sum is float64's, then cut to float32 towards zero: an error of one ulp at most, never outwards.
    assert np.all(np.abs(d) <= np.abs(truth))
    assert np.all(np.abs(d - truth) <= np.spacing(np.abs(d)))


def test_mma_of_subnormals_and_infinities(k):
    # Halves below 2^-14 count in full; infinity times 1 is infinity; infinity times 0 is NaN.
    a, b = np.zeros((1, 16, 16), np.float16), np.zeros((1, 16, 8), np.float16)
    c = np.zeros((1, 16, 8), np.float32)
    a[0, 3, 5], b[0, 5, :] = 2.0**-24, 2.0**-20
    a[0, 9, 7], b[0, 7, 1] = np.inf, 1.0
    d = mma(k, a, b, c)[0]
    assert np.all(d[3] == 2.0**-44)
    assert d[9, 1] == np.inf and np.isnan(d[9, 0]) and np.all(np.isfinite(np.delete(d, 9, axis=0)))


def test_ldmatrix(k, order):
    # Register m of lane l: elements (l / 4, l % 4 * 2 + {0, 1}) of matrix m, or of its transpose; row r of
    # matrix m lies where lane 8 m + r says.
    matrices = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8) + 1000
    rows = np.random.default_rng(0).permutation(32).astype(np.int32)
    out = np.zeros((32, 2, 4, 2), np.uint16)
    k.ldmatrix(address(matrices), address(rows), address(out))
    chosen = matrices[rows].reshape(4, 8, 8)
    for lane in range(32):
        r, c = lane // 4, lane % 4 * 2
        assert np.array_equal(out[lane, 0], chosen[:, r, c : c + 2])
        assert np.array_equal(out[lane, 1], chosen.transpose(0, 2, 1)[:, r, c : c + 2])


def test_movmatrix(k):
    # Lane l holds elements (l / 4, l % 4 * 2 + {0, 1}): the lanes' words in order are the matrix, row by row.
    matrix = np.arange(64, dtype=np.uint16).reshape(8, 8) + 7
    out = np.zeros((8, 8), np.uint16)
    k.movmatrix(address(matrix), address(out))
    assert np.array_equal(out, matrix.T)


@pytest.mark.parametrize("width", [32, 16, 8, 1])
def test_shuffles(k, width):
    # A lane whose source lies outside its segment keeps its own value.
    operand = np.random.default_rng(width).integers(0, 32, 32).astype(np.int32)
    out = np.full((32, 4), -1, np.int32)
    k.shuffles(address(operand), width, address(out))
    for lane in range(32):
        first, o = lane // width * width, int(operand[lane])
        up, down, cross = lane - o, lane + o, lane ^ o
        assert list(out[lane]) == [
            first + o % width,
            up if up >= first else lane,
            down if down < first + width else lane,
            cross if cross < first + width else lane,
        ]


@pytest.mark.parametrize("lanes", [[], [0], [31], [3, 40], list(range(64))], ids=str)
def test_votes(k, order, lanes):
    # ballot, any and all see one warp, __syncthreads_or the block.
    votes = np.zeros(64, np.int32)
    votes[lanes] = 2
    out = np.zeros((64, 4), np.uint32)
    k.votes(address(votes), address(out), 64)
    for t in range(64):
        warp = votes[t // 32 * 32 :][:32] != 0
        mask = sum(1 << int(i) for i in np.flatnonzero(warp))
        assert [int(v) for v in out[t, :3]] == [mask, int(warp.any()), int(warp.all())]
        assert out[t, 3] == (2 if lanes else 0)


def test_half_to_float_for_all_halves(k):
    # Exact for all 65536 halves, by F16C and by integers; NaN stays NaN.
    words = np.arange(1 << 16, dtype=np.uint16)
    brain_in = words[: 1 << 15].copy()
    out, portable = np.zeros(1 << 16, np.float32), np.zeros(1 << 16, np.float32)
    brain = np.zeros(1 << 15, np.float32)
    k.from_half(*map(address, (words,)), 1 << 15, *map(address, (out, portable, brain_in, brain)))
    truth = words.view(np.float16).astype(np.float32)
    for got in (out, portable):
        assert np.array_equal(got, truth, equal_nan=True)
        assert np.array_equal(np.signbit(got), np.signbit(truth))
    expected = torch.from_numpy(brain_in.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(brain, expected, equal_nan=True)


def many_floats():
    """Every half, the middle between each and the next, the floats beside all these, and random words."""
    half = np.arange(1 << 15, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = half[np.isfinite(half)]
    middle = np.append((finite[1:] + finite[:-1]) / 2, np.float32(65520))
    near = [np.nextafter(v, np.float32(s)) for v in (finite, middle) for s in (0, np.inf)]
    brain = (np.arange(1 << 16, dtype=np.uint32) << 15).view(np.float32)  # every bfloat16 and every middle
    beside = [(brain.view(np.uint32) + np.uint32(d)).view(np.float32) for d in (1, 0xFFFFFFFF)]
    rng = np.random.default_rng(0)
    words = rng.integers(0, 1 << 32, 1 << 19, dtype=np.uint32).view(np.float32)
    ordinary = rng.standard_normal(1 << 18) * 2.0 ** rng.integers(-26, 17, 1 << 18)
    values = np.concatenate([half, middle, *near, brain, *beside, words, ordinary.astype(np.float32)])
    return np.concatenate([values, -values])


def test_float_to_half_and_bfloat16(k):
    # Bit by bit what numpy and torch give: nearest, ties to even; overflow to infinity; NaN kept.
    values = many_floats()
    n = len(values)
    pair, portable, brain = np.zeros((n, 2), np.uint16), np.zeros(n, np.uint16), np.zeros(n, np.uint16)
    k.to_half(address(values), n, *map(address, (pair, portable, brain)))
    with np.errstate(over="ignore", invalid="ignore"):
        truth = values.astype(np.float16)
    nan = np.isnan(values)
    assert nan.any() and np.isinf(truth).any()
    # The first argument of __floats2half2_rn is the low half.
    for got, sign in ((pair[:, 0], 0), (portable, 0), (pair[:, 1], 0x8000)):
        assert np.array_equal(got[~nan] ^ np.uint16(sign), truth.view(np.uint16)[~nan])
        assert np.all(np.isnan(got.view(np.float16)[nan]))
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(brain[~nan], expected[~nan])
    assert np.all(brain[nan] & 0x7FFF > 0x7F80)


@pytest.mark.parametrize("a, b, shift", [(0, 5, 0), (2**31, 3, 1), (0x12345678, 0x9ABCDEF0, 31), (1, 2, 32)])
def test_bit_functions(k, a, b, shift):
    words, out = np.array([a, b, shift], np.uint32), np.zeros(6, np.uint32)
    k.bits(address(words), address(out))
    joined = ((b << 32 | a) << (shift % 32)) >> 32 & 0xFFFFFFFF
    leading = 32 - a.bit_length()
    assert out.tolist() == [a * b >> 32, leading, bin(a).count("1"), joined, a & 0x7F000000, b & 0x3F000000]


@pytest.mark.parametrize(("errors", "side"), [("down", -1), ("none", 0), ("up", 1)])
def test_approximate_functions_err_by_what_is_documented_and_to_one_side(k, monkeypatch, errors, side):
    # At most the bound, on the side asked for, and within a last bit of the bound; where none is asked for,
    # half a last bit. ex2(0) = 1, so that the mean's gain is exact. Denormals are zero to sqrt and lg2.
    monkeypatch.setenv("SOFTDIFF_SHIM_ERRORS", errors)
    x = np.exp2(np.linspace(-20, 6, 5001)).astype(np.float32)
    out, wide = np.zeros((5, len(x)), np.float32), x.astype(np.float64)
    k.functions(address(x), len(x), address(out))
    exact = [np.sqrt(wide), np.log2(wide), np.exp(-wide), np.exp2(-wide), np.expm1(-wide)]
    log_bound = np.maximum(np.abs(exact[1]), 1) * 2.0**-22
    ulps = [np.spacing(np.abs(e.astype(np.float32))).astype(np.float64) for e in exact]
    bounds = [exact[0] * 2.0**-23, log_bound, 2 * ulps[2], 2 * ulps[3], ulps[4]]
    for i, (got, truth, bound) in enumerate(zip(out, exact, bounds, strict=True)):
        rounded = truth if i < 2 else truth.astype(np.float32).astype(np.float64)
        off = (got - rounded) * np.sign(truth)
        last = np.spacing(np.abs(got)).astype(np.float64)
        assert np.all(np.abs(off) <= (bound if side else last / 2))
        assert not side or np.all(off * side >= bound - last)
    special, results = np.array([0.0, 1e-40, np.inf, np.nan], np.float32), np.zeros((5, 4), np.float32)
    k.functions(address(special), 4, address(results))
    assert np.array_equal(results[0], np.float32([0, 0, np.inf, np.nan]), equal_nan=True)
    assert np.array_equal(results[1], np.float32([-np.inf, -np.inf, np.inf, np.nan]), equal_nan=True)
    assert results[2:4, 0].tolist() == [1, 1] and results[4, 0] == 0
    assert results[2:, 2].tolist() == [0, 0, -1] and np.isnan(results[2:, 3]).all()


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


def test_atomics(k, order):
    f, d = np.zeros(1, np.float32), np.zeros(1, np.float64)
    u, i = np.array([2**32 - 1, 7], np.uint32), np.array([-(2**31), -5000], np.int32)
    k.atomics(*map(address, (f, d, u, i)))
    # 192 threads; integers wrap around.
    assert f[0] == 192 and d[0] == 96
    assert u.tolist() == [2 * 192 - 1, 191] and i.tolist() == [2**31 - 192, 191 - 1000]


def test_speed(k):
    # 8 warps, 4000 products each: seconds would make whole images impossible. Takes 0.06 s on an AMD EPYC.
    out = np.zeros(256, np.float32)
    start = time.perf_counter()
    k.many(4000, address(out))
    assert time.perf_counter() - start < 5
    assert np.all(out == 16 * 4000)
