# SPDX-License-Identifier: Apache-2.0
"""The fused CPU kernels (csrc/cpu) behind the ops' schemas.

Covers float32, bfloat16, float16 and uint8 images on the CPU; float64 takes the reference. The module is
loaded on first use. Values inside coefficient tensors are checked in C++, before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .. import caches
from . import installed
from .compiled import CompiledOps


@lru_cache(maxsize=1)
def _load() -> tuple[Any, str]:
    """The module, or None, and the reason.

    Raises ValueError, and keeps nothing, where the bound of the caches is no number: that is no reason to
    take plain PyTorch, which needs the bound as well.
    """
    try:
        _native = import_module("softdiff_kernels._native")
        installed.refuse_foreign(_native)
    except ImportError as error:
        record = installed.read()  # its reason is empty where there is no record
        reason = installed.hidden("_native") or (not record.native and record.reason) or error
        return None, f"{reason}; see docs/building.md"
    wanted = os.environ.get("SOFTDIFF_CPU_ISA")
    if wanted and not _native.use_instruction_set(wanted):
        return (
            None,
            f"SOFTDIFF_CPU_ISA: expected avx512, avx2 or portable, as this CPU has it; got {wanted!r}",
        )
    caches.attach(_native)
    return _native, f"fused CPU kernels ({_native.instruction_set()}, threads from {_native.thread_source()})"


def status() -> tuple[bool, str]:
    """Whether the kernels are here, and the reason in words."""
    module, reason = _load()
    return module is not None, reason


def covers(op: str, device: torch.device, arguments: Sequence[Any]) -> bool:
    """Whether the call is on the CPU. (float64 images reach no kernel; coefficients may be float64.)"""
    return device.type == "cpu"


class _Native(CompiledOps):
    status = staticmethod(status)
    covers = staticmethod(covers)

    def launch(self, kernel: str, x: Tensor, arguments: tuple[object, ...], inputs: int = 1) -> None:
        getattr(_load()[0], kernel)(torch.get_num_threads(), arguments)


BACKEND = _Native()
