# SPDX-License-Identifier: Apache-2.0
"""One op at one size beside its baselines: correct first, then timed in turn."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from . import cases
from .baselines import Baseline, baselines, compiled
from .measure import Timing, interleaved, ratios

OURS = "softdiff_kernels"
# The relative L2 error that a float32 result may have before it is not worth timing. Float32 has 6e-8; sums
# over 2 x 256 terms and the FFT's twiddles stay under some tens of that, a wrong formula is over 1e-2. The
# loss by two products squares what is left after cancellation, and the reverse mask is formed by a plain
# difference.
_WRONG = 1e-3
# Quantiles further apart than this mean that something else was running; an idle machine stays under 1.3.
_STEADY = 1.6


@dataclass
class Row:
    """One line of the table. Times are in ns per value of the result; a ratio is theirs to ours.

    steady: whether the quantiles of ours and of the fastest lie close enough for the ratio to mean much.
    """

    op: str
    px: int
    batch: int
    threads: int
    ours: float
    low: float
    high: float
    fastest: str
    fastest_ns: float
    ratio: float
    fft_ratio: float | None
    extra: str | None
    extra_ratio: float | None
    steady: bool
    error: float | None
    fastest_error: float | None
    timings: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def _try(baseline: Baseline, case: cases.Case) -> str | None:
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


def compare(
    op: str,
    size: int,
    *,
    batch: int | None = None,
    compile: bool = True,
    budget: float = 0.3,
    settle: bool = True,
) -> Row:
    """Times an op at a size, at the current thread count, beside every baseline that works here.

    compile: whether those under torch.compile take part. settle: see `measure.interleaved`. Raises
    AssertionError if a result is wrong.
    """
    case = cases.make(op, size, size, batch or cases.batch_of(size))
    eager, late = baselines(op, size, size), []
    failures: dict[str, str] = {}
    if compile:
        torch.compiler.reset()
        for baseline in compiled(op, size, size):
            problem = _try(baseline, case)
            if problem is None:
                late.append(baseline)
            else:
                failures[baseline.name] = problem
    error = errors(case, eager)
    wrong = {name: value for name, value in error.items() if not value < _WRONG}
    assert not wrong, f"{op} at {size} px: relative errors over {_WRONG}: {wrong}"

    everyone = {baseline.name: baseline for baseline in [*eager, *late]}
    values = tuple(case.arguments.values())
    calls = {name: (lambda b=b: b.call(*values)) for name, b in everyone.items()}
    timings = interleaved({OURS: lambda: cases.ours(case), **calls}, budget=budget, settle=settle)
    return _row(case, timings, everyone, error, failures)


def _row(
    case: cases.Case,
    timings: dict[str, Timing],
    everyone: dict[str, Baseline],
    error: dict[str, float],
    failures: dict[str, str],
) -> Row:
    to_ns = 1e9 / case.values
    against = ratios(timings, OURS)

    def fastest(group: str) -> str | None:
        return min(
            (n for n, b in everyone.items() if b.group == group), key=lambda n: against[n], default=None
        )

    main, fft, extra = fastest("main"), fastest("fft"), fastest("extra")
    assert main is not None
    own = timings[OURS]
    return Row(
        op=case.op,
        px=case.width,
        batch=case.batch,
        threads=torch.get_num_threads(),
        ours=own.median * to_ns,
        low=own.low * to_ns,
        high=own.high * to_ns,
        fastest=main,
        fastest_ns=timings[main].median * to_ns,
        ratio=against[main],
        fft_ratio=None if fft is None else against[fft],
        extra=extra,
        extra_ratio=None if extra is None else against[extra],
        steady=all(timings[name].high < _STEADY * timings[name].low for name in (OURS, main)),
        error=error.get(OURS),
        fastest_error=error.get(main.removesuffix(" compiled")),
        timings={
            name: {
                **{k: v * to_ns if k != "rounds" else v for k, v in asdict(timing).items()},
                "group": "ours" if name == OURS else everyone[name].group,
                "source": "this library" if name == OURS else everyone[name].source,
                "ratio": against[name],
                "error": error.get(name),
            }
            for name, timing in timings.items()
        },
        failures=failures,
    )
