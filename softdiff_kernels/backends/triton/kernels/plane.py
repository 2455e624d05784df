# SPDX-License-Identifier: Apache-2.0
"""A whole plane in one tile: transform, mask, transform back, all in registers. Up to 64 px a side.

An op gives three functions. PREPARE(pointers, b, STATIC) makes the values that hold for sample b;
MASK(u, k, l, down, values, STATIC) returns the masked spectrum and the energy in it (the loss's alone);
FINISH(y, row, column, b, c, values, pointers, STATIC) makes the result from a tile of the image, whose first
pixel is at (row, column), and stores it. `pointers` is a tuple of what lies in memory, `STATIC` one of what
is known at compile time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import image_pixels, largest, left, power, right, table


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
