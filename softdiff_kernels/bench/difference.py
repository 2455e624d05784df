# SPDX-License-Identifier: Apache-2.0
"""What changed between two results, and whether it is beyond the noise."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from . import result
from .config import CompareConfig
from .rows import AGAIN, OURS, Row
from .tables import grid

_KEY = ("op", "px", "batch", "dtype", "device", "backend", "threads")
_SAME_MACHINE = ("cpu", "cores", "gpu", "instruction_set")
_TOLD = (*_SAME_MACHINE, "python", "softdiff_kernels", "commit")


@dataclass(frozen=True)
class Change:
    """One row of both results. Factors are after / before: below 1 is faster.

    time: of ours. machine: of the baselines in common, their median: what the machine did meanwhile.
    net: time / machine. floor: how far ln(net) may be from 0 by chance. verdict: faster, slower or none.
    """

    key: tuple[Any, ...]
    before: float
    after: float
    time: float
    machine: float
    net: float
    floor: float
    ratio_before: float
    ratio_after: float
    verdict: str


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in _KEY)


def change(before: Row, after: Row) -> Change:
    """Ours against itself, with the baselines of the same run as the yardstick.

    The floor adds, as independent errors are added, the noise of both rows and half of how far apart the
    baselines' own changes lie (their 20 % to 80 % quantiles): a machine that runs at another speed moves all
    of them alike, other programs do not.
    """
    names = [n for n in before.timings if n in after.timings and n not in (OURS, AGAIN)]
    moves = [math.log(after.timings[n]["median"] / before.timings[n]["median"]) for n in names]
    machine = statistics.median(moves) if moves else 0.0
    apart = 0.0
    if len(moves) > 1:
        fifths = statistics.quantiles(moves, n=5, method="inclusive")
        apart = (fifths[3] - fifths[0]) / 2
    time = math.log(after.ours / before.ours)
    net = time - machine
    floor = math.hypot(before.noise, after.noise, apart)
    verdict = "none" if abs(net) <= floor else "faster" if net < 0 else "slower"
    return Change(
        key=_key(before),
        before=before.ours,
        after=after.ours,
        time=math.exp(time),
        machine=math.exp(machine),
        net=math.exp(net),
        floor=floor,
        ratio_before=before.ratio,
        ratio_after=after.ratio,
        verdict=verdict,
    )


def changes(before: list[Row], after: list[Row]) -> tuple[list[Change], list[tuple[Any, ...]]]:
    """The rows that both have, and the keys of those that only one has."""
    old, new = {_key(r): r for r in before}, {_key(r): r for r in after}
    alone = [key for key in [*old, *new] if (key in old) != (key in new)]
    return [change(old[key], new[key]) for key in old if key in new], alone


def table(found: list[Change]) -> str:
    """A line for each row."""
    head = ["op", "px", "batch", "dtype", "backend", "threads", "before, ns/px", "after", "time"]
    head += ["the machine", "ours alone", "noise", "change", "ratio before", "after"]
    cells = [
        [
            *(str(value) for name, value in zip(_KEY, c.key, strict=True) if name != "device"),
            f"{c.before:.2f}",
            f"{c.after:.2f}",
            f"{c.time - 1:+.1%}",
            f"{c.machine - 1:+.1%}",
            f"{c.net - 1:+.1%}",
            f"{c.floor:.1%}",
            c.verdict,
            f"{c.ratio_before:.2f}",
            f"{c.ratio_after:.2f}",
        ]
        for c in found
    ]
    return grid(head, cells)


def compare(config: CompareConfig) -> str:
    """The report of `softdiff bench compare`."""
    (one, rows_one), (two, rows_two) = result.load(config.before), result.load(config.after)
    lines = []
    for name in _TOLD:
        a, b = one["machine"].get(name), two["machine"].get(name)
        if a != b:
            lines.append(f"{name}: {a} before, {b} after")
    versions = one["machine"].get("versions", {}), two["machine"].get("versions", {})
    for name in sorted(versions[0].keys() | versions[1].keys()):
        a, b = versions[0].get(name), versions[1].get(name)
        if a != b:
            lines.append(f"{name}: {a} before, {b} after")
    if any(one["machine"].get(name) != two["machine"].get(name) for name in _SAME_MACHINE):
        lines.append("These are different machines: read the ratios, not the times.")
    for label, each in (("before", one), ("after", two)):
        if not each["complete"]:
            lines.append(f"The run {label} was stopped before its end.")
    found, alone = changes(rows_one, rows_two)
    if not found:
        lines.append("The two results have no row in common.")
        return "\n".join(lines)
    counts = {v: sum(c.verdict == v for c in found) for v in ("faster", "slower", "none")}
    listed = found if config.all else [c for c in found if c.verdict != "none"]
    if listed:
        lines += ["", table(listed), ""]
    lines.append(
        f"Of {len(found)} rows {counts['faster']} are faster and {counts['slower']} slower beyond the noise, "
        f"{counts['none']} are the same within it."
    )
    if alone:
        lines.append(f"{len(alone)} rows are in one of the two alone.")
    return "\n".join(lines).strip()
