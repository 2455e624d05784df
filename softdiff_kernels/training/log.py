# SPDX-License-Identifier: Apache-2.0
"""What a run writes of its progress: stats.jsonl always, TensorBoard's events if asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import need
from .run_folder import append_stats

if TYPE_CHECKING:
    from PIL.Image import Image


class Log:
    """The lines and pictures of a run; step: the one that it begins after."""

    def __init__(self, folder: Path, tensorboard: bool, step: int) -> None:
        self.folder = folder
        self.events: Any = None
        if tensorboard:
            need("tensorboard", "--tensorboard", "log")
            writer = need("torch.utils.tensorboard", "--tensorboard", "log").SummaryWriter
            # Events of steps that a resumed run makes again are hidden.
            self.events = writer(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """A line of stats.jsonl; its numbers as scalars."""
        append_stats(self.folder, line)
        if self.events is None:
            return
        for name, value in line.items():
            values = value if isinstance(value, list) else [value]
            for i, one in enumerate(values):
                if one is not None and name != "step":
                    label = f"{name}/{i}" if isinstance(value, list) else name
                    self.events.add_scalar(label, one, line["step"])

    def picture(self, name: str, image: Image, step: int) -> None:
        """A picture, for TensorBoard alone."""
        if self.events is not None:
            array = np.asarray(image.convert("RGB"))
            self.events.add_image(name, array, step, dataformats="HWC")

    def close(self) -> None:
        """Puts what was logged on the disk."""
        if self.events is not None:
            self.events.close()
