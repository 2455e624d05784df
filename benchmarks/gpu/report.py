# SPDX-License-Identifier: Apache-2.0
"""Everything that a machine with a GPU can say about the kernels, in one command: `make gpu-report`.

python -m benchmarks.gpu.report --out FOLDER [--seconds 520] [--only PART ...] [--plan]
python -m benchmarks.gpu.report PART --out JSON [...]     one part by itself, as the report runs it

Writes report.json, report.md, log.txt, faster.json if both fused backends were timed, and tuned-configs.json
if the tuner ran, into FOLDER. The parts are processes of their own; this one never touches the GPU. The exit
status is 1 if a test of the ops failed, the core pass was not run to its end, the CUDA kernels did not
compile or the machine could not be described, else 0.
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
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# What imports torch is imported where it is used: the build and the other parts begin before that.
from . import build, parts
from .parts import ROOT, Outcome, save_json, save_text
from .targets import BACKENDS, faster, faster_table

# Each part's script or module, with options, in the order of the report.
PARTS: dict[str, str] = {
    "environment": "benchmarks.gpu.report environment",
    "build": "benchmarks.gpu.report build",
    "kernels": "benchmarks.gpu.report kernels",
    "core triton": "tests/gpu/in_processes.py --only core --backend triton",
    "core cuda": "tests/gpu/in_processes.py --only core --backend cuda",
    "speed": "benchmarks.gpu.report bench --core",
    "tests triton": "tests/gpu/in_processes.py --backend triton",
    "tests cuda": "tests/gpu/in_processes.py --backend cuda",
    "sanitizer triton": "tests/gpu/sanitizer.py --backend triton",
    "sanitizer cuda": "tests/gpu/sanitizer.py --backend cuda",
    "bench": "benchmarks.gpu.report bench",
    "ncu": "benchmarks.gpu.report ncu",
    "tune": "softdiff_kernels.backends.triton.tools.tune",
}


@dataclass(frozen=True)
class Phase:
    """Parts that run beside each other. It begins if `least` seconds are left, and gets up to `most`."""

    names: tuple[str, ...]
    least: float
    most: float


# What a maintainer wants to know first: is it right, how fast is it; then the rest of both.
PHASES = (
    Phase(("environment", "build", "kernels", "core triton", "core cuda"), 90, 220),
    Phase(("speed",), 40, 75),
    Phase(("tests triton", "tests cuda", "sanitizer triton", "sanitizer cuda"), 70, 160),
    Phase(("bench",), 50, 130),
    Phase(("ncu",), 20, 35),
    Phase(("tune",), 65, 80),
)
TOTAL = 520.0
GROUPS = {
    group: tuple(f"{group} {backend}" for backend in BACKENDS) for group in ("core", "tests", "sanitizer")
}
_ENVIRONMENT = 60.0  # seconds for the first import of torch, which take what the disk takes
_KERNELS = 60.0  # seconds after which the core's tests compile by themselves what is missing
_SHORTEST = 4.0  # seconds with which a part begins
_RESERVE = 6.0  # of the whole, for stopping what runs and writing the last tables
_BEHIND_BUILD = 15.0  # of the first phase, for the core pass behind the build
_BUILT = ("core cuda", "speed", "tests cuda", "sanitizer cuda", "bench", "ncu")  # need the CUDA module
_SAVED = 0.5  # seconds between two looks at what running parts have saved
_TUNED = "tuned-configs.json"


def plan(seconds: float, wanted: Collection[str], phases: tuple[Phase, ...] = PHASES) -> dict[Phase, float]:
    """The phases that fit into a time, each with its seconds, by their order; the first is always there."""
    chosen: dict[Phase, float] = {}
    left = seconds
    for phase in phases:
        if set(phase.names) & set(wanted) and (phase.least <= left or not chosen):
            chosen[phase] = min(phase.least, left)
            left -= chosen[phase]
    for phase, own in chosen.items():
        more = min(left, phase.most - own)
        chosen[phase] += more
        left -= more
    return chosen


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
    """The outcomes so far: on disk whenever a part begins, ends, or has saved results of its own."""

    def __init__(self, folder: Path, scratch: Path, seconds: float, only: set[str]) -> None:
        self.folder, self.scratch, self.only = folder, scratch, only
        self.start, self.seconds = time.monotonic(), seconds
        self.planned = plan(seconds - _RESERVE, only)
        self.reason = ""  # why there is nothing to run on
        self.outcomes: dict[str, Outcome] = {}
        self.running: dict[str, float] = {}  # when each part began
        self.tables: Callable[..., str] | None = None  # of the Markdown, once torch is imported
        self.lock = threading.Lock()
        self.variables = variables_of_parts(scratch)
        self.overlay = scratch / "overlay"
        build.link_package(self.overlay)

    def left(self) -> float:
        return self.seconds - _RESERVE - (time.monotonic() - self.start)

    def stop(self, *_: object) -> None:
        """Ends the report early: no part begins any more, and those that run are stopped."""
        self.seconds = 0.0
        parts.interrupt()

    def part(self, name: str, *options: str, until: float, **variables: str) -> Outcome | None:
        """Runs a part until a moment of `time.monotonic`, unless it was not asked for."""
        if name not in self.only:
            return None
        share = min(until - time.monotonic(), self.left())
        if self.reason:
            return self.add(Outcome(name, "absent", detail=self.reason))
        if share < _SHORTEST:
            return self.add(Outcome(name, "left out", detail="no time was left"))
        program, *words = PARTS[name].split()
        start = [str(ROOT / program)] if program.endswith(".py") else ["-m", program]
        command = [sys.executable, *start, *words, *options]
        command += ["--seconds", f"{share - min(12.0, share / 5):.0f}"]
        with self.lock:
            stopped = bool(self.reason) or self.left() <= 0  # while this waited for the lock
            if not stopped:
                print(f"{name}: up to {share:.0f} s", flush=True)
                self.running[name] = time.monotonic()
        if stopped:
            return self.add(Outcome(name, "left out", detail=self.reason or "no time was left"))
        where = {"folder": self.overlay, "environment": {**self.variables, **variables}}
        log = self.folder / "log.txt"
        outcome = parts.run(name, command, seconds=share, log=log, scratch=self.scratch, **where)
        return self.add(Outcome(name, "absent", detail=self.reason) if self.reason else outcome)

    def add(self, outcome: Outcome) -> Outcome:
        with self.lock:
            self.running.pop(outcome.name, None)
            self.outcomes[outcome.name] = outcome
            print(f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s. {outcome.detail}", flush=True)
            self._save()
        return outcome

    def load_tables(self) -> None:
        """Behind the first part, which has read torch from the disk: the import stops all threads here."""
        from . import document

        self.tables = document.whole

    def save_regularly(self, ended: threading.Event) -> None:
        """Saves what running parts have found as soon as they have saved it."""
        seen: set[tuple[str, int]] = set()
        while not ended.wait(_SAVED):
            with self.lock:
                files = [self.scratch / f"{name}.json" for name in self.running]
                now = {(file.name, file.stat().st_mtime_ns) for file in files if file.exists()}
                now |= {(name, 0) for name in self.running}
                now.add(("clock", int(time.monotonic() / 5)))  # what they have printed
                if now - seen:
                    self._save()
                seen |= now

    def _save(self) -> None:
        now, outcomes = time.monotonic(), dict(self.outcomes)
        for name, began in self.running.items():
            data = {**parts.read(self.scratch / f"{name}.json"), "status": "running"}
            data["printed"] = parts.end_of(self.scratch / f"{name}.log")
            outcomes[name] = Outcome(name, data.pop("status"), now - began, data.pop("detail", ""), data)
        ordered = {name: outcomes[name] for name in PARTS if name in outcomes}
        content = {name: {**vars(outcome), **outcome.data} for name, outcome in ordered.items()}
        for values in content.values():
            del values["name"], values["data"]
        complete = len(self.outcomes) == len(self.only)
        about = {"command": "make gpu-report", "seconds": now - self.start, "complete": complete}
        planned = [{"parts": phase.names, "seconds": seconds} for phase, seconds in self.planned.items()]
        save_json(self.folder / "report.json", {**about, "plan": planned, "parts": content})
        text = "\n".join(
            ["# GPU report", "", *(f"- {o.name}: {o.status}. {o.detail}" for o in ordered.values()), ""]
        )
        try:
            text = self.tables(ordered, about) if self.tables else text
        except Exception:  # a table that cannot be made must not cost the parts that follow
            text += f"\nA table failed; report.json is whole.\n\n```\n{traceback.format_exc()}```\n"
        save_text(self.folder / "report.md", text)


def _parallel(*jobs: Callable[[], object]) -> None:
    with ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(job) for job in jobs]:
            future.result()


def _first(report: Report, end: float) -> None:
    """The machine's description, and the core pass of each backend behind what is compiled for it. None of
    these waits for the description, whose only word that matters here is that there is no GPU."""
    workers = max(2, (os.cpu_count() or 2) // 2 - 1)

    def environment() -> None:
        outcome = report.part("environment", until=time.monotonic() + _ENVIRONMENT)
        report.load_tables()
        if outcome is not None and outcome.data.get("reason"):
            report.reason = outcome.data["reason"]
            parts.interrupt()
            for name in set(report.outcomes) - {"environment"}:
                report.add(Outcome(name, "absent", detail=report.reason))

    def triton() -> None:
        report.part("kernels", until=min(end - _BEHIND_BUILD, time.monotonic() + _KERNELS))
        report.part("core triton", "--workers", str(workers), until=end)

    def cuda() -> None:
        report.part("build", "--into", str(report.overlay), until=end - _BEHIND_BUILD)
        _cuda(report, "core cuda", "--workers", "4", until=end)

    _parallel(environment, triton, cuda)


def _cuda(report: Report, name: str, *options: str, until: float) -> None:
    """A part that has nothing to run on without the CUDA module."""
    built = report.outcomes.get("build")
    if built is None or built.status == "ok" or report.reason:
        report.part(name, *options, until=until)
    elif name in report.only:
        report.add(Outcome(name, "absent", detail=f"no CUDA module: {built.detail}"))


def _tests(report: Report, end: float) -> None:
    """The other tests and the sanitizer, of both backends."""
    cpus = os.cpu_count() or 2
    workers = {"triton": max(1, min(9, cpus - 6)), "cuda": max(1, min(4, cpus // 4))}

    def job(group: str, backend: str) -> Callable[[], object]:
        options = ("--workers", str(workers[backend])) if group == "tests" else ()
        run = report.part if backend == "triton" else _cuda.__get__(report)
        return lambda: run(f"{group} {backend}", *options, until=end)

    _parallel(*(job(group, backend) for group in ("tests", "sanitizer") for backend in BACKENDS))


def _tune(report: Report, end: float) -> None:
    """The tuner, whose table is kept if it came to its end."""
    outcome = report.part("tune", until=end)
    table = report.scratch / "tune.json"
    if outcome is not None and outcome.status == "ok" and table.exists():
        shutil.copyfile(table, report.folder / _TUNED)
        outcome.data = {"measured": outcome.data.get("measured", {})}
        report.add(outcome)


_HOW: dict[str, Callable[[Report, float], None]]
_HOW = {"environment": _first, "tests triton": _tests, "tune": _tune}


def _all(report: Report) -> None:
    """Phase by phase. What a phase leaves of its seconds goes to those behind it."""
    for i, phase in enumerate(PHASES):
        wanted = [name for name in phase.names if name in report.only]
        planned = plan(report.left(), report.only, PHASES[i:])
        # The first is always in the plan of what is left; behind the first, only if its least fits.
        if i and planned.get(phase, 0.0) < phase.least and not report.reason:
            why = f"needs {phase.least:.0f} s, {max(report.left(), 0):.0f} s were left"
            for name in wanted:
                report.add(Outcome(name, "left out", detail=why))
        elif wanted:
            how = _HOW.get(phase.names[0], lambda r, end, name=phase.names[0]: r.part(name, until=end))
            how(report, time.monotonic() + planned.get(phase, 0.0))
            _keep_faster(report)


def _keep_faster(report: Report) -> None:
    """faster.json, as far as both backends were timed."""
    from . import document

    if table := faster(document.rows_of(report.outcomes)):
        machine = document.data_of(report.outcomes, "environment").get("machine", {})
        nvcc = document.data_of(report.outcomes, "build").get("nvcc", "")
        save_json(report.folder / "faster.json", faster_table(machine, table, nvcc))


def failed(outcomes: Mapping[str, Outcome]) -> bool:
    """Whether the exit status says so: by the tests, what they need, and whether the machine is known."""
    bad = dict.fromkeys(("environment", "build", *GROUPS["tests"]), ("failed", "timeout"))
    bad |= dict.fromkeys(GROUPS["core"], ("failed", "timeout", "left out"))
    return any(outcomes[name].status in statuses for name, statuses in bad.items() if name in outcomes)


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
        before = {number: signal.signal(number, whole.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            print(planned(seconds, only), flush=True)
            _all(whole)
        finally:
            ended.set()
            for number, handler in before.items():
                signal.signal(number, handler)
    from . import document

    print(f"\n{document.short(whole.outcomes)}\n\n{folder}: report.md, report.json, log.txt")
    return int(failed(whole.outcomes))


def planned(seconds: float, only: Collection[str]) -> str:
    """Lines that say which parts are expected to fit, and how long each phase may take at most."""
    chosen = plan(seconds - _RESERVE, only)
    lines = [f"The plan of {seconds:.0f} s, in which what a phase does not need goes to those behind it:"]
    for phase in PHASES:
        if names := ", ".join(name for name in phase.names if name in only):
            lines.append(f"  {names}: {f'{chosen[phase]:.0f} s' if phase in chosen else 'if time is left'}")
    return "\n".join(lines)


def one(o: argparse.Namespace, scratch: Path) -> None:
    """One part by itself, given its options and a temporary folder."""
    wanted = o.backend or BACKENDS
    if o.part == "build":
        save_json(o.out, build.place(o.into, o.arch, scratch))
        return
    from . import bench, tools

    if o.part == "environment":
        save_json(o.out, tools.environment())
    elif o.part == "kernels":
        bench.kernels(o.out, o.seconds)
    elif o.part == "bench":
        bench.run(o.out, o.seconds, core=o.core, dry=o.dry, again=o.again, wanted=wanted)
    elif o.part == "ncu":
        tools.ncu(o.out, o.seconds, scratch)
    else:
        tools.calls(o.op, o.size, wanted, o.dry)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = {**GROUPS, **{name: (name,) for name in PARTS}}
    each = ("environment", "build", "kernels", "bench", "ncu", "calls")
    parser.add_argument("part", nargs="?", choices=each, help="this alone; default: the whole report")
    parser.add_argument("--out", type=Path, help="the report's folder, or the part's JSON file")
    parser.add_argument("--seconds", type=float, default=TOTAL, help=f"of all (default {TOTAL:.0f})")
    parser.add_argument("--only", nargs="+", choices=tuple(names), default=list(PARTS), metavar="PART")
    parser.add_argument("--plan", action="store_true", help="print what fits into the seconds, and end")
    parser.add_argument("--into", type=Path, help="build: the folder with links to the package")
    parser.add_argument("--arch", type=int, help="build: compile for it, as 90, and do not try the result")
    parser.add_argument("--core", action="store_true", help="bench: the core's rows alone")
    parser.add_argument("--again", action="store_true", help="bench: go on behind what the file holds")
    parser.add_argument("--dry", action="store_true", help="bench, calls: tiny sizes on the CPU")
    parser.add_argument("--op", default="corrupt", help="calls, which ncu watches: the op")
    parser.add_argument("--size", type=int, default=64, help="calls: px")
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, help="bench, calls: these alone")
    args = parser.parse_args(argv)
    only = {n for name in args.only for n in names[name]}
    if args.part is not None:
        parts.end_with_commands()
        with tempfile.TemporaryDirectory() as folder:
            one(args, Path(folder))
        return 0
    if args.plan:
        print(planned(args.seconds, only))
        return 0
    if args.out is None:
        parser.error("--out FOLDER is required")
    return report(args.out.resolve(), args.seconds, only)


if __name__ == "__main__":
    sys.exit(main())
