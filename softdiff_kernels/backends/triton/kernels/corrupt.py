# SPDX-License-Identifier: Apache-2.0
"""corrupt and blur: `scale ((1 - floor) C + floor) x + noise_std n`, and the residual, in one pass."""

from __future__ import annotations

import triton
import triton.language as tl

from .device import coefficient, heat, image_pixels, key_of, noise_tile, put
from .plane import filter_plane, filter_staged


@triton.jit
def _prepare(pointers, b, STATIC: tl.constexpr):
    STEPS: tl.constexpr = STATIC[1]
    tau = coefficient(pointers[4], b, STEPS[0])
    if STEPS[0] >= 0:
        tau = tau * tau * 0.5
    sigma = 0.0
    if pointers[5] is not None:
        sigma = coefficient(pointers[5], b, STEPS[1])
    factor = 1.0
    if pointers[6] is not None:
        factor = coefficient(pointers[6], b, STEPS[2])
    key = key_of(pointers[7], pointers[8], pointers[9], pointers[10], b, STEPS[3])
    return tau, sigma, factor, pointers[11], key


@triton.jit
def _mask(u, b, c, k, l, down, values, STATIC: tl.constexpr):
    SIZES: tl.constexpr = STATIC[0]
    tau, sigma, factor, floor, key = values
    gain = heat(k, tau, SIZES[0]) * heat(l, tau, SIZES[1])
    return u * ((1.0 - floor) * gain + floor), 0.0


@triton.jit
def _finish(y, row, column, b, c, values, pointers, STATIC: tl.constexpr):
    SIZES: tl.constexpr = STATIC[0]
    X: tl.constexpr = STATIC[2]
    OUT: tl.constexpr = STATIC[3]
    RESIDUAL: tl.constexpr = STATIC[4]
    NOISE: tl.constexpr = STATIC[5]
    tau, sigma, factor, floor, key = values
    rows = row + tl.arange(0, y.shape[0])[:, None]
    columns = column + tl.arange(0, y.shape[1])[None, :]
    if tau == 0.0:
        y = image_pixels(pointers[0], b, c, rows, columns, X, SIZES)
    y = y * factor
    if STATIC[6]:
        y += sigma * noise_tile(key, c, row, column, SIZES[0], SIZES[1], y.shape[0], y.shape[1], STATIC[7])
    if pointers[3] is not None:
        y += sigma * image_pixels(pointers[3], b, c, rows, columns, NOISE, SIZES)
    put(pointers[1], y, b, c, rows, columns, OUT, SIZES)
    if pointers[2] is not None:
        clean = image_pixels(pointers[0], b, c, rows, columns, X, SIZES)
        put(pointers[2], clean - y, b, c, rows, columns, RESIDUAL, SIZES)


@triton.jit
def corrupt_kernel(
    x, out, residual, noise, blur_std, noise_std, scale, key_rows, seed, stream, draw, floor,
    table_h, table_w, planes, scratch, floats,
    STATIC: tl.constexpr, C: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """STATIC: sizes (H, W and both padded), steps (of blur_std, noise_std, scale, key: see `coefficient`;
    blur_std is tau where its step is -1), layouts (x, out, residual, noise), whether keyed, FAST.
    TILING: (planes a program,) for `filter_plane`, or (TILE, BK, GROUP) for `filter_staged`.
    """
    X: tl.constexpr = STATIC[2]
    if len(TILING) == 1:
        filter_plane(
            x, None, table_h, table_w, None,
            (x, out, residual, noise, blur_std, noise_std, scale, key_rows, seed, stream, draw, floor),
            STATIC, _prepare, _mask, _finish, TILING, X, X, SPLIT, True,
        )  # fmt: skip
    else:
        filter_staged(
            x, None, table_h, table_w, None,
            (x, out, residual, noise, blur_std, noise_std, scale, key_rows, seed, stream, draw, floor),
            STATIC, planes, scratch, floats, _prepare, _mask, _finish, C, TILING,
            X, X, SPLIT, True,
        )  # fmt: skip
