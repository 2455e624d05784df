# SPDX-License-Identifier: Apache-2.0
"""A result on disk: bench.json, which is read back, and its tables, bench.md."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError, user_errors
from ..files import save_json
from .cases import NOISY, bytes_of, dense_operations
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
        got = result.get("format") if isinstance(result, dict) else type(result).__name__
        rows = [Row(**row) for row in result.pop("rows")] if got == FORMAT else []
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: not a complete result ({type(error).__name__}: {error})") from error
    if got != FORMAT:
        raise UserError(f"{file}: expected a result of `softdiff bench` ({FORMAT!r}), got {got!r}")
    return result, rows


def shown(value: float | None, pattern: str = "{:.2f}") -> str:
    """A number as text; an empty text where there is none."""
    return "" if value is None else pattern.format(value)


def number(key: str, pattern: str = "{:.2f}", head: str | None = None) -> Column:
    """The column of a number in flat entries; empty where an entry lacks it."""
    return head or key.replace("_", " "), lambda entry: shown(entry.get(key), pattern)


def against(ratio: float | None, noise: float) -> str:
    """A ratio as text: "none" where it is within the noise."""
    return shown(ratio) if ratio is None or differs(ratio, noise) else "none"


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
    return [number(name, "{}") for name in (*names, "threads")]


def comparison(rows: Sequence[Row]) -> str:
    """Ours beside the fastest baseline, a line for each op, size, dtype, backend and thread count."""
    columns: list[Column] = [
        *(number("op", "{}"), number("px", "{}"), *_where(rows), number("ours", head="ours, ns/px")),
        ("20-80 %", lambda r: f"{r['low']:.2f}-{r['high']:.2f}"),
        *(number("fastest", "{}"), number("fastest_ns", head="ns/px")),
        ("ratio", lambda r: against(r["ratio"], r["noise"]) + ("" if r["steady"] else ", unsteady")),
        number("noise", "{:.1%}"),
        ("to FFT-DCT", lambda r: against(r["fft_ratio"], r["noise"])),
        *(number("extra", "{}", "other"), number("extra_ratio", head="ratio")),
        *(number("error", "{:.1e}", "error, ours"), number("fastest_error", "{:.1e}", "error, fastest")),
    ]
    return table(columns, map(vars, rows))


def _every_baseline(rows: Sequence[Row]) -> str:
    """ns per value of every baseline of an op's rows, a line for each size and thread count."""
    names = dict.fromkeys(name for row in rows for name in row.timings if name != AGAIN)

    def time(row: dict[str, Any], name: str) -> str:
        if name in row["timings"]:
            return shown(row["timings"][name]["median"])
        return "failed" if name in row["failures"] else ""

    columns = [("ours" if n == OURS else n, partial(time, name=n)) for n in names]
    return table([number("px", "{}"), *_where(rows), *columns], map(vars, rows))


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
    dense, bandwidth = dense_operations(row.op, row.px) / row.ours, bytes_of(row.op) / row.ours
    return {
        **{"op": row.op, "px": row.px, "threads": row.threads},
        **{"dense_gflop_s": dense, "of_gemm_peak": dense / limits["gemm_gflop_s"]},
        **{"gb_s": bandwidth, "of_copy": bandwidth / limits["copy_gb_s"]},
        "of_time_noise": normal_ns / row.ours if row.op in NOISY else None,
    }


_SHARES: tuple[Column, ...] = (
    *(number("op", "{}"), number("px", "{}"), number("threads", "{}")),
    *(number("dense_gflop_s", "{:.0f}", "dense GFLOP/s"), number("of_gemm_peak", "{:.0%}", "of GEMM peak")),
    *(number("gb_s", "{:.1f}", "GB/s"), number("of_copy", "{:.0%}")),
    number("of_time_noise", "{:.0%}", "of time: noise"),
)
_LIMITS: tuple[Column, ...] = (
    *(number("threads", "{}"), number("copy_gb_s", "{:.1f}", "copy, GB/s")),
    number("gemm_gflop_s", "{:.0f}", "float32 GEMM, GFLOP/s"),
    *(number("normal_ns", head="our normal, ns"), number("randn_ns", head="torch.randn, ns")),
)


