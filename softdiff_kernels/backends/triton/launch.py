# SPDX-License-Identifier: Apache-2.0
"""From an op's arguments to enqueued kernels.

`launch` puts one kernel into the stream. Triton's own launch path binds, types and specialises every
argument at every call. Here the caller knows the types, so that a signature is looked up by one tuple, and
what runs is exactly what `tools/aot.py` compiles ahead of time: no value of an integer is ever compiled in.
The compiled kernel takes addresses, not tensors.

`run` launches an op over the planes of images: once where a plane is a tile or the batch fills the GPU, else
once for each group of products (kernels/plane.py). It lends the kernels the transform's matrices.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver

from ... import caches
from ..gpu import dct_basis
from .configs import TILE, Plan
from .kernels.device import TABLE_GAIN

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


_recorded: ContextVar[list[Launch] | None] = ContextVar("softdiff_kernels.recorded", default=None)
_recorders = 0  # blocks of `recording` that are open anywhere: a call that finds none looks no further
_lock = threading.Lock()


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, launches of this context are recorded instead of made: what a call would compile and enqueue.

    What the ops return is not computed. Other threads, such as autograd's on a GPU, launch as ever.
    """
    global _recorders
    recorded: list[Launch] = []
    before = _recorded.set(recorded)
    with _lock:
        _recorders += 1
    try:
        yield recorded
    finally:
        with _lock:
            _recorders -= 1
        _recorded.reset(before)


def describe(arguments: Sequence[Argument]) -> tuple[Kinds, list[Any]]:
    """Triton's type of each argument, and what a compiled kernel is given: addresses for tensors. A type ends
    in "!" where 16 divides the address, and is "none" for what is absent. Of one axis are coefficients, read
    one at a time: their address is compiled into nothing.
    """
    kinds: list[str] = []
    values: list[Any] = []
    for a in arguments:
        if a is None:
            kinds.append("none")
            values.append(a)
        elif isinstance(a, Tensor):
            address = a.data_ptr()
            kinds.append(_TYPES[a.dtype] if address & 15 or a.dim() == 1 else _ALIGNED[a.dtype])
            values.append(address)
        else:
            kinds.append("i64" if isinstance(a, int) else "fp32")
            values.append(a)
    return tuple(kinds), values


class _Source(ASTSource):
    """Knows whether Triton compiled it, or found it on the disk."""

    compiled = False

    def make_ir(self, *args: Any, **options: Any) -> Any:
        self.compiled = True
        return super().make_ir(*args, **options)


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
    return _Source(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)


def options(warps: int, stages: int, target: GPUTarget) -> dict[str, Any]:
    """Triton's options. Contraction to fused multiply-adds is part of the kernels' arithmetic."""
    chosen: dict[str, Any] = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    if target.backend == "cuda" and 100 <= target.arch < 120:
        chosen["maxnreg"] = 255  # left alone, Triton 3.6 stops at 168 registers here, and spills
    return chosen


def immediate() -> bool:
    """Whether `launch` needs the arguments themselves: to interpret the kernel, or to record the launch."""
    return INTERPRETED or (_recorders > 0 and _recorded.get() is not None)


def launch(
    kernel: Any,
    grid: tuple[int, int],
    arguments: Sequence[Argument],
    constants: tuple[Any, ...],
    warps: int,
    stages: int = 2,
) -> None:
    """Enqueues `kernel` over `grid` on the current stream of the current device, which is the arguments'."""
    recorded = _recorded.get() if _recorders else None
    if recorded is not None:
        recorded.append(Launch(kernel, grid, describe(arguments)[0], constants, warps, stages))
    elif INTERPRETED:
        kernel[(*grid, 1)](*map(_single, arguments), *constants)
    else:
        kinds, values = describe(arguments)
        loaded = compiled(kernel, kinds, constants, warps, stages)[1]
        if loaded.seconds:
            _report(kernel, arguments, loaded)
        enqueue(loaded.kernel, grid, (*values, *constants), current_stream())


def _single(a: Argument) -> Argument:
    """A number within float32's range, as a compiled kernel has it; the interpreter would take float64."""
    if not isinstance(a, float):
        return a
    return 0.0 if abs(a) < 1.2e-38 else max(-3.4e38, min(3.4e38, a))


