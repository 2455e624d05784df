# SPDX-License-Identifier: Apache-2.0
"""From an op's arguments to an enqueued kernel: compiled once for a signature, then found by its key.

Triton's own launch path binds, types and specialises every argument at every call. Here the caller knows the
types, so that a signature is looked up by one tuple, and what runs is exactly what was compiled ahead of time
by `aot.py`: no value of an integer is ever compiled in. The compiled kernel takes addresses, not tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver

from ... import caches

INTERPRETED = bool(knobs.runtime.interpret)
# The fast variants are PTX and libdevice, which neither the interpreter nor an AMD GPU has.
FAST = not INTERPRETED and torch.version.hip is None

_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int64: "*i64",
}
_ALIGNED = {dtype: name + "!" for dtype, name in _TYPES.items()}
_HINT = [["tt.divisibility", 16]]

Argument = Tensor | int | float | None
Kinds = tuple[str, ...]


@dataclass(frozen=True)
class Launch:
    """One launch as `recording` keeps it."""

    kernel: Any
    grid: tuple[int, int]
    kinds: Kinds
    constants: tuple[Any, ...]
    warps: int
    stages: int


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, launches are written down instead of made: what a call would compile and enqueue."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def describe(arguments: Sequence[Argument]) -> tuple[Kinds, list[Any]]:
    """Triton's type of each argument, and what a compiled kernel is given: addresses for tensors. A type ends
    in "!" where 16 divides the address, and is "none" for what is absent.
    """
    kinds: list[str] = []
    values: list[Any] = []
    for a in arguments:
        if a is None:
            kinds.append("none")
            values.append(a)
        elif isinstance(a, Tensor):
            address = a.data_ptr()
            kinds.append(_ALIGNED[a.dtype] if address & 15 == 0 else _TYPES[a.dtype])
            values.append(address)
        else:
            kinds.append("i64" if isinstance(a, int) else "fp32")
            values.append(a)
    return tuple(kinds), values


def source(kernel: Any, kinds: Sequence[str], constants: Sequence[Any]) -> ASTSource:
    """What Triton compiles for a kernel, its arguments' types and the constants that follow them."""
    names = kernel.arg_names
    signature = {}
    constexprs = dict(zip(names[len(kinds) :], constants, strict=True))
    attributes = {}
    for i, (name, kind) in enumerate(zip(names, kinds, strict=False)):
        if kind == "none":
            constexprs[name] = None
        elif kind.endswith("!"):
            attributes[(i,)] = _HINT
        signature[name] = "constexpr" if kind == "none" else kind.rstrip("!")
    signature.update(dict.fromkeys(names[len(kinds) :], "constexpr"))
    return ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)


def options(warps: int, stages: int, target: GPUTarget) -> dict[str, Any]:
    """Triton's options. Contraction to fused multiply-adds is part of the kernels' arithmetic."""
    found: dict[str, Any] = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    if target.backend == "cuda" and 100 <= target.arch < 120:
        found["maxnreg"] = 255  # left alone, Triton 3.6 stops at 168 registers here, and spills
    return found


def immediate() -> bool:
    """Whether `launch` needs the arguments themselves: to interpret the kernel, or to write it down."""
    return INTERPRETED or _recorded is not None


def launch(
    kernel: Any,
    grid: tuple[int, int],
    arguments: Sequence[Argument],
    constants: tuple[Any, ...],
    warps: int,
    stages: int = 2,
) -> None:
    """Enqueues `kernel` over `grid` on the current stream of the current device, which is the arguments'."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, describe(arguments)[0], constants, warps, stages))
    elif INTERPRETED:
        kernel[(*grid, 1)](*map(_single, arguments), *constants)
    else:
        kinds, values = describe(arguments)
        found = compiled(kernel, kinds, constants, warps, stages)[1]
        enqueue(found.kernel, grid, (*values, *constants), current_stream())


def _single(a: Argument) -> Argument:
    """A number within float32's range, as a compiled kernel has it; the interpreter would take float64."""
    if not isinstance(a, float):
        return a
    return 0.0 if abs(a) < 1.2e-38 else max(-3.4e38, min(3.4e38, a))


class Loaded:
    """A compiled kernel on its device. Before it is unloaded the host waits: the kernel may still run."""

    def __init__(self, kernel: Any, device: int) -> None:
        self.kernel, self._device = kernel, device

    def __del__(self) -> None:
        if sys.is_finalizing() or not torch.cuda.is_initialized():
            return
        try:
            with torch.cuda.device(self._device):
                torch.cuda.synchronize()
                del self.kernel
        except RuntimeError:  # a graph is being captured
            _never_unloaded.append(self.kernel)


_never_unloaded: list[Any] = []


def compiled(
    kernel: Any, kinds: Kinds, constants: tuple[Any, ...], warps: int, stages: int
) -> tuple[caches.Entry, Loaded]:
    """The kernel compiled for the current device and loaded there, and the entry that keeps it."""
    key = (kernel, kinds, constants, warps, stages, driver.active.get_current_device())
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return _kernels.find_for_graph(*key)
    return _kernels.find(*key)


def _compile(
    kernel: Any, kinds: Kinds, constants: tuple[Any, ...], warps: int, stages: int, device: int
) -> Loaded:
    target = driver.active.get_current_target()
    wanted = options(warps, stages, target)
    found = triton.compile(source(kernel, kinds, constants), target=target, options=wanted)
    _ = found.run  # loads it, before another thread may find it half loaded
    found.asm.clear()  # texts of a megabyte, of no use once it is loaded
    return Loaded(found, device)


# There is one for each size and layout of images. Its machine code is in host memory and on the device.
_kernels = caches.Cache("triton kernels", _compile, lambda found: 2 * len(found.kernel.kernel))


def _listens(hook: Any) -> bool:
    """Whether anybody is behind a hook, which is absent, a chain that may be empty, or a function."""
    return hook is not None and bool(getattr(hook, "calls", True))


def current_stream() -> int:
    """The handle of the current device's current stream."""
    active = driver.active
    return active.get_current_stream(active.get_current_device())


def enqueue(kernel: Any, grid: tuple[int, int], values: Sequence[Any], stream: int) -> None:
    """Enqueues a compiled kernel on the current stream; `values` for all its parameters, constants too."""
    if _listens(knobs.runtime.launch_enter_hook) or _listens(knobs.runtime.launch_exit_hook):
        kernel[(*grid, 1)](*values)  # a profiler listens
        return
    run = kernel.run
    run(grid[0], grid[1], 1, stream, kernel.function, kernel.packed_metadata, None, None, None, *values)


def forget() -> None:
    """Drops the compiled kernels."""
    _kernels.clear()
