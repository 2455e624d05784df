# SPDX-License-Identifier: Apache-2.0
"""Corruption processes: how much blur and how much noise at each time t in [0, 1], and those with a name."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from .. import _arguments as args
from .. import functional, spectrum
from ..caches import Tables
from ..noise import NoiseKey
from .schedule import LOG_STEP, Schedule, geometric_noise_std, noise_nodes, noise_range, paper_blur_std_max
from .shortest_path import PowerSpectrum, shortest_path_schedule

_FORMAT = "softdiff-corruption"
_GEOMETRIC_FROM = 0.01
_PAPER_NOISE_STD_MAX = 0.1
_FARTHEST_OF = 2000


@dataclass(frozen=True)
class Corruption:
    """`x_t = C_t x_0 + noise_std(t) n`, C_t a Gaussian blur of blur_std(t) pixels, as tables over t.

    The tables are linear between their nodes. Any other tables than described here raise ValueError.

    Attributes:
        image_size: (H, W) of the images.
        t: Times of the nodes, rising from 0 to 1.
        blur_std_nodes: Blur at the nodes in pixels, at least 0 and nondecreasing.
        noise_std_nodes: Noise at the nodes, for images in [-1, 1], at least 0 and nondecreasing.
        name: How the corruption was made.

    Examples:
        >>> corruption = Corruption.paper((64, 64))
        >>> corruption.blur_std(1.0), corruption.noise_std(1.0)
        (23.0, 0.1)
        >>> t = torch.tensor([0.1, 0.9])  # a time for each image
        >>> corruption.corrupt(torch.zeros(2, 3, 64, 64), t, key=sk.NoiseKey(0)).shape
        torch.Size([2, 3, 64, 64])
    """

    image_size: tuple[int, int]
    t: tuple[float, ...]
    blur_std_nodes: tuple[float, ...]
    noise_std_nodes: tuple[float, ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", args.image_size("Corruption", self.image_size))
        for field in ("t", "blur_std_nodes", "noise_std_nodes"):
            object.__setattr__(self, field, _table(field, getattr(self, field)))
        if len(self.t) < 2 or self.t[0] != 0.0 or self.t[-1] != 1.0 or not _rises(self.t, strictly=True):
            raise ValueError(
                f"Corruption: expected t as at least 2 times that rise from 0 to 1, got {args.shown(self.t)}"
            )
        for field in ("blur_std_nodes", "noise_std_nodes"):
            values = getattr(self, field)
            if len(values) != len(self.t):
                raise ValueError(
                    f"Corruption: expected {field} with {len(self.t)} values, as many as t, got {len(values)}"
                )
            if values[0] < 0 or not _rises(values, strictly=False):
                raise ValueError(
                    f"Corruption: expected {field} of at least 0 and nondecreasing, got {args.shown(values)}"
                )

    @overload
    def blur_std(self, t: float) -> float: ...
    @overload
    def blur_std(self, t: Tensor) -> Tensor: ...
    def blur_std(self, t: float | Tensor) -> float | Tensor:
        """Standard deviation of the blur at t, in pixels.

        Args:
            t: A number in [0, 1], or a floating-point tensor of any shape, whose dtype and device the result
                has. Not differentiable in t.

        Raises:
            ValueError: If t is outside [0, 1], requires grad or carries a tangent. On a device values are
                clamped instead, because reading them would synchronise.
        """
        return self._at("blur_std_nodes", t)

    @overload
    def noise_std(self, t: float) -> float: ...
    @overload
    def noise_std(self, t: Tensor) -> Tensor: ...
    def noise_std(self, t: float | Tensor) -> float | Tensor:
        """Standard deviation of the noise at t, in units of the image; t as in `blur_std`."""
        return self._at("noise_std_nodes", t)

    def _at(self, field: str, t: float | Tensor) -> float | Tensor:
        t = args.time("Corruption", t)
        if isinstance(t, Tensor):
            return _interpolate(_tables(self, field, t.device), t)
        values: tuple[float, ...] = getattr(self, field)
        i = min(bisect_right(self.t, t) - 1, len(self.t) - 2)
        slope = (values[i + 1] - values[i]) / (self.t[i + 1] - self.t[i])
        # At most the next node's value, so that rounding cannot make a table decrease.
        return min(values[i] + (t - self.t[i]) * slope, values[i + 1])

    def gain(self, t: float | Tensor) -> Tensor:
        """Factor of C_t at each DCT frequency: [B, 1, H, W] for t [B], in t's dtype; float64 for a number."""
        blur_std = self.blur_std(t)
        if not isinstance(blur_std, Tensor):
            blur_std = torch.tensor([blur_std], dtype=torch.float64)
        return spectrum.heat_gain(blur_std.reshape(-1), *self.image_size)

    def check_size(self, op: str, x: Tensor) -> None:
        """Raises ValueError if images [B, C, H, W] have another size than the corruption. op: the caller."""
        if tuple(x.shape[-2:]) != self.image_size:
            height, width = self.image_size
            raise ValueError(
                f"{op}: the corruption is for images of {height} x {width}, got {args.describe(x)}"
            )

    def corrupt(
        self,
        x0: Tensor,
        t: float | Tensor,
        *,
        key: NoiseKey | None = None,
        noise: Tensor | None = None,
        return_residual: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`x_t = C_t x_0 + noise_std(t) n`, and, if asked, the residual `x_0 - x_t`.

        Args:
            x0: Images [B, C, H, W] in [-1, 1], or uint8.
            t: A number or [B].
            key: As in `softdiff_kernels.corrupt`.
            noise: As in `softdiff_kernels.corrupt`.
            return_residual: As in `softdiff_kernels.corrupt`.
        """
        self.check_size("Corruption.corrupt", x0)
        return functional.corrupt(
            x0, self.blur_std(t), self.noise_std(t), key=key, noise=noise, return_residual=return_residual
        )

    def to_dict(self) -> dict[str, Any]:
        """The corruption as JSON can store it; `from_dict` reads it."""
        return {
            "format": _FORMAT,
            "image_size": list(self.image_size),
            "t": list(self.t),
            "blur_std": list(self.blur_std_nodes),
            "noise_std": list(self.noise_std_nodes),
            "name": self.name,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Corruption:
        """The corruption that `to_dict` wrote. ValueError for any other content."""
        if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
            raise ValueError(
                f"Corruption: expected a dictionary of format {_FORMAT!r}, got {args.shown(content)}"
            )
        missing = [n for n in ("image_size", "t", "blur_std", "noise_std", "name") if n not in content]
        if missing:
            raise ValueError(f"Corruption: {', '.join(missing)} missing from the dictionary")
        return cls.from_tables(
            content["image_size"],
            content["t"],
            content["blur_std"],
            content["noise_std"],
            str(content["name"]),
        )

    @classmethod
    def from_tables(
        cls,
        image_size: tuple[int, int],
        t: Sequence[float],
        blur_std: Sequence[float],
        noise_std: Sequence[float],
        name: str = "custom",
    ) -> Corruption:
        """A corruption from values of blur_std (pixels) and noise_std at the times t, linear in between."""
        return cls(
            image_size, _table("t", t), _table("blur_std", blur_std), _table("noise_std", noise_std), name
        )

    @classmethod
    def paper(
        cls,
        image_size: tuple[int, int],
        *,
        blur_std_min: float = 0.01,
        blur_std_max: float | None = None,
        noise_std_min: float = 0.01,
        noise_std_max: float = 0.10,
        noise_full_at: float = 0.25,
    ) -> Corruption:
        """The paper's ranges without its schedule: blur linear in t, noise geometric up to noise_full_at.

        blur_std_max: None is the paper's 23 px at 64 px, times max(H, W) / 64; a number is used unchanged.
        The geometric part is tabulated so densely that interpolation is within 3.2e-4 of it.
        Daras et al. 2022, section 5 and figure 6 (blur 0.01 to 23 px, noise 0.01 to 0.10).
        """
        op = "Corruption.paper"
        size = args.image_size(op, image_size)
        least, most = _blur_range(op, size, blur_std_min, blur_std_max)
        noise = noise_range(op, noise_std_min, noise_std_max, noise_full_at)
        t = noise_nodes(*noise)
        blur = least + (most - least) * t
        return cls.from_tables(
            size, t.tolist(), blur.tolist(), geometric_noise_std(t, *noise).tolist(), "paper"
        )

    @classmethod
    def geometric(
        cls,
        image_size: tuple[int, int],
        *,
        blur_std_min: float = 0.5,
        blur_std_max: float | None = None,
        noise_std_min: float = 0.01,
        noise_std_max: float = 0.10,
        noise_full_at: float = 0.25,
    ) -> Corruption:
        """Blur geometric in t, as in IHDM (Rissanen et al. 2022: from 0.5 px), with the paper's noise.

        In the first hundredth of t the blur rises from 0.01 px to blur_std_min. Otherwise as `paper`.
        """
        op = "Corruption.geometric"
        size = args.image_size(op, image_size)
        least, most = _blur_range(op, size, blur_std_min, blur_std_max)
        least = min(least, most)
        if not least > 0:
            raise ValueError(f"{op}: expected blur_std_min and blur_std_max over 0, got {least!r}")
        parts = max(1, math.ceil(math.log(most / least) / LOG_STEP))
        blur_t = np.linspace(_GEOMETRIC_FROM, 1.0, parts + 1)
        noise = noise_range(op, noise_std_min, noise_std_max, noise_full_at)
        t = np.union1d(blur_t, noise_nodes(*noise))
        blur = np.interp(t, np.append(0.0, blur_t), np.append(0.01, np.geomspace(least, most, parts + 1)))
        return cls.from_tables(
            size, t.tolist(), blur.tolist(), geometric_noise_std(t, *noise).tolist(), "geometric"
        )

    @classmethod
    def noise_only(
        cls, image_size: tuple[int, int], *, noise_std_min: float = 0.01, noise_std_max: float
    ) -> Corruption:
        """No blur, noise geometric in t: the variance-exploding process of Song et al. 2021.

        noise_std_max: should be about the largest distance between two images (Song & Ermon 2020,
        technique 1).
        """
        size = args.image_size("Corruption.noise_only", image_size)
        noise = noise_range("Corruption.noise_only", noise_std_min, noise_std_max, 1.0)
        t = noise_nodes(*noise)
        return cls.from_tables(
            size, t.tolist(), [0.0] * len(t), geometric_noise_std(t, *noise).tolist(), "noise-only"
        )

    @classmethod
    def from_schedule(cls, schedule: Schedule) -> Corruption:
        """Blur and noise at the nodes of the schedule, linear in between (Daras et al. 2022)."""
        return cls(schedule.image_size, schedule.t, schedule.blur_std, schedule.noise_std, "schedule")


def _blur_range(
    op: str, size: tuple[int, int], blur_std_min: float, blur_std_max: float | None
) -> tuple[float, float]:
    most = paper_blur_std_max(size) if blur_std_max is None else blur_std_max
    return args.number(op, "blur_std_min", blur_std_min), args.number(op, "blur_std_max", most)


def _table(name: str, values: object) -> tuple[float, ...]:
    return tuple(args.numbers("Corruption", name, values))


def _rises(values: Sequence[float], *, strictly: bool) -> bool:
    return all(a < b or (a == b and not strictly) for a, b in pairwise(values))


def _make_tables(corruption: Corruption, field: str, device: torch.device) -> Tensor:
    """Start, value, slope and limit of each piece: float64 [4, nodes - 1]."""
    t = corruption.t
    values: tuple[float, ...] = getattr(corruption, field)
    # Not by zip: torch 2.6 cannot trace it with `strict`.
    slope = [(values[i + 1] - values[i]) / (t[i + 1] - t[i]) for i in range(len(t) - 1)]
    return torch.tensor([t[:-1], values[:-1], slope, values[1:]], dtype=torch.float64, device=device)


# Cached, so that a table is copied to a device once: a later copy could not be captured in a graph. The key,
# a corruption, takes three times as much memory as its table.
_kept_tables = Tables("corruption", _make_tables, copied=True, share=4)


def _tables(corruption: Corruption, field: str, device: torch.device) -> Tensor:
    # torch.compile warns about a cache and traces through it; the traced table is a constant anyway.
    tables = _make_tables if torch.compiler.is_compiling() else _kept_tables
    return tables(corruption, field, device)


def _interpolate(tables: Tensor, t: Tensor) -> Tensor:
    start, value, slope, limit = tables.unbind(0)
    # Not detached: a derivative that was not detected above reaches the op, which refuses it.
    exact = t.double().clamp(0.0, 1.0)
    piece = torch.searchsorted(start, exact.contiguous(), right=True).sub_(1).clamp(min=0)
    return torch.minimum(value[piece] + (exact - start[piece]) * slope[piece], limit[piece]).to(t.dtype)


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
        """The ranges of blur and noise as keyword arguments of `Corruption.paper` and `.geometric`."""
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


def _wasserstein(data: DataSet, options: ScheduleOptions) -> tuple[Corruption, Schedule | None]:
    schedule = shortest_path_schedule(
        data.spectrum, nodes=options.nodes, dataset=data.name, **options.ranges()
    )
    return Corruption.from_schedule(schedule), schedule


def _linear(data: DataSet, options: ScheduleOptions) -> tuple[Corruption, Schedule | None]:
    return Corruption.paper(data.spectrum.image_size, **options.ranges()), None


def _geometric(data: DataSet, options: ScheduleOptions) -> tuple[Corruption, Schedule | None]:
    return Corruption.geometric(data.spectrum.image_size, **options.ranges()), None


def _noise(data: DataSet, options: ScheduleOptions) -> tuple[Corruption, Schedule | None]:
    least, most = options.noise_std_min, options.noise_std_max
    most = max(farthest(data.pixels), least) if most is None else most
    size = data.pixels.shape[2], data.pixels.shape[3]
    return Corruption.noise_only(size, noise_std_min=least, noise_std_max=most), None


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

    make: Callable[[DataSet, ScheduleOptions], tuple[Corruption, Schedule | None]]
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
