# SPDX-License-Identifier: Apache-2.0
"""Times the ops on a GPU by each fused backend beside their baselines, until the time is over.

The most wanted rows come first, and both backends are in every interleaved run. A step that hangs, or that
loses the GPU by an illegal access, costs itself alone: the process starts again behind it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import softdiff_kernels as sk
from softdiff_kernels import _machine
from softdiff_kernels.backends import triton
from softdiff_kernels.bench import machine
from softdiff_kernels.bench.report import rounded
from softdiff_kernels.files import save_json

from . import rows
from .parts import ROOT, read
from .rows import ALONE, CORE, OPS, Row, Setup

Entry = tuple[str, int, torch.dtype]
Step = tuple[str, Callable[[], None], float]  # its name, what it does, and the seconds that it needs
TRAINED = ("corrupt", "momentum_step", "soft_score_loss")
_LONGEST = 90.0  # seconds after which a step is taken to hang
SIZES = (64, 32, 128, 256, 512)
# Where torch.compile is tried first: it takes seconds a baseline.
COMPILED_FIRST: list[Entry] = [(op, 64, torch.float32) for op in TRAINED]


def order(sizes: tuple[int, ...] = SIZES) -> list[Entry]:
    """All rows of full batches, the core's first."""
    every = [(op, size, d) for d in (torch.float32, torch.bfloat16) for size in sizes for op in OPS]
    return list(dict.fromkeys([*(entry for entry in CORE if entry[1] in sizes), *every]))


