# SPDX-License-Identifier: Apache-2.0
"""What a run writes of its progress: stats.jsonl always, TensorBoard and Weights & Biases if asked."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import UserError, need
from ..files import save_text
from .run_folder import append_stats

if TYPE_CHECKING:
    from PIL.Image import Image

    from .config import TrainConfig


class _Logger(Protocol):
    """What takes numbers and pictures besides stats.jsonl."""

    def numbers(self, values: dict[str, float], step: int) -> None: ...

    def picture(self, name: str, image: Image, step: int) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        need("tensorboard", "--tensorboard", "log")
        writer = need("torch.utils.tensorboard", "--tensorboard", "log").SummaryWriter
        # Events of steps that a resumed run makes again are hidden.
        self.events = writer(str(folder / "tensorboard"), purge_step=step + 1)

    def numbers(self, values: dict[str, float], step: int) -> None:
        for label, value in values.items():
            self.events.add_scalar(label, value, step)

    def picture(self, name: str, image: Image, step: int) -> None:
        self.events.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        self.events.close()


class _WeightsAndBiases:
    """A run of the project, the same one after a resume; its own variables (WANDB_MODE, ...) hold."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self.wandb = need("wandb", "--wandb", "wandb")
        kept = folder / "wandb-id.txt"
        if not kept.exists():
            save_text(kept, secrets.token_hex(4) + "\n")
        try:
            self.run = self.wandb.init(
                project=config.wandb,
                id=kept.read_text(encoding="utf-8").strip(),
                name=folder.name,
                dir=str(folder),
                config=config.to_dict(),
                resume="allow",
                allow_val_change=True,
            )
        except (self.wandb.Error, OSError) as error:
            raise UserError(f"--wandb {config.wandb}: {error}") from error
        # By the trainer's steps: W&B's own counter refuses those that a resumed run makes again.
        self.run.define_metric("*", step_metric="step")

    def numbers(self, values: dict[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def picture(self, name: str, image: Image, step: int) -> None:
        self.run.log({name: self.wandb.Image(image), "step": step})

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Log:
    """The lines and pictures of a run, after `step` steps; quiet: nothing but stats.jsonl."""

    def __init__(self, folder: Path, config: TrainConfig, step: int, *, quiet: bool = False) -> None:
        self.folder = folder
        self.loggers: list[_Logger] = []
        if config.tensorboard and not quiet:
            self.loggers.append(_TensorBoard(folder, step))
        if config.wandb and not quiet:
            self.loggers.append(_WeightsAndBiases(folder, config))

    def write(self, line: dict[str, Any]) -> None:
        """A line of stats.jsonl; its numbers as scalars."""
        append_stats(self.folder, line)
        if self.loggers:
            values = dict(_scalars(line))
            for logger in self.loggers:
                logger.numbers(values, line["step"])

    def picture(self, name: str, image: Image, step: int) -> None:
        """A picture, which stats.jsonl does not take."""
        for logger in self.loggers:
            logger.picture(name, image, step)

    def close(self, *, failed: bool = False) -> None:
        """Puts what was logged on the disk, or where it goes."""
        for logger in self.loggers:
            logger.close(failed=failed)


def _scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Each number by its name, those of a list as name/0, name/1, ..."""
    for name, value in line.items():
        values = value if isinstance(value, list) else [value]
        for i, one in enumerate(values):
            if one is not None and name != "step":
                yield f"{name}/{i}" if isinstance(value, list) else name, one
