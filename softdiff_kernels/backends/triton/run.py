# SPDX-License-Identifier: Apache-2.0
"""A filter kernel's launches: one where a plane is a tile or the batch fills the GPU, one a group else."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...caches import Entry, pin
from .configs import TILE, Plan
from .launch import Argument, compiled, current_stream, describe, enqueue, immediate, launch
from .tables import table

# A sample's loss is summed by one program over this many channels; with more, over programs, by torch.
MOST_CHANNELS_IN_A_PROGRAM = 8
# Planes up to this many pixels a side are never cut into strips, however few they are.
_ALWAYS_FUSED = 128
# Programs of `staged.py` that a multiprocessor holds at a time; their scratch is what L2 has to hold.
_PROGRAMS_A_MULTIPROCESSOR = 2


@lru_cache(maxsize=64)  # a number for each device
def multiprocessors(device: torch.device) -> int:
    """How many the device has; 2 under the interpreter, so that small tests see both forms."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


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
_ready: dict[Any, tuple[Entry, Entry, Entry, tuple[Any, ...]]] = {}
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
    (channels, tiling), tail. groups: how many launches a small batch of large planes takes (1: always one).
    totals: whether the kernel keeps float32 planes of its own. channels: of a sample, in one program.
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
            found, along_h, along_w = entry.value, first.value, second.value
            if found is not None and along_h is not None and along_w is not None:
                if on_gpu and torch.cuda.is_current_stream_capturing():
                    for used, value in ((entry, found), (first, along_h), (second, along_w)):
                        pin(used, value)
                entry.used = first.used = second.used = True
                return enqueue(found.kernel, grid, (*values, *after), stream)
    rows, columns = plan.sizes[2:]
    constants = (*head, depth, (channels,), *tail)
    (first, along_h), (second, along_w) = table.find(height, rows, device), table.find(width, columns, device)
    given = (along_h, along_w, None, None, None)  # what follows the tables is `staged.py`'s
    launch(kernel, grid, (*arguments, *given), constants, config.warps, config.stages)
    if not immediate() and not (on_gpu and torch.cuda.is_current_stream_capturing()):
        more, addresses = describe(given)
        entry, _ = compiled(kernel, (*kinds, *more), constants, config.warps, config.stages)
        if len(_ready) >= _MOST_READY:
            _ready.clear()
        _ready[key] = entry, first, second, (*addresses, *constants)


def forget() -> None:
    """Drops what is ready to be launched."""
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
    planes, side, config = batch * depth, max(rows, columns), plan.config
    if groups == 1 or _fused(plan, x):
        programs = min(planes, _PROGRAMS_A_MULTIPROCESSOR * multiprocessors(device))
        per_program = 2 * rows * columns + 2 * side * TILE
        steps = [((programs, 1), 0)]
        extra = torch.empty(programs * rows * columns if totals else 0, dtype=torch.float32, device=device)
    else:
        programs, per_program = planes, 2 * rows * columns + 2 * side * side
        strips = (rows // TILE, columns // TILE, rows // TILE)
        steps = [((strips[g], planes), g + 1) for g in range(groups)]
        extra = torch.empty(planes, dtype=torch.float32, device=device)
    scratch = torch.empty(programs * per_program, dtype=torch.float16, device=device)
    for grid, group in steps:
        constants = (*head, depth, (TILE, config.bk, group), *tail)
        everything = (*arguments, *tables, planes, scratch, extra)
        launch(kernel, grid, everything, constants, config.warps, config.stages)
