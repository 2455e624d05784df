# SPDX-License-Identifier: Apache-2.0
"""The blur corruptions that a data set and a name make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .blur import BlurCorruption
from .schedule import Schedule
from .shortest_path import PowerSpectrum, shortest_path_schedule

_PAPER_NOISE_STD_MAX = 0.1
_FARTHEST_OF = 2000


class DataSet(Protocol):
    """What a named corruption is made for, such as an `ImageSet`: pixels are uint8 [N, C, H, W]."""

    @property
    def name(self) -> str: ...
    @property
    def pixels(self) -> Tensor: ...
    @property
    def spectrum(self) -> PowerSpectrum: ...


@dataclass(frozen=True)
class ScheduleOptions:
    """Options of the named corruptions; each uses those that apply to it.

    Attributes:
        nodes: Number of nodes on the shortest path.
        blur_std_max: Strongest blur in pixels. None is the paper's, 23 px at 64 px in proportion to the
            longer side.
        noise_std_min: Noise at t = 0.
        noise_std_max: Strongest noise. None is the paper's 0.1 (noise_std_min if that is larger); for "noise"
            the largest distance between two images.

    Examples:
        >>> ScheduleOptions(noise_std_max=0.05).ranges()
        {'blur_std_max': None, 'noise_std_min': 0.01, 'noise_std_max': 0.05}
    """

    nodes: int = 32
    blur_std_max: float | None = None
    noise_std_min: float = 0.01
    noise_std_max: float | None = None

    def ranges(self) -> dict[str, Any]:
        """The ranges of blur and noise as keyword arguments of `BlurCorruption.paper` and `.geometric`."""
        most = self.noise_std_max
        return {
            "blur_std_max": self.blur_std_max,
            "noise_std_min": self.noise_std_min,
            "noise_std_max": max(_PAPER_NOISE_STD_MAX, self.noise_std_min) if most is None else most,
        }


def farthest(pixels: Tensor) -> float:
    """The largest distance between two of (at most 2000, evenly spaced) images in [-1, 1]; pixels: uint8."""
    chosen = torch.linspace(0, len(pixels) - 1, min(len(pixels), _FARTHEST_OF)).round().long()
    flat = pixels[chosen].flatten(1).float() / 127.5
    return float(torch.cdist(flat, flat).max())


def _wasserstein(data: DataSet, options: ScheduleOptions) -> tuple[BlurCorruption, Schedule | None]:
    schedule = shortest_path_schedule(
        data.spectrum, nodes=options.nodes, dataset=data.name, **options.ranges()
    )
    return BlurCorruption.from_schedule(schedule), schedule


def _linear(data: DataSet, options: ScheduleOptions) -> tuple[BlurCorruption, Schedule | None]:
    return BlurCorruption.paper(data.spectrum.image_size, **options.ranges()), None


def _geometric(data: DataSet, options: ScheduleOptions) -> tuple[BlurCorruption, Schedule | None]:
    return BlurCorruption.geometric(data.spectrum.image_size, **options.ranges()), None


def _noise(data: DataSet, options: ScheduleOptions) -> tuple[BlurCorruption, Schedule | None]:
    least, most = options.noise_std_min, options.noise_std_max
    most = max(farthest(data.pixels), least) if most is None else most
    size = data.pixels.shape[2], data.pixels.shape[3]
    return BlurCorruption.noise_only(size, noise_std_min=least, noise_std_max=most), None


class NamedSchedule(NamedTuple):
    """A corruption that is made from a data set by its name in SCHEDULES.

    Attributes:
        make: The corruption for a data set, and its Schedule if one was computed.
        help: What the name means.
        options: The fields of ScheduleOptions that have an effect.

    Examples:
        >>> from types import SimpleNamespace
        >>> pixels = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8)
        >>> data = SimpleNamespace(name="mine", pixels=pixels, spectrum=power_spectrum([pixels]))
        >>> corruption, schedule = SCHEDULES["linear"].make(data, ScheduleOptions())
        >>> corruption.blur_std(1.0), schedule
        (5.75, None)
    """

    make: Callable[[DataSet, ScheduleOptions], tuple[BlurCorruption, Schedule | None]]
    help: str
    options: tuple[str, ...]


_RANGES = ("blur_std_max", "noise_std_min", "noise_std_max")

SCHEDULES: dict[str, NamedSchedule] = {
    "wasserstein": NamedSchedule(_wasserstein, "the shortest path for this data", ("nodes", *_RANGES)),
    "linear": NamedSchedule(_linear, "the paper's ranges, blur linear in t", _RANGES),
    "paper": NamedSchedule(_linear, "another name of linear", _RANGES),
    "geometric": NamedSchedule(_geometric, "blur geometric in t, as IHDM", _RANGES),
    "noise": NamedSchedule(_noise, "no blur: VE", _RANGES[1:]),
}
"""The corruptions that have a name: command options, help texts and tests derive from this."""
