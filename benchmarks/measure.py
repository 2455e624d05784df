# SPDX-License-Identifier: Apache-2.0
"""Times several calls against each other in one run, so that a machine's moods fall on all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median and the 20 % and 80 % quantiles over `rounds` calls."""

    median: float
    low: float
    high: float
    rounds: int


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch's thread count, which the fused kernels and scipy's workers follow, inside the `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _seconds(call: Call, settle: bool = False) -> float:
    if settle:
        call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(
    calls: Mapping[str, Call],
    *,
    budget: float = 0.3,
    least: int = 7,
    most: int = 80,
    warmup: int = 2,
    settle: bool = True,
) -> dict[str, Timing]:
    """Times the calls in turn, round after round, each for about `budget` seconds in all.

    A slow call sits out some rounds, evenly spread, but is timed at least `least` times. The order turns by
    one each round, so that no call always follows the same other. What has to be compiled must be so before.

    With `settle`, each turn begins with one call that is not timed. Without it a call is timed in the state
    that another one left: C's allocator has given memory back, and what is timed is largely page faults
    (0.7 ns per float32 of a fresh result, on the machine of benchmarks/results), most of all for a call that
    allocates nothing but its result.
    """
    if not calls:
        raise ValueError("interleaved: expected at least one call, got none")
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _no_collection():
        estimate = {name: min(_seconds(calls[name]) for _ in range(warmup)) for name in names}
        counts = {name: min(max(int(budget / estimate[name]), least), most) for name in names}
        rounds = max(counts.values())
        for i in range(rounds):
            start = i % len(names)
            for name in names[start:] + names[:start]:
                if (i + 1) * counts[name] // rounds > i * counts[name] // rounds:
                    samples[name].append(_seconds(calls[name], settle))
    return {name: summary(taken) for name, taken in samples.items()}


def summary(samples: list[float]) -> Timing:
    """The quantiles of some timings."""
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], 1)
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return Timing(statistics.median(samples), fifths[0], fifths[3], len(samples))


def ratios(timings: Mapping[str, Timing], base: str) -> dict[str, float]:
    """How many times as long as `base` each call takes, by the medians."""
    return {name: timing.median / timings[base].median for name, timing in timings.items()}
