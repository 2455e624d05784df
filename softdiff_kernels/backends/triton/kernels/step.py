# SPDX-License-Identifier: Apache-2.0
"""reverse_step and momentum_step: `keep x_t + (C_s - keep C_t) x0_hat + inject n`, in one pass."""

from __future__ import annotations

import triton
import triton.language as tl

from .device import coefficient, exponents, heat, heat_loss, image_pixels, key_of, noise_tile, power, put
from .plane import filter_plane, filter_staged


@triton.jit
def _prepare(pointers, b, STATIC: tl.constexpr):
    """csrc/heat.h says the same for the CPU; what is a difference here is formed as it is there."""
    STEPS: tl.constexpr = STATIC[1]
    tau, step = exponents(pointers[4], pointers[5], b, STEPS[0], STEPS[1])
    keep = coefficient(pointers[6], b, STEPS[2])
    inject = coefficient(pointers[7], b, STEPS[3])
    one_minus_keep = pointers[8]
    if STEPS[2] >= 0:
        first = tl.load(pointers[6] + b.to(tl.int64) * STEPS[2])
        if STATIC[8] == 0:
            one_minus_keep = (1.0 - first).to(tl.float32)
        else:
            second = tl.load(pointers[7] + b.to(tl.int64) * STEPS[3])
            silent = first == 0.0
            safe = tl.where(silent, first + 1.0, first)
            ratio = tl.where(silent, first + 1.0, second / safe)
            gap = (first - second) * (first + second)
            keep = (ratio * ratio).to(tl.float32)
            one_minus_keep = tl.where(silent, 0.0, (gap / safe / safe).to(tl.float32))
            inject = tl.sqrt(tl.maximum(gap, 0.0, propagate_nan=tl.PropagateNan.ALL).to(tl.float32))
            if STATIC[8] == 2:
                inject = inject * ratio.to(tl.float32)
    # No gain is larger than this: p e has its most at lambda = 1 / tau. It is brought near 1 for float16,
    # where a small step would leave little of its digits.
    size = tl.abs(step) * tl.minimum(19.74, 0.3679 / tl.maximum(tau, 1e-30))
    up, down = power(tl.maximum(tl.abs(one_minus_keep) + tl.minimum(size, 1.0), 1e-30), 0)
    key = key_of(pointers[9], pointers[10], pointers[11], pointers[12], b, STEPS[4])
    return tau, step, keep, one_minus_keep, inject, pointers[13], up, down, key


@triton.jit
def _mask(u, b, c, k, l, down, values, STATIC: tl.constexpr):
    """`spectrum.reverse_gain`, from one-dimensional parts: p = p_k + q_k p_l and q = q_k q_l."""
    SIZES: tl.constexpr = STATIC[0]
    tau, step, keep, one_minus_keep, inject, floor, up, down_gain, key = values
    p_k, q_k = heat_loss(k, tl.abs(step), SIZES[0])
    p_l, q_l = heat_loss(l, tl.abs(step), SIZES[1])
    # step >= 0: p + one_minus_keep q; else one_minus_keep - p.
    sign = tl.where(step >= 0.0, 1.0, -1.0)
    turned = tl.where(step >= 0.0, one_minus_keep, 0.0)
    whole = one_minus_keep - turned
    inner = whole + sign * p_k + q_k * (sign * p_l + turned * q_l)
    gain = heat(k, tau, SIZES[0]) * heat(l, tau, SIZES[1]) * inner
    return u * ((floor * one_minus_keep + (1.0 - floor) * gain) * up), 0.0


@triton.jit
def _finish(y, row, column, b, c, values, pointers, STATIC: tl.constexpr):
    SIZES: tl.constexpr = STATIC[0]
    X_T: tl.constexpr = STATIC[2]
    CLEAN: tl.constexpr = STATIC[3]
    OUT: tl.constexpr = STATIC[4]
    NOISE: tl.constexpr = STATIC[5]
    tau, step, keep, one_minus_keep, inject, floor, up, down_gain, key = values
    rows = row + tl.arange(0, y.shape[0])[:, None]
    columns = column + tl.arange(0, y.shape[1])[None, :]
    y = y * down_gain
    if (tau == 0.0) & (step == 0.0):
        y = one_minus_keep * image_pixels(pointers[1], b, c, rows, columns, CLEAN, SIZES)
    if pointers[0] is not None:
        y += keep * image_pixels(pointers[0], b, c, rows, columns, X_T, SIZES)
    if STATIC[6]:
        y += inject * noise_tile(key, c, row, column, SIZES[0], SIZES[1], y.shape[0], y.shape[1], STATIC[7])
    if pointers[3] is not None:
        y += inject * image_pixels(pointers[3], b, c, rows, columns, NOISE, SIZES)
    put(pointers[2], y, b, c, rows, columns, OUT, SIZES)


@triton.jit
def step_kernel(
    x_t, x0_hat, out, noise, std_t, std_s, first, second, one_minus_keep, key_rows, seed, stream, draw, floor,
    table_h, table_w, planes, scratch, floats,
    STATIC: tl.constexpr, C: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """STATIC: sizes, steps (of std_t, std_s, first, second, key), layouts (x_t, x0_hat, out, noise), whether
    keyed, FAST, rule (0 given, 1 large, 2 small). Numbers: std_s is tau of the weaker blur and std_t is
    tau_t - tau_s where their step is -1; first, second are keep and inject where theirs is.
    """
    CLEAN: tl.constexpr = STATIC[3]
    if len(TILING) == 1:
        filter_plane(
            x0_hat, None, table_h, table_w, None,
            (
                x_t, x0_hat, out, noise, std_t, std_s, first, second, one_minus_keep,
                key_rows, seed, stream, draw, floor,
            ),
            STATIC, _prepare, _mask, _finish, TILING, CLEAN, CLEAN, SPLIT, True,
        )  # fmt: skip
    else:
        filter_staged(
            x0_hat, None, table_h, table_w, None,
            (
                x_t, x0_hat, out, noise, std_t, std_s, first, second, one_minus_keep,
                key_rows, seed, stream, draw, floor,
            ),
            STATIC, planes, scratch, floats, _prepare, _mask, _finish, C, TILING, CLEAN, CLEAN, SPLIT, True,
        )  # fmt: skip
