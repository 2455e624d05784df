# SPDX-License-Identifier: Apache-2.0
"""One op at one size beside its baselines: checked first, then timed in rotation."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

import softdiff_kernels as sk

from . import cases
from .baselines import Baseline, baselines, compiled
from .timing import AGAIN, OURS, Call, Timing, clock_of, noise_floor, rotations, sample, summary

# The relative L2 error from which on a result is wrong, and is not timed. Float32 has 6e-8; sums over
# 2 x 512 terms and the FFT's twiddles stay under some tens of that, a wrong formula is over 1e-2. The loss by
# two products squares what is left after cancellation, and the reverse mask is formed by a plain difference.
# Results in bfloat16 are off by 2e-3 through their rounding alone, and step and loss add up two such images.
WRONG = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
# Quantiles further apart than this mean that something else was running; on an idle machine they stay
# under 1.3.
_STEADY = 1.6


@dataclass
class Row:
    """One line of the table. Times are in ns per value of the result; a ratio is theirs to ours.

    noise: how far from 1 the ratio may be by chance (`timing.noise_floor`); below it there is no difference.
    steady: whether the quantiles of ours and of the fastest are close enough for the ratio to mean much.
    timings: every call, in the same unit, with its group, source, ratio, noise and error.
    """

    op: str
    px: int
    batch: int
    dtype: str
    device: str
    backend: str
    threads: int
    ours: float
    low: float
    high: float
    noise: float
    fastest: str
    fastest_ns: float
    ratio: float
    fft: str | None
    fft_ratio: float | None
    extra: str | None
    extra_ratio: float | None
    steady: bool
    error: float | None
    fastest_error: float | None
    timings: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Conditions:
    """Where and how an op is timed. budget, least: seconds of each call, and how often at least. l2_bytes:
    size of the cache that inputs have to leave between two calls, on a GPU."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    backend: str | None = None
    budget: float = 0.3
    least: int = 7
    l2_bytes: int = 0

    def forced(self) -> AbstractContextManager[None]:
        """The backend of ours; what SOFTDIFF_BACKEND or `auto` choose where none is asked for."""
        return nullcontext() if self.backend is None else sk.use_backend(self.backend)

    def sample(self, calls: Mapping[str, Call]) -> dict[str, list[float]]:
        """Seconds of the calls, interleaved, with this backend."""
        clock = clock_of(self.device)
        with self.forced():
            return sample(calls, clock, budget=self.budget, least=self.least, warmup=self.budget / 10)


