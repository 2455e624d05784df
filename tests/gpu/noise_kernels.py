# SPDX-License-Identifier: Apache-2.0
"""The device functions of the noise stream, alone: words in, words or normals out."""

from __future__ import annotations

import triton
import triton.language as tl

from softdiff_kernels.backends.triton.kernels.device import box_muller, philox

BLOCK = 1024


@triton.jit
def box_muller_kernel(r, q, cosine, sine, count, FAST: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    words = tl.load(r + at, mask=inside, other=0).to(tl.uint32, bitcast=True)
    angles = tl.load(q + at, mask=inside, other=0).to(tl.uint32, bitcast=True)
    z0, z1 = box_muller(words, angles, FAST)
    tl.store(cosine + at, z0, mask=inside)
    tl.store(sine + at, z1, mask=inside)


@triton.jit
def philox_kernel(counters, out, count, key0, key1, FAST: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    c0 = tl.load(counters + at, mask=inside, other=0).to(tl.uint32, bitcast=True)
    c1 = tl.load(counters + count + at, mask=inside, other=0).to(tl.uint32, bitcast=True)
    c2 = tl.load(counters + 2 * count + at, mask=inside, other=0).to(tl.uint32, bitcast=True)
    c3 = tl.load(counters + 3 * count + at, mask=inside, other=0).to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = philox(c0, c1, c2, c3, key0.to(tl.uint32), key1.to(tl.uint32), FAST)
    tl.store(out + at, w0.to(tl.int32, bitcast=True), mask=inside)
    tl.store(out + count + at, w1.to(tl.int32, bitcast=True), mask=inside)
    tl.store(out + 2 * count + at, w2.to(tl.int32, bitcast=True), mask=inside)
    tl.store(out + 3 * count + at, w3.to(tl.int32, bitcast=True), mask=inside)
