# SPDX-License-Identifier: Apache-2.0
"""The filter that ops share: transform a plane, mask its spectrum, transform it back; in one of two forms.

`filter_plane` takes planes up to 64 px a side: a whole plane is one tile, and all of it happens in
registers. `filter_staged` takes larger ones, up to 512 px: four tiled products, with a scratch that stays in
L2. A program takes a plane through three groups of products, strip by strip of TILE rows or columns:

1. rows: pixels, scaled and split, then times D_W^T, into the plane's scratch;
2. columns: D_H times the scratch, the mask, D_H^T times that, back into the same columns of the scratch;
3. rows: the scratch times D_W, then the op's own end (`FINISH`).

What one product leaves for the next is stored as float16 high and low parts: split once, loaded as operands.
Programs walk over the planes, so that their scratch, one plane each, stays in L2. Above 128 px, a batch too
small to fill the GPU that way runs the groups as three launches instead, with a program for each strip
(GROUP 1, 2, 3).

An op gives three functions. PREPARE(pointers, b, STATIC) makes the values that hold for sample b;
MASK(u, k, l, down, values, STATIC) returns the masked spectrum and the energy in it (the loss's alone);
FINISH(y, row, column, b, c, values, pointers, STATIC) makes the result from a tile of the image, whose first
pixel is at (row, column), and stores it. `pointers` is a tuple of what lies in memory, `STATIC` one of what
is known at compile time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import image_pixels, largest, left, pixels, plane, power, right, split, table


@triton.jit
def spectrum(
    x, y, b, c, table_h, table_w,
    SIZES: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, SPLIT: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """(u, down): u * down / 4096 is the DCT (or its inverse) of plane (b, c) of x, less y's if there is y."""
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    EXACT: tl.constexpr = (y is None) and (x.dtype.element_ty.primitive_bitwidth == 16)
    i = tl.arange(0, BH)
    j = tl.arange(0, BW)
    v = image_pixels(x, b, c, i[:, None], j[None, :], X, SIZES)
    if y is not None:
        v -= image_pixels(y, b, c, i[:, None], j[None, :], Y, SIZES)
    up, down = power(largest(v), 3)
    if INVERSE:
        w_high, w_low = table(table_w, j[:, None], j[None, :], BW, SPLIT)
        h_high, h_low = table(table_h, i[None, :], i[:, None], BH, SPLIT)
    else:
        w_high, w_low = table(table_w, j[None, :], j[:, None], BW, SPLIT)
        h_high, h_low = table(table_h, i[:, None], i[None, :], BH, SPLIT)
    return left(h_high, h_low, right(v * up, w_high, w_low, SPLIT, EXACT), SPLIT), down


@triton.jit
def image(u, table_h, table_w, BH: tl.constexpr, BW: tl.constexpr, SPLIT: tl.constexpr):
    """The image of a masked spectrum, before `down`."""
    i = tl.arange(0, BH)
    j = tl.arange(0, BW)
    h_high, h_low = table(table_h, i[None, :], i[:, None], BH, SPLIT)
    w_high, w_low = table(table_w, j[:, None], j[None, :], BW, SPLIT)
    # 2^-13 brings 8 x 4096 u back to where the next two products stay in float16's range.
    v = left(h_high, h_low, u * 0.0001220703125, SPLIT)
    return right(v, w_high, w_low, SPLIT, False) * 0.00048828125


