# SPDX-License-Identifier: Apache-2.0
"""The filter that ops share: transform a plane, mask its spectrum, transform it back; in one of two forms.

`filter_plane` takes planes up to 64 px a side: a whole plane is one tile, and all of it happens in
registers. `filter_staged` takes larger ones, up to 512 px: four tiled products, with a scratch in memory
between them. A program takes a plane through three groups of products, strip by strip of TILE rows or
columns:

1. rows: pixels times D_W^T, into the plane's scratch;
2. columns: D_H times the scratch, the mask, D_H^T times that, back into the same columns of the scratch;
3. rows: the scratch times D_W, then the op's own end (`FINISH`).

What one product leaves for the next is stored tile by tile as float16 high and low parts, each tile with a
power of two of its own: split once, loaded as operands. Programs walk over the planes, so that the scratch is
theirs, not the batch's (`launch.programs`). Above 128 px, a batch too small to fill the GPU that way runs the
groups as three launches instead, with a program for each strip (GROUP 1, 2, 3).

An op gives three functions. PREPARE(pointers, b, STATIC) makes the values that hold for sample b;
MASK(u, b, c, k, l, down, values, STATIC), where u * down is the DCT of plane (b, c), returns the masked u and
the energy in it (a loss's alone); FINISH(y, row, column, b, c, values, pointers, STATIC) makes the result
from a tile of the image, whose first pixel is at (row, column), and stores it. `pointers` is a tuple of what
lies in memory, `STATIC` one of what is known at compile time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import UNGAIN, image_pixels, largest, left, pixels, plane, power, right, split, table


@triton.jit
def spectrum(
    x, y, b, c, table_h, table_w,
    SIZES: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, SPLIT: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """(u, down): u * down is the DCT (or its inverse) of plane (b, c) of x, less y's if there is y."""
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
    u = left(h_high, h_low, right(v * up, w_high, w_low, SPLIT, EXACT), SPLIT)
    return u, down * (UNGAIN * UNGAIN)


