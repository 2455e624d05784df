# SPDX-License-Identifier: Apache-2.0
"""The noise of a tile of an image, and the kernel behind `normal`."""

from __future__ import annotations

import triton
import triton.language as tl

from .device import box_muller, philox, rounded


@triton.jit
def key_of(rows, seed, stream, draw, b, KEY_STEP: tl.constexpr):
    """(draw, stream low, stream high, seed low, seed high) of sample b, uint32.

    KEY_STEP: -1, three numbers; 0, one row of the table, whose stream counts up; 3, a row each.
    """
    if KEY_STEP >= 0:
        at = rows + b.to(tl.int64) * KEY_STEP
        seed = tl.load(at)
        stream = tl.load(at + 1)
        draw = tl.load(at + 2)
    if KEY_STEP <= 0:
        stream = stream + b
    return (
        draw.to(tl.uint32),
        stream.to(tl.uint32),
        (stream >> 32).to(tl.uint32),
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )


@triton.jit
def blocks_of_four(block, key, FAST: tl.constexpr):
    """The normals of blocks [R, Q] as [R, 4 Q]."""
    w0, w1, w2, w3 = philox(block, key[0], key[1], key[2], key[3], key[4], FAST)
    z0, z1 = box_muller(w0, w1, FAST)
    z2, z3 = box_muller(w2, w3, FAST)
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [block.shape[0], 4 * block.shape[1]])


@triton.jit
def noise_tile(
    key,
    c,
    first_row,
    first_column,
    H: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FAST: tl.constexpr,
):
    """Normals of a tile [ROWS, COLUMNS] of plane c. first_column: a multiple of 4, as COLUMNS is.

    Where W is a multiple of 4, a block is four neighbours in a row, and all its words are used. Where W is
    even, a pair of neighbours shares a block's half, which costs Philox twice; else every pixel finds its
    own word.
    """
    rows = (c * H + first_row + tl.arange(0, ROWS)[:, None]) * W + first_column
    if W % 4 == 0:
        block = rows // 4 + tl.arange(0, COLUMNS // 4)[None, :]
        return blocks_of_four(block.to(tl.uint32), key, FAST)
    if W % 2 == 0:
        pair = rows // 2 + tl.arange(0, COLUMNS // 2)[None, :]
        w0, w1, w2, w3 = philox((pair >> 1).to(tl.uint32), key[0], key[1], key[2], key[3], key[4], FAST)
        second = (pair & 1) != 0
        z0, z1 = box_muller(tl.where(second, w2, w0), tl.where(second, w3, w1), FAST)
        return tl.reshape(tl.join(z0, z1), [ROWS, COLUMNS])
    element = rows + tl.arange(0, COLUMNS)[None, :]
    w0, w1, w2, w3 = philox((element >> 2).to(tl.uint32), key[0], key[1], key[2], key[3], key[4], FAST)
    second = (element & 2) != 0
    z0, z1 = box_muller(tl.where(second, w2, w0), tl.where(second, w3, w1), FAST)
    return tl.where((element & 1) != 0, z1, z0)


@triton.jit
def normal_kernel(
    out, key_rows, seed, stream, draw, count, parts,
    GRAIN: tl.constexpr, KEY_STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """`count` normals for each sample, ROWS x COLUMNS of them by each of its `parts` programs.

    GRAIN: the largest of ROWS x COLUMNS, 4 and 1 that divides count, so that most stores are whole vectors.
    """
    program = tl.program_id(0)
    b = program // parts.to(tl.int32)
    part = program % parts.to(tl.int32)
    key = key_of(key_rows, seed, stream, draw, b, KEY_STEP)
    block = tl.arange(0, ROWS)[:, None] * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4)[None, :]
    z = rounded(
        blocks_of_four((part * (ROWS * COLUMNS // 4) + block).to(tl.uint32), key, FAST), out.dtype.element_ty
    )
    element = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    first = part.to(tl.int64) * (ROWS * COLUMNS)
    at = out + tl.multiple_of(b * count, GRAIN) + first + element
    if GRAIN == ROWS * COLUMNS:
        tl.store(at, z)
    else:
        left = tl.minimum(count - first, ROWS * COLUMNS).to(tl.int32)
        tl.store(at, z, mask=element < tl.multiple_of(left, GRAIN))
