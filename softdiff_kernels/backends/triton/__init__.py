# SPDX-License-Identifier: Apache-2.0
"""The fused Triton kernels: whether they work here, and which calls they take.

Triton is imported at the first call, never before: importing softdiff_kernels must work without Triton, and
must not settle whether Triton interprets (TRITON_INTERPRET=1, which runs these kernels on CPU tensors, for
the tests).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from ..gpu import image, normals

if TYPE_CHECKING:
    from .ops import *  # noqa: F403 (what `__getattr__` gives)

LARGEST_SIDE = 512
MOST_INPUTS = 4
MOST_CHANNELS = 65535  # a grid's second axis
OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)
_COVERED = (
    f"up to {LARGEST_SIDE} px a side and {MOST_INPUTS} inputs of spectral_mix; "
    "larger, and float64, take the reference"
)


@lru_cache(maxsize=1)
def _load() -> tuple[Any, str]:
    """(the module of the ops, or None; the reason)."""
    for distribution in ("triton", "pytorch-triton", "triton-windows"):
        try:
            installed = version(distribution)
            break
        except PackageNotFoundError:
            continue
    else:
        return None, "Triton is not installed; CUDA builds of torch for Linux bring it along"
    if tuple(int(part) for part in installed.split("+")[0].split(".")[:2]) < OLDEST_TRITON:
        wanted = ".".join(map(str, OLDEST_TRITON))
        return None, f"Triton {installed} is installed, but these kernels need {wanted} or later (torch 2.10)"
    try:
        return import_module(f"{__name__}.ops"), f"Triton {installed}"
    except (ImportError, OSError) as error:
        return None, f"Triton {installed} is installed but does not import: {error}"


def interpreted() -> bool:
    """Whether Triton was asked to interpret kernels, on CPU tensors, instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def status() -> tuple[bool, str]:
    """Whether the kernels can run on this machine, and the reason. Imports Triton if it can be used."""
    return _status(interpreted())


@lru_cache(maxsize=2)
def _status(interpreting: bool) -> tuple[bool, str]:
    if not interpreting and not torch.cuda.is_available():
        return False, "torch finds no GPU"
    module, reason = _load()
    if module is None:
        return False, reason
    how = "interpreted on CPU tensors" if interpreting else "fused GPU kernels"
    return True, f"{how} ({reason}), {_COVERED}"


@lru_cache(maxsize=64)  # a flag for each device
def _takes(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY


def covers(op: str, device: torch.device, arguments: Sequence[Any]) -> bool:
    """Whether the kernels take a call; other calls go to the reference."""
    if not (interpreted() if device.type == "cpu" else _takes(device)):
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
        and batch > 0
        and 0 < channels <= MOST_CHANNELS
        and channels * height * width < 2**31
    )


def _launch() -> Any:
    return import_module(f"{__name__}.launch")


def compiles(device: torch.device) -> bool:
    """Whether calls on a device launch kernels that Triton compiles at first use. Imports Triton if so."""
    here = interpreted() if device.type == "cpu" else _takes(device)
    return here and status()[0] and not _launch().INTERPRETED


def rehearse(call: Callable[[], object]) -> tuple[int, int]:
    """Makes a call with its launches recorded instead of made, and compiles and loads what they need, on the
    current device. Returns how many kernels were compiled, and how many were there or on the disk.
    """
    with _launch().recording() as recorded:
        call()
    compiled, found = _launch().compile_all(recorded)
    return compiled, found


def __getattr__(name: str) -> Any:
    """The ops, from `ops.py`, which imports Triton. They are kept here after the first use."""
    if name.startswith("_"):
        raise AttributeError(name)
    module, reason = _load()
    if module is None:
        raise AttributeError(f"{name}: {reason}")
    if name not in globals():  # else it is a submodule, which loading has put here
        globals()[name] = getattr(module, name)
    return globals()[name]
