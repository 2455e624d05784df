# SPDX-License-Identifier: Apache-2.0
"""A filter kernel's launches: one where a plane is a tile or the batch fills the GPU, one a group else."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .configs import TILE, Plan
from .launch import Argument, launch
from .tables import table

# A sample's loss is summed by one program over this many channels; with more, over programs, by torch.
MOST_CHANNELS_IN_A_PROGRAM = 8
# Programs of `staged.py` that a multiprocessor holds at a time; their scratch is what L2 has to hold.
_PROGRAMS_A_MULTIPROCESSOR = 2


@lru_cache(maxsize=16)
def _multiprocessors(device: torch.device) -> int:
    """How many the device has; 2 under the interpreter, so that small tests see both forms."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _fused(plan: Plan, x: Tensor) -> bool:
    """Whether a program takes whole planes: where there are enough of them to occupy the GPU."""
    return x.shape[0] * x.shape[1] >= _multiprocessors(x.device)


def energies_shape(plan: Plan, x: Tensor) -> tuple[int, int]:
    """[B, parts]: how many partial sums of each sample's loss the kernels write."""
    batch, channels = x.shape[0], x.shape[1]
    if not plan.staged:
        return batch, 1 if channels <= MOST_CHANNELS_IN_A_PROGRAM else channels
    return batch, channels if _fused(plan, x) else channels * (plan.sizes[3] // TILE)


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
    device, (batch, depth, *_) = x.device, x.shape
    height, width, rows, columns = plan.sizes
    tables = (table(height, rows, device), table(width, columns, device))
    planes, config = batch * depth, plan.config
    if not plan.staged:
        grid, tiling = (batch, depth // channels), (channels,)
        constants = (*head, depth, tiling, *tail)
        launch(
            kernel,
            device,
            grid,
            (*arguments, *tables, planes, None, None),
            constants,
            config.warps,
            config.stages,
        )
        return
    side = max(rows, columns)
    if groups == 1 or _fused(plan, x):
        programs = min(planes, _PROGRAMS_A_MULTIPROCESSOR * _multiprocessors(device))
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
        launch(
            kernel,
            device,
            grid,
            (*arguments, *tables, planes, scratch, extra),
            (*head, depth, (TILE, config.bk, group), *tail),
            config.warps,
            config.stages,
        )
