# SPDX-License-Identifier: Apache-2.0
"""Device functions that the kernels share: the noise stream, split products, gains, images in memory.

Products run on the tensor cores in float16. A float32 operand is the sum of two float16 numbers, high and
low, which hold 22 of its 24 bits; three products (low high, high low, high high) then give what a float32
product gives, at half the cost of three TF32 products and with half their operand bytes (Ootomo & Yokota
2022). float16 reaches from 6e-8 to 65504, so each plane, or each tile of a larger one, is first multiplied by
the power of two that brings its largest magnitude into [8, 16), and its spectrum by another; tables hold 64
times their matrix (`TABLE_GAIN`).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

# What a table holds is this many times the matrix; UNGAIN undoes it.
TABLE_GAIN = 64
UNGAIN = tl.constexpr(1.0 / TABLE_GAIN)
_PI = tl.constexpr(3.141592653589793)
_MOST = tl.constexpr(3.0e38)
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _wide(a, b: tl.constexpr, FAST: tl.constexpr):
    """The high and low words of a 64-bit product of two words."""
    if FAST:
        # One instruction; of umulhi and a product, or of a 64-bit product, LLVM makes two.
        return tl.inline_asm_elementwise(
            "{ .reg .u64 wide; mul.wide.u32 wide, $2, $3; mov.b64 {$1, $0}, wide; }",
            "=r,=r,r,r",
            [a, b],
            dtype=(tl.uint32, tl.uint32),
            is_pure=True,
            pack=1,
        )
    return tl.umulhi(a, b), a * b


@triton.jit
def philox(block, draw, stream_low, stream_high, key0, key1, FAST: tl.constexpr):
    """Ten rounds of Philox4x32 (Salmon et al. 2011); uint32 throughout."""
    c0, c1, c2, c3 = block, draw, stream_low, stream_high
    for _ in tl.static_range(10):
        high0, low0 = _wide(c0, 0xD2511F53, FAST)
        high1, low1 = _wide(c2, 0xCD9E8D57, FAST)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 = key0 + 0x9E3779B9
        key1 = key1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def box_muller(r, q, FAST: tl.constexpr):
    """Two normals from two words, each within 2e-6 of exact arithmetic (`noise.py`).

    Where u is near 1, float32 holds neither it nor, then, its logarithm: the last 2^-7 take a series in
    1 - u, formed exactly from the integer. The angle is turned into b = pi/2 - |theta|, whose sine and
    cosine are the cosine and, but for the sign, the sine of theta; both are polynomials on [-pi/2, pi/2],
    within 2.7e-7. The hardware's own are off by 4e-7, which the largest radius, 5.9, would make 2.4e-6. The
    radius is in units of sqrt(2 ln 2), which the polynomials' coefficients hold.
    """
    whole = (r >> 8).to(tl.int32).to(tl.float32)
    u = whole * 5.9604644775390625e-08 + 2.98023223876953125e-08
    log = libdevice.fast_log2f(u) if FAST else tl.log2(u)
    # 2 (1 - u) + 2^-24, exact; the 2^-24 comes off in the last constant, 2^-24 times 0.7213.
    twice = 2.0 - whole * 1.1920928955078125e-07
    series = twice * (twice * 0.1815185695886612 + 0.721342921257019) - 4.299538e-08
    radius = tl.sqrt(tl.abs(tl.where(r >= 0xFE000000, series, log)))
    angle = q.to(tl.int32, bitcast=True)
    b = 1.5707963705062866 - tl.abs(angle.to(tl.float32)) * 1.4629180792671596e-09
    s = b * b
    sine = b * (
        1.1774100065231323
        + s
        * (
            -0.1962347775697708
            + s * (0.009811239317059517 + s * (-0.00023313774727284908 + s * 3.0500668799504638e-06))
        )
    )
    cosine = 1.1774100065231323 + s * (
        -0.5887050032615662
        + s
        * (
            0.049058716744184494
            + s * (-0.0016352295642718673 + s * (2.9152861316106282e-05 + s * -3.067329146233533e-07))
        )
    )
    signed = (radius.to(tl.int32, bitcast=True) | (angle & -2147483648)).to(tl.float32, bitcast=True)
    return radius * sine, signed * cosine


@triton.jit
def key_of(rows, seed, stream, draw, b, KEY_STEP: tl.constexpr):
    """(draw, stream low, stream high, seed low, seed high) of sample b, uint32.

    KEY_STEP: -1, three numbers; 0, a table: rows are `seed` apart (0: one for all), and from row to row the
    stream counts up by `stream`.
    """
    if KEY_STEP >= 0:
        at = rows + b.to(tl.int64) * seed
        stream = tl.load(at + 1) + b * stream
        seed = tl.load(at)
        draw = tl.load(at + 2)
    else:
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
def split(x):
    """x as high + low, both float16."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def right(x, high, low, SPLIT: tl.constexpr, EXACT: tl.constexpr):
    """x @ (high + low). SPLIT: in all their digits, else in float16's; EXACT: float16 holds x."""
    if not SPLIT:
        return tl.dot(x.to(tl.float16), high)
    if EXACT:
        x_high = x.to(tl.float16)
        return tl.dot(x_high, high, tl.dot(x_high, low))
    x_high, x_low = split(x)
    return tl.dot(x_high, high, tl.dot(x_high, low, tl.dot(x_low, high)))


