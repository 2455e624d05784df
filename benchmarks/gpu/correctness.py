# SPDX-License-Identifier: Apache-2.0
"""Runs the tests marked `gpu`, each function in processes of its own: a crash of one spares the others.

python -m benchmarks.gpu.correctness --out JSON [--backend cuda] [--seconds N] [--workers N] [--plain]
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .parts import execute, read, tail, write
from .runner import HAS_PYTEST

TESTS = Path(__file__).resolve().parents[2] / "tests" / "gpu"
_SLOWEST = 150.0  # seconds that one test function may take


@dataclass(frozen=True)
class Unit:
    """Some cases of one test function: those of one process."""

    file: Path
    function: str
    shard: tuple[int, int] = (0, 1)

    @property
    def name(self) -> str:
        part = f" {self.shard[0] + 1}/{self.shard[1]}" if self.shard[1] > 1 else ""
        return f"{self.file.name}::{self.function}{part}"


def units(folder: Path, backend: str | None = None) -> list[Unit]:
    """All test functions of a folder, found without importing anything; those cut into shards go first.

    A file says how many by `SHARDS = {"test_...": 4}`: for Triton's sake, which compiles; CUDA's is compiled.
    """
    found = []
    for file in sorted(folder.glob("test_*.py")):
        tree = ast.parse(file.read_text(), filename=str(file))
        shards: dict[str, int] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SHARDS":
                shards = ast.literal_eval(node.value)
        names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
        for name in names:
            count = 1 if backend == "cuda" else shards.get(name, 1)
            found += [Unit(file, name, (i, count)) for i in range(count)]
    return sorted(found, key=lambda unit: -unit.shard[1])


def one(unit: Unit, *, seconds: float, scratch: Path, plain: bool) -> dict[str, Any]:
    """Runs a unit; its cases, and the one in which it died if it did."""
    stem = f"{unit.file.stem}.{unit.function}.{unit.shard[0]}"
    log, result = scratch / f"{stem}.log", scratch / f"{stem}.json"
    command = [sys.executable, "-m", "benchmarks.gpu.runner", str(unit.file), unit.function]
    command += ["--out", str(result), "--shard", "{}/{}".format(*unit.shard), *["--plain"] * plain]
    code, took = execute(command, seconds=seconds, log=log)
    found = read(result)
    cases = found.get("cases", [])
    text = log.read_text(errors="replace")
    if code not in (0, 1):
        where = found.get("running") or "between cases"
        status = "timeout" if code is None else "failed"
        why = "was killed" if code is None else f"ended with status {code}"
        message = f"{why} after {took:.0f} s: {tail(text, 6)}"
        cases.append({"id": where, "status": status, "message": message, "seconds": 0.0})
    sys.stdout.write(f"---- {unit.name}, {took:.1f} s\n{text}\n")
    sys.stdout.flush()
    counts = {s: sum(c["status"] == s for c in cases) for s in ("passed", "failed", "skipped", "timeout")}
    bad = [c for c in cases if c["status"] in ("failed", "timeout")]
    reasons = sorted({c["message"] for c in cases if c["status"] == "skipped"})
    return {
        "name": unit.name,
        "seconds": round(took, 1),
        **counts,
        "failures": bad[:8],
        "skip_reasons": reasons[:4],
    }


def run(
    found: Sequence[Unit], out: Path, *, seconds: float, workers: int, plain: bool = False
) -> dict[str, Any]:
    """Runs all, `workers` at a time, until the time is over; the totals, which `out` holds as they grow."""
    deadline = time.monotonic() + seconds
    results: list[dict[str, Any]] = []
    lock = threading.Lock()

    def job(unit: Unit) -> None:
        left = deadline - time.monotonic()
        if left < 2.0:
            done = {"name": unit.name, "unfinished": "no time was left"}
        else:
            done = one(unit, seconds=min(left, _SLOWEST), scratch=Path(scratch), plain=plain)
        with lock:
            results.append(done)
            write(out, summary(results, plain))

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(workers) as pool:
        list(pool.map(job, found))
    return summary(results, plain)


def summary(results: Sequence[dict[str, Any]], plain: bool = False) -> dict[str, Any]:
    """Totals and the part's status: failed where anything failed, died or was left undone."""
    totals = {s: sum(r.get(s, 0) for r in results) for s in ("passed", "failed", "skipped", "timeout")}
    undone = [r["name"] for r in results if "unfinished" in r]
    status = "failed" if totals["failed"] or totals["timeout"] or undone or not totals["passed"] else "ok"
    detail = ", ".join(f"{n} {s}" for s, n in totals.items() if n) or "nothing ran"
    return {
        "status": status,
        "detail": detail + (f", {len(undone)} not run" if undone else ""),
        "runner": "pytest" if HAS_PYTEST and not plain else "own runner: pytest is not installed",
        **totals,
        "undone": undone,
        "units": list(results),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--backend", choices=("triton", "cuda"), help="the tests of this backend alone")
    parser.add_argument("--workers", type=int, default=max(1, min(13, (os.cpu_count() or 2) - 3)))
    parser.add_argument("--folder", type=Path, default=TESTS)
    parser.add_argument("--plain", action="store_true", help="without pytest, even where there is one")
    args = parser.parse_args(argv)
    if args.backend is not None:
        os.environ["SOFTDIFF_GPU_TESTS_BACKENDS"] = args.backend
    found = units(args.folder, args.backend)
    done = run(found, args.out, seconds=args.seconds, workers=args.workers, plain=args.plain)
    write(args.out, done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
