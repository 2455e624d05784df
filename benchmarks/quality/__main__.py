# SPDX-License-Identifier: Apache-2.0
"""Train the networks of the plan, draw and measure their samples, and tabulate the results.

python -m benchmarks.quality train   --data mnist-train.npz --out quality
python -m benchmarks.quality measure --data mnist-train.npz --test mnist-test.npz --out quality
python -m benchmarks.quality report  --out quality
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from .plan import COMPARED_AT, PARTS, TRAINED


def train(data: str, out: Path, only: list[str]) -> None:
    """Trains the networks into out/NAME, one after the other, by `softdiff train`; each run is resumed."""
    for name in only or TRAINED:
        network, folder = TRAINED[name], out / name
        argv = ["--preset", network.preset, "--data", data, "--outdir", str(folder), "--resume", "auto"]
        command = [sys.executable, "-m", "softdiff_kernels", "train", *argv, *network.flags, "--keep", "0"]
        begun = time.monotonic()
        process = subprocess.Popen(command)
        enough = folder / f"state-{COMPARED_AT:08d}.safetensors"
        while process.poll() is None:
            if not network.to_the_end and enough.exists():
                process.terminate()  # the run saves once more, and can be resumed
                process.wait()
            time.sleep(1)
        if process.returncode != 0 and not enough.exists():
            raise SystemExit(f"{name}: softdiff train failed with exit status {process.returncode}")
        print(f"{name}: {time.monotonic() - begun:.0f} s")


def main() -> None:
    """Runs one of the three commands."""
    parser = argparse.ArgumentParser("python -m benchmarks.quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=["train", "measure", "report"])
    parser.add_argument("--data", help="labelled images to train on")
    parser.add_argument("--test", help="images to measure against")
    parser.add_argument("--out", type=Path, default=Path("quality"), help="folder of runs and results")
    parser.add_argument("--only", nargs="*", default=[], choices=list(TRAINED), help="networks to train")
    parser.add_argument("--part", nargs="*", default=list(PARTS), choices=list(PARTS), help="what to measure")
    options = parser.parse_args()
    if options.command != "report" and options.data is None:
        parser.error(f"{options.command} needs --data")
    if options.command == "train":
        train(options.data, options.out, options.only)
    elif options.command == "measure":
        if options.test is None:
            parser.error("measure needs --test")
        from .measure import measure

        for part in options.part:
            measure(options.data, options.test, options.out, part)
    else:
        from .report import report

        print(report(options.out))


if __name__ == "__main__":
    main()
