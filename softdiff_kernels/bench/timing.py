# SPDX-License-Identifier: Apache-2.0
"""Times several calls against each other in one run, so that what slows the machine slows all of them alike.

One timer for every clock: the host's for calls that are done when they return, events for a GPU, and the
host's time to enqueue a call.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], object]
Context = Callable[[], AbstractContextManager[object]]
OURS = "softdiff_kernels"
AGAIN = "softdiff_kernels, again"  # the same call once more: the difference between the two is noise


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median and the 20 % and 80 % quantiles over `rounds` calls.

    doubt: half the width of the median's 95 % interval, as a fraction of the median.
    """

    median: float
    low: float
    high: float
    rounds: int
    doubt: float = 0.0


class Clock:
    """The host's clock, for calls that are done when they return. now: seconds since some moment."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now

    def wait(self) -> None:
        """Returns when everything that was started is done."""

    def run_ahead(self) -> None:
        """Lets the host enqueue the next calls before the device begins with them."""

    def start(self, call: Call, count: int = 1) -> Callable[[], float]:
        """Makes `count` calls; the function returned gives the seconds of one, once the device is done."""
        begun = self.now()
        for _ in range(count):
            call()
        seconds = (self.now() - begun) / count
        return lambda: seconds

    def seconds(self, call: Call) -> float:
        """Seconds until one call is done, by the host's clock."""
        self.wait()
        begun = self.now()
        call()
        self.wait()
        return self.now() - begun


class EventClock(Clock):
    """A GPU's own time, between two events on its current stream."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def run_ahead(self) -> None:
        with torch.cuda.device(self.device):
            torch.cuda._sleep(2_000_000)

    def start(self, call: Call, count: int = 1) -> Callable[[], float]:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(self.device)
        before.record(stream)
        for _ in range(count):
            call()
        after.record(stream)
        return lambda: before.elapsed_time(after) * 1e-3 / count


class HostClock(Clock):
    """What the host takes to enqueue a call; the device is waited for before each block of calls."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(now)
        self._device = clock_of(device)

    def wait(self) -> None:
        self._device.wait()

    def start(self, call: Call, count: int = 1) -> Callable[[], float]:
        self.wait()
        return super().start(call, count)


def clock_of(device: torch.device) -> Clock:
    """Events on a GPU, else the host's clock."""
    return EventClock(device) if device.type == "cuda" else Clock()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch's thread count, which the fused kernels and the other packages follow, inside the block."""
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
    """Makes the C library keep freed memory, where it is glibc. Returns whether it will.

    By default it returns large blocks to the system, so that a new result costs page faults or not, depending
    on what was freed before. A process that has run for long mostly has memory to reuse.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h.
    return mallopt is not None and bool(mallopt(-1, 2**31 - 1) and mallopt(-3, 2**30))


def warm_up(call: Call, clock: Clock, seconds: float) -> float:
    """Calls until `seconds` have passed, at least twice. Returns the shortest of these calls."""
    end = clock.now() + seconds
    shortest = min(clock.seconds(call), clock.seconds(call))
    while clock.now() < end:
        shortest = min(shortest, clock.seconds(call))
    return shortest


def sample(
    calls: Mapping[str, Call],
    clock: Clock,
    *,
    budget: float = 0.3,
    least: int = 7,
    most: int = 200,
    block: int = 1,
    warmup: float = 0.02,
    within: Mapping[str, Context] | None = None,
) -> dict[str, list[float]]:
    """Seconds of the calls, interleaved: round after round, each for about `budget` seconds in total.

    A slow call is left out of some rounds, evenly spread, but is timed at least `least` times. The order
    rotates by one each round, so that no call always follows the same other. Each is first called for
    `warmup` seconds; what has to be compiled must be compiled before.

    block: calls that are timed as one. On a GPU, single calls of a round are enqueued behind some work that
    lets the host run ahead, so that the device's own time is measured. Blocks of calls are not: where the
    host limits them, their time is the host's.
    within: for a name, the context that its calls run in, entered and left outside of what is timed.
    """
    if not calls:
        raise ValueError("sample: expected at least one call, got none")
    names = list(calls)
    context = {name: (within or {}).get(name, nullcontext) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _no_collection():
        counts = {}
        for name in names:
            with context[name]():
                once = max(warm_up(calls[name], clock, warmup), 1e-7)
            counts[name] = min(max(int(budget / (block * once)), least), most)
        rounds = max(counts.values())
        for i in range(rounds):
            first = i % len(names)
            started = []
            if block == 1:
                clock.run_ahead()
            for name in names[first:] + names[:first]:
                if (i + 1) * counts[name] // rounds > i * counts[name] // rounds:
                    with context[name]():
                        started.append((name, clock.start(calls[name], block)))
            clock.wait()
            for name, seconds in started:
                samples[name].append(seconds())
    return samples


def interleaved(calls: Mapping[str, Call], clock: Clock, **limits: Any) -> dict[str, Timing]:
    """The timings of `sample`."""
    return {name: summary(seconds) for name, seconds in sample(calls, clock, **limits).items()}


def contest(
    ours: Call, others: Mapping[str, Call], clock: Clock, **limits: Any
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Timings of ours, of ours once more, and of the others; and each other's noise floor against ours."""
    timings = interleaved({OURS: ours, AGAIN: ours, **others}, clock, **limits)
    return timings, {name: noise_floor(timings[OURS], timings[AGAIN], timings[name]) for name in others}


def few(call: Call, clock: Clock, budget: float, most: int = 5) -> Timing:
    """Seconds of a call that may take many of them.

    The first call is the warm-up. Then it is called up to `most` times while `budget` seconds last, but at
    least once. Where the first call alone takes four times the budget, it is the one that counts.
    """
    samples: list[float] = []
    end = clock.now() + budget
    while len(samples) <= most:
        samples.append(clock.seconds(call))
        late = clock.now() + 0.5 * samples[-1] > end
        if samples[0] > 4 * budget or (late and len(samples) > 1):
            break
    return summary(samples[1:] or samples)


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
    """How far from 1 the ratio of `other` to `first` may be by chance, as a fraction of it.

    `again` is the call of `first`, timed once more in the same run. The larger of two estimates: how much
    these two differ, and the intervals of the ratio's two medians, added as independent errors are.
    """
    same = abs(math.log(again.median / first.median))
    return max(same, math.hypot(first.doubt, other.doubt))


def differs(ratio: float, floor: float) -> bool:
    """Whether a ratio is further from 1 than its noise floor."""
    return abs(math.log(ratio)) > floor


def rotations(bytes_a_call: int, l2_bytes: int) -> int:
    """Sets of buffers to use in rotation, so that a set has left the L2 cache when its turn comes again.

    ceil(5 L2 / bytes) + 1: between two uses of a set at least five times the cache passes through.
    """
    return math.ceil(5 * l2_bytes / max(bytes_a_call, 1)) + 1


def peak_bytes(call: Call) -> int:
    """The most memory that a call on the GPU holds beyond what was there before, its result included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return int(peak)


def graphed(call: Call) -> Call:
    """A call captured in a CUDA graph, as its replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    # The graph writes to the result's memory as long as the replay lives.
    def replay(kept: object = kept) -> None:
        graph.replay()

    return replay
