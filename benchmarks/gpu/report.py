# SPDX-License-Identifier: Apache-2.0
"""Everything that a machine with a GPU can say about the kernels, in one command: `make gpu-report`.

python -m benchmarks.gpu.report --out FOLDER [--seconds 520] [--only PART ...]

Writes report.json, report.md, log.txt and, if the tuner ran, tuned-configs.json into FOLDER. Needs the
standard library here, and torch and numpy in the parts, which run in processes of their own. The exit status
is 1 where a test of the ops failed or none could be finished on a machine with a GPU, else 0.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import document
from .parts import Outcome, run, write

# Shares of the whole time; correctness and the sanitizer run side by side.
SHARES = {
    "environment": 15,
    "correctness": 220,
    "sanitizer": 210,
    "tune": 80,
    "bench": 130,
    "tuned bench": 30,
    "ncu": 35,
}
PARTS = tuple(SHARES)
TOTAL = sum(SHARES.values()) - SHARES["sanitizer"]
_MARGIN = 12.0  # seconds between a part's own limit and the one at which it is killed
_MODULES = {
    "environment": "benchmarks.gpu.environment",
    "correctness": "benchmarks.gpu.correctness",
    "sanitizer": "benchmarks.gpu.sanitizer",
    "tune": "softdiff_kernels.backends.triton.tune",
    "bench": "benchmarks.gpu.bench",
    "tuned bench": "benchmarks.gpu.bench",
    "ncu": "benchmarks.gpu.ncu",
}


def environment_of_parts(scratch: Path) -> dict[str, str]:
    """The caller's, with the repository importable and a place for Triton's cache where there is none."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    found = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    home = Path(os.environ.get("TRITON_HOME") or os.environ.get("HOME") or "/nonexistent")
    if "TRITON_CACHE_DIR" not in found and not os.access(home, os.W_OK):
        found["TRITON_CACHE_DIR"] = str(scratch / "triton")
    return found


class Report:
    """The parts so far, on disk after each of them."""

    def __init__(self, folder: Path, scratch: Path, seconds: float, only: tuple[str, ...]) -> None:
        self.folder, self.scratch, self.only = folder, scratch, only
        self.start, self.seconds = time.monotonic(), seconds
        self.scale = seconds / TOTAL
        self.log = folder / "log.txt"
        self.outcomes: dict[str, Outcome] = {}
        self.lock = threading.Lock()
        self.environment = environment_of_parts(scratch)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def part(
        self, name: str, *options: str, seconds: float | None = None, **variables: str
    ) -> Outcome | None:
        """Runs a part within its share of the time, unless it was not asked for."""
        if name not in self.only:
            return None
        share = seconds if seconds is not None else min(SHARES[name] * self.scale, self.left())
        if share < 5.0:
            return self.add(Outcome(name, "timeout", detail="no time was left"))
        command = [sys.executable, "-m", _MODULES[name], *options]
        if name != "environment":
            command += ["--seconds", f"{max(share - _MARGIN, share / 2):.0f}"]
        print(f"{name}: up to {share:.0f} s", flush=True)
        return self.add(
            run(
                name,
                command,
                seconds=share,
                log=self.log,
                scratch=self.scratch,
                environment={**self.environment, **variables},
            )
        )

    def add(self, outcome: Outcome) -> Outcome:
        with self.lock:
            self.outcomes[outcome.name] = outcome
            print(f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s. {outcome.detail}", flush=True)
            self.save()
        return outcome

    def save(self) -> None:
        ordered = {name: self.outcomes[name] for name in PARTS if name in self.outcomes}
        content = {
            n: {"status": o.status, "seconds": o.seconds, "detail": o.detail, **o.data}
            for n, o in ordered.items()
        }
        write(self.folder / "report.json", {"seconds": time.monotonic() - self.start, "parts": content})
        (self.folder / "report.md").write_text(document.whole(ordered))


def _tuned(report: Report) -> None:
    """The tuner, and the headline's rows by its table."""
    made = report.part("tune")
    table = report.scratch / "tune.json"
    if made is None or made.status != "ok" or not table.exists():
        return
    kept = report.folder / "tuned-configs.json"
    shutil.copyfile(table, kept)
    made.data = {"measured": made.data.get("measured", {})}
    report.add(made)


def _on_gpu(report: Report) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(report.part, ("correctness", "sanitizer")))
    _tuned(report)
    kept = report.folder / "tuned-configs.json"
    has_tuned = kept.exists() and report.outcomes.get("tune") is not None
    reserve = (SHARES["ncu"] + (SHARES["tuned bench"] if has_tuned else 0)) * report.scale
    report.part("bench", seconds=max(report.left() - reserve, 0.0))
    if has_tuned:
        report.part("tuned bench", "--only-ours", SOFTDIFF_TRITON_CONFIGS=str(kept))
    report.part("ncu")


def failed(outcomes: Mapping[str, Outcome]) -> bool:
    """Whether the exit status says so: by the tests of the ops alone."""
    tests = outcomes.get("correctness")
    return tests is not None and tests.status in ("failed", "timeout")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--seconds", type=float, default=float(TOTAL), help=f"for everything (default {TOTAL})"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    args = parser.parse_args(argv)
    folder = args.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "report.md", "log.txt", "tuned-configs.json"):
        (folder / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as scratch:
        report = Report(folder, Path(scratch), args.seconds, ("environment", *args.only))
        machine = report.part("environment")
        assert machine is not None
        reason: Any = machine.data.get("reason", machine.detail or "the environment could not be read")
        if reason:
            for name in PARTS:
                if name in report.only and name != "environment":
                    report.add(Outcome(name, "absent", detail=str(reason)))
        else:
            _on_gpu(report)
    print(f"\n{document.short(report.outcomes)}\n\n{folder}: report.md, report.json, log.txt")
    return int(failed(report.outcomes))


if __name__ == "__main__":
    sys.exit(main())
