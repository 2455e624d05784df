# SPDX-License-Identifier: Apache-2.0
"""Hugging Face data sets, through the package `datasets`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import message, png, random_pixels

from softdiff_kernels.data import load_images
from softdiff_kernels.data.sources import hf_name_and_split


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:mnist", ("mnist", "train")),
        ("hf:mnist:test", ("mnist", "test")),
        ("hf:user/set:train[:10%]", ("user/set", "train[:10%]")),
        ("hf:C:\\images", ("C:\\images", "train")),
    ],
)
def test_the_split_stands_behind_the_name(source: str, expected: tuple[str, str]) -> None:
    assert hf_name_and_split(source) == expected


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'pip install "softdiff_kernels[hf]"' in message("hf:anything")


@pytest.fixture
def hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, with its cache in a folder of the test's own and without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return pytest.importorskip("datasets")


def test_a_saved_hugging_face_set(hf: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: the column of images is found by its type, ClassLabel's names are the classes, rows that cannot
    be read are counted, and the split is chosen by name."""
    images = [random_pixels(i) for i in range(3)]
    rows = [png(images[0]), b"no picture", png(images[1]), None, png(images[2])]
    content = {"picture": [{"bytes": b, "path": None} if b else None for b in rows], "label": [1, 0, 0, 1, 1]}
    features = hf.Features({"picture": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog"])})
    table = hf.Dataset.from_dict(content, features=features)
    table.save_to_disk(str(tmp_path / "one"))
    hf.DatasetDict({"train": table, "few": table.select([0])}).save_to_disk(str(tmp_path / "many"))
    capsys.readouterr()
    loaded = load_images(f"hf:{tmp_path / 'one'}", need_labels=True)
    assert np.array_equal(loaded.pixels.numpy(), np.stack(images).transpose(0, 3, 1, 2))
    assert loaded.labels is not None and loaded.labels.tolist() == [1, 0, 1]
    assert loaded.classes == ("cat", "dog") and loaded.name == "one"
    output = capsys.readouterr().err
    assert "2 of 5 images cannot be read" in output and "row 1" in output and "row 3 (no image" in output
    assert len(load_images(f"hf:{tmp_path / 'many'}:few").pixels) == 1
    assert "train, few, got test" in message(f"hf:{tmp_path / 'many'}:test")
    assert "only one split" in message(f"hf:{tmp_path / 'one'}:test")
    table.remove_columns("picture").save_to_disk(str(tmp_path / "blind"))
    assert "expected a column of images, found label" in message(f"hf:{tmp_path / 'blind'}")
    assert "cannot be loaded as split train" in message(f"hf:{tmp_path / 'missing'}")


def test_hugging_face_labels_that_are_text_are_in_the_order_of_numbers(hf: Any, tmp_path: Path) -> None:
    """Rule: a column of text is numbered as class folders are; ClassLabel's own numbers stay."""
    picture = {"bytes": png(random_pixels()), "path": None}
    table = hf.Dataset.from_dict({"image": [picture] * 3, "label": ["10", "9", "x"]})
    table.cast_column("image", hf.Image()).save_to_disk(str(tmp_path / "text"))
    loaded = load_images(f"hf:{tmp_path / 'text'}", need_labels=True)
    assert (
        loaded.classes == ("9", "10", "x")
        and loaded.labels is not None
        and loaded.labels.tolist() == [1, 0, 2]
    )


def test_an_empty_hugging_face_set(hf: Any, tmp_path: Path) -> None:
    """Rule: a set without rows is told as such, as an empty folder is, whether or not it has its columns; and
    an empty split does not keep another one from being read."""
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["a", "b"])})
    none = hf.Dataset.from_dict({"image": [], "label": []}, features=features)
    picture = {"bytes": png(random_pixels()), "path": None}
    one = hf.Dataset.from_dict({"image": [picture], "label": [0]}, features=features)
    none.save_to_disk(str(tmp_path / "none"))
    hf.Dataset.from_dict({}).save_to_disk(str(tmp_path / "bare"))
    hf.DatasetDict({"train": none, "test": one}).save_to_disk(str(tmp_path / "half"))
    for name in ("none", "bare", "half"):
        for labels in (False, True):
            said = message(f"hf:{tmp_path / name}", need_labels=labels)
            assert f"hf:{tmp_path / name}: expected at least one image, found no rows" in said
    assert len(load_images(f"hf:{tmp_path / 'half'}:test").pixels) == 1


def test_hugging_face_labels_that_cannot_be_used(hf: Any, tmp_path: Path) -> None:
    picture = {"bytes": png(random_pixels()), "path": None}
    for name, labels in (("float", [0.5, 1.0]), ("lists", [[0], [1, 2]]), ("none", [None, 1])):
        features = {"image": [picture] * 2, "labels": labels}
        table = hf.Dataset.from_dict(features).cast_column("image", hf.Image())
        table.save_to_disk(str(tmp_path / name))
        assert "expected" in message(f"hf:{tmp_path / name}", need_labels=True)
        assert load_images(f"hf:{tmp_path / name}").labels is None