def problem(call: Call) -> str | None:
    """Runs a call once, which compiles it where it has to be; what went wrong in a line, else None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except Exception as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            torch.cuda.empty_cache()
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return None


def errors(case: cases.Case, candidates: Iterable[Baseline]) -> dict[str, float]:
    """Relative L2 error of ours and of each baseline against float64, with the same noise given to all."""
    if case.op == "normal":
        return {OURS: cases.relative_error(cases.ours(case), cases.truth(case))}
    exact = cases.truth(case)
    given = {} if case.noise is None else {"noise": case.noise}
    out = {OURS: cases.relative_error(cases.ours(case, noise=case.noise), exact)}
    for baseline in candidates:
        out[baseline.name] = cases.relative_error(baseline.call(*case.arguments.values(), **given), exact)
    return out


def in_rotation(case: cases.Case, l2_bytes: int) -> Callable[[], cases.Case]:
    """The case without the noise that only the comparison needs, on sets of inputs in rotation.

    All calls of a run share the sets: each call takes the next one, which has left a cache of `l2_bytes`
    since its last use. One set where that is 0."""
    bare = replace(case, noise=None)
    moved = sum(value.nbytes for value in bare.arguments.values())
    copies = rotations(moved, l2_bytes) - 1
    sets = [replace(bare, arguments={k: v.clone() for k, v in bare.arguments.items()}) for _ in range(copies)]
    return partial(next, itertools.cycle([bare, *sets]))


@dataclass
class Measurement:
    """An op at a size: which baselines work, their errors, and every timing so far."""

    case: cases.Case
    conditions: Conditions
    threads: int
    working: dict[str, Baseline]
    error: dict[str, float]
    failures: dict[str, str]
    samples: dict[str, list[float]] = field(default_factory=dict)

    def time(self) -> None:
        """Times everything once more. Compiled baselines are timed the first time only, because another row
        may have made torch forget them since."""
        following = in_rotation(self.case, self.conditions.l2_bytes)
        calls: dict[str, Call] = {OURS: lambda: cases.ours(following())}
        for name, baseline in self.working.items():
            if not (self.samples and baseline.compiled):
                calls[name] = lambda b=baseline: b.call(*following().arguments.values())  # type: ignore[misc]
        calls[AGAIN] = calls[OURS]
        for name, seconds in self.conditions.sample(calls).items():
            self.samples.setdefault(name, []).extend(seconds)

    def row(self) -> Row:
        """The line of the table."""
        timings = {name: summary(seconds) for name, seconds in self.samples.items()}
        entries = {name: self._entry(name, timings) for name in timings}

        def fastest(group: str) -> tuple[Any, Any]:
            names = (n for n, b in self.working.items() if b.group == group and b.same)
            name = min(names, key=lambda n: entries[n]["ratio"], default=None)
            return name, None if name is None else entries[name]["ratio"]

        (main, ratio), (fft, fft_ratio), (extra, extra_ratio) = map(fastest, ("main", "fft", "extra"))
        if main is None:
            where = f"{self.case.op} at {self.case.width} px"
            raise RuntimeError(f"{where}: no baseline works here: {self.failures}")
        own, other = entries[OURS], entries[main]
        return Row(
            op=self.case.op,
            px=self.case.width,
            batch=self.case.batch,
            dtype=str(self.conditions.dtype).removeprefix("torch."),
            device=self.conditions.device.type,
            backend=self.conditions.backend or "auto",
            threads=self.threads,
            **{"ours": own["median"], "low": own["low"], "high": own["high"], "noise": other["noise"]},
            **{"fastest": main, "fastest_ns": other["median"], "ratio": ratio},
            **{"fft": fft, "fft_ratio": fft_ratio, "extra": extra, "extra_ratio": extra_ratio},
            steady=all(entry["high"] < _STEADY * entry["low"] for entry in (own, other)),
            error=self.error.get(OURS),
            fastest_error=self.error.get(main.removesuffix(" compiled")),
            timings=entries,
            failures=self.failures,
        )

    def _entry(self, name: str, timings: dict[str, Timing]) -> dict[str, Any]:
        """One call of the row: its times in ns per value, what it is, and how it compares with ours."""
        timing, own = timings[name], timings[OURS]
        times = {key: getattr(timing, key) * 1e9 / self.case.values for key in ("median", "low", "high")}
        about = {"group": "ours", "source": "this library", "same": True, "difference": ""}
        if name in self.working:
            about = {key: getattr(self.working[name], key) for key in about}
        compared = {"ratio": timing.median / own.median, "noise": noise_floor(own, timings[AGAIN], timing)}
        return {**asdict(timing), **times, **about, **compared, "error": self.error.get(name)}


def prepare(
    op: str,
    size: int,
    conditions: Conditions | None = None,
    *,
    batch: int | None = None,
    compile: bool = True,
) -> Measurement:
    """An op at a size, at the current thread count, with every baseline that works here; not timed yet.

    compile: whether those under torch.compile take part. Raises AssertionError if a result is wrong.
    """
    conditions = conditions or Conditions()
    dtype, device = conditions.dtype, conditions.device
    case = cases.make(op, size, size, batch or cases.batch_of(size), dtype=dtype, device=device)
    working: dict[str, Baseline] = {}
    failures: dict[str, str] = {}

    def admit(candidates: list[Baseline]) -> None:
        for baseline in candidates:
            why = problem(partial(baseline.call, *case.arguments.values()))
            if why is None:
                working[baseline.name] = baseline
            else:
                failures[baseline.name] = why

    admit(baselines(op, size, size, dtype, device))
    eager = list(working.values())
    if compile:
        torch.compiler.reset()
        admit(compiled(op, size, size, dtype, device))
    with conditions.forced():
        error = errors(case, eager)
    bound = WRONG[dtype]
    # The nearest function of a package is shown with its error, however large.
    wrong = {n: e for n, e in error.items() if not e < bound and (n == OURS or working[n].same)}
    assert not wrong, f"{op} at {size} px: relative errors over {bound}: {wrong}"
    return Measurement(case, conditions, torch.get_num_threads(), working, error, failures)


def measure(op: str, size: int, conditions: Conditions | None = None, **options: Any) -> Row:
    """`prepare`, timed once."""
    measurement = prepare(op, size, conditions, **options)
    measurement.time()
    return measurement.row()
