# SPDX-License-Identifier: Apache-2.0
"""What both GPU backends need: which calls their kernels take, and the DCT basis made on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def normals(arguments: Sequence[Any]) -> bool:
    """Whether `normal` is covered: its stream's blocks have 32-bit numbers, a grid's 31-bit ones."""
    shape, dtype = arguments[0], arguments[3]
    each = math.prod(shape[1:])
    return dtype is not torch.float64 and each < 2**33 and shape[0] * (each // 4096 + 1) < 2**31


def image(op: str, arguments: Sequence[Any], most_inputs: int) -> Tensor | None:
    """One of a call's images, which all have one shape; None if a tensor is float64, or too many."""
    images: Sequence[Any] = arguments
    masks: Sequence[Any] = ()
    if op in ("spectral_mix", "spectral_mix_out"):
        images, masks = (*arguments[0], *arguments[5:]), (*arguments[1], arguments[2])
        if len(arguments[0]) > most_inputs:
            return None
    elif op == "spectral_loss":
        images, masks = arguments[:2], arguments[2:3]
    if any(m.dtype is torch.float64 for m in masks if m is not None):
        return None
    x = None
    for a in images:
        if isinstance(a, Tensor) and a.dim() == 4:
            if a.dtype is torch.float64:
                return None
            x = a
    return x


def dct_basis(n: int, device: torch.device) -> Tensor:
    """`spectrum.dct_basis` in float64, computed on the device.

    A first call inside the capture of a CUDA graph then copies nothing from the host.
    """
    k = torch.arange(n, dtype=torch.int64, device=device)[:, None]
    i = torch.arange(n, dtype=torch.int64, device=device)[None, :]
    # The angle is reduced in integers, as `spectrum.dct_basis` does.
    basis = torch.cos(((k * (2 * i + 1)) % (4 * n)).double() * (math.pi / (2 * n)))
    basis *= math.sqrt(2.0 / n)
    basis[0] *= math.sqrt(0.5)
    return basis
