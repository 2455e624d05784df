# SPDX-License-Identifier: Apache-2.0
"""A result on disk: bench.json, which is read back, and its tables, bench.md."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError, user_errors
from ..files import save_json
from .cases import HEADLINE, NOISY, bytes_of, dense_operations
from .rows import Row
from .timing import AGAIN, OURS, differs

FORMAT = "softdiff bench 1"
JSON, MARKDOWN = "bench.json", "bench.md"
Column = tuple[str, Callable[[Any], str]]


def new_folder(out: str | None, device: str, file: str = JSON) -> Path:
    """The folder for a new result; UserError where it already holds one, which is named `file`."""
    if out is None:
        now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
        out = f"benchmark-results/{now}-{device}"
    folder = Path(out)
    if (folder / file).exists():
        raise UserError(f"--out: {folder} already holds a result; choose another folder or remove it")
    with user_errors("--out: "):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def rounded(value: Any) -> Any:
    """Six digits, more than any clock has, and None for infinities, which JSON lacks."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return value


def save(folder: Path, result: dict[str, Any], rows: list[Row]) -> Path:
    """Writes bench.json, whole or not at all."""
    path = folder / JSON
    save_json(path, rounded({"format": FORMAT, **result, "rows": [asdict(row) for row in rows]}))
    return path


def load(path: str) -> tuple[dict[str, Any], list[Row]]:
    """A result from its file or folder. UserError where it is none, or has another format."""
    file = Path(path) / JSON if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file (expected {JSON} of a run of `softdiff bench`, or its folder)")
    with user_errors(f"{file}: "):
        text = file.read_text(encoding="utf-8")
    try:
        result = json.loads(text)
        if not isinstance(result, dict) or result.get("format") != FORMAT:
            got = result.get("format") if isinstance(result, dict) else type(result).__name__
            raise UserError(f"{file}: expected a result of `softdiff bench` ({FORMAT!r}), got {got!r}")
        names = {f.name for f in fields(Row)}
        rows = [Row(**{k: v for k, v in row.items() if k in names}) for row in result.pop("rows")]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: not a complete result ({type(error).__name__}: {error})") from error
    return result, rows


def shown(value: float | None, pattern: str = "{:.2f}") -> str:
    """A number as text; an empty text where there is none."""
    return "" if value is None else pattern.format(value)


def number(key: str, pattern: str = "{:.2f}", head: str | None = None) -> Column:
    """The column of a number in flat entries; empty where an entry lacks it."""
    return head or key.replace("_", " "), lambda entry: shown(entry.get(key), pattern)


def against(ratio: float | None, noise: float, goal: float | None = None) -> str:
    """A ratio as text: "none" where it is within the noise, and whether it reaches the goal."""
    if ratio is None:
        return ""
    text = f"{ratio:.2f}" if differs(ratio, noise) else "none"
    if goal is None:
        return text
    return f"{text} (goal {goal:g}{'' if ratio >= goal else ', missed'})"


