# SPDX-License-Identifier: Apache-2.0
"""`softdiff bench compare`: what changed between two results, and whether it is beyond the noise."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from .config import CompareConfig
from .report import Column, load, table
from .rows import AGAIN, OURS, Row

_KEY = ("op", "px", "batch", "dtype", "device", "backend", "threads")
_SAME_MACHINE = ("cpu", "cores", "gpu", "instruction_set")
_REPORTED = (*_SAME_MACHINE, "python", "softdiff_kernels", "commit")


@dataclass(frozen=True)
class Change:
    """One row of both results. Factors are after / before: below 1 is faster.

    time: of ours. machine: the median of the baselines in common, i.e. how much the machine changed.
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
        verdict="none" if abs(net) <= floor else "faster" if net < 0 else "slower",
    )


def changes(before: list[Row], after: list[Row]) -> tuple[list[Change], list[tuple[Any, ...]]]:
    """The rows that both have, and the keys of those that only one has."""
    old, new = {_key(r): r for r in before}, {_key(r): r for r in after}
    alone = [key for key in [*old, *new] if (key in old) != (key in new)]
    return [change(old[key], new[key]) for key in old if key in new], alone


def _key_column(i: int) -> Column:
    return _KEY[i], lambda change: str(change.key[i])


_COLUMNS: list[Column] = [
    *(_key_column(i) for i, name in enumerate(_KEY) if name != "device"),
    ("before, ns/px", lambda c: f"{c.before:.2f}"),
    ("after", lambda c: f"{c.after:.2f}"),
    ("time", lambda c: f"{c.time - 1:+.1%}"),
    ("the machine", lambda c: f"{c.machine - 1:+.1%}"),
    ("ours alone", lambda c: f"{c.net - 1:+.1%}"),
    ("noise", lambda c: f"{c.floor:.1%}"),
    ("change", lambda c: c.verdict),
    ("ratio before", lambda c: f"{c.ratio_before:.2f}"),
    ("after", lambda c: f"{c.ratio_after:.2f}"),
]


def compare(config: CompareConfig) -> str:
    """The report of `softdiff bench compare`."""
    (one, rows_one), (two, rows_two) = load(config.before), load(config.after)
    old, new = ({**r["machine"], **r["machine"].get("versions", {})} for r in (one, two))
    versions = sorted(one["machine"].get("versions", {}).keys() | two["machine"].get("versions", {}).keys())
    lines = [
        f"{name}: {old.get(name)} before, {new.get(name)} after"
        for name in (*_REPORTED, *versions)
        if old.get(name) != new.get(name)
    ]
    if any(old.get(name) != new.get(name) for name in _SAME_MACHINE):
        lines.append("These are different machines: compare the ratios, not the times.")
    for label, each in (("before", one), ("after", two)):
        if not each["complete"]:
            lines.append(f"The run {label} was stopped before its end.")
    common, alone = changes(rows_one, rows_two)
    if not common:
        return "\n".join([*lines, "The two results have no row in common."])
    counts = {v: sum(c.verdict == v for c in common) for v in ("faster", "slower", "none")}
    listed = common if config.all else [c for c in common if c.verdict != "none"]
    if listed:
        lines += ["", table(_COLUMNS, listed), ""]
    lines.append(
        f"Of {len(common)} rows {counts['faster']} are faster and {counts['slower']} slower beyond the "
        f"noise, {counts['none']} are the same within it."
    )
    if alone:
        lines.append(f"{len(alone)} rows are in only one of the two.")
    return "\n".join(lines).strip()
