# SPDX-License-Identifier: Apache-2.0
"""compute-sanitizer's tools over every op of a backend at small sizes.

python -m benchmarks.gpu.sanitizer --out JSON [--backend cuda] [--seconds N]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .parts import execute, tail, write
from .tools import find, sanitizer_findings

# The CUDA kernels name their own barriers and shuffles; Triton's compiler chooses those of its kernels.
TOOLS = {"triton": ("memcheck", "racecheck"), "cuda": ("memcheck", "racecheck", "synccheck")}


def program(backend: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.few_calls", "every", "--backend", backend]


def check(tool: str, path: str, backend: str, seconds: float, scratch: Path) -> dict[str, Any]:
    """Runs the program under a tool; what it counted, and whether the program itself came to its end."""
    # Without torch's cache each tensor is an allocation of its own, whose ends memcheck knows.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    options = ["--tool", tool, "--report-api-errors", "no"] if tool == "memcheck" else ["--tool", tool]
    log = scratch / f"{tool}.log"
    code, took = execute(
        [path, *options, *program(backend)], seconds=seconds, log=log, environment=environment
    )
    text = log.read_text(errors="replace")
    print(f"---- {tool}\n{text}", flush=True)
    found = sanitizer_findings(text)
    ended = "\ndone" in f"\n{text}"
    if found.errors:
        status = "failed"
    elif code is None:
        status = "timeout"
    else:
        status = "ok" if found.errors == 0 and ended else "failed"
    if status == "ok":
        said = "no hazards" if tool == "racecheck" else "no errors"
    else:
        said = f"{found.errors} errors: {found.first}" if found.errors else tail(text, 4)
    return {"status": status, "errors": found.errors, "ended": ended, "seconds": round(took, 1), "said": said}


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The worst status of the tools, and a word on each."""
    statuses = [r["status"] for r in results.values()]
    status = next((s for s in ("failed", "timeout") if s in statuses), "ok")
    detail = "; ".join(f"{tool}: {r['status']}, {r['said']}"[:200] for tool, r in results.items())
    return {"status": status, "detail": detail, "tools": results}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=tuple(TOOLS), default="triton")
    parser.add_argument("--seconds", type=float, default=150.0)
    args = parser.parse_args(argv)
    start = time.monotonic()
    path = find("compute-sanitizer")
    if path is None:
        write(args.out, {"status": "absent", "detail": "compute-sanitizer is not on this machine"})
        return 0
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        # Once without a tool: the kernels are compiled then, and a plain failure is told apart.
        code, _ = execute(program(args.backend), seconds=args.seconds / 2, log=scratch / "plain.log")
        plain = (scratch / "plain.log").read_text(errors="replace")
        print(f"---- without a tool\n{plain}", flush=True)
        if code != 0:
            write(args.out, {"status": "failed", "detail": f"fails without a tool: {tail(plain)}"})
            return 0
        left = args.seconds - (time.monotonic() - start) - 5.0
        results: dict[str, dict[str, Any]] = {}

        def job(tool: str) -> None:
            results[tool] = check(tool, path, args.backend, left, scratch)
            write(args.out, summary(results))

        tools = TOOLS[args.backend]
        with ThreadPoolExecutor(len(tools)) as pool:
            list(pool.map(job, tools))
    write(args.out, summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
