# SPDX-License-Identifier: Apache-2.0
"""What a run reports: averages over its steps, in stats.jsonl and, if asked, TensorBoard or Weights &
Biases."""

from __future__ import annotations

import json
import math
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ..errors import UserError, need, user_errors
from ..files import save_text
from .trainer import StepResult, Trainer, learning_rate

if TYPE_CHECKING:
    from PIL.Image import Image

STATS = "stats.jsonl"
STATS_BEFORE = "stats.jsonl.old"
QUARTILES = 4


class Meter:
    """Averages over the steps since the last line. Sums stay on the device until a line is due."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.device = device = trainer.device
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
        """Excludes what happens inside, such as checkpoints and grids, from the time of the steps."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def add(self, result: StepResult) -> None:
        """Adds the result of the trainer's last step. Does not wait for the device."""
        quartile = (result.t * QUARTILES).long().clamp(max=QUARTILES - 1)
        self.sums.index_add_(0, quartile, result.losses.double())
        self.counts.index_add_(0, quartile, torch.ones_like(result.losses, dtype=torch.float64))
        # Under fp16 a gradient may overflow: its step is skipped, and the scale lowered.
        overflowed = ~result.norm.isfinite()
        self.overflows += overflowed
        self.norm += torch.where(overflowed, 0.0, result.norm)
        bad = ~result.losses.isfinite()
        new = bad.any() & (self.first_bad < 0)
        self.first_bad = torch.where(new, self.trainer.step, self.first_bad)
        # index_select, because an index in brackets would wait for the device.
        self.bad_t = torch.where(new, result.t.index_select(0, bad.int().argmax()[None])[0], self.bad_t)
        self.steps += 1

    def line(self, saved: int) -> dict[str, Any]:
        """The next line of stats.jsonl, over all processes; the averages then start again.

        loss_by_t: mean over the images with t in each quarter of (0, 1), None where there were none.
        memory_mib: peak memory of this process, on the GPU if it trains there. saved: the step of the last
        checkpoint, -1 for none. UserError, in all processes, where a loss was not finite.
        """
        trainer = self.trainer
        total = trainer.processes.sum(torch.cat([self.sums, self.counts]))
        sums, counts = total[:QUARTILES].tolist(), total[QUARTILES:].tolist()
        overflows = int(self.overflows)
        norm = float(self.norm) / max(1, self.steps - overflows)
        loss = sum(sums) / max(1.0, sum(counts))
        by_t = [s / n if n else None for s, n in zip(sums, counts, strict=True)]
        if trainer.processes.any(not math.isfinite(loss) or int(self.first_bad) >= 0):
            raise UserError(self._why_not_finite(by_t, norm, saved))
        if overflows and not trainer.scaler.is_enabled():
            # Equal in all processes, because the gradients are.
            raise UserError(
                f"the gradient is no longer finite in {overflows} of the {self.steps} steps up to "
                f"{trainer.step}, but the losses are; {_last_checkpoint(saved)}; lower --lr, or --precision"
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
            "memory_mib": round(_peak_memory(self.device) / 2**20, 1),
        }

    def _why_not_finite(self, by_t: list[float | None], norm: float, saved: int) -> str:
        if int(self.first_bad) < 0:
            return "the loss is no longer finite in another process; see its message"
        quarters = ", ".join("none" if loss is None else f"{loss:.4g}" for loss in by_t)
        return (
            f"the loss is no longer finite since step {int(self.first_bad)}, where an image at t = "
            f"{float(self.bad_t):.4f} was the first; of the last {self.steps} steps the mean losses by "
            f"quarters of t are {quarters} and the mean gradient norm is {norm:.4g}; "
            f"{_last_checkpoint(saved)}; lower --lr, or --grad-clip"
        )


def _last_checkpoint(saved: int) -> str:
    return f"the checkpoint of step {saved} is kept" if saved >= 0 else "no checkpoint was written"


