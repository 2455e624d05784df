# SPDX-License-Identifier: Apache-2.0
"""Times the ops on a GPU by each fused backend beside their baselines, until the time is over.

The most wanted rows come first, and both backends are in every interleaved run.

python -m benchmarks.gpu.bench --out JSON [--seconds N] [--only-ours] [--dry]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import softdiff_kernels as sk
from softdiff_kernels.bench import clock

from . import choice, engines, rivals, rows
from .parts import write
from .rows import IN_ONE_LAUNCH, OPS, Row, Setup

_STEPS = ("momentum_step", IN_ONE_LAUNCH, "soft_score_loss")
HEADLINE = [
    *(("corrupt", size, torch.float32) for size in (64, 32, 128, 256)),
    *(
        (op, size, torch.float32)
        for op in ("momentum_step", IN_ONE_LAUNCH, "soft_score_loss")
        for size in (64, 32)
    ),
    *((op, 64, torch.bfloat16) for op in ("corrupt", *_STEPS)),
]
SIZES = (64, 32, 128, 256, 512)
# Where torch.compile is tried first: it takes seconds a baseline.
COMPILED_FIRST = [(op, 64, torch.float32) for op in ("corrupt", "momentum_step", "soft_score_loss")]
Entry = tuple[str, int, torch.dtype]


def order(sizes: tuple[int, ...] = SIZES) -> list[Entry]:
    """All rows of full batches, the headline's first."""
    every = [(op, size, d) for d in (torch.float32, torch.bfloat16) for size in sizes for op in OPS]
    first = [entry for entry in HEADLINE if entry[1] in sizes]
    return first + [entry for entry in every if entry not in first]


