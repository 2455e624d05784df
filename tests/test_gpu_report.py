# SPDX-License-Identifier: Apache-2.0
"""The GPU report where there is no GPU: end to end, and its pieces one by one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import (
    clock,
    correctness,
    document,
    environment,
    few_calls,
    ncu,
    parts,
    report,
    rows,
    runner,
    sanitizer,
    tables,
    targets,
    tools,
)
from benchmarks.gpu.parts import Outcome

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}


def test_without_a_gpu_every_part_says_so(tmp_path):
    # The command as `make` runs it: files are written, each GPU part is absent, and the exit status is 0.
    make = shutil.which("make")
    if make is None or not (ROOT / "Makefile").exists():
        pytest.skip("needs make and the sources")
    folder = tmp_path / "report"
    command = [make, "-s", "gpu-report", f"REPORT={folder}", f"REPORT_PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, env=HIDDEN, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p.name for p in folder.iterdir()} == {"report.json", "report.md", "log.txt"}
    found = json.loads((folder / "report.json").read_text())["parts"]
    assert list(found) == list(report.PARTS)
    assert found["environment"]["status"] == "ok"
    assert found["environment"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    for name in report.PARTS[1:]:
        assert found[name]["status"] == "absent"
        assert found[name]["detail"] == "torch finds no GPU"
    assert "absent" in done.stdout
    assert len(done.stdout.rsplit("\n\n", 2)[-2].splitlines()) <= 40
    assert "No GPU: torch finds no GPU." in (folder / "report.md").read_text()


def program(tmp_path: Path, text: str) -> list[str]:
    """A command that runs some Python; what it does with `--out FILE` is `text`'s affair."""
    file = tmp_path / "program.py"
    file.write_text(text)
    return [sys.executable, str(file)]


def started(tmp_path: Path, text: str, seconds: float = 20.0) -> Outcome:
    log = tmp_path / "log.txt"
    return parts.run("some", program(tmp_path, text), seconds=seconds, log=log, scratch=tmp_path)


WRITE = "import json, sys\ndef write(**k): json.dump(k, open(sys.argv[sys.argv.index('--out') + 1], 'w'))\n"


def test_a_part_that_works(tmp_path):
    outcome = started(tmp_path, WRITE + "print('hello')\nwrite(status='ok', detail='fine', number=3)")
    assert (outcome.status, outcome.detail, outcome.data) == ("ok", "fine", {"number": 3})
    assert "hello" in (tmp_path / "log.txt").read_text()


def test_a_part_that_breaks_keeps_what_it_had_found(tmp_path):
    outcome = started(tmp_path, WRITE + "write(number=3)\nraise ValueError('no such luck')")
    assert outcome.status == "failed"
    assert outcome.data == {"number": 3}
    assert "exit status 1" in outcome.detail and "no such luck" in outcome.detail


def test_a_part_that_hangs_is_killed_with_its_children(tmp_path):
    child = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)\n"
    text = WRITE + child + "write(number=3)\nimport time; time.sleep(60)"
    outcome = started(tmp_path, text, seconds=1.5)
    assert outcome.status == "timeout"
    assert outcome.seconds < 15
    assert outcome.data == {"number": 3}
    pid = int((tmp_path / "some.log").read_text().split()[0])
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_part_that_cannot_start(tmp_path):
    outcome = parts.run("some", ["/no/such/program"], seconds=5, log=tmp_path / "l", scratch=tmp_path)
    assert outcome.status == "failed"
    assert "/no/such/program" in outcome.detail


