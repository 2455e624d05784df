# SPDX-License-Identifier: Apache-2.0
"""Runs one test function with all its cases, by pytest where there is one, and writes down each result.

python -m benchmarks.gpu.runner FILE FUNCTION --out JSON [--shard I/N] [--plain]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from . import plain_pytest
from .parts import write

HAS_PYTEST = importlib.util.find_spec("pytest") is not None
# The project's own settings ask for plugins that need not be there.
_SETTINGS = "[pytest]\nmarkers = gpu: needs a CUDA device\n"
_LONGEST = 1500  # characters of a failure that are kept


class Record:
    """The results so far, on disk after each case: what a crash leaves of them is what came before it."""

    def __init__(self, path: Path) -> None:
        self.path, self.cases = path, []  # type: ignore[var-annotated]
        self.begin("")

    def begin(self, label: str) -> None:
        """Before a case: the one to name if the process dies in it."""
        write(self.path, {"running": label, "cases": self.cases})

    def add(self, label: str, status: str, seconds: float, message: str = "") -> None:
        self.cases.append(
            {"id": label, "status": status, "seconds": round(seconds, 3), "message": message[-_LONGEST:]}
        )
        self.begin("")


class _Collector:
    """A pytest plugin that takes its part of the cases and fills a record."""

    def __init__(self, record: Record, shard: tuple[int, int]) -> None:
        self.record, self.shard = record, shard

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = items[self.shard[0] :: self.shard[1]]

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self.record.begin(nodeid.split("::")[-1])

    def pytest_runtest_logreport(self, report: Any) -> None:
        label = report.nodeid.split("::")[-1]
        if report.when == "call" or report.outcome != "passed":
            message = report.longreprtext if report.outcome != "passed" else ""
            if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
                message = str(report.longrepr[2])
            self.record.add(label, report.outcome, report.duration, message)

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self.record.add(report.nodeid or "collection", "failed", 0.0, report.longreprtext)


def _by_pytest(file: Path, function: str, record: Record, shard: tuple[int, int]) -> None:
    import pytest

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "pytest.ini"
        settings.write_text(_SETTINGS)
        options = [
            "-c",
            str(settings),
            "--rootdir",
            str(file.parent),
            "-p",
            "no:cacheprovider",
            "-q",
            "--tb=short",
        ]
        pytest.main([*options, f"{file}::{function}"], plugins=[_Collector(record, shard)])


def _module(file: Path) -> Any:
    for folder in (file.parent, file.parent.parent):
        sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def _by_hand(file: Path, function: str, record: Record, shard: tuple[int, int]) -> None:
    plain_pytest.install()
    try:
        module = _module(file)
        marks = getattr(module, "pytestmark", [])
        found = list(
            plain_pytest.cases(getattr(module, function), marks if isinstance(marks, list) else [marks])
        )
    except Exception:
        record.add("collection", "failed", 0.0, traceback.format_exc())
        return
    for label, arguments, reason in found[shard[0] :: shard[1]]:
        if reason is not None:
            record.add(label, "skipped", 0.0, reason)
            continue
        record.begin(label)
        start, status, message = time.monotonic(), "passed", ""
        try:
            getattr(module, function)(**arguments)
        except plain_pytest.Skipped as skipped:
            status, message = "skipped", str(skipped)
        except Exception:
            status, message = "failed", traceback.format_exc()
            print(message, flush=True)
        record.add(label, status, time.monotonic() - start, message)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("function")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plain", action="store_true", help="without pytest, even where there is one")
    parser.add_argument("--shard", default="0/1", help="the cases I, I + N, I + 2 N ... alone")
    args = parser.parse_args(argv)
    first, step = map(int, args.shard.split("/"))
    record = Record(args.out)
    by_pytest = HAS_PYTEST and not args.plain
    (_by_pytest if by_pytest else _by_hand)(args.file.resolve(), args.function, record, (first, step))
    if not record.cases and first == 0:
        record.add("collection", "failed", 0.0, f"{args.file.name} has no case of {args.function}")
    return int(any(case["status"] == "failed" for case in record.cases))


if __name__ == "__main__":
    sys.exit(main())
