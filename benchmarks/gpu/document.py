# SPDX-License-Identifier: Apache-2.0
"""The report as Markdown, and the short table that is printed last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from softdiff_kernels.bench.report import Column, about_machine, number, shown, table

from .parts import Outcome
from .targets import BACKENDS, Target, evaluate, faster, predicted

Data = Mapping[str, Any]
Outcomes = Mapping[str, Outcome]
_LEGEND = """\
Times are microseconds of a call on the device, by CUDA events: medians with 20 % and 80 % quantiles, each op
interleaved with its baselines, noise included, random data, blur_std drawn for each sample. Batches of about
256 MiB an image tensor rotate through buffers, so that none is in L2 when its turn comes. GB/s counts only
the images that must be read and written; "of copy" relates it to the measured bandwidth of a device copy.
The ratio is to the fastest baseline with the same digits, eager or compiled; "noise" is how far from 1 it may
be by chance. "host us" is what the host takes to enqueue a call on a tiny batch. Errors are relative (L2),
against the specification in float64. "by" is the backend; all were timed in the same interleaved run.
"soft_score_loss" includes autograd, as a user calls it; "op alone" is its one launch, loss and gradient
together."""
_SMALL = """\
Blocks of 20 calls ("small"), and the same as a CUDA graph ("graph"), with the caches as the calls leave them.
Where the host is slower than the device, the time of a small batch is the host's."""


def _us(row: Data, key: str = "ours") -> str:
    """A time in microseconds of a call; the engine keeps ns for each value of the result."""
    return f"{row[key] * row['values'] / 1e3:.1f}"


def targets(results: Sequence[Target]) -> str:
    """A line for a target; for each backend what was reached, and whether that is enough."""

    def wanted(each: Sequence[Target]) -> str:
        values = ", ".join(dict.fromkeys(f"{t.wanted:g}" for t in each))
        return f"{'at most ' if each[0].most else ''}{values} {each[0].unit}"

    columns: list[Column] = [("target", lambda each: each[0].what), ("wanted", wanted)]
    for i, backend in enumerate(BACKENDS):
        columns.append((backend, lambda each, i=i: shown(each[i].got, "{:.1f}")))
        columns.append(("", lambda each, i=i: each[i].verdict))
    whats = dict.fromkeys(target.what for target in results)
    return table(columns, [[t for t in results if t.what == what] for what in whats])


def results(rows: Iterable[Data], host: Mapping[str, float] | None = None) -> str:
    """A line for each op, size, batch, dtype and backend.

    host: microseconds of the host for a call, by op, "OP, cuda" for that backend.
    """

    def of_host(row: Data) -> str:
        name = {"triton": row["op"], "cuda": f"{row['op']}, cuda"}.get(row["backend"], "")
        return shown((host or {}).get(name), "{:.1f}")

    columns: list[Column] = [
        *(number("op", "{}"), number("px", "{}"), number("batch", "{}", "B"), number("dtype", "{}")),
        *(number("kind", "{}"), number("backend", "{}", "by"), ("us", _us)),
        ("20-80 %", lambda r: f"{_us(r, 'low')}-{_us(r, 'high')}"),
        *(number("error", "{:.1e}"), number("gb_s", "{:.0f}", "GB/s"), number("of_copy", "{:.0%}")),
        ("predicted", lambda r: shown(predicted(r), "{:.0f}%")),
        *(number("fastest", "{}", "fastest baseline"), ("us", lambda r: _us(r, "fastest_ns"))),
        *(number("ratio"), number("noise", "{:.1%}")),
        *(number("fastest_error", "{:.1e}", "its error"), number("peak_mib", "{:.0f}", "peak MiB")),
    ]
    columns += [("host us", of_host)] if host else []
    return table(columns, rows)


def parts(outcomes: Outcomes) -> str:
    """How each part ended."""
    columns: list[Column] = [
        *(("part", lambda o: o.name), ("ended", lambda o: o.status), ("s", lambda o: f"{o.seconds:.0f}")),
        ("", lambda o: o.detail.replace("|", "/")[:160]),
    ]
    return table(columns, outcomes.values())


def data_of(outcomes: Outcomes, name: str) -> dict[str, Any]:
    """What a part has found; nothing of one that was not run."""
    return outcomes[name].data if name in outcomes else {}


def rows_of(outcomes: Outcomes) -> list[Data]:
    """The rows of the benchmarks; those of the core pass where nothing newer has them."""
    every = [row for name in ("speed", "bench") for row in data_of(outcomes, name).get("rows", [])]
    key = itemgetter("op", "px", "batch", "dtype", "kind", "backend")
    return list({key(row): row for row in every}.values())


def _targets(outcomes: Outcomes) -> str:
    overhead = data_of(outcomes, "bench").get("launch_overhead_us", {})
    return targets(list(evaluate(rows_of(outcomes), overhead)))


def _machine(environment: Data, about: Data) -> str:
    if not environment.get("machine"):
        return "The machine is not described: that part did not come to its end."
    lines = [f"No GPU: {environment['reason']}."] if environment["reason"] else []
    lines.append(about_machine({**environment, **about}))
    for source, values in (
        ("torch", environment["machine"]["gpu"] or {}),
        ("nvidia-smi", environment["smi"]),
    ):
        told = ", ".join(f"{name} {value}" for name, value in values.items())
        lines += [f"GPU by {source}: {told}."] if told else []
    return "  \n".join(lines)


