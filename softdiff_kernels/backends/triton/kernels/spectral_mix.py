# SPDX-License-Identifier: Apache-2.0
"""spectral_mix: `IDCT2(sum_k m_k DCT2(x_k) + d n)`, up to four inputs, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from .device import image_pixels, key_of, noise_tile, plane, put
from .plane import (
    backward_columns,
    backward_rows,
    forward_columns,
    forward_rows,
    image,
    keep,
    place,
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
    return u * down * image_pixels(mask, b, c, k, l, M, SIZES)


@triton.jit
def _add_staged(
    x, mask, b, c, total, memory, table_h, table_w,
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
        for r in range(0, SIZES[2], TILE):
            forward_rows(px, None, r, memory, table_w, SIZES, TILE, BK, X, X, SPLIT, False)
        i = tl.arange(0, TILE)
        for l in range(0, SIZES[3], TILE):
            for r in range(0, SIZES[2], TILE):
                u = forward_columns(memory, r, l, table_h, SIZES[2], SIZES[3], TILE, BK, SPLIT, False)
                rows = r + i[:, None]
                columns = l + i[None, :]
                u = u * image_pixels(mask, b, c, rows, columns, M, SIZES)
                at = total + rows * SIZES[3] + columns
                if N > 0:
                    u += tl.load(at)
                tl.store(at, u)
        tl.debug_barrier()


@triton.jit
def _noise(
    mask, noise, key_parts, b, c, row, column,
    STATIC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """mask * n of a tile of plane (b, c) that begins at (row, column); n is `noise` if there is one."""
    SIZES: tl.constexpr = STATIC[0]
    MASK: tl.constexpr = STATIC[9]
    NOISE: tl.constexpr = STATIC[10]
    k = row + tl.arange(0, ROWS)[:, None]
    l = column + tl.arange(0, COLUMNS)[None, :]
    if noise is not None:
        z = image_pixels(noise, b, c, k, l, NOISE, SIZES)
    else:
        key = key_of(key_parts[0], key_parts[1], key_parts[2], key_parts[3], b, STATIC[12])
        z = noise_tile(key, c, row, column, SIZES[0], SIZES[1], ROWS, COLUMNS, STATIC[13])
    return image_pixels(mask, b, c, k, l, MASK, SIZES) * z


@triton.jit
def spectral_mix_kernel(
    x0, x1, x2, x3, mask0, mask1, mask2, mask3, noise_mask, noise, out, key_rows, seed, stream,
    draw, table_h, table_w, planes, scratch, floats,
    STATIC: tl.constexpr, C: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """STATIC: sizes, layouts (x0 to x3, mask0 to mask3, noise_mask, noise, out), the key's step, FAST.
    noise_mask stands with noise or a key.
    TILING: (1,), program (sample, channel); or (TILE, BK, 0), a program for planes as in `filter_staged`.
    Absent inputs are None.
    """
    images = (x0, x1, x2, x3)
    masks = (mask0, mask1, mask2, mask3)
    key = (key_rows, seed, stream, draw)
    if len(TILING) == 1:
        _tile(images, masks, noise_mask, noise, out, key, table_h, table_w, STATIC, SPLIT)
    else:
        _staged(
            images, masks, noise_mask, noise, out, key, table_h, table_w, planes, scratch, floats, STATIC, C,
            TILING, SPLIT,
        )  # fmt: skip


@triton.jit
def _tile(
    images, masks, noise_mask, noise, out, key_parts, table_h, table_w,
    STATIC: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    SIZES: tl.constexpr = STATIC[0]
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    OUT: tl.constexpr = STATIC[11]
    b = tl.program_id(0)
    c = tl.program_id(1)
    k = tl.arange(0, BH)[:, None]
    l = tl.arange(0, BW)[None, :]
    u = _spectrum(images[0], masks[0], b, c, k, l, table_h, table_w, STATIC, 0, SPLIT)
    for n in tl.static_range(1, 4):
        if images[n] is not None:
            u += _spectrum(images[n], masks[n], b, c, k, l, table_h, table_w, STATIC, n, SPLIT)
    if noise_mask is not None:
        u += _noise(noise_mask, noise, key_parts, b, c, 0, 0, STATIC, BH, BW)
    put(out, image(u, table_h, table_w, BH, BW, SPLIT), b, c, k, l, OUT, SIZES)


@triton.jit
def _staged(
    images, masks, noise_mask, noise, out, key_parts, table_h, table_w, planes, scratch, floats,
    STATIC: tl.constexpr, C: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    SIZES: tl.constexpr = STATIC[0]
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    OUT: tl.constexpr = STATIC[11]
    TILE: tl.constexpr = TILING[0]
    BK: tl.constexpr = TILING[1]
    i = tl.arange(0, TILE)
    p, step, memory, _, total = place(planes, scratch, floats, SIZES, TILING, SPLIT, BH * BW)
    while p < planes:
        b = p // C
        c = p % C
        for n in tl.static_range(4):
            _add_staged(images[n], masks[n], b, c, total, memory, table_h, table_w, STATIC, n, TILING, SPLIT)
        for l in range(0, BW, TILE):
            for r in range(0, BH, TILE):
                u = tl.load(total + (r + i[:, None]) * BW + l + i[None, :])
                if noise_mask is not None:
                    u += _noise(noise_mask, noise, key_parts, b, c, r, l, STATIC, TILE, TILE)
                keep(memory[2] + r * TILE, memory[3] + r // TILE, u, TILE, BH * TILE, TILE, SPLIT)
            backward_columns(memory, l, table_h, BH, BW, TILE, BK, SPLIT)
        for r in range(0, BH, TILE):
            for l in range(0, BW, TILE):
                y = backward_rows(memory, r, l, table_w, BH, BW, TILE, BK, SPLIT)
                put(out, y, b, c, r + i[:, None], l + i[None, :], OUT, SIZES)
        tl.debug_barrier()
        p += step
