# SPDX-License-Identifier: Apache-2.0
"""The report's tables, as Markdown that lines up in a terminal. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .targets import Target

OURS = "softdiff_kernels"


def label(backend: str) -> str:
    """What ours are called among the baselines."""
    return OURS if backend == "auto" else f"{OURS} {backend}"


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    body = [head, ["-" * w for w in widths], *lines]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in body
    )


def shown(value: Any, pattern: str = "{:.2f}") -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else pattern.format(value)


def targets(found: Sequence[Target]) -> str:
    """Wanted, got, met or missed: a line for a target, and two columns for each backend."""
    backends = list(dict.fromkeys(t.backend for t in found))
    lines = []
    for what in dict.fromkeys(t.what for t in found):
        own = {t.backend: t for t in found if t.what == what}
        wanted = list(dict.fromkeys(f"{t.wanted:g}" for t in own.values()))
        one = next(iter(own.values()))
        line = [what, ("at most " if one.most else "") + ", ".join(wanted) + f" {one.unit}"]
        for backend in backends:
            line += [shown(own[backend].got, "{:.1f}"), own[backend].verdict] if backend in own else ["", ""]
        lines.append(line)
    heads = [cell for backend in backends for cell in (backend, "")]
    return grid(["target", "wanted", *heads], lines)


def full(rows: Sequence[Mapping[str, Any]], host: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A line for each op, size, dtype and backend whose batch fills the GPU."""
    head = [
        "op",
        "px",
        "B",
        "dtype",
        "by",
        "us",
        "20-80 %",
        "GB/s",
        "of copy",
        "fastest baseline",
        "us",
        "ratio",
    ]
    head += ["host us", "error", "its error", "peak MiB"]
    lines = [
        [
            r["op"],
            str(r["size"]),
            str(r["batch"]),
            r["dtype"],
            r["backend"],
            shown(r["us"], "{:.1f}"),
            f"{r['low']:.1f}-{r['high']:.1f}",
            shown(r["gb_s"], "{:.0f}"),
            shown(r["of_copy"], "{:.0%}"),
            r["fastest"] or "",
            shown(r["fastest_us"], "{:.1f}"),
            shown(r["ratio"]),
            shown(host.get(r["op"], {}).get(r["backend"], {}).get("key drawn"), "{:.1f}"),
            shown(r["error"], "{:.1e}"),
            shown(r["fastest_error"], "{:.1e}"),
            shown(r["peak_mib"], "{:.0f}"),
        ]
        for r in rows
        if r["kind"] == "full"
    ]
    return grid(head, lines)


def _least(others: Mapping[str, Mapping[str, Any]], graph: bool) -> tuple[str, float | None]:
    """The fastest fair baseline, among graphs or among the rest."""
    fair = {n: t["median"] for n, t in others.items() if t["fair"] and n.endswith(", graph") == graph}
    name = min(fair, key=lambda n: fair[n], default="")
    return name, fair.get(name)


def small(rows: Sequence[Mapping[str, Any]]) -> str:
    """Small batches: what a call takes from Python, and what is left of it in a CUDA graph."""
    head = ["op", "px", "B", "by", "us", "20-80 %", "fastest baseline", "us", "ratio"]
    head += ["us, graph", "fastest graph", "us", "ratio"]
    lines = []
    for r in rows:
        if r["kind"] != "small":
            continue
        own = r["others"].get(f"{label(r['backend'])}, graph", {}).get("median")
        called, graph = _least(r["others"], False), _least(r["others"], True)
        lines.append(
            [
                r["op"],
                str(r["size"]),
                str(r["batch"]),
                r["backend"],
                shown(r["us"], "{:.1f}"),
                f"{r['low']:.1f}-{r['high']:.1f}",
                called[0],
                shown(called[1], "{:.1f}"),
                shown(called[1] and called[1] / r["us"]),
                shown(own, "{:.1f}"),
                graph[0].removesuffix(", graph"),
                shown(graph[1], "{:.1f}"),
                shown(graph[1] / own if graph[1] and own else None),
            ]
        )
    return grid(head, lines)


def every_baseline(rows: Sequence[Mapping[str, Any]], op: str, dtype: str) -> str:
    """Microseconds of ours and of each baseline; a star where it has fewer digits than ours."""
    runs = {(r["size"], r["batch"]): r for r in rows if r["op"] == op and r["dtype"] == dtype}
    chosen = list(runs.values())  # the backends' rows of a run have the same times
    names = list(dict.fromkeys(n for r in chosen for n in [*r["others"], *r["failures"]]))
    lines = []
    for n in names:
        known = [r["others"].get(n) for r in chosen]
        star = " *" if any(k and not k["fair"] for k in known) and not n.startswith(OURS) else ""
        cells = ["failed" if n in r["failures"] else "" for r in chosen]
        cells = [shown(k["median"], "{:.1f}") if k else c for k, c in zip(known, cells, strict=True)]
        lines.append([n + star, *cells])
    return grid(["us", *(f"{r['size']} px, B {r['batch']}" for r in chosen)], lines)


def tuned(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    """Triton's headline rows by the committed table and by the one that was just measured."""
    known = {
        (r["op"], r["size"], r["dtype"]): r
        for r in before
        if r["kind"] == "full" and r["backend"] == "triton"
    }
    lines = []
    for r in after:
        old = known.get((r["op"], r["size"], r["dtype"]))
        if old is not None:
            place = [
                r["op"],
                str(r["size"]),
                r["dtype"],
                shown(old["us"], "{:.1f}"),
                shown(r["us"], "{:.1f}"),
            ]
            lines.append([*place, shown(old["us"] / r["us"]), shown(r["of_copy"], "{:.0%}")])
    return grid(["op", "px", "dtype", "us, committed", "us, tuned", "times as fast", "of copy"], lines)


def parts(outcomes: Mapping[str, Any]) -> str:
    """How each part ended."""
    lines = []
    for o in outcomes.values():
        lines.append([o.name, o.status, f"{o.seconds:.0f}", o.detail.replace("|", "/")[:160]])
    return grid(["part", "ended", "s", ""], lines)
