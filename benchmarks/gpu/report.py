# SPDX-License-Identifier: Apache-2.0
"""Everything that a machine with a GPU can say about the kernels, in one command: `make gpu-report`.

python -m benchmarks.gpu.report --out FOLDER [--seconds 520] [--only PART ...]

Writes report.json, report.md, log.txt, faster.json if both fused backends were timed, and tuned-configs.json
if the tuner ran, into FOLDER. Needs the standard library here, and torch and numpy in the parts, which run in
processes of their own. The exit status is 1 where a test of the ops failed, none could be finished on a
machine with a GPU, or the CUDA kernels did not compile, else 0.
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

from . import choice, document, overlay
from .parts import Outcome, run, write

# Shares of the whole time. From the build to the sanitizer all share a window of WINDOW seconds: the CUDA
# module is built beside Triton's parts, and what its own parts get is what the build leaves of the window.
SHARES = {
    "environment": 15,
    "build": 160,
    "correctness triton": 240,
    "correctness cuda": 240,
    "sanitizer triton": 230,
    "sanitizer cuda": 230,
    "tune": 70,
    "bench": 120,
    "tuned bench": 30,
    "ncu": 35,
}
PARTS = tuple(SHARES)
WINDOW = 240
BESIDE = tuple(name for name in PARTS if name == "build" or name.startswith(("correctness", "sanitizer")))
TOTAL = WINDOW + sum(share for name, share in SHARES.items() if name not in BESIDE)
GROUPS = {group: tuple(n for n in PARTS if n.startswith(group)) for group in ("correctness", "sanitizer")}
_BUILT = ("correctness cuda", "sanitizer cuda", "bench", "ncu")  # what the CUDA module is built for
_MARGIN = 12.0  # seconds between a part's own limit and the one at which it is killed
_MODULES = {
    "environment": "benchmarks.gpu.environment",
    "build": "benchmarks.gpu.build",
    "correctness triton": "benchmarks.gpu.correctness",
    "correctness cuda": "benchmarks.gpu.correctness",
    "sanitizer triton": "benchmarks.gpu.sanitizer",
    "sanitizer cuda": "benchmarks.gpu.sanitizer",
    "tune": "softdiff_kernels.backends.triton.tools.tune",
    "bench": "benchmarks.gpu.bench",
    "tuned bench": "benchmarks.gpu.bench",
    "ncu": "benchmarks.gpu.ncu",
}


def environment_of_parts(scratch: Path) -> dict[str, str]:
    """The caller's, with the repository importable, its package by the folder of links that the CUDA module
    is built into, and a place for Triton's cache where there is none.
    """
    places = (str(scratch / "overlay"), str(overlay.ROOT), os.environ.get("PYTHONPATH", ""))
    path = os.pathsep.join(p for p in places if p)
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
        self.overlay = scratch / "overlay"
        overlay.make(self.overlay)

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
                folder=self.overlay,
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


def _tests(report: Report) -> None:
    """The build, tests and sanitizer within their window: CUDA's behind the build, beside Triton's."""
    end = time.monotonic() + WINDOW * report.scale
    cpus = os.cpu_count() or 2

    def triton(name: str) -> None:
        few = ("--workers", str(max(1, min(10, cpus - 6)))) if name.startswith("correctness") else ()
        report.part(name, "--backend", "triton", *few)

    def cuda(name: str) -> None:
        share = min(SHARES[name] * report.scale, end - time.monotonic())
        few = ("--workers", str(max(1, min(5, cpus // 3)))) if name.startswith("correctness") else ()
        report.part(name, "--backend", "cuda", *few, seconds=max(share, 0.0))

    def built() -> None:
        made = report.part("build", "--into", str(report.overlay))
        names = [name for name in _BUILT[:2] if name in report.only]
        if made is not None and made.status == "ok":
            list(pool.map(cuda, names))
            return
        for name in names:
            why = "not built" if made is None else made.detail
            report.add(Outcome(name, "absent", detail=f"no CUDA module: {why}"))

    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(built), *(pool.submit(triton, f"{g} triton") for g in GROUPS)]
        for future in waiting:
            future.result()


def _faster(report: Report) -> None:
    """Which backend was faster where, in a file that can be kept."""
    machine, bench, build = (report.outcomes.get(n) for n in ("environment", "bench", "build"))
    if machine is not None and bench is not None and bench.data.get("faster"):
        nvcc = "" if build is None else str(build.data.get("nvcc", ""))
        write(report.folder / "faster.json", choice.table(machine.data, bench.data, nvcc))


def _on_gpu(report: Report) -> None:
    _tests(report)
    _tuned(report)
    kept = report.folder / "tuned-configs.json"
    has_tuned = kept.exists() and report.outcomes.get("tune") is not None
    reserve = (SHARES["ncu"] + (SHARES["tuned bench"] if has_tuned else 0)) * report.scale
    report.part("bench", seconds=max(report.left() - reserve, 0.0))
    _faster(report)
    if has_tuned:
        report.part("tuned bench", "--only-ours", SOFTDIFF_TRITON_CONFIGS=str(kept))
    report.part("ncu")


def failed(outcomes: Mapping[str, Outcome]) -> bool:
    """Whether the exit status says so: by the tests of the ops, and the build of what they test."""
    deciding = [outcomes[name] for name in (*GROUPS["correctness"], "build") if name in outcomes]
    return any(outcome.status in ("failed", "timeout") for outcome in deciding)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--seconds", type=float, default=float(TOTAL), help=f"for everything (default {TOTAL})"
    )
    known = {**GROUPS, **{name: (name,) for name in PARTS}}
    parser.add_argument("--only", nargs="+", choices=tuple(known), default=list(PARTS), metavar="PART")
    args = parser.parse_args(argv)
    only = {part for name in args.only for part in known[name]}
    if only.intersection(_BUILT):
        only.add("build")
    folder = args.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "report.md", "log.txt", "tuned-configs.json", "faster.json"):
        (folder / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as scratch:
        report = Report(folder, Path(scratch), args.seconds, ("environment", *sorted(only)))
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
