# SPDX-License-Identifier: Apache-2.0
"""Collects the comparisons of a run and prints them under pytest-benchmark's own table."""

from __future__ import annotations

import pytest

from softdiff_kernels.bench import tables
from softdiff_kernels.bench.rows import Row

_ROWS = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compiled", action="store_true", help="time baselines under torch.compile, too")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> list[Row]:
    """Where a test leaves its comparison."""
    return request.config.stash[_ROWS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    collected = config.stash[_ROWS]
    if collected:
        terminalreporter.section("softdiff_kernels beside its baselines")
        terminalreporter.write_line(tables.comparison(collected))
