# SPDX-License-Identifier: Apache-2.0
"""Runs these tests by pytest, each function in processes of its own: a crash spares the others.

PYTHONPATH=. python tests/gpu/in_processes.py --out JSON [--backend cuda] [--seconds N] [--workers N]

The core cases come first: `CORE` at 32 to 256 px in float32 and bfloat16. The GPU report runs this.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import ROOT, end_with_commands, execute, tail
from benchmarks.gpu.targets import BACKENDS
from softdiff_kernels.files import save_json

TESTS = Path(__file__).resolve().parent
CORE = ("test_corrupt", "test_momentum_step", "test_loss_and_gradient")
_CORE_CASE = re.compile(r"\d+x\d+x(32x32|64x64|128x128|256x256)-(float32|bfloat16)\b")
# Cases of one process. Triton compiles a kernel or more for each; some start a process for each.
_CASES = {"triton": 16, "cuda": 60}
_CASES_OF = {"test_the_first_call_of_a_process_inside_a_capture": 6}
_CORE_CASES = {"triton": 4, "cuda": 60}
_SLOWEST = 150.0  # seconds that one process may take
_LONGEST = 1500  # characters of a failure that are kept
_STATUSES = {"PASSED": "passed", "FAILED": "failed", "ERROR": "failed", "SKIPPED": "skipped"}


@dataclass(frozen=True)
class Unit:
    """The cases of one process, by their pytest ids."""

    name: str
    ids: tuple[str, ...]
    core: bool = False


def _pytest(
    folder: Path, log: Path, backend: str, seconds: float, *words: str
) -> tuple[int | None, str, float]:
    """(exit status, or None if it was killed; output; seconds) of pytest in a folder of tests."""
    # Not the project's own settings, which ask for plugins that need not be here.
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(folder)]
    command += ["-o", "markers=gpu: needs a CUDA device", "-o", "console_output_style=classic"]
    command += ["-p", "no:cacheprovider", "--tb=short", *words]
    # Tests that need both backends are among CUDA's, whose part begins when the CUDA module is there.
    asked = "triton" if backend == "triton" else " ".join(BACKENDS)
    variables = {"SOFTDIFF_GPU_TESTS_BACKENDS": asked, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    variables |= {"COLUMNS": "500", "PYTHONUNBUFFERED": "1"}  # whole reasons; each line at once
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    # In the folder, relative to which pytest prints the ids.
    environment = {**os.environ, **variables}
    code, took = execute(command, seconds=seconds, log=log, environment=environment, folder=folder)
    return code, re.sub(r"([=_])\1{8,}", r"\1" * 8, log.read_text(errors="replace")), took


def _section(text: str, title: str) -> str:
    """What pytest prints under a title; the end of it all where there is no such title."""
    match = re.search(rf"^_+ {re.escape(title)} _+\n(.*?)(?=^(?:_+ .* _+|=+ .* =+)$|\Z)", text, re.S | re.M)
    return (match[1] if match else tail(text, 6)).strip()[-_LONGEST:]


def collect(folder: Path, log: Path, backend: str, seconds: float) -> tuple[list[str], dict[str, str]]:
    """(the ids of a backend's cases, the message of each file that does not import)."""
    code, text, _ = _pytest(folder, log, backend, seconds, "--collect-only", "-q", ".")
    if code not in (0, 2, 5):
        return [], {"collection": f"pytest ended with status {code}: {tail(text, 6)}"}
    listed, _, rest = text.partition("= ERRORS =")
    files = re.findall(r"^ERROR (\S+?\.py)", rest, re.M)
    (other,) = set(BACKENDS) - {backend}
    others = re.compile(rf"[\[-]{other}\]$|^test_gpu_{other}\.py")
    ids = [line for line in listed.splitlines() if "::" in line and not others.search(line)]
    return ids, {file: _section(rest, f"ERROR collecting {file}") for file in files}


def units(ids: Sequence[str], backend: str) -> list[Unit]:
    """The processes in the order in which they run: core cases, then the functions with most processes."""

    def cut(name: str, own: Sequence[str], most: int, core: bool = False) -> Iterator[Unit]:
        count = -(-len(own) // most)
        for i in range(count):
            yield Unit(f"{name} {i + 1}/{count}" if count > 1 else name, tuple(own[i::count]), core)

    core: list[str] = []
    groups: dict[str, list[str]] = {}
    for name in ids:
        function = name.partition("[")[0]
        if function.split("::")[-1] in CORE and _CORE_CASE.search(name):
            core.append(name)
        else:
            groups.setdefault(function, []).append(name)
    most = _CASES[backend]
    each = [list(cut(n, own, _CASES_OF.get(n.split("::")[-1], most))) for n, own in groups.items()]
    others = (unit for group in sorted(each, key=len, reverse=True) for unit in group)
    return [*cut("core", core, _CORE_CASES[backend], True), *others]


def one(unit: Unit, folder: Path, backend: str, seconds: float, log: Path) -> dict[str, Any]:
    """Runs a unit: its counts and failures. The case in which the process died, if it did, is a failure."""
    code, text, took = _pytest(folder, log, backend, seconds, "-v", *unit.ids)
    print(f"---- {unit.name}, {took:.1f} s\n{text}", flush=True)
    counts = dict.fromkeys(("passed", "failed", "timeout", "skipped", "undone"), 0)
    failures, reasons = [], set()
    for name in unit.ids:
        line = re.search(rf"^{re.escape(name)} (\w*)(?: \((.*)\))?", text, re.M)
        status = _STATUSES.get(line[1], "timeout" if code is None else "failed") if line else "undone"
        counts[status] += 1
        if status == "skipped" and line:
            reasons.add(line[2] or "")
        elif status in ("failed", "timeout"):
            died = "" if line and line[1] else f"ended with status {code} after {took:.0f} s: {tail(text, 6)}"
            failures.append({"id": name, "message": died or _section(text, name.partition("::")[2])})
    if counts["undone"] == len(unit.ids) and code is not None:
        counts["failed"] += 1
        failures.append({"id": unit.name, "message": f"no case ran, status {code}: {tail(text, 6)}"})
    about = {"name": unit.name, "core": unit.core, "seconds": round(took, 1), **counts}
    return {**about, "failures": failures[:8], "skip_reasons": sorted(reasons)[:4]}


def run(folder: Path, out: Path, backend: str, scratch: Path, seconds: float, workers: int) -> None:
    """Runs all, `workers` at a time, until the time is over; `out` holds the totals as they grow."""
    if importlib.util.find_spec("pytest") is None:
        save_json(out, {"status": "absent", "detail": "pytest is not installed"})
        return
    deadline = time.monotonic() + seconds
    ids, broken = collect(folder, scratch / "collection.log", backend, max(seconds, 60.0))
    results: list[dict[str, Any]] = [
        {"name": file, "failed": 1, "failures": [{"id": "collection", "message": message}]}
        for file, message in broken.items()
    ]
    save_json(out, summary(results))
    lock = threading.Lock()

    def job(number: int, unit: Unit) -> None:
        left = deadline - time.monotonic()
        done: dict[str, Any] = {"name": unit.name, "core": unit.core, "undone": len(unit.ids)}
        if left > 2.0:
            done = one(unit, folder, backend, min(left, _SLOWEST), scratch / f"{number}.log")
        with lock:
            results.append(done)
            save_json(out, summary(results))

    every = units(ids, backend)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(job, range(len(every)), every))


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Totals and the part's status: failed where anything failed, died or was left undone."""

    def counted(some: Sequence[dict[str, Any]]) -> dict[str, int]:
        return {
            s: sum(r.get(s, 0) for r in some) for s in ("passed", "failed", "timeout", "skipped", "undone")
        }

    totals, core = counted(results), counted([r for r in results if r.get("core")])
    bad = totals["failed"] or totals["timeout"] or totals["undone"] or not totals["passed"]
    first, words = (", ".join(f"{n} {s}" for s, n in counts.items() if n) for counts in (core, totals))
    detail = f"core: {first}; all: {words}" if first else words or "nothing ran"
    status = "failed" if bad else "ok"
    return {"status": status, "detail": detail, **totals, "core": core, "units": list(results)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=BACKENDS, default="triton")
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()
    end_with_commands()
    with tempfile.TemporaryDirectory() as folder:
        run(TESTS, args.out, args.backend, Path(folder), args.seconds, args.workers)


if __name__ == "__main__":
    main()
