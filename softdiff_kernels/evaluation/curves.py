# SPDX-License-Identifier: Apache-2.0
"""The numbers of a run as curves: its log, thinned, and what its corruption does over t; and how a page plots
them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion import BlurCorruption, Corruption
from ..errors import user_errors
from .page import Html, Part, note, number, tag

MOST_POINTS = 400
_NUMBERS = ("step", "images", "loss", "images_per_second")
_MANTISSAS = (1, 2, 5)


def read_stats(path: Path) -> list[dict[str, Any]]:
    """The lines of stats.jsonl, in order; of a run in progress the last one may be cut short, and is left
    out."""
    if not path.is_file():
        return []
    found = []
    with user_errors():
        content = path.read_text(encoding="utf-8", errors="replace")
    for line in content.splitlines():
        try:
            values = json.loads(line)
            if all(isinstance(values[name], (int, float)) for name in _NUMBERS):
                found.append(values)
        except (ValueError, KeyError, TypeError):
            continue
    return found


def thinned(stats: Sequence[dict[str, Any]], parts: int, most: int = MOST_POINTS) -> list[dict[str, Any]]:
    """At most `most` entries with step, loss and by_t: means over consecutive lines, at the last one's step.

    parts: the number of parts of t that loss_by_t has."""
    size = max(1, math.ceil(len(stats) / most))
    found = []
    for start in range(0, len(stats), size):
        part = stats[start : start + size]
        by_t = [values for line in part if len(values := line.get("loss_by_t") or ()) == parts]
        found.append(
            {
                "step": part[-1]["step"],
                "loss": _mean([line.get("loss") for line in part]),
                "by_t": [_mean([values[i] for values in by_t]) for i in range(parts)],
            }
        )
    return found


def _mean(values: Sequence[Any]) -> float | None:
    good = [value for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    return statistics.fmean(good) if good else None


def speed(stats: Sequence[dict[str, Any]]) -> float:
    """Images per second, the median of the last lines."""
    return statistics.median(line["images_per_second"] for line in stats[-20:])


def training_seconds(stats: Sequence[dict[str, Any]]) -> float:
    """The time of the logged steps, without checkpoints and grids. What went before the first line is left
    out: the run may have been resumed from another folder."""
    total = 0.0
    for before, line in pairwise(stats):
        images = line["images"] - before["images"]
        if line["images_per_second"] > 0 and images > 0:
            total += images / line["images_per_second"]
    return total


def schedule(corruption: Corruption) -> list[Part]:
    """Plots of what the corruption does over t: of a blur its deviation, of others gain and noise."""
    t = [i / 200 for i in range(201)]
    remark = None
    if isinstance(corruption, BlurCorruption):
        tables = {
            "Blur": ("standard deviation in pixels", [corruption.blur_std(at) for at in t]),
            "Noise": ("standard deviation", [corruption.noise_std(at) for at in t]),
            "Mean": ("factor of the image's mean", [corruption.mean(at) for at in t]),
        }
        lines = {title: (unit, [Line(title, t, values)]) for title, (unit, values) in tables.items()}
        if set(tables["Mean"][1]) == {1.0}:
            del lines["Mean"]
    else:
        where = {"dct": " of all frequencies", "pixels": " of all pixels"}.get(corruption.basis, "")
        lines = {"Noise": ("standard deviation", _spread("Noise", t, corruption.noise, where))}
        try:
            lines = {"Gain": ("factor", _spread("Gain", t, corruption.gain, where)), **lines}
        except ValueError:
            remark = note("It is diagonal in no basis, so that there is no gain to plot.")
    plots = [
        # The blur is at its most telling as it is: at t = 0 it may be nothing.
        plot(
            title,
            shown,
            x="t",
            y=unit,
            log=title == "Noise" and _wide(shown),
            first=0 if shown[1:] else place,
        )
        for place, (title, (unit, shown)) in enumerate(lines.items())
        if any(value for line in shown for value in line.y)
    ]
    return [tag("div", plots, class_="two"), remark]


def _spread(title: str, t: Sequence[float], quantity: Callable[[float], Tensor], where: str) -> list[Line]:
    """The least, mean and largest element over t; one line where they are equal."""
    values = [quantity(at).double() for at in t]
    ops: dict[str, Callable[[Tensor], Tensor]] = {
        "least": torch.min,
        "mean": torch.mean,
        "largest": torch.max,
    }
    lines = [Line(name + where, t, [op(value).item() for value in values]) for name, op in ops.items()]
    return lines if any(value.min() < value.max() for value in values) else [Line(title, t, lines[0].y)]


def _wide(lines: Sequence[Line]) -> bool:
    """Whether only a logarithmic scale shows all of their values."""
    values = [value for line in lines for _, value in line.points()]
    return min(values) > 0 and max(values) / min(values) > 30


@dataclass(frozen=True)
class Line:
    """A line of a plot. y: None, or a number that is not finite, is a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]

    def points(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None and math.isfinite(y)]


