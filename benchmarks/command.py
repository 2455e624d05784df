# SPDX-License-Identifier: Apache-2.0
"""What the scripts that time whole steps and workloads share: options, the run and its files, comparisons."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from softdiff_kernels import _machine
from softdiff_kernels.bench import cases, machine, report, timing
from softdiff_kernels.files import save_json
from softdiff_kernels.training.distributed import pick_device

Rows = list[dict[str, Any]]
Op = Callable[..., Any]
Case = partial[Rows]
WRONG = 1e-3
"""The relative error (L2) from which on a baseline computes something else: rounding is under 1e-4, a wrong
formula over 1e-2."""
_BLOCK = 8  # calls on a GPU between two events: the host runs ahead where it can, as in a loop of steps
_LEGEND = (
    "ratio: how many times as long the other takes, medians of interleaved calls; none: the difference is "
    "below the noise of the run, in which ours was timed twice. Each result was compared with ours before."
)


class WrongResult(AssertionError):
    """A baseline whose result is not ours; it must not be timed."""


def agree(what: str, ours: Any, other: Any, bound: float = WRONG) -> None:
    """Raises WrongResult where the results (tensors, or tuples of them) differ by more than `bound` (L2)."""
    pairs = zip(ours, other, strict=True) if isinstance(ours, tuple) else [(ours, other)]
    for mine, theirs in pairs:
        if mine.shape != theirs.shape:
            raise WrongResult(f"{what}: expected shape {list(mine.shape)}, got {list(theirs.shape)}")
        error = cases.relative_error(theirs, mine.double())
        if not error < bound:
            raise WrongResult(f"{what}: relative error {error:.1e}, expected under {bound:g}")


def compete(
    about: Mapping[str, Any],
    ours: Op,
    others: Mapping[str, Op],
    device: torch.device,
    *,
    check: tuple[Any, ...] | None = (),
    bounds: Mapping[str, float] | None = None,
    unit: str = "ms",
    count: float = 1.0,
    **limits: Any,
) -> Rows:
    """Compares the others' results with ours, then times ours, twice, and the others, interleaved.

    check: the arguments of the calls that are compared, such as a given noise; the timed calls have none, so
    that they draw their own. None: the results have been compared already. bounds: for a name, the relative
    error that is allowed in the place of WRONG. limits: of `timing.sample`. Raises WrongResult.

    Returns a row for each other. about: case, what, size (pixels a side), batch (images of a call, or of the
    data set). ours, other: by this library and by what `other_name` says, in `unit`: "ms" for one of `count`
    steps, or "images/s". ratio: how many times as long the other takes; None where it is within the noise, or
    where nothing was timed. noise: as a fraction of the ratio. note: where nothing was timed, the reason.
    """
    if check is not None:
        exact = ours(*check)
        for name, call in others.items():
            agree(f"{about['what']}, {name}", exact, call(*check), (bounds or {}).get(name, WRONG))
    limits = {"most": 100, "block": _BLOCK if device.type == "cuda" else 1, **limits}
    timings, floors = timing.contest(ours, others, timing.clock_of(device), **limits)
    ratios = timing.ratios(timings, timing.OURS)

    def in_unit(name: str) -> float:
        seconds = timings[name].median
        return count / seconds if unit == "images/s" else 1e3 * seconds / count

    return [
        {
            **about,
            "ours": in_unit(timing.OURS),
            "other": in_unit(name),
            "other_name": name,
            "unit": unit,
            "ratio": ratios[name] if timing.differs(ratios[name], floor) else None,
            "noise": floor,
            "note": "",
        }
        for name, floor in floors.items()
    ]


def absent(about: Mapping[str, Any], other_name: str, unit: str, why: str) -> dict[str, Any]:
    """The row of what cannot be timed here, with the reason as its note."""
    nothing = dict.fromkeys(("ours", "other", "ratio", "noise"))
    return {**about, **nothing, "other_name": other_name, "unit": unit, "note": why}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


_COLUMNS: list[report.Column] = [
    *((name, lambda row, name=name: str(row[name])) for name in ("case", "what", "size", "batch")),
    ("ours", lambda row: _number(row["ours"])),
    ("other", lambda row: row["other_name"]),
    ("", lambda row: _number(row["other"])),
    ("unit", lambda row: row["unit"]),
    ("ratio", lambda row: "" if row["other"] is None else report.shown(row["ratio"]) or "none"),
    ("noise", lambda row: report.shown(row["noise"], "{:.0%}")),
    ("note", lambda row: row["note"]),
]


def table(timed: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table, and a legend."""
    return f"{report.table(_COLUMNS, timed)}\n\n{_LEGEND}"


def label(case: Case) -> str:
    """The name of a case: its function and its arguments."""
    return ", ".join([case.func.__name__, *(f"{name} {value}" for name, value in case.keywords.items())])


def main(name: str, full: Iterable[Case], quick: Iterable[Case], argv: Sequence[str]) -> int:
    """Calls each case of the full or the quick plan with the device; writes NAME.json and NAME.md.

    A case is a partial of a function whose other arguments are keywords; they name it. A case that fails is
    written down and the others continue; Ctrl-C keeps what has been measured. Returns the exit code.
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
            for case in quick if options.quick else full:
                what = label(case)
                print(what, flush=True)
                try:
                    result["rows"] += case(device)
                except Exception as error:
                    result["problems"][what] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        result["complete"] = True
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    result["seconds"] = time.monotonic() - begun
    result = report.rounded(result)
    save_json(folder / f"{name}.json", result)
    failed = "".join(f"\n- failed: {what}: {why}" for what, why in result["problems"].items())
    text = f"{table(result['rows'])}\n{failed}"
    document = f"# {name}\n\n{report.about_machine(result)}\n\n{text}\n"
    (folder / f"{name}.md").write_text(document, encoding="utf-8")
    print(f"{text}\n\nThe results are in {folder}")
    return 1 if result["problems"] or not result["complete"] else 0
