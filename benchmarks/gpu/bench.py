# SPDX-License-Identifier: Apache-2.0
"""Times the ops on a GPU by each fused backend beside their baselines, until the time is over.

The most wanted rows come first, and both backends are in every interleaved run.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import softdiff_kernels as sk
from softdiff_kernels.backends import triton
from softdiff_kernels.bench import machine
from softdiff_kernels.bench.report import rounded
from softdiff_kernels.files import save_json

from . import rows
from .parts import ROOT, execute
from .rows import ALONE, OPS, Row, Setup
from .targets import BACKENDS, faster

Entry = tuple[str, int, torch.dtype]
Step = tuple[str, Callable[[], None], float]  # its name, what it does, and the seconds that it needs
TRAINED = ("corrupt", "momentum_step", "soft_score_loss")
HEADLINE: list[Entry] = [
    *(("corrupt", size, torch.float32) for size in (64, 32, 128, 256)),
    *((op, size, torch.float32) for op in ("momentum_step", ALONE, "soft_score_loss") for size in (64, 32)),
    *((op, 64, torch.bfloat16) for op in ("corrupt", "momentum_step", ALONE, "soft_score_loss")),
]
SIZES = (64, 32, 128, 256, 512)
# Where torch.compile is tried first: it takes seconds a baseline.
COMPILED_FIRST: list[Entry] = [(op, 64, torch.float32) for op in TRAINED]


def order(sizes: tuple[int, ...] = SIZES) -> list[Entry]:
    """All rows of full batches, the headline's first."""
    every = [(op, size, d) for d in (torch.float32, torch.bfloat16) for size in sizes for op in OPS]
    return list(dict.fromkeys([*(entry for entry in HEADLINE if entry[1] in sizes), *every]))