@triton.jit
def left(high, low, x, SPLIT: tl.constexpr):
    """(high + low) @ x."""
    if not SPLIT:
        return tl.dot(high, x.to(tl.float16))
    x_high, x_low = split(x)
    return tl.dot(high, x_high, tl.dot(low, x_high, tl.dot(high, x_low)))


@triton.jit
def table(ptr, rows, columns, B: tl.constexpr, SPLIT: tl.constexpr):
    """The (high, low) of a block of a matrix B x B; without SPLIT low is high, and nobody uses it."""
    at = ptr + rows * B + columns
    high = tl.load(at)
    if SPLIT:
        return high, tl.load(at + B * B)
    return high, high


@triton.jit
def largest(x):
    """The largest magnitude; NaN is left out here and found again in the product."""
    return tl.max(tl.reshape(tl.abs(x), [x.shape[0] * x.shape[1]]), 0)


@triton.jit
def total(x):
    """The sum of a tile, flattened first: of a product's rows Triton 3.7 makes no sum on sm_100."""
    return tl.sum(tl.reshape(x, [x.shape[0] * x.shape[1]]), 0)


@triton.jit
def power(magnitude, SHIFT: tl.constexpr):
    """The power of two that brings `magnitude` into [1, 2) 2^SHIFT, as far as it and its inverse are normal.

    Images and spectra take 3: the next product of a 64-px plane then stays below 16384; it is split as it is.
    """
    exponent = (magnitude.to(tl.int32, bitcast=True) >> 23) & 255
    up = tl.minimum(tl.maximum(254 + SHIFT - exponent, 1), 253)
    return (up << 23).to(tl.float32, bitcast=True), ((254 - up) << 23).to(tl.float32, bitcast=True)


@triton.jit
def coefficient(c, b, STEP: tl.constexpr):
    """A sample's coefficient: a number where STEP is -1, else from memory."""
    if STEP < 0:
        return c
    else:  # what follows a return is compiled all the same
        return tl.load(c + b.to(tl.int64) * STEP).to(tl.float32)


@triton.jit
def exponents(std_t, std_s, b, STEP_T: tl.constexpr, STEP_S: tl.constexpr):
    """(tau of the weaker blur, tau_t - tau_s), tau = blur_std^2 / 2; both ready where STEP_S is -1."""
    if STEP_S < 0:
        return std_s, std_t
    else:
        s = tl.load(std_s + b.to(tl.int64) * STEP_S)
        t = tl.load(std_t + b.to(tl.int64) * STEP_T)
        weaker = tl.minimum(s, t, propagate_nan=tl.PropagateNan.ALL)
        return (weaker * weaker * 0.5).to(tl.float32), ((t - s) * (t + s) * 0.5).to(tl.float32)


