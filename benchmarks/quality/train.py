# SPDX-License-Identifier: Apache-2.0
"""Trains the networks of the plan, one after the other, by `softdiff train`; each goes on where it was."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from .plan import COMPARED_AT, MODULES, PRESET, TRAINED, WHOLE


def train(data: str, out: Path, only: list[str]) -> None:
    """Runs in out/NAME, all on the preset's curve of the learning rate."""
    for name in only or TRAINED:
        folder = out / name
        argv = ["--preset", PRESET, "--data", data, "--outdir", str(folder), "--resume", "auto"]
        module = MODULES.get(name, "softdiff_kernels")
        command = [sys.executable, "-m", module, "train", *argv, *TRAINED[name], "--keep", "0"]
        begun = time.monotonic()
        process = subprocess.Popen(command)
        enough = folder / f"state-{COMPARED_AT:08d}.safetensors"
        while process.poll() is None:
            if name not in WHOLE and enough.exists():
                # The run saves once more, and could be gone on with.
                process.terminate()
                process.wait()
            time.sleep(1)
        if process.returncode != 0 and not enough.exists():
            raise SystemExit(f"{name}: softdiff train ended with {process.returncode}")
        print(f"{name}: {time.monotonic() - begun:.0f} s")
