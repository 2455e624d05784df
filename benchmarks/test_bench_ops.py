# SPDX-License-Identifier: Apache-2.0
"""pytest-benchmark entries of every op and of its baselines, to see regressions while working on a kernel.

    python -m pytest benchmarks --timeout=0 -k "corrupt and 64" --benchmark-autosave --benchmark-compare

`softdiff bench` is what results are quoted from: it interleaves, and knows its noise. Speed is never
asserted here; that every result is right is, before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import softdiff_kernels as sk
from softdiff_kernels.bench import breakdown, cases, clock, machine, measure, rows
from softdiff_kernels.bench.baselines import baselines
from softdiff_kernels.bench.config import OPS, SIZES

FUSED = any(sk.backends()[name].usable for name in ("native", "triton", "cuda"))
pytestmark = pytest.mark.skipif(not FUSED, reason="no fused kernels here")
THREADS = tuple(sorted({1, machine.cores()}))
# Ours, and the eager forms that are the fastest at one size or another.
CALLS = ("ours", "two-product bmm", "four-product", "scipy", "FFT-DCT", "torch.randn")
CALLS_A_ROUND = 1


@pytest.fixture(autouse=True, params=THREADS, ids=lambda count: f"{count} threads")
def thread_count(request: pytest.FixtureRequest, device: torch.device) -> Iterator[int]:
    """Each thread count in turn; on a GPU the first alone."""
    if device.type == "cuda" and request.param != THREADS[0]:
        pytest.skip("threads make no difference on a GPU")
    with measure.threads(request.param):
        yield request.param


def _call(name: str, case: cases.Case, device: torch.device) -> Callable[[], object]:
    """One call, which returns when the device is done."""
    if name == "ours":

        def run() -> None:
            cases.ours(case)
            clock.synchronize(device)

        return run
    found = {b.name: b for b in baselines(case.op, case.height, case.width, torch.float32, device)}
    if name not in found:
        pytest.skip(f"{case.op} has no {name}")
    values = tuple(case.arguments.values())

    def run_baseline() -> None:
        found[name].call(*values)
        clock.synchronize(device)

    return run_baseline


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_op(benchmark, op: str, size: int, name: str, thread_count: int, device: torch.device) -> None:
    """Rule: ours differs from the specification by float32's rounding alone, and then it is timed."""
    case = cases.make(op, size, size, cases.batch_of(size), device=device)
    call = _call(name, case, device)
    if name == "ours":
        few = cases.make(op, size, size, 1, device=device)
        assert rows.errors(few, [])[rows.OURS] < 1e-5
    benchmark.group = f"{op}, {size} px, {thread_count} threads"
    benchmark.extra_info.update(
        device=str(device),
        threads=thread_count,
        batch=case.batch,
        values=case.values,
        calls_a_round=CALLS_A_ROUND,
        dense_operations_a_call=breakdown.dense_operations(op, size) * case.values,
        bytes_a_call=breakdown.bytes_of(op) * case.values,
    )
    benchmark.pedantic(call, rounds=30, iterations=CALLS_A_ROUND, warmup_rounds=3)
