# SPDX-License-Identifier: Apache-2.0
"""Names of files in a data set: one spelling, whatever the source."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import fill, labels_json, pack, random_pixels

from softdiff_kernels.data import load_images
from softdiff_kernels.data.names import LONGEST, is_hidden, listed, parts_of, shown


@pytest.mark.parametrize(
    "name",
    [
        *("cat/a.png", "./cat/a.png", "cat\\a.png", ".\\cat\\a.png", "/cat/a.png", "\\cat\\a.png"),
        *(
            "C:\\cat\\a.png",
            "c:/cat/a.png",
            "../cat/a.png",
            "..\\..\\cat\\a.png",
            "cat//a.png",
            "cat/./a.png",
        ),
        *("dog/../cat/a.png", "cat/b/../a.png", "dog/../../cat/a.png"),
    ],
)
def test_one_file_has_one_name(name: str, tmp_path: Path) -> None:
    """Rule: every spelling of cat/a.png is read, with the class cat, wherever it comes from."""
    assert parts_of(name) == ("cat", "a.png")
    files = {name: random_pixels(1), "dog/b.png": random_pixels(2), "dog/c.png": random_pixels(3)}
    loaded = load_images(str(pack(tmp_path / "set.zip", files)), need_labels=True)
    assert loaded.classes == ("cat", "dog") and loaded.labels is not None
    assert loaded.labels.tolist() == [0, 1, 1]
    assert np.array_equal(loaded.pixels[0].numpy(), random_pixels(1).transpose(2, 0, 1))
    # A dataset.json may spell the names in its own way.
    pairs = labels_json((name, 4), ("dog\\b.png", 0), ("./dog/c.png", 2))
    plain = {"cat/a.png": files[name], "dog/b.png": files["dog/b.png"], "dog/c.png": files["dog/c.png"]}
    for source in (
        pack(tmp_path / "json.zip", {**plain, "dataset.json": pairs}),
        fill(tmp_path / "json", {**plain, "dataset.json": pairs}),
    ):
        output = load_images(str(source), need_labels=True)
        assert output.labels is not None and output.labels.tolist() == [4, 0, 2]


@pytest.mark.parametrize(
    "name",
    [
        *("._a.png", "photos/._a.png", "photos\\._a.png", ".hidden/a.png", "photos\\.hidden\\a.png"),
        *("__MACOSX/photos/._a.png", "__MACOSX\\photos\\a.png", "./__MACOSX/a.png", "photos/__MACOSX/a.png"),
    ],
)
def test_what_is_hidden_stays_out_however_it_is_spelled(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_hidden(parts_of(name))
    files = {name: random_pixels(1), "photos/b.png": random_pixels(2)}
    loaded = load_images(str(pack(tmp_path / "set.zip", files)))
    assert np.array_equal(loaded.pixels.numpy(), random_pixels(2).transpose(2, 0, 1)[None])
    # What is hidden is not even told of: a system put it there.
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="a backslash is no letter of a name there")
def test_a_folder_is_read_like_the_zip_of_the_same_names(tmp_path: Path) -> None:
    """Rule: a file called `cat\\a.png`, as a careless unpacking leaves it, has the class cat there too."""
    files = {"cat\\a.png": random_pixels(1), "dog\\b.png": random_pixels(2), "photos\\._c.png": b"no"}
    folder = load_images(str(fill(tmp_path / "set", files)), need_labels=True)
    zipped = load_images(str(pack(tmp_path / "set.zip", files)), need_labels=True)
    assert folder.classes == zipped.classes == ("cat", "dog")
    assert torch.equal(folder.pixels, zipped.pixels) and len(folder.pixels) == 2


def test_letters_with_accents_are_one_class_in_both_spellings(tmp_path: Path) -> None:
    """Rule: é is one letter or two (e and an accent), by the system that wrote the name."""
    files = {
        "caf\u00e9/a.png": random_pixels(1),
        "cafe\u0301/b.png": random_pixels(2),
        "x/c.png": random_pixels(3),
    }
    loaded = load_images(str(pack(tmp_path / "set.zip", files)), need_labels=True)
    assert loaded.classes == ("caf\u00e9", "x") and loaded.num_classes == 2


def test_of_two_files_of_one_name_the_later_counts_and_the_other_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: unpacking would overwrite the first by the second."""
    path = pack(tmp_path / "set.zip", {"cat/a.png": random_pixels(1), "./cat/a.png": random_pixels(2)})
    loaded = load_images(str(path))
    assert np.array_equal(loaded.pixels.numpy(), random_pixels(2).transpose(2, 0, 1)[None])
    assert "1 other file is left out: cat/a.png (a later file has the same name)" in capsys.readouterr().err


def test_names_are_shown_on_one_line_and_not_at_any_length() -> None:
    assert shown("a\nb\udcff.png") == "a\\nb\\udcff.png"
    long = shown("x" * 300 + ".png")
    assert len(long) == LONGEST and long.startswith("...") and long.endswith("x.png")
    output = listed({f"{i:0300}.txt": "y" * 300 for i in range(1000)})
    assert output.endswith(" and 995 more") and len(output) < 6 * 2 * (LONGEST + 3)
