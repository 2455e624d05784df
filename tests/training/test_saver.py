# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a thread writes: what training waits for, what is in them, and what is never lost."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

pytest.importorskip("diffusers")

from training_runs import losses, small, tensors

from softdiff_kernels.errors import UserError
from softdiff_kernels.training import checkpoint as checkpoint_module
from softdiff_kernels.training.checkpoint import Checkpoint, Saver, load_checkpoint, numbered
from softdiff_kernels.training.loop import train
from softdiff_kernels.training.trainer import Trainer

LIMIT = 60  # seconds, after which a test that would wait for ever fails


class SlowDisk:
    """Writes of the step-2 state wait until a step, or are refused; the names of all files in order."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, until: int, error: BaseException | None = None
    ) -> None:
        self.names: list[str] = []
        self.threads: set[str] = set()
        self.waited = False
        reached = threading.Event()
        write, advance = checkpoint_module.write_atomically, Trainer.advance

        def slow(path: Path, data: Any) -> None:
            self.threads.add(threading.current_thread().name)
            if path.name == "state-00000002.safetensors":
                self.waited = reached.wait(LIMIT)
                if error is not None:
                    raise error
            write(path, data)
            self.names.append(path.name)

        def told(trainer: Trainer) -> Any:
            found = advance(trainer)
            if trainer.step == until:
                reached.set()
            return found

        monkeypatch.setattr(checkpoint_module, "write_atomically", slow)
        monkeypatch.setattr(Trainer, "advance", told)


def test_training_goes_on_and_the_file_is_of_its_step(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a file written while later steps change the weights is, bit for bit, that of its own step; the
    files come in order, state before weights, and old ones go when new ones are there."""
    train(small(blobs, tmp_path / "unbroken", steps=5, save_every=2, keep=0))
    run = tmp_path / "run"
    disk = SlowDisk(monkeypatch, until=4)
    train(small(blobs, run, steps=5, save_every=2, keep=2))
    assert disk.waited, "the thread kept training from going on"
    assert disk.threads == {"checkpoint"}
    kinds = [f"{kind}-{step:08d}.safetensors" for step in (2, 4, 5) for kind in ("state", "weights")]
    assert disk.names == kinds
    for kind in ("state", "weights"):
        assert [p.name for p in numbered(run, kind)] == [f"{kind}-{s:08d}.safetensors" for s in (4, 5)]
    run = tmp_path / "all"
    disk = SlowDisk(monkeypatch, until=4)
    train(small(blobs, run, steps=5, save_every=2, keep=0))
    for step in (2, 4, 5):
        for kind in ("state", "weights"):
            found, wanted = tensors(run, step, kind), tensors(tmp_path / "unbroken", step, kind)
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in wanted), (kind, step)
            assert load_checkpoint(run / f"{kind}-{step:08d}.safetensors", kind).meta["step"] == step


def test_an_error_of_the_thread_ends_the_run(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a full disk ends the run soon after, as an error of its own, though no file is due for long. What
    was there is kept."""
    run = tmp_path / "run"
    train(small(blobs, run, steps=2, save_every=2))
    (run / "weights-00000002.safetensors").unlink()  # so that a resumed run begins by writing both files
    SlowDisk(monkeypatch, until=4, error=UserError("cannot write: No space left on device"))
    long = small(blobs, run, steps=80, save_every=80, log_every=1, resume=str(run))
    with pytest.raises(UserError, match="No space left on device"):
        train(long)
    assert 3 <= losses(run)[-1][0] < 40
    assert [path.name for path in run.glob("*.safetensors")] == ["state-00000002.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="signals are delivered otherwise on Windows")
@pytest.mark.parametrize("how", ["signal", "interrupt"])
def test_what_is_being_written_is_not_lost(
    how: str, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a signal, and an interrupt that stops at once, leave the file of before complete."""
    run = tmp_path / "run"
    SlowDisk(monkeypatch, until=3)
    real = Trainer.advance

    def stopped(trainer: Trainer) -> Any:
        if trainer.step == 3:
            if how == "interrupt":
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGTERM)
        return real(trainer)

    monkeypatch.setattr(Trainer, "advance", stopped)
    config = small(blobs, run, steps=9, save_every=2)
    if how == "signal":
        assert train(config).stopped_by == signal.SIGTERM
        assert tensors(run, 4)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert tensors(run, 2) and tensors(run, 2, "weights")
    assert not list(run.glob("*.partial"))


def test_the_copies_are_taken_once_and_are_nobody_elses(tmp_path: Path) -> None:
    """Rule: what state and weights share is copied once; what is written into afterwards is not saved."""
    shared, own = torch.arange(6.0).reshape(2, 3), torch.ones(3)
    state, weights = Checkpoint("state", {"step": 1}), Checkpoint("weights", {"step": 1})
    state.put("model", {"own": own, "turned": shared.t(), "one": own[:1]})
    for checkpoint in (state, weights):
        checkpoint.put("ema", {"shared": shared})
    copies: dict[Any, torch.Tensor] = {}
    first, second = state.copied(copies), weights.copied(copies)
    assert first.tensors["ema.shared"] is second.tensors["ema.shared"] and len(copies) == 4
    with Saver(tmp_path, keep=0) as saver:
        saver.save({tmp_path / "state-1.safetensors": state, tmp_path / "weights-1.safetensors": weights})
        shared.zero_()
        own.zero_()
        state.meta["step"] = 9
    found = load_checkpoint(tmp_path / "state-1.safetensors", "state")
    assert found.meta == {"step": 1}
    assert torch.equal(found.tensors["model.turned"], torch.arange(6.0).reshape(2, 3).t())
    assert found.tensors["model.own"].tolist() == [1, 1, 1] and found.tensors["model.one"].tolist() == [1]


def test_the_file_is_what_the_library_writes(tmp_path: Path) -> None:
    """Rule: safetensors itself reads the pieces, of every type, shape and stride, aligned to their type."""
    torch.manual_seed(0)
    values = {
        f"{i}": (torch.randn(shape) * 9).to(dtype)
        for i, (dtype, shape) in enumerate(
            (dtype, shape) for dtype in checkpoint_module._DTYPES for shape in ((), (0, 2), (3,), (2, 3, 1))
        )
    }
    values["turned"] = torch.randn(4, 3).t()
    Checkpoint("state", {"ö": [1, None]}, values).save(tmp_path / "state-1.safetensors")
    content = (tmp_path / "state-1.safetensors").read_bytes()
    found = safetensors.torch.load(content)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    assert load_checkpoint(tmp_path / "state-1.safetensors", "state").meta == {"ö": [1, None]}
    assert int.from_bytes(content[:8], "little") % 8 == 0