@triton.jit
def image(u, table_h, table_w, BH: tl.constexpr, BW: tl.constexpr, SPLIT: tl.constexpr):
    """The image of a masked spectrum."""
    i = tl.arange(0, BH)
    j = tl.arange(0, BW)
    h_high, h_low = table(table_h, i[None, :], i[:, None], BH, SPLIT)
    w_high, w_low = table(table_w, j[:, None], j[None, :], BW, SPLIT)
    if SPLIT:
        # A scale of its own: where one pixel is bright, the spectrum is flat and far below what it could be.
        up, down = power(largest(u), 3)
    else:
        # What a spectrum of `spectrum` could be; bfloat16 has no use for the digits that its own would save.
        up = 0.0001220703125
        down = 8192.0
    v = left(h_high, h_low, u * up, SPLIT)
    return right(v, w_high, w_low, SPLIT, False) * (down * (UNGAIN * UNGAIN))


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
        u, part = MASK(u, b, c, k, l, down, values, STATIC)
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
    scales, STEP: tl.constexpr,
    K: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A tile [TILE, TILE] of a product over K, both factors in memory as high and low parts. One of them is a
    row or column of tiles, whose scales are STEP apart; the other is a table.

    A tensor core truncates the sum of every MMA (Fasi et al. 2021). So the low products come first, where
    that costs nothing, and each BK of K has an accumulator of its own, which ordinary arithmetic scales and
    adds: one accumulator for all of K would be off by 2e-6 to 2e-5 from 128 px on, and one for each 64 by
    1.3e-6 on sm_80, where constant images of 200 px may be by 1.1e-6.
    """
    tl.static_assert(BK <= 32 or not SPLIT)
    tl.static_assert(TILE % BK == 0)  # a step has one scale
    i = tl.arange(0, TILE)
    k = tl.arange(0, BK)
    total = tl.zeros([TILE, TILE], tl.float32)
    for first in range(0, K, BK):
        a_high, a_low = operand(a, i[:, None], first + k[None, :], A_ROW, A_COLUMN, A_LOW, SPLIT)
        b_high, b_low = operand(b, first + k[:, None], i[None, :], B_ROW, B_COLUMN, B_LOW, SPLIT)
        if SPLIT:
            part = tl.dot(a_high, b_high, tl.dot(a_high, b_low, tl.dot(a_low, b_high)))
        else:
            part = tl.dot(a_high, b_high)
        total = tl.fma(part, tl.load(scales + first // TILE * STEP), total)
    return total


@triton.jit
def keep(ptr, scale, x, ROW: tl.constexpr, LOW: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr):
    """Stores a tile as high and low parts, and the scale that undoes its own and a table's."""
    at = ptr + tl.arange(0, TILE)[:, None] * ROW + tl.arange(0, TILE)[None, :]
    up, down = power(largest(x), 3)
    tl.store(scale, down * UNGAIN)
    if SPLIT:
        high, low = split(x * up)
        tl.store(at, high)
        tl.store(at + LOW, low)
    else:
        tl.store(at, (x * up).to(tl.float16))


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
def forward_rows(
    x, y, r, memory, table_w,
    SIZES: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr, X: tl.constexpr, Y: tl.constexpr,
    SPLIT: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """Group 1 for the rows from r: the strip's DCT along W (or its inverse) into the plane's scratch."""
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    main, scales, strip, strip_scales = memory
    for l in range(0, BW, TILE):
        v = difference(x, y, r, l, SIZES, TILE, X, Y)
        keep(strip + l, strip_scales + l // TILE, v, BW, TILE * BW, TILE, SPLIT)
    tl.debug_barrier()
    ROW: tl.constexpr = BW if INVERSE else 1
    COLUMN: tl.constexpr = 1 if INVERSE else BW
    for l in range(0, BW, TILE):
        t = product(
            strip, BW, 1, TILE * BW, table_w + l * COLUMN, ROW, COLUMN, BW * BW, strip_scales, 1,
            BW, TILE, BK, SPLIT,
        )  # fmt: skip
        keep(main + r * BW + l, scale_at(scales, r, l, BW, TILE), t, BW, BH * BW, TILE, SPLIT)
    tl.debug_barrier()


@triton.jit
def scale_at(scales, r, l, BW: tl.constexpr, TILE: tl.constexpr):
    """The address of the scale of the tile at (r, l)."""
    return scales + r // TILE * (BW // TILE) + l // TILE


@triton.jit
def forward_columns(
    memory, r, l, table_h, BH: tl.constexpr, BW: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """A tile of the spectrum."""
    main, scales, strip, strip_scales = memory
    ROW: tl.constexpr = 1 if INVERSE else BH
    COLUMN: tl.constexpr = BH if INVERSE else 1
    return product(
        table_h + r * ROW, ROW, COLUMN, BH * BH, main + l, BW, 1, BH * BW, scales + l // TILE, BW // TILE,
        BH, TILE, BK, SPLIT,
    )  # fmt: skip


@triton.jit
def backward_columns(
    memory, l, table_h, BH: tl.constexpr, BW: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """The masked columns from l, in the strip, back along H, into the plane's scratch."""
    main, scales, strip, strip_scales = memory
    tl.debug_barrier()
    for r in range(0, BH, TILE):
        v = product(
            table_h + r, 1, BH, BH * BH, strip, TILE, 1, BH * TILE, strip_scales, 1, BH, TILE, BK, SPLIT
        )
        keep(main + r * BW + l, scale_at(scales, r, l, BW, TILE), v, BW, BH * BW, TILE, SPLIT)
    tl.debug_barrier()


@triton.jit
def backward_rows(
    memory, r, l, table_w, BH: tl.constexpr, BW: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """A tile of the image."""
    main, scales, strip, strip_scales = memory
    return product(
        main + r * BW, BW, 1, BH * BW, table_w + l, BW, 1, BW * BW, scale_at(scales, r, 0, BW, TILE), 1,
        BW, TILE, BK, SPLIT,
    )  # fmt: skip


@triton.jit
def place(
    planes, scratch, floats, SIZES: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
    TOTALS: tl.constexpr,
):  # fmt: skip
    """(plane, step to the next plane, its memory, its strip's first row or column, its TOTALS floats).

    Memory: the plane's scratch and its tiles' scales, a strip's scratch and its tiles' scales.
    `launch.scratch` has the sizes.
    """
    TILE: tl.constexpr = TILING[0]
    PARTS: tl.constexpr = 2 if SPLIT else 1
    SIDE: tl.constexpr = SIZES[2] if SIZES[2] > SIZES[3] else SIZES[3]
    PLANE: tl.constexpr = PARTS * SIZES[2] * SIZES[3]
    STRIP: tl.constexpr = PARTS * SIDE * TILE
    STRIPS: tl.constexpr = 1 if TILING[2] == 0 else SIDE // TILE
    TILES: tl.constexpr = (SIZES[2] // TILE) * (SIZES[3] // TILE)
    s = 0
    if TILING[2] == 0:
        p = tl.program_id(0).to(tl.int64)
        step = tl.num_programs(0).to(tl.int64)
    else:
        p = tl.program_id(1).to(tl.int64)
        step = planes
        s = tl.program_id(0)
    main = scratch + p * (PLANE + STRIPS * STRIP)
    total = floats + p * (TOTALS + 128)
    scales = total + TOTALS
    memory = (main, scales, main + PLANE + s * STRIP, scales + TILES + s * (SIDE // TILE))
    return p, step, memory, s * TILE, total


@triton.jit
def filter_staged(
    x, y, table_h, table_w, energies, pointers, STATIC: tl.constexpr, planes, scratch, floats,
    PREPARE: tl.constexpr, MASK: tl.constexpr, FINISH: tl.constexpr, C: tl.constexpr, TILING: tl.constexpr,
    X: tl.constexpr, Y: tl.constexpr, SPLIT: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """GROUP 0: program n takes planes n, n + programs, ... through all groups. GROUP 1, 2, 3: program
    (strip, plane) takes one strip through one group, and `energies` is [planes, strips].
    """
    SIZES: tl.constexpr = STATIC[0]
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    TILE: tl.constexpr = TILING[0]
    BK: tl.constexpr = TILING[1]
    GROUP: tl.constexpr = TILING[2]
    p, step, memory, first, _ = place(planes, scratch, floats, SIZES, TILING, SPLIT, 0)
    RUN_ROWS: tl.constexpr = BH if GROUP == 0 else TILE
    RUN_COLUMNS: tl.constexpr = BW if GROUP == 0 else TILE
    while p < planes:
        b = p // C
        c = p % C
        values = PREPARE(pointers, b, STATIC)
        if GROUP <= 1:
            px = plane(x, b, c, X)
            py = y
            if y is not None:
                py = plane(y, b, c, Y)
            for r in range(0, RUN_ROWS, TILE):
                forward_rows(px, py, first + r, memory, table_w, SIZES, TILE, BK, X, Y, SPLIT, False)
        if GROUP == 0 or GROUP == 2:
            energy = 0.0
            for l in range(0, RUN_COLUMNS, TILE):
                for r in range(0, BH, TILE):
                    u = forward_columns(memory, r, first + l, table_h, BH, BW, TILE, BK, SPLIT, False)
                    k = r + tl.arange(0, TILE)[:, None]
                    n = first + l + tl.arange(0, TILE)[None, :]
                    u, part = MASK(u, b, c, k, n, 1.0, values, STATIC)
                    energy += part
                    if BACK:
                        keep(memory[2] + r * TILE, memory[3] + r // TILE, u, TILE, BH * TILE, TILE, SPLIT)
                if BACK:
                    backward_columns(memory, first + l, table_h, BH, BW, TILE, BK, SPLIT)
            if energies is not None:
                if GROUP == 0:
                    tl.store(energies + p, energy)
                else:
                    tl.store(energies + p * tl.num_programs(0) + tl.program_id(0), energy)
        if BACK and (GROUP == 0 or GROUP == 3):
            for r in range(0, RUN_ROWS, TILE):
                for l in range(0, BW, TILE):
                    z = backward_rows(memory, first + r, l, table_w, BH, BW, TILE, BK, SPLIT)
                    FINISH(z, first + r, l, b, c, values, pointers, STATIC)
        tl.debug_barrier()
        p += step
