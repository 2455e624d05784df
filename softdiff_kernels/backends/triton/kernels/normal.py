# SPDX-License-Identifier: Apache-2.0
"""normal: the noise stream itself."""

from __future__ import annotations

import triton
import triton.language as tl

from .device import blocks_of_four, key_of, rounded


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
