# SPDX-License-Identifier: Apache-2.0
"""pytest-benchmark entries of every op and of its baselines, to see regressions while working on a kernel.

    python -m pytest benchmarks --timeout=0 -k "corrupt and 64" --benchmark-autosave --benchmark-compare

Quote results of `softdiff bench` instead: it interleaves, and knows its noise. Speed is never asserted here;
that every result is right is, before it is timed. Takes the GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import softdiff_kernels as sk
from softdiff_kernels import _machine
from softdiff_kernels.bench import cases, rows, timing
from softdiff_kernels.bench.baselines import baselines
from softdiff_kernels.bench.config import OPS, SIZES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOCK = timing.clock_of(DEVICE)
FUSED = any(sk.backends()[name].usable for name in ("native", "triton", "cuda"))
pytestmark = pytest.mark.skipif(not FUSED, reason="no fused kernels here")
# Threads make no difference on a GPU.
THREADS = (1,) if DEVICE.type == "cuda" else tuple(sorted({1, _machine.cores()}))
# Ours, and the forms that are the fastest at one size or another.
CALLS = (rows.OURS, "two-product bmm", "four-product", "scipy", "DUCC", "FFT-DCT", "torch.randn")


@pytest.fixture(autouse=True, params=THREADS, ids=lambda count: f"{count} threads")
def thread_count(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each thread count in turn."""
    with timing.threads(request.param):
        yield request.param


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_op(benchmark, op: str, size: int, name: str, thread_count: int) -> None:
    """Rule: ours differs from the specification by float32's rounding alone, and then it is timed."""
    case = cases.make(op, size, size, cases.batch_of(size), device=DEVICE)
    if name == rows.OURS:
        few = cases.make(op, size, size, 1, device=DEVICE)
        assert rows.errors(few, [])[name] < 1e-5
        call = lambda: cases.ours(case)  # noqa: E731
    else:
        listed = {b.name: b.call for b in baselines(op, size, size, torch.float32, DEVICE)}
        if name not in listed:
            pytest.skip(f"{op} has no {name}")
        call = lambda: listed[name](*case.arguments.values())  # noqa: E731
    benchmark.group = f"{op}, {size} px, {thread_count} threads"
    benchmark.extra_info.update(
        device=str(DEVICE),
        threads=thread_count,
        batch=case.batch,
        values=case.values,
        dense_operations_a_call=cases.dense_operations(op, size) * case.values,
        bytes_a_call=cases.bytes_of(op) * case.values,
    )
    benchmark.pedantic(lambda: (call(), CLOCK.wait()), rounds=30, iterations=1, warmup_rounds=3)
