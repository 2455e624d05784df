# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter with a GPU's arithmetic: what it computes otherwise than the chip, modelled in numpy.

- **Products.** A tensor core takes k products of float16 and the accumulator together. Each of these terms is
  truncated at `fraction` bits below the largest one's exponent (a product's is the sum of its factors'
  exponents); the sum is exact, and is truncated to float32's 24 bits. k8, 24 bits: sm_80, 86, 89. k16, 25
  bits: sm_90, 100, 120. Sources: Fasi, Higham, Mikaitis, Pranesh 2021, "Numerical behavior of NVIDIA tensor
  cores"; Khattak, Mikaitis 2025, "Accurate models of NVIDIA tensor cores" (arXiv 2512.07004); MMA-Sim, which
  reports the same bits for instructions of every architecture. Ootomo & Yokota 2022 truncate the sum alone:
  kinder than the chip where products have one sign, up to twice as harsh where their signs vary.
- **Approximate functions.** `ex2` is off by 2 ulp, `lg2` by 2^-22 (absolute from 0.5 to 2, else relative),
  `sqrt` by 2^-23, `div.full` by 2 ulp: the most that the PTX ISA (9.1, section 9.7.3) allows, all to one
  side. "down" is nearer to zero, as truncated sums are, so that errors add up; "up" is the other side.
  `exp(x)` is `ex2` of the rounded product `x log2(e)`.
- **Denormals.** Of the float32 instructions in compiled kernels, `lg2` and `sqrt` alone have .ftz: their
  denormal arguments are zero.
- **Multiply and add.** A product that goes straight into a sum or difference is rounded once with it, as in
  the compiled kernels (`enable_fp_fusion`).

Not modelled: the order in which `tl.sum` adds, and which of two products in a sum the compiler fuses.

SOFTDIFF_CHIP names the model of a run: k16 (default), k8, or plain for the interpreter as it is;
SOFTDIFF_CHIP_ERRORS is down (default), up, or none. `chip` sets both for a while.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TensorCore:
    """k products are summed at a time; terms keep `fraction` bits below the largest one's exponent."""

    k: int
    fraction: int


TENSOR_CORES = {"k8": TensorCore(8, 24), "k16": TensorCore(16, 25)}
DIRECTIONS = {"down": -1, "none": 0, "up": 1}
# Exponents are kept above this: float16's products do not come near.
_LOWEST = -100
_LOG2_E = np.float32(1.4426950408889634)

_core: TensorCore | None = None
_direction = -1


@contextmanager
def chip(model: str, errors: str = "down") -> Iterator[None]:
    """The interpreter's arithmetic within: `model` k8, k16 or plain, `errors` down, up or none."""
    global _core, _direction
    before = _core, _direction
    _core = None if model == "plain" else TENSOR_CORES[model]
    _direction = DIRECTIONS[errors]
    try:
        yield
    finally:
        _core, _direction = before


def dot(a: Array, b: Array, c: Array, core: TensorCore) -> Array:
    """c + a b, [M, K] float16 times [K, N] float16 into [M, N] float32, k of the K products at a time."""
    if a.dtype != np.float16 or b.dtype != np.float16 or c.dtype != np.float32 or a.ndim != 2:
        raise NotImplementedError(
            f"expected matrices of float16 summed in float32, got {a.dtype}{a.shape} {b.dtype} into "
            f"{c.dtype}: extend the model of tensor cores (tests/chip_arithmetic.py)"
        )
    if a.shape[1] % core.k:
        raise NotImplementedError(f"expected K as a multiple of {core.k}, got {a.shape[1]}")
    whole = np.isfinite(a).all() and np.isfinite(b).all() and np.isfinite(c).all()
    with np.errstate(all="ignore"):
        plain = None if whole else a.astype(np.float32) @ b.astype(np.float32) + c
        a, b, total = (v if whole else np.where(np.isfinite(v), v, 0).astype(v.dtype) for v in (a, b, c))
        total = np.ascontiguousarray(total)
        rows, columns = a.astype(np.float32), b.astype(np.float32)
        row_exponents, column_exponents = _exponents(rows), _exponents(columns)
        for first in range(0, a.shape[1], core.k):
            block = slice(first, first + core.k)
            total = _mma(
                rows.T[block, :, None], columns[block, None, :], total,
                row_exponents.T[block, :, None], column_exponents[block, None, :], core.fraction,
            )  # fmt: skip
    return total if plain is None else np.where(np.isfinite(plain), total, plain)