@triton.jit
def eigenvalues(k, N: tl.constexpr):
    """(pi k / N)^2."""
    root = k.to(tl.float32) * (_PI / N)
    return root * root


@triton.jit
def heat(k, tau, N: tl.constexpr):
    """exp(-lambda_k tau) along one axis; tau is kept finite for lambda_0 = 0."""
    return tl.exp(-eigenvalues(k, N) * tl.minimum(tau, _MOST, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def heat_loss(k, step, N: tl.constexpr):
    """(p, q): p = 1 - q, q = exp(-lambda_k step); p by its series where the difference would lose digits."""
    x = eigenvalues(k, N) * tl.minimum(step, _MOST, propagate_nan=tl.PropagateNan.ALL)
    q = tl.exp(-x)
    small = tl.minimum(x, 0.25)
    series = small * (
        1.0
        - small
        * (1 / 2)
        * (
            1.0
            - small * (1 / 3) * (1.0 - small * (1 / 4) * (1.0 - small * (1 / 5) * (1.0 - small * (1 / 6))))
        )
    )
    return tl.where(x < 0.25, series, 1.0 - q), q


@triton.jit
def offsets(rows, columns, LAYOUT: tl.constexpr, SIZES: tl.constexpr):
    """Offsets of pixels within a plane; 64-bit only where its strides ask for it."""
    if (SIZES[2] - 1) * LAYOUT[2] + (SIZES[3] - 1) * LAYOUT[3] >= 2147483648:
        return rows.to(tl.int64) * LAYOUT[2] + columns.to(tl.int64) * LAYOUT[3]
    return rows * LAYOUT[2] + columns * LAYOUT[3]


@triton.jit
def plane(ptr, b, c, LAYOUT: tl.constexpr):
    """The address of plane (b, c), in 64 bits."""
    return ptr + b.to(tl.int64) * LAYOUT[0] + c.to(tl.int64) * LAYOUT[1]


@triton.jit
def pixels(ptr, rows, columns, LAYOUT: tl.constexpr, SIZES: tl.constexpr):
    """Pixels of a plane in float32, zero between its sizes and the padded ones; uint8 decoded."""
    at = ptr + offsets(rows, columns, LAYOUT, SIZES)
    if SIZES[0] == SIZES[2] and SIZES[1] == SIZES[3]:
        x = tl.load(at).to(tl.float32)
        if ptr.dtype.element_ty == tl.uint8:
            x = tl.div_rn(x, 127.5) - 1.0
    else:
        inside = (rows < SIZES[0]) & (columns < SIZES[1])
        x = tl.load(at, mask=inside, other=0).to(tl.float32)
        if ptr.dtype.element_ty == tl.uint8:
            x = tl.where(inside, tl.div_rn(x, 127.5) - 1.0, 0.0)
    return x


@triton.jit
def image_pixels(ptr, b, c, rows, columns, LAYOUT: tl.constexpr, SIZES: tl.constexpr):
    """`pixels` of plane (b, c)."""
    return pixels(plane(ptr, b, c, LAYOUT), rows, columns, LAYOUT, SIZES)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x to nearest in dtype. The interpreter (3.6 to 3.9) truncates to bfloat16 instead, and is helped."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def put(ptr, x, b, c, rows, columns, LAYOUT: tl.constexpr, SIZES: tl.constexpr):
    """Stores pixels of plane (b, c), rounded to its dtype."""
    at = plane(ptr, b, c, LAYOUT) + offsets(rows, columns, LAYOUT, SIZES)
    x = rounded(x, ptr.dtype.element_ty)
    if SIZES[0] == SIZES[2] and SIZES[1] == SIZES[3]:
        tl.store(at, x)
    else:
        tl.store(at, x, mask=(rows < SIZES[0]) & (columns < SIZES[1]))