def test_a_half_written_result_is_no_result(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1')
    assert parts.read(tmp_path / "x.json") == {}
    assert parts.read(tmp_path / "absent.json") == {}


def test_parts_follow_each_other_whatever_happens(tmp_path, monkeypatch):
    # A GPU is pretended; one part breaks, one hangs, and all others run, one of them by the tuned table.
    folder = tmp_path / "modules"
    folder.mkdir()
    seen = "import os\nwrite(status='ok', rows=[], table=os.environ.get('SOFTDIFF_TRITON_CONFIGS', ''))"
    texts = {
        "environment": "write(reason='', gpu={})",
        "correctness": "write(status='failed', detail='1 failed')",
        "sanitizer": "raise SystemExit(3)",
        "tune": "write(measured={'sm_90': 1}, architectures={})",
        "bench": seen,
        "tuned bench": seen,
        "ncu": "import time; time.sleep(60)",
    }
    names = {name: "fake_" + name.replace(" ", "_") for name in texts}
    for name, text in texts.items():
        (folder / f"{names[name]}.py").write_text(WRITE + text)
    monkeypatch.setattr(report, "_MODULES", names)
    monkeypatch.setitem(report.SHARES, "ncu", 5.5)
    monkeypatch.setattr(report, "TOTAL", 60.0)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    out = tmp_path / "report"
    assert report.main(["--out", str(out), "--seconds", "60"]) == 1
    found = json.loads((out / "report.json").read_text())["parts"]
    ended = {name: part["status"] for name, part in found.items()}
    assert ended == {
        "environment": "ok",
        "correctness": "failed",
        "sanitizer": "failed",
        "tune": "ok",
        "bench": "ok",
        "tuned bench": "ok",
        "ncu": "timeout",
    }
    assert found["bench"]["table"] == ""
    assert found["tuned bench"]["table"] == str(out / "tuned-configs.json")
    assert json.loads((out / "tuned-configs.json").read_text())["measured"] == {"sm_90": 1}
    assert "architectures" not in found["tune"]
    assert len(list(out.iterdir())) <= 6


def test_only_the_tests_decide_the_exit_status():
    def exits(status):
        others = {"bench": Outcome("bench", "failed"), "sanitizer": Outcome("sanitizer", "failed")}
        return report.failed({"correctness": Outcome("correctness", status), **others})

    assert [exits(s) for s in parts.STATUSES] == [False, True, True, False]
    assert not report.failed({})


def test_the_shares_fit_into_nine_minutes():
    # The sanitizer runs beside the tests, within their time; 20 s are left for what lies between the parts.
    assert report.SHARES["sanitizer"] <= report.SHARES["correctness"]
    assert report.TOTAL == sum(report.SHARES.values()) - report.SHARES["sanitizer"] <= 9 * 60 - 20


TESTS = """
import pytest
pytestmark = [pytest.mark.gpu]
SHARDS = {"test_numbers": 2}

@pytest.mark.parametrize("n", [1, 2, 3], ids=lambda n: f"n{n}")
@pytest.mark.parametrize("name, size", [("a", 1), pytest.param("b", 2, id="second")])
def test_numbers(n, name, size):
    assert n * size != 6, "six"

@pytest.mark.skipif(True, reason="never")
def test_skipped():
    raise ValueError

def test_skips_itself():
    pytest.skip("not here")

def test_raises():
    with pytest.raises(ValueError, match="wrong"):
        raise ValueError("all wrong")

def test_dies():
    import os
    os._exit(7)
"""


@pytest.mark.parametrize("plain", [False, True], ids=["pytest", "own runner"])
def test_tests_run_each_in_its_own_process(tmp_path, plain):
    # Both runners find the same cases: 6 numbers in two shards of which one fails, two skips, one crash.
    (tmp_path / "test_some.py").write_text(TESTS)
    found = correctness.units(tmp_path)
    assert [u.name for u in found][:2] == ["test_some.py::test_numbers 1/2", "test_some.py::test_numbers 2/2"]
    out = tmp_path / "out.json"
    done = correctness.run(found, out, seconds=60, workers=2, plain=plain)
    assert {s: done[s] for s in ("passed", "failed", "skipped", "timeout")} == {
        "passed": 6,
        "failed": 2,
        "skipped": 2,
        "timeout": 0,
    }
    assert done["status"] == "failed"
    assert parts.read(out) == json.loads(json.dumps(done))
    failures = {u["name"]: u["failures"] for u in done["units"] if u["failures"]}
    assert [f["id"] for f in failures["test_some.py::test_dies"]] == ["test_dies"]
    assert "status 7" in failures["test_some.py::test_dies"][0]["message"]
    (six,) = (f for name, fs in failures.items() if "numbers" in name for f in fs)
    assert "six" in six["message"] and "second" in six["id"] and "n3" in six["id"]
    reasons = {r for u in done["units"] for r in u["skip_reasons"]}
    assert any("never" in r for r in reasons) and any("not here" in r for r in reasons)
    text = document.whole({"correctness": Outcome("correctness", "failed", data=done)})
    assert "six" in text and "6 passed, 2 failed" in text


def test_a_file_that_does_not_import_is_a_failure(tmp_path):
    (tmp_path / "test_some.py").write_text("import no_such_module\ndef test_one(): pass\n")
    for plain in ([], ["--plain"]):
        out = tmp_path / "out.json"
        command = [sys.executable, "-m", "benchmarks.gpu.runner", str(tmp_path / "test_some.py"), "test_one"]
        done = subprocess.run(
            [*command, "--out", str(out), *plain], cwd=ROOT, capture_output=True, timeout=60
        )
        assert done.returncode == 1
        assert any("no_such_module" in case["message"] for case in parts.read(out)["cases"])


def test_no_time_left_is_not_a_success(tmp_path):
    (tmp_path / "test_some.py").write_text("def test_one(): pass\n")
    done = correctness.run(correctness.units(tmp_path), tmp_path / "o", seconds=0.0, workers=1)
    assert done["status"] == "failed"
    assert done["undone"] == ["test_some.py::test_one"]


def test_every_gpu_test_is_marked_and_found():
    # Each file under tests/gpu takes the marks, and what it says of shards names its own functions.
    found = correctness.units(correctness.TESTS)
    assert len({u.file for u in found}) >= 8
    for file in {u.file for u in found}:
        text = file.read_text()
        assert "pytestmark = marks\n" in text
        for unit in found:
            if unit.file == file and unit.shard[1] > 1:
                assert f"def {unit.function}(" in text
    assert runner.HAS_PYTEST


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
            "softdiff_kernels": {"median": 100.0, "fair": False},
            "four-product": {"median": 490.0, "fair": True},
            "four-product, TF32": {"median": 300.0, "fair": False},
        },
        "failures": {"FFT-DCT": "RuntimeError: out of memory"},
    }
    return {**line, **changes}


