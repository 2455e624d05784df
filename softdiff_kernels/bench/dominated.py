# SPDX-License-Identifier: Apache-2.0
"""The cases where the ops, and not a network, take most of the time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .dominated_cold import cold_loop
from .dominated_pipeline import pipeline
from .dominated_rows import table as table
from .dominated_schedule import LEVELS, sheet, statistics
from .dominated_small import launches, tiny_network

Say = Callable[[str], None]
_Case = Callable[[torch.device], list[dict[str, Any]]]


def _silent(_: str) -> None:
    pass


def _full() -> list[tuple[str, _Case]]:
    return [
        ("DCT statistics and distances", partial(statistics, size=64, count=2000, budget=1.0)),
        ("corruption sheet", partial(sheet, size=64, images=4, count=LEVELS, budget=0.8)),
        ("data pipeline", partial(pipeline, size=64, count=256, batch=64, budget=0.8)),
        ("network of two layers, 32 px", partial(tiny_network, size=32, batch=16, budget=0.3)),
        ("network of two layers, 64 px", partial(tiny_network, size=64, batch=16, budget=0.3)),
        *(
            (f"batches of {batch}", partial(launches, size=64, batch=batch, budget=0.15))
            for batch in (1, 4, 16)
        ),
        ("Cold Diffusion, 64 px", partial(cold_loop, size=64, batch=16, steps=20, budget=0.6)),
        ("Cold Diffusion, 128 px", partial(cold_loop, size=128, batch=4, steps=20, budget=0.6)),
    ]


def _quick() -> list[tuple[str, _Case]]:
    return [
        ("DCT statistics and distances", partial(statistics, size=32, count=200, budget=0.1)),
        ("corruption sheet", partial(sheet, size=32, images=2, count=64, budget=0.1)),
        ("data pipeline", partial(pipeline, size=32, count=32, batch=16, budget=0.1)),
        ("network of two layers, 32 px", partial(tiny_network, size=32, batch=8, budget=0.05)),
        ("batches of 4", partial(launches, size=64, batch=4, budget=0.05)),
        ("Cold Diffusion, 32 px", partial(cold_loop, size=32, batch=8, steps=10, budget=0.1)),
    ]


def dominated(device: torch.device | str, *, quick: bool = False, say: Say = _silent) -> list[dict[str, Any]]:
    """Times every case; a row for each thing that is done and each other way to do it.

    quick: fewer and smaller cases, each for a shorter time. say: gets a line for each case. Backend and CPU
    threads are those in force. Raises WrongTwin where another way's result is not ours.

    case, what, size (pixels a side), batch (images of a call, or of the data set). ours, other: by this
    library and by what `other_name` says, in `unit`: "ms" or "us" a call or step, or "images/s". ratio: how
    many times as long the other takes; None where it is not further from 1 than the run's noise, or where
    nothing was timed. noise: the floor under which a ratio means nothing, as a part of it, from ours timed
    twice in the same turns and from the intervals of the medians. note: what else to know; where ours and
    other are None, why.
    """
    device = torch.device(device)
    found = []
    for name, case in _quick() if quick else _full():
        say(f"where the ops dominate: {name}")
        found += case(device)
    return found