def plot(title: str, lines: Sequence[Line], *, x: str, y: str, log: bool = False, first: int = 0) -> Html:
    """Lines over a common x.

    Args:
        title: The caption.
        lines: At least one of them with a point.
        x: What is on the horizontal axis.
        y: Likewise, vertical.
        log: Logarithmic y, if all of it is positive.
        first: The colour of the first line, 0 to 4.
    """
    points = [point for line in lines for point in line.points()]
    xs, ys = [a for a, _ in points], [b for _, b in points]
    log = log and min(ys) > 0
    left, right = _range(xs)
    low, high = _range(ys, log=log)
    y_ticks, x_ticks = _ticks(low, high, log=log), _ticks(left, right)
    if not log:
        low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])

    def across(value: float) -> float:
        return 100 * (value - left) / (right - left)

    def down(value: float) -> float:
        level, bottom, top = (math.log(v) if log else v for v in (value, low, high))
        return 100 * (top - level) / (top - bottom)

    drawn = [tag("path", d=f"M0 {down(v):.2f}H100", class_="grid") for v in y_ticks]
    for place, line in enumerate(lines):
        drawn.append(tag("path", d=_path(line, across, down), class_=f"line l{first + place}"))
    svg = tag("svg", drawn, viewBox="0 0 100 100", preserveAspectRatio="none", aria_hidden="true")
    labels = [
        *(tag("span", number(v), class_="y", style=f"top:{down(v):.2f}%") for v in y_ticks),
        *(tag("span", number(v), class_="x", style=f"left:{across(v):.2f}%") for v in x_ticks),
    ]
    ends = "; ".join(
        f"{line.label} from {number(p[0][1])} to {number(p[-1][1])}" for line in lines if (p := line.points())
    )
    words = f"{title}: {y} over {x} from {number(left)} to {number(right)}. {ends}."
    frame = tag("div", svg, labels, class_="frame", role="img", aria_label=words)
    legend = None
    if len(lines) > 1:
        legend = tag(
            "ul", [_entry(f"l{first + i}", line.label) for i, line in enumerate(lines)], class_="legend"
        )
    scale = f"{y}, logarithmic" if log else y
    axes = tag("p", tag("span", scale), tag("span", f"{x} →"), class_="axes", aria_hidden="true")
    return tag("figure", tag("figcaption", title), legend, frame, axes, class_="plot")


def _entry(name: str, label: str) -> Html:
    sample = tag("path", d="M1 6H31", class_=f"line {name}")
    return tag("li", tag("svg", sample, viewBox="0 0 32 12", class_="swatch", aria_hidden="true"), label)


def _path(line: Line, across: Any, down: Any) -> str:
    """The line as SVG writes it: a new stroke after each gap. A point alone is a dot."""
    strokes: list[list[str]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if y is None or not math.isfinite(y):
            strokes.append([])
        else:
            strokes[-1].append(f"{across(x):.2f} {down(y):.2f}")
    return "".join(f"M{stroke[0]}L{' '.join(stroke[1:] or stroke)}" for stroke in strokes if stroke)


def _range(values: Sequence[float], *, log: bool = False) -> tuple[float, float]:
    """The least and largest value, apart from each other."""
    low, high = min(values), max(values)
    if low < high:
        return low, high
    if log:
        return low / 2, high * 2
    return (low - 1, high + 1) if low == 0 else (low - abs(low) / 2, high + abs(high) / 2)


def _ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """Round numbers from low to high, some four of them. Linear ones reach over a y's ends."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        fine = [m * 10.0**d for d in decades for m in _MANTISSAS if low <= m * 10.0**d <= high]
        if 3 <= len(fine) <= 7:
            return fine
        if len(fine) > 7:
            whole = [10.0**d for d in decades if low <= 10.0**d <= high]
            return whole[:: math.ceil(len(whole) / 6)]
    least = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(least))
    step = next(m * unit for m in (*_MANTISSAS, 10) if m * unit >= least * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
