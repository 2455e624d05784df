# SPDX-License-Identifier: Apache-2.0
"""Two agents of torchrun, as on two machines: a signal to one, one that is lost, and what they must share."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

pytest.importorskip("diffusers")
pytest.importorskip("tyro")

from training_runs import losses, small

from softdiff_kernels.cli import parse
from softdiff_kernels.commands.train import prepare
from softdiff_kernels.errors import UserError
from softdiff_kernels.training import loop as loop_module
from softdiff_kernels.training.checkpoint import numbered
from softdiff_kernels.training.distributed import Processes, lost_process
from softdiff_kernels.training.loop import resumed_options, state_to_resume, train

ROOT = Path(__file__).resolve().parents[2]
ALONE = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
ENVIRONMENT = {**ALONE, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
TIMEOUT = 30
needs_torchrun = pytest.mark.skipif(
    not Path("/proc").is_dir() or not dist.is_available() or not dist.is_gloo_available(),
    reason="gloo over loopback, and the children of a process in /proc",
)


class Agents:
    """Two agents of one worker each, that meet at a port of this machine."""

    def __init__(self, folder: Path, *argv: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", *meet]
        self.logs = [folder / f"agent{number}.txt" for number in range(2)]
        self.running = []
        for log in self.logs:
            with open(log, "w") as file:
                self.running.append(
                    subprocess.Popen(
                        [*command, "-m", "softdiff_kernels", "train", *argv, "--timeout", str(TIMEOUT)],
                        **{"env": ENVIRONMENT, "stdout": file, "stderr": subprocess.STDOUT},
                    )
                )

    def said(self) -> str:
        return "".join(log.read_text() for log in self.logs)

    def at_step(self, step: int) -> int:
        """Waits for a line of this step; returns the number of the agent whose process is not the first."""
        deadline = time.monotonic() + 300
        while f"\nstep {step}/" not in self.said():
            assert time.monotonic() < deadline and all(p.poll() is None for p in self.running), self.said()
            time.sleep(0.05)
        return int("\nstep " in self.logs[0].read_text())

    def worker(self, number: int) -> int:
        pid = self.running[number].pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def ended(self) -> list[int]:
        """The exit statuses of both. What torchrun itself waits for is 30 s."""
        return [process.wait(timeout=TIMEOUT + 60) for process in self.running]

    def kill(self) -> None:
        for number, process in enumerate(self.running):
            if process.poll() is None:
                with contextlib.suppress(OSError, ValueError):
                    os.kill(self.worker(number), signal.SIGKILL)
                process.kill()
            process.wait()


@pytest.fixture
def agents() -> Iterator[Any]:
    started: list[Agents] = []

    def start(*args: Any) -> Agents:
        started.append(Agents(*args))
        return started[-1]

    yield start
    for some in started:
        some.kill()


@needs_torchrun
@pytest.mark.timeout(900)  # eight starts of Python: half a minute, on a busy machine ten times that
def test_a_signal_to_one_agent_and_the_loss_of_one(blobs: Path, tmp_path: Path, agents: Any) -> None:
    """Rule: SIGTERM to one agent, whichever, ends both with one checkpoint; a lost agent ends the other
    with one sentence; and the run goes on, on two machines and on one."""
    run = tmp_path / "run"
    flags = "--width 8 --blocks 1 --batch 6 --schedule paper --sample-count 0 --log-every 1 --save-every 4"
    argv = ["--data", str(blobs), "--outdir", str(run), "--resume", "auto", *flags.split(), "--keep", "0"]
    pair = agents(tmp_path, *argv, "--steps", "100000")
    other = pair.at_step(2)
    pair.running[other].send_signal(signal.SIGTERM)
    statuses, said = pair.ended(), pair.said()
    stopped = losses(run)[-1][0]
    states = [path.name for path in numbered(run, "state")]
    assert states[-1] == f"state-{stopped:08d}.safetensors" and stopped >= 2
    assert len(numbered(run, "weights")) == len(states) and not list(run.glob("*.partial"))
    # torchrun ends with 1 after a signal, and names the status of its worker: 128 + SIGTERM.
    assert statuses == [1, 1] and "exitcode  : 143" in said
    assert said.count("resume with: softdiff train --resume") == 1

    pair = agents(tmp_path, *argv, "--steps", "100000")
    saved = (stopped // 4 + 1) * 4
    other = pair.at_step(saved + 1)
    worker = pair.worker(other)
    begun = time.monotonic()
    pair.running[other].kill()
    os.kill(worker, signal.SIGKILL)
    statuses = pair.ended()
    assert time.monotonic() - begun < TIMEOUT + 30
    assert statuses[other] == -signal.SIGKILL and statuses[1 - other] == 1
    sentence = "softdiff (process 0): error: another process of the run ended, or did not answer in time ("
    assert pair.said().count(sentence) == 1
    assert f"; the checkpoints are in {run}" in pair.said()

    # On one, from what was saved.
    again = resumed_options(str(run), None)
    assert again is not None
    newest = int(numbered(run, "state")[-1].stem.removeprefix("state-"))
    assert newest >= saved
    done = train(dataclasses.replace(again, steps=newest + 1, save_every=100, timeout=9.0))
    assert done.step == newest + 1 and [step for step, _ in losses(run)] == list(range(1, newest + 2))


@dataclasses.dataclass
class Several(Processes):
    """A process of two, and what the other one says."""

    theirs: Any = None

    def gather(self, mine: Any) -> list[Any]:
        return [mine, self.theirs]


def test_processes_that_differ_are_refused() -> None:
    """Rule: other options or images than the first process's would train another network; each is named."""
    Several(theirs={"lr": 0.1, "seed": 3}).agree({"lr": 0.1, "seed": 3})
    said = r"got others in process 1 than in process 0 \(lr: 0\.1 and 0\.2; seed: 3 and 4\)"
    with pytest.raises(UserError, match=said):
        Several(theirs={"lr": 0.2, "seed": 4}).agree({"lr": 0.1, "seed": 3})
    with pytest.raises(UserError, match=r"\(digest: a{100}\.\.\. and b\)"):
        Several(theirs={"digest": "b"}).agree({"digest": "a" * 1000})


