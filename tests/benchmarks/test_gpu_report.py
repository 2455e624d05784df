# SPDX-License-Identifier: Apache-2.0
"""The GPU report where there is no GPU: end to end, and its pieces one by one."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import in_processes as correctness

from benchmarks.gpu import build, document, parts, report
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
    versions = found["environment"]["machine"]["versions"]
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    for name in set(report.PARTS) - {"environment"}:
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


def gone(pid: int) -> bool:
    """Whether a process has ended. A killed one is seen until the kernel has got round to it."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return True


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert true()


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
    wait_until(lambda: gone(pid))


def test_a_part_that_cannot_start(tmp_path):
    outcome = parts.run("some", ["/no/such/program"], seconds=5, log=tmp_path / "l", scratch=tmp_path)
    assert outcome.status == "failed"
    assert "/no/such/program" in outcome.detail


def test_a_half_written_result_is_no_result(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1')
    assert parts.read(tmp_path / "x.json") == {}
    assert parts.read(tmp_path / "absent.json") == {}


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, texts: dict[str, str]) -> None:
    """Runs these programs as the parts."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        module = "fake_" + name.replace(" ", "_")
        (folder / f"{module}.py").write_text(WRITE + text)
        monkeypatch.setitem(report.PARTS, name, (report.PARTS[name][0], module))
    monkeypatch.setattr(build, "built_before", lambda: None)
    monkeypatch.setenv("PYTHONPATH", str(folder))


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
    pretend(monkeypatch, folder, texts)
    monkeypatch.setitem(report.PARTS, "ncu", (5.5, report.PARTS["ncu"][1]))
    monkeypatch.setattr(report, "TOTAL", 200.0)
    out = tmp_path / "report"
    assert report.main(["--out", str(out), "--seconds", "200"]) == 1
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
    pretend(monkeypatch, folder, texts)
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


def test_without_the_environment_part_the_others_run(tmp_path, monkeypatch):
    # On a slow disk the first import of torch may take longer than any limit: that says nothing of the rest.
    texts = {name: "write(status='ok', rows=[])" for name in report.PARTS}
    texts |= {"environment": "import time; time.sleep(60)", "build": "write(status='absent')"}
    pretend(monkeypatch, tmp_path / "modules", texts)
    monkeypatch.setitem(report.PARTS, "environment", (5.5, report.PARTS["environment"][1]))
    out = tmp_path / "report"
    assert report.main(["--out", str(out), "--only", "correctness", "ncu", "--seconds", "100"]) == 0
    ended = {n: p["status"] for n, p in json.loads((out / "report.json").read_text())["parts"].items()}
    assert ended == {
        **{"environment": "timeout", "build": "absent", "correctness triton": "ok"},
        **{"correctness cuda": "absent", "ncu": "ok"},
    }
    assert "that part did not come to its end" in (out / "report.md").read_text()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["asked to stop", "killed"])
def test_a_report_that_is_stopped_leaves_what_was_done(tmp_path, how):
    # Whole files with what the running part has saved so far; one that is asked to stop ends its parts, too.
    began = tmp_path / "began"
    slow = f"write(status='ok', detail='half', passed=3)\nopen({str(began)!r}, 'w').write(str(os.getpid()))\n"
    program_text = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.gpu import build, report
build.built_before = lambda: None
report._SAVED = 0.2
report.PARTS.update({{name: (60.0, "fake_" + name.split()[0]) for name in report.PARTS}})
sys.exit(report.main(["--out", {str(tmp_path / "out")!r}, "--only", "correctness", "--seconds", "300"]))
"""
    texts = {"environment": "write(reason='')", "build": "write(status='absent', detail='no nvcc')"}
    texts["correctness"] = "import os, time\n" + slow + "time.sleep(100)"
    for name, text in texts.items():
        (tmp_path / f"fake_{name}.py").write_text(WRITE + text)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen([*program(tmp_path, program_text)], env=environ, stdout=log, stderr=log)
    try:
        json_file, markdown = tmp_path / "out" / "report.json", tmp_path / "out" / "report.md"
        wait_until(lambda: markdown.exists() and "3 passed" in markdown.read_text())
        process.send_signal(how)
        process.wait(timeout=60)
    finally:
        pid = int(began.read_text())
        if how == signal.SIGKILL:
            os.kill(pid, signal.SIGKILL)
        process.kill()
    found = json.loads(json_file.read_text())
    tests = found["parts"]["correctness triton"]
    assert tests["status"] == ("running" if how == signal.SIGKILL else "failed") and tests["passed"] == 3
    assert found["complete"] == (how == signal.SIGTERM)
    assert "3 passed" in markdown.read_text()
    wait_until(lambda: gone(pid))


