# SPDX-License-Identifier: Apache-2.0
"""`softdiff bench` and `softdiff bench compare`: the commands of `softdiff_kernels.bench`."""

from __future__ import annotations

from collections.abc import Sequence

from ..bench.config import BenchConfig, CompareConfig


def run(config: BenchConfig, argv: Sequence[str]) -> int:
    """Times the ops, and writes and prints the result."""
    from ..bench.run import bench

    bench(config, argv)
    return 0


def run_compare(config: CompareConfig, argv: Sequence[str]) -> int:
    """Prints the differences between two results."""
    from ..bench.compare import compare

    print(compare(config))
    return 0
