# SPDX-License-Identifier: Apache-2.0
"""One op at one size beside its baselines: correct first, then timed in turn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

import softdiff_kernels as sk

from . import cases, clock, measure
from .baselines import Baseline, baselines, compiled
from .measure import AGAIN, OURS, Timing, noise_floor, ratios, summary

# The relative L2 error that a result may have before it is not worth timing. Float32 has 6e-8; sums over
# 2 x 512 terms and the FFT's twiddles stay under some tens of that, a wrong formula is over 1e-2. The loss by
# two products squares what is left after cancellation, and the reverse mask is formed by a plain difference.
# Results in bfloat16 are off by 2e-3 through their rounding alone, and step and loss add up two such images.
_WRONG = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
# Quantiles further apart than this mean that something else was running; an idle machine stays under 1.3.
_STEADY = 1.6


@dataclass
class Row:
    """One line of the table. Times are in ns per value of the result; a ratio is theirs to ours.

    noise: how far from 1 the ratio may be by chance (`measure.noise_floor`); below it there is no difference.
    steady: whether the quantiles of ours and of the fastest lie close enough for the ratio to mean much.
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
class Place:
    """Where and how an op is timed. budget, least: seconds of each call, and how often at least. l2_bytes:
    what inputs have to leave between two calls, on a GPU."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    backend: str | None = None
    budget: float = 0.3
    least: int = 7
    l2_bytes: int = 0

    def forced(self) -> AbstractContextManager[None]:
        """The backend of ours; what SOFTDIFF_BACKEND or `auto` choose where none is asked for."""
        return nullcontext() if self.backend is None else sk.use_backend(self.backend)


def _problem(baseline: Baseline, case: cases.Case) -> str | None:
    """Runs a baseline once, which compiles it; what went wrong in a line, else None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            baseline.call(*case.arguments.values())
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return None


def errors(case: cases.Case, candidates: list[Baseline]) -> dict[str, float]:
    """Relative L2 error of ours and of each baseline against float64, with the same noise given to all."""
    if case.op == "normal":
        return {OURS: cases.relative_error(cases.ours(case), cases.truth(case))}
    quiet, exact = cases.silent(case), cases.truth(case)
    given = {} if case.noise is None else {"noise": case.noise}
    out = {OURS: cases.relative_error(cases.ours(quiet, noise=quiet.noise), exact)}
    for baseline in candidates:
        out[baseline.name] = cases.relative_error(baseline.call(*quiet.arguments.values(), **given), exact)
    return out


def take(calls: Mapping[str, Callable[[int], object]], place: Place) -> dict[str, list[float]]:
    """Seconds of the calls, in turn, by the device's clock. A call is told how many were before it."""
    if place.device.type == "cuda":
        return clock.take(calls, place.device, budget=place.budget, least=place.least)
    bound = {name: (lambda c=call: c(0)) for name, call in calls.items()}
    return measure.take(bound, budget=place.budget, least=place.least, warmup=place.budget / 10)


def time_calls(calls: Mapping[str, Callable[[int], object]], place: Place) -> dict[str, Timing]:
    """Their timings."""
    return {name: summary(taken) for name, taken in take(calls, place).items()}


@dataclass
class Found:
    """What is known of an op at a size: which baselines work, their errors, and every timing so far."""

    case: cases.Case
    place: Place
    threads: int
    working: dict[str, Baseline]
    error: dict[str, float]
    failures: dict[str, str]
    samples: dict[str, list[float]] = field(default_factory=dict)

    def time(self) -> None:
        """Times everything once more; compiled baselines the first time alone, since another row may have
        had torch forget them meanwhile."""
        again = bool(self.samples)
        working = {n: b for n, b in self.working.items() if not (again and b.compiled)}
        with self.place.forced():
            taken = take(_calls(self.case, working, self.place), self.place)
        for name, samples in taken.items():
            self.samples.setdefault(name, []).extend(samples)

    def row(self) -> Row:
        """The line of the table."""
        timings = {name: summary(samples) for name, samples in self.samples.items()}
        return _row(self, timings)


