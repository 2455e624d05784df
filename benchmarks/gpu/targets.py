# SPDX-License-Identifier: Apache-2.0
"""What the kernels are built to reach on an H200 or a GPU of like kind, and whether the rows reach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Part of the measured copy bandwidth, float32, batches that fill the GPU: by Triton.
OF_COPY = {
    ("corrupt", 32): 0.80,
    ("corrupt", 64): 0.80,
    ("corrupt", 128): 0.60,
    ("corrupt", 256): 0.35,
    ("momentum_step", 32): 0.80,
    ("momentum_step", 64): 0.80,
    ("soft_score_loss, op alone", 32): 0.80,
    ("soft_score_loss, op alone", 64): 0.80,
    ("soft_score_loss", 32): 0.80,
    ("soft_score_loss", 64): 0.80,
}
# And by the CUDA kernels, where more is wanted of them.
OF_COPY_BY_CUDA = {("corrupt", 64): 0.85}
BACKENDS = ("triton", "cuda")
FASTEST_RATIO = 5.0  # of corrupt at 64 px to the fastest of the eager and compiled baselines
BFLOAT16_RATE = 1.6  # of bfloat16 to float32 images at 64 px, in pixels a second
LAUNCH_RATIO = 1.5  # host time of a call to a registered no-op plus a bare Triton launch
_RATED = ("corrupt", "momentum_step", "soft_score_loss, op alone")


@dataclass(frozen=True)
class Target:
    """One line of the table; `got` is None where it was not measured."""

    what: str
    wanted: float
    got: float | None
    unit: str
    backend: str = "triton"
    most: bool = False

    @property
    def verdict(self) -> str:
        if self.got is None:
            return "not measured"
        good = self.got <= self.wanted if self.most else self.got >= self.wanted
        return "met" if good else "missed"


def _row(
    rows: Sequence[Mapping[str, Any]], op: str, size: int, dtype: str, backend: str
) -> Mapping[str, Any] | None:
    wanted = {"op": op, "size": size, "dtype": dtype, "kind": "full", "backend": backend}
    return next((r for r in rows if all(r.get(k) == v for k, v in wanted.items())), None)


def _launch(overhead: Mapping[str, float], backend: str) -> float | None:
    try:
        yardstick = overhead["registered no-op"] + overhead["bare Triton launch"]
        return overhead["corrupt, cuda" if backend == "cuda" else "corrupt"] / yardstick
    except (KeyError, ZeroDivisionError):
        return None


def evaluate(rows: Sequence[Mapping[str, Any]], overhead: Mapping[str, float]) -> list[Target]:
    """All targets of each backend against the rows of the benchmark and the host's microseconds."""
    return [target for backend in BACKENDS for target in _of(backend, rows, overhead)]


def _of(backend: str, rows: Sequence[Mapping[str, Any]], overhead: Mapping[str, float]) -> list[Target]:
    found = []
    for (op, size), part in OF_COPY.items():
        wanted = OF_COPY_BY_CUDA.get((op, size), part) if backend == "cuda" else part
        row = _row(rows, op, size, "float32", backend)
        share = 100 * row["of_copy"] if row and row.get("of_copy") else None
        found.append(Target(f"{op} {size} px float32", 100 * wanted, share, "% of copy", backend))
    row = _row(rows, "corrupt", 64, "float32", backend)
    ratio = row.get("ratio") if row else None
    name = "corrupt 64 px float32 to the fastest baseline"
    found.append(Target(name, FASTEST_RATIO, ratio, "times", backend))
    for op in _RATED:
        half, full = (_row(rows, op, 64, dtype, backend) for dtype in ("bfloat16", "float32"))
        rate = None
        if half and full:
            rate = (half["values"] / half["us"]) / (full["values"] / full["us"])
        found.append(Target(f"{op} 64 px bfloat16 to float32", BFLOAT16_RATE, rate, "times", backend))
    launch, name = _launch(overhead, backend), "host time of corrupt to no-op and bare launch"
    found.append(Target(name, LAUNCH_RATIO, launch, "times", backend, most=True))
    return found
