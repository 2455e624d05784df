# SPDX-License-Identifier: Apache-2.0
"""Which fused backend was measured to be the faster one on a GPU, for `auto`.

The table is faster.json beside this file, as `make gpu-report` writes it: op -> "64" (float32) or
"64 bfloat16" -> backend. While its `gpu` is null, nothing has been measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch

TABLE = Path(__file__).with_name("faster.json")
PREDICTED = Path(__file__).with_name("predicted.json")
# Ops that do the same work as one that is measured.
_LIKE = {"step": "momentum_step", "step_out": "momentum_step"}


@lru_cache(maxsize=1)
def _table() -> Mapping[str, Mapping[str, str]]:
    return json.loads(TABLE.read_text())["faster"]


@lru_cache(maxsize=4096)  # names: some 300 bytes an entry with its key, 1 MiB in all
def _nearest(op: str, side: int, dtype: torch.dtype) -> str | None:
    sizes: dict[str, list[tuple[int, str]]] = {}
    for place, backend in _table().get(_LIKE.get(op, op), {}).items():
        size, _, name = place.partition(" ")
        sizes.setdefault(name or "float32", []).append((int(size), backend))
    # float32 stands for a dtype that was not measured.
    measured = sizes.get(str(dtype).removeprefix("torch."), sizes.get("float32"))
    if not measured:
        return None
    # A smaller size wins a tie.
    return min(sorted(measured), key=lambda entry: abs(math.log(entry[0] / side)))[1]


def fastest(op: str, shape: Sequence[int], dtype: torch.dtype) -> str | None:
    """The backend that was faster at the measured size that is nearest in the logarithm of the larger side;
    None where nothing was measured.
    """
    if not _table():
        return None
    return _nearest(op, max(1, *shape[-2:]), dtype)


def forget() -> None:
    """Reads the table again at the next call."""
    _table.cache_clear()
    _nearest.cache_clear()
