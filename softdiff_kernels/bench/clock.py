# SPDX-License-Identifier: Apache-2.0
"""Seconds of calls on a GPU, by events, interleaved; or on a CPU, by the clock, to try the code out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .measure import Timing, summary

Within = Callable[[], AbstractContextManager[object]]
Call = Callable[[int], object]  # of how many calls came before: which of the rotating buffers to take


def rotations(bytes_a_call: int, l2_bytes: int) -> int:
    """Sets of buffers to take in turn, so that a set has left the L2 cache when its turn comes again.

    ceil(5 L2 / bytes) + 1: between two uses of a set at least five times the cache passes through.
    """
    return math.ceil(5 * l2_bytes / max(bytes_a_call, 1)) + 1


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _block(call: Call, first: int, count: int, device: torch.device) -> Callable[[], float]:
    """Starts `count` calls; what is returned gives the seconds of one, once the device is done."""
    if device.type != "cuda":
        start = time.perf_counter()
        for i in range(first, first + count):
            call(i)
        spent = (time.perf_counter() - start) / count
        return lambda: spent
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    for i in range(first, first + count):
        call(i)
    after.record()
    return lambda: before.elapsed_time(after) * 1e-3 / count


def interleaved(calls: Mapping[str, Call], device: torch.device, **limits: Any) -> dict[str, Timing]:
    """The timings of `take`."""
    return {name: summary(taken) for name, taken in take(calls, device, **limits).items()}


def take(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    budget: float = 0.15,
    least: int = 7,
    most: int = 60,
    block: int = 1,
    within: Mapping[str, Within] | None = None,
) -> dict[str, list[float]]:
    """Times blocks of `block` calls in turn, each call for about `budget` seconds: seconds of a call.

    Single calls of a round are enqueued behind some work that lets the host run ahead, so that what is timed
    is the device's own time. Blocks of calls are not: where the host limits them, that is their time.
    `within`: what a name's calls run in, entered and left outside what is timed.
    """
    names = list(calls)
    around = {name: (within or {}).get(name, nullcontext) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    estimate = {}
    for name in names:
        for i in range(2):
            synchronize(device)
            with around[name]():
                start = time.perf_counter()
                calls[name](i)
                synchronize(device)
                estimate[name] = time.perf_counter() - start
    counts = {n: min(max(int(budget / (block * max(estimate[n], 1e-7))), least), most) for n in names}
    rounds = max(counts.values())
    for i in range(rounds):
        start = i % len(names)
        pending = []
        if device.type == "cuda" and block == 1:
            torch.cuda._sleep(2_000_000)
        for name in names[start:] + names[:start]:
            if (i + 1) * counts[name] // rounds > i * counts[name] // rounds:
                with around[name]():
                    pending.append((name, _block(calls[name], i * block, block, device)))
        synchronize(device)
        for name, seconds in pending:
            samples[name].append(seconds())
    return samples


def host_seconds(call: Call, device: torch.device, *, calls: int = 1000, blocks: int = 10) -> float:
    """Median seconds that the host takes to enqueue a call, over blocks of calls; the device is waited for
    between them.
    """
    for i in range(3):
        call(i)
    taken = []
    each = max(calls // blocks, 1)
    for _ in range(blocks):
        synchronize(device)
        start = time.perf_counter()
        for i in range(each):
            call(i)
        taken.append((time.perf_counter() - start) / each)
    synchronize(device)
    return summary(taken).median


def copy_bandwidth(device: torch.device, size: int, *, rounds: int = 20) -> Timing:
    """Bytes per second, read and written, of torch's copy of `size` bytes: the yardstick of all ops."""
    source = torch.empty(size // 4, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    taken = interleaved({"copy": lambda i: target.copy_(source)}, device, least=rounds, most=rounds)["copy"]
    moved = 2 * source.numel() * 4
    return Timing(moved / taken.median, moved / taken.high, moved / taken.low, taken.rounds)


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """The most memory that a call holds beyond what was there before, its result included."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call(0)
    peak = torch.cuda.max_memory_allocated(device) - before
    del result
    return int(peak)


def graphed(call: Callable[[], object]) -> Callable[[], object]:
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

    # The result's memory is the graph's to write to as long as the replay lives.
    def replay(kept: object = kept) -> None:
        graph.replay()

    return replay