def prepare(
    op: str, size: int, place: Place | None = None, *, batch: int | None = None, compile: bool = True
) -> Found:
    """An op at a size, at the current thread count, with every baseline that works here; not timed yet.

    compile: whether those under torch.compile take part. Raises AssertionError if a result is wrong.
    """
    place = place or Place()
    case = cases.make(op, size, size, batch or cases.batch_of(size), dtype=place.dtype, device=place.device)
    working: dict[str, Baseline] = {}
    failures: dict[str, str] = {}

    def admit(candidates: list[Baseline]) -> None:
        for baseline in candidates:
            problem = _problem(baseline, case)
            if problem is None:
                working[baseline.name] = baseline
            else:
                failures[baseline.name] = problem

    admit(baselines(op, size, size, place.dtype, place.device))
    eager = list(working.values())
    if compile:
        torch.compiler.reset()
        admit(compiled(op, size, size, place.dtype, place.device))
    with place.forced():
        error = errors(case, eager)
    bound = _WRONG[place.dtype]
    # What is only the nearest thing that a package has is shown with its error, however large.
    wrong = {n: e for n, e in error.items() if not e < bound and (n == OURS or working[n].same)}
    assert not wrong, f"{op} at {size} px: relative errors over {bound}: {wrong}"
    return Found(case, place, torch.get_num_threads(), working, error, failures)


def compare(
    op: str, size: int, place: Place | None = None, *, batch: int | None = None, compile: bool = True
) -> Row:
    """`prepare`, timed once."""
    found = prepare(op, size, place, batch=batch, compile=compile)
    found.time()
    return found.row()


def _calls(
    case: cases.Case, working: Mapping[str, Baseline], place: Place
) -> dict[str, Callable[[int], object]]:
    """Ours, twice, and the baselines; on a GPU over sets of inputs of which each has left the cache."""
    bare = replace(case, noise=None)
    sets = [bare]
    if place.device.type == "cuda":
        moved = sum(value.nbytes for value in bare.arguments.values())
        for _ in range(clock.rotations(moved, place.l2_bytes) - 1):
            sets.append(replace(bare, arguments={k: v.clone() for k, v in bare.arguments.items()}))
    values = [tuple(one.arguments.values()) for one in sets]
    count = len(sets)
    calls: dict[str, Callable[[int], object]] = {OURS: lambda i: cases.ours(sets[i % count])}
    for name, baseline in working.items():
        calls[name] = lambda i, b=baseline: b.call(*values[i % count])  # type: ignore[misc]
    calls[AGAIN] = calls[OURS]
    return calls


def _row(found: Found, timings: dict[str, Timing]) -> Row:
    case, place, working, error = found.case, found.place, found.working, found.error
    to_ns = 1e9 / case.values
    against = ratios(timings, OURS)
    own, again = timings[OURS], timings[AGAIN]

    def fastest(group: str) -> str | None:
        names = (n for n, b in working.items() if b.group == group and b.same)
        return min(names, key=lambda n: against[n], default=None)

    def described(name: str, timing: Timing) -> dict[str, Any]:
        scaled = {k: v * to_ns if k in ("median", "low", "high") else v for k, v in asdict(timing).items()}
        known = working.get(name)
        about = {"group": "ours", "source": "this library", "same": True, "difference": ""}
        if known is not None:
            about = {key: getattr(known, key) for key in about}
        floor = noise_floor(own, again, timing)
        return {**scaled, **about, "ratio": against[name], "noise": floor, "error": error.get(name)}

    main, fft, extra = fastest("main"), fastest("fft"), fastest("extra")
    if main is None:
        raise RuntimeError(f"{case.op} at {case.width} px: no baseline works here: {found.failures}")
    return Row(
        op=case.op,
        px=case.width,
        batch=case.batch,
        dtype=str(place.dtype).removeprefix("torch."),
        device=place.device.type,
        backend=place.backend or "auto",
        threads=found.threads,
        ours=own.median * to_ns,
        low=own.low * to_ns,
        high=own.high * to_ns,
        noise=noise_floor(own, again, timings[main]),
        fastest=main,
        fastest_ns=timings[main].median * to_ns,
        ratio=against[main],
        fft=fft,
        fft_ratio=None if fft is None else against[fft],
        extra=extra,
        extra_ratio=None if extra is None else against[extra],
        steady=all(timings[name].high < _STEADY * timings[name].low for name in (OURS, main)),
        error=error.get(OURS),
        fastest_error=error.get(main.removesuffix(" compiled")),
        timings={name: described(name, timing) for name, timing in timings.items()},
        failures=found.failures,
    )
