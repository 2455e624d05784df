# SPDX-License-Identifier: Apache-2.0
"""Times every op beside its baselines and prints the tables.

python benchmarks/run.py [--quick] [--unsettled] [--threads 1 2] [--sizes 32 64 128 256] [--ops corrupt ...]
                         [--isa avx512|avx2|portable] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import breakdown, cases, compare, machine, measure, memory, report
from benchmarks.baselines import OPS


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times every op beside its baselines.")
    parser.add_argument(
        "--quick", action="store_true", help="a third of the time each, no torch.compile, no memory"
    )
    parser.add_argument(
        "--unsettled",
        action="store_true",
        help="time each call right after another's, with the page faults that this leaves to it",
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(cases.SIZES), help="pixels along a side")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS), metavar="OP")
    parser.add_argument(
        "--isa", choices=("avx512", "avx2", "portable"), help="our instruction set (not that of PyTorch)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if min(args.threads) < 1 or min(args.sizes) < 1:
        parser.error("--threads and --sizes: expected numbers of at least 1")
    return args


def measured(args: argparse.Namespace) -> tuple[dict[str, Any], list[compare.Row]]:
    """Everything that the arguments ask for; progress goes to stderr."""
    full = 0.1 if args.quick else 0.3
    rows: list[compare.Row] = []
    result: dict[str, Any] = {"parts": [], "shares": [], "memory": [], "limits": {}, "seed": cases.SEED}
    torch.manual_seed(cases.SEED)
    for count in args.threads:
        with measure.threads(count):
            limits = result["limits"][str(count)] = machine.limits(full)
            for size in args.sizes:
                parts = breakdown.parts(size, budget=full / 2)
                result["parts"].append({"px": size, "threads": count, **parts})
                for op in args.ops:
                    budget = full if report.goal(op, size) else full / 2
                    row = compare.compare(
                        op, size, compile=not args.quick, budget=budget, settle=not args.unsettled
                    )
                    rows.append(row)
                    result["shares"].append(breakdown.shares(row, limits, parts["noise alone"]))
                    print(
                        f"{op}, {size} px, {count} threads: {row.ours:.2f} ns/px, "
                        f"{row.ratio:.2f} times as fast as {row.fastest}",
                        file=sys.stderr,
                        flush=True,
                    )
                if not args.quick and (extra := memory.extra(size, count)) is not None:
                    result["memory"].append({"px": size, "threads": count, **extra})
    result["rows"] = [asdict(row) for row in rows]
    return result, rows


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        native = machine.native()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    if args.isa and not native.use_instruction_set(args.isa):
        print(f"--isa: this CPU or this build has no {args.isa}", file=sys.stderr)
        return 1
    about = machine.description()
    if (about["load_average"] or 0.0) > 0.5:
        print(
            f"load average {about['load_average']:.1f}: ratios mean little on a busy machine", file=sys.stderr
        )
    result, rows = measured(args)
    command = shlex.join(["python", "benchmarks/run.py", *(sys.argv[1:] if argv is None else argv)])
    result = {"command": command, "machine": about, **result}
    text = report.document(result, rows)
    print(text)
    for path, content in ((args.json, json.dumps(result, indent=1) + "\n"), (args.markdown, text)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