class Loaded:
    """A compiled kernel on its device. Before it is unloaded (Triton 3.9 does so when nobody holds it) the
    host waits: the kernel may still run. One that a CUDA graph launches is pinned, and never unloaded.

    seconds: how long a call waited for it to be compiled; 0 where none did, or where that has been reported.
    """

    def __init__(self, kernel: Any, device: int, seconds: float = 0.0) -> None:
        self.kernel, self._device, self.seconds = kernel, device, seconds

    def __del__(self) -> None:
        if sys.is_finalizing() or not torch.cuda.is_initialized():
            return
        try:
            # To wait, or to unload, would spoil a graph that is being captured.
            if not torch.cuda.is_current_stream_capturing():
                with torch.cuda.device(self._device):
                    torch.cuda.synchronize()
                    del self.kernel
                return
        except RuntimeError:  # another thread captures one
            pass
        _never_unloaded.append(self.kernel)


_never_unloaded: list[Any] = []

# All that one kernel is compiled from, and the device: (kernel, kinds, constants, warps, stages, device).
Key = tuple[Any, Kinds, tuple[Any, ...], int, int, int]


def op_of(kernel: Any) -> str:
    """The name of a kernel's op."""
    return str(kernel.__name__).removesuffix("_kernel")


def compiled(
    kernel: Any, kinds: Kinds, constants: tuple[Any, ...], warps: int, stages: int
) -> tuple[caches.Entry, Loaded]:
    """The kernel compiled for the current device and loaded there, and the entry that keeps it."""
    key = (kernel, kinds, constants, warps, stages, driver.active.get_current_device())
    if not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):
        return _kernels.find(*key)
    try:
        return _kernels.find_for_graph(*key)
    except RuntimeError as error:  # CUDA loads no module while it captures, unless in its relaxed mode
        raise RuntimeError(
            f"{op_of(kernel)}: expected its Triton kernel for these images and options to be on the device "
            "before a CUDA graph is captured, and it could not be loaded during the capture; call "
            "softdiff_kernels.warm_up, or make the same call once, before the capture"
        ) from error


def _build(key: Key, target: GPUTarget) -> Any:
    """Compiles, or takes from Triton's cache on the disk, without loading."""
    kernel, kinds, constants, warps, stages, _ = key
    wanted = options(warps, stages, target)
    return triton.compile(source(kernel, kinds, constants), target=target, options=wanted)


def _load(built: Any, device: int, seconds: float = 0.0) -> Loaded:
    """Loads a kernel onto the current device, before another thread may see it half loaded."""
    _ = built.run
    built.asm.clear()  # texts of a megabyte, of no use once it is loaded
    return Loaded(built, device, seconds if built.src.compiled else 0.0)


def _compile(*key: Any) -> Loaded:
    start = time.perf_counter()
    built = _build(key, driver.active.get_current_target())
    return _load(built, key[-1], time.perf_counter() - start)


# There is one for each size and layout of images. Its machine code is in host memory and on the device.
_kernels = caches.Cache("triton kernels", _compile, lambda loaded: 2 * len(loaded.kernel.kernel))


def compile_all(recorded: Iterable[Launch]) -> tuple[int, int]:
    """Compiles, side by side, what launches on the current device need, and loads it there. Returns how many
    kernels were compiled, and how many were there or on the disk.

    In threads: all but 8 % of a compilation is C++ that lets other threads run, and a process of its own
    would first import torch.
    """
    global _warm
    device, target = driver.active.get_current_device(), driver.active.get_current_target()
    keys = dict.fromkeys((r.kernel, r.kinds, r.constants, r.warps, r.stages, device) for r in recorded)
    missing = [key for key in keys if not _kernels.holds(key)]
    count = 0
    if missing:
        with ThreadPoolExecutor(min(len(missing), _cores())) as pool:
            for key, built in zip(missing, pool.map(_build, missing, [target] * len(missing)), strict=True):
                count += built.src.compiled
                _kernels.keep(key, _load(built, device))
    _warm = True
    return count, len(keys) - count


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_log = logging.getLogger("softdiff_kernels")
_warm = False  # whether a run has compiled in advance what it needs