class Run:
    """What is measured so far, on disk after each row."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.deadline = out, time.monotonic() + seconds
        self.found: dict[str, Any] = {"rows": [], "problems": {}, "undone": []}
        self.rows: dict[Any, Row] = {}

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def attempt(self, name: str, step: Callable[[], None], *, needs: float = 2.0) -> None:
        """Does a step if there is time; what goes wrong in it is written down."""
        if self.left() < needs:
            self.found["undone"].append(name)
            return
        start = time.monotonic()
        try:
            step()
        except Exception as error:  # one row must not cost the others
            self.found["problems"][name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            traceback.print_exc()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        print(f"{name}: {time.monotonic() - start:.1f} s, {self.left():.0f} s left", flush=True)
        self.save()

    def save(self) -> None:
        self.found["rows"] = [asdict(row) for row in self.rows.values()]
        self.found["faster"] = choice.faster(self.found["rows"])
        status = "ok" if self.rows else "failed"
        undone, problems = len(self.found["undone"]), len(self.found["problems"])
        detail = f"{len(self.rows)} rows" + (f", {undone} steps not reached" if undone else "")
        detail += f", {problems} problems" if problems else ""
        write(self.out, {"status": status, "detail": detail, **self.found})


def label(entry: Entry, what: str) -> str:
    return f"{what} {entry[0]} {entry[1]} px {str(entry[2]).removeprefix('torch.')}"


def warm_up(seconds: float, workers: int) -> None:
    """Compiles the kernels of all rows in several processes; this one finds them in Triton's cache."""
    commands = [
        [sys.executable, "-m", "benchmarks.gpu.warm", "--shard", f"{i}/{workers}"] for i in range(workers)
    ]
    running = [subprocess.Popen(command) for command in commands]
    deadline = time.monotonic() + seconds
    for process in running:
        try:
            process.wait(timeout=max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def setup_for(dry: bool) -> tuple[Setup, dict[str, Any]]:
    """The device, and its copy bandwidth, measured."""
    if dry:
        device = torch.device("cpu")
        copy = clock.copy_bandwidth(device, 2**16, rounds=3)
        limits = {"l2_bytes": 2**10, "image_bytes": 2**13, "budget": 1e-4, "compiler": "eager"}
        return Setup(device, copy_bytes_s=copy.median, **limits), {"copy": asdict(copy), "copy_bytes": 2**16}
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.init()
    free = torch.cuda.mem_get_info(device)[0]
    size = min(2**30, free // 4)
    copy = clock.copy_bandwidth(device, size)
    l2 = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 * 2**20
    # The FFT's baselines hold some twenty images of the batch's size at a time.
    backends = tuple(name for name in ("triton", "cuda") if sk.backends()[name].usable)
    setup = Setup(device, l2, copy.median, image_bytes=min(256 * 2**20, free // 40), backends=backends)
    return setup, {"copy": asdict(copy), "copy_bytes": size, "l2_bytes": l2, "image_bytes": setup.image_bytes}


def steps(
    run: Run, setup: Setup, sizes: tuple[int, ...], only_ours: bool
) -> Iterator[tuple[str, Callable[[], None], float]]:
    """Everything to do, in order: (name, step, the seconds that it needs)."""

    def full(entry: Entry, candidates: Callable[..., list[rivals.Rival]]) -> list[Row]:
        op, size, dtype = entry
        batch = rows.full_batch(size, dtype, setup.image_bytes)
        found = candidates(rows.named(op), size, dtype, setup.device)
        ours = engines.candidates(setup.backends, op, size, setup.device)
        return rows.compare(op, size, batch, dtype, replace(setup, backends=ours), found, kind="full")

    def first(entry: Entry) -> None:
        for row in full(entry, (lambda *a: []) if only_ours else rivals.eager):
            run.rows[entry, row.backend] = row

    def late(entry: Entry) -> None:
        torch.compiler.reset()
        for row in full(entry, lambda *a: rivals.compiled(*a, backend=setup.compiler)):
            before = run.rows.get((entry, row.backend))
            run.rows[entry, row.backend] = row if before is None else rows.merged(before, row)

    def small(op: str, batch: int, compile: bool) -> None:
        size = 64 if 64 in sizes else sizes[0]
        found = [r for r in rivals.eager(rows.named(op), size, torch.float32, setup.device) if r.fair]
        if compile:
            torch.compiler.reset()
            found += rivals.compiled(rows.named(op), size, torch.float32, setup.device, setup.compiler)
        for row in rows.compare(op, size, batch, torch.float32, setup, found, kind="small"):
            run.rows[op, size, batch, row.backend] = row

    def host() -> None:
        run.found["host_us"] = {
            op: {b: rows.host_microseconds(op, setup.device, b) for b in setup.backends} for op in OPS
        }

    def launch_overhead() -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
        from launch_overhead import measure

        run.found["launch_overhead_us"] = measure()

    everything = order(sizes)
    headline = [e for e in everything if e in HEADLINE]
    for entry in headline:
        yield label(entry, "eager"), lambda e=entry: first(e), 3.0
    if only_ours:
        return
    compiled_first = [e for e in COMPILED_FIRST if e in everything]
    for entry in compiled_first:
        yield label(entry, "compiled"), lambda e=entry: late(e), 12.0
    yield "host", host, 3.0
    yield "launch overhead", launch_overhead, 5.0
    for batch in (1, 4, 16):
        for op in ("corrupt", "momentum_step", "soft_score_loss"):
            yield f"small {op} {batch}", lambda o=op, b=batch: small(o, b, o == "corrupt"), 6.0
    for entry in everything:
        if entry not in headline:
            yield label(entry, "eager"), lambda e=entry: first(e), 3.0
    # The loss alone shares its baselines with the loss through autograd.
    for entry in everything:
        if entry not in compiled_first and entry[0] not in ("normal", IN_ONE_LAUNCH):
            yield label(entry, "compiled"), lambda e=entry: late(e), 12.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument(
        "--only-ours", action="store_true", help="the headline's rows by Triton, without baselines"
    )
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU, to try the code out")
    args = parser.parse_args(argv)
    run = Run(args.out, args.seconds)
    if not args.dry and not torch.cuda.is_available():
        write(args.out, {"status": "absent", "detail": "torch finds no GPU"})
        return 0
    reasons = {name: sk.backends()[name] for name in (("triton",) if args.only_ours else ("triton", "cuda"))}
    if not args.dry and not any(found.usable for found in reasons.values()):
        told = "; ".join(f"{name}: {found.reason}" for name, found in reasons.items())
        write(args.out, {"status": "absent", "detail": told})
        return 0
    if not args.dry and reasons["triton"].usable:
        warm_up(min(60.0, args.seconds / 3), max(1, min(10, (os.cpu_count() or 2) - 2)))
    setup, about = setup_for(args.dry)
    if args.only_ours and not args.dry:
        setup = replace(setup, backends=("triton",))
    run.found.update(about, backends=setup.backends)
    sizes = (8, 16) if args.dry else SIZES
    for name, step, needs in steps(run, setup, sizes, args.only_ours):
        run.attempt(name, step, needs=0.0 if args.dry else needs)
    run.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
