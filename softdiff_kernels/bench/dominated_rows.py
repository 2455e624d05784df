# SPDX-License-Identifier: Apache-2.0
"""The rows of the cases where the ops dominate, and their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .measure import Timing, differs, ratios
from .turns import OURS, contest

_PER_SECOND = {"ms": 1e3, "us": 1e6}


def in_unit(seconds: float, unit: str, count: float) -> float:
    """A call of `count` steps or images in "ms" or "us" for one of them, or as "images/s"."""
    return count / seconds if unit == "images/s" else seconds * _PER_SECOND[unit] / count


def rows(
    about: Mapping[str, Any],
    timings: Mapping[str, Timing],
    floors: Mapping[str, float],
    *,
    unit: str,
    count: float = 1.0,
    note: str = "",
) -> list[dict[str, Any]]:
    """A row for each rival in `floors`. about: case, what, size and batch.

    ratio: how many times as long the rival takes; None where it is not further from 1 than the noise, its
    floor, says.
    """
    times = ratios(timings, OURS)
    return [
        {
            **about,
            "ours": in_unit(timings[OURS].median, unit, count),
            "other": in_unit(timings[name].median, unit, count),
            "other_name": name,
            "unit": unit,
            "ratio": times[name] if differs(times[name], floor) else None,
            "noise": floor,
            "note": note,
        }
        for name, floor in floors.items()
    ]


def absent(about: Mapping[str, Any], other_name: str, unit: str, why: str) -> dict[str, Any]:
    """The row of what cannot be timed here, with the reason as its note."""
    nothing = dict.fromkeys(("ours", "other", "ratio", "noise"))
    return {**about, **nothing, "other_name": other_name, "unit": unit, "note": why}


def compete(
    about: Mapping[str, Any],
    ours: Callable[[], object],
    others: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    budget: float,
    unit: str,
    count: float = 1.0,
    note: str = "",
    **limits: Any,
) -> list[dict[str, Any]]:
    """Times ours, twice, and the others in turn; a row for each of these."""
    timings, floors = contest(ours, others, device, budget=budget, **limits)
    return rows(about, timings, floors, unit=unit, count=count, note=note)


_LEGEND = (
    "ratio: how many times as long the other takes, medians of calls in turn; none: the difference is below "
    "the noise of the run, in which ours was timed twice. Each result was compared with ours before."
)
_HEAD = ["case", "what", "px", "batch", "ours", "other", "", "unit", "ratio", "noise", "note"]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _line(row: Mapping[str, Any]) -> list[str]:
    timed = row["ours"] is not None
    ratio = "" if not timed else "none" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return [
        row["case"],
        row["what"],
        str(row["size"]),
        str(row["batch"]),
        _number(row["ours"]),
        row["other_name"],
        _number(row["other"]),
        row["unit"],
        ratio,
        "" if row["noise"] is None else f"{row['noise']:.0%}",
        row["note"],
    ]


def _best(found: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """For each thing that was timed, the ratio to the fastest of its others."""
    fastest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in found:
        if row["ours"] is None:
            continue
        name = (row["what"], row["size"], row["batch"])
        rate = row["other"] if row["unit"] == "images/s" else -row["other"]
        held = fastest.get(name)
        if held is None or rate > (held["other"] if row["unit"] == "images/s" else -held["other"]):
            fastest[name] = row
    return [row["ratio"] for row in fastest.values()]


def sentence(found: Sequence[Mapping[str, Any]]) -> str:
    """Against the fastest other of everything timed: in which cases ours is ahead, level or behind."""
    parts = []
    for case in dict.fromkeys(row["case"] for row in found):
        best = _best([row for row in found if row["case"] == case])
        seen = [ratio for ratio in best if ratio is not None]
        if not best:
            continue
        level = len(best) - len(seen)
        words = []
        ahead, behind = [r for r in seen if r > 1], [r for r in seen if r < 1]
        if ahead:
            words.append(f"{_span(ahead)} times as fast" + _of(ahead, best))
        if behind:
            words.append(f"slower, {_span(behind)} of its speed" + _of(behind, best))
        if level:
            words.append("no different within the noise" + _of([None] * level, best))
        parts.append(f"{case}: {', '.join(words)}")
    return f"Against the fastest other of each: {'; '.join(parts)}." if parts else "Nothing was timed."


def _span(seen: Sequence[float]) -> str:
    low, high = f"{min(seen):.2g}", f"{max(seen):.2g}"
    return low if low == high else f"{low} to {high}"


def _of(some: Sequence[object], everything: Sequence[object]) -> str:
    return "" if len(some) == len(everything) else f" in {len(some)} of {len(everything)}"


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `dominated` as a Markdown table, the sentence that sums them up, and a legend."""
    lines = [_HEAD, ["-" * max(len(name), 1) for name in _HEAD], *map(_line, found)]
    grid = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{sentence(found)}\n\n{grid}\n\n{_LEGEND}"
