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
from .measure import Timing, noise_floor
from .rows import AGAIN, OURS, Place, time_calls

OPS = ("corrupt", "momentum_step", "soft_score_loss")
OTHER = TwoProductBmm.name
# The image of a call that has next to nothing to compute.
TINY = 8


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
    with place.forced():
        own = clock.host_seconds(lambda i: cases.ours(case), place.device, calls=calls)
        other = clock.host_seconds(lambda i: call(*values), place.device, calls=calls)
        again = clock.host_seconds(lambda i: cases.ours(case), place.device, calls=calls)
        found: dict[str, Any] = {
            "op": op,
            "ours": own * 1e6,
            "again": again * 1e6,
            "other": other * 1e6,
            "other_name": OTHER,
        }
        if op != "soft_score_loss":
            key = sk.NoiseKey(cases.SEED)
            function = getattr(sk, op)
            keyed = clock.host_seconds(
                lambda i: function(*values[:1], **_named(case), key=key), place.device, calls=calls
            )
            found["key_given"] = keyed * 1e6
    return [found]


def _named(case: cases.Case) -> dict[str, Any]:
    first, *_ = case.arguments
    return {name: value for name, value in case.arguments.items() if name != first}
