# SPDX-License-Identifier: Apache-2.0
"""Class labels: where they come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import fill, labels_json, message, pack, random_pixels

from softdiff_kernels.training.data import ImageSet, load_images


def test_class_folders_are_labels_where_every_image_lies_in_one(tmp_path: Path) -> None:
    """Rule: the first folder of the path is the class, names sorted; none if an image lies outside, if there
    is one folder alone, or if folders are numbered parts of a large set."""
    files = {"dog/1.png": random_pixels(1), "cat/deep/2.png": random_pixels(2), "dog/3.png": random_pixels(3)}
    found = load_images(str(fill(tmp_path / "pets", files)), need_labels=True)
    assert found.labels is not None and found.labels.tolist() == [0, 1, 1]
    assert found.classes == ("cat", "dog")
    zipped = load_images(str(pack(tmp_path / "pets.zip", files)))
    assert zipped.digest(labels=True) == found.digest(labels=True)
    one = {"only/1.png": random_pixels(), "only/2.png": random_pixels()}
    outside = {**files, "4.png": random_pixels()}
    parts = {"00000/1.png": random_pixels(), "00001/2.png": random_pixels()}
    for name, content in (("one", one), ("outside", outside), ("parts", parts)):
        assert load_images(str(fill(tmp_path / name, content))).labels is None
        assert "labels come from" in message(tmp_path / name, need_labels=True)


def test_a_folder_around_all_of_a_zip_is_not_a_class(tmp_path: Path) -> None:
    """Rule: `zip -r pets.zip pets` puts pets/ before every path, and labels are those of the folder pets."""
    files = {"pets/dog/1.png": random_pixels(1), "pets/cat/2.png": random_pixels(2)}
    found = load_images(str(pack(tmp_path / "a.zip", files)), need_labels=True)
    assert found.labels is not None and found.labels.tolist() == [0, 1] and found.classes == ("cat", "dog")
    packed = {**files, "pets/dataset.json": labels_json(("dog/1.png", 5), ("cat/2.png", 3))}
    found = load_images(str(pack(tmp_path / "b.zip", packed)), need_labels=True)
    assert found.labels is not None and found.labels.tolist() == [3, 5]


def test_null_labels_in_a_dataset_json_are_none_and_not_the_folders(tmp_path: Path) -> None:
    files = {"a/1.png": random_pixels(), "b/2.png": random_pixels(), "dataset.json": b'{"labels": null}'}
    assert load_images(str(fill(tmp_path, files))).labels is None
    assert "has no labels" in message(tmp_path, need_labels=True)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (labels_json(("a.png", 0)), "got none for 1 of 2, such as b.png"),
        (labels_json(("a.png", 0), ("b.png", -1)), "got -1"),
        (labels_json(("a.png", 0), ("b.png", 1.5)), "got 1.5"),
        (labels_json(("a.png", True), ("b.png", 0)), "got true"),
        (labels_json(("a.png", 0), ("b.png", None)), "got null"),
        (labels_json(("a.png", [0, 1]), ("b.png", [1, 0])), "got [0, 1]"),
        (labels_json(("a.png", 0), ("b.png", 2**70)), str(2**70)),
        (labels_json(("a.png", 0), ("b.png", 5_000_000)), "at most 1000000 classes, got 5000000"),
        (b'{"labels": [["a.png", 0], ["b.png", 2]], "classes": ["x", "y"]}', "2 class names, got 2"),
        (b'{"labels": 3}', "got something else"),
        (b'{"labels": [["a.png"]]}', "got something else"),
        (b"[1, 2]", "got something else"),
        (b"{", "got something else"),
        (b"\xff\xfe", "got something else"),
    ],
)
def test_a_dataset_json_that_is_wrong_is_refused_or_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, part: str
) -> None:
    """Rule: labels that cannot be used are a sentence where labels are needed; elsewhere they are a warning,
    and the images load without labels."""
    files = {"a.png": random_pixels(1), "b.png": random_pixels(2), "dataset.json": content}
    for source in (fill(tmp_path / "set", files), pack(tmp_path / "set.zip", files)):
        text = message(source, need_labels=True)
        assert "dataset.json" in text and part in text
        found = load_images(str(source))
        assert found.labels is None and found.classes == () and found.num_classes == 0
        told = capsys.readouterr().err
        assert told.startswith("warning: ") and part in told and told.count("\n") == 1


def test_labels_of_images_that_are_missing_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: the labels of the images that are there can be used all the same."""
    pairs = labels_json(("a.png", 1), ("gone.png", 7), ("lost.png", 0))
    found = load_images(str(fill(tmp_path, {"a.png": random_pixels(), "dataset.json": pairs})))
    assert found.labels is not None and found.labels.tolist() == [1]
    told = capsys.readouterr().err
    assert "2 of its 3 labels are of images that are not there, such as gone.png" in told


