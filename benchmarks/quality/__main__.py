# SPDX-License-Identifier: Apache-2.0
"""Run experiments by name: train their networks, draw and measure their samples; then tabulate the results.

python -m benchmarks.quality run E1 --data mnist-train.npz --test mnist-test.npz --out quality
python -m benchmarks.quality report --out quality
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .plan import EXPERIMENTS, TRAININGS


def main() -> None:
    """Runs one of the two commands."""
    parser = argparse.ArgumentParser("python -m benchmarks.quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("experiments", nargs="*", help=f"default: all of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--data", help="labelled images to train on")
    parser.add_argument("--test", help="images to measure against")
    parser.add_argument("--out", type=Path, default=Path("quality"), help="folder of runs and results")
    parser.add_argument("--plots", type=Path, help="folder for the report's plots (default: --out)")
    parser.add_argument(
        "--trainings", nargs="*", type=int, default=list(TRAININGS), help="seeds of training (default: all)"
    )
    options = parser.parse_intermixed_args()
    names = options.experiments or list(EXPERIMENTS)
    for name in set(names) - set(EXPERIMENTS):
        parser.error(f"expected experiments among {', '.join(EXPERIMENTS)}, got {name!r}")
    if options.command == "report":
        from .report import report

        print(report(options.out, options.plots or options.out, names))
        return
    if options.data is None or options.test is None:
        parser.error("run needs --data and --test")
    from .measure import Lab

    lab = Lab(options.data, options.test, options.out)
    for training in options.trainings:  # one of everything first, so that unfinished results can be compared
        for name in names:
            lab.run(name, training)


if __name__ == "__main__":
    main()
