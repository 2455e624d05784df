# SPDX-License-Identifier: Apache-2.0
"""dct2 and idct2."""

from __future__ import annotations

import triton
import triton.language as tl

from .device import plane, put
from .plane import forward_columns, forward_rows, place, spectrum


@triton.jit
def dct2_kernel(
    x, out, table_h, table_w, planes, scratch, floats,
    SIZES: tl.constexpr, X: tl.constexpr, OUT: tl.constexpr, C: tl.constexpr, TILING: tl.constexpr,
    SPLIT: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """TILING: (1,), program (sample, channel); or (TILE, BK, GROUP), see `filter_staged`."""
    BH: tl.constexpr = SIZES[2]
    BW: tl.constexpr = SIZES[3]
    if len(TILING) == 1:
        b = tl.program_id(0)
        c = tl.program_id(1)
        u, down = spectrum(x, None, b, c, table_h, table_w, SIZES, X, X, SPLIT, INVERSE)
        rows = tl.arange(0, BH)[:, None]
        columns = tl.arange(0, BW)[None, :]
        put(out, u * down, b, c, rows, columns, OUT, SIZES)
    else:
        TILE: tl.constexpr = TILING[0]
        BK: tl.constexpr = TILING[1]
        GROUP: tl.constexpr = TILING[2]
        p, step, memory, first, _ = place(planes, scratch, floats, SIZES, TILING, SPLIT, 0)
        while p < planes:
            b = p // C
            c = p % C
            if GROUP <= 1:
                px = plane(x, b, c, X)
                for r in range(0, BH if GROUP == 0 else TILE, TILE):
                    forward_rows(
                        px, None, first + r, memory, table_w, SIZES, TILE, BK, X, X, SPLIT, INVERSE
                    )  # fmt: skip
            if GROUP == 0 or GROUP == 2:
                for l in range(0, BW if GROUP == 0 else TILE, TILE):
                    for r in range(0, BH, TILE):
                        u = forward_columns(memory, r, first + l, table_h, BH, BW, TILE, BK, SPLIT, INVERSE)
                        rows = r + tl.arange(0, TILE)[:, None]
                        columns = first + l + tl.arange(0, TILE)[None, :]
                        put(out, u, b, c, rows, columns, OUT, SIZES)
            tl.debug_barrier()
            p += step
