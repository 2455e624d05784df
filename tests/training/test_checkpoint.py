# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole or not there, and one sentence for a file that is neither."""

from __future__ import annotations

import builtins
import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from softdiff_kernels import files
from softdiff_kernels.errors import UserError
from softdiff_kernels.files import write_atomically
from softdiff_kernels.training.checkpoint import (
    Checkpoint,
    DamagedCheckpoint,
    checkpoint_name,
    find,
    load_checkpoint,
    load_meta,
    numbered,
    prune,
    remove_partial,
)


def make(step: int = 1, kind: str = "weights") -> Checkpoint:
    """A small checkpoint with dotted names, a number without dimensions and a view."""
    found = Checkpoint(kind, {"step": step, "config": {"data": "digits", "lr": 2e-4}})
    found.put("model", {"a.weight": torch.arange(6.0).view(2, 3).T, "count": torch.tensor(float(step))})
    found.put("prior", {"mean": torch.ones(2, dtype=torch.float64)})
    return found


def test_round_trip_keeps_every_tensor_and_all_of_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "weights-00000001.safetensors"
    make().save(path)
    found = load_checkpoint(path, "weights")
    assert found.meta == make().meta
    assert found.part("model").keys() == {"a.weight", "count"}
    assert torch.equal(found.part("model")["a.weight"], torch.arange(6.0).view(2, 3).T)
    assert found.part("prior")["mean"].dtype == torch.float64
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights-00000001.safetensors"
    make(1).save(path)
    before = path.read_bytes()

    class FullDisk:
        """Takes half of what it is given, then has no room left."""

        def __init__(self, name: Any, mode: str) -> None:
            self.file = builtins.open(name, mode)  # noqa: SIM115

        def __enter__(self) -> FullDisk:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "open", FullDisk, raising=False)
    with pytest.raises(
        UserError, match=r"cannot write .*No space left on device.*existing file is unchanged"
    ):
        make(2).save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert load_checkpoint(path, "weights").meta["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "config.json"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_kill_in_the_middle_of_a_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state-00000001.safetensors"
    make(1, "state").save(path)
    before = path.read_bytes()
    # The child writes half of the new file, says so, and waits to be killed with the file still open.
    child = textwrap.dedent(
        f"""
        import builtins, sys, time
        from pathlib import Path
        from softdiff_kernels import files

        class Slow:
            def __init__(self, name, mode):
                self.file = builtins.open(name, mode)
            def __enter__(self):
                return self
            def __exit__(self, *_):
                self.file.close()
            def write(self, data):
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                print("half", flush=True)
                time.sleep(60)

        files.open = Slow
        files.write_atomically(Path({str(path)!r}), b"x" * 4096)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", child],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "half"
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    # The half is under a name that nothing reads, and the next run clears it.
    leftover = tmp_path / (path.name + files.PARTIAL)
    assert leftover.stat().st_size == 2048
    assert find(str(tmp_path), "state") == path
    # What is not the run's stays.
    others = [tmp_path / name for name in ("film.partial", "my-state-1.safetensors.partial")]
    for other in others:
        other.touch()
    remove_partial(tmp_path)
    assert not leftover.exists() and path.exists() and all(other.exists() for other in others)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.999])
def test_a_truncated_file_is_refused_in_one_sentence(tmp_path: Path, share: float) -> None:
    path = tmp_path / "weights-00000001.safetensors"
    make().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(
        UserError, match=r"expected a weights file of softdiff, got a truncated file"
    ) as caught:
        load_checkpoint(path, "weights")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    """Rule: one bit of a tensor that is other than it was written makes the file a damaged one."""
    path = tmp_path / "weights-00000001.safetensors"
    make().save(path)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DamagedCheckpoint, match="its digest is wrong"):
        load_checkpoint(path, "weights")


def test_foreign_files_are_refused_by_what_they_are(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(safetensors.torch.save({"w": torch.zeros(2)}))
    with pytest.raises(UserError, match="got a safetensors file of another program"):
        load_checkpoint(foreign, "weights")
    pickled = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(2)}, pickled)
    with pytest.raises(UserError, match="another kind"):
        load_checkpoint(pickled, "weights")
    make(3, "state").save(tmp_path / "state.safetensors")
    with pytest.raises(UserError, match="expected a weights file of softdiff, got a training state file"):
        load_checkpoint(tmp_path / "state.safetensors", "weights")
    with pytest.raises(UserError, match="no such file"):
        load_checkpoint(tmp_path / "missing.safetensors", "weights")
    later = safetensors.torch.save({}, {"format": "softdiff-weights", "version": "9", "softdiff": "{}"})
    (tmp_path / "later.safetensors").write_bytes(later)
    with pytest.raises(UserError, match="expected format version 2, got 9"):
        load_checkpoint(tmp_path / "later.safetensors", "weights")


def test_newest_is_by_step_and_prune_keeps_that_many_of_each_kind(tmp_path: Path) -> None:
    for kind in ("weights", "state"):
        # As text, 99999999 would come after 100000000.
        for step in (5, 99_999_999, 100_000_000):
            make(step, kind).save(tmp_path / checkpoint_name(kind, step))
    (tmp_path / "weights-best.safetensors").write_bytes(b"mine")
    assert find(str(tmp_path), "state").name == "state-100000000.safetensors"
    prune(tmp_path, 2)
    assert [p.name for p in numbered(tmp_path, "weights")] == [
        "weights-99999999.safetensors",
        "weights-100000000.safetensors",
    ]
    assert len(numbered(tmp_path, "state")) == 2
    # A name that is not ours to count is not ours to delete.
    assert (tmp_path / "weights-best.safetensors").exists()
    prune(tmp_path, 0)
    assert len(numbered(tmp_path, "state")) == 2
    with pytest.raises(UserError, match="found none"):
        find(str(tmp_path / ".."), "weights")


@pytest.mark.parametrize("read", [load_checkpoint, load_meta])
def test_a_file_without_permission_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any
) -> None:
    # Rule: a run that goes on would take an earlier state in place of a damaged one.
    path = tmp_path / "state-00000001.safetensors"
    path.write_bytes(b"")

    def denied(name: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(name))

    monkeypatch.setattr(builtins, "open", denied)
    with pytest.raises(UserError) as caught:
        read(path, "state")
    assert not isinstance(caught.value, DamagedCheckpoint)
    assert str(caught.value) == f"{path}: Permission denied"
