# SPDX-License-Identifier: Apache-2.0
"""Runs the tests marked `gpu`, each function in a process of its own: a crash of one says nothing of others.

python -m benchmarks.gpu.correctness --out JSON [--seconds N] [--workers N] [--folder FOLDER] [--plain]
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
from pathlib import Path
from typing import Any

from .parts import execute, read, tail, write
from .runner import HAS_PYTEST

TESTS = Path(__file__).resolve().parents[2] / "tests" / "gpu"
_SLOWEST = 150.0  # seconds that one test function may take


def functions(folder: Path) -> list[tuple[Path, str]]:
    """(file, test function) in the order of names, found without importing anything."""
    found = []
    for file in sorted(folder.glob("test_*.py")):
        tree = ast.parse(file.read_text(), filename=str(file))
        found += [
            (file, node.name)
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
    return found


def one(file: Path, function: str, *, seconds: float, scratch: Path, plain: bool) -> dict[str, Any]:
    """Runs a function; its cases, and the one in which it died if it did."""
    log, result = scratch / f"{file.stem}.{function}.log", scratch / f"{file.stem}.{function}.json"
    command = [sys.executable, "-m", "benchmarks.gpu.runner", str(file), function, "--out", str(result)]
    code, took = execute(command + ["--plain"] * plain, seconds=seconds, log=log)
    found = read(result)
    cases = found.get("cases", [])
    text = log.read_text(errors="replace")
    if code is None or code not in (0, 1) or not cases:
        where = found.get("running") or "before its first case"
        why = (
            f"was killed after {seconds:.0f} s"
            if code is None
            else f"ended with status {code}: {tail(text, 6)}"
        )
        cases.append(
            {"id": where, "status": "timeout" if code is None else "failed", "message": why, "seconds": 0.0}
        )
    sys.stdout.write(f"---- {file.name}::{function}, {took:.1f} s\n{text}\n")
    sys.stdout.flush()
    counts = {s: sum(c["status"] == s for c in cases) for s in ("passed", "failed", "skipped", "timeout")}
    bad = [c for c in cases if c["status"] in ("failed", "timeout")]
    reasons = sorted({c["message"] for c in cases if c["status"] == "skipped"})
    return {
        "file": file.name,
        "function": function,
        "seconds": round(took, 1),
        **counts,
        "failures": bad[:8],
        "skip_reasons": reasons[:4],
    }


def run(
    found: Sequence[tuple[Path, str]], out: Path, *, seconds: float, workers: int, plain: bool = False
) -> dict[str, Any]:
    """Runs all, `workers` at a time, until the time is over; the totals, which `out` holds as they grow."""
    deadline = time.monotonic() + seconds
    results: list[dict[str, Any]] = []
    lock = threading.Lock()

    def job(entry: tuple[Path, str]) -> None:
        left = deadline - time.monotonic()
        file, function = entry
        if left < 2.0:
            done = {"file": file.name, "function": function, "unfinished": "no time was left"}
        else:
            done = one(file, function, seconds=min(left, _SLOWEST), scratch=Path(scratch), plain=plain)
        with lock:
            results.append(done)
            write(out, summary(results, plain))

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(workers) as pool:
        list(pool.map(job, found))
    return summary(results, plain)


def summary(results: Sequence[dict[str, Any]], plain: bool = False) -> dict[str, Any]:
    """Totals and the part's status: failed where anything failed, died or was left undone."""
    totals = {s: sum(r.get(s, 0) for r in results) for s in ("passed", "failed", "skipped", "timeout")}
    undone = [f"{r['file']}::{r['function']}" for r in results if "unfinished" in r]
    status = "failed" if totals["failed"] or totals["timeout"] or undone or not totals["passed"] else "ok"
    detail = ", ".join(f"{n} {s}" for s, n in totals.items() if n) or "nothing ran"
    return {
        "status": status,
        "detail": detail + (f", {len(undone)} functions not run" if undone else ""),
        "runner": "pytest" if HAS_PYTEST and not plain else "own runner: pytest is not installed",
        **totals,
        "undone": undone,
        "functions": list(results),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--workers", type=int, default=max(1, min(10, (os.cpu_count() or 2) - 4)))
    parser.add_argument("--folder", type=Path, default=TESTS)
    parser.add_argument("--plain", action="store_true", help="without pytest, even where there is one")
    args = parser.parse_args(argv)
    done = run(functions(args.folder), args.out, seconds=args.seconds, workers=args.workers, plain=args.plain)
    write(args.out, done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
