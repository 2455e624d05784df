# SPDX-License-Identifier: Apache-2.0
"""Classes of a run: their numbers stay with their names, from training to samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

from image_files import fill
from training_runs import CPU, losses, small

from softdiff_kernels.commands.sample import SampleConfig, sample
from softdiff_kernels.data import load_images
from softdiff_kernels.errors import UserError
from softdiff_kernels.training.loop import train
from softdiff_kernels.training.weights import load_model


@pytest.fixture(scope="module")
def old_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of classes 0, 1, 2 and 10, and a run on its images from when folders were sorted as text:
    there 10 is class 2, and 2 is class 3."""
    folder = tmp_path_factory.mktemp("old")
    images = np.random.default_rng(3).integers(0, 256, size=(12, 8, 8), dtype=np.uint8)
    labels, classes = np.arange(12) // 3, np.array(["0", "1", "10", "2"])
    for i, image in enumerate(images):
        fill(folder / "set", {f"{classes[labels[i]]}/{i:02}.png": image})
    np.savez(folder / "set.npz", images=images, labels=labels, classes=classes)
    train(small(folder / "set.npz", folder / "run", steps=2, save_every=2, conditional=True))
    return folder / "set", folder / "run"


def test_a_run_goes_on_with_the_numbers_that_its_classes_had(
    old_run: tuple[Path, Path], tmp_path: Path
) -> None:
    """Rule: the names in a run tell which number a class has, whatever the order of folders is now."""
    images, run = old_run
    assert load_images(str(images)).classes == ("0", "1", "2", "10")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options: dict[str, Any] = {"steps": 4, "save_every": 4, "conditional": True}
    train(small(images.with_suffix(".npz"), whole, **options))
    train(small(images, resumed, resume=str(run), **options))
    # The same numbers for the same images: step by step the same run.
    assert losses(resumed) == losses(whole)[2:]
    assert load_model(str(resumed), CPU).classes == ("0", "1", "10", "2")
    # Nor does --allow-changes give a number another meaning.
    other = tmp_path / "other"
    for i, name in enumerate(("0", "1", "2", "11") * 3):
        fill(other, {f"{name}/{i}.png": np.full((8, 8), i, np.uint8)})
    with pytest.raises(
        UserError, match=r"classes that the run was trained on \(0, 1, 10, 2\), got others \(11\)"
    ):
        train(small(other, tmp_path / "never", resume=str(run), allow_changes=True, **options))


def test_classes_are_drawn_by_name_and_recorded_with_their_numbers(
    old_run: tuple[Path, Path], tmp_path: Path
) -> None:
    """Rule: the table of classes is told, the record has names and numbers, and what could be both is
    refused."""
    _, run = old_run

    def draw(name: str, classes: str | None) -> list[str]:
        said: list[str] = []
        out = tmp_path / name
        options: dict[str, Any] = {"outdir": str(out), "npz": str(out / "all.npz"), "classes": classes}
        sample(SampleConfig(str(run), seeds="0-2", steps=2, **options), said.append)
        return said

    with pytest.raises(UserError, match='can mean class 2 "10" or 3 "2"'):
        draw("both", "2")
    assert not (tmp_path / "both").exists()
    said = draw("named", "name:2,name:10")
    assert said[said.index("classes, number and name:") + 1 :][:4] == [
        "     0  0",
        "     1  1",
        "     2  10",
        "     3  2",
    ]
    assert 'seeds use in turn: 3 "2", 2 "10"' in said
    record = json.loads((tmp_path / "named" / "samples.json").read_text())
    assert record["classes"] == [{"number": 3, "name": "2"}, {"number": 2, "name": "10"}]
    assert record["class"] == '3 "2", 2 "10"'
    packed = np.load(tmp_path / "named" / "all.npz")
    assert packed["labels"].tolist() == [3, 2, 3] and packed["classes"].tolist() == ["0", "1", "10", "2"]
    # The samples, read as a data set, have the names of their classes.
    found = load_images(str(tmp_path / "named" / "all.npz"), need_labels=True)
    assert found.classes == ("0", "1", "10", "2")
    draw("numbered", "number:3,number:2")
    assert json.loads((tmp_path / "numbered" / "samples.json").read_text()) == record
    assert not any("in turn" in line for line in draw("all", None))
    whole = json.loads((tmp_path / "all" / "samples.json").read_text())
    assert whole["class"] == "all" and [entry["number"] for entry in whole["classes"]] == [0, 1, 2, 3]
