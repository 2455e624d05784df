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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import in_processes as correctness

from benchmarks.gpu import bench, document, parts, report, rows
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
    write_fakes(folder, texts)
    for name in texts:
        monkeypatch.setitem(report.PARTS, name, fake(name))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def fake(name: str) -> str:
    return "fake_" + name.replace(" ", "_")


def write_fakes(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{fake(name)}.py").write_text(WRITE + text)


def parts_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())["parts"]


FINE = "write(status='ok', rows=[])"


def test_parts_follow_each_other_whatever_happens(tmp_path, monkeypatch):
    # A GPU is pretended; some parts break or hang, and all others run.
    folder = tmp_path / "modules"
    folder.mkdir()
    times = [
        {"op": "corrupt", "px": 64, "dtype": "float32", "kind": "full", "batch": 8, "backend": b, "ours": t}
        for b, t in (("triton", 2.0), ("cuda", 1.0))
    ]
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
        "environment": "write(reason='', machine={}, smi={})",
        "build": build,
        "kernels": "raise SystemExit(1)",
        "core triton": triton + "write(status='failed', detail='1 failed', early=early)",
        "core cuda": cuda,
        "speed": f"write(status='ok', rows={times!r})",
        "tests triton": FINE,
        "tests cuda": cuda,
        "sanitizer triton": "raise SystemExit(3)",
        "sanitizer cuda": cuda,
        "bench": FINE,
        "ncu": "import time; time.sleep(60)",
        "tune": "write(measured={'sm_90': 1}, architectures={})",
    }
    pretend(monkeypatch, folder, texts)
    monkeypatch.setattr(
        report,
        "PHASES",
        tuple(replace(p, least=5.0, most=5.5 if p.names == ("ncu",) else 50.0) for p in report.PHASES),
    )
    out = tmp_path / "report"
    assert report.main(["--out", str(out), "--seconds", "300"]) == 1
    found = parts_of(out)
    ended = {name: part["status"] for name, part in found.items()}
    others = {"kernels": "failed", "core triton": "failed", "sanitizer triton": "failed", "ncu": "timeout"}
    assert ended == {**dict.fromkeys(report.PARTS, "ok"), **others}
    assert json.loads((out / "tuned-configs.json").read_text())["measured"] == {"sm_90": 1}
    assert "architectures" not in found["tune"]
    assert found["core triton"]["early"]
    assert found["core cuda"]["made"] == found["tests cuda"]["made"] == found["sanitizer cuda"]["made"] == 1
    assert not list((ROOT / "softdiff_kernels").glob("_cuda.py"))
    kept = json.loads((out / "faster.json").read_text())
    assert list(kept) == ["gpu", "date", "versions", "faster"]
    assert kept["faster"] == {"corrupt": {"64": "cuda"}} and kept["versions"]["nvcc"] == "13.0"
    # A machine that lends its GPU may give back no more than a few files.
    assert len(list(out.iterdir())) <= 6


@pytest.mark.parametrize("status, code", [("absent", 0), ("failed", 1)])
def test_without_the_cuda_module_its_parts_are_absent(tmp_path, monkeypatch, status, code):
    # The rest runs; kernels that do not compile are a failure, a compiler that is not here is none.
    texts = dict.fromkeys(report.PARTS, FINE)
    texts["environment"] = "write(reason='', machine={}, smi={})"
    texts["build"] = f"write(status='{status}', detail='no nvcc')"
    pretend(monkeypatch, tmp_path / "modules", texts)
    out = tmp_path / "report"
    wanted = ["core", "sanitizer", "ncu"]
    assert report.main(["--out", str(out), "--only", *wanted]) == code
    found = parts_of(out)
    absent = {name for name, part in found.items() if part["status"] == "absent"} - {"build"}
    assert absent == {"core cuda", "sanitizer cuda"}
    assert all(found[name]["detail"] == "no CUDA module: no nvcc" for name in absent)
    assert not (out / "faster.json").exists()


def test_what_decides_the_exit_status():
    # The tests, what they need, and whether the machine is known; the rest of the tests may be cut short.
    def exits(deciding, status):
        others = {name: Outcome(name, "failed") for name in ("bench", "sanitizer triton", "sanitizer cuda")}
        return report.failed({deciding: Outcome(deciding, status), **others})

    bad = {"environment": set(), "build": set(), "tests cuda": set(), "core triton": {"left out"}}
    for deciding, more in bad.items():
        assert {s for s in parts.STATUSES if exits(deciding, s)} == {"failed", "timeout", *more}, deciding
    assert not report.failed({})