def _report(kernel: Any, arguments: Sequence[Argument], loaded: Loaded) -> None:
    """Logs that a call waited for its kernel: once for each kernel, and as a warning after a warm-up."""
    x = next(a for a in arguments if isinstance(a, Tensor))
    images = f"images {list(x.shape)} of {str(x.dtype).removeprefix('torch.')}"
    _log.log(
        logging.WARNING if _warm else logging.INFO,
        f"{op_of(kernel)}: compiled a Triton kernel for {images} in {loaded.seconds:.1f} s; "
        "softdiff_kernels.warm_up does so in advance",
    )
    loaded.seconds = 0.0


def _listens(hook: Any) -> bool:
    """Whether a hook is set: it is None, a chain that may be empty, or a function."""
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


def _build_table(n: int, padded: int, device: torch.device) -> Tensor:
    """64 D of the DCT-II of length n as float16 [2, padded, padded]: high and low, D = (high + low) / 64."""
    basis = dct_basis(n, device) * TABLE_GAIN
    high = basis.half()
    out = torch.zeros(2, padded, padded, dtype=torch.float16, device=device)
    out[0, :n, :n] = high
    out[1, :n, :n] = (basis - high.double()).half()
    return out


# The transform's matrices as the kernels read them: float16 high and low parts, padded with zeros.
table = caches.Tables("triton tables", _build_table)

# A sample's loss is summed by one program over this many channels; with more, over programs, by torch.
MOST_CHANNELS_IN_A_PROGRAM = 8
# Planes up to this many pixels a side are never cut into strips, however few they are.
_ALWAYS_FUSED = 128
# Warps of `filter_staged` on a multiprocessor: what its registers hold, at up to 255 a thread.
#
# On the 132 of an H200 the scratch of float32 planes then takes 26 MB at 128 px, 87 at 256 and 311 at 512, of
# bfloat16 half of that; L2 holds 60 MB. Half as many programs would bring 256 px back into it, but leave each
# scheduler one warp, with nothing to issue while that waits. What leaves L2 costs 16 bytes a pixel instead:
# at a copy's rate 4 ps, of the 20 to 40 that the arithmetic takes at 256 px. (Reckoned, not measured.)
_WARPS_A_MULTIPROCESSOR = 8