def _peak_memory(device: torch.device) -> int:
    """Peak bytes of the device's allocator, or of this process; 0 where the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def append_stats(folder: Path, line: dict[str, Any]) -> None:
    """Appends one line to stats.jsonl."""
    try:
        with open(folder / STATS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {folder / STATS}: {error.strerror or error}") from error


def rename_old_stats(folder: Path) -> None:
    """Keeps the log of a run that ended before its first checkpoint under another name: its steps are not
    those of the run that starts in the same folder."""
    with user_errors("--outdir: "):
        if (folder / STATS).exists():
            (folder / STATS).replace(folder / STATS_BEFORE)


def drop_stats_after(folder: Path, step: int) -> None:
    """Removes the lines of steps that a resumed run will repeat, and an incomplete last line."""
    path = folder / STATS
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        save_text(path, "".join(line + "\n" for line in _up_to(lines, step)))


def _up_to(lines: Iterable[str], step: int) -> Iterator[str]:
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                yield line
        except (ValueError, KeyError, TypeError):
            continue


class _Logger(Protocol):
    """A log in addition to stats.jsonl, which takes numbers and pictures."""

    def numbers(self, values: dict[str, float], step: int) -> None: ...

    def picture(self, name: str, image: Image, step: int) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        need("tensorboard", "--tensorboard", "log")
        writer = need("torch.utils.tensorboard", "--tensorboard", "log").SummaryWriter
        # Hides the events of steps that a resumed run repeats.
        self.events = writer(str(folder / "tensorboard"), purge_step=step + 1)

    def numbers(self, values: dict[str, float], step: int) -> None:
        for label, value in values.items():
            self.events.add_scalar(label, value, step)

    def picture(self, name: str, image: Image, step: int) -> None:
        self.events.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        self.events.close()


class _WeightsAndBiases:
    """One run of a project, which continues after a resume. Honours the variables of wandb (WANDB_MODE,
    ...)."""

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        config = trainer.config
        self.wandb = need("wandb", "--wandb", "wandb")
        id_file = folder / "wandb-id.txt"
        if not id_file.exists():
            save_text(id_file, secrets.token_hex(4) + "\n")
        try:
            self.run = self.wandb.init(
                project=config.wandb,
                id=id_file.read_text(encoding="utf-8").strip(),
                name=folder.name,
                dir=str(folder),
                config=config.to_dict(),
                resume="allow",
                allow_val_change=True,
            )
        except (self.wandb.Error, OSError) as error:
            raise UserError(f"--wandb {config.wandb}: {error}") from error
        # The trainer's step as the axis: W&B's own counter rejects steps that a resumed run repeats.
        self.run.define_metric("*", step_metric="step")

    def numbers(self, values: dict[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def picture(self, name: str, image: Image, step: int) -> None:
        self.run.log({name: self.wandb.Image(image), "step": step})

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Log:
    """The numbers and pictures of a run. Only the first process has loggers besides stats.jsonl."""

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        self.folder = folder
        self.loggers: list[_Logger] = []
        if trainer.config.tensorboard and trainer.processes.first:
            self.loggers.append(_TensorBoard(folder, trainer.step))
        if trainer.config.wandb and trainer.processes.first:
            self.loggers.append(_WeightsAndBiases(folder, trainer))

    def write(self, line: dict[str, Any]) -> None:
        """Writes a line of stats.jsonl, and its numbers as scalars to the loggers."""
        append_stats(self.folder, line)
        if self.loggers:
            values = dict(_scalars(line))
            for logger in self.loggers:
                logger.numbers(values, line["step"])

    def picture(self, name: str, image: Image, step: int) -> None:
        """Gives a picture to the loggers; stats.jsonl has none."""
        for logger in self.loggers:
            logger.picture(name, image, step)

    def close(self, *, failed: bool = False) -> None:
        """Flushes and closes the loggers."""
        for logger in self.loggers:
            logger.close(failed=failed)


def _scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The name and value of each number; those of a list are named name/0, name/1, ..."""
    for name, value in line.items():
        values = value if isinstance(value, list) else [value]
        for i, one in enumerate(values):
            if one is not None and name != "step":
                yield f"{name}/{i}" if isinstance(value, list) else name, one
