# SPDX-License-Identifier: Apache-2.0
"""The model of a GPU's arithmetic for Triton's interpreter: known cases, an independent twin, its effect."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from checks import INTERPRETED, needs_interpreter
from chip_arithmetic import (
    TENSOR_CORES,
    TensorCore,
    chip,
    divided,
    dot,
    ex2,
    fused,
    lg2,
    sqrt,
    towards_zero,
)

CORES = pytest.mark.parametrize("core", TENSOR_CORES.values(), ids=TENSOR_CORES)
SIDES = pytest.mark.parametrize(("errors", "side"), [("down", -1), ("up", 1)])

if INTERPRETED:
    import triton
    import triton.language as tl

    @triton.jit
    def _all_kinds(a, b, x, out, N: tl.constexpr):
        i = tl.arange(0, N)
        at = i[:, None] * N + i[None, :]
        v = tl.load(x + at)
        tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at), v))
        out += N * N
        tl.store(out + at, tl.exp(v))
        out += N * N
        tl.store(out + at, tl.log2(v))
        out += N * N
        tl.store(out + at, tl.sqrt(v))
        out += N * N
        tl.store(out + at, v / 3.0)
        out += N * N
        tl.store(out + at, 1.0 - v * v)


def constants(k: int, a: float, b: float, start: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k equal products a b and an accumulator, as matrices [1, k], [k, 1], [1, 1]."""
    return np.full((1, k), a, np.float16), np.full((k, 1), b, np.float16), np.full((1, 1), start, np.float32)


@CORES
def test_small_integers_are_exact(core):
    # Sums below 2^24 have no bits to cut off.
    generator = np.random.default_rng(0)
    a, b = (generator.integers(-8, 9, shape).astype(np.float16) for shape in ((5, 64), (64, 7)))
    c = generator.integers(-99, 100, (5, 7)).astype(np.float32)
    assert np.array_equal(dot(a, b, c, core), a.astype(np.float64) @ b.astype(np.float64) + c)


@CORES
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_rounding_would_carry_up_is_cut_off(core, sign):
    # 1 + 3/4 of its last bit is nearer to the next number; the sum stays at 1, on either side of zero.
    a, b, c = constants(core.k, 0.0, 2.0**-12, sign)
    a[0, 0] = sign * 0.75 * 2.0**-11
    assert dot(a, b, c, core)[0, 0] == sign
    assert np.float32(float(c[0, 0]) + sign * 0.75 * 2.0**-23) != sign


def test_terms_below_the_largest_are_cut_off_one_by_one():
    # Eight products of 2^-25 are 2^-22 together, two last bits of 1. sm_80's terms end at 2^-24: all are
    # lost. sm_90's end at 2^-25: none is.
    assert dot(*constants(8, 2.0**-12, 2.0**-13, 1.0), TENSOR_CORES["k8"])[0, 0] == 1.0
    assert dot(*constants(16, 2.0**-12, 2.0**-13, 1.0), TENSOR_CORES["k16"])[0, 0] == 1.0 + 2.0**-21


@pytest.mark.parametrize(("name", "b"), [("k8", 2.0**-13), ("k16", 2.0**-14)])
def test_a_smaller_accumulator_may_give_a_larger_sum(name, b):
    # Fasi et al. 2021: sums that are not normalised between terms are not monotone. Below 1 the terms keep
    # one bit more, which they lose at 1.
    core = TENSOR_CORES[name]
    below = float(np.nextafter(np.float32(1), np.float32(0)))
    assert dot(*constants(core.k, 2.0**-12, b, 1.0), core)[0, 0] == 1.0
    assert dot(*constants(core.k, 2.0**-12, b, below), core)[0, 0] > 1.0