class Bench:
    """What is measured so far, on disk after each step."""

    def __init__(self, out: Path, seconds: float, setup: Setup, about: dict[str, Any], again: bool = False):
        """again: this process continues another, which has left its results in `out`."""
        self.out, self.setup, self.deadline = out, setup, time.monotonic() + seconds
        before = read(out) if again else {}
        self.results: dict[str, Any] = {"problems": {}, "done": [], "lost": []}
        self.results |= {key: before[key] for key in self.results if key in before}
        self.results |= {"undone": [], **about}
        self.rows: dict[Any, Row] = {}
        self.add([Row(**row) for row in before.get("rows", [])])

    def attempt(self, name: str, step: Callable[[], None], needs: float) -> None:
        """Does a step if there is time and it was not done before; an error in it is written down."""
        start = time.monotonic()
        if name in self.results["done"]:
            return
        if self.deadline - start < needs:
            self.results["undone"].append(name)
            return
        self.results["done"].append(name)
        hangs = threading.Timer(_LONGEST, self.restart, (name, f"did not end within {_LONGEST:.0f} s"))
        hangs.daemon = True
        hangs.start()
        try:
            step()
        except Exception as error:  # one row must not cost the others
            why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            self.results["problems"][name] = why
            traceback.print_exc()
            if lost():
                self.restart(name, why)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        finally:
            hangs.cancel()
        now = time.monotonic()
        print(f"{name}: {now - start:.1f} s, {self.deadline - now:.0f} s left", flush=True)
        self.save()

    def restart(self, name: str, why: str) -> None:
        """Starts this program again, behind the step that lost the GPU; it keeps its process group."""
        self.results["problems"][name] = why
        self.results["lost"].append(name)
        self.results["undone"] = []
        self.save()
        print(f"{name}: {why}; the process starts again", flush=True)
        left = max(self.deadline - time.monotonic(), 0.0)
        os.execv(sys.executable, [*sys.orig_argv, "--again", "--seconds", f"{left:.0f}"])

    def each(self, name: str, step: Callable[[], None], needs: float) -> None:
        """Does a step, by one backend after the other where it has lost the GPU by all together."""
        self.attempt(name, step, needs)
        if name in self.results["lost"]:
            setup = self.setup
            for backend in setup.backends:
                self.setup = replace(setup, backends=(backend,))
                self.attempt(f"{name}, {backend} alone", step, needs)
            self.setup = setup

    def add(self, measured: list[Row]) -> None:
        """Keeps the rows of a run; those of a second run give the first ones' their baselines."""
        for row in measured:
            key = row.op, row.px, row.batch, row.dtype, row.kind, row.backend
            before = self.rows.get(key)
            self.rows[key] = row if before is None else rows.merged(before, row)

    def save(self) -> None:
        listed = [asdict(row) for row in self.rows.values()]
        counts = {"steps not reached": len(self.results["undone"]), "problems": len(self.results["problems"])}
        detail = ", ".join([f"{len(listed)} rows", *(f"{n} {what}" for what, n in counts.items() if n)])
        about = {"status": "ok" if listed else "failed", "detail": detail}
        save_json(self.out, rounded({**about, **self.results, "rows": listed}))

    def full(self, entry: Entry, late: bool, most: int | None = None) -> None:
        """A full batch beside the eager baselines, `most` of them, or, late, those under torch.compile."""
        (op, size, dtype), setup = entry, self.setup
        if late:
            torch.compiler.reset()
            candidates = rows.compiled(op, size, dtype, setup.device, setup.compiler)
        else:
            candidates = rows.eager(op, size, dtype, setup.device)[:most]
        batch = rows.full_batch(size, dtype, setup.image_bytes)
        self.add(rows.measure(op, size, batch, dtype, setup, candidates))

    def small(self, op: str, size: int, batch: int) -> None:
        """A small batch as CUDA graphs and in blocks of calls, `corrupt` under torch.compile too."""
        where = (op, size, torch.float32, self.setup.device)
        candidates = rows.eager(*where)
        for kind in ("graph", "small"):
            if kind == "small" and op == "corrupt":
                torch.compiler.reset()
                candidates += rows.compiled(*where, self.setup.compiler)
            self.add(rows.measure(op, size, batch, torch.float32, self.setup, candidates, kind))

    def launch_overhead(self) -> None:
        sys.path.insert(0, str(ROOT / "tests"))
        from launch_overhead import measure

        self.results["launch_overhead_us"] = measure()

    def steps(self, sizes: tuple[int, ...], core: bool) -> Iterator[Step]:
        """Everything to do, in order. core: the core's rows alone, beside one baseline."""

        def full(entry: Entry, late: bool = False) -> Step:
            how, (op, size, dtype) = "compiled" if late else "eager", entry
            name = f"{how} {op} {size} px {str(dtype).removeprefix('torch.')}"
            needs = 12.0 if late else 1.5 if core else 3.0
            return name, lambda: self.full(entry, late, 1 if core else None), needs

        everything = order(sizes)
        if core:
            yield from map(full, dict.fromkeys((op, s if s in sizes else sizes[0], d) for op, s, d in CORE))
            return
        first = everything[:6]  # in float32 at 64 and 32 px
        yield from map(full, first)
        compiled_first = [entry for entry in COMPILED_FIRST if entry in everything]
        yield from (full(entry, late=True) for entry in compiled_first)
        if not triton.interpreted():  # thousands of calls, of which the interpreter takes a second for each
            yield "launch overhead", self.launch_overhead, 5.0
        size = 64 if 64 in sizes else sizes[0]
        for batch in self.setup.batches:
            for op in TRAINED:
                yield f"small {op} {batch}", lambda o=op, b=batch: self.small(o, size, b), 6.0  # type: ignore[misc]
        yield from (full(entry) for entry in everything if entry not in first)
        # The loss alone shares its baselines with the loss through autograd.
        others = (e for e in everything if e not in compiled_first and e[0] not in ("normal", ALONE))
        yield from (full(entry, late=True) for entry in others)


def lost() -> bool:
    """Whether no call of this process can use the GPU any more."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _make(job: tuple[Entry, int]) -> str:
    """Makes a row's call by Triton, with noise of its own, and given; what went wrong, else nothing."""
    (op, size, dtype), batch = job
    try:
        with sk.use_backend("triton"):
            case = rows.make(op, size, batch, dtype, torch.device("cuda", torch.cuda.current_device()))
            rows.ours(op, case)
            rows.ours(op, case, case.noise)
            torch.cuda.synchronize()
    except Exception as error:
        return f"{op} {size} px {dtype} B {batch}: {error}".splitlines()[0][:200]
    return ""


