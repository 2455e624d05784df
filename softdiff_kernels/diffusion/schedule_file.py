# SPDX-License-Identifier: Apache-2.0
"""A schedule as a value: what it says, its file and its plot."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .._numbers import shown

_FORMAT = "softdiff-schedule"


@dataclass(frozen=True)
class Schedule:
    """Blur and noise at evenly spaced times, and what they were computed from.

    image_size (H, W), channels: of the data. blur_std (pixels), noise_std: at the nodes, t = 0 .. 1
    evenly. steps: W2 from each node to the next, none over epsilon. nodes_wanted: asked for. levels:
    how many candidates. noise_term: how noise entered the distances. images: how many were seen.
    dataset, created (UTC), version: for the record.
    """

    image_size: tuple[int, int]
    channels: int
    blur_std: tuple[float, ...]
    noise_std: tuple[float, ...]
    steps: tuple[float, ...]
    epsilon: float
    nodes_wanted: int
    levels: int
    noise_term: str
    images: int
    dataset: str
    created: str
    version: str

    @property
    def t(self) -> tuple[float, ...]:
        """Times of the nodes."""
        return tuple(np.linspace(0.0, 1.0, len(self.blur_std)).tolist())

    @property
    def length(self) -> float:
        """Total W2 along the path."""
        return math.fsum(self.steps)

    @property
    def exact(self) -> bool:
        """Whether the path has as many nodes as were wanted."""
        return len(self.blur_std) == self.nodes_wanted

    def describe(self) -> str:
        """One line for a log."""
        nodes = f"{len(self.blur_std)} nodes"
        if not self.exact:
            nodes += f" ({self.nodes_wanted} wanted; no step limit gives that)"
        return (
            f"{nodes} of {self.levels} levels, blur {self.blur_std[0]:g} to {self.blur_std[-1]:g} px, "
            f"W2 length {self.length:.4g} in steps of at most {self.epsilon:.4g} "
            f"({self.noise_term} noise), from {self.images} images"
            + (f" of {self.dataset}" if self.dataset else "")
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON under a temporary name and renames it, so that a file is there whole or not."""
        content = {"format": _FORMAT, **asdict(self), "t": self.t, "length": self.length}
        with _whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: str | os.PathLike[str], image_size: tuple[int, int] | None = None) -> Schedule:
        """The schedule in a file. ValueError where it is not a whole one, or not for image_size."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"schedule {path}: expected a whole JSON file, got one that ends or breaks ({error})"
            ) from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"schedule {path}: expected a JSON file of format {_FORMAT!r}, got another kind")
        missing = [f.name for f in fields(cls) if f.name not in content]
        if missing:
            raise ValueError(f"schedule {path}: {', '.join(missing)} missing from the file")
        try:
            schedule = cls(**{f.name: _plain(content[f.name]) for f in fields(cls)})
            _check(schedule)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"schedule {path}: {error}") from None
        if image_size is not None and schedule.image_size != tuple(image_size):
            raise ValueError(
                f"schedule {path}: expected one for images of {image_size[0]} x {image_size[1]}, got one for "
                f"{schedule.image_size[0]} x {schedule.image_size[1]}"
            )
        return schedule

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws blur, noise and step lengths over t into an image file. Needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("Schedule.plot needs matplotlib: pip install matplotlib") from None
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        blur, noise, step = figure.subplots(1, 3)
        blur.plot(self.t, self.blur_std, ".-")
        blur.set(xlabel="t", ylabel="blur_std (px)", title=f"{len(self.t)} nodes of {self.levels} levels")
        noise.plot(self.t, self.noise_std, ".-")
        noise.set(xlabel="t", ylabel="noise_std", ylim=(0, None), title="noise")
        step.bar(range(1, len(self.blur_std)), self.steps)
        step.axhline(self.epsilon, color="C3", label=f"step limit {self.epsilon:.4g}")
        step.set(
            xlabel="step", ylabel="W2", title=f"W2 per step, {self.length:.4g} in all ({self.noise_term})"
        )
        step.set_ylim(0, 1.25 * max(self.epsilon, *self.steps))
        step.legend(loc="upper left")
        with _whole(path) as temporary:
            figure.savefig(temporary, dpi=120, format=Path(path).suffix[1:] or "png")


@contextmanager
def _whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside the file, which takes the file's once the block is through."""
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check(schedule: Schedule) -> None:
    """Raises where a file's values contradict each other."""
    blur, noise, size = schedule.blur_std, schedule.noise_std, schedule.image_size
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(f"expected image_size as two whole numbers of at least 1, got {shown(size)}")
    if len(blur) < 2 or not all(a < b for a, b in pairwise(blur)) or not 0 <= blur[0] <= blur[-1] < math.inf:
        raise ValueError(f"expected blur_std as at least 2 rising numbers, got {shown(blur)}")
    if len(noise) != len(blur) or not all(a <= b for a, b in pairwise(noise)):
        raise ValueError(f"expected noise_std as {len(blur)} numbers that never fall, got {shown(noise)}")
    if not 0 <= noise[0] <= noise[-1] < math.inf:
        raise ValueError(f"expected noise_std as finite numbers of at least 0, got {shown(noise)}")
    if len(schedule.steps) != len(blur) - 1:
        raise ValueError(
            f"expected {len(blur) - 1} steps between {len(blur)} nodes, got {len(schedule.steps)}"
        )
