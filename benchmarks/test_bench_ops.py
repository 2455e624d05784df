# SPDX-License-Identifier: Apache-2.0
"""pytest-benchmark entries of every op and of its baselines, to see regressions while working on a kernel.

    python -m pytest benchmarks --timeout=0 -k "corrupt and 64" --benchmark-autosave --benchmark-compare

Quote results of `softdiff bench` instead: it interleaves, and knows its noise. Takes the GPU where there is
one, and on a CPU as many threads as PyTorch (OMP_NUM_THREADS).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from softdiff_kernels.bench import cases, rows, timing
from softdiff_kernels.bench.baselines import baselines
from softdiff_kernels.bench.config import OPS, SIZES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOCK = timing.clock_of(DEVICE)
# Ours, and the forms that are the fastest at one size or another.
CALLS = (timing.OURS, "two-product bmm", "four-product", "scipy", "DUCC", "FFT-DCT", "torch.randn")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_op(benchmark: Any, op: str, size: int, name: str) -> None:
    """Rule: a result is the specification's before it is timed."""
    chosen = [b for b in baselines(op, size, size, torch.float32, DEVICE) if b.name == name]
    if not chosen and name != timing.OURS:
        pytest.skip(f"{op} has no {name}")
    errors = rows.errors(cases.make(op, size, size, 1, device=DEVICE), chosen)
    assert max(errors.values()) < rows.WRONG[torch.float32]
    case = cases.make(op, size, size, cases.batch_of(size), device=DEVICE)
    call = partial(chosen[0].call, *case.arguments.values()) if chosen else partial(cases.ours, case)
    benchmark.group = f"{op}, {size} px, {case.batch} images, {torch.get_num_threads()} threads, {DEVICE}"
    benchmark.pedantic(lambda: (call(), CLOCK.wait()), rounds=30, iterations=1, warmup_rounds=3)