def test_without_the_environment_part_the_others_run(tmp_path, monkeypatch):
    # On a slow disk the first import of torch may take longer than any limit: that says nothing of the rest.
    # The exit status tells, and the parts behind it have not waited for it.
    texts = dict.fromkeys(report.PARTS, FINE)
    texts |= {"environment": "import time; time.sleep(60)", "build": "write(status='absent')"}
    pretend(monkeypatch, tmp_path / "modules", texts)
    monkeypatch.setattr(report, "_ENVIRONMENT", 5.5)
    out = tmp_path / "report"
    assert report.main(["--out", str(out), "--only", "core", "ncu", "--seconds", "150"]) == 1
    ended = {n: p["status"] for n, p in parts_of(out).items()}
    assert ended == {
        **{"environment": "timeout", "build": "absent", "core triton": "ok"},
        **{"core cuda": "absent", "ncu": "ok"},
    }
    assert "that part did not come to its end" in (out / "report.md").read_text()


def test_the_pools_of_a_part_are_bounded(tmp_path, monkeypatch):
    # Ten processes on sixteen cores must not take sixteen threads each; the caller may ask for others.
    for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.delenv(name, raising=False)
    variables = report.variables_of_parts(tmp_path)
    assert (variables["OMP_NUM_THREADS"], variables["TORCHINDUCTOR_COMPILE_THREADS"]) == ("2", "4")
    assert variables["PYTHONUNBUFFERED"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert report.variables_of_parts(tmp_path)["OMP_NUM_THREADS"] == "7"


def test_the_environment_has_a_minute_in_a_report_of_any_length():
    assert report._ENVIRONMENT == 60.0
    first = report.PHASES[0]
    assert "environment" in first.names
    assert all(report.plan(seconds, report.PARTS)[first] >= 60 for seconds in (150, 300, 520))


@pytest.mark.parametrize(
    "seconds, behind",
    [
        (150, [("speed",)]),
        (300, [("speed",), report.PHASES[2].names, ("bench",), ("ncu",)]),
        (520, [phase.names for phase in report.PHASES[1:]]),
    ],
)
def test_the_plan(seconds, behind):
    # The core pass of both backends and its times fit into the shortest report; the longer ones have more, in
    # the same order. No phase gets less than it needs, and all of them together fit.
    chosen = report.plan(seconds - report._RESERVE, report.PARTS)
    assert [phase.names for phase in chosen] == [report.PHASES[0].names, *behind]
    assert {"core triton", "core cuda", "build", "kernels"} < set(report.PHASES[0].names)
    assert all(phase.least <= own <= phase.most for phase, own in chosen.items())
    assert sum(chosen.values()) <= seconds - report._RESERVE
    text = report.planned(seconds, report.PARTS)
    assert text.count("if time is left") == len(report.PHASES) - len(chosen)
    assert {name for phase in report.PHASES for name in phase.names} == set(report.PARTS)


def test_a_phase_without_its_least_is_left_out(tmp_path, monkeypatch):
    # It says what it would have needed, and shorter ones behind it run.
    texts = dict.fromkeys(report.PARTS, FINE)
    texts["environment"] = "write(reason='', machine={}, smi={})"
    pretend(monkeypatch, tmp_path / "modules", texts)
    phases = (
        replace(report.PHASES[0], least=10.0),
        report.Phase(("bench",), 500.0, 600.0),
        report.Phase(("ncu",), 10.0, 20.0),
    )
    monkeypatch.setattr(report, "PHASES", phases)
    out = tmp_path / "report"
    assert report.main(["--out", str(out), "--only", "bench", "ncu", "--seconds", "60"]) == 0
    found = parts_of(out)
    assert found["bench"]["status"] == "left out" and "needs 500 s" in found["bench"]["detail"]
    assert found["ncu"]["status"] == "ok"


SCALE = 40.0  # a second of the pretended report is a fortieth of one
# Seconds of the pretended parts, as of a report on 16 cores; each saves what it has after every tenth.
TOOK = {"environment": 12, "build": 70, "kernels": 25, "core triton": 20, "core cuda": 15, "speed": 45}
TOOK |= {
    "tests triton": 90,
    "tests cuda": 60,
    "sanitizer triton": 70,
    "sanitizer cuda": 50,
    "bench": 60,
    "ncu": 20,
}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["asked to stop", "killed"])
@pytest.mark.parametrize("moment", [20, 60, 150, 300])
def test_a_report_that_is_stopped_leaves_what_was_done(tmp_path, moment, how):
    # At any moment: whole files with all that ended, and with what the running parts have saved; their
    # processes end, too. The parts note what they saved and when, by the clock that the report is stopped by.
    out, notes = tmp_path / "out", tmp_path / "notes"
    notes.mkdir()
    slow = f"""
import os, pathlib, time
from benchmarks.gpu import parts
parts.end_with_commands()
name, seconds = NAME, SECONDS / {SCALE}
notes = pathlib.Path({str(notes)!r})
(notes / f"{{name}}.pid").write_text(str(os.getpid()))
for step in range(10):
    time.sleep(seconds / 10)
    found = dict(status='ok', detail=f'{{step + 1}} of 10', reason='', machine={{}}, smi={{}}, steps=step + 1)
    parts.save_json(pathlib.Path(sys.argv[sys.argv.index('--out') + 1]), found)
    with (notes / name).open("a") as file:
        file.write(f"{{time.time()}}\\n")
"""
    texts = {n: slow.replace("NAME", repr(n)).replace("SECONDS", str(TOOK.get(n, 30))) for n in report.PARTS}
    write_fakes(tmp_path, texts)
    program_text = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from dataclasses import replace
