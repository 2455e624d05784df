# SPDX-License-Identifier: Apache-2.0
"""The tables, as text for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .rows import OURS, Row

_LEGEND = """\
Times are ns per value of the result (batch x 3 channels x height x width): medians with their 20 % and 80 %
quantiles, each op timed in turn with all its baselines, each after one untimed call of its own (under
--unsettled without it), noise and the set-up of the operator included, blur_std drawn for each sample. A
ratio says how many times as long the other takes; "fastest" leaves out the FFT-DCT, which has a ratio of its
own, and what few would write, which is under "other". Errors are relative (L2), against the specification in
float64, with the noise given to both. An unsteady ratio was taken while other programs ran: take it again."""


def goal(op: str, px: int) -> float | None:
    """The ratio to the fastest baseline that the kernels are built for."""
    if op == "corrupt":
        return 3.5 if px <= 64 else 3.0
    return {"momentum_step": 3.5, "soft_score_loss": 4.0}.get(op)


def fft_goal(op: str) -> float | None:
    """The same for the ratio to the FFT-DCT."""
    return 25.0 if op == "corrupt" else None


def _shown(value: float | None, pattern: str = "{:.2f}") -> str:
    return "" if value is None else pattern.format(value)


def _against(ratio: float | None, wanted: float | None) -> str:
    if ratio is None:
        return ""
    if wanted is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} (goal {wanted:g}{'' if ratio >= wanted else ', missed'})"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that is Markdown and lines up in a terminal."""
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * w for w in widths], *rows]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def comparison(rows: Sequence[Row]) -> str:
    """Ours beside the fastest baseline, a line for each op, size and thread count."""
    head = [
        "op",
        "px",
        "threads",
        "ours, ns/px",
        "20-80 %",
        "fastest",
        "ns/px",
        "ratio",
        "to FFT-DCT",
        "other",
        "ratio",
        "error, ours",
        "error, fastest",
    ]
    cells = [
        [
            row.op,
            str(row.px),
            str(row.threads),
            f"{row.ours:.2f}",
            f"{row.low:.2f}-{row.high:.2f}",
            row.fastest,
            f"{row.fastest_ns:.2f}",
            _against(row.ratio, goal(row.op, row.px)) + ("" if row.steady else ", unsteady"),
            _against(row.fft_ratio, fft_goal(row.op)),
            row.extra or "",
            _shown(row.extra_ratio),
            _shown(row.error, "{:.1e}"),
            _shown(row.fastest_error, "{:.1e}"),
        ]
        for row in rows
    ]
    return _grid(head, cells)


def every_baseline(rows: Sequence[Row], op: str) -> str:
    """ns per value of every baseline of an op, a line for each size and thread count."""
    chosen = [row for row in rows if row.op == op]
    names = list(dict.fromkeys(name for row in chosen for name in row.timings))
    cells = []
    for row in chosen:
        times = [_shown(row.timings[n]["median"]) if n in row.timings else "failed" for n in names]
        cells.append([str(row.px), str(row.threads), *times])
    return _grid(["px", "threads", *("ours" if n == OURS else n for n in names)], cells)


def _parts(parts: Sequence[dict[str, Any]]) -> str:
    names = [name for name in parts[0] if name not in ("px", "threads")]
    cells = [[str(p["px"]), str(p["threads"]), *(f"{p[n]:.2f}" for n in names)] for p in parts]
    return _grid(["px", "threads", *names], cells)


def _shares(shares: Sequence[dict[str, Any]]) -> str:
    head = ["op", "px", "threads", "dense GFLOP/s", "of GEMM peak", "GB/s", "of copy", "of time: noise"]
    cells = [
        [
            s["op"],
            str(s["px"]),
            str(s["threads"]),
            _shown(s["dense_gflop_s"], "{:.0f}"),
            _shown(s["of_gemm_peak"], "{:.0%}"),
            _shown(s["gb_s"], "{:.1f}"),
            _shown(s["of_copy"], "{:.0%}"),
            _shown(s["of_time_noise"], "{:.0%}"),
        ]
        for s in shares
    ]
    return _grid(head, cells)


def _memory(memory: Sequence[dict[str, Any]]) -> str:
    names = [name for name in memory[0] if name not in ("px", "threads")]
    return _grid(
        ["px", "threads", *names],
        [[str(m["px"]), str(m["threads"]), *(f"{m[n]:.2f}" for n in names)] for m in memory],
    )


def _about(result: dict[str, Any]) -> str:
    m = result["machine"]
    changed = " with changes" if m["changed_since_commit"] else ""
    return "  \n".join(
        [
            f"{m['cpu']}, {m['cores']} cores, {m['system']}; our instruction set {m['instruction_set']}, "
            f"PyTorch's {m['torch_cpu']} with BLAS {m['torch_blas']}.",
            f"Python {m['python']}, torch {m['torch']}, numpy {m['numpy']}, scipy {m['scipy']}, "
            f"softdiff_kernels {m['softdiff_kernels']}, commit {m['commit']}{changed}, {m['date']}, "
            f"seed {result['seed']}.",
            f"Made by `{result['command']}`, load average {_shown(m['load_average'])} at its start.",
        ]
    )


def _limits(limits: dict[str, dict[str, float]]) -> str:
    rates = "; ".join(
        f"{count} threads: copy {rate['copy_gb_s']:.1f} GB/s, float32 GEMM {rate['gemm_gflop_s']:.0f} GFLOP/s"
        for count, rate in limits.items()
    )
    return (
        f"Measured limits: {rates}. The dense form's operations are those of the op by plain matrix "
        "products; the kernels do fewer, so that they may pass the GEMM's peak. Small inputs stay in the "
        "caches, so that the copy's rate may be passed, too. The last column is what `normal` takes alone, "
        "beside the op."
    )


def document(result: dict[str, Any], rows: Sequence[Row]) -> str:
    """The whole result in Markdown."""
    sections = ["# The ops beside their baselines, float32", _about(result), _LEGEND, comparison(rows)]
    for op in dict.fromkeys(row.op for row in rows):
        sections += [f"## {op}: every baseline, ns/px", every_baseline(rows, op)]
    failures = [
        f"- {r.op}, {r.px} px, {r.threads} threads: {n}: {why}" for r in rows for n, why in r.failures.items()
    ]
    if failures:
        sections += ["## Baselines that did not run", "\n".join(failures)]
    sections += [
        "## The parts of corrupt, ns/px",
        "The fused op writes its result once and makes the noise in cache; the noise alone is written, too.",
        _parts(result["parts"]),
        "## Parts of the machine's limits",
        _limits(result["limits"]),
        _shares(result["shares"]),
    ]
    if result["memory"]:
        sections += [
            "## Memory beyond inputs and outputs, MiB",
            "The growth of the resident set's high water mark in a fresh process, pages of code included. "
            "Linux counts it to about 0.25 MiB, so that 0 stands for anything below that.",
            _memory(result["memory"]),
        ]
    return "\n\n".join(sections) + "\n"
