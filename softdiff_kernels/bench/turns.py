# SPDX-License-Identifier: Apache-2.0
"""What the timings of whole steps share: ours twice beside its rivals, correct first, on either device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import clock, measure
from .measure import AGAIN, OURS, Timing

WRONG = 1e-3
"""The relative error (L2) from which on a twin computes something else: rounding is under 1e-4, a wrong
formula over 1e-2."""

_BLOCK = 8  # calls on a GPU between two events: the host runs ahead where it can, as in a loop of steps

Call = Callable[[], object]


class WrongTwin(AssertionError):
    """A baseline whose result is not ours; it must not be timed."""


def agree(what: str, ours: Any, other: Any, bound: float = WRONG) -> None:
    """Raises WrongTwin where the results (tensors, or tuples of them) differ by more than `bound` (L2)."""
    if isinstance(ours, tuple):
        for mine, theirs in zip(ours, other, strict=True):
            agree(what, mine, theirs, bound)
        return
    assert isinstance(ours, Tensor) and isinstance(other, Tensor)
    if ours.shape != other.shape:
        raise WrongTwin(f"{what}: expected shape {list(ours.shape)}, got {list(other.shape)}")
    mine, theirs = ours.double(), other.double()
    error = float((theirs - mine).norm() / mine.norm().clamp(min=1e-300))
    if not error < bound:
        raise WrongTwin(f"{what}: relative error {error:.1e}, expected under {bound:g}")


def in_turn(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    budget: float,
    least: int = 7,
    most: int = 100,
) -> dict[str, Timing]:
    """Seconds of each call, interleaved: by the clock on a CPU, by events around blocks of 8 on a GPU.

    A block on a GPU takes what the slower of host and device takes, as it would among other work.
    """
    if device.type == "cuda":
        numbered = {name: (lambda i, call=call: call()) for name, call in calls.items()}
        return clock.interleaved(numbered, device, budget=budget, least=least, most=most, block=_BLOCK)
    return measure.interleaved(calls, budget=budget, least=least, most=most)


def a_few(call: Call, device: torch.device, budget: float, most: int = 5) -> Timing:
    """Seconds of a call that may take many of them.

    The first call is the warm-up, and then it is made again, up to `most` times, while `budget` seconds last,
    but once at least. Where the first alone takes four times the budget, it is the one that counts.
    """
    samples: list[float] = []
    end = time.perf_counter() + budget
    while len(samples) <= most:
        clock.synchronize(device)
        start = time.perf_counter()
        call()
        clock.synchronize(device)
        samples.append(time.perf_counter() - start)
        late = time.perf_counter() + 0.5 * samples[-1] > end
        if samples[0] > 4 * budget or (late and len(samples) > 1):
            break
    return measure.summary(samples[1:] or samples)


def contest(
    ours: Call, others: Mapping[str, Call], device: torch.device, *, budget: float, **limits: Any
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Timings of ours, of ours once more, and of the others; and each other's noise floor against ours."""
    timings = in_turn({OURS: ours, AGAIN: ours, **others}, device, budget=budget, **limits)
    mine, again = timings[OURS], timings[AGAIN]
    return timings, {name: measure.noise_floor(mine, again, timings[name]) for name in others}
