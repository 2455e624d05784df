# SPDX-License-Identifier: Apache-2.0
"""pytest-benchmark entries for every op, each followed by an interleaved comparison with its baselines.

Speed is printed, never asserted; that every result is right is asserted, before it is timed.
"""

from __future__ import annotations

import pytest

import softdiff_kernels as sk
from softdiff_kernels.bench import cases, measure
from softdiff_kernels.bench.baselines import OPS
from softdiff_kernels.bench.rows import Row, compare

pytestmark = pytest.mark.skipif(not sk.backends()["native"].usable, reason=sk.backends()["native"].reason)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", cases.SIZES)
@pytest.mark.parametrize("threads", (1, 2))
def test_op(
    benchmark, request: pytest.FixtureRequest, rows: list[Row], op: str, size: int, threads: int
) -> None:
    case = cases.make(op, size, size, cases.batch_of(size))
    benchmark.group = f"{op}, {threads} threads"
    benchmark.extra_info.update(values=case.values, batch=case.batch, threads=threads)
    with measure.threads(threads):
        # Raises if ours or a baseline differs from the specification.
        rows.append(compare(op, size, compile=request.config.getoption("--compiled"), budget=0.1))
        benchmark.pedantic(cases.ours, args=(case,), rounds=30, warmup_rounds=2)
