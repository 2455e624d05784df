# SPDX-License-Identifier: Apache-2.0
"""A run of `softdiff bench`: what is measured in which order, and what is kept if it is stopped."""

from __future__ import annotations

import importlib
import itertools
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import softdiff_kernels as sk

from ..errors import UserError, need
from ..progress import Progress
from ..training.distributed import pick_device
from . import cases, machine, packages, plots, report, rows, sweeps, timing
from .config import BenchConfig

COMPILED_SIZES = {"cpu": (64, 256), "cuda": (64,)}
_GPU_IMAGES = 64 * 2**20  # bytes of one image batch
_BUSY = 0.5


@dataclass(frozen=True)
class Step:
    """A part of the run. threads: the count it is measured at, None for the one in force."""

    name: str
    call: Callable[[], object]
    threads: int | None = None


class Run:
    """What is asked for, and what has been measured of it so far."""

    def __init__(self, config: BenchConfig, command: str) -> None:
        self.config = config
        self.device = pick_device(config.device)
        self.gpu = self.device.type == "cuda"
        about = machine.description(self.device)
        about["versions"] |= packages.versions()
        # Thread counts. On a GPU they make no difference.
        self.threads = config.threads or tuple(sorted({1, about["cores"]}))
        if self.gpu:
            self.threads = (torch.get_num_threads(),)
        # Seconds for each call of a row, in each pass. A GPU's calls are so short that less time has enough
        # rounds in it, and its clock is steady. On a CPU other programs disturb for seconds: two passes,
        # minutes apart, see more of that than one pass of twice the length.
        self.budget = 0.03 if config.quick else 0.05 if self.gpu else 0.1
        self.passes = 1 if config.quick or self.gpu else 2
        self.measurements: dict[tuple[Any, ...], rows.Measurement] = {}  # for the next pass
        self.rows: dict[tuple[Any, ...], rows.Row] = {}
        self.started = time.monotonic()
        self.result: dict[str, Any] = {
            "command": command,
            "config": asdict(config),
            "machine": about,
            "backends": {name: [b.usable, b.reason] for name, b in sk.backends().items()},
            "seed": cases.SEED,
            "absent": packages.absent(device=self.device),
            **{"memory_kept": False, "complete": False, "seconds": 0.0},
            **{key: {} for key in ("limits", "problems", "step_seconds")},
            **{key: [] for key in ("shares", "memory")},
            "sweeps": {"blur": [], "batch": [], "host": []},
        }

    def conditions(self) -> list[rows.Conditions]:
        """Every dtype by every backend that is asked for."""
        usable = [name for name in ("triton", "cuda") if sk.backends()[name].usable] if self.gpu else []
        backends: Sequence[str | None] = self.config.backends or usable or (None,)
        dtypes = self.config.dtypes or (("float32", "bfloat16") if self.gpu else ("float32",))
        l2 = self.result["machine"]["gpu"]["l2_bytes"] if self.gpu else 0
        least = 3 if self.config.quick else 4
        base = rows.Conditions(self.device, budget=self.budget, least=least, l2_bytes=l2)
        return [
            replace(base, dtype=getattr(torch, dtype), backend=None if backend == "auto" else backend)
            for dtype in dtypes
            for backend in backends
        ]

    def steps(self) -> Iterator[Step]:
        """Everything to do, in order."""
        sections, sizes = self.config.chosen_sections(), self.config.chosen_sizes()
        for again, count in itertools.product(range(self.passes if "ops" in sections else 0), self.threads):
            if not again:
                yield Step(f"the machine's limits, {count} threads", partial(self._limits, count), count)
            for size in sizes:
                yield from self._size_steps(size, count, bool(again))
        if "memory" in sections and not self.gpu:
            for count, size in itertools.product(self.threads, sizes):
                yield Step(f"memory, {size} px, {count} threads", partial(self._memory, size, count))
        if "sweeps" in sections:
            yield from self._sweep_steps(self.threads[-1])

    def _size_steps(self, size: int, count: int, again: bool) -> Iterator[Step]:
        for op, conditions in itertools.product(self.config.chosen_ops(), self.conditions()):
            dtype = str(conditions.dtype).removeprefix("torch.").replace("float32", "")
            where = f"{size} px, {count} threads"
            words = (op, dtype, conditions.backend, where, "again" if again else "")
            step = partial(self._row, op, size, conditions, again)
            yield Step(", ".join(filter(None, words)), step, count)

    def _sweep_steps(self, count: int) -> Iterator[Step]:
        conditions = replace(self.conditions()[0], dtype=torch.float32, budget=self.budget / 2)
        sizes, batches = ((64,), (1, 4, 16)) if self.config.quick else ((64, 256), sweeps.BATCHES)

        def step(key: str, name: str, threads: int, sweep: Callable[..., list[Any]], *args: Any) -> Step:
            return Step(name, lambda: self.result["sweeps"][key].extend(sweep(*args)), threads)

        for size in sizes:
            yield step("blur", f"blur_std, {size} px", count, sweeps.by_blur, size, conditions)
        for op in cases.HEADLINE:
            by_batch = (sweeps.by_batch, op, 64, conditions, batches)
            yield step("batch", f"batch size, {op}", count, *by_batch)
            yield step("host", f"host time, {op}", 1, sweeps.host_time, op, conditions)

    def _limits(self, count: int) -> None:
        key = "gpu" if self.gpu else str(count)
        self.result["limits"][key] = machine.limits(self.budget, self.device)

    def _memory(self, size: int, count: int) -> None:
        extra = sweeps.memory(size, count)
        if extra is not None:
            self.result["memory"].append({"px": size, "threads": count, **extra})

    def _compiles(self, op: str, size: int) -> bool:
        if self.config.compile != "some":
            return self.config.compile == "all"
        chosen = op in cases.HEADLINE and size in COMPILED_SIZES[self.device.type]
        return chosen and torch.get_num_threads() == self.threads[-1] and not self.config.quick

    def _batch(self, size: int, dtype: torch.dtype) -> int:
        images = cases.batch_of(size) // (8 if self.config.quick else 1)
        if self.gpu:
            images = _GPU_IMAGES // (cases.CHANNELS * size * size * dtype.itemsize)
        return self.config.batch or max(1, images)

    def _row(self, op: str, size: int, conditions: rows.Conditions, again: bool) -> str:
        if op not in cases.HEADLINE:
            conditions = replace(conditions, budget=conditions.budget / 2)
        key = (op, size, conditions.dtype, conditions.backend, torch.get_num_threads())
        measurement = self.measurements.pop(key, None)
        if measurement is None:
            batch, compile = self._batch(size, conditions.dtype), self._compiles(op, size)
            measurement = rows.prepare(op, size, conditions, batch=batch, compile=compile)
        measurement.time()
        row = self.rows[key] = measurement.row()
        if self.passes > 1 and not again:
            self.measurements[key] = measurement
        return f"{row.ours:.2f} ns/px, {row.ratio:.2f} times as fast as {row.fastest}"

    def _shares(self) -> Iterator[dict[str, Any]]:
        timed = [row for row in self.rows.values() if row.dtype == "float32"]
        normal_ns = {(row.px, row.threads): row.ours for row in timed if row.op == "normal"}
        for row in timed:
            limits = self.result["limits"].get("gpu" if self.gpu else str(row.threads))
            if limits is not None:
                normal = normal_ns.get((row.px, row.threads), limits["normal_ns"])
                yield report.share(row, limits, normal)

    def take(self, step: Step, progress: Progress) -> None:
        """Does a step; one that fails is written down and costs no other."""
        start = time.monotonic()
        try:
            with nullcontext() if step.threads is None else timing.threads(step.threads):
                outcome = step.call()
        except Exception as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            self.result["problems"][step.name] = why
            progress.say(f"{step.name}: {why}")
        else:
            line = f"{step.name}: {outcome}" if outcome else step.name
            progress.numbers(line, line)
        self.result["step_seconds"][step.name] = time.monotonic() - start
        progress.advance()

    def finish(self, folder: Path) -> Path:
        """Writes what has been measured, as JSON and Markdown. The path of bench.json."""
        timed = list(self.rows.values())
        self.result["seconds"] = time.monotonic() - self.started
        self.result["shares"] = list(self._shares())
        path = report.save(folder, self.result, timed)
        (folder / report.MARKDOWN).write_text(report.document(self.result, timed), encoding="utf-8")
        return path


