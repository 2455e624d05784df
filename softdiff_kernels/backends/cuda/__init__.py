# SPDX-License-Identifier: Apache-2.0
"""The fused CUDA C++ kernels (csrc/cuda): whether they work here, and which calls they take.

The compiled module is loaded when it is asked for, never at import, and loading it calls nothing of CUDA's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ... import _arguments as args
from ..compiled import CompiledOps
from ..gpu import image, normals
from ..protocol import warn_once
from .diagnosis import Facts, device_problem, diagnose, gather

LARGEST_SIDE = 1024
MOST_INPUTS = 4
_COVERED = (
    f"up to {LARGEST_SIDE} px a side and {MOST_INPUTS} inputs of spectral_mix; "
    "larger, and float64, take another backend"
)


@lru_cache(maxsize=1)
def _facts() -> Facts:
    return gather()


@lru_cache(maxsize=1)
def status() -> tuple[bool, str]:
    """Whether the kernels can run on this machine, and the reason in words."""
    usable, reason = diagnose(_facts())
    return usable, f"{reason}, {_COVERED}" if usable else reason


@lru_cache(maxsize=64)  # a flag for each device
def _takes(device: torch.device) -> bool:
    facts = _facts()
    if device.type != ("cpu" if facts.emulated else "cuda"):
        return False
    usable, reason = status()
    if usable and facts.emulated:
        return True
    problem = device_problem(torch.cuda.get_device_capability(device), facts) if usable else reason
    # Without the module, nobody expects its kernels to run: no warning.
    if problem and not facts.import_error:
        warn_once(f"{problem}; images on {device} take another backend")
    return not problem


def covers(op: str, device: torch.device, arguments: Sequence[Any]) -> bool:
    """Whether the kernels take a call; other calls go to another backend."""
    if not _takes(device):
        return False
    if op == "normal":
        return normals(arguments)
    x = image(op, arguments, MOST_INPUTS)
    if x is None:
        return False
    batch, channels, height, width = x.shape
    return (
        0 < height <= LARGEST_SIDE
        and 0 < width <= LARGEST_SIDE
        and 0 < batch * channels < 2**31
        and channels * height * width < 2**33
    )


@lru_cache(maxsize=1)
def _launch() -> Callable[[str, Tensor, tuple[object, ...], int], None]:
    from .launch import launch  # imports the compiled module

    return launch


class _Cuda(CompiledOps):
    status = staticmethod(status)
    covers = staticmethod(covers)

    def launch(self, kernel: str, x: Tensor, arguments: tuple[object, ...], inputs: int = 1) -> None:
        _launch()(kernel, x, arguments, inputs)

    def coefficient(self, op: str, name: str, value: Tensor, signed: bool = False) -> Any:
        """A number from host memory goes along with the launch. What lies on the device is read there."""
        args.host_values(op, name, value, signed=signed)
        if value.is_cpu and value.numel() == 1:
            return value.item()
        return super().coefficient(op, name, value)

    def check_order(self, std_t: Tensor, std_s: Tensor, noise_t: Tensor, noise_s: Tensor) -> None:
        args.host_order("momentum_step", "blur_std_s", std_s, "blur_std_t", std_t)
        args.host_order("momentum_step", "noise_std_s", noise_s, "noise_std_t", noise_t)


BACKEND = _Cuda()
