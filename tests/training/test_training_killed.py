# SPDX-License-Identifier: Apache-2.0
"""Kill -9 at random moments of a run, twenty times in a row."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from training_runs import losses, small, tensors

from softdiff_kernels.training.loop import train

KILLS = 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forked")
def test_a_run_killed_twenty_times_ends_as_an_unbroken_one(blobs: Path, tmp_path: Path) -> None:
    """Rule: whatever a kill leaves behind, a resumed run ends with the unbroken run's state, bit for bit."""
    run, script = tmp_path / "run", Path(__file__).resolve().parents[1] / "killed_training.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    argv = [sys.executable, str(script), str(blobs), str(run), str(KILLS)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = int(done.stdout)
    starts = (tmp_path / "said.txt").read_text().count(" in " + str(run))
    # The kills have to fall into a run that gets somewhere, not into its first moments alone.
    assert starts >= KILLS // 2 and steps >= KILLS // 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(small(blobs, tmp_path / "unbroken", steps=steps, save_every=steps))
    finally:
        torch.set_num_threads(threads)
    expected, found = tensors(tmp_path / "unbroken", steps), tensors(run, steps)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert losses(run) == losses(tmp_path / "unbroken")
    assert not list(run.glob("*.partial"))
