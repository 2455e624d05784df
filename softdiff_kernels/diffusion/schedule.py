# SPDX-License-Identifier: Apache-2.0
"""Blur and noise over time: the paper's ranges, and a schedule as a value with its file and plot."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _arguments as args
from ..files import save_json, whole_file

_FORMAT = "softdiff-schedule"
PIXEL_DISTANCE = "W2 in pixels"
# Between two nodes whose logarithms differ by h, the chord of an exponential is off by h^2 / 8.
LOG_STEP = 0.05

PAPER_BLUR_STD_MAX = 23.0
PAPER_SIDE = 64


def paper_blur_std_max(image_size: tuple[int, int]) -> float:
    """The paper's strongest blur in pixels: 23 px at 64 px, in proportion to the longer side."""
    return PAPER_BLUR_STD_MAX * max(image_size) / PAPER_SIDE


def geometric_noise_std(
    t: np.ndarray | Sequence[float], noise_std_min: float, noise_std_max: float, noise_full_at: float
) -> np.ndarray:
    """`noise_std_min (noise_std_max / noise_std_min)^min(t / noise_full_at, 1)`, float64.

    Daras et al. 2022, figure 6, as others read it: geometric, full at a quarter of t, constant after.
    """
    if not 0 < noise_std_min <= noise_std_max < math.inf:
        raise ValueError(
            f"expected 0 < noise_std_min <= noise_std_max, got {noise_std_min!r} and {noise_std_max!r}"
        )
    if not 0 < noise_full_at <= 1:
        raise ValueError(f"expected noise_full_at in (0, 1], got {noise_full_at!r}")
    share = np.minimum(np.asarray(t, dtype=np.float64) / noise_full_at, 1.0)
    return np.where(
        share >= 1.0, noise_std_max, noise_std_min * np.exp(share * math.log(noise_std_max / noise_std_min))
    )


def noise_range(
    op: str, noise_std_min: float, noise_std_max: float, noise_full_at: float
) -> tuple[float, float, float]:
    """The last three arguments of `geometric_noise_std`, checked, as floats."""
    numbers = (
        args.number(op, "noise_std_min", noise_std_min),
        args.number(op, "noise_std_max", noise_std_max),
        args.number(op, "noise_full_at", noise_full_at),
    )
    geometric_noise_std([0.0], *numbers)
    return numbers


def noise_nodes(noise_std_min: float, noise_std_max: float, noise_full_at: float) -> np.ndarray:
    """Times at which to tabulate `geometric_noise_std` so that chords are within 3.2e-4 of it."""
    parts = max(1, math.ceil(math.log(noise_std_max / noise_std_min) / LOG_STEP))
    return np.unique(np.append(np.linspace(0.0, noise_full_at, parts + 1), 1.0))


