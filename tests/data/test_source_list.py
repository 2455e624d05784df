# SPDX-License-Identifier: Apache-2.0
"""SOURCES, the one list of what `--data` can name: help texts, errors and docs say what it says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from image_files import fill, message, pack, random_pixels

from softdiff_kernels.cli import main
from softdiff_kernels.commands.dataset import DatasetConfig, convert
from softdiff_kernels.data import sources
from softdiff_kernels.data.decode import ReadRequest
from softdiff_kernels.data.sources import (
    SOURCE_LIST,
    SOURCES,
    ReadResult,
    Source,
    read_source,
    set_name,
)
from softdiff_kernels.training.config import TrainConfig

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def examples(tmp_path: Path) -> dict[str, str]:
    """One value of --data for each source, by its name."""
    images = random_pixels(shape=(3, 4, 6))
    np.savez(tmp_path / "set.NPZ.npz", images=images)
    np.save(tmp_path / "set.npy", images)
    convert(DatasetConfig(str(tmp_path / "set.npy"), out=str(tmp_path / "ready.npy")), say=lambda _: None)
    return {
        "folder": str(fill(tmp_path / "folder", {"a.png": random_pixels()})),
        "zip": str(pack(tmp_path / "set.ZIP", {"a.png": random_pixels()})),
        "npz": str(tmp_path / "set.NPZ.npz"),
        "packed": str(tmp_path / "ready.npy"),
        "npy": str(tmp_path / "set.npy"),
        "hf": "hf:user/photos:test",
        "digits": "digits",
    }


def test_each_value_is_recognised_by_one_source_alone(examples: dict[str, str]) -> None:
    assert list(examples) == [source.name for source in SOURCES]
    for name, value in examples.items():
        assert [source.name for source in SOURCES if source.recognises(value)] == [name]
    names = ["folder", "set", "set.NPZ", "ready", "set", "photos", "digits"]
    assert [set_name(value) for value in examples.values()] == names


def test_the_word_digits_is_one_set_whatever_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a run in a folder digits/ must not turn its own --data into that folder. So the word has one
    meaning, with a remark; ./digits is the path."""
    monkeypatch.chdir(fill(tmp_path, {"digits/a.png": random_pixels()}))
    remarks = list(read_source("digits").remarks())
    assert len(remarks) == 1 and "write ./digits for this one" in remarks[0]
    assert len(read_source("digits").pixels) == 1797
    assert TrainConfig("digits").with_absolute_paths(tmp_path).data == "digits"
    assert len(read_source("./digits").pixels) == 1
    assert TrainConfig("./digits").with_absolute_paths(tmp_path).data == str(tmp_path / "digits")


def test_errors_name_every_source(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a,b")
    for text in (message(tmp_path / "none"), message(tmp_path / "list.csv")):
        assert all(source.written in text for source in SOURCES)
    np.save(tmp_path / "set.npy", random_pixels(shape=(3, 4, 6)))
    said = message(tmp_path / "set.npy", need_labels=True)
    assert all(source.labels in said for source in SOURCES)


@pytest.mark.parametrize("command", ["train", "evaluate", "dataset", "schedule"])
def test_help_names_every_source(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tyro")
    main([command, "--help"])
    words = " ".join(re.sub(r"[│\n]", " ", capsys.readouterr().out).split())
    assert SOURCE_LIST in words


def test_the_table_in_the_docs_has_every_source_in_this_order() -> None:
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    table = text.split("| source | images | class labels |")[1].split("\n\n")[0]
    rows = [line.split("|")[1].strip().replace("`", "") for line in table.splitlines()[2:]]
    assert rows == [source.written for source in SOURCES]


def test_a_new_source_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: whatever recognises and reads its values is loaded; nothing else has to know of it."""

    def read_noise(source: str, request: ReadRequest) -> ReadResult:
        pixels = random_pixels(int(source.removeprefix("noise:")), (2, 1, 4, 6))
        return ReadResult(pixels[: request.limit])

    noise = Source("noise", "noise:SEED", lambda source: source.startswith("noise:"), read_noise)
    monkeypatch.setattr(sources, "SOURCES", (*SOURCES, noise))
    result = sources.read_source("noise:3", limit=1)
    assert np.array_equal(result.pixels, random_pixels(3, (2, 1, 4, 6))[:1]) and result.labels.values is None
    assert dataclasses.replace(noise, name="other").title("noise:3") == "noise:3"