from benchmarks.gpu import document, report
report._SAVED = 0.1
report.PHASES = tuple(replace(p, least=p.least / {SCALE}) for p in report.PHASES)
report.PARTS.update({{name: "fake_" + name.replace(" ", "_") for name in report.PARTS}})
sys.exit(report.main(["--out", {str(out)!r}, "--seconds", "300"]))
"""
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": "1"}
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen([*program(tmp_path, program_text)], env=environ, stdout=log, stderr=log)
    try:
        wait_until(lambda: (notes / "environment.pid").exists())
        time.sleep(moment / SCALE)
        stopped = time.time()
        process.send_signal(how)
        process.wait(timeout=60)
    finally:
        process.kill()
    found, text = parts_of(out), (out / "report.md").read_text()
    for name in (file.name for file in notes.iterdir() if file.suffix != ".pid"):
        # What was saved a second before the end must be there; what came later may be.
        times = [float(line) for line in (notes / name).read_text().split()]
        assert found[name].get("steps", 0) >= sum(at < stopped - 1.0 for at in times), name
        if len(times) == 10 and times[-1] < stopped - 1.0:
            assert found[name]["status"] == "ok", name
        assert re.search(rf"^(\| {name} +\||- {name}: )", text, re.M), name
    for pid in [int(file.read_text()) for file in notes.glob("*.pid")]:
        wait_until(partial(gone, pid))
    if how == signal.SIGTERM:
        assert json.loads((out / "report.json").read_text())["complete"]


@pytest.mark.parametrize("name", ["core cuda", "sanitizer cuda", "speed"])
def test_the_parts_start_from_anywhere(tmp_path, name):
    # As the report starts them: from another folder, with its variables alone.
    program, *_ = report.PARTS[name].split()
    start = [str(ROOT / program)] if program.endswith(".py") else ["-m", program]
    environ = report.variables_of_parts(tmp_path)
    command = [sys.executable, *start, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and "--seconds" in done.stdout, done.stderr


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
    counts = {"passed": 6, "failed": 2, "skipped": 2, "undone": 0}
    assert {s: done[s] for s in counts} == counts
    assert done["status"] == "failed"
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
    text = document.whole({"tests cuda": Outcome("tests cuda", "failed", data=done)}, about)
    assert "six" in text and "6 passed, 2 failed" in text


def test_a_case_that_hangs_or_loses_the_gpu_costs_itself_alone(tmp_path, monkeypatch):
    # Its process ends, and the cases behind it in the same unit run in another one.
    text = """
import pytest, time, types, sys

class Torch(types.ModuleType):
    lost = False
    class cuda:
        is_initialized = staticmethod(lambda: True)
        def synchronize():
            if Torch.lost:
                raise RuntimeError("an illegal memory access was encountered")

@pytest.mark.parametrize("n", range(5))
def test_some(n):
    sys.modules["torch"] = Torch("torch")
    if n == 1:
        time.sleep(60)
    Torch.lost = n == 3
