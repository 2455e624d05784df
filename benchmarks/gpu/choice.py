# SPDX-License-Identifier: Apache-2.0
"""Which of the fused GPU backends was faster, as a small table that `auto` can go by. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# The loss as the backends see it: without autograd, which is the same around both.
_NAMES = {"soft_score_loss, op alone": "soft_score_loss"}
_WITHIN = ("soft_score_loss",)
_BACKENDS = ("triton", "cuda")  # not what was timed to compare a backend with itself
_VERSIONS = ("python", "torch", "triton", "softdiff_kernels")


def key(size: int, dtype: str) -> str:
    """A size in the table: float32's has the number alone, which stands for dtypes that were not measured."""
    return str(size) if dtype == "float32" else f"{size} {dtype}"


def faster(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """op -> size -> backend, by the medians of batches that fill the GPU; what only one ran is left out."""
    times: dict[tuple[str, int, str], dict[str, float]] = {}
    for row in rows:
        if row["kind"] == "full" and row["op"] not in _WITHIN and row["backend"] in _BACKENDS:
            place = (_NAMES.get(row["op"], row["op"]), row["size"], row["dtype"])
            times.setdefault(place, {})[row["backend"]] = row["us"]
    found: dict[str, dict[str, str]] = {}
    for (op, size, dtype), each in sorted(times.items()):
        if len(each) > 1:
            found.setdefault(op, {})[key(size, dtype)] = min(each, key=lambda backend: each[backend])
    return found


def table(machine: Mapping[str, Any], bench: Mapping[str, Any], nvcc: str) -> dict[str, Any]:
    """The file: the GPU, the date and the versions that it was measured with, and what was faster."""
    versions = {name: machine.get(name) for name in _VERSIONS}
    return {
        "gpu": (machine.get("gpu") or {}).get("name"),
        "date": machine.get("date"),
        "versions": {**versions, "nvcc": nvcc or None, "commit": machine.get("commit")},
        "faster": bench.get("faster", {}),
    }
