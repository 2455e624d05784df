# SPDX-License-Identifier: Apache-2.0
"""A whole run: what is measured in which order, and what becomes of it if it is stopped."""

from __future__ import annotations

import importlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import softdiff_kernels as sk

from ..commands.sample import pick_device
from ..errors import UserError, need
from ..progress import Progress
from . import breakdown, cases, dominated, end_to_end, machine, measure, memory, result, rows, sweeps
from .config import BenchConfig
from .document import document
from .peers import absent
from .tables import HEADLINE, comparison

COMPILED_SIZES = {"cpu": (64, 256), "cuda": (64,)}
_GPU_IMAGES = 64 * 2**20  # bytes of one image batch
_BUSY = 0.5


@dataclass(frozen=True)
class Step:
    """A part of the run. threads: the count it is measured at, None for the one in force."""

    name: str
    call: Callable[[], object]
    threads: int | None = None

    def within(self) -> AbstractContextManager[None]:
        """The thread count of the step."""
        return nullcontext() if self.threads is None else measure.threads(self.threads)


class Run:
    """What is asked for, and what has been measured of it so far."""

    def __init__(self, config: BenchConfig, command: str) -> None:
        self.config = config
        self.device = pick_device(config.device)
        self.gpu = self.device.type == "cuda"
        self.threads = self._threads()
        # Seconds for each call of a row, in each pass. A GPU's calls are so short that less has rounds enough
        # in it, and its clock is steady. On a CPU other programs and the machine's own moods last seconds:
        # two visits, minutes apart, see more of them than one that is twice as long.
        self.full = 0.03 if config.quick else 0.05 if self.gpu else 0.12
        self.passes = 1 if config.quick or self.gpu else 2
        self.found: dict[tuple[Any, ...], rows.Found] = {}  # what a later pass comes back to
        self.lines: dict[tuple[Any, ...], rows.Row] = {}
        self.noise: dict[tuple[int, int], float] = {}  # ns of a normal, by size and threads
        self.started = time.monotonic()
        self.result: dict[str, Any] = {
            "command": command,
            "config": asdict(config),
            "machine": machine.description(self.device),
            "backends": {name: [b.usable, b.reason] for name, b in sk.backends().items()},
            "seed": cases.SEED,
            "memory_kept": False,
            "absent": absent(),
            "complete": False,
            "seconds": 0.0,
            "limits": {},
            "shares": [],
            "parts": [],
            "sweeps": {"blur": [], "batch": [], "host": []},
            "end_to_end": [],
            "dominated": [],
            "memory": [],
            "problems": {},
            "step_seconds": {},
        }

    def _threads(self) -> tuple[int, ...]:
        if self.gpu:
            return (torch.get_num_threads(),)
        return self.config.threads or tuple(sorted({1, machine.cores()}))

    def places(self) -> list[rows.Place]:
        """Every dtype by every backend that is asked for."""
        usable = [name for name in ("triton", "cuda") if sk.backends()[name].usable] if self.gpu else []
        backends: Sequence[str | None] = self.config.backends or usable or (None,)
        dtypes = self.config.dtypes or (("float32", "bfloat16") if self.gpu else ("float32",))
        l2 = getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 0) if self.gpu else 0
        least = 3 if self.config.quick else 4
        base = rows.Place(self.device, budget=self.full, least=least, l2_bytes=l2)
        return [
            replace(base, dtype=getattr(torch, dtype), backend=None if backend == "auto" else backend)
            for dtype in dtypes
            for backend in backends
        ]

    def steps(self) -> Iterator[Step]:
        """Everything to do, in order."""
        sections = self.config.chosen_sections()
        for turn in range(self.passes if "ops" in sections else 0):
            for count in self.threads:
                yield from self._op_steps(count, turn)
        for count in self.threads:
            if "memory" in sections and not self.gpu:
                for size in self.config.chosen_sizes():
                    yield Step(f"memory, {size} px, {count} threads", partial(self._memory, size, count))
        last = self.threads[-1]
        if "sweeps" in sections:
            yield from self._sweep_steps(last)
        quick = self.config.quick
        if "end-to-end" in sections:
            yield Step("steps of the trainer", partial(self._end_to_end, quick), last)
        if "dominated" in sections:
            yield Step("cases where the ops dominate", partial(self._dominated, quick), last)

    def _op_steps(self, count: int, turn: int) -> Iterator[Step]:
        if turn == 0:
            yield Step(f"the machine's limits, {count} threads", partial(self._limits, count), count)
        for size in self.config.chosen_sizes():
            if turn == 0 and not self.gpu:
                name = f"parts of corrupt, {size} px, {count} threads"
                yield Step(name, partial(self._parts, size, count), count)
            for op in self.config.chosen_ops():
                for place in self.places():
                    kind = "" if place.dtype == torch.float32 else f", {str(place.dtype).split('.')[1]}"
                    by = "" if place.backend is None else f", {place.backend}"
                    name = f"{op}, {size} px{kind}{by}, {count} threads" + (", again" if turn else "")
                    compile = self._compiles(op, size, count)
                    yield Step(name, partial(self._row, op, size, place, compile, turn), count)

    def _sweep_steps(self, count: int) -> Iterator[Step]:
        place = replace(self.places()[0], dtype=torch.float32, budget=self.full / 2)
        for size in (64,) if self.config.quick else (64, 256):
            yield Step(
                f"blur_std, {size} px", partial(self._sweep, "blur", sweeps.by_blur, size, place), count
            )
        batches = (1, 4, 16) if self.config.quick else (1, 2, 4, 8, 16, 32, 64, 128, 256)
        for op in HEADLINE:
            by_batch = partial(self._sweep, "batch", sweeps.by_batch, op, 64, place, batches)
            yield Step(f"batch size, {op}", by_batch, count)
            yield Step(f"host time, {op}", partial(self._sweep, "host", sweeps.host_time, op, place), 1)

    def _sweep(self, name: str, sweep: Callable[..., list[dict[str, Any]]], *args: Any) -> None:
        self.result["sweeps"][name] += sweep(*args)

    def _compiles(self, op: str, size: int, count: int) -> bool:
        if self.config.compile != "some":
            return self.config.compile == "all"
        sizes = COMPILED_SIZES[self.device.type]
        chosen = op in HEADLINE and size in sizes and count == self.threads[-1]
        return chosen and not self.config.quick

    def _limits(self, count: int) -> None:
        key = "gpu" if self.gpu else str(count)
        self.result["limits"][key] = machine.limits(self.full, self.device)

    def _parts(self, size: int, count: int) -> None:
        parts = breakdown.parts(size, budget=self.full / 2)
        self.noise[size, count] = parts["noise alone"]
        self.result["parts"].append({"px": size, "threads": count, **parts})

    def _batch(self, size: int, place: rows.Place) -> int:
        if self.config.batch is not None:
            return self.config.batch
        if not self.gpu:
            whole = cases.batch_of(size)
            return max(1, whole // 8) if self.config.quick else whole
        return max(1, _GPU_IMAGES // (cases.CHANNELS * size * size * place.dtype.itemsize))

    def _row(self, op: str, size: int, place: rows.Place, compile: bool, turn: int) -> str:
        if op not in HEADLINE:
            place = replace(place, budget=place.budget / 2)
        key = (op, size, place.dtype, place.backend, torch.get_num_threads())
        found = self.found.pop(key, None)
        if found is None:
            found = rows.prepare(op, size, place, batch=self._batch(size, place), compile=compile)
        found.time()
        row = self.lines[key] = found.row()
        if turn + 1 < self.passes:
            self.found[key] = found
        return f"{row.ours:.2f} ns/px, {row.ratio:.2f} times as fast as {row.fastest}"

    def _shares(self, timed: Sequence[rows.Row]) -> list[dict[str, Any]]:
        shares = []
        for row in timed:
            limits = self.result["limits"].get("gpu" if self.gpu else str(row.threads))
            if limits is not None and row.dtype == "float32":
                normal = self.noise.get((row.px, row.threads), limits["normal_ns"])
                shares.append(breakdown.shares(row, limits, normal))
        return shares

    def _memory(self, size: int, count: int) -> None:
        found = memory.extra(size, count)
        if found is not None:
            self.result["memory"].append({"px": size, "threads": count, **found})

    def _end_to_end(self, quick: bool) -> None:
        need("diffusers", "the trainer's steps", "train")
        self.result["end_to_end"] = end_to_end.end_to_end(self.device, quick=quick)

    def _dominated(self, quick: bool) -> None:
        self.result["dominated"] = dominated.dominated(self.device, quick=quick)

    def finish(self, folder: Path) -> tuple[Path, str]:
        """Writes what there is; the Markdown, too."""
        timed = list(self.lines.values())
        self.result["seconds"] = time.monotonic() - self.started
        self.result["shares"] = self._shares(timed)
        path = result.save(folder, self.result, timed)
        text = document(self.result, timed)
        (folder / result.MARKDOWN).write_text(text, encoding="utf-8")
        return path, text


def _use_instruction_set(isa: str) -> None:
    if not sk.backends()["native"].usable:
        raise UserError(f"--isa: no compiled kernels here: {sk.backends()['native'].reason}")
    if not importlib.import_module("softdiff_kernels._native").use_instruction_set(isa):
        raise UserError(f"--isa: this CPU or this build has no {isa}")


def _check(config: BenchConfig) -> None:
    for name in config.backends:
        found = sk.backends().get(name)
        if found is not None and not found.usable:
            raise UserError(f"--backends: {name} does not work here: {found.reason}")
    for module in ("scipy", "tqdm") if config.progress else ("scipy",):
        need(module, "softdiff bench", "bench")
    if config.isa is not None:
        _use_instruction_set(config.isa)


def bench(config: BenchConfig, argv: Sequence[str] = ()) -> Path:
    """Measures what the options ask for; writes bench.json, bench.md and the plots. The folder.

    A step that fails is written down and the others go on. Ctrl-C keeps what has been measured.
    """
    _check(config)
    run = Run(config, shlex.join(["softdiff", "bench", *argv]))
    if not config.default_allocator:
        run.result["memory_kept"] = measure.keep_memory()
    folder = result.new_folder(config.out, run.device.type)
    if not run.gpu and not config.backends and not sk.backends()["native"].usable:
        print(f"Timing plain PyTorch: {sk.backends()['native'].reason}", file=sys.stderr)
    load = run.result["machine"]["load_average"]
    if load is not None and load > _BUSY:
        print(f"load average {load:.1f}: ratios mean little on a busy machine", file=sys.stderr)
    torch.manual_seed(cases.SEED)
    steps = list(run.steps())
    progress = Progress(len(steps), 0, bar=config.progress)
    try:
        for step in steps:
            _take(run, step, progress)
        run.result["complete"] = True
    finally:
        progress.close()
        path, _ = run.finish(folder)
    _tell(run, config, folder, path)
    return folder


def _take(run: Run, step: Step, progress: Progress) -> None:
    start = time.monotonic()
    try:
        with step.within():
            told = step.call()
    except Exception as error:  # one step must not cost the others
        why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        run.result["problems"][step.name] = why
        progress.say(f"{step.name}: {why}")
    else:
        line = f"{step.name}: {told}" if told else step.name
        progress.numbers(line, line)
    run.result["step_seconds"][step.name] = time.monotonic() - start
    progress.advance()


def _tell(run: Run, config: BenchConfig, folder: Path, path: Path) -> None:
    timed = list(run.lines.values())
    if timed:
        print(comparison(timed))
    if config.plots:
        from .plots import draw

        try:
            need("matplotlib", "the plots", "bench")
            draw(path, folder)
        except UserError as error:
            print(f"no plots: {error}", file=sys.stderr)
    problems = run.result["problems"]
    if problems:
        print(f"{len(problems)} of the steps failed: {', '.join(problems)}", file=sys.stderr)
    print(f"{run.result['seconds']:.0f} s; everything is in {folder}, the tables in {result.MARKDOWN}")