@pytest.mark.parametrize("name", ["labels", "y", "label"])
def test_npz_labels_by_each_of_their_names(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "set.npz")
    images = random_pixels(shape=(3, 4, 6))
    np.savez(path, images=images, **{name: np.array([4, 0, 2], np.uint8)})
    found = load_images(path, need_labels=True)
    assert found.labels is not None and found.labels.dtype == torch.int64
    assert found.labels.tolist() == [4, 0, 2] and found.classes == ("0", "1", "2", "3", "4")
    # One column is a list of numbers; names are classes in the order of the alphabet.
    np.savez(path, images=images, **{name: np.array([[1], [0], [1]])}, classes=np.array(["x", "y", "z"]))
    found = load_images(path, need_labels=True)
    assert found.labels is not None and found.labels.tolist() == [1, 0, 1]
    assert found.classes == ("x", "y", "z")
    np.savez(path, images=images, **{name: np.array(["owl", "cat", "owl"])})
    found = load_images(path, need_labels=True)
    assert found.labels is not None and found.labels.tolist() == [1, 0, 1] and found.classes == ("cat", "owl")


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (np.array([0, 1]), "for each of 3 images, got 2"),
        (np.array([0, -2, 1]), "got -2"),
        (np.array([0.0, 1.0, 2.0]), "got float64 [3]"),
        (np.eye(3, dtype=np.int64), "got int64 [3, 3]"),
        (np.array(3), "got int64 []"),
        (np.array([{}, {}, {}]), "cannot be read"),
    ],
)
def test_npz_labels_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: np.ndarray, part: str
) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=random_pixels(shape=(3, 4, 6)), labels=labels)
    text = message(path, need_labels=True)
    assert "set.npz" in text and "labels" in text and part in text
    assert load_images(str(path)).labels is None
    assert part in capsys.readouterr().err


def test_need_labels_says_where_they_could_come_from(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=random_pixels(shape=(3, 4, 6)))
    text = message(tmp_path / "set.npz", need_labels=True)
    for part in ("sub-folders", "dataset.json", ".npz", "Hugging Face"):
        assert part in text
    digits = load_images("digits", need_labels=True)
    assert digits.labels is not None and digits.num_classes == 10
    # scikit-learn's target of the first ten digits is 0, 1, ..., 9.
    assert digits.labels[:10].tolist() == list(range(10))


def test_a_digest_with_labels_tells_labels_apart_and_without_them_does_not() -> None:
    pixels = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    plain, first = ImageSet(pixels, "a"), ImageSet(pixels, "a", torch.tensor([0, 1]), ("x", "y"))
    second = ImageSet(pixels, "a", torch.tensor([1, 0]), ("x", "y"))
    third = ImageSet(pixels, "a", torch.tensor([0, 1]), ("x", "y", "z"))
    # Checkpoints from before there were labels hold this digest of these pixels.
    assert plain.digest() == "793ce75e25150fb1"
    assert plain.digest() == first.digest() == second.digest() == plain.digest(labels=True)
    assert len({s.digest(labels=True) for s in (plain, first, second, third)}) == 4
    assert ImageSet(pixels, "a", torch.tensor([0, 4])).num_classes == 5
    with pytest.raises(ValueError, match="one an image"):
        ImageSet(pixels, "a", torch.tensor([0]))