@triton.jit
def filter_plane(
    x, y, table_h, table_w, energies, pointers, STATIC: tl.constexpr,
    PREPARE: tl.constexpr, MASK: tl.constexpr, FINISH: tl.constexpr, TILING: tl.constexpr,
    X: tl.constexpr, Y: tl.constexpr, SPLIT: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Program (sample, group of TILING[0] channels); energies [B, groups]; BACK: an image is wanted."""
    SIZES: tl.constexpr = STATIC[0]
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    b = tl.program_id(0)
    values = PREPARE(pointers, b, STATIC)
    k = tl.arange(0, BH)[:, None]
    l = tl.arange(0, BW)[None, :]
    energy = 0.0
    # Not pipelined: what it would hold in shared memory for the next channel halves the occupancy.
    for i in tl.range(0, TILING[0], num_stages=1):
        c = tl.program_id(1) * TILING[0] + i
        u, down = spectrum(x, y, b, c, table_h, table_w, SIZES, X, Y, SPLIT, False)
        u, part = MASK(u, k, l, down, values, STATIC)
        energy += part
        if BACK:
            FINISH(image(u, table_h, table_w, BH, BW, SPLIT) * down, 0, 0, b, c, values, pointers, STATIC)
    if energies is not None:
        tl.store(energies + b * tl.num_programs(1) + tl.program_id(1), energy)


@triton.jit
def operand(
    ptr, rows, columns, ROW: tl.constexpr, COLUMN: tl.constexpr, LOW: tl.constexpr, SPLIT: tl.constexpr
):
    """A tile's (high, low), the low part LOW elements further on."""
    at = ptr + rows * ROW + columns * COLUMN
    high = tl.load(at)
    if SPLIT:
        return high, tl.load(at + LOW)
    return high, high


@triton.jit
def product(
    a, A_ROW: tl.constexpr, A_COLUMN: tl.constexpr, A_LOW: tl.constexpr,
    b, B_ROW: tl.constexpr, B_COLUMN: tl.constexpr, B_LOW: tl.constexpr,
    K: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A tile [TILE, TILE] of a product over K, both factors in memory as high and low parts."""
    i = tl.arange(0, TILE)
    k = tl.arange(0, BK)
    total = tl.zeros([TILE, TILE], tl.float32)
    for first in range(0, K, BK):
        a_high, a_low = operand(a, i[:, None], first + k[None, :], A_ROW, A_COLUMN, A_LOW, SPLIT)
        b_high, b_low = operand(b, first + k[:, None], i[None, :], B_ROW, B_COLUMN, B_LOW, SPLIT)
        if SPLIT:
            total = tl.dot(a_low, b_high, total)
            total = tl.dot(a_high, b_low, total)
        total = tl.dot(a_high, b_high, total)
    return total


@triton.jit
def keep(ptr, x, ROW: tl.constexpr, LOW: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr):
    """Stores a tile as high and low parts."""
    at = ptr + tl.arange(0, TILE)[:, None] * ROW + tl.arange(0, TILE)[None, :]
    if SPLIT:
        high, low = split(x)
        tl.store(at, high)
        tl.store(at + LOW, low)
    else:
        tl.store(at, x.to(tl.float16))


@triton.jit
def difference(
    x, y, first_row, first_column, SIZES: tl.constexpr, TILE: tl.constexpr,
    X: tl.constexpr, Y: tl.constexpr,
):  # fmt: skip
    """A tile of x, less y's where there is y."""
    rows = first_row + tl.arange(0, TILE)[:, None]
    columns = first_column + tl.arange(0, TILE)[None, :]
    v = pixels(x, rows, columns, X, SIZES)
    if y is not None:
        v -= pixels(y, rows, columns, Y, SIZES)
    return v


@triton.jit
def scaling(
    x, y, SIZES: tl.constexpr, TILE: tl.constexpr, X: tl.constexpr, Y: tl.constexpr
):  # fmt: skip
    """`power` of the plane's largest magnitude."""
    most = tl.zeros([TILE, TILE], tl.float32)
    for r in range(0, SIZES[2], TILE):
        for l in range(0, SIZES[3], TILE):
            most = tl.maximum(most, tl.abs(difference(x, y, r, l, SIZES, TILE, X, Y)))
    return power(largest(most), 3)


@triton.jit
def forward_rows(
    x, y, r, up, main, strip, table_w,
    SIZES: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr, X: tl.constexpr, Y: tl.constexpr,
    SPLIT: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """Group 1 for the rows from r: 64 times the strip's DCT along W (or its inverse) into `main`."""
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    for l in range(0, BW, TILE):
        v = difference(x, y, r, l, SIZES, TILE, X, Y)
        keep(strip + l, v * up, BW, TILE * BW, TILE, SPLIT)
    tl.debug_barrier()
    for l in range(0, BW, TILE):
        if INVERSE:
            t = product(strip, BW, 1, TILE * BW, table_w + l, BW, 1, BW * BW, BW, TILE, BK, SPLIT)
        else:
            t = product(strip, BW, 1, TILE * BW, table_w + l * BW, 1, BW, BW * BW, BW, TILE, BK, SPLIT)
        keep(main + r * BW + l, t, BW, BH * BW, TILE, SPLIT)
    tl.debug_barrier()


@triton.jit
def forward_columns(
    main, r, l, table_h, BH: tl.constexpr, BW: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """A tile of the spectrum, 4096 times."""
    if INVERSE:
        return product(table_h + r, 1, BH, BH * BH, main + l, BW, 1, BH * BW, BH, TILE, BK, SPLIT)
    return product(table_h + r * BH, BH, 1, BH * BH, main + l, BW, 1, BH * BW, BH, TILE, BK, SPLIT)


@triton.jit
def backward_columns(
    main, strip, l, table_h, BH: tl.constexpr, BW: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """The masked columns from l, in `strip`, back along H, into `main`."""
    tl.debug_barrier()
    for r in range(0, BH, TILE):
        v = product(table_h + r, 1, BH, BH * BH, strip, TILE, 1, BH * TILE, BH, TILE, BK, SPLIT)
        keep(main + r * BW + l, v, BW, BH * BW, TILE, SPLIT)
    tl.debug_barrier()


@triton.jit
def backward_rows(
    main, r, l, table_w, BH: tl.constexpr, BW: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """A tile of the image, before `down`."""
    y = product(main + r * BW, BW, 1, BH * BW, table_w + l, BW, 1, BW * BW, BW, TILE, BK, SPLIT)
    return y * 0.00048828125


@triton.jit
def place(planes, scratch, SIZES: tl.constexpr, TILING: tl.constexpr):
    """(plane, step to the next plane, its scratch, its strip's scratch, the strip's first row or column)."""
    TILE: tl.constexpr = TILING[0]
    PLANE: tl.constexpr = 2 * SIZES[2] * SIZES[3]
    SIDE: tl.constexpr = SIZES[2] if SIZES[2] > SIZES[3] else SIZES[3]
    if TILING[2] == 0:
        p = tl.program_id(0).to(tl.int64)
        main = scratch + p * (PLANE + 2 * SIDE * TILE)
        return p, tl.num_programs(0).to(tl.int64), main, main + PLANE, 0
    p = tl.program_id(1).to(tl.int64)
    main = scratch + p * (PLANE + 2 * SIDE * SIDE)
    return p, planes, main, main + PLANE + tl.program_id(0) * (2 * SIDE * TILE), tl.program_id(0) * TILE


@triton.jit
def filter_staged(
    x, y, table_h, table_w, energies, pointers, STATIC: tl.constexpr, planes, scratch, downs,
    PREPARE: tl.constexpr, MASK: tl.constexpr, FINISH: tl.constexpr, C: tl.constexpr, TILING: tl.constexpr,
    X: tl.constexpr, Y: tl.constexpr, SPLIT: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """GROUP 0: program n takes planes n, n + programs, ... through all groups. GROUP 1, 2, 3: program
    (strip, plane) takes one strip through one group; `downs` [planes] then holds each plane's scale, and
    `energies` is [planes, strips].
    """
    SIZES: tl.constexpr = STATIC[0]
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    TILE: tl.constexpr = TILING[0]
    BK: tl.constexpr = TILING[1]
    GROUP: tl.constexpr = TILING[2]
    p, step, main, strip, first = place(planes, scratch, SIZES, TILING)
    RUN_ROWS: tl.constexpr = BH if GROUP == 0 else TILE
    RUN_COLUMNS: tl.constexpr = BW if GROUP == 0 else TILE
    while p < planes:
        b = p // C
        c = p % C
        values = PREPARE(pointers, b, STATIC)
        px = plane(x, b, c, X)
        py = y
        if y is not None:
            py = plane(y, b, c, Y)
        if GROUP <= 1:
            up, down = scaling(px, py, SIZES, TILE, X, Y)
            if GROUP == 1:
                tl.store(downs + p, down)
            for r in range(0, RUN_ROWS, TILE):
                forward_rows(
                    px, py, first + r, up, main, strip, table_w, SIZES, TILE, BK, X, Y, SPLIT, False
                )  # fmt: skip
        else:
            down = tl.load(downs + p)
        if GROUP == 0 or GROUP == 2:
            energy = 0.0
            for l in range(0, RUN_COLUMNS, TILE):
                for r in range(0, BH, TILE):
                    u = forward_columns(main, r, first + l, table_h, BH, BW, TILE, BK, SPLIT, False)
                    k = r + tl.arange(0, TILE)[:, None]
                    u, part = MASK(u, k, first + l + tl.arange(0, TILE)[None, :], down, values, STATIC)
                    energy += part
                    if BACK:
                        keep(strip + r * TILE, u * 0.0001220703125, TILE, BH * TILE, TILE, SPLIT)
                if BACK:
                    backward_columns(main, strip, first + l, table_h, BH, BW, TILE, BK, SPLIT)
            if energies is not None:
                if GROUP == 0:
                    tl.store(energies + p, energy)
                else:
                    tl.store(energies + p * tl.num_programs(0) + tl.program_id(0), energy)
        if BACK and (GROUP == 0 or GROUP == 3):
            for r in range(0, RUN_ROWS, TILE):
                for l in range(0, BW, TILE):
                    z = backward_rows(main, first + r, l, table_w, BH, BW, TILE, BK, SPLIT)
                    FINISH(z * down, first + r, l, b, c, values, pointers, STATIC)
        tl.debug_barrier()
        p += step