@pytest.mark.parametrize("name", ["correctness cuda", "sanitizer cuda", "bench"])
def test_the_parts_start_from_anywhere(tmp_path, name):
    # As the report starts them: from another folder, with its variables alone.
    program, *_ = report.PARTS[name][1].split()
    start = [str(ROOT / program)] if program.endswith(".py") else ["-m", program]
    environ = report.variables_of_parts(tmp_path)
    command = [sys.executable, *start, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and "--seconds" in done.stdout, done.stderr


def test_the_shares_fit_into_nine_minutes():
    # The build, the tests and the sanitizer run beside each other in one window, in which what waits for the
    # build has 80 s at least; 15 s are the environment's, and 20 s are left for what lies between the parts.
    shares = {name: seconds for name, (seconds, _) in report.PARTS.items()}
    beside = {"build", *report.GROUPS["correctness"], *report.GROUPS["sanitizer"]}
    assert len(beside) == 5 and max(shares[name] for name in beside) <= report.WINDOW
    assert shares["build"] <= report.WINDOW - 80
    others = sum(seconds for name, seconds in shares.items() if name not in {*beside, "environment"})
    assert report.TOTAL == report.WINDOW + others + 15 == 510 <= 9 * 60 - 20


TESTS = """
import pytest
pytestmark = [pytest.mark.gpu]

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


def run_tests(folder: Path, backend: str = "cuda", seconds: float = 100.0) -> dict[str, Any]:
    correctness.run(folder, folder / "out.json", backend, folder, seconds, 2)
    return parts.read(folder / "out.json")


def test_tests_run_each_in_its_own_process(tmp_path, monkeypatch):
    # 6 numbers in two processes of which one fails, two skips, one crash.
    (tmp_path / "test_some.py").write_text(TESTS)
    monkeypatch.setitem(correctness._CASES, "cuda", 3)
    done = run_tests(tmp_path)
    counts = {"passed": 6, "failed": 2, "skipped": 2, "timeout": 0, "undone": 0}
    assert {s: done[s] for s in counts} == counts
    assert done["status"] == "failed" and "core" not in done["detail"]
    names = [u["name"] for u in done["units"]]
    assert {"test_some.py::test_numbers 1/2", "test_some.py::test_numbers 2/2"} < set(names) and len(
        names
    ) == 6
    failures = {u["name"]: u["failures"] for u in done["units"] if u["failures"]}
    (dies,) = failures["test_some.py::test_dies"]
    assert dies["id"] == "test_some.py::test_dies" and "status 7" in dies["message"]
    (six,) = (f for name, fs in failures.items() if "numbers" in name for f in fs)
    assert "AssertionError: six" in six["message"] and "second" in six["id"] and "n3" in six["id"]
    reasons = {r for u in done["units"] for r in u["skip_reasons"]}
    assert any("never" in r for r in reasons) and any("not here" in r for r in reasons)
    about = {"command": "c", "seconds": 1.0, "complete": True}
    text = document.whole({"correctness cuda": Outcome("correctness cuda", "failed", data=done)}, about)
    assert "six" in text and "6 passed, 2 failed" in text


def test_a_test_that_hangs_is_named(tmp_path, monkeypatch):
    (tmp_path / "test_some.py").write_text(
        "import time\ndef test_one(): pass\ndef test_two(): time.sleep(60)\n"
    )
    monkeypatch.setattr(correctness, "_SLOWEST", 8.0)
    done = run_tests(tmp_path)
    assert (done["passed"], done["timeout"], done["status"]) == (1, 1, "failed")
    (failure,) = (f for u in done["units"] for f in u["failures"])
    assert failure["id"] == "test_some.py::test_two"


def test_a_file_that_does_not_import_is_a_failure(tmp_path):
    # The tests of the other files run.
    (tmp_path / "test_bad.py").write_text("import no_such_module\ndef test_one(): pass\n")
    (tmp_path / "test_good.py").write_text("def test_one(): pass\n")
    done = run_tests(tmp_path)
    assert (done["passed"], done["failed"]) == (1, 1)
    (bad,) = (u for u in done["units"] if u["name"] == "test_bad.py")
    assert "no_such_module" in bad["failures"][0]["message"]


def test_no_time_left_is_not_a_success(tmp_path):
    (tmp_path / "test_some.py").write_text("def test_one(): pass\n")
    done = run_tests(tmp_path, seconds=0.0)
    assert done["status"] == "failed"
    assert done["undone"] == 1 and done["units"][0]["name"] == "test_some.py::test_one"


def test_without_pytest_the_tests_are_absent(tmp_path, monkeypatch, capsys):
    # One line before the parts begin, and one for each of the parts that would run tests.
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "pytest" else real(n, *a))
    assert run_tests(tmp_path) == {"status": "absent", "detail": "pytest is not installed"}
    pretend(monkeypatch, tmp_path / "modules", {"environment": "write(reason='torch finds no GPU')"})
    assert report.main(["--out", str(tmp_path / "out"), "--only", "ncu"]) == 0
    assert "pytest is not installed: the tests of the ops are left out" in capsys.readouterr().out


def collected(backend: str, tmp_path: Path) -> list[str]:
    ids, broken = correctness.collect(correctness.TESTS, tmp_path / f"{backend}.log", backend, 200.0)
    assert not broken
    return ids


def test_every_gpu_test_is_marked_and_found(tmp_path):
    # Each file under tests/gpu takes the marks; what runs on every backend takes it, what is one's own names
    # it.
    files = sorted(correctness.TESTS.glob("test_*.py"))
    assert len(files) >= 8
    for file in files:
        text = file.read_text()
        assert "\npytestmark = marks" in text
        own = "\npytestmark = marks_of(" in text
        assert own or text.count("\ndef test_") == len(re.findall(r"\ndef test_\w+\(backend", text))
    # A backend's part has its own cases, and those that need both are CUDA's.
    each = {backend: collected(backend, tmp_path) for backend in ("triton", "cuda")}
    assert not any("cuda]" in i or i.startswith("test_gpu_cuda") for i in each["triton"])
    assert not any("triton]" in i or i.startswith("test_gpu_triton") for i in each["cuda"])
    everything = {function for ids in each.values() for function in (i.partition("[")[0] for i in ids)}
    functions = {
        f"{file.name}::{name}"
        for file in files
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert everything == functions
    # Every case is in one process; what it says of slow functions are names of functions.
    for backend, ids in each.items():
        units = correctness.units(ids, backend)
        assert sorted(i for unit in units for i in unit.ids) == sorted(ids)
    assert {name.split("::")[1] for name in functions} > {*correctness.CORE, *correctness._CASES_OF}


def test_core_cases_come_first():
    ids = [
        f"test_gpu_accuracy.py::test_{op}[2x3x{side}x{side}-{dtype}-triton]"
        for op in ("blur", "corrupt", "loss_and_gradient")
        for side in (8, 64, 256)
        for dtype in ("float32", "float16", "bfloat16")
    ]
    ids.append("test_gpu_accuracy.py::test_momentum_step[3x3x32x32-float32-large-triton]")
    units = correctness.units(ids, "triton")
    core = [i for unit in units if unit.core for i in unit.ids]
    assert len(core) == 2 * 2 * 2 + 1
    assert not any("blur" in i or "float16" in i.replace("bfloat16", "") or "8x8" in i for i in core)
    count = sum(unit.core for unit in units)
    assert all(unit.core for unit in units[:count]) and all(len(unit.ids) <= 4 for unit in units[:count])
    done = [{"name": "core", "core": True, "passed": 9}, {"name": "a", "passed": 1, "failed": 1}]
    assert correctness.summary(done)["detail"] == "core: 9 passed; all: 10 passed, 1 failed"