class Bench:
    """What is measured so far, on disk after each step."""

    def __init__(self, out: Path, seconds: float, setup: Setup, about: dict[str, Any]) -> None:
        self.out, self.setup, self.deadline = out, setup, time.monotonic() + seconds
        self.results: dict[str, Any] = {"problems": {}, "undone": [], **about}
        self.rows: dict[Any, Row] = {}

    def attempt(self, name: str, step: Callable[[], None], needs: float) -> None:
        """Does a step if there is time; an error in it is written down."""
        start = time.monotonic()
        if self.deadline - start < needs:
            self.results["undone"].append(name)
            return
        try:
            step()
        except Exception as error:  # one row must not cost the others
            self.results["problems"][name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            traceback.print_exc()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        now = time.monotonic()
        print(f"{name}: {now - start:.1f} s, {self.deadline - now:.0f} s left", flush=True)
        self.save()

    def add(self, key: Any, measured: list[Row]) -> None:
        """Keeps the rows of a run; those of a second run give the first ones' their baselines."""
        for row in measured:
            before = self.rows.get((key, row.backend))
            self.rows[key, row.backend] = row if before is None else rows.merged(before, row)

    def save(self) -> None:
        listed = [asdict(row) for row in self.rows.values()]
        counts = {"steps not reached": len(self.results["undone"]), "problems": len(self.results["problems"])}
        detail = ", ".join([f"{len(listed)} rows", *(f"{n} {what}" for what, n in counts.items() if n)])
        about = {"status": "ok" if listed else "failed", "detail": detail, "faster": faster(listed)}
        save_json(self.out, rounded({**about, **self.results, "rows": listed}))

    def full(self, entry: Entry, late: bool, only_ours: bool) -> None:
        """A full batch beside the eager baselines or, late, those under torch.compile."""
        (op, size, dtype), setup = entry, self.setup
        if late:
            torch.compiler.reset()
            candidates = rows.compiled(op, size, dtype, setup.device, setup.compiler)
        else:
            candidates = rows.eager(op, size, dtype, setup.device)[: 1 if only_ours else None]
        batch = rows.full_batch(size, dtype, setup.image_bytes)
        self.add(entry, rows.measure(op, size, batch, dtype, setup, candidates))

    def small(self, op: str, size: int, batch: int) -> None:
        """A small batch as CUDA graphs and in blocks of calls, `corrupt` under torch.compile too."""
        where = (op, size, torch.float32, self.setup.device)
        candidates = [b for b in rows.eager(*where) if b.group != rows.FEWER]
        for kind in ("graph", "small"):
            if kind == "small" and op == "corrupt":
                torch.compiler.reset()
                candidates += rows.compiled(*where, self.setup.compiler)
            measured = rows.measure(op, size, batch, torch.float32, self.setup, candidates, kind)
            self.add((op, size, batch, kind), measured)

    def launch_overhead(self) -> None:
        sys.path.insert(0, str(ROOT / "tests"))
        from launch_overhead import measure

        self.results["launch_overhead_us"] = measure()

    def steps(self, sizes: tuple[int, ...], only_ours: bool) -> Iterator[Step]:
        """Everything to do, in order."""

        def full(entry: Entry, late: bool = False) -> Step:
            what = f"{entry[0]} {entry[1]} px {str(entry[2]).removeprefix('torch.')}"
            step = f"{'compiled' if late else 'eager'} {what}", lambda: self.full(entry, late, only_ours)
            return *step, 12.0 if late else 3.0

        everything = order(sizes)
        headline = [entry for entry in everything if entry in HEADLINE]
        yield from map(full, headline)
        if only_ours:
            return
        compiled_first = [entry for entry in COMPILED_FIRST if entry in everything]
        yield from (full(entry, late=True) for entry in compiled_first)
        if not triton.interpreted():  # thousands of calls, of which the interpreter takes a second for each
            yield "launch overhead", self.launch_overhead, 5.0
        size = 64 if 64 in sizes else sizes[0]
        for batch in self.setup.batches:
            for op in TRAINED:
                yield f"small {op} {batch}", lambda o=op, b=batch: self.small(o, size, b), 6.0  # type: ignore[misc]
        yield from (full(entry) for entry in everything if entry not in headline)
        # The loss alone shares its baselines with the loss through autograd.
        others = (e for e in everything if e not in compiled_first and e[0] not in ("normal", ALONE))
        yield from (full(entry, late=True) for entry in others)


def compile_kernels(seconds: float) -> None:
    """Compiles the Triton kernels of all rows in several processes; this one finds them in Triton's cache."""
    count = max(1, min(10, (os.cpu_count() or 2) - 2))

    def job(i: int) -> None:
        program = [sys.executable, "-m", "benchmarks.gpu.report", "compile", "--share", f"{i}/{count}"]
        execute(program, seconds=seconds, log=Path(os.devnull))

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(job, range(count)))


def compile_share(share: str) -> None:
    """Calls the rows I, I + N, I + 2 N ... of "I/N" once by Triton, which keeps their kernels on disk."""
    first, step = map(int, share.split("/"))
    device = torch.device("cuda", torch.cuda.current_device())
    # Enough planes to fill the GPU: fewer take other kernels above 64 px.
    batch = torch.cuda.get_device_properties(device).multi_processor_count // 3 + 1
    with sk.use_backend("triton"):
        for op, size, dtype in order()[first::step]:
            rows.ours(op, rows.make(op, size, batch, dtype, device))
    torch.cuda.synchronize()


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


def run(out: Path, seconds: float, *, only_ours: bool, dry: bool) -> None:
    """Measures until the time is over. only_ours: the headline's rows by Triton, beside one baseline."""
    end = time.monotonic() + seconds
    backends = dry_backends() if dry else ()
    states = {name: sk.backends()[name] for name in (("triton",) if only_ours else BACKENDS)}
    if not dry and torch.cuda.is_available():
        backends = tuple(name for name, state in states.items() if state.usable)
    if not backends:
        reasons = "; ".join(f"{name}: {state.reason}" for name, state in states.items())
        save_json(out, {"status": "absent", "detail": reasons})
        return
    if not dry and "triton" in backends:
        compile_kernels(min(60.0, seconds / 3))
    bench = Bench(out, end - time.monotonic(), *setup_for(dry, backends))
    for name, step, needs in bench.steps((8,) if dry else SIZES, only_ours):
        bench.attempt(name, step, 0.0 if dry else needs)
    bench.save()