def _correctness(tests: Data) -> str:
    counts = ", ".join(f"{tests.get(s, 0)} {s}" for s in ("passed", "failed", "skipped", "undone"))
    lines, reasons = [f"By pytest: {counts}."], set()
    for unit in tests.get("units", []):
        for case in unit.get("failures", []):
            message = case["message"].strip()[-1200:]
            lines.append(f"- **{unit['name']}**, `{case['id']}`:\n\n```\n{message}\n```")
        if unit.get("undone"):
            lines.append(f"- not run: {unit['undone']} cases of {unit['name']}")
        reasons.update(unit.get("skip_reasons", []))
    return "\n".join([*lines, *(f"- skipped: {reason}" for reason in sorted(reasons))])


def _tests(outcomes: Outcomes, group: str, title: str) -> Iterable[str]:
    for backend in BACKENDS:
        if tests := data_of(outcomes, f"{group} {backend}"):
            yield from (f"## {title}, {backend}", _correctness(tests))


def _sanitizer(outcomes: Outcomes) -> Iterable[str]:
    entries = [
        {"backend": backend, "tool": tool, **result, "said": result["said"].replace("|", "/")}
        for backend in BACKENDS
        for tool, result in data_of(outcomes, f"sanitizer {backend}").get("tools", {}).items()
    ]
    if entries:
        heads = {"backend": "by", "tool": "tool", "status": "ended", "errors": "errors", "said": ""}
        yield "## compute-sanitizer"
        yield table([number(key, "{}", head) for key, head in heads.items()], entries)


def _bench(bench: Data) -> Iterable[str]:
    rows, copy = bench.get("rows", []), bench.get("copy", {})
    yield "## Benchmarks"
    yield (
        f"Copy of {bench.get('copy_bytes', 0) / 2**30:.2f} GiB: {copy.get('median', 0) / 1e9:.0f} GB/s, "
        f"reads and writes together ({copy.get('low', 0) / 1e9:.0f}-{copy.get('high', 0) / 1e9:.0f})."
    )
    yield results((r for r in rows if r["kind"] == "full"), bench.get("launch_overhead_us"))
    yield from ("### Small batches", _SMALL, results(r for r in rows if r["kind"] != "full"))
    if bench.get("launch_overhead_us"):
        yield "### Host microseconds of a call"
        columns: list[Column] = [("", lambda e: e[0]), ("us", lambda e: f"{e[1]:.1f}")]
        yield table(columns, bench["launch_overhead_us"].items())
    failures = {
        f"{r['op']} {r['px']} px {r['dtype']}, {n}": why for r in rows for n, why in r["failures"].items()
    }
    yield from _problems(bench, failures)


def _problems(bench: Data, failures: Mapping[str, str]) -> Iterable[str]:
    if failures := {**failures, **bench.get("problems", {})}:
        yield "### What did not run"
        yield "\n".join(f"- {name}: {why}" for name, why in failures.items())
    if bench.get("undone"):
        yield "Not reached in time: " + "; ".join(bench["undone"]) + "."


def _faster(outcomes: Outcomes) -> Iterable[str]:
    if found := faster(rows_of(outcomes)):
        yield "## The faster backend, by px"
        columns: list[Column] = [
            ("op", lambda e: e[0]),
            ("px and backend", lambda e: ", ".join(map(" ".join, e[1].items()))),
        ]
        yield table(columns, found.items())


def _speed(speed: Data) -> Iterable[str]:
    """The core pass's times: each with its error, its part of a copy, and the part that was predicted."""
    if speed:
        yield from ("## Speed of the core pass", _LEGEND, results(speed.get("rows", [])))
        yield "One baseline was timed beside each, which need not be the fastest."
        yield from _problems(speed, {})


def whole(outcomes: Outcomes, about: Data) -> str:
    """The report in Markdown. about: its "command", its "seconds" so far and whether it is "complete"."""
    bench = data_of(outcomes, "bench")
    sections = ["# GPU report", _machine(data_of(outcomes, "environment"), about), parts(outcomes)]
    sections += ["## Targets", _targets(outcomes)]
    sections += _tests(outcomes, "core", "The core pass")
    sections += [
        *_speed(data_of(outcomes, "speed")),
        *_faster(outcomes),
        *_tests(outcomes, "tests", "Other tests"),
    ]
    sections += [*_sanitizer(outcomes), *(_bench(bench) if bench else [])]
    kernels = data_of(outcomes, "ncu").get("kernels", {})
    said = "\n\n".join(f"{name}: {r['status']}\n\n```\n{r['said']}\n```" for name, r in kernels.items())
    sections += ["## Nsight Compute", said] if kernels else []
    return "\n\n".join(sections) + "\n"


def short(outcomes: Outcomes) -> str:
    """The parts and the targets, in at most 40 lines."""
    text = parts(outcomes)
    if rows_of(outcomes):
        text += "\n\n" + _targets(outcomes)
    return "\n".join(text.splitlines()[:40])
