# SPDX-License-Identifier: Apache-2.0
"""The fused Triton kernels: whether they work here, and which calls they take.

Triton is imported when the first call arrives, never before: an import of softdiff_kernels must work without
it, and must not decide whether it interprets (TRITON_INTERPRET=1, which runs these kernels on CPU tensors, for
the tests).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

LARGEST_SIDE = 512
MOST_INPUTS = 4
OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)
_COVERED = (
    f"up to {LARGEST_SIDE} px a side and {MOST_INPUTS} inputs of spectral_mix; "
    "larger, and float64, take the reference"
)


@lru_cache(maxsize=1)
def _load() -> tuple[Any, str]:
    """(the module of the ops, the reason why it is None)."""
    for distribution in ("triton", "pytorch-triton", "triton-windows"):
        try:
            found = version(distribution)
            break
        except PackageNotFoundError:
            continue
    else:
        return None, "Triton is not installed; CUDA builds of torch for Linux bring it along"
    if tuple(int(part) for part in found.split("+")[0].split(".")[:2]) < OLDEST_TRITON:
        wanted = ".".join(map(str, OLDEST_TRITON))
        return None, f"Triton {found} is installed, but these kernels need {wanted} or later (torch 2.10)"
    try:
        return import_module(f"{__name__}.ops"), f"Triton {found}"
    except (ImportError, OSError) as error:
        return None, f"Triton {found} is installed but does not import: {error}"


def interpreted() -> bool:
    """Whether Triton was asked to interpret kernels, on CPU tensors, instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@lru_cache(maxsize=1)
def _gpu() -> tuple[bool, str]:
    if not torch.cuda.is_available():
        return False, "torch finds no GPU"
    return True, ""


def status() -> tuple[bool, str]:
    """Whether the kernels can run here, and the reason in words. Loads Triton where it has a use."""
    if not interpreted():
        usable, reason = _gpu()
        if not usable:
            return False, reason
    module, reason = _load()
    if module is None:
        return False, reason
    how = "interpreted on CPU tensors" if interpreted() else "fused GPU kernels"
    return True, f"{how} ({reason}), {_COVERED}"


@lru_cache(maxsize=16)
def _capable(device: torch.device) -> bool:
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY


def covers(op: str, device: torch.device, arguments: Sequence[Any]) -> bool:
    """Whether the kernels take a call; what they do not take goes to the reference."""
    if device.type == "cpu":
        if not interpreted():
            return False
    elif device.type != "cuda" or not _capable(device):
        return False
    if op == "normal":
        return arguments[3] is not torch.float64
    images = [a for a in arguments if isinstance(a, Tensor) and a.dim() == 4]
    if op == "spectral_mix":
        images = list(arguments[0])
        if len(images) > MOST_INPUTS or any(m.dtype == torch.float64 for m in arguments[1]):
            return False
        if isinstance(arguments[2], Tensor) and arguments[2].dtype == torch.float64:
            return False
    shape = images[0].shape
    return (
        all(x.dtype != torch.float64 for x in images)
        and max(shape[2], shape[3]) <= LARGEST_SIDE
        and 0 < math.prod(shape[1:]) < 2**31
        and shape[0] > 0
    )


def __getattr__(name: str) -> Any:
    """The ops, as `backends` calls them."""
    module, reason = _load()
    if module is None:
        raise AttributeError(f"{name}: {reason}")
    return getattr(module, name)