def _flat(entries: Sequence[Any]) -> str:
    """Flat entries; the columns are the keys, whose numbers all have the unit of the table's title."""
    keys = dict.fromkeys(key for entry in entries for key in entry)
    return table(
        [number(k, "{:.2f}" if isinstance(entries[0].get(k), float) else "{}") for k in keys], entries
    )


def _sweep(entries: Sequence[Any]) -> str:
    """A sweep: what is varied, ours and the eager form, in the unit of the table's title."""
    columns: dict[str, Column] = {
        **{key: number(key, "{:g}") for key in ("px", "threads", "blur_std", "batch")},
        **{"ours": number("ours"), "again": number("again", head="the same again")},
        "key_given": number("key_given", head="with a key given"),
        "other": number("other", head=entries[0]["other_name"]),
        "ratio": ("ratio", lambda e: against(e["ratio"], e["noise"])),
    }
    names = [number("op", "{}")] if "op" in entries[0] else []
    return table([*names, *(c for key, c in columns.items() if any(key in e for e in entries))], entries)


_LEGEND = """\
Times are ns per value of the result (batch x 3 channels x height x width): medians with their 20 % and
80 % quantiles, drawing the noise and setting up the operator included; blur_std is drawn for each sample,
log-uniformly from 0.01 px to a third of the side. blurring_corrupt is Blurring Diffusion's forward process,
`corrupt` with a floor and a scale; spectral_mix is its ancestral step, of two images, two masks and coloured
noise; the losses include their gradients. A ratio says how many times as long the other takes; it is
"none" where it is within the noise. "Fastest" is the fastest of all that compute the same and that people
write, compile or install, without the DCTs by FFT in PyTorch, which have a ratio of their own, and without
what few would write, which is under "other". Errors are relative (L2), against the specification in float64,
with the same noise given to both. An unsteady ratio was taken while other programs ran. docs/benchmarks.md
says how the calls are interleaved and what the noise is."""
_KEPT = "The C library was told to keep freed memory, so that no time includes page faults of new results."
_NOT_KEPT = "The C library's allocator was left as it is: some times include page faults of new results."
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


def _ops(result: dict[str, Any], rows: list[Row]) -> Iterator[str]:
    yield from (f"{_LEGEND} {_KEPT if result['memory_kept'] else _NOT_KEPT}", comparison(rows))
    limits = [{"threads": count, **rates} for count, rates in result["limits"].items()]
    yield from ("## The machine's limits, measured", table(_LIMITS, limits))
    yield from (_ABOUT_LIMITS, table(_SHARES, result["shares"]))
    for op in dict.fromkeys(row.op for row in rows):
        yield f"## {op}: every baseline, ns/px"
        yield _every_baseline([row for row in rows if row.op == op])
    yield from ("## The baselines", _sources(rows))
    missing = {
        f"{row.op}, {row.px} px, {row.threads} threads: {name}: {why}"
        for row in rows
        for name, why in row.failures.items()
    }
    missing |= {f"{name}: {why}" for name, why in result["absent"].items()}
    if missing:
        yield from ("Baselines that did not run:", _lines(sorted(missing)))


def _lines(entries: Iterable[str]) -> str:
    return "\n".join(f"- {entry}" for entry in entries)


def document(result: dict[str, Any], rows: list[Row]) -> str:
    """Everything that was measured, in Markdown."""
    sweeps, problems = result["sweeps"], result["problems"]
    sections = ["# softdiff bench", about_machine(result)]
    if rows:
        sections += ["## The ops beside their baselines", *_ops(result, rows)]
    for title, about, text, entries in (
        ("Cost against blur_std: corrupt, ns/px", "", _sweep, sweeps["blur"]),
        ("Cost against batch size, us an image", "", _sweep, sweeps["batch"]),
        ("Host time of a call, us", _ABOUT_HOST, _sweep, sweeps["host"]),
        ("Memory beyond inputs and outputs, MiB", _ABOUT_MEMORY, _flat, result["memory"]),
        ("What failed", "", _lines, [f"{name}: {why}" for name, why in problems.items()]),
    ):
        if entries:
            sections += [f"## {title}", about, text(entries)]
    return "\n\n".join(filter(None, sections)) + "\n"
