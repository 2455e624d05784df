# SPDX-License-Identifier: Apache-2.0
"""Trains as a child that is killed again and again, in a process that has imported everything already.

    python killed_training.py DATA OUTDIR KILLS

prints the step that the last, unkilled child ended at. A fork before the first torch operation shares the
imports, so that a start takes a tenth of a second and most kills fall into training and saving.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import yaml  # noqa: F401 (imported by the children otherwise, again and again)
from diffusers import UNet2DModel  # noqa: F401
from PIL import PngImagePlugin  # noqa: F401
from training_runs import small

from softdiff_kernels.training.checkpoint import numbered
from softdiff_kernels.training.loop import train

MORE = 4


def steps_there(outdir: Path) -> int:
    states = numbered(outdir, "state")
    return int(states[-1].stem.removeprefix("state-")) if states else 0


def child(data: Path, outdir: Path, steps: int) -> int:
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        code = 1
        try:
            with open(outdir.parent / "said.txt", "a") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                train(small(data, outdir, steps=steps, save_every=2, resume="auto"))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def main(data: Path, outdir: Path, kills: int) -> None:
    rng = random.Random(0)
    longest, before = 1.0, 0
    while kills:
        pid = child(data, outdir, 100_000)
        time.sleep(rng.uniform(0.0, longest))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        # One that ended by itself failed, and was not killed.
        assert os.WIFSIGNALED(status), (outdir.parent / "said.txt").read_text()[-2000:]
        kills -= 1
        # On a slow machine a child needs longer before it has done anything that a kill could harm.
        longest *= 0.95 if steps_there(outdir) > before else 1.2
        before = steps_there(outdir)
    steps = steps_there(outdir) + MORE
    _, status = os.waitpid(child(data, outdir, steps), 0)
    assert os.waitstatus_to_exitcode(status) == 0, (outdir.parent / "said.txt").read_text()[-2000:]
    print(steps)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