def test_fewer_products_at_a_time_lose_more():
    # 512 positive products: every sum falls short, about twice as far with 8 at a time as with 16.
    generator = np.random.default_rng(1)
    a, b = (generator.uniform(0.5, 1, shape).astype(np.float16) for shape in ((16, 512), (512, 16)))
    truth = a.astype(np.float64) @ b.astype(np.float64)
    start = np.zeros((16, 16), np.float32)
    short = {n: (truth - dot(a, b, start, core)) / truth for n, core in TENSOR_CORES.items()}
    assert short["k16"].min() > 0
    assert 1.5 < short["k8"].mean() / short["k16"].mean() < 3


def by_hand(a: list[float], b: list[float], total: float, core: TensorCore) -> float:
    """One element in exact fractions: each term on the grid of the largest, the sum, and 24 bits of it."""

    def exponent(x: float, least: int) -> int:
        return max(math.frexp(x)[1] - 1, least)

    def cut(x: Fraction, step: Fraction) -> Fraction:
        return math.trunc(x / step) * step

    for first in range(0, len(a), core.k):
        pairs = [p for p in zip(a[first : first + core.k], b[first : first + core.k], strict=True) if all(p)]
        terms = [(Fraction(x) * Fraction(y), exponent(x, -14) + exponent(y, -14)) for x, y in pairs]
        terms += [(Fraction(total), exponent(total, -126))] * (total != 0)
        if not terms:
            continue
        grid = Fraction(2) ** (max(e for _, e in terms) - core.fraction)
        exact = sum((cut(t, grid) for t, _ in terms), Fraction(0))
        total = float(cut(exact, Fraction(2) ** (exponent(float(exact), -126) - 23)))
    return total


@CORES
def test_random_products_are_those_of_exact_fractions(core):
    # Of one magnitude, of many, with zeros and with denormals of float16: the same number, bit for bit.
    generator = np.random.default_rng(2)
    for spread in (0.0, 4.0, 12.0):
        shape = (6, 32)
        a, b = (
            (generator.normal(size=shape) * 2.0 ** generator.uniform(-spread, spread / 3, shape)).astype(
                np.float16
            )
            for _ in range(2)
        )
        a[0, ::3] = 0
        c = (generator.normal(size=(6, 6)) * 2.0 ** generator.uniform(-spread, spread, (6, 6))).astype(
            np.float32
        )
        got = dot(a, b.T, c, core)
        expected = [
            [by_hand(u.tolist(), v.tolist(), float(c[i, j]), core) for j, v in enumerate(b)]
            for i, u in enumerate(a)
        ]
        assert np.array_equal(got, np.array(expected, np.float32))


@CORES
def test_infinities_reach_their_row_and_column(core):
    # As in any float32 sum; what they do not reach is as it was.
    generator = np.random.default_rng(3)
    a, b = (generator.normal(size=(16, 16)).astype(np.float16) for _ in range(2))
    c = np.zeros((16, 16), np.float32)
    clean = dot(a, b, c, core)
    a[3, 4] = np.inf
    got = dot(a, b, c, core)
    assert not np.isfinite(got[3]).any()
    assert np.array_equal(np.delete(got, 3, axis=0), np.delete(clean, 3, axis=0))


def test_what_is_not_modelled_is_refused():
    a, b, c = constants(16, 1.0, 1.0, 0.0)
    with pytest.raises(NotImplementedError, match=r"float16 summed in float32, got float32\(1, 16\)"):
        dot(a.astype(np.float32), b, c, TENSOR_CORES["k16"])
    with pytest.raises(NotImplementedError, match="K as a multiple of 16, got 8"):
        dot(a[:, :8], b[:8], c, TENSOR_CORES["k16"])


def test_towards_zero_never_grows():
    x = np.random.default_rng(4).normal(size=10_000)
    cut = towards_zero(x)
    assert (np.abs(cut) <= np.abs(x)).all()
    assert (np.abs(np.nextafter(cut, np.float32(np.inf) * np.sign(x).astype(np.float32))) > np.abs(x)).all()


