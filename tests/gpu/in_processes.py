# SPDX-License-Identifier: Apache-2.0
"""Runs these tests by pytest, in many processes: a crash or a hang costs one case.

PYTHONPATH=. python tests/gpu/in_processes.py --out JSON [--backend cuda] [--only core] [--seconds N] ...

Without --only, all but the core pass (test_gpu_core.py). The GPU report runs this.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import ROOT, end_with_commands, execute, save_json, tail
from benchmarks.gpu.targets import BACKENDS

TESTS = Path(__file__).resolve().parent
CORE = "test_gpu_core.py"
# The other files, and the functions of the first, as a maintainer would want to know them.
_FILES = (
    "accuracy",
    "noise",
    "triton",
    "cuda",
    "agreement",
    "precision",
    "graphs",
    "host",
    "options",
    "compile",
)
_FUNCTIONS = ("corrupt", "momentum_step", "loss_and_gradient", "blur", "transforms", "reverse_step")
# Cases of one process. Triton compiles a kernel or more for each; some start a process for each.
_CASES = {"triton": 6, "cuda": 24}
_CASES_OF = {"test_the_first_call_of_a_process_inside_a_capture": 3}
_SLOWEST = 100.0  # seconds that one case may take
_LONGEST = 1500  # characters of a failure that are kept
_STATUSES = {"PASSED": "passed", "FAILED": "failed", "ERROR": "failed", "SKIPPED": "skipped"}


@dataclass(frozen=True)
class Unit:
    """The cases of one process, by their pytest ids."""

    name: str
    ids: tuple[str, ...]


def _pytest(
    folder: Path, log: Path, backend: str, seconds: float, *words: str
) -> tuple[int | None, str, float]:
    """(exit status, or None if it was killed; output; seconds) of pytest in a folder of tests."""
    # Not the project's own settings, which ask for plugins that need not be here.
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(folder)]
    command += ["-o", "markers=gpu: needs a CUDA device", "-o", "console_output_style=classic"]
    command += ["-p", "no:cacheprovider", "-p", "watch", "--tb=short", *words]
    # Tests that need both backends are among CUDA's, whose part begins when the CUDA module is there.
    asked = "triton" if backend == "triton" else " ".join(BACKENDS)
    variables = {"SOFTDIFF_GPU_TESTS_BACKENDS": asked, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    variables |= {"COLUMNS": "500", "PYTHONUNBUFFERED": "1"}  # whole reasons; each line at once
    variables["SOFTDIFF_GPU_TESTS_SECONDS"] = str(_SLOWEST)
    places = (os.environ.get("PYTHONPATH"), str(ROOT), str(TESTS))
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    # In the folder, relative to which pytest prints the ids.
    environment = {**os.environ, **variables}
    code, took = execute(command, seconds=seconds, log=log, environment=environment, folder=folder)
    return code, re.sub(r"([=_])\1{8,}", r"\1" * 8, log.read_text(errors="replace")), took


def _section(text: str, title: str) -> str:
    """What pytest prints under a title; the end of it all where there is no such title."""
    match = re.search(rf"^_+ {re.escape(title)} _+\n(.*?)(?=^(?:_+ .* _+|=+ .* =+)$|\Z)", text, re.S | re.M)
    return (match[1] if match else tail(text, 6)).strip()[-_LONGEST:]


def collect(
    folder: Path, log: Path, backend: str, seconds: float, core: bool = False
) -> tuple[list[str], dict[str, str]]:
    """(the ids of a backend's cases, the message of each file that does not import)."""
    which = [CORE] if core else [".", f"--ignore={CORE}"]
    code, text, _ = _pytest(folder, log, backend, seconds, "--collect-only", "-q", *which)
    if code not in (0, 2, 5):
        return [], {"collection": f"pytest ended with status {code}: {tail(text, 6)}"}
    listed, _, rest = text.partition("= ERRORS =")
    files = re.findall(r"^ERROR (\S+?\.py)", rest, re.M)
    (other,) = set(BACKENDS) - {backend}
    others = re.compile(rf"[\[-]{other}\]$|^test_gpu_{other}\.py")
    ids = [line for line in listed.splitlines() if "::" in line and not others.search(line)]
    return ids, {file: _section(rest, f"ERROR collecting {file}") for file in files}


def units(ids: Sequence[str], backend: str) -> list[Unit]:
    """The processes in the order in which they run: first some cases of each function, then more of each.

    Functions follow each other as `_FILES` and `_FUNCTIONS` do.
    """

    def place(function: str) -> tuple[int, int]:
        file, _, name = function.partition("::")
        places = ((_FILES, file.removeprefix("test_gpu_").removesuffix(".py")), (_FUNCTIONS, name[5:]))
        first, second = (known.index(n) if n in known else len(known) for known, n in places)
        return first, second

    groups: dict[str, list[str]] = {}
    for name in ids:
        groups.setdefault(name.partition("[")[0], []).append(name)
    each: list[tuple[int, Unit]] = []
    for function in sorted(groups, key=place):
        own = groups[function]
        count = -(-len(own) // _CASES_OF.get(function.split("::")[-1], _CASES[backend]))
        for i in range(count):
            title = f"{function} {i + 1}/{count}" if count > 1 else function
            each.append((i, Unit(title, tuple(own[i::count]))))
    return [unit for _, unit in sorted(each, key=lambda pair: pair[0])]


def one(unit: Unit, folder: Path, backend: str, deadline: float, log: Path) -> dict[str, Any]:
    """Runs a unit: its counts and failures. The case in which a process dies is a failure; those behind it
    run in another one. What the deadline keeps from running is "undone"."""
    counts = dict.fromkeys(("passed", "failed", "skipped", "undone"), 0)
    left, took, failures, reasons = list(unit.ids), 0.0, [], set()
    while left and (seconds := deadline - time.monotonic()) > 2.0:
        log.unlink(missing_ok=True)
        code, text, own = _pytest(folder, log, backend, seconds, "-v", *left)
        took += own
        print(f"---- {unit.name}, {own:.1f} s\n{text}", flush=True)
        behind = []
        for name in left:
            line = re.search(rf"^{re.escape(name)} (\w*)(?: \((.*)\))?", text, re.M)
            status = _STATUSES.get(line[1], "failed" if code is not None else "") if line else ""
            if not status:
                behind.append(name)
                continue
            counts[status] += 1
            if status == "skipped" and line:
                reasons.add(line[2] or "")
            elif status == "failed" and line:
                message = _section(text, name.partition("::")[2])
                if line[1] not in _STATUSES:  # what the process says last, of a hang the stack
                    message = (
                        f"ended with status {code} after {own:.0f} s: {text[line.end() :].strip()[:600]}"
                    )
                failures.append({"id": name, "message": message})
        if code is not None and behind == left:
            counts["failed"] += 1
            failures.append({"id": unit.name, "message": f"no case ran, status {code}: {tail(text, 6)}"})
            break
        left = behind
    counts["undone"] = len(left)
    about = {"name": unit.name, "seconds": round(took, 1), **counts}
    return {**about, "failures": failures[:8], "skip_reasons": sorted(reasons)[:4]}


def run(
    folder: Path, out: Path, backend: str, scratch: Path, seconds: float, workers: int, core: bool = False
) -> None:
    """Runs all, `workers` at a time, until the time is over; `out` holds the totals as they grow."""
    if importlib.util.find_spec("pytest") is None:
        save_json(out, {"status": "absent", "detail": "pytest is not installed"})
        return
    deadline = time.monotonic() + seconds
    ids, broken = collect(folder, scratch / "collection.log", backend, max(seconds, 60.0), core)
    results: list[dict[str, Any]] = [
        {"name": file, "failed": 1, "failures": [{"id": "collection", "message": message}]}
        for file, message in broken.items()
    ]
    every = units(ids, backend)
    waiting = {unit.name: len(unit.ids) for unit in every}

    def save() -> None:
        save_json(out, summary(results, core, sum(waiting.values())))

    save()
    lock = threading.Lock()

    def job(number: int, unit: Unit) -> None:
        done = one(unit, folder, backend, deadline, scratch / f"{number}.log")
        with lock:
            results.append(done)
            del waiting[unit.name]
            save()

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(job, range(len(every)), every))


def summary(results: Sequence[dict[str, Any]], core: bool = False, waiting: int = 0) -> dict[str, Any]:
    """Totals and the part's status: failed where anything failed or nothing passed.

    waiting: cases whose turn has not come, which are undone if it never does. Undone cases make the core pass
    fail, and any other part "partial".
    """
    totals = {s: sum(r.get(s, 0) for r in results) for s in ("passed", "failed", "skipped", "undone")}
    totals["undone"] += waiting
    bad = totals["failed"] or not totals["passed"] or (core and totals["undone"])
    detail = ", ".join(f"{n} {s}" for s, n in totals.items() if n) or "nothing ran"
    status = "failed" if bad else "partial" if totals["undone"] else "ok"
    return {"status": status, "detail": detail, **totals, "units": list(results)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=BACKENDS, default="triton")
    parser.add_argument("--only", choices=("core",), help="the core pass alone")
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()
    end_with_commands()
    with tempfile.TemporaryDirectory() as folder:
        core = args.only == "core"
        run(TESTS, args.out, args.backend, Path(folder), args.seconds, args.workers, core)


if __name__ == "__main__":
    main()