"""
    (tmp_path / "test_some.py").write_text(text)
    monkeypatch.setattr(correctness, "_SLOWEST", 3.0)
    done = run_tests(tmp_path)
    assert (done["passed"], done["failed"], done["undone"], done["status"]) == (3, 2, 0, "failed")
    (unit,) = done["units"]
    hung, lost = unit["failures"]
    assert hung["id"].endswith("[1]") and "ended with status" in hung["message"]
    assert lost["id"].endswith("[3]") and "after the test: an illegal memory access" in lost["message"]


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
    # The core pass must be whole; of the others, what was run is what counts.
    some = [{"name": "a", "passed": 3}]
    assert correctness.summary(some, core=True, waiting=2)["status"] == "failed"
    assert correctness.summary(some, waiting=2)["status"] == "partial"
    assert correctness.summary(some, waiting=2)["detail"] == "3 passed, 2 undone"
    assert correctness.summary([{"name": "a", "passed": 3, "failed": 1}])["status"] == "failed"


def test_without_pytest_the_tests_are_absent(tmp_path, monkeypatch, capsys):
    # One line before the parts begin, and one for each of the parts that would run tests.
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "pytest" else real(n, *a))
    assert run_tests(tmp_path) == {"status": "absent", "detail": "pytest is not installed"}
    pretend(monkeypatch, tmp_path / "modules", {"environment": "write(reason='torch finds no GPU')"})
    assert report.main(["--out", str(tmp_path / "out"), "--only", "ncu"]) == 0
    assert "pytest is not installed: the tests of the ops are left out" in capsys.readouterr().out


def collected(backend: str, tmp_path: Path, core: bool = False) -> list[str]:
    ids, broken = correctness.collect(correctness.TESTS, tmp_path / f"{backend}.log", backend, 200.0, core)
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
    each["cuda"] += collected("cuda", tmp_path, core=True)
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
    known = {*correctness._CASES_OF, *(f"test_{name}" for name in correctness._FUNCTIONS)}
    assert {name.split("::")[1] for name in functions} > known
    assert {file.name for file in files} > {f"test_gpu_{name}.py" for name in correctness._FILES}


def test_the_core_pass():
    # Corrupt, step and loss at four sizes in both dtypes, for few images and a full GPU; by both backends.
    wanted = {
        (op, px, d)
        for op in ("corrupt", "momentum_step", rows.ALONE)
        for px in (32, 64, 128, 256)
        for d in (torch.float32, torch.bfloat16)
    }
    assert set(rows.CORE) == wanted and len(rows.CORE) == len(wanted)
    for backend in ("triton", "cuda"):
        assert f"--only core --backend {backend}" in report.PARTS[f"core {backend}"]
    text = (correctness.TESTS / correctness.CORE).read_text()
    assert "rows.CORE" in text and '["few", "full"]' in text
    # What is timed next are the same calls.
    setup, about = bench.setup_for(True, ("auto",))
    names = [name for name, *_ in bench.Bench(Path(os.devnull), 1.0, setup, about).steps(bench.SIZES, True)]
    assert names == [f"eager {op} {px} px {str(d).removeprefix('torch.')}" for op, px, d in rows.CORE]
    assert report.PARTS["speed"].endswith("--core") and report.PHASES[1].names == ("speed",)


def test_the_units_of_work_are_small_and_the_most_wanted_come_first():
    # Cases of each function before more of any; corrupt before the others; a unit is what a short report can
    # afford.
    ids = [
        f"test_gpu_{file}.py::test_{op}[{n}-triton]"
        for file, op in (("large", "far"), ("host", "waits"), ("accuracy", "blur"), ("accuracy", "corrupt"))
        for n in range(14)
    ]
    ids += [f"test_gpu_cuda.py::test_the_first_call_of_a_process_inside_a_capture[{n}]" for n in range(27)]
    units = correctness.units(ids, "triton")
    assert sorted(i for unit in units for i in unit.ids) == sorted(ids)
    assert max(len(unit.ids) for unit in units) <= 6
    first = [unit.name.split("::")[1].split()[0] for unit in units[:5]]
    capture = "test_the_first_call_of_a_process_inside_a_capture"
    assert first == ["test_corrupt", "test_blur", capture, "test_waits", "test_far"]
    assert all(len(unit.ids) <= 3 for unit in units if capture in unit.name)