def test_targets():
    # Exactly what is wanted is met; what was not measured is neither met nor missed.
    overhead = {"registered no-op": 4.0, "bare Triton launch": 6.0, "corrupt": 15.1}
    lines = [row(), row(op="momentum_step", of_copy=0.79), row(dtype="bfloat16", us=50.0)]
    found = {t.what: t for t in targets.evaluate(lines, overhead)}
    assert found["corrupt 64 px float32"].verdict == "met"
    assert found["momentum_step 64 px float32"].verdict == "missed"
    assert found["corrupt 32 px float32"].verdict == "not measured"
    assert found["corrupt 64 px float32 to the fastest baseline"].verdict == "missed"
    assert found["corrupt 64 px bfloat16 to float32"].got == 2.0
    assert found["host time of corrupt to no-op and bare launch"].verdict == "missed"
    assert {t.verdict for t in targets.evaluate([], {})} == {"not measured"}


def test_tables():
    full = tables.full([row()], {"corrupt": {"key drawn": 12.34}})
    assert len({len(line) for line in full.splitlines()}) == 1
    assert "80%" in full and "4.90" in full and "12.3" in full and "four-product" in full
    every = tables.every_baseline([row(), row(size=32, failures={})], "corrupt", "float32")
    assert "four-product, TF32 *" in every and "failed" in every
    assert "four-product *" not in every
    graphs = {"softdiff_kernels, graph": {"median": 10.0, "fair": False}}
    graphs["four-product, graph"] = {"median": 40.0, "fair": True}
    small = tables.small([row(kind="small", others={**row()["others"], **graphs})])
    assert [c.strip() for c in small.splitlines()[2].split("|")[1:-1]] == [
        *["corrupt", "64", "8", "100.0", "99.0-101.0", "four-product", "490.0", "4.90"],
        *["10.0", "four-product", "40.0", "4.00"],
    ]
    assert "2.00" in tables.tuned([row()], [row(us=50.0)])
    assert tables.small([row()]).count("\n") == 1


def test_a_later_run_can_only_lower_a_ratio():
    first = rows.Row(**{**row(), "ratio": 4.0})
    slower, faster = (rows.Row(**{**row(), "ratio": r, "fastest": "new"}) for r in (4.5, 3.0))
    assert rows.merged(first, slower).ratio == 4.0
    assert rows.merged(first, faster).ratio == 3.0
    assert rows.merged(first, faster).fastest == "new"


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
    found = sanitizer.check("memcheck", "compute-sanitizer", 5.0, tmp_path)
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
    assert ncu.profile("ncu", "corrupt", 64, "corrupt_kernel", 5.0, tmp_path)["status"] == "absent"


def test_tools_off_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for release in ("cuda-12.9", "cuda-13.0"):
        (tmp_path / release / "bin").mkdir(parents=True)
        (tmp_path / release / "bin" / "ncu").write_text("")
    where = (f"{tmp_path}/cuda*/bin",)
    assert tools.find("ncu", where) == str(tmp_path / "cuda-13.0" / "bin" / "ncu")
    assert tools.find("compute-sanitizer", where) is None


def test_the_commit_without_git(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.commit() == "unknown"


def test_rows_on_a_cpu():
    # One row of each kind beside every eager baseline: all right in float64's eyes, none failed.
    cpu = torch.device("cpu")
    setup = rows.Setup(cpu, l2_bytes=2**10, copy_bytes_s=1e9, image_bytes=2**13, budget=0.0)
    from benchmarks.gpu import rivals

    for op in rows.OPS:
        for dtype, worst in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
            found = rivals.eager(rows.named(op), 8, dtype, cpu)
            line = rows.compare(op, 8, 3, dtype, setup, found, kind="full")
            assert not line.failures
            assert all(t["error"] is None or t["error"] < worst for t in line.others.values())
            assert line.error is not None and line.error < worst
            assert line.fastest is not None and line.ratio is not None
    small = rows.compare(
        "corrupt", 8, 2, torch.float32, setup, rivals.eager("corrupt", 8, torch.float32, cpu), kind="small"
    )
    assert "softdiff_kernels, graph" in small.others
    assert not str(small.fastest).endswith("graph")


def test_the_watched_program_calls_every_op():
    assert few_calls.main(["every", "--dry"]) == 0
    assert few_calls.main(["momentum_step", "--dry"]) == 0
