# SPDX-License-Identifier: Apache-2.0
"""What the scripts that time whole steps and workloads share: options, the run, its files, rows and table."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from softdiff_kernels import _machine
from softdiff_kernels.bench import cases, machine, report, timing
from softdiff_kernels.bench.timing import OURS, Timing
from softdiff_kernels.files import save_json
from softdiff_kernels.training.distributed import pick_device

Step = tuple[str, Callable[[], list[dict[str, Any]]]]
Plan = Callable[[torch.device, bool], Iterable[Step]]
_PER_SECOND = {"ms": 1e3, "us": 1e6}


def main(name: str, plan: Plan, table: Callable[[Sequence[dict[str, Any]]], str], argv: Sequence[str]) -> int:
    """Measures the steps of `plan(device, quick)`; writes NAME.json and NAME.md into the folder.

    A step that fails is written down and the others continue; Ctrl-C keeps what has been measured. Returns
    the exit code.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--out", help="folder for the results; default: benchmark-results/DATE-DEVICE")
    parser.add_argument("--quick", action="store_true", help="few and small cases, little time for each")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=_machine.cores(), help="default: all cores")
    options = parser.parse_args(argv)
    device = pick_device(options.device)
    folder = report.new_folder(options.out, device.type, f"{name}.json")
    result: dict[str, Any] = {
        "format": f"softdiff {name} 1",
        "command": f"python -m benchmarks.{name} {' '.join(argv)}".strip(),
        "machine": machine.description(device),
        "seed": cases.SEED,
        "memory_kept": timing.keep_memory(),
        "threads": options.threads,
        "complete": False,
        "problems": {},
        "rows": [],
    }
    torch.manual_seed(cases.SEED)
    begun = time.monotonic()
    try:
        with timing.threads(options.threads):
            for what, measure in plan(device, options.quick):
                print(what, flush=True)
                try:
                    result["rows"] += measure()
                except Exception as error:
                    result["problems"][what] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        result["complete"] = True
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    result["seconds"] = time.monotonic() - begun
    _write(folder, name, report.rounded(result), table(result["rows"]))
    return 1 if result["problems"] or not result["complete"] else 0


def _write(folder: Path, name: str, result: dict[str, Any], text: str) -> None:
    save_json(folder / f"{name}.json", result)
    failed = "".join(f"- failed: {what}: {why}\n" for what, why in result["problems"].items())
    document = f"# {name}\n\n{report.about_machine(result)}\n\n{text}\n"
    (folder / f"{name}.md").write_text(document + (f"\n{failed}" if failed else ""), encoding="utf-8")
    print(f"{text}\n{failed}\nThe results are in {folder}")


def rows(
    about: Mapping[str, Any],
    timings: Mapping[str, Timing],
    floors: Mapping[str, float],
    *,
    unit: str,
    count: float = 1.0,
    note: str = "",
) -> list[dict[str, Any]]:
    """A row for each other call in `floors`, whose values are the noise floors of its ratio.

    about: case, what, size (pixels a side), batch (images of a call, or of the data set). ours, other: by
    this library and by what `other_name` says, in `unit`: "ms" or "us" for one of `count` steps, or
    "images/s". ratio: how many times as long the other takes; None where it is within the noise, or where
    nothing was timed. noise: as a fraction of the ratio. note: where ours and other are None, the reason.
    """

    def in_unit(seconds: float) -> float:
        return count / seconds if unit == "images/s" else seconds * _PER_SECOND[unit] / count

    times = timing.ratios(timings, OURS)
    return [
        {
            **about,
            "ours": in_unit(timings[OURS].median),
            "other": in_unit(timings[name].median),
            "other_name": name,
            "unit": unit,
            "ratio": times[name] if timing.differs(times[name], floor) else None,
            "noise": floor,
            "note": note,
        }
        for name, floor in floors.items()
    ]


def absent(about: Mapping[str, Any], other_name: str, unit: str, why: str) -> dict[str, Any]:
    """The row of what cannot be timed here, with the reason as its note."""
    nothing = dict.fromkeys(("ours", "other", "ratio", "noise"))
    return {**about, **nothing, "other_name": other_name, "unit": unit, "note": why}
