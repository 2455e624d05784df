# SPDX-License-Identifier: Apache-2.0
"""The report as Markdown, and the short table that is printed last. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import tables
from .parts import Outcome
from .targets import BACKENDS, Target, evaluate

_LEGEND = """\
Times are microseconds of a call on the device, by CUDA events: medians with 20 % and 80 % quantiles, each op
interleaved with its baselines, noise included, random data, blur_std drawn for each sample. Batches of about
256 MiB an image tensor rotate through buffers, so that none is in L2 when its turn comes. GB/s counts the
images that must be read and written, no more; "of copy" relates it to the measured bandwidth of a device
copy. The ratio is to the fastest baseline with the same digits, eager or compiled; "host us" is what the host
takes to enqueue a call on a tiny batch. Errors are relative (L2), against the specification in float64.
"by" is the backend; both were timed in the same interleaved run.
"soft_score_loss" goes through autograd, as a user calls it; "op alone" is its one launch, loss and gradient
together."""
_SMALL = """\
Blocks of 20 calls, from Python and as a CUDA graph, with the caches as the calls leave them. Where the host
is slower than the device, the first is the host's time."""


def _data(outcomes: Mapping[str, Outcome], name: str) -> dict[str, Any]:
    return outcomes[name].data if name in outcomes else {}


def _targets(outcomes: Mapping[str, Outcome]) -> list[Target]:
    bench = _data(outcomes, "bench")
    return evaluate(bench.get("rows", []), bench.get("launch_overhead_us", {}))


def _machine(found: Mapping[str, Any]) -> str:
    gpu, smi = found.get("gpu") or {}, found.get("smi") or {}
    lines = []
    if gpu:
        lines.append(
            f"{gpu['name']}, capability {gpu['capability']}, {gpu['multiprocessors']} multiprocessors, "
            f"L2 {gpu['l2_bytes'] / 2**20:.0f} MiB, memory {gpu['memory_bytes'] / 2**30:.0f} GiB, "
            f"CUDA {gpu['cuda']}."
        )
    else:
        lines.append(f"No GPU: {found.get('reason', 'unknown')}.")
    if smi:
        lines.append("nvidia-smi: " + ", ".join(f"{k} {v}" for k, v in smi.items()) + ".")
    versions = ("python", "torch", "triton", "numpy", "pytest", "softdiff_kernels")
    lines.append(", ".join(f"{name} {found.get(name) or 'absent'}" for name in versions) + ".")
    lines.append(
        f"{found.get('system')}, {found.get('cpus')} CPUs; commit {found.get('commit')}, {found.get('date')}."
    )
    return "  \n".join(lines)


def _correctness(found: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{found.get(s, 0)} {s}" for s in ("passed", "failed", "timeout", "skipped"))
    lines = [f"By {found.get('runner')}: {counts}."]
    for unit in found.get("units", []):
        for case in unit.get("failures", []):
            lines.append(
                f"- **{unit['name']}**, `{case['id']}`:\n\n```\n{case['message'].strip()[-1200:]}\n```"
            )
    lines += [f"- not run: {name}" for name in found.get("undone", [])]
    skipped = sorted({reason for unit in found.get("units", []) for reason in unit.get("skip_reasons", [])})
    lines += [f"- skipped: {reason}" for reason in skipped]
    return "\n".join(lines)


def _bench(found: Mapping[str, Any]) -> list[str]:
    rows, copy = found.get("rows", []), found.get("copy", {})
    out = [
        f"Copy of {found.get('copy_bytes', 0) / 2**30:.2f} GiB: {copy.get('median', 0) / 1e9:.0f} GB/s, "
        f"reads and writes together ({copy.get('low', 0) / 1e9:.0f}-{copy.get('high', 0) / 1e9:.0f}).",
        tables.full(rows, found.get("host_us", {})),
        "### Small batches",
        _SMALL,
        tables.small(rows),
    ]
    overhead = found.get("launch_overhead_us")
    if overhead:
        out += [
            "### Host microseconds of a call",
            tables.grid(["", "us"], [[k, f"{v:.1f}"] for k, v in overhead.items()]),
        ]
    for op in dict.fromkeys(r["op"] for r in rows):
        for dtype in dict.fromkeys(r["dtype"] for r in rows if r["op"] == op):
            title = f"### {op}, {dtype}: every baseline (* fewer digits)"
            out += [title, tables.every_baseline(rows, op, dtype)]
    failures = {
        f"{r['op']} {r['size']} px {r['dtype']}, {n}": why for r in rows for n, why in r["failures"].items()
    }
    failures |= found.get("problems", {})
    if failures:
        out += ["### What did not run", "\n".join(f"- {name}: {why}" for name, why in failures.items())]
    if found.get("undone"):
        out.append("Not reached in time: " + "; ".join(found["undone"]) + ".")
    return out


def whole(outcomes: Mapping[str, Outcome]) -> str:
    """The report in Markdown."""
    sections = ["# GPU report", _machine(_data(outcomes, "environment")), tables.parts(outcomes)]
    sections += ["## Targets", tables.targets(_targets(outcomes))]
    for backend in BACKENDS:
        tests = _data(outcomes, f"correctness {backend}")
        if tests:
            sections += [f"## Correctness of {backend}", _correctness(tests)]
    lines = [
        [backend, tool, r["status"], str(r["errors"]), r["said"].replace("|", "/")]
        for backend in BACKENDS
        for tool, r in _data(outcomes, f"sanitizer {backend}").get("tools", {}).items()
    ]
    if lines:
        sections += ["## compute-sanitizer", tables.grid(["", "tool", "ended", "errors", ""], lines)]
    if _data(outcomes, "bench"):
        sections += ["## Benchmarks", _LEGEND, *_bench(_data(outcomes, "bench"))]
    faster = _data(outcomes, "bench").get("faster", {})
    if faster:
        lines = [[op, ", ".join(f"{n} {who}" for n, who in each.items())] for op, each in faster.items()]
        sections += ["## The faster backend, by px", tables.grid(["op", "px and backend"], lines)]
    again = _data(outcomes, "tuned bench").get("rows", [])
    if again:
        sections += ["## By the tuned table", tables.tuned(_data(outcomes, "bench").get("rows", []), again)]
    kernels = _data(outcomes, "ncu").get("kernels", {})
    if kernels:
        lines = [
            [f"{n}, {backend}", *(f"{k} {v:.0f}" for k, v in values.items())]
            for n, r in kernels.items()
            for backend, values in r.get("metrics", {}).items()
        ]
        text = "\n".join("- " + ", ".join(line) for line in lines)
        sections += ["## Nsight Compute", text or "no metric was read"]
    return "\n\n".join(sections) + "\n"


def short(outcomes: Mapping[str, Outcome]) -> str:
    """The parts and the targets, in at most 40 lines."""
    ordered = {name: outcomes[name] for name in outcomes}
    text = tables.parts(ordered)
    if "bench" in outcomes and outcomes["bench"].status != "absent":
        text += "\n\n" + tables.targets(_targets(outcomes))
    return "\n".join(text.splitlines()[:40])
