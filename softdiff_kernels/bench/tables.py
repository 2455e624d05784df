# SPDX-License-Identifier: Apache-2.0
"""The tables of the ops, as text for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .measure import differs
from .rows import AGAIN, OURS, Row

HEADLINE = ("corrupt", "momentum_step", "soft_score_loss")


def goal(op: str, px: int) -> float | None:
    """The ratio to the fastest baseline that the kernels are built for, on a CPU."""
    if op not in HEADLINE or not 32 <= px <= 512:
        return None
    return 5.0 if px <= 128 else 4.0


def fft_goal(op: str) -> float | None:
    """The same for the ratio to the FFT-DCT."""
    return 25.0 if op == "corrupt" else None


def shown(value: float | None, pattern: str = "{:.2f}") -> str:
    """A number as text; nothing where there is none."""
    return "" if value is None else pattern.format(value)


def against(ratio: float | None, noise: float, wanted: float | None = None) -> str:
    """A ratio as text: "none" where it is within the noise, and whether it reaches what was wanted."""
    if ratio is None:
        return ""
    text = f"{ratio:.2f}" if differs(ratio, noise) else "none"
    if wanted is None:
        return text
    return f"{text} (goal {wanted:g}{'' if ratio >= wanted else ', missed'})"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that is Markdown and lines up in a terminal."""
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * w for w in widths], *rows]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _where(row: Row, rows: Sequence[Row]) -> list[str]:
    """What tells a row from the others, beyond op and size; columns that never vary are left out."""
    return [str(getattr(row, name)) for name in _varying(rows)]


def _varying(rows: Sequence[Row]) -> list[str]:
    names = ("dtype", "backend", "threads")
    return [n for n in names if n == "threads" or len({getattr(row, n) for row in rows}) > 1]


def comparison(rows: Sequence[Row]) -> str:
    """Ours beside the fastest baseline, a line for each op, size, dtype, backend and thread count."""
    head = [
        *("op", "px", *_varying(rows)),
        *("ours, ns/px", "20-80 %", "fastest", "ns/px", "ratio", "noise", "to FFT-DCT", "other", "ratio"),
        *("error, ours", "error, fastest"),
    ]
    goals = {row.device for row in rows} == {"cpu"}
    cells = [
        [
            *(row.op, str(row.px), *_where(row, rows)),
            f"{row.ours:.2f}",
            f"{row.low:.2f}-{row.high:.2f}",
            row.fastest,
            f"{row.fastest_ns:.2f}",
            against(row.ratio, row.noise, goal(row.op, row.px) if goals and row.dtype == "float32" else None)
            + ("" if row.steady else ", unsteady"),
            f"{row.noise:.1%}",
            against(row.fft_ratio, row.noise, fft_goal(row.op) if goals and row.dtype == "float32" else None),
            row.extra or "",
            shown(row.extra_ratio),
            shown(row.error, "{:.1e}"),
            shown(row.fastest_error, "{:.1e}"),
        ]
        for row in rows
    ]
    return grid(head, cells)


def every_baseline(rows: Sequence[Row], op: str) -> str:
    """ns per value of every baseline of an op, a line for each size and thread count."""
    chosen = [row for row in rows if row.op == op]
    names = [n for n in dict.fromkeys(name for row in chosen for name in row.timings) if n != AGAIN]
    cells = []
    for row in chosen:
        times = [
            shown(row.timings[n]["median"]) if n in row.timings else "failed" if n in row.failures else ""
            for n in names
        ]
        cells.append([str(row.px), *_where(row, chosen), *times])
    return grid(["px", *_varying(chosen), *("ours" if n == OURS else n for n in names)], cells)


def sources(rows: Sequence[Row]) -> str:
    """Every baseline that took part: where it comes from, what it computes, and its largest error."""
    known: dict[str, dict[str, Any]] = {}
    worst: dict[str, float] = {}
    for row in rows:
        for name, timing in row.timings.items():
            known.setdefault(name, timing)
            if timing["error"] is not None:
                worst[name] = max(worst.get(name, 0.0), timing["error"])
    cells = [
        [
            name,
            timing["source"],
            "the same" if timing["same"] else f"the nearest thing: {timing['difference']}",
            shown(worst.get(name), "{:.1e}"),
        ]
        for name, timing in known.items()
        if name not in (OURS, AGAIN)
    ]
    return grid(["baseline", "source", "computes", "largest error"], cells)


def numbers(entries: Sequence[dict[str, Any]], pattern: str = "{:.2f}") -> str:
    """Any list of flat results: the columns are the keys."""
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    cells = [
        [pattern.format(v) if isinstance(v := entry.get(n), float) else shown(v, "{}") for n in names]
        for entry in entries
    ]
    return grid([name.replace("_", " ") for name in names], cells)


def shares(entries: Sequence[dict[str, Any]]) -> str:
    """Each op's speed as parts of the machine's limits."""
    head = ["op", "px", "threads", "dense GFLOP/s", "of GEMM peak", "GB/s", "of copy", "of time: noise"]
    cells = [
        [
            s["op"],
            str(s["px"]),
            str(s["threads"]),
            shown(s["dense_gflop_s"], "{:.0f}"),
            shown(s["of_gemm_peak"], "{:.0%}"),
            shown(s["gb_s"], "{:.1f}"),
            shown(s["of_copy"], "{:.0%}"),
            shown(s["of_time_noise"], "{:.0%}"),
        ]
        for s in entries
    ]
    return grid(head, cells)


def sweep(entries: Sequence[dict[str, Any]], varied: str, unit: str) -> str:
    """One of the sweeps: ours and the eager form as `varied` grows."""
    names = [n for n in ("op", "px", "threads") if any(n in e for e in entries)]
    head = [*names, varied.replace("_", " "), f"ours, {unit}", f"{entries[0]['other_name']}, {unit}", "ratio"]
    cells = [
        [
            *(str(e[n]) for n in names),
            f"{e[varied]:g}",
            f"{e['ours']:.2f}",
            f"{e['other']:.2f}",
            against(e["ratio"], e["noise"]),
        ]
        for e in entries
    ]
    return grid(head, cells)


def host(entries: Sequence[dict[str, Any]]) -> str:
    """Host microseconds of a call."""
    head = ["op", "ours, us", "the same again", "with a key given", f"{entries[0]['other_name']}, us"]
    cells = [
        [
            e["op"],
            f"{e['ours']:.1f}",
            f"{e['again']:.1f}",
            shown(e.get("key_given"), "{:.1f}"),
            f"{e['other']:.1f}",
        ]
        for e in entries
    ]
    return grid(head, cells)
