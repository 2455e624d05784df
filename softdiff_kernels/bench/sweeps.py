# SPDX-License-Identifier: Apache-2.0
"""What a call costs as one thing is varied: the blur, the batch, or nothing at all but the call itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

import softdiff_kernels as sk

from . import baselines, cases, clock
from .forms import TwoProductBmm
from .measure import AGAIN, OURS, Timing, noise_floor, summary
from .rows import Place, time_calls

OPS = ("corrupt", "momentum_step", "soft_score_loss")
OTHER = TwoProductBmm.name
# The image of a call that has next to nothing to compute.
TINY = 8
HOST_TURNS = 9


def eager(op: str, form: Any) -> Callable[..., Any]:
    """The op of training or sampling as people write it, by one form of the blur."""
    build = {
        "corrupt": baselines.corrupt,
        "momentum_step": baselines.algorithm_2,
        "soft_score_loss": baselines.loss_and_gradient,
    }
    return build[op](form)


def _pair(case: cases.Case, place: Place) -> dict[str, Timing]:
    """Ours, twice, and the eager two-product form on one case."""
    bare = replace(case, noise=None)
    call = eager(case.op, TwoProductBmm(case.height, case.width).to(place.device))
    values = tuple(bare.arguments.values())
    calls: dict[str, Callable[[int], object]] = {
        OURS: lambda i: cases.ours(bare),
        OTHER: lambda i: call(*values),
        AGAIN: lambda i: cases.ours(bare),
    }
    with place.forced():
        return time_calls(calls, place)


def _entry(timings: dict[str, Timing], unit: float) -> dict[str, Any]:
    own, other = timings[OURS], timings[OTHER]
    return {
        "ours": own.median * unit,
        "low": own.low * unit,
        "high": own.high * unit,
        "other": other.median * unit,
        "other_name": OTHER,
        "ratio": other.median / own.median,
        "noise": noise_floor(own, timings[AGAIN], other),
    }


def by_blur(size: int, place: Place, stds: Sequence[float] = ()) -> list[dict[str, Any]]:
    """`corrupt` at one blur_std for the whole batch, ns per value, from none to a third of the side."""
    stds = stds or (0.0, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, size / 4, size / 3)
    found = []
    for std in sorted({s for s in stds if s <= size / 3}):
        case = cases.make("corrupt", size, size, cases.batch_of(size), device=place.device)
        case.arguments["blur_std"].fill_(std)
        entry = _entry(_pair(case, place), 1e9 / case.values)
        found.append({"px": size, "threads": torch.get_num_threads(), "blur_std": std, **entry})
    return found


def by_batch(op: str, size: int, place: Place, batches: Sequence[int]) -> list[dict[str, Any]]:
    """One op, microseconds for each image, at several batch sizes."""
    found = []
    for batch in batches:
        case = cases.make(op, size, size, batch, device=place.device)
        entry = _entry(_pair(case, place), 1e6 / batch)
        found.append({"op": op, "px": size, "threads": torch.get_num_threads(), "batch": batch, **entry})
    return found


def host_time(op: str, place: Place, calls: int = 400) -> list[dict[str, Any]]:
    """Microseconds that the host spends on a call, ours and the two-product form's.

    On a GPU: until the call returns. On a CPU: of a call on one image of 8 x 8, whose arithmetic is under a
    microsecond; with the noise's key drawn, and given.
    """
    case = replace(cases.make(op, TINY, TINY, 1, device=place.device), noise=None)
    call = eager(op, TwoProductBmm(TINY, TINY).to(place.device))
    values = tuple(case.arguments.values())
    ways: dict[str, Callable[[int], object]] = {
        "ours": lambda i: cases.ours(case),
        "other": lambda i: call(*values),
        "again": lambda i: cases.ours(case),
    }
    if op != "soft_score_loss":
        key, function = sk.NoiseKey(cases.SEED), getattr(sk, op)
        ways["key_given"] = lambda i: function(*values[:1], **_named(case), key=key)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with place.forced():
        for _ in range(HOST_TURNS):
            for name, way in ways.items():
                taken[name].append(clock.host_seconds(way, place.device, calls=max(calls // HOST_TURNS, 1)))
    microseconds: dict[str, Any] = {name: summary(seconds).median * 1e6 for name, seconds in taken.items()}
    return [{"op": op, **microseconds, "other_name": OTHER}]


def _named(case: cases.Case) -> dict[str, Any]:
    first, *_ = case.arguments
    return {name: value for name, value in case.arguments.items() if name != first}