def _exponents(x: Array) -> Array:
    """Of float16 values in float32, int8: at least -14, as a denormal has it; far below all for zero."""
    exponents = np.maximum(np.frexp(x)[1] - 1, -14)
    return np.where(x == 0, -60, exponents).astype(np.int8)


def _mma(a: Array, b: Array, total: Array, a_exponents: Array, b_exponents: Array, fraction: int) -> Array:
    """`total` [M, N] plus the sum of a [k, M, 1] times b [k, 1, N]."""
    largest = (a_exponents + b_exponents).max(axis=0).astype(np.int32)
    own = ((total.view(np.int32) >> 23) & 255) - 127
    largest = np.maximum(np.maximum(largest, own), _LOWEST)
    scale = ((127 + fraction - largest) << 23).view(np.float32)
    terms = a * b
    terms *= scale
    # The conversion to integers cuts off. 16 products below 2^(2 + 25) stay below 2^31.
    summed = np.add.reduce(terms.astype(np.int32), axis=0, dtype=np.int32)
    unit = ((127 - fraction + largest) << 23).view(np.float32)
    return towards_zero((summed + np.trunc(total * scale).astype(np.float64)) * unit)


def towards_zero(x: Array) -> Array:
    """float64 to float32, cut off."""
    return (np.ascontiguousarray(x).view(np.int64) & -(1 << 29)).view(np.float64).astype(np.float32)


def pushed(exact: Array, bound: Array) -> Array:
    """The float32 number furthest from `exact` to the side in force, but at most `bound`; both float64."""
    side = np.copysign(1.0, exact) * _direction
    limit = exact + side * bound
    result = limit.astype(np.float32)
    beyond = (result - limit) * side > 0
    return np.where(beyond, np.nextafter(result, exact.astype(np.float32)), result)


def ex2(x: Array) -> Array:
    """2^x of float32, off by 2 ulp of the rounded result; 1 for 0."""
    rounded = np.exp2(x.astype(np.float64)).astype(np.float32)
    fixed = (x == 0) | ~np.isfinite(rounded) | (rounded == 0)
    off = pushed(rounded.astype(np.float64), 2.0 * np.spacing(np.where(fixed, 1, rounded)).astype(np.float64))
    return np.where(fixed, rounded, off)


def lg2(x: Array) -> Array:
    """log2 of float32, off by 2^-22, absolute from 0.5 to 2, else relative; denormals are zero."""
    exact = np.log2(_flushed(x).astype(np.float64))
    bound = np.where((x > 0.5) & (x < 2), 2.0**-22, 2.0**-22 * np.abs(exact))
    return np.where(np.isfinite(exact), pushed(exact, bound), exact).astype(np.float32)


def sqrt(x: Array) -> Array:
    """The root of float32, off by 2^-23 of itself; denormals are zero."""
    exact = np.sqrt(_flushed(x).astype(np.float64))
    return np.where(np.isfinite(exact) & (exact > 0), pushed(exact, 2.0**-23 * exact), exact).astype(
        np.float32
    )


def divided(x: Array, y: Array) -> Array:
    """x / y of float32, off by 2 ulp."""
    rounded = (x / y).astype(np.float32)
    fixed = ~np.isfinite(rounded) | (rounded == 0)
    bound = 2.0 * np.abs(np.spacing(np.where(fixed, 1, rounded))).astype(np.float64)
    return np.where(fixed, rounded, pushed(rounded.astype(np.float64), bound))


def fused(x: Array, y: Array, z: Array) -> Array:
    """x y + z of float32; the product is exact in float64, whose own rounding of the sum is 2^-29 of ours."""
    return (x.astype(np.float64) * y.astype(np.float64) + z.astype(np.float64)).astype(np.float32)