def test_what_the_processes_of_a_run_compare(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: every option but those of one machine, and the content of the files that those name."""
    compared: dict[str, Any] = {}
    monkeypatch.setattr(Processes, "agree", lambda _, mine: compared.update(mine))
    train(small(blobs, tmp_path / "run", steps=1))
    options = {field.name for field in dataclasses.fields(loop_module.TrainConfig)}
    assert options - compared.keys() == loop_module.OF_ONE_MACHINE - {"corruption"}
    assert compared["corruption"]["kind"] == "blur" and len(compared["digest of the images"]) == 16


def test_a_machine_that_does_not_see_the_state_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: all processes end with the file, the process and its machine, and what to do."""
    state = tmp_path / "state-00000003.safetensors"
    state.touch()
    loop_module._check_seen(state, Several(theirs=(True, "node2")))
    with pytest.raises(UserError, match=r"not seen by process 1 on node2; to resume, keep the run on a file"):
        loop_module._check_seen(state, Several(theirs=(False, "node2")))
    # Before the processes meet, the one that does not see the folder says it.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match=r"elsewhere: process 1 on .* sees no such file or folder; to resume"):
        state_to_resume(str(tmp_path / "elsewhere"), None)


def test_what_counts_as_a_lost_process() -> None:
    """Rule: the messages of gloo and torch's own types; no other error, such as one of shapes."""
    place = "[/w/third_party/gloo/gloo/transport/tcp/pair.cc:537] "
    for text in (
        "Read error [127.0.0.1]:27371: Connection reset by peer. This is typically caused by a remote worker",
        "Connection closed by peer [10.0.0.2]:4242",
        "Application timeout caused pair closure",
        "Timed out waiting 8000ms for recv operation to complete",
    ):
        said = lost_process(RuntimeError(place + text))
        assert said is not None and text[:20] in said and "pair.cc" not in said and "typically" not in said
    if hasattr(dist, "DistNetworkError"):
        assert lost_process(dist.DistNetworkError("Broken pipe")) is not None
    for error in (
        RuntimeError("[/w/gloo/allreduce.h:27] op.preamble.length <= op.nbytes. 8 vs 4"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        TimeoutError("timed out"),
        KeyboardInterrupt(),
    ):
        assert lost_process(error) is None


def test_processes_that_do_not_meet_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: where not all processes come within --timeout, the one that waits says so, and where."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**here, "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    said = r"expected 2 processes to meet at 127\.0\.0\.1, this one, number 0, met not all .* within 1 s"
    with pytest.raises(UserError, match=said):
        train(small(Path("unused.npz"), Path("unused"), timeout=1.0, device="cpu"))


@pytest.mark.skipif(os.name == "nt", reason="a script for bash")
@pytest.mark.parametrize("how", ["time limit", "done", "fails"])
def test_the_slurm_script(how: str, tmp_path: Path) -> None:
    """Rule: the agents get flags that torchrun and softdiff know. Before the time limit they get SIGTERM, and
    when they have ended, and not before, the job is queued again; after any other end it is not."""
    run = pytest.importorskip("torch.distributed.run")
    statuses = {"time limit": 1, "done": 0, "fails": 7}
    stand_ins = {
        "srun": 'printf "%s\\n" "$@" > args\n'
        + (
            "trap 'echo ended >> log; exit 1' TERM\nsleep 30 & wait"
            if how == "time limit"
            else "exit $STATUS"
        ),
        # More names than a pipe takes at once: who reads the first alone ends the one who writes them.
        "scontrol": '[[ $1 == show ]] && printf "node%s\\n" {7..20000} || echo "$@" >> log',
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "2"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [
            "bash",
            str(ROOT / "examples" / "slurm.sbatch"),
            "run 1",
            "--data",
            "a b.zip",
            "--preset",
            "cifar10",
        ],
        cwd=tmp_path,
        env={**ENVIRONMENT, **job, "PATH": path, "SLURM_GPUS_ON_NODE": "4", "STATUS": str(statuses[how])},
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "args").exists():
        assert process.poll() in (None, statuses[how]) and time.monotonic() < deadline
        time.sleep(0.02)
    if how == "time limit":
        time.sleep(0.5)
        process.send_signal(signal.SIGUSR1)
    status = process.wait(timeout=30)
    log = (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []
    if how == "time limit":
        assert log == ["ended", "requeue 123456"]
    else:
        assert log == [] and status == statuses[how]
    words = (tmp_path / "args").read_text().splitlines()
    torchrun, softdiff = words.index("torchrun"), words.index("train")
    known = run.get_args_parser().parse_args(words[torchrun + 1 :])
    assert (known.nnodes, known.nproc_per_node, known.rdzv_backend) == ("2", "4", "c10d")
    assert (known.rdzv_endpoint, known.rdzv_id) == (f"node7:{20000 + 123456 % 20000}", "123456")
    assert words[softdiff - 2 : softdiff] == ["-m", "softdiff_kernels"]
    flags = words[softdiff + 1 :]
    options = parse(loop_module.TrainConfig, "train", *prepare(flags))
    assert (options.data, options.outdir, options.resume) == ("a b.zip", "run 1", "auto")
    assert not options.progress
