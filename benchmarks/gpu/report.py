# SPDX-License-Identifier: Apache-2.0
"""Everything that a machine with a GPU can say about the kernels, in one command: `make gpu-report`.

python -m benchmarks.gpu.report --out FOLDER [--seconds 510] [--only PART ...]
python -m benchmarks.gpu.report PART --out JSON [...]     one part by itself, as the report runs it

Writes report.json, report.md, log.txt, faster.json if both fused backends were timed, and tuned-configs.json
if the tuner ran, into FOLDER. The parts are processes of their own; this one never touches the GPU. The exit
status is 1 if a test of the ops failed or was not run in time, or the CUDA kernels did not compile, else 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from softdiff_kernels.files import save_json, save_text

from . import bench, build, document, parts, tools
from .parts import ROOT, Outcome
from .targets import BACKENDS, faster_table

# Each part's seconds, and its script or module with options. From the build to the sanitizer all share a
# window of WINDOW seconds: the CUDA module is built beside Triton's parts, and its own parts get what the
# build leaves.
PARTS: dict[str, tuple[float, str]] = {
    "environment": (60.0, "benchmarks.gpu.report environment"),
    "build": (160, "benchmarks.gpu.report build"),
    "correctness triton": (240, "tests/gpu/in_processes.py --backend triton"),
    "correctness cuda": (240, "tests/gpu/in_processes.py --backend cuda"),
    "sanitizer triton": (230, "tests/gpu/sanitizer.py --backend triton"),
    "sanitizer cuda": (230, "tests/gpu/sanitizer.py --backend cuda"),
    "tune": (70, "softdiff_kernels.backends.triton.tools.tune"),
    "bench": (120, "benchmarks.gpu.report bench"),
    "tuned bench": (30, "benchmarks.gpu.report bench --only-ours"),
    "ncu": (35, "benchmarks.gpu.report ncu"),
}
WINDOW = 240
TOTAL = 510  # the window, the parts behind it, and 15 s for the environment, whose limit is for a slow disk
GROUPS = {
    group: tuple(f"{group} {backend}" for backend in BACKENDS) for group in ("correctness", "sanitizer")
}
_BUILT = ("correctness cuda", "sanitizer cuda", "bench", "ncu")  # what the CUDA module is built for
_MARGIN = 12.0  # seconds between a part's own limit and the one at which it is killed
_SAVED = 5.0  # seconds between two saves of a report whose parts still run
_TUNED = "tuned-configs.json"


def variables_of_parts(scratch: Path) -> dict[str, str]:
    """The caller's environment, with the repository importable, the package from the folder of links that the
    CUDA module is built into, bounded pools of threads, and a place for Triton's cache if there is none."""
    places = (str(scratch / "overlay"), str(ROOT), os.environ.get("PYTHONPATH", ""))
    # Some ten processes run at once, each of which would take all cores.
    bounds = {"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    path = os.pathsep.join(place for place in places if place)
    variables = {**bounds, **os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    home = Path(os.environ.get("TRITON_HOME") or os.environ.get("HOME") or "/nonexistent")
    if not os.access(home, os.W_OK):
        variables.setdefault("TRITON_CACHE_DIR", str(scratch / "triton"))
    return variables


class Report:
    """The outcomes so far: on disk after each part, and every few seconds with what running parts saved."""

    def __init__(self, folder: Path, scratch: Path, seconds: float, only: set[str]) -> None:
        self.folder, self.scratch, self.only = folder, scratch, only
        self.start, self.seconds, self.scale = time.monotonic(), seconds, seconds / TOTAL
        self.outcomes: dict[str, Outcome] = {}
        self.running: dict[str, float] = {}  # when each part began
        self.lock = threading.Lock()
        self.variables = variables_of_parts(scratch)
        self.overlay = scratch / "overlay"
        build.link_package(self.overlay)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def share(self, name: str) -> float:
        """The seconds of a part; not scaled for the first, whose imports take what the disk takes."""
        return PARTS[name][0] * (1.0 if name == "environment" else self.scale)

    def stop(self, *_: object) -> None:
        """Ends the report early: no part begins any more, and those that run are stopped."""
        self.seconds = 0.0
        parts.interrupt()

    def part(
        self, name: str, *options: str, seconds: float | None = None, **variables: str
    ) -> Outcome | None:
        """Runs a part within its share of the time, unless it was not asked for."""
        if name not in self.only:
            return None
        share = min(self.share(name) if seconds is None else seconds, self.left())
        if share < 5.0:
            return self.add(Outcome(name, "timeout", detail="no time was left"))
        program, *words = PARTS[name][1].split()
        start = [str(ROOT / program)] if program.endswith(".py") else ["-m", program]
        command = [sys.executable, *start, *words, *options]
        command += ["--seconds", f"{max(share - _MARGIN, share / 2):.0f}"]
        print(f"{name}: up to {share:.0f} s", flush=True)
        with self.lock:
            self.running[name] = time.monotonic()
        where = {"folder": self.overlay, "environment": {**self.variables, **variables}}
        log = self.folder / "log.txt"
        return self.add(parts.run(name, command, seconds=share, log=log, scratch=self.scratch, **where))

    def add(self, outcome: Outcome) -> Outcome:
        with self.lock:
            self.running.pop(outcome.name, None)
            self.outcomes[outcome.name] = outcome
            print(f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s. {outcome.detail}", flush=True)
            self._save()
        return outcome

    def save_regularly(self, ended: threading.Event) -> None:
        while not ended.wait(_SAVED):
            with self.lock:
                self._save()

    def _save(self) -> None:
        now, outcomes = time.monotonic(), dict(self.outcomes)
        for name, began in self.running.items():
            data = {**parts.read(self.scratch / f"{name}.json"), "status": "running"}
            outcomes[name] = Outcome(name, data.pop("status"), now - began, data.pop("detail", ""), data)
        ordered = {name: outcomes[name] for name in PARTS if name in outcomes}
        content = {
            n: {"status": o.status, "seconds": o.seconds, "detail": o.detail, **o.data}
            for n, o in ordered.items()
        }
        complete = len(self.outcomes) == len(self.only)
        about = {"command": "make gpu-report", "seconds": now - self.start, "complete": complete}
        save_json(self.folder / "report.json", {**about, "parts": content})
        try:
            text = document.whole(ordered, about)
        except Exception:  # a table that cannot be made must not cost the parts that follow
            text = (
                f"# GPU report\n\nA table failed; report.json is whole.\n\n```\n{traceback.format_exc()}```\n"
            )
        save_text(self.folder / "report.md", text)


def _tuned(report: Report) -> None:
    """The tuner, whose table is kept if it came to its end."""
    outcome = report.part("tune")
    table = report.scratch / "tune.json"
    if outcome is not None and outcome.status == "ok" and table.exists():
        shutil.copyfile(table, report.folder / _TUNED)
        outcome.data = {"measured": outcome.data.get("measured", {})}
        report.add(outcome)


def _tests(report: Report) -> None:
    """The build, tests and sanitizer within their window: CUDA's behind the build, beside Triton's."""
    end = time.monotonic() + WINDOW * report.scale
    cpus = os.cpu_count() or 2
    workers = {"triton": max(1, min(10, cpus - 6)), "cuda": max(1, min(5, cpus // 3))}

    def checked(name: str) -> None:
        group, backend = name.split()
        options = ("--workers", str(workers[backend])) if group == "correctness" else ()
        report.part(name, *options, seconds=min(report.share(name), max(end - time.monotonic(), 0.0)))

    def built() -> None:
        outcome = report.part("build", "--into", str(report.overlay))
        names = [name for name in _BUILT[:2] if name in report.only]
        if outcome is not None and outcome.status == "ok":
            list(pool.map(checked, names))
            return
        for name in names:
            why = "not built" if outcome is None else outcome.detail
            report.add(Outcome(name, "absent", detail=f"no CUDA module: {why}"))

    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(built), *(pool.submit(checked, f"{group} triton") for group in GROUPS)]
        for future in waiting:
            future.result()


def _on_gpu(report: Report) -> None:
    _tests(report)
    _tuned(report)
    kept = report.folder / _TUNED
    reserve = report.share("ncu") + (report.share("tuned bench") if kept.exists() else 0.0)
    timed = report.part("bench", seconds=max(report.left() - reserve, 0.0))
    if timed is not None and timed.data.get("faster"):
        machine = report.outcomes["environment"].data.get("machine", {})
        nvcc = report.outcomes["build"].data.get("nvcc", "")
        save_json(report.folder / "faster.json", faster_table(machine, timed.data["faster"], nvcc))
    if kept.exists():
        report.part("tuned bench", SOFTDIFF_TRITON_CONFIGS=str(kept))
    report.part("ncu")


def failed(outcomes: Mapping[str, Outcome]) -> bool:
    """Whether the exit status says so: by the tests of the ops, and the build of what they test."""
    deciding = [outcomes[name] for name in (*GROUPS["correctness"], "build") if name in outcomes]
    return any(outcome.status in ("failed", "timeout") for outcome in deciding)


def report(folder: Path, seconds: float, only: set[str]) -> int:
    """Runs the parts, and those that they need; the exit status."""
    only |= {"environment", *(["build"] if only.intersection(_BUILT) else [])}
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "report.md", "log.txt", _TUNED, "faster.json"):
        (folder / name).unlink(missing_ok=True)
    if importlib.util.find_spec("pytest") is None:
        print("pytest is not installed: the tests of the ops are left out (python -m pip install pytest)")
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as scratch, ThreadPoolExecutor(1) as saver:
        whole = Report(folder, Path(scratch), seconds, only)
        saver.submit(whole.save_regularly, ended)
        before = signal.signal(signal.SIGTERM, whole.stop)
        try:
            environment = whole.part("environment")
            # Without this part's answer the others find out by themselves whether there is a GPU.
            reason = "" if environment is None else environment.data.get("reason", "")
            for name in [name for name in PARTS if reason and name in only and name != "environment"]:
                whole.add(Outcome(name, "absent", detail=reason))
            if not reason:
                _on_gpu(whole)
        finally:
            ended.set()
            signal.signal(signal.SIGTERM, before)
    print(f"\n{document.short(whole.outcomes)}\n\n{folder}: report.md, report.json, log.txt")
    return int(failed(whole.outcomes))


# What a process does for one part, given its options and a temporary folder.
EACH: dict[str, Callable[[argparse.Namespace, Path], object]] = {
    "environment": lambda o, _: save_json(o.out, tools.environment()),
    "build": lambda o, scratch: save_json(o.out, build.place(o.into, o.arch, scratch)),
    "bench": lambda o, _: bench.run(o.out, o.seconds, only_ours=o.only_ours, dry=o.dry),
    "ncu": lambda o, scratch: tools.ncu(o.out, o.seconds, scratch),
    "calls": lambda o, _: tools.calls(o.op, o.size, o.backend, o.dry),
    "compile": lambda o, _: bench.compile_share(o.share),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = {**GROUPS, **{name: (name,) for name in PARTS}}
    parser.add_argument("part", nargs="?", choices=tuple(EACH), help="this alone; default: the whole report")
    parser.add_argument("--out", type=Path, help="the report's folder, or the part's JSON file")
    parser.add_argument("--seconds", type=float, default=float(TOTAL), help=f"of all (default {TOTAL})")
    parser.add_argument("--only", nargs="+", choices=tuple(names), default=list(PARTS), metavar="PART")
    parser.add_argument("--into", type=Path, help="build: the folder with links to the package")
    parser.add_argument("--arch", type=int, help="build: compile for it, as 90, and do not try the result")
    parser.add_argument("--only-ours", action="store_true", help="bench: Triton beside one baseline")
    parser.add_argument("--dry", action="store_true", help="bench, calls: tiny sizes on the CPU")
    parser.add_argument("--op", default="corrupt", help="calls, which ncu watches: the op")
    parser.add_argument("--size", type=int, default=64, help="calls: px")
    parser.add_argument("--backend", nargs="+", default=["triton"], help="calls: in turn")
    parser.add_argument("--share", default="0/1", help="compile: the rows I, I + N, ... of I/N, by Triton")
    args = parser.parse_args(argv)
    if args.part is not None:
        parts.end_with_commands()
        with tempfile.TemporaryDirectory() as folder:
            EACH[args.part](args, Path(folder))
        return 0
    if args.out is None:
        parser.error("--out FOLDER is required")
    return report(args.out.resolve(), args.seconds, {n for name in args.only for n in names[name]})


if __name__ == "__main__":
    sys.exit(main())
