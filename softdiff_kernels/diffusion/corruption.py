# SPDX-License-Identifier: Apache-2.0
"""Corruption processes: how much blur and how much noise at each time t in [0, 1]."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from .. import _arguments as args
from .. import functional
from ..caches import Tables
from ..noise import NoiseKey
from . import _images

if TYPE_CHECKING:
    from .schedule import Schedule

_FORMAT = "softdiff-corruption"
# Between two nodes whose logarithms differ by h, the chord of an exponential is off by h^2 / 8.
_LOG_STEP = 0.05
_GEOMETRIC_FROM = 0.01

PAPER_BLUR_STD_MAX = 23.0
PAPER_SIDE = 64


def paper_blur_std_max(image_size: tuple[int, int]) -> float:
    """The paper's strongest blur, 23 px at 64 px, kept in proportion to the longer side."""
    return PAPER_BLUR_STD_MAX * max(image_size) / PAPER_SIDE


def geometric_noise_std(
    t: np.ndarray | Sequence[float], noise_std_min: float, noise_std_max: float, noise_full_at: float
) -> np.ndarray:
    """`noise_std_min (noise_std_max / noise_std_min)^min(t / noise_full_at, 1)`, float64.

    Daras et al. 2022, figure 6, as read by others: geometric, full at a quarter, constant after.
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
    """The three arguments of `geometric_noise_std` that are numbers, checked, as floats."""
    found = (
        args.number(op, "noise_std_min", noise_std_min),
        args.number(op, "noise_std_max", noise_std_max),
        args.number(op, "noise_full_at", noise_full_at),
    )
    geometric_noise_std([0.0], *found)
    return found


def noise_nodes(noise_std_min: float, noise_std_max: float, noise_full_at: float) -> np.ndarray:
    """Times at which to tabulate `geometric_noise_std` so that chords are within 3.2e-4 of it."""
    parts = max(1, math.ceil(math.log(noise_std_max / noise_std_min) / _LOG_STEP))
    return np.unique(np.append(np.linspace(0.0, noise_full_at, parts + 1), 1.0))


@dataclass(frozen=True)
class Corruption:
    """`x_t = C_t x_0 + noise_std(t) n`, C_t a Gaussian blur of blur_std(t) pixels, as tables over t.

    image_size: (H, W) that the tables are meant for. t: times of the nodes, ascending from 0 to 1.
    blur_std_nodes (pixels), noise_std_nodes (units of an image in [-1, 1]): values there, at least 0
    and never falling; linear in between. name: what it was made by. Bad tables raise ValueError.
    """

    image_size: tuple[int, int]
    t: tuple[float, ...]
    blur_std_nodes: tuple[float, ...]
    noise_std_nodes: tuple[float, ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _images.image_size("Corruption", self.image_size))
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
                    f"Corruption: expected {field} of at least 0 and never falling, got {args.shown(values)}"
                )

    @overload
    def blur_std(self, t: float) -> float: ...
    @overload
    def blur_std(self, t: Tensor) -> Tensor: ...
    def blur_std(self, t: float | Tensor) -> float | Tensor:
        """Standard deviation of the blur at t, in pixels.

        t: a number in [0, 1], or a floating-point tensor of any shape, whose dtype and device the
        answer keeps. Not differentiable in t. Raises ValueError where t is outside [0, 1], requires grad or
        carries a tangent; on a device values are clamped instead, for looking at them would synchronise.
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
        # Held under the next node, lest rounding make a table fall where it may not.
        return min(values[i] + (t - self.t[i]) * slope, values[i + 1])

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

        x0: [B, C, H, W] in [-1, 1], or uint8; t: a number or [B]. Otherwise as `functional.corrupt`.
        """
        _images.check_size("Corruption.corrupt", x0, self.image_size)
        return functional.corrupt(
            x0, self.blur_std(t), self.noise_std(t), key=key, noise=noise, return_residual=return_residual
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON needs to make it again."""
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
        """The corruption that `to_dict` wrote; ValueError where it is not one."""
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
        """A corruption of one's own: values of blur_std (pixels) and noise_std at the times t."""
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

        blur_std_max: None is the paper's 23 px at 64 px, times max(H, W) / 64; a number is taken as
        it is. The geometric part is tabulated so densely that interpolation is within 3.2e-4 of it.
        Daras et al. 2022, section 5 and figure 6 (blur 0.01 to 23 px, noise 0.01 to 0.10).
        """
        op = "Corruption.paper"
        size = _images.image_size(op, image_size)
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
        """Blur geometric in t, as IHDM has it (Rissanen et al. 2022: from 0.5 px), with the paper's noise.

        The first hundredth of t leads from a blur of 0.01 px to blur_std_min. Otherwise as `paper`.
        """
        op = "Corruption.geometric"
        size = _images.image_size(op, image_size)
        least, most = _blur_range(op, size, blur_std_min, blur_std_max)
        least = min(least, most)
        if not least > 0:
            raise ValueError(f"{op}: expected blur_std_min and blur_std_max over 0, got {least!r}")
        parts = max(1, math.ceil(math.log(most / least) / _LOG_STEP))
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

        noise_std_max: about the largest distance between two images (Song & Ermon 2020, technique 1).
        """
        size = _images.image_size("Corruption.noise_only", image_size)
        noise = noise_range("Corruption.noise_only", noise_std_min, noise_std_max, 1.0)
        t = noise_nodes(*noise)
        return cls.from_tables(
            size, t.tolist(), [0.0] * len(t), geometric_noise_std(t, *noise).tolist(), "noise-only"
        )

    @classmethod
    def from_schedule(cls, schedule: Schedule) -> Corruption:
        """Blur and noise of the schedule's nodes, linear in between (Daras et al. 2022)."""
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


# Kept, so that a table is copied to a device once: a later copy could not be captured in a graph. The key, a
# corruption, takes three times as much memory as its table.
_kept_tables = Tables("corruption", _make_tables, copied=True, share=4)


def _tables(corruption: Corruption, field: str, device: torch.device) -> Tensor:
    # torch.compile traces through a cache, and warns; what it traces is a constant anyway.
    tables = _make_tables if torch.compiler.is_compiling() else _kept_tables
    return tables(corruption, field, device)


def _interpolate(tables: Tensor, t: Tensor) -> Tensor:
    start, value, slope, limit = tables.unbind(0)
    # Never detached: a derivative that nobody saw above reaches the op, which refuses it.
    exact = t.double().clamp(0.0, 1.0)
    piece = torch.searchsorted(start, exact.contiguous(), right=True).sub_(1).clamp(min=0)
    return torch.minimum(value[piece] + (exact - start[piece]) * slope[piece], limit[piece]).to(t.dtype)