def _flushed(x: Array) -> Array:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def install() -> None:
    """Patches Triton's interpreter; what `chip` says, or SOFTDIFF_CHIP, holds from then on."""
    global _core, _direction
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    names = ("dot", "exp", "exp2", "log2", "sqrt", "fdiv", "fadd", "fsub", "fmul", "fma", "broadcast")
    missing = [n for n in names if not hasattr(builder, f"create_{n}")]
    if missing:
        raise RuntimeError(
            f"expected Triton 3.6 to 3.9's interpreter, got one without create_{missing[0]}: fit "
            "tests/chip_arithmetic.py to it, or set SOFTDIFF_CHIP=plain"
        )
    plain = {n: getattr(builder, f"create_{n}") for n in names}

    def patch(name: str, replacement: Callable[..., Any], narrow: Callable[..., bool]) -> None:
        """Takes `replacement` where a GPU is modelled and `narrow` says that the operands are meant."""
        original = plain[name]

        def create(self: Any, *operands: Any) -> Any:
            modelled = _core is not None and narrow(*operands)
            return replacement(*operands) if modelled else original(self, *operands)

        setattr(builder, f"create_{name}", create)

    def single(*operands: Any) -> bool:
        return all(v.data.dtype == np.float32 for v in operands)

    def elementwise(fn: Callable[..., Array]) -> Callable[..., Any]:
        def create(*operands: Any) -> Any:
            with np.errstate(all="ignore"):
                return handle(fn(*(v.data for v in operands)), operands[0].dtype.scalar)

        return create

    # A product remembers its factors, for a sum that it goes into.
    def product(x: Any, y: Any) -> Any:
        result = handle(x.data * y.data, x.dtype.scalar)
        result.factors = x.data, y.data
        return result

    def wider(x: Any, shape: Any) -> Any:
        result = handle(np.broadcast_to(x.data, shape), x.dtype.scalar)
        result.factors = tuple(np.broadcast_to(v, shape) for v in x.factors)
        return result

    def added(x: Any, y: Any, sign: int = 1) -> Any:
        with np.errstate(all="ignore"):
            if hasattr(x, "factors"):
                return handle(fused(*x.factors, sign * y.data), x.dtype.scalar)
            first, second = y.factors
            return handle(fused(sign * first, second, x.data), x.dtype.scalar)

    def any_product(x: Any, y: Any) -> bool:
        return single(x, y) and (hasattr(x, "factors") or hasattr(y, "factors"))

    def multiplied(a: Any, b: Any, d: Any, *options: Any) -> Any:
        assert _core is not None
        return handle(dot(a.data, b.data, d.data, _core), d.dtype.scalar)

    patch("dot", multiplied, lambda *operands: True)
    patch("exp", elementwise(lambda x: ex2(x * _LOG2_E)), single)
    patch("exp2", elementwise(ex2), single)
    patch("log2", elementwise(lg2), single)
    patch("sqrt", elementwise(sqrt), single)
    patch("fdiv", elementwise(divided), single)
    patch("fma", elementwise(fused), single)
    patch("fmul", product, single)
    patch("fadd", added, any_product)
    patch("fsub", lambda x, y: added(x, y, -1), any_product)
    patch("broadcast", wider, lambda x, shape: hasattr(x, "factors"))
    model = os.environ.get("SOFTDIFF_CHIP", "k16")
    errors = os.environ.get("SOFTDIFF_CHIP_ERRORS", "down")
    if model not in (*TENSOR_CORES, "plain") or errors not in DIRECTIONS:
        raise ValueError(
            f"expected SOFTDIFF_CHIP as one of {', '.join(TENSOR_CORES)}, plain and SOFTDIFF_CHIP_ERRORS as "
            f"one of {', '.join(DIRECTIONS)}, got {model!r} and {errors!r}"
        )
    _core, _direction = TENSOR_CORES.get(model), DIRECTIONS[errors]
