# SPDX-License-Identifier: Apache-2.0
"""Which fused backend is the faster one on a GPU, for `auto`: as measured, else as predicted.

faster.json is what `make gpu-report` measures: op -> "64" (float32) or "64 bfloat16" -> backend. While its
`gpu` is null, nothing has been measured. predicted.json is what triton/tools/model.py reads out of the
machine code: a row for each op, size, dtype, backend and architecture, with the percent of a device copy that
the kernel's tightest limit allows. `auto` goes by the rows of sm_90 on every GPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("faster.json")
PREDICTED = Path(__file__).with_name("predicted.json")
# Ops that do the same work as one that is measured, or nearly, where they have no row of their own.
_LIKE = {
    "step": "momentum_step",
    "step_out": "momentum_step",
    "reverse_step": "momentum_step",
    "blur": "corrupt",
    "spectral_loss": "soft_score_loss",
    "spectral_mix_out": "spectral_mix",
}
_ARCHITECTURE = "sm_90"

# op -> dtype -> (px, backend)
_Choices = Mapping[str, Mapping[str, Sequence[tuple[int, str]]]]


@lru_cache(maxsize=1)
def _measured() -> tuple[str, _Choices]:
    """(the GPU's name, what was faster on it)."""
    table = json.loads(TABLE.read_text())
    found: dict[str, dict[str, list[tuple[int, str]]]] = {}
    for op, places in table["faster"].items():
        for place, backend in places.items():
            size, _, dtype = place.partition(" ")
            found.setdefault(op, {}).setdefault(dtype or "float32", []).append((int(size), backend))
    return table["gpu"] or "", found


@lru_cache(maxsize=1)
def _rows() -> Mapping[tuple[str, int, str, str, str], Mapping[str, Any]]:
    rows = json.loads(PREDICTED.read_text())["rows"]
    return {(r["op"], r["px"], r["dtype"], r["backend"], r["arch"]): r for r in rows}


@lru_cache(maxsize=1)
def _predicted() -> _Choices:
    """Where both backends have a row, the one that is expected to come nearer to a copy; of equal ones, the
    one that its limits hold back less."""
    by_case: dict[tuple[str, int, str], dict[str, tuple[float, float]]] = {}
    for (op, px, dtype, backend, arch), r in _rows().items():
        if arch == _ARCHITECTURE:
            by_case.setdefault((op, px, dtype), {})[backend] = r["expected"], r["percent"]
    found: dict[str, dict[str, list[tuple[int, str]]]] = {}
    for (op, px, dtype), each in by_case.items():
        if len(each) > 1:
            best = max(each, key=lambda backend: each[backend])
            found.setdefault(op, {}).setdefault(dtype, []).append((px, best))
    return found


def prediction(
    op: str, px: int, dtype: str, backend: str, architecture: str = _ARCHITECTURE
) -> Mapping[str, Any] | None:
    """The row of predicted.json for square images, or None: `percent` of a device copy that the tightest
    `limit` allows, the percent that is `expected`, `instructions` a pixel and more (tools/model.py, `Row`).

    op: as in `softdiff bench` ("soft_score_loss, op alone" is soft_score_loss); dtype "float32"; architecture
    "sm_90".
    """
    op = op.partition(",")[0]
    rows = _rows()
    return rows.get((op, px, dtype, backend, architecture)) or rows.get(
        (_LIKE.get(op, op), px, dtype, backend, architecture)
    )


@lru_cache(maxsize=4096)  # names: some 300 bytes an entry with its key, 1 MiB in all
def _nearest(op: str, side: int, dtype: torch.dtype) -> str | None:
    for choices in (_measured()[1], _predicted()):
        by_dtype = choices.get(op) or choices.get(_LIKE.get(op, op)) or {}
        # float32 stands for a dtype without an entry of its own.
        sizes = by_dtype.get(str(dtype).removeprefix("torch."), by_dtype.get("float32"))
        if sizes:
            # A smaller size wins a tie.
            return min(sorted(sizes), key=lambda entry: abs(math.log(entry[0] / side)))[1]
    return None


def fastest(op: str, shape: Sequence[int], dtype: torch.dtype) -> str | None:
    """The backend that was faster, or is predicted to be, at the size that is nearest in the logarithm of the
    larger side; what was measured comes first. None for an op that neither knows.
    """
    if len(shape) < 2:  # of `normal`
        return None
    return _nearest(op, max(1, shape[-2], shape[-1]), dtype)


def reason(backend: str, *, others: bool) -> str:
    """For which images `auto` takes a backend on a GPU that both can use, and how that is known, in words.

    others: whether it takes the ops that no table has.
    """
    gpu, measured = _measured()
    left = {op: dtypes for op, dtypes in _predicted().items() if op not in measured}
    parts = []
    if images := _listed(measured, backend):
        parts.append(f"{images}, as measured on {gpu}")
    if images := _listed(left, backend):
        known = "the other ops were not measured" if measured else "nothing was measured on a GPU"
        parts.append(f"{images}, by a model of the machine code ({known})")
    if others:
        parts.append("ops that are in no table")
    return f"auto takes it for {'; for '.join(parts)}" if parts else ""


def _listed(choices: _Choices, backend: str) -> str:
    """ "float32 at all sizes and bfloat16 at 128 and 256 px", with the ops in front where they differ."""
    phrases = []
    for dtype in dict.fromkeys(dtype for dtypes in choices.values() for dtype in dtypes):
        ops_of: dict[tuple[int, ...], list[str]] = {}
        sizes: set[int] = set()
        for op, dtypes in choices.items():
            entries = dtypes.get(dtype, ())
            sizes.update(px for px, _ in entries)
            ops_of.setdefault(tuple(sorted(px for px, best in entries if best == backend)), []).append(op)
        for taken, ops in ops_of.items():
            if taken:
                named = "" if len(ops_of) == 1 else f"{_joined(ops)} of "
                px = f"{_joined([str(px) for px in taken])} px"
                phrases.append(f"{named}{dtype} at {'all sizes' if len(taken) == len(sizes) else px}")
    return _joined(phrases) if phrases else ""


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def forget() -> None:
    """Reads the tables again at the next call."""
    for kept in (_measured, _rows, _predicted, _nearest):
        kept.cache_clear()
