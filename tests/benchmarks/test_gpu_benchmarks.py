# SPDX-License-Identifier: Apache-2.0
"""The pieces of the GPU benchmarks that need no GPU: rows, targets, tables, and what tools print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from gpu import sanitizer

import softdiff_kernels as sk
from benchmarks.gpu import bench, document, parts, report, rows, targets, tools
from benchmarks.gpu.parts import Outcome
from softdiff_kernels.backends import chosen

OURS = [rows.label("auto"), rows.label("reference")]
ROOT = Path(__file__).resolve().parents[2]


def timing(us, **changes):
    """One call of a row whose result has 1000 values."""
    known = {"median": us, "group": "main", "same": True, "ratio": us / 100, "noise": 0.01, "error": 2e-7}
    return {**known, **changes}


def row(**changes):
    """A line of the benchmark; of 1000 values, so that its ns for each value are its microseconds."""
    line = {
        **{"op": "corrupt", "backend": "triton", "px": 64, "batch": 8, "dtype": "float32", "kind": "full"},
        **{"ours": 100.0, "low": 99.0, "high": 101.0, "gb_s": 3000.0, "of_copy": 0.8, "values": 1000},
        **{"fastest": "four-product", "fastest_ns": 490.0, "ratio": 4.9, "noise": 0.01, "peak_mib": 256.0},
        **{"error": 1e-7, "fastest_error": 2e-7, "failures": {"FFT-DCT": "RuntimeError: out of memory"}},
        "timings": {
            "softdiff_kernels": timing(100.0, group="ours"),
            "softdiff_kernels, again": timing(101.0, group="ours"),
            "softdiff_kernels cuda": timing(90.0, group="ours"),
            "four-product": timing(490.0),
            "kornia 0.8": timing(200.0, group="nearest", same=False),
        },
    }
    return {**line, **changes}


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_targets():
    # Exactly what is wanted is met; what was not measured is neither met nor missed.
    overhead = {"registered no-op": 4.0, "bare Triton launch": 6.0, "corrupt": 15.1, "corrupt, cuda": 14.9}
    lines = [row(), row(op="momentum_step", of_copy=0.79), row(dtype="bfloat16", ours=50.0)]
    lines += [row(backend="cuda", of_copy=0.84), row(backend="cuda", px=32), row(px=256, kind="small")]
    every = list(targets.evaluate(lines, overhead))
    found = {t.what: t for t in every if t.backend == "triton"}
    assert found["corrupt 64 px float32"].verdict == "met"
    assert found["momentum_step 64 px float32"].verdict == "missed"
    assert found["corrupt 32 px float32"].verdict == found["corrupt 256 px float32"].verdict == "not measured"
    assert found["corrupt 64 px float32 to the fastest baseline"].verdict == "missed"
    assert found["corrupt 64 px bfloat16 to float32"].got == 2.0
    # Of the core pass's single baseline nobody knows whether it is the fastest.
    one = {n: t for n, t in row()["timings"].items() if t["group"] == "ours" or n == "four-product"}
    few = {t.what: t for t in targets.evaluate([row(timings=one)], {})}
    assert few["corrupt 64 px float32 to the fastest baseline"].verdict == "not measured"
    assert found["host time of corrupt to no-op and bare launch"].verdict == "missed"
    assert {t.verdict for t in targets.evaluate([], {})} == {"not measured"}
    # More is wanted of the CUDA kernels at 64 px, and each backend has its own rows.
    cuda = {t.what: t for t in every if t.backend == "cuda"}
    assert (cuda["corrupt 64 px float32"].wanted, cuda["corrupt 64 px float32"].verdict) == (85, "missed")
    assert cuda["corrupt 32 px float32"].verdict == "met"
    assert cuda["momentum_step 64 px float32"].verdict == "not measured"
    assert cuda["host time of corrupt to no-op and bare launch"].verdict == "met"
    text = document.targets(every).splitlines()
    (line,) = (t for t in text if "corrupt 64 px float32 " in t and "copy" in t)
    assert cells(line) == ["corrupt 64 px float32", "80, 85 % of copy", "80.0", "met", "84.0", "missed"]
    assert len(text) <= 25


def test_tables():
    # Host microseconds are of the row's own backend.
    host = {"corrupt": 12.34, "corrupt, cuda": 9.87}
    full = document.results([row(), row(backend="cuda", ours=90.0), row(backend="other")], host)
    assert [cells(line)[-1] for line in full.splitlines()[2:]] == ["12.3", "9.9", ""]
    assert len({len(line) for line in full.splitlines()}) == 1
    assert "80%" in full and "4.90" in full and "four-product" in full and "1.0%" in full


def test_the_whole_document():
    # Every part's results are in it, and whatever is missing leaves no hole.
    tool = {"status": "ok", "errors": 0, "said": "no errors"}
    data = {
        "sanitizer cuda": {"tools": {"memcheck": tool}},
        "bench": {
            "rows": [row(), row(batch=1, kind="small"), row(batch=1, kind="graph")],
            **{"copy": {"median": 4e12, "low": 3.9e12, "high": 4.1e12}, "copy_bytes": 2**30},
            **{
                "launch_overhead_us": {"corrupt": 12.3},
                "problems": {"blur": "no kernel"},
                "undone": ["dct2"],
            },
        },
        "speed": {
            "rows": [row(), row(backend="cuda", ours=90.0), row(backend="cuda", px=32)],
            "undone": ["x"],
        },
        "core cuda": {"passed": 7, "units": []},
        "ncu": {"kernels": {"corrupt 64 px": {"status": "ok", "said": "dram % 81"}}},
    }
    outcomes = {name: Outcome(name, "ok", data=content) for name, content in data.items()}
    text = document.whole(outcomes, {"command": "c", "seconds": 1.0, "complete": True})
    for part in (
        "memcheck",
        "4000 GB/s",
        "### Small batches",
        "| 64 cuda ",
        "## The core pass, cuda",
        "By pytest: 7 passed",
        "- blur: no kernel",
    ):
        assert part in text, part
    assert "Not reached in time: dct2." in text and "dram % 81" in text
    # What the core pass has timed, and a benchmark behind it, is one row: the benchmark's.
    kept = {(r["backend"], r["px"], r["kind"]) for r in document.rows_of(outcomes)}
    assert len(document.rows_of(outcomes)) == len(kept) == 5
    assert (
        text.index("## The core pass") < text.index("## Speed of the core pass") < text.index("## Benchmarks")
    )
    assert len(document.short(outcomes).splitlines()) <= 40


def test_a_later_run_can_only_lower_a_ratio():
    # The fastest is the one with the smallest ratio to our time in its own run.
    device = torch.device("cpu")
    setup = rows.Setup(device, 2**10, 1e9, image_bytes=2**13, budget=0.0)
    few = rows.eager("blur", 8, torch.float32, device)[:2]
    (line,) = rows.measure("blur", 8, 3, torch.float32, setup, few)
    line = replace(line, timings={n: {**t, "ratio": 4.0} for n, t in line.timings.items()}, ratio=4.0)

    def later(ratio, **about):
        return replace(line, timings={"new": timing(9.0, **{"ratio": ratio, **about})}, failures={"x": "why"})

    slower, faster = rows.merged(line, later(4.5)), rows.merged(line, later(3.0))
    assert (slower.ratio, faster.ratio, faster.fastest) == (4.0, 3.0, "new")
    assert slower.fastest in {b.name for b in few} and "new" in slower.timings and "x" in slower.failures
    assert rows.merged(line, later(3.0, same=False)).ratio == 4.0


def test_which_backend_was_faster():
    # By op and size for float32, with the dtype for others; what one backend alone has run decides nothing.
    pairs = [
        row(),
        row(backend="cuda", ours=90.0),
        row(px=32),
        row(op="blur"),
        row(op="blur", backend="cuda"),
    ]
    pairs += [row(dtype="bfloat16", ours=50.0), row(dtype="bfloat16", backend="cuda", ours=60.0)]
    loss = {"op": rows.ALONE}
    pairs += [
        row(**loss, ours=3.0),
        row(**loss, ours=2.0, backend="cuda"),
        row(op="soft_score_loss", ours=1.0),
    ]
    pairs += [row(backend="other", ours=1.0)]
    pairs += [row(kind="small", ours=1.0), row(kind="small", backend="cuda", ours=2.0)]
    found = targets.faster(pairs[:3] + pairs[5:])
    assert found == {
        "corrupt": {"64": "cuda", "64 bfloat16": "triton"},
        "soft_score_loss": {"64": "cuda"},
    }
    assert targets.faster(pairs)["blur"] == {"64": "triton"}  # a tie goes to the first
    machine = {"gpu": {"name": "H100"}, "date": "2026-11-24 19:00 UTC", "versions": {"torch": "2.11"}}
    table = targets.faster_table({**machine, "commit": "abc"}, found, "13.0")
    assert list(table) == ["gpu", "date", "versions", "faster"]
    versions = {"torch": "2.11", "commit": "abc", "nvcc": "13.0"}
    assert table["gpu"] == "H100" and versions.items() <= table["versions"].items()


MEMCHECK = """
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at corrupt_kernel+0x40
done
========= ERROR SUMMARY: 3 errors
"""
RACECHECK = "done\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"


def test_what_the_sanitizer_says():
    assert sanitizer.findings(MEMCHECK) == (3, "Invalid __global__ read of size 4 bytes")
    assert sanitizer.findings(RACECHECK) == (0, "")
    assert sanitizer.findings("killed")[0] is None


def pretend(monkeypatch, text, code=0):
    """Tools that print this text; the commands that were run."""
    commands = []

    def execute(command, *, seconds, log, environment=None):
        commands.append(list(command))
        log.write_text(text)
        return code, 1.0

    monkeypatch.setattr(parts, "execute", execute)
    return commands


@pytest.mark.parametrize(
    "text, code, status",
    [
        (MEMCHECK, 0, "failed"),
        ("done\n========= ERROR SUMMARY: 0 errors\n", 0, "ok"),
        (
            "Segmentation fault\n========= ERROR SUMMARY: 0 errors\n",
            0,
            "failed",
        ),  # it did not come to its end
        ("========= COMPUTE-SANITIZER\n", None, "timeout"),
        ("========= Device not supported. Please refer to the documentation\n", 1, "absent"),
        ("unknown option\n", 1, "failed"),
    ],
)
def test_how_a_sanitizer_run_is_judged(tmp_path, monkeypatch, text, code, status):
    pretend(monkeypatch, text, code)
    result = sanitizer.check("memcheck", "compute-sanitizer", "cuda", (8,), 5.0, tmp_path)
    assert result["status"] == status
    assert sanitizer.summary({"memcheck": result})["status"] == status


def test_the_sanitizer_begins_with_a_plain_run_of_all_sizes(tmp_path, monkeypatch):
    # Kernels are compiled then, at all sizes at once; what fails without a tool is not run under one. A
    # process under a tool has a few sizes, the most used first, and each has its line.
    monkeypatch.setattr(sanitizer, "find", lambda name: "compute-sanitizer")
    commands = pretend(monkeypatch, "done\n========= ERROR SUMMARY: 0 errors\n")
    sanitizer.run(tmp_path / "out.json", "cuda", 50.0, tmp_path)
    assert parts.read(tmp_path / "out.json")["status"] == "ok"
    plain = [(int(c[-3]), int(c[-1])) for c in commands if "--share" in c]
    sizes = sanitizer.SIZES["cuda"]
    shares = range(sanitizer._SHARES)
    assert sorted(plain) == sorted((size, share) for some in sizes for size in some for share in shares)
    assert 64 in sizes[0] and max(map(len, sizes)) <= 3
    under = [
        (c[c.index("--tool") + 1], *c[c.index("--size") + 1 :]) for c in commands if "compute-sanitizer" in c
    ]
    wanted = [(tool, *map(str, some)) for tool in sanitizer.SANITIZERS["cuda"] for some in sizes]
    assert sorted(under) == sorted(wanted) and len(parts.read(tmp_path / "out.json")["tools"]) == len(wanted)
    # What is not compiled in time is not called a failure.
    pretend(monkeypatch, "", None)
    sanitizer.run(tmp_path / "out.json", "cuda", 50.0, tmp_path)
    late = parts.read(tmp_path / "out.json")
    assert late["status"] == "timeout" and "not compiled within 25 s" in late["detail"]
    # Without time left for one, none begins.
    commands = pretend(monkeypatch, "done\n========= ERROR SUMMARY: 0 errors\n")
    sanitizer.run(tmp_path / "out.json", "cuda", 15.0, tmp_path)
    assert parts.read(tmp_path / "out.json")["status"] == "timeout"
    assert not any("compute-sanitizer" in command for command in commands)
    commands = pretend(monkeypatch, "RuntimeError: no", 1)
    sanitizer.run(tmp_path / "out.json", "cuda", 50.0, tmp_path)
    result = parts.read(tmp_path / "out.json")
    assert result["status"] == "failed" and "fails without a tool at " in result["detail"]
    assert not any("compute-sanitizer" in command for command in commands)


NCU = """==PROF== Connected to process 5
done
  corrupt_kernel (1, 1, 1)x(128, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
    dram__throughput.avg.pct_of_peak_sustained_elapsed    %    81.25
"""


@pytest.mark.parametrize(
    "text, code, status",
    [
        (NCU, 0, "ok"),
        (NCU, None, "timeout"),
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded", 1, "failed"),
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", 1, "absent"),
    ],
)
def test_what_ncu_says_is_kept(tmp_path, monkeypatch, text, code, status):
    pretend(monkeypatch, text, code)
    result = tools.profile("ncu", "corrupt", 64, {"triton": "corrupt_kernel"}, 5.0, tmp_path)
    assert result["status"] == status
    if status in ("ok", "failed"):
        assert text.splitlines()[-1].strip() in result["said"] and "PROF" not in result["said"]


def test_both_backends_in_one_profile(tmp_path, monkeypatch):
    # One warm launch of each is skipped and one of each profiled, at the clocks that there are. A CUDA kernel
    # of any name is known by its namespace.
    monkeypatch.setattr(tools, "find", lambda name: name)
    states = dict.fromkeys(("triton", "cuda"), SimpleNamespace(usable=True))
    monkeypatch.setattr(tools.sk, "backends", lambda: states)
    commands = pretend(monkeypatch, NCU)
    tools.ncu(tmp_path / "out.json", 20.0, tmp_path)
    assert parts.read(tmp_path / "out.json")["status"] == "ok" and len(commands) == len(tools.PROFILED)
    for command, (op, px, kernel) in zip(commands, tools.PROFILED, strict=True):
        options = dict(pairwise(command))
        assert options["--launch-skip"] == options["--launch-count"] == "2"
        assert options["--clock-control"] == "none"
        assert options["--kernel-name"] == f"regex:{kernel}|softdiff"
        assert (options["--op"], options["--size"]) == (op, str(px))
        assert command[-3:] == ["--backend", "triton", "cuda"]


def test_tools_off_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for release in ("cuda-12.9", "cuda-13.0"):
        (tmp_path / release / "bin").mkdir(parents=True)
        (tmp_path / release / "bin" / "ncu").write_text("")
    where = (f"{tmp_path}/cuda*/bin",)
    assert parts.find("ncu", where) == str(tmp_path / "cuda-13.0" / "bin" / "ncu")
    assert parts.find("compute-sanitizer", where) is None


@pytest.mark.parametrize("op", rows.OPS)
def test_rows_on_a_cpu(op):
    # One row of each kind beside every eager baseline: all right in float64's eyes, none failed.
    cpu = torch.device("cpu")
    limits = {"l2_bytes": 2**10, "copy_bytes_s": 1e9, "image_bytes": 2**13, "budget": 0.0}
    setup = rows.Setup(cpu, **limits, backends=("auto", "reference"))
    for dtype, worst in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        both = rows.measure(op, 8, 3, dtype, setup, rows.eager(op, 8, dtype, cpu))
        assert [line.backend for line in both] == ["auto", "reference"] and both[0].op == op
        for line in both:
            assert not line.failures
            assert all(t["error"] is None or t["error"] < worst for t in line.timings.values() if t["same"])
            assert line.error is not None and line.error < worst
            assert line.ratio > 0 and line.gb_s > 0 and line.of_copy is not None
        # One run, in which each row has the other backend beside it, and the same baselines.
        assert OURS[1] in both[0].timings and OURS[0] in both[1].timings
        others = [{n: t["median"] for n, t in line.timings.items() if t["group"] != "ours"} for line in both]
        assert others[0] == others[1]
        assert both[0].timings[OURS[1]]["median"] == both[1].ours
    if op == "corrupt":
        for kind in ("small", "graph"):
            small, _ = rows.measure(
                op, 8, 2, torch.float32, setup, rows.eager(op, 8, torch.float32, cpu), kind
            )
            assert small.kind == kind and small.of_copy is None
            json.dumps(asdict(small))


def test_each_call_runs_by_its_own_backend(monkeypatch):
    # Trials, errors, warm-up and timed calls: none by another backend than its name says.
    whole, asked, seen = rows.ours, [], []
    real = sk.use_backend

    def using(backend):
        asked.append(backend)
        return real(backend)

    def ours(op, case, noise=None):
        seen.append(chosen() == asked[-1])
        return whole(op, case, noise)

    monkeypatch.setattr(rows, "ours", ours)
    monkeypatch.setattr(rows.sk, "use_backend", using)
    cpu = torch.device("cpu")
    setup = rows.Setup(cpu, 2**10, 1e9, image_bytes=2**13, budget=0.0, backends=("reference", "auto"))
    rows.measure("blur", 8, 3, torch.float32, setup, rows.eager("blur", 8, torch.float32, cpu))
    assert len(seen) > 20 and all(seen) and set(asked) == {"reference", "auto"}


def test_a_backend_that_fails_costs_the_others_nothing(monkeypatch):
    whole = rows.ours

    def ours(op, case, noise=None):
        if chosen() == "reference":
            raise RuntimeError("no such kernel")
        return whole(op, case, noise)

    monkeypatch.setattr(rows, "ours", ours)
    cpu = torch.device("cpu")
    setup = rows.Setup(cpu, 2**10, 1e9, image_bytes=2**13, budget=0.0, backends=("auto", "reference"))
    few = rows.eager("blur", 8, torch.float32, cpu)[:1]
    (line,) = rows.measure("blur", 8, 3, torch.float32, setup, few)
    assert line.backend == "auto" and "no such kernel" in line.failures[OURS[1]]
    with pytest.raises(RuntimeError, match="no such kernel"):
        rows.measure("blur", 8, 3, torch.float32, replace(setup, backends=("reference",)), few)


def test_steps_that_fail_or_come_too_late_are_written_down(tmp_path):
    setup, about = bench.setup_for(True, ("auto",))
    out = tmp_path / "out.json"
    run = bench.Bench(out, 100.0, setup, about)

    def fails():
        raise ValueError("no\nsuch thing")

    run.attempt("one", lambda: run.small("blur", 8, 2), 0.0)
    run.attempt("two", fails, 0.0)
    run.attempt("three", fails, 200.0)
    result = parts.read(out)
    assert result["problems"] == {"two": "ValueError: no"} and run.results["undone"] == ["three"]
    assert [r["kind"] for r in result["rows"]] == ["graph", "small"]
    assert result["detail"] == "2 rows, 1 problems" and result["copy"]["median"] > 0


def test_a_step_that_loses_the_gpu_costs_itself_alone(tmp_path, monkeypatch):
    # The process starts again with what it had, and does not repeat the step but by each backend alone; one
    # that hangs likewise.
    setup, about = bench.setup_for(True, ("auto", "reference"))
    out, started = tmp_path / "out.json", []

    def execv(program, words):
        started.append(words)
        raise SystemExit

    monkeypatch.setattr(bench.os, "execv", execv)
    run = bench.Bench(out, 100.0, setup, about)
    run.attempt("one", lambda: run.small("blur", 8, 2), 0.0)

    def faults():
        monkeypatch.setattr(bench, "lost", lambda: True)
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(SystemExit):
        run.each("two", faults, 0.0)
    assert started[0][-3:-1] == ["--again", "--seconds"] and 0 < float(started[0][-1]) <= 100
    monkeypatch.setattr(bench, "lost", lambda: False)
    again = bench.Bench(out, 50.0, setup, about, again=True)
    tried: list[object] = []
    again.each("one", lambda: tried.append("one"), 0.0)
    again.each("two", lambda: tried.append(again.setup.backends), 0.0)
    assert tried == [("auto",), ("reference",)] and again.setup.backends == ("auto", "reference")
    result = parts.read(out)
    assert [r["kind"] for r in result["rows"]] == ["graph", "graph", "small", "small"]
    assert result["problems"] == {"two": "RuntimeError: an illegal memory access was encountered"}
    monkeypatch.setattr(bench, "_LONGEST", 0.1)
    monkeypatch.setattr(bench.os, "execv", lambda *words: started.append(words))
    again.attempt("slow", lambda: time.sleep(1.0), 0.0)
    assert len(started) == 2 and "did not end within" in parts.read(out)["problems"]["slow"]


def test_errors_are_those_of_the_kernels_that_are_timed(monkeypatch):
    # A batch of four is cut into strips by other kernels: as many samples are compared as fill the GPU.
    counts = []
    real = rows.cases.truth
    monkeypatch.setattr(rows, "filling", lambda device: 6)
    monkeypatch.setattr(rows.cases, "truth", lambda case: counts.append(case.batch) or real(case))
    cpu = torch.device("cpu")
    setup = rows.Setup(cpu, 2**10, 1e9, image_bytes=2**13, budget=0.0)
    rows.measure("blur", 8, 9, torch.float32, setup, rows.eager("blur", 8, torch.float32, cpu)[:1])
    assert set(counts) == {6}


def test_measured_stands_beside_predicted(tmp_path, monkeypatch):
    # Of full batches that the committed table has; nothing is predicted of what it lacks.
    about = {"backend": "cuda", "px": 64, "dtype": "float32", "arch": "sm_90"}
    table = [{**about, "op": "corrupt", "percent": 82}, {**about, "op": "soft_score_loss", "percent": 100}]
    table.append({**about, "op": "corrupt", "percent": 11, "arch": "sm_80"})
    (tmp_path / "predicted.json").write_text(json.dumps({"rows": table}))
    monkeypatch.setattr(targets, "PREDICTED", tmp_path / "predicted.json")
    targets._predictions.cache_clear()
    lines = [
        row(backend="cuda"),
        row(backend="cuda", op=rows.ALONE),
        row(),
        row(backend="cuda", kind="small"),
    ]
    assert [targets.predicted(line) for line in lines] == [82, 100, None, None]
    text = document.results(lines).splitlines()
    place = cells(text[0]).index("predicted")
    assert cells(text[0])[place - 1] == "of copy" and [cells(t)[place] for t in text[2:4]] == ["82%", "100%"]
    targets._predictions.cache_clear()


class Pool:
    """Makes three of the calls that a pool of processes is given: one fails, and one hangs."""

    jobs: ClassVar[list[object]] = []

    def __init__(self, count):
        self.count, Pool.jobs = count, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        assert self.count == 12

    def apply_async(self, call, arguments):
        Pool.jobs.append(*arguments)
        number = len(Pool.jobs)
        ready, why = number != 3, "corrupt: no such kernel" if number == 2 else ""
        return SimpleNamespace(wait=lambda seconds: None, ready=lambda: ready, get=lambda: why)


def test_triton_kernels_are_compiled_in_parallel_before_anything_is_timed(tmp_path, monkeypatch):
    # The calls of the core pass, of few images and of a full GPU; what failed, or was not made in time, is
    # named, and the part fails.
    monkeypatch.setattr(bench, "get_context", lambda how: SimpleNamespace(Pool=Pool))
    monkeypatch.setattr(bench._machine, "cores", lambda: 16)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(rows, "filling", lambda device: 45)
    monkeypatch.setattr(bench.sk, "backends", lambda: {"triton": SimpleNamespace(usable=True)})
    bench.kernels(tmp_path / "out.json", 0.01)
    found = parts.read(tmp_path / "out.json")
    assert sorted(map(str, Pool.jobs)) == sorted(
        str((entry, n)) for entry in rows.CORE for n in (45, rows.FEW)
    )
    assert found["status"] == "failed" and len(found["failed"]) == 2
    assert "no such kernel" in found["detail"] and "not made" in found["detail"]
    names = list(report.PARTS)
    assert names.index("kernels") < names.index("core triton") < names.index("speed")


def test_the_most_wanted_rows_come_first():
    order = bench.order()
    assert order[: len(rows.CORE)] == rows.CORE
    assert len(order) == len(set(order)) == 2 * len(bench.SIZES) * len(rows.OPS)
    setup, about = bench.setup_for(True, ("auto",))
    run = bench.Bench(Path(os.devnull), 1.0, setup, about)
    names = [name for name, *_ in run.steps(bench.SIZES, False)]
    assert names[0] == "eager corrupt 64 px float32" and len(names) == len(set(names))
    assert names.index("compiled corrupt 64 px float32") < names.index("eager blur 64 px float32")


def test_the_watched_program_calls_every_op(capsys, monkeypatch):
    sanitizer.watched("auto", (8, 13), "cpu")
    assert capsys.readouterr().out == "done\n"
    # The shares are all calls, each once.
    every, made = range(7), []
    monkeypatch.setattr(sanitizer, "calls", lambda device, size: [partial(made.append, n) for n in every])
    for share in range(sanitizer._SHARES):
        sanitizer.watched("auto", (8,), "cpu", share)
    assert sorted(made) == list(every)
    tools.calls("momentum_step", 8, ["auto", "reference"], dry=True)


def test_a_part_by_itself(tmp_path):
    # As the report starts it: without a GPU the benchmark says why it is absent.
    command = [sys.executable, "-m", "benchmarks.gpu.report", "bench", "--out", str(tmp_path / "out.json")]
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "", "SOFTDIFF_CUDA_SHIM": ""}
    subprocess.run(command, cwd=ROOT, env=environ, check=True, timeout=200)
    result = parts.read(tmp_path / "out.json")
    assert result["status"] == "absent" and "triton: " in result["detail"] and "cuda: " in result["detail"]
