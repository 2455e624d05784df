# SPDX-License-Identifier: Apache-2.0
"""spectral_mix: `IDCT2(sum_k m_k DCT2(x_k) + d n)`, up to four inputs, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from .device import UNGAIN, image_pixels, key_of, largest, noise_tile, plane, power, put
from .plane import (
    backward_columns,
    backward_rows,
    forward_columns,
    forward_rows,
    image,
    keep,
    place,
    scaling,
    spectrum,
)


@triton.jit
def _spectrum(
    x, mask, b, c, k, l, table_h, table_w, STATIC: tl.constexpr, N: tl.constexpr, SPLIT: tl.constexpr
):
    """mask * DCT2(x) of plane (b, c), of input N."""
    SIZES: tl.constexpr = STATIC[0]
    X: tl.constexpr = STATIC[1 + N]
    M: tl.constexpr = STATIC[5 + N]
    u, down = spectrum(x, None, b, c, table_h, table_w, SIZES, X, X, SPLIT, False)
    return u * (down * UNGAIN) * image_pixels(mask, b, c, k, l, M, SIZES)


@triton.jit
def _add_staged(
    x, mask, b, c, total, main, strip, table_h, table_w,
    STATIC: tl.constexpr, N: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """total (+)= mask * DCT2(x), tile by tile, of input N if there is one."""
    SIZES: tl.constexpr = STATIC[0]
    X: tl.constexpr = STATIC[1 + N]
    M: tl.constexpr = STATIC[5 + N]
    TILE: tl.constexpr = TILING[0]
    BK: tl.constexpr = TILING[1]
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
                u = u * (down * UNGAIN) * image_pixels(mask, b, c, rows, columns, M, SIZES)
                at = total + rows * SIZES[3] + columns
                if N > 0:
                    u += tl.load(at)
                tl.store(at, u)
        tl.debug_barrier()


@triton.jit
def spectral_mix_kernel(
    x0, x1, x2, x3, mask0, mask1, mask2, mask3, noise_mask, out, key_rows, seed, stream, draw,
    table_h, table_w, planes, scratch, totals,
    STATIC: tl.constexpr, C: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """STATIC: sizes, layouts (x0 to x3, mask0 to mask3, noise_mask, out), the key's step, FAST.
    TILING: (1,), program (sample, channel); or (TILE, BK, 0), a program for planes as in `filter_staged`.
    totals: float32 [programs, padded H, padded W]. Absent inputs are None.
    """
    images = (x0, x1, x2, x3)
    masks = (mask0, mask1, mask2, mask3)
    key = (key_rows, seed, stream, draw)
    if len(TILING) == 1:
        _tile(images, masks, noise_mask, out, key, table_h, table_w, STATIC, SPLIT)
    else:
        _staged(
            images, masks, noise_mask, out, key, table_h, table_w, planes, scratch, totals, STATIC, C, TILING,
            SPLIT,
        )  # fmt: skip


@triton.jit
def _tile(
    images, masks, noise_mask, out, key_parts, table_h, table_w, STATIC: tl.constexpr, SPLIT: tl.constexpr
):
    SIZES: tl.constexpr = STATIC[0]
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    NOISE: tl.constexpr = STATIC[9]
    OUT: tl.constexpr = STATIC[10]
    b = tl.program_id(0)
    c = tl.program_id(1)
    k = tl.arange(0, BH)[:, None]
    l = tl.arange(0, BW)[None, :]
    u = _spectrum(images[0], masks[0], b, c, k, l, table_h, table_w, STATIC, 0, SPLIT)
    for n in tl.static_range(1, 4):
        if images[n] is not None:
            u += _spectrum(images[n], masks[n], b, c, k, l, table_h, table_w, STATIC, n, SPLIT)
    if noise_mask is not None:
        key = key_of(key_parts[0], key_parts[1], key_parts[2], key_parts[3], b, STATIC[11])
        z = noise_tile(key, c, 0, 0, SIZES[0], SIZES[1], BH, BW, STATIC[12])
        u += image_pixels(noise_mask, b, c, k, l, NOISE, SIZES) * z
    up, down = power(largest(u), 3)
    y = image((u * up) * 4096.0, table_h, table_w, BH, BW, SPLIT) * down
    put(out, y, b, c, k, l, OUT, SIZES)


@triton.jit
def _staged(
    images, masks, noise_mask, out, key_parts, table_h, table_w, planes, scratch, totals,
    STATIC: tl.constexpr, C: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    SIZES: tl.constexpr = STATIC[0]
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    NOISE: tl.constexpr = STATIC[9]
    OUT: tl.constexpr = STATIC[10]
    TILE: tl.constexpr = TILING[0]
    BK: tl.constexpr = TILING[1]
    i = tl.arange(0, TILE)
    p, step, main, strip, first = place(planes, scratch, SIZES, TILING)
    total = totals + p * (BH * BW)
    while p < planes:
        b = p // C
        c = p % C
        for n in tl.static_range(4):
            _add_staged(
                images[n], masks[n], b, c, total, main, strip, table_h, table_w, STATIC, n, TILING, SPLIT
            )
        if noise_mask is not None:
            key = key_of(key_parts[0], key_parts[1], key_parts[2], key_parts[3], b, STATIC[11])
        most = tl.zeros([TILE, TILE], tl.float32)
        for r in range(0, BH, TILE):
            for l in range(0, BW, TILE):
                at = total + (r + i[:, None]) * BW + l + i[None, :]
                u = tl.load(at)
                if noise_mask is not None:
                    z = noise_tile(key, c, r, l, SIZES[0], SIZES[1], TILE, TILE, STATIC[12])
                    u += image_pixels(noise_mask, b, c, r + i[:, None], l + i[None, :], NOISE, SIZES) * z
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