def table(columns: Sequence[Column], entries: Iterable[Any]) -> str:
    """A Markdown table that also lines up in a terminal: a line for each entry."""
    lines = [[head for head, _ in columns], *([cell(entry) for _, cell in columns] for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _where(rows: Sequence[Row]) -> list[Column]:
    """What tells the rows apart, beyond op and size; columns that never vary are left out."""
    names = [n for n in ("dtype", "backend") if len({getattr(row, n) for row in rows}) > 1]
    return [(n, lambda row, n=n: str(getattr(row, n))) for n in (*names, "threads")]  # type: ignore[misc]


def _goal(row: Row) -> float | None:
    """The ratio to the fastest baseline that the kernels are built for: float32 on a CPU."""
    if row.device != "cpu" or row.dtype != "float32" or row.op not in HEADLINE or not 32 <= row.px <= 512:
        return None
    return 5.0 if row.px <= 128 else 4.0


def _fft_goal(row: Row) -> float | None:
    """The same for the ratio to the FFT-DCT."""
    return 25.0 if row.device == "cpu" and row.dtype == "float32" and row.op == "corrupt" else None


def comparison(rows: Sequence[Row]) -> str:
    """Ours beside the fastest baseline, a line for each op, size, dtype, backend and thread count."""
    columns: list[Column] = [
        ("op", lambda r: r.op),
        ("px", lambda r: str(r.px)),
        *_where(rows),
        ("ours, ns/px", lambda r: f"{r.ours:.2f}"),
        ("20-80 %", lambda r: f"{r.low:.2f}-{r.high:.2f}"),
        ("fastest", lambda r: r.fastest),
        ("ns/px", lambda r: f"{r.fastest_ns:.2f}"),
        ("ratio", lambda r: against(r.ratio, r.noise, _goal(r)) + ("" if r.steady else ", unsteady")),
        ("noise", lambda r: f"{r.noise:.1%}"),
        ("to FFT-DCT", lambda r: against(r.fft_ratio, r.noise, _fft_goal(r))),
        ("other", lambda r: r.extra or ""),
        ("ratio", lambda r: shown(r.extra_ratio)),
        ("error, ours", lambda r: shown(r.error, "{:.1e}")),
        ("error, fastest", lambda r: shown(r.fastest_error, "{:.1e}")),
    ]
    return table(columns, rows)


def _every_baseline(rows: Sequence[Row], op: str) -> str:
    """ns per value of every baseline of an op, a line for each size and thread count."""
    chosen = [row for row in rows if row.op == op]
    names = [n for n in dict.fromkeys(name for row in chosen for name in row.timings) if n != AGAIN]

    def time(row: Row, name: str) -> str:
        if name in row.timings:
            return shown(row.timings[name]["median"])
        return "failed" if name in row.failures else ""

    columns: list[Column] = [("px", lambda row: str(row.px)), *_where(chosen)]
    columns += [("ours" if n == OURS else n, partial(time, name=n)) for n in names]
    return table(columns, chosen)


def _sources(rows: Sequence[Row]) -> str:
    """Every baseline that took part: where it comes from, what it computes, and its largest error."""
    entries: dict[str, dict[str, Any]] = {}
    for row in rows:
        for name, timing in row.timings.items():
            entry = entries.setdefault(name, {**timing, "name": name, "worst": None})
            if timing["error"] is not None:
                entry["worst"] = max(entry["worst"] or 0.0, timing["error"])
    columns: list[Column] = [
        ("baseline", lambda e: e["name"]),
        ("source", lambda e: e["source"]),
        ("computes", lambda e: "the same" if e["same"] else f"the nearest function: {e['difference']}"),
        number("worst", "{:.1e}", "largest error"),
    ]
    return table(columns, (e for name, e in entries.items() if name not in (OURS, AGAIN)))


def share(row: Row, limits: dict[str, float], normal_ns: float) -> dict[str, Any]:
    """An op's speed as fractions of the machine's limits at the row's thread count.

    dense_gflop_s: operations of the dense matrix form per second; above the GEMM's peak where the kernel does
    fewer. normal_ns: nanoseconds of one standard normal.
    """
    dense = dense_operations(row.op, row.px) / row.ours
    bandwidth = bytes_of(row.op) / row.ours
    return {
        "op": row.op,
        "px": row.px,
        "threads": row.threads,
        "dense_gflop_s": dense,
        "of_gemm_peak": dense / limits["gemm_gflop_s"],
        "gb_s": bandwidth,
        "of_copy": bandwidth / limits["copy_gb_s"],
        "of_time_noise": normal_ns / row.ours if row.op in NOISY else None,
    }


_SHARES = (
    *(number("op", "{}"), number("px", "{}"), number("threads", "{}")),
    *(number("dense_gflop_s", "{:.0f}", "dense GFLOP/s"), number("of_gemm_peak", "{:.0%}", "of GEMM peak")),
    *(number("gb_s", "{:.1f}", "GB/s"), number("of_copy", "{:.0%}")),
    number("of_time_noise", "{:.0%}", "of time: noise"),
)
_LIMITS = (
    *(number("threads", "{}"), number("copy_gb_s", "{:.1f}", "copy, GB/s")),
    number("gemm_gflop_s", "{:.0f}", "float32 GEMM, GFLOP/s"),
    *(number("normal_ns", head="our normal, ns"), number("randn_ns", head="torch.randn, ns")),
)


def _flat(entries: Sequence[dict[str, Any]]) -> str:
    """Any list of flat results: the columns are the keys."""
    names = dict.fromkeys(name for entry in entries for name in entry)
    return table(
        [number(n, "{:.2f}" if isinstance(entries[0].get(n), float) else "{}") for n in names], entries
    )


def _sweep(entries: Sequence[dict[str, Any]], varied: str, unit: str) -> str:
    """One of the sweeps: ours and the eager form as `varied` grows."""
    names = [n for n in ("op", "px", "threads") if n in entries[0]]
    columns = [
        *(number(n, "{}") for n in names),
        number(varied, "{:g}"),
        number("ours", head=f"ours, {unit}"),
        number("other", head=f"{entries[0]['other_name']}, {unit}"),
        ("ratio", lambda e: against(e["ratio"], e["noise"])),
    ]
    return table(columns, entries)


def _host(entries: Sequence[dict[str, Any]]) -> str:
    """Host microseconds of a call."""
    columns = [
        *(number("op", "{}"), number("ours", "{:.1f}", "ours, us")),
        *(number("again", "{:.1f}", "the same again"), number("key_given", "{:.1f}", "with a key given")),
        number("other", "{:.1f}", f"{entries[0]['other_name']}, us"),
    ]
    return table(columns, entries)


_LEGEND = """\
Times are ns per value of the result (batch x 3 channels x height x width): medians with their 20 % and
80 % quantiles. Each op is timed in rotation with all its baselines, drawing the noise and setting up the
operator included; blur_std is drawn for each sample, log-uniformly from 0.01 px to a third of the side. A
ratio says how many times as long the other takes. "Fastest" is the fastest of all that compute the same
and that people write, compile or install. It leaves out the DCTs by FFT in PyTorch, which have a ratio of
their own, and what few would write, which is under "other". "Noise" is how far from 1 a ratio may be by
chance: the difference between the same call timed twice, or the 95 % intervals of the medians, whichever
is more. A difference below it is printed as none. Errors are relative (L2), against the specification in
float64, with the same noise given to both. An unsteady ratio was taken while other programs ran."""
_KEPT = "The C library was told to keep freed memory, so that no time includes page faults of new results."
_NOT_KEPT = "The C library's allocator was left as it is: some times include page faults of new results."
_ABOUT_PARTS = """\
The fused op writes its result once and draws the noise in cache; the noise alone is written, too."""
_ABOUT_LIMITS = """\
The dense form's operations are those of the op by plain matrix products. The kernels do fewer, so they may
exceed the GEMM's peak. Small inputs stay in the caches, so the copy's rate may be exceeded, too. The last
column is what `normal` takes alone, relative to the op."""
_ABOUT_MEMORY = """\
The growth of the resident set's high water mark in a new process, pages of code included. Linux counts it
to about 0.25 MiB, so 0 means anything below that."""
_ABOUT_HOST = """\
Microseconds until a call on one image of 8 x 8 is done, whose arithmetic takes less than one; on a GPU,
until it returns. With `key=None` a key is drawn from torch's generator first."""


def about_machine(result: dict[str, Any]) -> str:
    """The machine, the versions and the command of a result, as lines of text."""
    m = result["machine"]
    gpu = m["gpu"]
    changed = " with changes" if m["changed_since_commit"] else ""
    commit = f"commit {m['commit']}{changed}" if m["commit"] else "installed from a wheel"
    packages = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    lines = [
        f"{m['cpu']}, {m['cores']} cores, {m['system']}; our instruction set {m['instruction_set']}, "
        f"PyTorch's {m['torch_cpu']} with BLAS {m['torch_blas']}.",
        *([f"{gpu['name']}, {gpu['memory_gib']} GiB, CUDA {gpu['cuda']}."] if gpu else []),
        f"Python {m['python']}, {packages}.",
        f"softdiff_kernels {m['softdiff_kernels']}, {commit}, {m['date']}, seed {result['seed']}.",
        f"Made by `{result['command']}` in {result['seconds']:.0f} s, load average "
        f"{shown(m['load_average'])} at its start.",
    ]
    if not result["complete"]:
        lines.append("**Stopped before its end: what is missing was not measured.**")
    return "  \n".join(lines)


def _ops(result: dict[str, Any], rows: list[Row]) -> list[str]:
    sections = [f"{_LEGEND} {_KEPT if result['memory_kept'] else _NOT_KEPT}", comparison(rows)]
    limits = [{"threads": count, **rates} for count, rates in result["limits"].items()]
    sections += ["## The machine's limits, measured", table(_LIMITS, limits)]
    sections += [_ABOUT_LIMITS, table(_SHARES, result["shares"])]
    if result["parts"]:
        sections += ["## The parts of corrupt, ns/px", _ABOUT_PARTS, _flat(result["parts"])]
    for op in dict.fromkeys(row.op for row in rows):
        sections += [f"## {op}: every baseline, ns/px", _every_baseline(rows, op)]
    sections += ["## The baselines", _sources(rows)]
    missing = {
        f"- {row.op}, {row.px} px, {row.threads} threads: {name}: {why}"
        for row in rows
        for name, why in row.failures.items()
    }
    missing |= {f"- {name}: {why}" for name, why in result["absent"].items()}
    return [*sections, "Baselines that did not run:", "\n".join(sorted(missing))] if missing else sections


def document(result: dict[str, Any], rows: list[Row]) -> str:
    """Everything that was measured, in Markdown."""
    sections = ["# softdiff bench", about_machine(result)]
    if rows:
        sections += ["## The ops beside their baselines", *_ops(result, rows)]
    sweeps = result["sweeps"]
    if sweeps["blur"]:
        sections += ["## Cost against blur_std: corrupt, ns/px", _sweep(sweeps["blur"], "blur_std", "ns/px")]
    if sweeps["batch"]:
        sections += ["## Cost against batch size, us an image", _sweep(sweeps["batch"], "batch", "us")]
    if sweeps["host"]:
        sections += ["## Host time of a call", _ABOUT_HOST, _host(sweeps["host"])]
    if result["memory"]:
        sections += ["## Memory beyond inputs and outputs, MiB", _ABOUT_MEMORY, _flat(result["memory"])]
    if result["problems"]:
        sections += ["## What failed", "\n".join(f"- {n}: {why}" for n, why in result["problems"].items())]
    return "\n\n".join(sections) + "\n"
