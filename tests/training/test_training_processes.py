# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run over gloo: the same run as one process, and no hang where one is lost."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("tyro")

from training_runs import losses, make_trainer, small, tensors

from softdiff_kernels.training.loop import train

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not dist.is_available() or not dist.is_gloo_available(),
    reason="gloo over loopback",
)
ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
ALONE = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
ENVIRONMENT = {**ALONE, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH}


SOFTDIFF = ["-m", "softdiff_kernels"]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def torchrun(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCH, *argv], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=200
    )


LEAVING = """
import os, sys
import torch
from torch.nn.parallel import DistributedDataParallel
from softdiff_kernels.errors import UserError
from softdiff_kernels.training.distributed import join

def threads():
    tasks = os.listdir("/proc/self/task")
    return sum("gloo_runloop" in open(f"/proc/self/task/{task}/comm").read() for task in tasks)

def say(line):
    os.write(1, f"{line}\\n".encode())  # in one piece; print's pieces mix with the other process's

processes, _ = join(60.0, torch.device("cpu"))
try:
    with processes:
        loss = DistributedDataParallel(torch.nn.Linear(2, 2))
        loss(torch.ones(1, 2)).sum().backward()
        assert processes.any(processes.first)
        both = threads()
        if sys.argv[1] == "fails" and processes.first:
            raise UserError("a mistake")
        processes.gather(None)
        if sys.argv[1] == "fails":
            processes.gather(None)
except UserError as error:
    say(error)
say(f"threads {both} {threads()}")
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads in /proc")
@pytest.mark.parametrize("how", ["succeeds", "fails"])
def test_no_thread_of_the_control_group_outlives_the_run(how: str, tmp_path: Path) -> None:
    """Rule: after `with processes:` the threads that the host's decisions ran on have ended, also after an
    error: such a thread that still has a tensor of Python's to free when the interpreter ends terminates
    the process. Those of the gradients' group stay, with no such tensor: torch keeps them (2.13)."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    done = torchrun(str(tmp_path / "leaving.py"), how)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("threads")]
    assert len(counts) == 2 and all(int(before) >= 2 * int(after) for before, after in counts), done.stdout
    if how == "fails":
        assert done.stdout.count("a mistake") == 1
        assert (
            done.stdout.count("another process of the run ended") == 1 and "; start it again" in done.stdout
        )


def error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], part: str) -> float:
    """Relative distance of all tensors whose name ends so, as one vector."""
    names = [name for name in wanted if name.endswith(part)]
    assert names
    gap = sum(float((found[n].double() - wanted[n].double()).square().sum()) for n in names)
    return float((gap / sum(float(wanted[n].double().square().sum()) for n in names)) ** 0.5)


def test_a_run_goes_from_one_process_to_two_and_back(blobs: Path, tmp_path: Path) -> None:
    """Rule: two processes make the step that one makes, to rounding, and their state goes on in one."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(small(blobs, whole, steps=3, save_every=1, keep=0))
    train(small(blobs, run, steps=1, save_every=1, keep=0))
    resumed = ["train", "--resume", str(run), "--steps", "2", "--batch-gpu", "1", "--sample-count", "1"]
    done = torchrun(*SOFTDIFF, *resumed)
    assert done.returncode == 0, done.stderr[-3000:]
    # One process says it, and the batch of 6 is 2 processes x 1 image x 3 rounds.
    assert done.stdout.count("resuming ") == 1 and "global batch 6 = 2 x 1 x 3" in done.stdout
    train(dataclasses.replace(small(blobs, run, steps=3, save_every=1, keep=0), resume=str(run)))
    for step in (2, 3):
        found, wanted = tensors(run, step), tensors(whole, step)
        # exp_avg is a mean of the clipped gradients: sums of a few hundred float32 in another order. Adam's
        # division makes of a gradient that is all rounding a step of its own size, hence weights to 1e-3.
        assert error(found, wanted, "exp_avg") < 1e-4
        assert error(found, wanted, "weight") < 1e-3
    # Images, t, noise and mirroring are the same, so the losses before and after are, too.
    for (step, found_loss), (_, wanted_loss) in zip(losses(run), losses(whole), strict=True):
        assert found_loss == pytest.approx(wanted_loss, rel=1e-4), step
    assert Image.open(run / "samples-00000002.png").size == (52, 52)

    # The images of a seed are the same at any number of processes.
    weights = str(run / "weights-00000003.safetensors")
    argv = ["sample", "--weights", weights, "--seeds", "4-8", "--steps", "2", "--outdir"]
    several = torchrun(*SOFTDIFF, *argv, str(tmp_path / "several"), "--npz", str(tmp_path / "several.npz"))
    assert several.returncode == 0, several.stderr[-3000:]
    command = [sys.executable, *SOFTDIFF, *argv, str(tmp_path / "one")]
    subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, check=True, capture_output=True, timeout=200)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "several").iterdir())
    packed = np.load(tmp_path / "several.npz")
    assert packed["seeds"].tolist() == [4, 5, 6, 7, 8]
    for i, name in enumerate(names[:5]):
        one, other = (np.asarray(Image.open(tmp_path / d / name)).astype(int) for d in ("one", "several"))
        # The noise is bit for bit the same; a float's last digit may tip a rounding.
        assert np.abs(one - other).max() <= 1
        assert np.array_equal(packed["arr_0"][i, ..., 0], other)


def test_accumulation_makes_the_same_gradient(blobs: Path) -> None:
    """Rule: the gradient of a batch is that of its parts, to rounding, however it is cut."""
    gradients = []
    for each in (None, 3, 1):
        trainer = make_trainer(blobs, batch_gpu=each, grad_clip=0.0)
        found = trainer.advance()
        assert len(found.losses) == len(found.t) == 6
        gradients.append((found, [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]))
    whole, first = gradients[0]
    assert first
    for found, parts in gradients[1:]:
        assert torch.equal(found.t, whole.t)
        torch.testing.assert_close(found.losses, whole.losses, rtol=1e-5, atol=0)
        for a, b in zip(first, parts, strict=True):
            # Float32 sums of at most some thousand terms in another order.
            assert float((a - b).norm()) <= 1e-5 * float(torch.cat([g.flatten() for g in first]).norm())


def test_a_process_that_does_not_answer_ends_the_run(blobs: Path, tmp_path: Path) -> None:
    """Rule: the process that is left ends with an error, at most --timeout after it begins to wait."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = Path(__file__).resolve().parents[1] / "one_of_several.py"
    processes = []
    for rank in range(2):
        told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(script), str(blobs), str(tmp_path / "run")],
                env={**ENVIRONMENT, **told, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        begun = time.monotonic()
        _, said = processes[0].communicate(timeout=150)
        assert processes[0].returncode not in (0, None)
        assert time.monotonic() - begun < 120
        assert "UserError: another process of the run ended, or did not answer in time (Timed out" in said
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    # What was saved before is whole, and goes on.
    states = sorted((tmp_path / "run").glob("state-*"))
    assert states and states[-1].name == "state-00000002.safetensors"
    resumed = small(blobs, tmp_path / "run", steps=3, resume=str(tmp_path / "run"))
    assert train(resumed).step == 3
