# SPDX-License-Identifier: Apache-2.0
"""soft_score_loss and spectral_loss: `w sum_k m_k^2 DCT2(prediction - target)_k^2` and its gradient, in one
pass.

The two differ in where the gains m_k come from: a blur's standard deviation, or a mask in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import coefficient, heat, image_pixels, put, total
from .plane import filter_plane, filter_staged


@triton.jit
def _prepare(pointers, b, STATIC: tl.constexpr):
    """(tau, or the mask's address; floor; weight; gradient_scale)"""
    STEPS: tl.constexpr = STATIC[1]
    filtered_by = pointers[1]
    if STATIC[5] is None:
        filtered_by = coefficient(pointers[1], b, STEPS[0])
        if STEPS[0] >= 0:
            filtered_by = filtered_by * filtered_by * 0.5
    weight = 1.0
    if pointers[2] is not None:
        weight = coefficient(pointers[2], b, STEPS[1])
    return filtered_by, pointers[3], weight, pointers[4]


@triton.jit
def _mask(u, b, c, k, l, down, values, STATIC: tl.constexpr):
    SIZES: tl.constexpr = STATIC[0]
    MASK: tl.constexpr = STATIC[5]
    filtered_by, floor, weight, gradient_scale = values
    if MASK is None:
        gain = (1.0 - floor) * (heat(k, filtered_by, SIZES[0]) * heat(l, filtered_by, SIZES[1])) + floor
    else:
        gain = image_pixels(filtered_by, b, c, k, l, MASK, SIZES)
    u = u * gain
    true = u * down
    return u * gain, weight * total(true * true)


@triton.jit
def _finish(y, row, column, b, c, values, pointers, STATIC: tl.constexpr):
    SIZES: tl.constexpr = STATIC[0]
    GRADIENT: tl.constexpr = STATIC[4]
    filtered_by, floor, weight, gradient_scale = values
    rows = row + tl.arange(0, y.shape[0])[:, None]
    columns = column + tl.arange(0, y.shape[1])[None, :]
    put(pointers[0], y * (2.0 * weight * gradient_scale), b, c, rows, columns, GRADIENT, SIZES)


@triton.jit
def _loss(
    prediction, target, gradient, filtered_by, weight, energies, floor, gradient_scale,
    table_h, table_w, planes, scratch, floats,
    STATIC: tl.constexpr, C: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """filtered_by: a blur or a mask. STATIC: sizes, steps (of blur_std, weight), layouts (prediction, target,
    gradient, mask; of a blur None). gradient: None if it is not wanted. energies: the weighted loss of what
    each program saw, see `filter_plane` and `filter_staged`.
    """
    A: tl.constexpr = STATIC[2]
    B: tl.constexpr = STATIC[3]
    BACK: tl.constexpr = gradient is not None
    if len(TILING) == 1:
        filter_plane(
            prediction, target, table_h, table_w, energies,
            (gradient, filtered_by, weight, floor, gradient_scale),
            STATIC, _prepare, _mask, _finish, TILING, A, B, SPLIT, BACK,
        )  # fmt: skip
    else:
        filter_staged(
            prediction, target, table_h, table_w, energies,
            (gradient, filtered_by, weight, floor, gradient_scale),
            STATIC, planes, scratch, floats, _prepare, _mask, _finish, C, TILING, A, B, SPLIT, BACK,
        )  # fmt: skip


@triton.jit
def soft_score_loss_kernel(
    prediction, target, gradient, blur_std, weight, energies, floor, gradient_scale,
    table_h, table_w, planes, scratch, floats,
    STATIC: tl.constexpr, C: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    _loss(
        prediction, target, gradient, blur_std, weight, energies, floor, gradient_scale,
        table_h, table_w, planes, scratch, floats, STATIC, C, TILING, SPLIT,
    )  # fmt: skip


@triton.jit
def spectral_loss_kernel(
    prediction, target, gradient, mask, weight, energies, gradient_scale,
    table_h, table_w, planes, scratch, floats,
    STATIC: tl.constexpr, C: tl.constexpr, TILING: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    _loss(
        prediction, target, gradient, mask, weight, energies, 0.0, gradient_scale,
        table_h, table_w, planes, scratch, floats, STATIC, C, TILING, SPLIT,
    )  # fmt: skip
