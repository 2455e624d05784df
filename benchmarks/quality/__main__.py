# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.quality train | measure | report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import __doc__ as USAGE
from .plan import PARTS, TRAINED


def main() -> None:
    """Runs one of the three."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=USAGE)
    parser.add_argument("command", choices=["train", "measure", "report"])
    parser.add_argument("--data", help="labelled images to train on")
    parser.add_argument("--test", help="images to measure against")
    parser.add_argument("--out", type=Path, default=Path("quality"), help="folder of runs and results")
    parser.add_argument("--only", nargs="*", default=[], choices=list(TRAINED), help="train: these networks")
    parser.add_argument("--part", nargs="*", default=list(PARTS), choices=list(PARTS), help="measure: these")
    options = parser.parse_args()
    if options.command == "train":
        if options.data is None:
            parser.error("train needs --data")
        from .train import train

        train(options.data, options.out, options.only)
    elif options.command == "measure":
        if options.data is None or options.test is None:
            parser.error("measure needs --data and --test")
        from .measure import measure

        for part in options.part:
            measure(options.data, options.test, options.out, part)
    else:
        from .report import report

        print(report(options.out))


if __name__ == "__main__":
    main()
