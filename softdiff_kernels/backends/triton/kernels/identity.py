# SPDX-License-Identifier: Apache-2.0
"""template: copy this for a new op. identity: copies planes tile by tile, through float32."""

from __future__ import annotations

import triton
import triton.language as tl

from .device import image_pixels, put


@triton.jit
def identity_kernel(
    x, out, SIZES: tl.constexpr, X: tl.constexpr, OUT: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Program (sample, channel). SIZES: H, W and both padded to tiles; X, OUT: strides; TILE: its sides."""
    b = tl.program_id(0)
    c = tl.program_id(1)
    for r in range(0, SIZES[2], TILE[0]):
        for l in range(0, SIZES[3], TILE[1]):
            rows = r + tl.arange(0, TILE[0])[:, None]
            columns = l + tl.arange(0, TILE[1])[None, :]
            put(out, image_pixels(x, b, c, rows, columns, X, SIZES), b, c, rows, columns, OUT, SIZES)