@lru_cache(maxsize=64)  # a number for each device
def multiprocessors(device: torch.device) -> int:
    """How many the device has; 2 under the interpreter, so that small tests see both forms."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def programs(planes: int, warps: int, device: torch.device) -> int:
    """How many programs of `filter_staged` walk over the planes: as many as run at a time."""
    return min(planes, max(1, _WARPS_A_MULTIPROCESSOR // warps) * multiprocessors(device))


def _fused(plan: Plan, x: Tensor) -> bool:
    """Whether a program takes whole planes: small ones, or enough of them to occupy the GPU."""
    small = max(plan.sizes[:2]) <= _ALWAYS_FUSED
    return small or x.shape[0] * x.shape[1] >= multiprocessors(x.device)


def energies_shape(plan: Plan, x: Tensor) -> tuple[int, int]:
    """[B, parts]: how many partial sums of each sample's loss the kernels write."""
    batch, channels = x.shape[0], x.shape[1]
    if not plan.staged:
        return batch, 1 if channels <= MOST_CHANNELS_IN_A_PROGRAM else channels
    return batch, channels if _fused(plan, x) else channels * (plan.sizes[3] // TILE)


# Of calls whose planes are tiles, by all that is compiled in and the stream: the entries of the kernel and of
# both tables, which hold nothing once they are dropped, and the values that follow the call's own. Each takes
# about 2 KiB, all of them 4 MiB at most.
_ready: dict[Any, tuple[caches.Entry, caches.Entry, caches.Entry, tuple[Any, ...]]] = {}
_MOST_READY = 2048


def run(
    kernel: Any,
    plan: Plan,
    x: Tensor,
    arguments: tuple[Argument, ...],
    head: tuple[Any, ...],
    tail: tuple[Any, ...],
    *,
    groups: int = 3,
    totals: bool = False,
    channels: int = 1,
) -> None:
    """Launches `kernel` over the planes of x: arguments, then what it is planned with; constants head,
    (channels, tiling), tail (SPLIT first). groups: how many launches a small batch of large planes takes (1:
    always one). totals: whether the kernel keeps float32 planes of its own. channels: of a sample, in one
    program.
    """
    device = x.device
    on_gpu = device.type == "cuda"
    if on_gpu and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return run(
                kernel, plan, x, arguments, head, tail, groups=groups, totals=totals, channels=channels
            )
    if plan.config.bk:
        return _run_staged(kernel, plan, x, arguments, head, tail, groups, totals)
    batch, depth, height, width = x.shape
    grid, config = (batch, depth // channels), plan.config
    if not immediate():
        kinds, values = describe(arguments)
        # A kernel's id lasts as long as its module; its own hash takes a lock.
        stream = current_stream()
        key = (id(kernel), kinds, head, tail, depth, channels, config.warps, config.stages, device, stream)
        ready = _ready.get(key)
        if ready is not None:
            entry, first, second, after = ready
            # Held until the kernel is in the stream, whatever another thread drops.
            loaded, along_h, along_w = entry.value, first.value, second.value
            if loaded is not None and along_h is not None and along_w is not None:
                if on_gpu and torch.cuda.is_current_stream_capturing():
                    for used, value in ((entry, loaded), (first, along_h), (second, along_w)):
                        caches.pin(used, value)
                entry.used = first.used = second.used = True
                return enqueue(loaded.kernel, grid, (*values, *after), stream)
    rows, columns = plan.sizes[2:]
    constants = (*head, depth, (channels,), *tail)
    (first, along_h), (second, along_w) = table.find(height, rows, device), table.find(width, columns, device)
    given = (along_h, along_w, None, None, None)  # what follows the tables is for large planes
    launch(kernel, grid, (*arguments, *given), constants, config.warps, config.stages)
    if not immediate() and not (on_gpu and torch.cuda.is_current_stream_capturing()):
        more, addresses = describe(given)
        entry, _ = compiled(kernel, (*kinds, *more), constants, config.warps, config.stages)
        if len(_ready) >= _MOST_READY:
            _ready.clear()
        _ready[key] = entry, first, second, (*addresses, *constants)


def forget_prepared() -> None:
    """Drops the launches that are prepared."""
    _ready.clear()


def forget() -> None:
    """Drops the compiled kernels, too."""
    _kernels.clear()
    _ready.clear()


def _run_staged(
    kernel: Any,
    plan: Plan,
    x: Tensor,
    arguments: tuple[Argument, ...],
    head: tuple[Any, ...],
    tail: tuple[Any, ...],
    groups: int,
    totals: bool,
) -> None:
    device, (batch, depth, *_) = x.device, x.shape
    height, width, rows, columns = plan.sizes
    tables = (table(height, rows, device), table(width, columns, device))
    planes, config = batch * depth, plan.config
    if groups == 1 or _fused(plan, x):
        slots = programs(planes, config.warps, device)
        steps = [((slots, 1), 0)]
    else:
        slots = planes
        strips = (rows // TILE, columns // TILE, rows // TILE)
        steps = [((strips[g], planes), g + 1) for g in range(groups)]
    halves, floats = scratch(plan, fused=len(steps) == 1, split=tail[0], totals=totals)
    # Of two axes: of a tensor of one, as coefficients are, no alignment is compiled in (`describe`).
    memory = (
        torch.empty(slots, halves, dtype=torch.float16, device=device),
        torch.empty(slots, floats, dtype=torch.float32, device=device),
    )
    for grid, group in steps:
        constants = (*head, depth, (TILE, config.bk, group), *tail)
        everything = (*arguments, *tables, planes, *memory)
        launch(kernel, grid, everything, constants, config.warps, config.stages)


def scratch(plan: Plan, *, fused: bool, split: bool, totals: bool) -> tuple[int, int]:
    """(float16, float32) numbers of scratch for each plane that is in work; `plane.place` lays them out.

    float16: the plane and a strip of TILE rows or columns, or one for each program where the plane is cut
    into strips; twice where products are split. float32: a scale for each tile of these, 128 at most, and a
    plane where there are totals.
    """
    rows, columns = plan.sizes[2:]
    side = max(rows, columns)
    strips = 1 if fused else side // TILE
    return (1 + split) * (rows * columns + strips * side * TILE), totals * rows * columns + 128
