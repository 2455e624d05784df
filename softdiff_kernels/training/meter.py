# SPDX-License-Identifier: Apache-2.0
"""What a run tells of its steps: averages since the last line, and where a loss stopped being a number."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import UserError
from .distributed import Processes
from .trainer import Advance, Trainer, learning_rate

QUARTILES = 4


class Meter:
    """Averages over the steps since the last line; sums stay on the device until one is due."""

    def __init__(self, device: torch.device, processes: Processes | None = None) -> None:
        self.device = device
        self.processes = processes or Processes()
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.bad_t = torch.zeros((), device=device)
        self._clear()

    def _clear(self) -> None:
        self.norm = torch.zeros((), dtype=torch.float64, device=self.device)
        self.overflows = torch.zeros((), dtype=torch.int64, device=self.device)
        self.sums = torch.zeros(QUARTILES, dtype=torch.float64, device=self.device)
        self.counts = torch.zeros(QUARTILES, dtype=torch.float64, device=self.device)
        self.steps = 0
        self.since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile is no step's time: checkpoints and grids."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def add(self, step: int, found: Advance) -> None:
        """What step number `step` found. Nothing here waits for the device."""
        quartile = (found.t * QUARTILES).long().clamp(max=QUARTILES - 1)
        self.sums.index_add_(0, quartile, found.losses.double())
        self.counts.index_add_(0, quartile, torch.ones_like(found.losses, dtype=torch.float64))
        # Under fp16 a gradient that overflows is no fault: its step is left out, and the scale lowered.
        overflowed = ~found.norm.isfinite()
        self.overflows += overflowed
        self.norm += torch.where(overflowed, 0.0, found.norm)
        bad = ~found.losses.isfinite()
        new = bad.any() & (self.first_bad < 0)
        self.first_bad = torch.where(new, step, self.first_bad)
        # By index_select: an index in brackets would wait for the device.
        self.bad_t = torch.where(new, found.t.index_select(0, bad.int().argmax()[None])[0], self.bad_t)
        self.steps += 1

    def line(self, trainer: Trainer, saved: int) -> dict[str, Any]:
        """The line of stats.jsonl, over all processes, after which the averages start anew.

        loss_by_t: of the images with t in each quarter of (0, 1), None where there was none. memory_mib: the
        most that this process held, on the GPU if it trains there. saved: the step of the last checkpoint,
        -1 for none. UserError, in all processes, where a loss was not finite.
        """
        total = self.processes.sum(torch.cat([self.sums, self.counts]))
        sums, counts = total[:QUARTILES].tolist(), total[QUARTILES:].tolist()
        overflows = int(self.overflows)
        norm = float(self.norm) / max(1, self.steps - overflows)
        loss = sum(sums) / max(1.0, sum(counts))
        by_t = [s / n if n else None for s, n in zip(sums, counts, strict=True)]
        if self.processes.any(not math.isfinite(loss) or int(self.first_bad) >= 0):
            raise UserError(self._why(trainer, by_t, norm, saved))
        if overflows and not trainer.scaler.is_enabled():
            # The same in all processes, since gradients are.
            raise UserError(
                f"the gradient is no longer finite in {overflows} of the {self.steps} steps up to "
                f"{trainer.step}, though the losses are; {_kept(saved)}; lower --lr, or --precision"
            )
        seconds = time.perf_counter() - self.since
        rate = self.steps * trainer.config.batch / max(seconds, 1e-9)
        self._clear()
        return {
            "step": trainer.step,
            "images": trainer.seen,
            "loss": loss,
            "loss_by_t": by_t,
            "grad_norm": norm,
            "overflows": overflows,
            "lr": learning_rate(trainer.config, trainer.step - 1),
            "images_per_second": round(rate, 2),
            "memory_mib": round(_memory(self.device) / 2**20, 1),
        }

    def _why(self, trainer: Trainer, by_t: list[float | None], norm: float, saved: int) -> str:
        if int(self.first_bad) < 0:
            return "the loss is no longer finite in another process; its message says where"
        quarters = ", ".join("none" if loss is None else f"{loss:.4g}" for loss in by_t)
        return (
            f"the loss is no longer finite since step {int(self.first_bad)}, where an image at t = "
            f"{float(self.bad_t):.4f} was the first; of the last {self.steps} steps the mean losses by "
            f"quarters of t are {quarters} and the mean gradient norm is {norm:.4g}; {_kept(saved)}; "
            "lower --lr, or --grad-clip"
        )


def _kept(saved: int) -> str:
    return f"the checkpoint of step {saved} is kept" if saved >= 0 else "no checkpoint was written before"


def _memory(device: torch.device) -> int:
    """Bytes: the peak of the device's allocator, or of this process; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