ARGUMENTS = np.exp2(np.linspace(-30, 20, 20_001)).astype(np.float32)
FUNCTIONS = {
    # name: (fn, arguments, exact result, largest error): section 9.7.3 of the PTX ISA.
    "ex2": (
        ex2,
        -ARGUMENTS[ARGUMENTS < 100],
        lambda x: np.exp2(x).astype(np.float32),
        lambda y: 2 * np.spacing(y),
    ),
    "lg2": (
        lg2,
        ARGUMENTS,
        lambda x: np.log2(x),
        lambda y: np.where(np.abs(y) < 1, 2.0**-22, 2.0**-22 * np.abs(y)),
    ),
    "sqrt": (sqrt, ARGUMENTS, np.sqrt, lambda y: 2.0**-23 * y),
    "div.full": (
        lambda x: divided(x, np.float32(3)),
        ARGUMENTS,
        lambda x: x.astype(np.float32) / np.float32(3),
        lambda y: 2 * np.spacing(y),
    ),
}


@SIDES
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_err_by_what_is_documented_and_to_one_side(errors, side, name):
    # At most the bound, on the side asked for, and nearly the bound: within one float32 number of it.
    fn, x, exact, largest = FUNCTIONS[name]
    with chip("k8", errors):
        got = fn(x)
    truth = exact(x.astype(np.float64))
    bound, truth = largest(truth).astype(np.float64), truth.astype(np.float64)
    off = (got - truth) * side * np.where(truth < 0, -1, 1)
    assert got.dtype == np.float32
    assert (off <= bound).all()
    assert (off >= bound - np.spacing(np.abs(got))).all()


@SIDES
def test_functions_keep_their_fixed_points(errors, side):
    # ex2(0) = 1, so that the mean's gain is exact; zeros, infinities and NaN as in the PTX ISA's tables.
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)
    with chip("k8", errors), np.errstate(all="ignore"):
        assert np.array_equal(ex2(special), np.float32([1, 1, np.inf, 0, np.nan]), equal_nan=True)
        assert np.array_equal(
            lg2(special), np.float32([-np.inf, -np.inf, np.inf, np.nan, np.nan]), equal_nan=True
        )
        assert np.array_equal(sqrt(special), np.float32([0, -0.0, np.inf, np.nan, np.nan]), equal_nan=True)
        assert np.array_equal(divided(special[:3], np.float32(2)), special[:3])
        # Denormals: lg2 and sqrt take them for zero.
        denormal = np.float32([1e-40])
        assert lg2(denormal)[0] == -np.inf
        assert sqrt(denormal)[0] == 0


def test_a_fused_sum_rounds_once():
    # (1 + 2^-12)^2 - (1 + 2^-11) is 2^-24; the rounded product leaves nothing.
    x, z = np.float32([1 + 2.0**-12]), np.float32([-1 - 2.0**-11])
    assert fused(x, x, z)[0] == 2.0**-24
    assert (x * x + z)[0] == 0


@needs_interpreter
def test_triton_interpreted_kernels_compute_as_modelled():
    # Every kind of operation of a kernel, against the functions above; the plain interpreter gives others.
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=generator).half() for _ in range(2))
    x = torch.rand(16, 16, generator=generator) + 0.25
    results = {}
    for model in ("plain", "k8", "k16"):
        results[model] = torch.empty(6, 16, 16)
        with chip(model):
            _all_kinds[(1,)](a, b, x, results[model], N=16)
    v = x.numpy()
    for model, core in TENSOR_CORES.items():
        with chip(model):
            expected = [
                dot(a.numpy(), b.numpy(), v, core),
                ex2(v * np.float32(1.4426950408889634)),
                lg2(v),
                sqrt(v),
                divided(v, np.float32(3)),
                fused(-v, v, np.float32(1) + 0 * v),
            ]
        for got, plain, wanted in zip(results[model], results["plain"], expected, strict=True):
            assert np.array_equal(got.numpy(), wanted)
            assert not torch.equal(got, plain)
