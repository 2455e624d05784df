# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in a training run: full disks, damaged files, losses that are no numbers, signals."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from training_runs import losses, make_trainer, small, tensors

from softdiff_kernels.diffusion import SAMPLERS
from softdiff_kernels.errors import UserError
from softdiff_kernels.training import checkpoint as checkpoint_module
from softdiff_kernels.training import loop as loop_module
from softdiff_kernels.training import metrics as metrics_module
from softdiff_kernels.training.checkpoint import load_checkpoint
from softdiff_kernels.training.loop import resumed_options, state_to_resume, train
from softdiff_kernels.training.metrics import Meter
from softdiff_kernels.training.trainer import StepResult, Trainer


def test_a_disk_that_fills_while_training_keeps_the_checkpoint_before(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    whole = checkpoint_module.write_atomically

    def full(path: Path, data: bytes) -> None:
        # The state is what needs the most room.
        if path.name == "state-00000006.safetensors":
            raise UserError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}")
        whole(path, data)

    monkeypatch.setattr(checkpoint_module, "write_atomically", full)
    with pytest.raises(UserError, match="No space left on device"):
        train(small(blobs, run, keep=1))
    monkeypatch.undo()
    # keep=1 may delete the old checkpoint only once the new one is there.
    assert sorted(p.name for p in run.glob("state-*")) == ["state-00000003.safetensors"]
    assert train(dataclasses.replace(small(blobs, run, keep=1), resume=str(run))).step == 6
    for kind in ("weights", "state"):
        assert [p.name for p in run.glob(f"{kind}-*")] == [f"{kind}-00000006.safetensors"]


