# SPDX-License-Identifier: Apache-2.0
"""spectral_mix: `IDCT2(sum_k m_k DCT2(x_k) + d n)`, up to four inputs, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from .device import image_pixels, largest, plane, power, put
from .noise import key_of, noise_tile
from .plane import image, spectrum
from .staged import backward_columns, backward_rows, forward_columns, forward_rows, keep, place, scaling


@triton.jit
def _spectrum(
    x,
    mask,
    b,
    c,
    k,
    l,
    table_h,
    table_w,
    SIZES: tl.constexpr,
    X: tl.constexpr,
    M: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """mask * DCT2(x) of plane (b, c)."""
    u, down = spectrum(x, None, b, c, table_h, table_w, SIZES, X, X, SPLIT, False)
    return u * (down * 0.000244140625) * image_pixels(mask, b, c, k, l, M, SIZES)


@triton.jit
def _add_staged(
    x, mask, b, c, total, main, strip, table_h, table_w,
    SIZES: tl.constexpr, X: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """total (+)= mask * DCT2(x), tile by tile."""
    if x is not None:
        px = plane(x, b, c, X)
        up, down = scaling(px, None, SIZES, TILE, X, X)
        for r in range(0, SIZES[2], TILE):
            forward_rows(px, None, r, up, main, strip, table_w, SIZES, TILE, BK, X, X, SPLIT, False)
        i = tl.arange(0, TILE)
        for l in range(0, SIZES[3], TILE):
            for r in range(0, SIZES[2], TILE):
                u = forward_columns(main, r, l, table_h, SIZES[2], SIZES[3], TILE, BK, SPLIT, False)
                rows = r + i[:, None]
                columns = l + i[None, :]
                u = u * (down * 0.000244140625) * image_pixels(mask, b, c, rows, columns, M, SIZES)
                at = total + rows * SIZES[3] + columns
                if not FIRST:
                    u += tl.load(at)
                tl.store(at, u)
        tl.debug_barrier()


@triton.jit
def mix_kernel(
    x0, x1, x2, x3, mask0, mask1, mask2, mask3, noise_mask, out, key_rows, seed, stream, draw,
    table_h, table_w, planes, scratch, totals,
    SIZES: tl.constexpr, X0: tl.constexpr, X1: tl.constexpr, X2: tl.constexpr, X3: tl.constexpr,
    M0: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr, M3: tl.constexpr,
    NOISE: tl.constexpr, OUT: tl.constexpr, KEY_STEP: tl.constexpr, FAST: tl.constexpr,
    C: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """TILING: (1,), program (sample, channel); or (TILE, BK, 0), a program for planes as in `filter_staged`.
    totals: float32 [programs, padded H, padded W]. Absent inputs are None.
    """
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    if len(TILING) == 1:
        b = tl.program_id(0)
        c = tl.program_id(1)
        k = tl.arange(0, BH)[:, None]
        l = tl.arange(0, BW)[None, :]
        u = _spectrum(x0, mask0, b, c, k, l, table_h, table_w, SIZES, X0, M0, SPLIT)
        if x1 is not None:
            u += _spectrum(x1, mask1, b, c, k, l, table_h, table_w, SIZES, X1, M1, SPLIT)
        if x2 is not None:
            u += _spectrum(x2, mask2, b, c, k, l, table_h, table_w, SIZES, X2, M2, SPLIT)
        if x3 is not None:
            u += _spectrum(x3, mask3, b, c, k, l, table_h, table_w, SIZES, X3, M3, SPLIT)
        if noise_mask is not None:
            key = key_of(key_rows, seed, stream, draw, b, KEY_STEP)
            n = noise_tile(key, c, 0, 0, SIZES[0], SIZES[1], BH, BW, FAST)
            u += image_pixels(noise_mask, b, c, k, l, NOISE, SIZES) * n
        up, down = power(largest(u), 3)
        put(out, image((u * up) * 4096.0, table_h, table_w, BH, BW, SPLIT) * down, b, c, k, l, OUT, SIZES)
    else:
        _staged(
            x0, x1, x2, x3, mask0, mask1, mask2, mask3, noise_mask, out, key_rows, seed, stream, draw,
            table_h, table_w, planes, scratch, totals,
            SIZES, X0, X1, X2, X3, M0, M1, M2, M3, NOISE, OUT, KEY_STEP, FAST, C, TILING, SPLIT,
        )  # fmt: skip


@triton.jit
def _staged(
    x0, x1, x2, x3, mask0, mask1, mask2, mask3, noise_mask, out, key_rows, seed, stream, draw,
    table_h, table_w, planes, scratch, totals,
    SIZES: tl.constexpr, X0: tl.constexpr, X1: tl.constexpr, X2: tl.constexpr, X3: tl.constexpr,
    M0: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr, M3: tl.constexpr,
    NOISE: tl.constexpr, OUT: tl.constexpr, KEY_STEP: tl.constexpr, FAST: tl.constexpr,
    C: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    TILE: tl.constexpr = TILING[0]
    BK: tl.constexpr = TILING[1]
    i = tl.arange(0, TILE)
    p, step, main, strip, first = place(planes, scratch, SIZES, TILING)
    total = totals + p * (BH * BW)
    while p < planes:
        b = p // C
        c = p % C
        _add_staged(
            x0, mask0, b, c, total, main, strip, table_h, table_w, SIZES, X0, M0, TILE, BK, SPLIT, True
        )
        _add_staged(
            x1, mask1, b, c, total, main, strip, table_h, table_w, SIZES, X1, M1, TILE, BK, SPLIT, False
        )
        _add_staged(
            x2, mask2, b, c, total, main, strip, table_h, table_w, SIZES, X2, M2, TILE, BK, SPLIT, False
        )
        _add_staged(
            x3, mask3, b, c, total, main, strip, table_h, table_w, SIZES, X3, M3, TILE, BK, SPLIT, False
        )
        if noise_mask is not None:
            key = key_of(key_rows, seed, stream, draw, b, KEY_STEP)
        most = tl.zeros([TILE, TILE], tl.float32)
        for r in range(0, BH, TILE):
            for l in range(0, BW, TILE):
                at = total + (r + i[:, None]) * BW + l + i[None, :]
                u = tl.load(at)
                if noise_mask is not None:
                    n = noise_tile(key, c, r, l, SIZES[0], SIZES[1], TILE, TILE, FAST)
                    u += image_pixels(noise_mask, b, c, r + i[:, None], l + i[None, :], NOISE, SIZES) * n
                    tl.store(at, u)
                most = tl.maximum(most, tl.abs(u))
        up, down = power(largest(most), 3)
        tl.debug_barrier()
        for l in range(0, BW, TILE):
            for r in range(0, BH, TILE):
                u = tl.load(total + (r + i[:, None]) * BW + l + i[None, :])
                keep(strip + r * TILE, (u * up) * 0.5, TILE, BH * TILE, TILE, SPLIT)
            backward_columns(main, strip, l, table_h, BH, BW, TILE, BK, SPLIT)
        for r in range(0, BH, TILE):
            for l in range(0, BW, TILE):
                y = backward_rows(main, r, l, table_w, BH, BW, TILE, BK, SPLIT) * down
                put(out, y, b, c, r + i[:, None], l + i[None, :], OUT, SIZES)
        tl.debug_barrier()
        p += step