def _check(config: BenchConfig) -> None:
    """Raises UserError for what does not work here, and sets the instruction set."""
    backends = sk.backends()
    for name in config.backends:
        if name in backends and not backends[name].usable:
            raise UserError(f"--backends: {name} does not work here: {backends[name].reason}")
    for module in ("scipy", "tqdm") if config.progress else ("scipy",):
        need(module, "softdiff bench", "bench")
    if config.isa is not None:
        if not backends["native"].usable:
            raise UserError(f"--isa: no compiled kernels here: {backends['native'].reason}")
        if not importlib.import_module("softdiff_kernels._native").use_instruction_set(config.isa):
            raise UserError(f"--isa: this CPU or this build has no {config.isa}")


def bench(config: BenchConfig, argv: Sequence[str] = ()) -> Path:
    """Measures what the options ask for; writes bench.json, bench.md and the plots. Returns the folder.

    A step that fails is written down and the others continue. Ctrl-C keeps what has been measured.
    """
    _check(config)
    run = Run(config, shlex.join(["softdiff", "bench", *argv]))
    if not config.default_allocator:
        run.result["memory_kept"] = timing.keep_memory()
    folder = report.new_folder(config.out, run.device.type)
    if not run.gpu and not config.backends and not sk.backends()["native"].usable:
        print(f"Timing plain PyTorch: {sk.backends()['native'].reason}", file=sys.stderr)
    load = run.result["machine"]["load_average"]
    if load is not None and load > _BUSY:
        print(f"load average {load:.1f}: ratios are unreliable on a loaded machine", file=sys.stderr)
    torch.manual_seed(cases.SEED)
    steps = list(run.steps())
    progress = Progress(len(steps), 0, bar=config.progress)
    try:
        for step in steps:
            run.take(step, progress)
        run.result["complete"] = True
    finally:
        progress.close()
        path = run.finish(folder)
    if config.plots:
        try:
            need("matplotlib", "the plots", "bench")
            plots.draw(path, folder)
        except UserError as error:
            print(f"no plots: {error}", file=sys.stderr)
    if run.rows:
        print(report.comparison(list(run.rows.values())))
    problems = run.result["problems"]
    if problems:
        print(f"{len(problems)} of the steps failed: {', '.join(problems)}", file=sys.stderr)
    print(f"{run.result['seconds']:.0f} s; the results are in {folder}, the tables in {report.MARKDOWN}")
    return folder
