# SPDX-License-Identifier: Apache-2.0
"""What a run tells others than its own stats.jsonl: TensorBoard, Weights & Biases."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("diffusers")

from training_runs import losses, small

from softdiff_kernels.cli import main
from softdiff_kernels.errors import UserError
from softdiff_kernels.training.loop import train
from softdiff_kernels.training.trainer import Trainer


def test_tensorboard_gets_the_numbers_and_the_pictures(blobs: Path, tmp_path: Path) -> None:
    """Rule: the losses and their steps are those of stats.jsonl, and each grid is there."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    train(small(blobs, run, steps=3, tensorboard=True, sample_count=4, sample_steps=2))
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in found] == [1, 2, 3]
    assert [value for _, value in found] == pytest.approx([loss for _, loss in losses(run)], rel=1e-6)
    assert events.Images("samples")


class Wandb(ModuleType):
    """The part of the package that is used, and what it was told; the package itself is 100 MB."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.told: list[dict[str, Any]] = []
        self.begun: list[dict[str, Any]] = []
        self.ended: list[int] = []
        self.steps: list[tuple[str, str]] = []
        self.key = True

    def init(self, **options: Any) -> Wandb:
        if not self.key:
            raise self.Error("No API key configured.")
        self.begun.append(options)
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.steps.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.told.append(values)

    def Image(self, image: Any) -> Any:
        return image

    def finish(self, *, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    found = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", found)
    return found


def test_wandb_gets_the_numbers_and_the_pictures(blobs: Path, tmp_path: Path, wandb: Wandb) -> None:
    """Rule: every line of stats.jsonl arrives with its step; a resumed run is the same run."""
    run = tmp_path / "run"
    options: dict[str, Any] = {"wandb": "soft", "sample_count": 4, "sample_steps": 2}
    train(small(blobs, run, steps=3, **options))
    train(small(blobs, run, steps=5, resume=str(run), **options))
    numbers = [values for values in wandb.told if "loss" in values]
    assert [(values["step"], values["loss"]) for values in numbers] == losses(run)
    assert len(numbers) == 5 and any(key.startswith("loss_by_t/") for key in numbers[0])
    assert all(isinstance(value, int | float) for values in numbers for value in values.values())
    pictures = [values for values in wandb.told if "samples" in values]
    assert [values["step"] for values in pictures] == [3, 5] and pictures[0]["samples"].size > (8, 8)
    assert wandb.steps == [("*", "step")] * 2 and wandb.ended == [0, 0]
    first, second = wandb.begun
    assert first["id"] == second["id"] == (run / "wandb-id.txt").read_text().strip() != ""
    assert first["project"] == "soft" and first["name"] == "run" and first["dir"] == str(run)
    assert (first["config"]["steps"], second["config"]["steps"]) == (3, 5)
    assert second["resume"] == "allow"


def test_wandb_hears_of_a_run_that_fails(
    blobs: Path, tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a run that an error ends is a failed one there, too."""

    def broken(trainer: Trainer) -> None:
        raise UserError("no more")

    monkeypatch.setattr(Trainer, "advance", broken)
    with pytest.raises(UserError, match="no more"):
        train(small(blobs, tmp_path / "run", wandb="soft"))
    assert wandb.ended == [1]


def test_wandb_that_cannot_be_had_is_one_line(
    blobs: Path,
    tmp_path: Path,
    wandb: Wandb,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rule: its own error is told; without the package nothing is begun, and the extra is named."""
    wandb.key = False
    with pytest.raises(UserError, match=r"--wandb soft: No API key"):
        train(small(blobs, tmp_path / "run", wandb="soft"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    argv = ["train", "--data", str(blobs), "--outdir", str(tmp_path / "other"), "--wandb", "soft"]
    assert main(argv) == 2
    assert (
        'needs wandb, which is not installed: pip install "softdiff_kernels[wandb]"'
        in capsys.readouterr().err
    )
    assert not (tmp_path / "other").exists()
