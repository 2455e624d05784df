# SPDX-License-Identifier: Apache-2.0
"""Which calls the GPU kernels take: what both backends ask of an op's arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def normals(arguments: Sequence[Any]) -> bool:
    """Whether `normal` is taken: a block of its stream has a 32-bit number, a grid of blocks a 31-bit one."""
    shape, dtype = arguments[0], arguments[3]
    each = math.prod(shape[1:])
    return dtype is not torch.float64 and each < 2**33 and shape[0] * (each // 4096 + 1) < 2**31


def image(op: str, arguments: Sequence[Any], most_inputs: int) -> Tensor | None:
    """One of a call's images, all of which have its shape; None where some tensor is float64, or too many."""
    images = arguments
    if op == "spectral_mix":
        images, masks, noise_mask = arguments[:3]
        if len(images) > most_inputs or any(
            m.dtype is torch.float64 for m in (*masks, noise_mask) if m is not None
        ):
            return None
    found = None
    for a in images:
        if isinstance(a, Tensor) and a.dim() == 4:
            if a.dtype is torch.float64:
                return None
            found = a
    return found
