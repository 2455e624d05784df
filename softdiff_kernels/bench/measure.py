# SPDX-License-Identifier: Apache-2.0
"""Times several calls against each other in one run, so that a machine's moods fall on all of them alike."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], object]
OURS = "softdiff_kernels"
AGAIN = "softdiff_kernels, again"  # the same call once more: what differs between the two is noise


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median and the 20 % and 80 % quantiles over `rounds` calls.

    doubt: half the width of the median's 95 % interval, as a part of the median.
    """

    median: float
    low: float
    high: float
    rounds: int
    doubt: float = 0.0


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


def keep_memory() -> bool:
    """Has the C library keep what is freed, where it is glibc; whether it will.

    By default it gives large blocks back, so that a fresh result costs page faults or not, depending on what
    was freed before. A process that has run for long mostly has memory to reuse.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h.
    return mallopt is not None and bool(mallopt(-1, 2**31 - 1) and mallopt(-3, 2**30))


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def warm_up(call: Call, seconds: float) -> float:
    """Calls until `seconds` are over, at least twice; the shortest of these calls."""
    end = time.perf_counter() + seconds
    shortest = min(_seconds(call), _seconds(call))
    while time.perf_counter() < end:
        shortest = min(shortest, _seconds(call))
    return shortest


def interleaved(calls: Mapping[str, Call], **limits: Any) -> dict[str, Timing]:
    """The timings of `take`."""
    return {name: summary(taken) for name, taken in take(calls, **limits).items()}


def take(
    calls: Mapping[str, Call],
    *,
    budget: float = 0.3,
    least: int = 7,
    most: int = 200,
    warmup: float = 0.02,
) -> dict[str, list[float]]:
    """Seconds of the calls, made in turn, round after round, each for about `budget` seconds in all.

    A slow call sits out some rounds, evenly spread, but is timed at least `least` times. The order turns by
    one each round, so that no call always follows the same other. Each call is first made for `warmup`
    seconds; what has to be compiled must be so before.
    """
    if not calls:
        raise ValueError("interleaved: expected at least one call, got none")
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _no_collection():
        estimate = {name: max(warm_up(calls[name], warmup), 1e-7) for name in names}
        counts = {name: min(max(int(budget / estimate[name]), least), most) for name in names}
        rounds = max(counts.values())
        for i in range(rounds):
            start = i % len(names)
            for name in names[start:] + names[:start]:
                if (i + 1) * counts[name] // rounds > i * counts[name] // rounds:
                    samples[name].append(_seconds(calls[name]))
    return samples


def summary(samples: list[float]) -> Timing:
    """The quantiles of some timings, and the interval of their median by order statistics.

    Of n values, those at ranks n/2 -+ 0.98 sqrt(n) enclose the true median 95 times in 100, whatever the
    distribution (the binomial's normal approximation; David & Nagaraja 2003, section 7.1). Fewer than six
    values have no such interval: then the extremes are taken.
    """
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], 1, math.inf)
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    median, count = statistics.median(samples), len(samples)
    ordered = sorted(samples)
    reach = 0.98 * math.sqrt(count)
    low = ordered[max(math.floor(count / 2 - reach), 0)]
    high = ordered[min(math.ceil(count / 2 + reach), count - 1)]
    return Timing(median, fifths[0], fifths[3], count, (high - low) / (2 * median) if median else 0.0)


def ratios(timings: Mapping[str, Timing], base: str) -> dict[str, float]:
    """How many times as long as `base` each call takes, by the medians."""
    return {name: timing.median / timings[base].median for name, timing in timings.items()}


def noise_floor(first: Timing, again: Timing, other: Timing) -> float:
    """How far from 1 the ratio of `other` to `first` may be for no reason, as a part of it.

    `again` is the call of `first`, timed once more in the same run. The larger of two estimates: how much
    these two differ, and the intervals of the ratio's two medians, added as independent errors are.
    """
    same = abs(math.log(again.median / first.median))
    return max(same, math.hypot(first.doubt, other.doubt))


def differs(ratio: float, floor: float) -> bool:
    """Whether a ratio is further from 1 than its noise floor."""
    return abs(math.log(ratio)) > floor
