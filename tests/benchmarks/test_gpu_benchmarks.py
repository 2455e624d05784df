# SPDX-License-Identifier: Apache-2.0
"""The pieces of the GPU benchmarks that need no GPU: clock, rows, targets, tables, and what tools print."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import softdiff_kernels as sk
from benchmarks.gpu import choice, few_calls, ncu, rivals, rows, sanitizer, tables, targets, tools
from softdiff_kernels.backends import chosen
from softdiff_kernels.bench import clock

OURS = [rows.label("auto"), rows.label("reference")]


@pytest.mark.parametrize(
    "moved, l2, count", [(2**29, 50 * 2**20, 2), (2**20, 2**20, 6), (1000, 999, 6), (10, 0, 1), (0, 10, 51)]
)
def test_rotations(moved, l2, count):
    # ceil(5 L2 / bytes) + 1; no bytes count as one.
    assert clock.rotations(moved, l2) == count


def test_interleaved_calls_take_turns_and_buffers_rotate():
    calls: list[tuple[str, int]] = []
    cpu = torch.device("cpu")
    both = {name: (lambda i, n=name: calls.append((n, i))) for name in "ab"}
    timings = clock.interleaved(both, cpu, budget=0.0, least=4, block=3)
    assert {n: t.rounds for n, t in timings.items()} == {"a": 4, "b": 4}
    timed = [c for c in calls[4:]]  # two of each come before, to estimate
    assert [n for n, _ in timed] == list("aaabbbbbbaaaaaabbbbbbaaa")
    assert [i for n, i in timed if n == "a"] == list(range(12))
    assert all(t.low <= t.median <= t.high for t in timings.values())
    assert clock.host_seconds(lambda i: None, cpu, calls=20, blocks=2) > 0
    assert clock.copy_bandwidth(cpu, 2**12, rounds=3).median > 0
    assert clock.peak_bytes(lambda i: None, cpu) is None


def row(**changes):
    """A line of the benchmark."""
    line = {
        "op": "corrupt",
        "backend": "triton",
        "size": 64,
        "batch": 8,
        "dtype": "float32",
        "kind": "full",
        "us": 100.0,
        "low": 99.0,
        "high": 101.0,
        "gb_s": 3000.0,
        "of_copy": 0.8,
        "fastest": "four-product",
        "fastest_us": 490.0,
        "ratio": 4.9,
        "error": 1e-7,
        "fastest_error": 2e-7,
        "peak_mib": 256.0,
        "rotations": 2,
        "values": 1000,
        "others": {
            "softdiff_kernels triton": {"median": 100.0, "fair": False},
            "softdiff_kernels cuda": {"median": 90.0, "fair": False},
            "four-product": {"median": 490.0, "fair": True},
            "four-product, TF32": {"median": 300.0, "fair": False},
        },
        "failures": {"FFT-DCT": "RuntimeError: out of memory"},
    }
    return {**line, **changes}


def test_targets():
    # Exactly what is wanted is met; what was not measured is neither met nor missed.
    overhead = {"registered no-op": 4.0, "bare Triton launch": 6.0, "corrupt": 15.1, "corrupt, cuda": 14.9}
    lines = [row(), row(op="momentum_step", of_copy=0.79), row(dtype="bfloat16", us=50.0)]
    lines += [row(backend="cuda", of_copy=0.84), row(backend="cuda", size=32)]
    every = targets.evaluate(lines, overhead)
    found = {t.what: t for t in every if t.backend == "triton"}
    assert found["corrupt 64 px float32"].verdict == "met"
    assert found["momentum_step 64 px float32"].verdict == "missed"
    assert found["corrupt 32 px float32"].verdict == "not measured"
    assert found["corrupt 64 px float32 to the fastest baseline"].verdict == "missed"
    assert found["corrupt 64 px bfloat16 to float32"].got == 2.0
    assert found["host time of corrupt to no-op and bare launch"].verdict == "missed"
    assert {t.verdict for t in targets.evaluate([], {})} == {"not measured"}
    # More is wanted of the CUDA kernels at 64 px, and each backend has its own rows.
    cuda = {t.what: t for t in every if t.backend == "cuda"}
    assert (cuda["corrupt 64 px float32"].wanted, cuda["corrupt 64 px float32"].verdict) == (85, "missed")
    assert cuda["corrupt 32 px float32"].verdict == "met"
    assert cuda["momentum_step 64 px float32"].verdict == "not measured"
    assert cuda["host time of corrupt to no-op and bare launch"].verdict == "met"
    (line,) = (t for t in tables.targets(every).splitlines() if "corrupt 64 px float32 " in t and "copy" in t)
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells == ["corrupt 64 px float32", "80, 85 % of copy", "80.0", "met", "84.0", "missed"]
    assert len(tables.targets(every).splitlines()) <= 25


def test_tables():
    host = {"corrupt": {"triton": {"key drawn": 12.34}, "cuda": {"key drawn": 9.87}}}
    full = tables.full([row(), row(backend="cuda", us=90.0)], host)
    assert ["9.9" in line for line in full.splitlines()[2:]] == [False, True]
    assert len({len(line) for line in full.splitlines()}) == 1
    assert "80%" in full and "4.90" in full and "12.3" in full and "four-product" in full
    lines = [row(), row(backend="cuda"), row(size=32, failures={})]
    every = tables.every_baseline(lines, "corrupt", "float32")
    assert "softdiff_kernels triton" in every and every.count("64 px, B 8") == 1
    assert "four-product, TF32 *" in every and "failed" in every
    assert "four-product *" not in every
    graphs = {"softdiff_kernels triton, graph": {"median": 10.0, "fair": False}}
    graphs["four-product, graph"] = {"median": 40.0, "fair": True}
    small = tables.small([row(kind="small", others={**row()["others"], **graphs})])
    assert [c.strip() for c in small.splitlines()[2].split("|")[1:-1]] == [
        *["corrupt", "64", "8", "triton", "100.0", "99.0-101.0", "four-product", "490.0", "4.90"],
        *["10.0", "four-product", "40.0", "4.00"],
    ]
    assert "2.00" in tables.tuned([row(), row(backend="cuda", us=70.0)], [row(us=50.0)])
    assert tables.small([row()]).count("\n") == 1


def test_a_later_run_can_only_lower_a_ratio():
    first = rows.Row(**{**row(), "ratio": 4.0})
    slower, faster = (rows.Row(**{**row(), "ratio": r, "fastest": "new"}) for r in (4.5, 3.0))
    assert rows.merged(first, slower).ratio == 4.0
    assert rows.merged(first, faster).ratio == 3.0
    assert rows.merged(first, faster).fastest == "new"


def test_which_backend_was_faster():
    # By op and size for float32, with the dtype for others; what one backend alone has run decides nothing.
    pairs = [
        row(),
        row(backend="cuda", us=90.0),
        row(size=32),
        row(op="blur"),
        row(op="blur", backend="cuda"),
    ]
    pairs += [row(dtype="bfloat16", us=50.0), row(dtype="bfloat16", backend="cuda", us=60.0)]
    loss = {"op": "soft_score_loss, op alone"}
    pairs += [row(**loss, us=3.0), row(**loss, us=2.0, backend="cuda"), row(op="soft_score_loss", us=1.0)]
    pairs += [row(backend="cuda, no clusters", us=1.0)]  # is no backend of its own
    pairs += [row(kind="small", size=64, us=1.0), row(kind="small", backend="cuda", us=2.0)]
    found = choice.faster(pairs[:3] + pairs[5:])
    assert found == {
        "corrupt": {"64": "cuda", "64 bfloat16": "triton"},
        "soft_score_loss": {"64": "cuda"},
    }
    assert choice.faster(pairs)["blur"] == {"64": "triton"}  # a tie goes to the first
    machine = {"gpu": {"name": "H100"}, "date": "2026-11-24 19:00 UTC", "torch": "2.11", "commit": "abc"}
    table = choice.table(machine, {"faster": found}, "13.0")
    assert list(table) == ["gpu", "date", "versions", "faster"]
    assert table["gpu"] == "H100" and table["versions"]["torch"] == "2.11"


MEMCHECK = """
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at corrupt_kernel+0x40
done
========= ERROR SUMMARY: 3 errors
"""
RACECHECK = "done\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"


def test_what_the_sanitizer_says():
    assert tools.sanitizer_findings(MEMCHECK) == tools.Findings(3, "Invalid __global__ read of size 4 bytes")
    assert tools.sanitizer_findings(RACECHECK) == tools.Findings(0, "")
    assert tools.sanitizer_findings("killed").errors is None


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
        ("unknown option\n", 1, "failed"),
    ],
)
def test_how_a_sanitizer_run_is_judged(tmp_path, monkeypatch, text, code, status):
    def execute(command, *, seconds, log, environment=None):
        log.write_text(text)
        return code, 1.0

    monkeypatch.setattr(sanitizer, "execute", execute)
    found = sanitizer.check("memcheck", "compute-sanitizer", "cuda", 5.0, tmp_path)
    assert found["status"] == status
    assert sanitizer.summary({"memcheck": found})["status"] == status


NCU = """==PROF== Connected to process 5
done
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","5","corrupt_kernel","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","81.25"
"0","5","corrupt_kernel","launch__registers_per_thread","register/thread","128"
"0","5","corrupt_kernel","sm__throughput.avg.pct_of_peak_sustained_elapsed","%","n/a"
"0","5","other","gpu__time_duration.sum","ns","1,234,567"
==PROF== Disconnected
"""


def test_what_ncu_says():
    found = tools.ncu_metrics(NCU)
    assert found["other"]["gpu__time_duration.sum"] == 1234567.0
    assert ncu.lines(found, "corrupt_kernel") == {"dram %": 81.25, "registers": 128.0}
    assert tools.ncu_metrics("==ERROR== ERR_NVGPUCTRPERM") == {}


def test_a_profiler_without_permission_is_absent(tmp_path, monkeypatch):
    def execute(command, *, seconds, log, environment=None):
        log.write_text("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission")
        return 1, 1.0

    monkeypatch.setattr(ncu, "execute", execute)
    kernels = {"triton": "corrupt_kernel"}
    assert ncu.profile("ncu", "corrupt", 64, kernels, 5.0, tmp_path)["status"] == "absent"


def test_both_backends_in_one_profile(tmp_path, monkeypatch):
    # One warm launch of each is skipped and one of each profiled; a backend without a metric is a failure.
    asked = []

    def execute(command, *, seconds, log, environment=None):
        asked.append(command)
        log.write_text(
            NCU.replace('"other"', '"void softdiff::cuda::plane_kernel<4>(Args)"').replace(
                "gpu__time_duration.sum", "launch__registers_per_thread"
            )
        )
        return 0, 1.0

    monkeypatch.setattr(ncu, "execute", execute)
    both = {"triton": "corrupt_kernel", "cuda": "plane_kernel"}
    found = ncu.profile("ncu", "corrupt", 64, both, 5.0, tmp_path)
    assert found["status"] == "ok" and found["metrics"]["cuda"] == {"registers": 1234567.0}
    assert asked[0][asked[0].index("--launch-skip") + 1] == "2"
    assert asked[0][-3:] == ["--backend", "triton", "cuda"]
    other = ncu.profile("ncu", "corrupt", 64, {**both, "cuda": "lines_kernel"}, 5.0, tmp_path)
    assert other["status"] == "failed" and "cuda" in ncu.said(other)


def test_tools_off_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for release in ("cuda-12.9", "cuda-13.0"):
        (tmp_path / release / "bin").mkdir(parents=True)
        (tmp_path / release / "bin" / "ncu").write_text("")
    where = (f"{tmp_path}/cuda*/bin",)
    assert tools.find("ncu", where) == str(tmp_path / "cuda-13.0" / "bin" / "ncu")
    assert tools.find("compute-sanitizer", where) is None


def test_rows_on_a_cpu():
    # One row of each kind beside every eager baseline: all right in float64's eyes, none failed.
    cpu = torch.device("cpu")
    limits = {"l2_bytes": 2**10, "copy_bytes_s": 1e9, "image_bytes": 2**13, "budget": 0.0}
    setup = rows.Setup(cpu, **limits, backends=("auto", "reference"))
    for op in rows.OPS:
        for dtype, worst in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
            found = rivals.eager(rows.named(op), 8, dtype, cpu)
            both = rows.compare(op, 8, 3, dtype, setup, found, kind="full")
            assert [line.backend for line in both] == ["auto", "reference"]
            for line in both:
                assert not line.failures
                assert all(t["error"] is None or t["error"] < worst for t in line.others.values())
                assert line.error is not None and line.error < worst
                assert line.fastest is not None and line.ratio is not None
            # One run, of which each row relates to its own backend's time.
            assert both[0].others == both[1].others
            assert [line.us for line in both] == [both[0].others[n]["median"] for n in OURS]
    small, _ = rows.compare(
        "corrupt", 8, 2, torch.float32, setup, rivals.eager("corrupt", 8, torch.float32, cpu), kind="small"
    )
    assert all(f"{name}, graph" in small.others for name in OURS)
    assert not str(small.fastest).endswith("graph") and str(small.fastest) not in OURS


def test_each_call_runs_by_its_own_backend():
    # Estimates, timed calls, graphs and host times: none by another backend than its name says.
    seen: dict[str, set[str]] = {"a": set(), "b": set()}
    calls = {name: (lambda i, n=name: seen[n].add(chosen())) for name in seen}
    within = {"a": lambda: sk.use_backend("reference"), "b": lambda: sk.use_backend("auto")}
    clock.interleaved(calls, torch.device("cpu"), budget=0.0, least=3, block=2, within=within)
    assert seen == {"a": {"reference"}, "b": {"auto"}}


def test_a_backend_that_fails_costs_the_others_nothing(monkeypatch):
    whole = rows.ours

    def ours(op, case, noise=None):
        if chosen() == "reference":
            raise RuntimeError("no such kernel")
        return whole(op, case, noise)

    monkeypatch.setattr(rows, "ours", ours)
    cpu = torch.device("cpu")
    setup = rows.Setup(cpu, 2**10, 1e9, image_bytes=2**13, budget=0.0, backends=("auto", "reference"))
    (line,) = rows.compare("blur", 8, 3, torch.float32, setup, [], kind="full")
    assert line.backend == "auto" and "no such kernel" in line.failures[OURS[1]]
    with pytest.raises(RuntimeError, match="no such kernel"):
        rows.compare("blur", 8, 3, torch.float32, replace(setup, backends=("reference",)), [], kind="full")


def test_the_watched_program_calls_every_op():
    assert few_calls.main(["every", "--dry"]) == 0
    assert few_calls.main(["momentum_step", "--dry", "--backend", "auto", "reference"]) == 0
