# SPDX-License-Identifier: Apache-2.0
"""What follows from the benchmark's rows: the targets that are reached, and the faster backend of a case."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .parts import ROOT

Rows = Sequence[Mapping[str, Any]]
BACKENDS = ("triton", "cuda")
_ALONE = "soft_score_loss, op alone"
# Part of the measured copy bandwidth on an H200 or a GPU like it: float32, batches that fill the GPU.
OF_COPY = {
    **{("corrupt", px): part for px, part in ((32, 0.80), (64, 0.80), (128, 0.60), (256, 0.35))},
    **{(op, px): 0.80 for op in ("momentum_step", _ALONE, "soft_score_loss") for px in (32, 64)},
}
OF_COPY_BY_CUDA = {("corrupt", 64): 0.85}  # where more is wanted of the CUDA kernels
FASTEST_RATIO = 5.0  # of corrupt at 64 px to the fastest of the eager and compiled baselines
BFLOAT16_RATE = 1.6  # of bfloat16 to float32 images at 64 px, in pixels a second
LAUNCH_RATIO = 1.5  # host time of a call to a registered no-op plus a bare Triton launch


PREDICTED = ROOT / "softdiff_kernels" / "backends" / "predicted.json"


@lru_cache
def _predictions() -> dict[tuple[Any, ...], float]:
    rows = json.loads(PREDICTED.read_text())["rows"] if PREDICTED.exists() else []
    return {(r["backend"], r["op"], r["px"], r["dtype"]): r["percent"] for r in rows if r["arch"] == "sm_90"}


def predicted(row: Mapping[str, Any]) -> float | None:
    """The percent of a copy's bandwidth that the machine code allows a row's kernel on sm_90 (the committed
    table of softdiff_kernels/backends), where it is known."""
    op = row["op"].partition(",")[0]
    known = _predictions().get((row["backend"], op, row["px"], row["dtype"]))
    return known if row["kind"] == "full" else None


@dataclass(frozen=True)
class Target:
    """What is wanted of a backend; `got` is None where it was not measured. most: it is an upper limit."""

    what: str
    backend: str
    wanted: float
    got: float | None
    unit: str = "times"
    most: bool = False

    @property
    def verdict(self) -> str:
        if self.got is None:
            return "not measured"
        good = self.got <= self.wanted if self.most else self.got >= self.wanted
        return "met" if good else "missed"


def evaluate(rows: Rows, overhead: Mapping[str, float]) -> Iterator[Target]:
    """All targets of each backend against the rows of the benchmark and the host's microseconds."""
    full = {(r["backend"], r["op"], r["px"], r["dtype"]): r for r in rows if r["kind"] == "full"}
    yardstick = overhead.get("registered no-op", 0.0) + overhead.get("bare Triton launch", 0.0)
    for backend in BACKENDS:
        for (op, px), part in OF_COPY.items():
            wanted = OF_COPY_BY_CUDA.get((op, px), part) if backend == "cuda" else part
            share = full.get((backend, op, px, "float32"), {}).get("of_copy")
            got = 100 * share if share else None
            yield Target(f"{op} {px} px float32", backend, 100 * wanted, got, "% of copy")
        row = full.get((backend, "corrupt", 64, "float32"), {})
        several = (
            sum(t["group"] != "ours" for t in row.get("timings", {}).values()) > 1
        )  # not the core pass's one
        ratio = row["ratio"] if several else None
        yield Target("corrupt 64 px float32 to the fastest baseline", backend, FASTEST_RATIO, ratio)
        for op in ("corrupt", "momentum_step", _ALONE):
            half, single = (full.get((backend, op, 64, dtype)) for dtype in ("bfloat16", "float32"))
            rate = single["ours"] / half["ours"] if half and single else None
            yield Target(f"{op} 64 px bfloat16 to float32", backend, BFLOAT16_RATE, rate)
        call = overhead.get("corrupt, cuda" if backend == "cuda" else "corrupt")
        launch = call / yardstick if call and yardstick else None
        what = "host time of corrupt to no-op and bare launch"
        yield Target(what, backend, LAUNCH_RATIO, launch, most=True)


def faster(rows: Rows) -> dict[str, dict[str, str]]:
    """op -> size -> backend, by the medians of batches that fill the GPU; what only one ran is left out.

    A size alone is float32's; "64 bfloat16" is that dtype's. The loss is the op without autograd, which is
    the same around both backends.
    """
    times: dict[tuple[str, int, str], dict[str, float]] = {}
    for row in rows:
        if row["kind"] == "full" and row["op"] != "soft_score_loss" and row["backend"] in BACKENDS:
            op = "soft_score_loss" if row["op"] == _ALONE else row["op"]
            times.setdefault((op, row["px"], row["dtype"]), {})[row["backend"]] = row["ours"]
    table: dict[str, dict[str, str]] = {}
    for (op, px, dtype), each in sorted(times.items()):
        if len(each) > 1:
            place = str(px) if dtype == "float32" else f"{px} {dtype}"
            table.setdefault(op, {})[place] = min(each, key=lambda backend: each[backend])
    return table


def faster_table(machine: Mapping[str, Any], table: Mapping[str, Any], nvcc: str) -> dict[str, Any]:
    """faster.json: the GPU, the date and the versions of the measurement, and which backend was faster."""
    own = {name: machine.get(name) for name in ("python", "softdiff_kernels", "commit")}
    others = {name: machine.get("versions", {}).get(name) for name in ("torch", "triton")}
    versions = {**own, **others, "nvcc": nvcc or None}
    gpu = (machine.get("gpu") or {}).get("name")
    return {"gpu": gpu, "date": machine.get("date"), "versions": versions, "faster": table}