@dataclass(frozen=True)
class GeometricNoise:
    """White noise whose standard deviation is `geometric_noise_std` at t, exactly; its arguments, checked."""

    noise_std_min: float = 0.01
    noise_std_max: float = 0.10
    noise_full_at: float = 0.25

    def __post_init__(self) -> None:
        checked = noise_range("noise", self.noise_std_min, self.noise_std_max, self.noise_full_at)
        for field, value in zip(fields(self), checked, strict=True):
            object.__setattr__(self, field.name, value)

    def at(self, t: Tensor) -> Tensor:
        """[B, 1, 1, 1] for t [B], in its dtype and on its device."""
        low, high = self.noise_std_min, self.noise_std_max
        share = (t.double() / self.noise_full_at).clamp(max=1.0)
        std = torch.where(share >= 1.0, high, low * torch.exp(share * math.log(high / low)))
        return std.to(t.dtype).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Schedule:
    """Blur and noise at evenly spaced times, and what they were computed from.

    Attributes:
        image_size: (H, W) of the data.
        channels: C of the data.
        blur_std: Blur at the nodes in pixels. The nodes' times are even from 0 to 1.
        noise_std: Noise at the nodes.
        steps: Distance from each node to the next, at most epsilon.
        epsilon: The longest step that was allowed.
        nodes_wanted: The number of nodes that was asked for.
        levels: The number of candidates.
        noise_term: How noise entered the distances in pixels; empty for another distance.
        images: The number of images used.
        dataset: A description of the data.
        created: Date and time (UTC).
        version: The version of this package.
        distance: A description of the distance.

    Examples:
        >>> schedule = shortest_path_schedule(power_spectrum([torch.rand(32, 1, 16, 16)]), levels=64, nodes=8)
        >>> corruption = BlurCorruption.from_schedule(schedule)
        >>> corruption.blur_std(1.0) == schedule.blur_std[-1]
        True
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
    distance: str = PIXEL_DISTANCE  # files of before there was another have none

    @property
    def t(self) -> tuple[float, ...]:
        """Times of the nodes."""
        return tuple(np.linspace(0.0, 1.0, len(self.blur_std)).tolist())

    @property
    def length(self) -> float:
        """Total distance along the path."""
        return math.fsum(self.steps)

    @property
    def exact(self) -> bool:
        """Whether the path has the number of nodes that was asked for."""
        return len(self.blur_std) == self.nodes_wanted

    def describe(self) -> str:
        """One line for a log."""
        nodes = f"{len(self.blur_std)} nodes"
        if not self.exact:
            nodes += f" ({self.nodes_wanted} wanted; no step limit gives that)"
        term = f" ({self.noise_term} noise)" if self.noise_term else ""
        return (
            f"{nodes} of {self.levels} levels, blur {self.blur_std[0]:g} to {self.blur_std[-1]:g} px, "
            f"length {self.length:.4g} in steps of at most {self.epsilon:.4g} of {self.distance}{term}, "
            f"from {self.images} images" + (f" of {self.dataset}" if self.dataset else "")
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file, whole or not at all. UserError, a ValueError, if it cannot be written."""
        content = {"format": _FORMAT, **asdict(self), "t": self.t, "length": self.length}
        save_json(Path(path), content)

    @classmethod
    def load(cls, path: str | os.PathLike[str], image_size: tuple[int, int] | None = None) -> Schedule:
        """The schedule in a file. ValueError if the file is incomplete or not for images of image_size."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"schedule {path}: expected a whole JSON file, got one that is cut off or damaged ({error})"
            ) from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"schedule {path}: expected a JSON file of format {_FORMAT!r}, got another kind")
        missing = [f.name for f in fields(cls) if f.name not in content and f.default is MISSING]
        if missing:
            raise ValueError(f"schedule {path}: {', '.join(missing)} missing from the file")
        try:
            schedule = cls(**{f.name: _plain(content[f.name]) for f in fields(cls) if f.name in content})
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
        """Draws blur, noise and step lengths over t into an image file. Needs matplotlib.

        UserError, a ValueError, if the file cannot be written.
        """
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
        name = f"W2 ({self.noise_term} noise)" if self.noise_term else "distance"
        step.set(xlabel="step", ylabel="distance", title=f"{name} per step, {self.length:.4g} in all")
        step.set_ylim(0, 1.25 * max(self.epsilon, *self.steps))
        step.legend(loc="upper left")
        with whole_file(Path(path), sync=False) as file:
            figure.savefig(file, dpi=120, format=Path(path).suffix[1:] or "png")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check(schedule: Schedule) -> None:
    """Raises ValueError if a file's values contradict each other."""
    blur, noise, size = schedule.blur_std, schedule.noise_std, schedule.image_size
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(f"expected image_size as two whole numbers of at least 1, got {args.shown(size)}")
    if len(blur) < 2 or not all(a < b for a, b in pairwise(blur)) or not 0 <= blur[0] <= blur[-1] < math.inf:
        raise ValueError(f"expected blur_std as at least 2 rising numbers, got {args.shown(blur)}")
    if len(noise) != len(blur) or not all(a <= b for a, b in pairwise(noise)):
        raise ValueError(f"expected noise_std as {len(blur)} nondecreasing numbers, got {args.shown(noise)}")
    if not 0 <= noise[0] <= noise[-1] < math.inf:
        raise ValueError(f"expected noise_std as finite numbers of at least 0, got {args.shown(noise)}")
    if len(schedule.steps) != len(blur) - 1:
        raise ValueError(
            f"expected {len(blur) - 1} steps between {len(blur)} nodes, got {len(schedule.steps)}"
        )