@pytest.mark.parametrize("lost", ["state-00000003", "weights-00000003", "weights-00000006"])
def test_a_kill_between_the_files_of_a_checkpoint_loses_nothing(
    lost: str, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: wherever the first of a checkpoint's files is missing, --resume auto ends with all of them."""
    run = tmp_path / "run"
    whole = checkpoint_module.write_atomically

    def killed(path: Path, data: bytes) -> None:
        if path.name.startswith(lost):
            raise KeyboardInterrupt
        whole(path, data)

    monkeypatch.setattr(checkpoint_module, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        train(small(blobs, run, resume="auto"))
    monkeypatch.undo()
    assert train(small(blobs, run, resume="auto")).weights.is_file()
    train(small(blobs, tmp_path / "unbroken"))
    for kind in ("state", "weights"):
        found, wanted = (tensors(folder, 6, kind) for folder in (run, tmp_path / "unbroken"))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: the run ends with the step, the t and the statistics; the last good checkpoint is kept."""
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"no longer finite since step \d, .*no checkpoint was written"):
        train(small(blobs, run, lr=1e30, warmup=0, grad_clip=0.0, steps=9, save_every=9, log_every=9))
    assert not list(run.glob("*.safetensors"))

    real = Trainer.advance

    def spoiled(trainer: Trainer) -> Any:
        found = real(trainer)
        if trainer.step >= 5:
            found.losses[2] = math.nan
            found.t[2] = 0.4375
        return found

    monkeypatch.setattr(Trainer, "advance", spoiled)
    said = r"since step 5, where an image at t = 0\.4375 .*quarters of t are .*checkpoint of step 3 is kept"
    with pytest.raises(UserError, match=said):
        train(small(blobs, tmp_path / "other", steps=9, save_every=3, log_every=7))
    states = [p.name for p in (tmp_path / "other").glob("state-*")]
    assert states == ["state-00000003.safetensors"]


def test_losses_are_told_by_quarters_of_t(blobs: Path, tmp_path: Path) -> None:
    """Rule: a line's mean over all images is the mean of its quarters, weighted by their images."""
    trainer = make_trainer(blobs)
    meter = Meter(trainer)
    losses = torch.tensor([1.0, 2.0, 3.0, 5.0])
    t = torch.tensor([0.1, 0.2, 0.3, 0.99])
    meter.add(StepResult(losses, t, torch.tensor(2.0)))
    meter.add(StepResult(losses, t, torch.tensor(4.0)))
    line = meter.line(-1)
    assert line["loss_by_t"] == [1.5, 3.0, None, 5.0]
    assert line["loss"] == 2.75 and line["grad_norm"] == 3.0
    meter.add(StepResult(losses, 1 - t, torch.tensor(1.0)))
    assert meter.line(-1)["loss_by_t"] == [5.0, None, 3.0, 1.5]


def test_the_rate_is_of_the_steps_alone(blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: what a checkpoint or a grid takes is in no line's images per second."""
    clock = SimpleNamespace(now=0.0)

    def takes(seconds: float, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            clock.now += seconds
            return real(*args)

        return call

    monkeypatch.setattr(metrics_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(Trainer, "advance", takes(2.0, Trainer.advance))
    for name, seconds in (("_save", 50.0), ("_sample_grid", 100.0)):
        monkeypatch.setattr(loop_module, name, takes(seconds, getattr(loop_module, name)))
    run = tmp_path / "run"
    train(small(blobs, run, steps=6, save_every=3, sample_count=1, sample_every=2, sample_steps=2))
    lines = map(json.loads, (run / "stats.jsonl").read_text().splitlines())
    # Six images in the two seconds of a step; grids after steps 2, 4 and 6, checkpoints after 3 and 6.
    assert [line["images_per_second"] for line in lines] == [3.0] * 6
    assert clock.now == 6 * 2 + 3 * 100 + 2 * 50


def test_a_damaged_state_is_passed_over_with_a_warning(
    blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: the run goes on from the newest state that is whole, says so, and ends as an unbroken one."""
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    train(small(blobs, unbroken))
    train(small(blobs, run))
    newest = run / "state-00000006.safetensors"
    whole = newest.read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        newest.write_bytes(damage)
        for resume in (str(run), "auto"):
            assert state_to_resume(resume, str(run)) == run / "state-00000003.safetensors"
            told = capsys.readouterr().err
            assert told.startswith("warning: ") and str(newest) in told and told.count("\n") == 1
        with pytest.raises(UserError, match=r"state-00000006"):
            train(small(blobs, run, resume=str(newest)))
    train(small(blobs, run, resume=str(run)))
    for name, tensor in tensors(unbroken, 6).items():
        assert torch.equal(tensor, tensors(run, 6)[name]), name
    for path in run.glob("state-*"):
        path.write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"none of its 2 state files can be read"):
        train(small(blobs, run, resume=str(run)))


@pytest.mark.skipif(os.name == "nt", reason="signals are delivered otherwise on Windows")
def test_a_signal_ends_a_grid_at_its_next_step(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rule: the run stops with a checkpoint, not with a step or a grid more, and says that it was heard. An
    echo of the signal changes nothing; another one later stops at once."""
    seen = []
    real = SAMPLERS["momentum"]

    def interrupted(*args: Any, callback: Any = None, **kwargs: Any) -> Any:
        if callback is None:  # the check of the sampler, before the run
            return real(*args, **kwargs)

        def told(at: Any) -> None:
            seen.append(at["i"])
            if at["i"] == 2:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)
            callback(at)

        return real(*args, callback=told, **kwargs)

    monkeypatch.setitem(SAMPLERS, "momentum", interrupted)
    run = tmp_path / "run"
    grids: dict[str, Any] = {"sampler": "momentum", "sample_count": 2, "sample_every": 2, "sample_steps": 6}
    config = small(blobs, run, steps=9, save_every=9, **grids)
    result = train(config)
    assert (result.step, result.stopped_by) == (2, signal.SIGTERM) and seen == [0, 1, 2]
    assert (run / "state-00000002.safetensors").exists() and not list(run.glob("samples-*"))
    assert "stopping with a checkpoint; the same signal again stops at once" in capfd.readouterr().err
    monkeypatch.setattr("softdiff_kernels.progress.ECHO", 0.0)
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(config, outdir=str(tmp_path / "other")))
    assert seen == [0, 1, 2] and not list((tmp_path / "other").glob("state-*"))


@pytest.mark.skipif(os.name == "nt", reason="signals are delivered otherwise on Windows")
def test_ctrl_c_saves_and_the_run_can_go_on(blobs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = "--width 8 --blocks 1 --batch 6 --schedule paper --sample-count 0 --log-every 1 --no-progress"
    command = [sys.executable, "-m", "softdiff_kernels", "train", "--data", str(blobs), "--outdir", str(run)]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([*command, *flags.split()], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        deadline = time.monotonic() + 120
        for line in process.stdout:
            if line.startswith("step 3/") or time.monotonic() > deadline:
                break
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    # 128 + SIGINT, as shells report it.
    assert process.returncode == 130
    assert "resume with: softdiff train --resume" in said
    (state,) = run.glob("state-*.safetensors")
    step = load_checkpoint(state, "state").meta["step"]
    assert step >= 3 and losses(run)[-1][0] == step
    again = resumed_options(str(run), None)
    assert again is not None
    assert train(dataclasses.replace(again, steps=step + 1)).step == step + 1
    assert math.isfinite(losses(run)[-1][1])