def compile_kernels(seconds: float, core: bool) -> list[str]:
    """Compiles the Triton kernels of the core, or of all rows, in several processes; the calls that failed,
    or were not made in time. All other processes find the kernels in Triton's cache."""
    full = rows.filling(torch.device("cuda", torch.cuda.current_device()))
    jobs = [(entry, count) for entry in CORE for count in (full, rows.FEW)]
    jobs += [] if core else [(entry, full) for entry in order() if entry not in CORE]
    deadline = time.monotonic() + seconds
    # A worker that hangs or dies costs its own call: it is left behind at the deadline.
    with get_context("spawn").Pool(max(1, min(12, _machine.cores() - 2))) as pool:
        calls = [(job, pool.apply_async(_make, (job,))) for job in jobs]
        for _, call in calls:
            call.wait(max(0.0, deadline - time.monotonic()))
        failed = [call.get() if call.ready() else f"{job}: not made in time" for job, call in calls]
    return [why for why in failed if why]


def kernels(out: Path, seconds: float) -> None:
    """Compiles the core's Triton kernels, for the tests and the timings that follow."""
    state, start = sk.backends()["triton"], time.monotonic()
    if not state.usable:
        save_json(out, {"status": "absent", "detail": f"triton: {state.reason}"})
        return
    failed = compile_kernels(seconds, core=True)
    detail = f"{2 * len(CORE)} calls in {time.monotonic() - start:.0f} s"
    if failed:
        detail += f", {len(failed)} of them failed: {'; '.join(failed[:3])}"
    save_json(out, {"status": "failed" if failed else "ok", "detail": detail, "failed": failed})


def dry_backends() -> tuple[str, ...]:
    """The GPU backends that run on the CPU here: interpreted by Triton, compiled for the CPU; else auto."""
    sys.path.insert(0, str(ROOT / "tests"))
    from cuda_emulated import install  # what SOFTDIFF_CUDA_SHIM=1 asks for
    from quick_interpreter import quicken

    quicken()
    emulated = install()  # before any backend is asked whether it is usable
    interpreted = triton.interpreted() and sk.backends()["triton"].usable
    return ("triton",) * interpreted + ("cuda",) * emulated or ("auto",)


def setup_for(dry: bool, backends: tuple[str, ...]) -> tuple[Setup, dict[str, Any]]:
    """The device and its copy bandwidth, measured; and the same for the report."""
    if dry:
        device, size, l2 = torch.device("cpu"), 2**16, 2**10
        limits: dict[str, Any] = {"image_bytes": 1, "budget": 1e-4, "least": 1, "compiler": "eager"}
        limits["batches"] = (1,)
    else:
        device = torch.device("cuda", torch.cuda.current_device())
        free = torch.cuda.mem_get_info(device)[0]
        size = min(2**30, free // 4)
        l2 = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 * 2**20
        # The FFT's baselines hold some twenty images of the batch's size at a time.
        limits = {"image_bytes": min(256 * 2**20, free // 40)}
    copy = machine.copy_bandwidth(device, size, rounds=3 if dry else 20)
    setup = Setup(device, l2, copy.median, backends=backends, **limits)
    about = {"copy": asdict(copy), "copy_bytes": size, "l2_bytes": l2, "image_bytes": setup.image_bytes}
    return setup, {**about, "backends": backends}


def run(out: Path, seconds: float, *, core: bool, dry: bool, again: bool, wanted: Sequence[str]) -> None:
    """Measures until the time is over, by the wanted backends that are usable. core: see `Bench.steps`;
    again: behind what the file holds already."""
    end = time.monotonic() + seconds
    backends = dry_backends() if dry else ()
    states = {name: sk.backends()[name] for name in wanted}
    if not dry and torch.cuda.is_available():
        backends = tuple(name for name, state in states.items() if state.usable)
    if not backends:
        reasons = "; ".join(f"{name}: {state.reason}" for name, state in states.items())
        save_json(out, {"status": "absent", "detail": reasons})
        return
    if not dry and not core and not again and "triton" in backends:
        compile_kernels(min(60.0, seconds / 3), core=False)
    bench = Bench(out, end - time.monotonic(), *setup_for(dry, backends), again)
    for name, step, needs in bench.steps((8,) if dry else SIZES, core):
        bench.each(name, step, 0.0 if dry else needs)
    bench.save()
