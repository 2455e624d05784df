# SPDX-License-Identifier: Apache-2.0
"""A whole result in Markdown."""

from __future__ import annotations

from typing import Any

from . import dominated, end_to_end, tables
from .rows import Row
from .tables import shown

_LEGEND = """\
Times are ns per value of the result (batch x 3 channels x height x width): medians with their 20 % and
80 % quantiles, each op timed in turn with all its baselines, noise and the set-up of the
operator included, blur_std drawn for each sample, log-uniformly from 0.01 px to a third of the side. A
ratio says how many times as long the other takes. "Fastest" is the fastest of all that compute the same
and that people write, compile or install; it leaves out the DCTs by FFT, which have a ratio of their
own, and what few would write, which is under "other". "Noise" is how far from 1 a ratio may be by
chance: the same call timed twice, or the 95 % intervals of the medians, whichever is more; a difference
below it is printed as none. Errors are relative (L2), against the specification in float64, with the
noise given to both. An unsteady ratio was taken while other programs ran."""
_KEPT = "The C library was told to keep freed memory, so that no time is for page faults of fresh results."
_NOT_KEPT = "The C library's allocator was left as it is: some times include page faults of fresh results."
_PARTS = """\
The fused op writes its result once and makes the noise in cache; the noise alone is written, too."""
_LIMITS = """\
The dense form's operations are those of the op by plain matrix products; the kernels do fewer, so that
they may pass the GEMM's peak. Small inputs stay in the caches, so that the copy's rate may be passed,
too. The last column is what `normal` takes alone, beside the op."""
_MEMORY = """\
The growth of the resident set's high water mark in a fresh process, pages of code included. Linux
counts it to about 0.25 MiB, so that 0 stands for anything below that."""
_HOST = """\
Microseconds until a call on one image of 8 x 8 is done, whose arithmetic is under one; on a GPU, until
it returns. With `key=None` a key is drawn from torch's generator first."""


def _machine(result: dict[str, Any]) -> str:
    m = result["machine"]
    gpu = m["gpu"]
    changed = " with changes" if m["changed_since_commit"] else ""
    commit = f"commit {m['commit']}{changed}" if m["commit"] else "installed from a wheel"
    packages = ", ".join(f"{name} {found}" for name, found in m["versions"].items())
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


def _limits(result: dict[str, Any]) -> str:
    cells = [
        [
            count,
            f"{rate['copy_gb_s']:.1f}",
            f"{rate['gemm_gflop_s']:.0f}",
            f"{rate['normal_ns']:.2f}",
            f"{rate['randn_ns']:.2f}",
        ]
        for count, rate in result["limits"].items()
    ]
    head = ["threads", "copy, GB/s", "float32 GEMM, GFLOP/s", "our normal, ns", "torch.randn, ns"]
    return tables.grid(head, cells)


def _ops(result: dict[str, Any], rows: list[Row]) -> list[str]:
    kept = _KEPT if result["memory_kept"] else _NOT_KEPT
    sections = [f"{_LEGEND} {kept}", tables.comparison(rows)]
    sections += [
        "## The machine's limits, measured",
        _limits(result),
        _LIMITS,
        tables.shares(result["shares"]),
    ]
    if result["parts"]:
        sections += ["## The parts of corrupt, ns/px", _PARTS, tables.numbers(result["parts"])]
    for op in dict.fromkeys(row.op for row in rows):
        sections += [f"## {op}: every baseline, ns/px", tables.every_baseline(rows, op)]
    sections += ["## The baselines", tables.sources(rows)]
    missing = {
        f"- {row.op}, {row.px} px, {row.threads} threads: {name}: {why}"
        for row in rows
        for name, why in row.failures.items()
    }
    missing |= {f"- {name}: {why}" for name, why in result["absent"].items()}
    if missing:
        sections += ["Baselines that did not run:", "\n".join(sorted(missing))]
    return sections


def _sweeps(found: dict[str, Any]) -> list[str]:
    sections = []
    if found.get("blur"):
        sections += [
            "## Cost against blur_std: corrupt, ns/px",
            tables.sweep(found["blur"], "blur_std", "ns/px"),
        ]
    if found.get("batch"):
        sections += ["## Cost against batch size, us an image", tables.sweep(found["batch"], "batch", "us")]
    if found.get("host"):
        sections += ["## Host time of a call", _HOST, tables.host(found["host"])]
    return sections


def document(result: dict[str, Any], rows: list[Row]) -> str:
    """Everything that was measured."""
    sections = ["# softdiff bench", _machine(result)]
    if rows:
        sections += ["## The ops beside their baselines", *_ops(result, rows)]
    sections += _sweeps(result["sweeps"])
    if result["end_to_end"]:
        sections += ["## A step of the trainer and of the sampler", end_to_end.table(result["end_to_end"])]
    if result["dominated"]:
        sections += ["## Where the ops dominate", dominated.table(result["dominated"])]
    if result["memory"]:
        sections += [
            "## Memory beyond inputs and outputs, MiB",
            _MEMORY,
            tables.numbers(result["memory"]),
        ]
    if result["problems"]:
        sections += ["## What failed", "\n".join(f"- {n}: {why}" for n, why in result["problems"].items())]
    return "\n\n".join(sections) + "\n"
