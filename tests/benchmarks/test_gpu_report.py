# SPDX-License-Identifier: Apache-2.0
"""The GPU report where there is no GPU: end to end, and its pieces one by one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import (
    correctness,
    document,
    environment,
    overlay,
    parts,
    report,
    runner,
)
from benchmarks.gpu.parts import Outcome

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}


def test_without_a_gpu_every_part_says_so(tmp_path):
    # The command as `make` runs it: files are written, each GPU part is absent, and the exit status is 0.
    make = shutil.which("make")
    if make is None or not (ROOT / "Makefile").exists():
        pytest.skip("needs make and the sources")
    folder = tmp_path / "report"
    command = [make, "-s", "gpu-report", f"REPORT={folder}", f"REPORT_PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, env=HIDDEN, capture_output=True, text=True, timeout=200)
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
    outcome = started(tmp_path, text, seconds=4)
    assert outcome.status == "timeout"
    assert outcome.seconds < 15
    assert outcome.data == {"number": 3}
    pid = int((tmp_path / "some.log").read_text().split()[0])
    stat = Path(f"/proc/{pid}/stat")

    def gone():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"
        return True

    # A killed process is seen until the kernel has got round to it.
    deadline = time.monotonic() + 30
    while not gone() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gone()


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
    seen = "import os\nwrite(status='ok', rows=[], table=os.environ.get('SOFTDIFF_TRITON_CONFIGS', ''), "
    seen += "faster={'corrupt': {'64': 'cuda'}})"
    # The CUDA parts see what the build has put beside the package they import. Triton's do not wait for it;
    # here the build waits for them, so that no clock decides the order.
    looked = folder / "looked"
    build = f"import pathlib, time\nlooked = pathlib.Path({str(looked)!r})\nuntil = time.monotonic() + 30\n"
    build += "while not looked.exists() and time.monotonic() < until: time.sleep(0.02)\n"
    build += "into = pathlib.Path(sys.argv[sys.argv.index('--into') + 1])\n"
    build += "(into / 'softdiff_kernels' / '_cuda.py').write_text('made = 1')\nwrite(nvcc='13.0')"
    cuda = "from softdiff_kernels import _cuda\nwrite(made=_cuda.made)"
    triton = "import importlib.util\nfound = importlib.util.find_spec('softdiff_kernels._cuda')\n"
    # (An installation may have a compiled module of its own.)
    triton += "early = found is None or not str(found.origin).endswith('_cuda.py')\n"
    triton += f"open({str(looked)!r}, 'w').close()\n"
    texts = {
        "environment": "write(reason='', gpu={})",
        "build": build,
        "correctness triton": triton + "write(status='failed', detail='1 failed', early=early)",
        "correctness cuda": cuda,
        "sanitizer triton": "raise SystemExit(3)",
        "sanitizer cuda": cuda,
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
    monkeypatch.setattr(overlay, "built", lambda: None)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    out = tmp_path / "report"
    assert report.main(["--out", str(out), "--seconds", "60"]) == 1
    found = json.loads((out / "report.json").read_text())["parts"]
    ended = {name: part["status"] for name, part in found.items()}
    assert ended == {
        "environment": "ok",
        "build": "ok",
        "correctness triton": "failed",
        "correctness cuda": "ok",
        "sanitizer triton": "failed",
        "sanitizer cuda": "ok",
        "tune": "ok",
        "bench": "ok",
        "tuned bench": "ok",
        "ncu": "timeout",
    }
    assert found["bench"]["table"] == ""
    assert found["tuned bench"]["table"] == str(out / "tuned-configs.json")
    assert json.loads((out / "tuned-configs.json").read_text())["measured"] == {"sm_90": 1}
    assert "architectures" not in found["tune"]
    assert found["correctness triton"]["early"]
    assert found["correctness cuda"]["made"] == found["sanitizer cuda"]["made"] == 1
    assert not list((ROOT / "softdiff_kernels").glob("_cuda.py"))
    kept = json.loads((out / "faster.json").read_text())
    assert list(kept) == ["gpu", "date", "versions", "faster"]
    assert kept["faster"] == {"corrupt": {"64": "cuda"}} and kept["versions"]["nvcc"] == "13.0"
    assert len(list(out.iterdir())) <= 6


@pytest.mark.parametrize("status, code", [("absent", 0), ("failed", 1)])
def test_without_the_cuda_module_its_parts_are_absent(tmp_path, monkeypatch, status, code):
    # The rest runs; kernels that do not compile are a failure, a compiler that is not here is none.
    folder = tmp_path / "modules"
    folder.mkdir()
    fine = "write(status='ok', rows=[])"
    texts = {name: fine for name in report.PARTS}
    texts |= {"environment": "write(reason='', gpu={})", "tune": "write(status='absent')"}
    texts["build"] = f"write(status='{status}', detail='no nvcc')"
    names = {name: "fake_" + name.replace(" ", "_") for name in texts}
    for name, text in texts.items():
        (folder / f"{names[name]}.py").write_text(WRITE + text)
    monkeypatch.setattr(report, "_MODULES", names)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    out = tmp_path / "report"
    wanted = ["correctness", "sanitizer", "ncu"]
    assert report.main(["--out", str(out), "--only", *wanted]) == code
    found = json.loads((out / "report.json").read_text())["parts"]
    absent = {name for name, part in found.items() if part["status"] == "absent"} - {"build"}
    assert absent == {"correctness cuda", "sanitizer cuda"}
    assert all(found[name]["detail"] == "no CUDA module: no nvcc" for name in absent)
    assert not (out / "faster.json").exists()


def test_only_the_tests_decide_the_exit_status():
    def exits(deciding, status):
        others = {name: Outcome(name, "failed") for name in ("bench", "sanitizer triton", "sanitizer cuda")}
        return report.failed({deciding: Outcome(deciding, status), **others})

    for deciding in ("correctness triton", "correctness cuda", "build"):
        assert [exits(deciding, s) for s in parts.STATUSES] == [False, True, True, False]
    assert not report.failed({})


def test_the_shares_fit_into_nine_minutes():
    # The build, the tests and the sanitizer run beside each other in one window, in which what waits for the
    # build has 80 s at least; 20 s are left for what lies between the parts.
    beside = {name: report.SHARES[name] for name in report.BESIDE}
    assert len(beside) == 5 and max(beside.values()) <= report.WINDOW
    assert report.SHARES["build"] <= report.WINDOW - 80
    others = sum(share for name, share in report.SHARES.items() if name not in beside)
    assert report.TOTAL == report.WINDOW + others <= 9 * 60 - 20
    assert report.TOTAL == 510


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
    text = document.whole({"correctness cuda": Outcome("correctness cuda", "failed", data=done)})
    assert "six" in text and "6 passed, 2 failed" in text


def test_a_file_that_does_not_import_is_a_failure(tmp_path):
    (tmp_path / "test_some.py").write_text("import no_such_module\ndef test_one(): pass\n")
    for plain in ([], ["--plain"]):
        out = tmp_path / "out.json"
        command = [sys.executable, "-m", "benchmarks.gpu.runner", str(tmp_path / "test_some.py"), "test_one"]
        done = subprocess.run(
            [*command, "--out", str(out), *plain], cwd=ROOT, capture_output=True, timeout=200
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
        assert "\npytestmark = marks" in text
        # What runs on every backend takes it; what is one's own names it.
        own = "\npytestmark = marks_of(" in text
        assert all(f"def {u.function}(backend" in text or own for u in found if u.file == file)
        for unit in found:
            if unit.file == file and unit.shard[1] > 1:
                assert f"def {unit.function}(" in text
    assert runner.HAS_PYTEST
    # The CUDA kernels are compiled before: one process a function.
    alone = correctness.units(correctness.TESTS, "cuda")
    assert {u.function for u in alone} == {u.function for u in found}
    assert len(alone) < len(found) and {u.shard for u in alone} == {(0, 1)}


def test_the_commit_without_git(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.commit() == "unknown"
