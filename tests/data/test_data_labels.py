# SPDX-License-Identifier: Apache-2.0
"""Class labels: where they come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import fill, labels_json, message, pack, random_pixels

from softdiff_kernels.data import ImageSet, load_images
from softdiff_kernels.errors import UserError


def test_class_folders_are_labels_where_every_image_lies_in_one(tmp_path: Path) -> None:
    """Rule: the first folder of the path is the class, names sorted; none if an image lies outside, if there
    is one folder alone, or if folders are numbered parts of a large set."""
    files = {"dog/1.png": random_pixels(1), "cat/deep/2.png": random_pixels(2), "dog/3.png": random_pixels(3)}
    loaded = load_images(str(fill(tmp_path / "pets", files)), need_labels=True)
    assert loaded.labels is not None and loaded.labels.tolist() == [0, 1, 1]
    assert loaded.classes == ("cat", "dog")
    zipped = load_images(str(pack(tmp_path / "pets.zip", files)))
    assert zipped.digest(labels=True) == loaded.digest(labels=True)
    one = {"only/1.png": random_pixels(), "only/2.png": random_pixels()}
    outside = {**files, "4.png": random_pixels()}
    parts = {"00000/1.png": random_pixels(), "00001/2.png": random_pixels()}
    for name, content in (("one", one), ("outside", outside), ("parts", parts)):
        assert load_images(str(fill(tmp_path / name, content))).labels is None
        assert "labels come from" in message(tmp_path / name, need_labels=True)


def test_class_folders_that_are_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    """Rule: of folders 0 to 11, folder k is class k; other names come after, by the alphabet."""
    files = {f"{i}/a.png": random_pixels(i) for i in range(12)}
    folder, zipped = fill(tmp_path / "set", files), pack(tmp_path / "set.zip", files)
    for source in (folder, zipped):
        loaded = load_images(str(source), need_labels=True)
        assert loaded.classes == tuple(map(str, range(12))) and loaded.labels is not None
        # The images stand in the order of their paths, 0, 1, 10, 11, 2, ...; each has its folder's number.
        assert loaded.labels.tolist() == [0, 1, 10, 11, *range(2, 10)]
        for i, label in enumerate(loaded.labels.tolist()):
            assert np.array_equal(loaded.pixels[i].numpy(), random_pixels(label).transpose(2, 0, 1))
    mixed = ["b", "10", "9", "a", "-1", "0.5", "010", "a2", "a10"]
    files = {f"{name}/1.png": random_pixels() for name in mixed}
    ordered = ("-1", "0.5", "9", "010", "10", "a", "a10", "a2", "b")
    assert load_images(str(fill(tmp_path / "mixed", files))).classes == ordered
    # The same of labels that are text in an array.
    np.savez(tmp_path / "set.npz", images=random_pixels(shape=(3, 4, 6)), labels=np.array(["10", "9", "x"]))
    loaded = load_images(str(tmp_path / "set.npz"))
    assert (
        loaded.classes == ("9", "10", "x")
        and loaded.labels is not None
        and loaded.labels.tolist() == [1, 0, 2]
    )


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (
            ("0000045/1.png", "0000099/2.png"),
            ("0000045, 0000099", "five digits or more", "id0000045", "dataset.json"),
        ),
        (
            ("cat/1.png", "dog/2.png", "3.png"),
            ("1 of its 3 images are in none of its sub-folders, such as 3.png",),
        ),
        (("pets/cat/1.png", "pets/dog/2.png"), ("the one folder pets", "give that one as the data set")),
        (("1.png", "2.png"), ("images are in no sub-folder",)),
    ],
)
def test_why_folders_are_no_classes_and_what_to_do(
    tmp_path: Path, names: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    source = fill(tmp_path / "set", {name: random_pixels() for name in names})
    text = message(source, need_labels=True)
    assert "has no labels: " in text and all(part in text for part in parts)
    # Many folders are no long sentence.
    if "0000045/1.png" in names:
        fill(source, {f"{i:07}/1.png": random_pixels() for i in range(100, 300)})
        assert "and 197 more" in message(source, need_labels=True)


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (("train/cat/1.png", "test/dog/2.png"), "its classes became test, train"),
        (("Train/1.png", "VAL/2.png", "test/3.png"), "its classes became Train, VAL, test"),
        # A train among animals is a train.
        (("train/1.png", "cat/2.png"), ""),
    ],
)
def test_parts_of_a_set_that_became_classes_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], note: str
) -> None:
    source = fill(tmp_path, {name: random_pixels() for name in names})
    assert len(load_images(str(source), need_labels=True).classes) == len(names)
    said = capsys.readouterr().err
    assert note in said and bool(note) == ("give one of these parts alone" in said)


def test_a_folder_around_all_of_a_zip_is_not_a_class(tmp_path: Path) -> None:
    """Rule: `zip -r pets.zip pets` puts pets/ before every path, and labels are those of the folder pets."""
    files = {"pets/dog/1.png": random_pixels(1), "pets/cat/2.png": random_pixels(2)}
    loaded = load_images(str(pack(tmp_path / "a.zip", files)), need_labels=True)
    assert loaded.labels is not None and loaded.labels.tolist() == [0, 1] and loaded.classes == ("cat", "dog")
    packed = {**files, "pets/dataset.json": labels_json(("dog/1.png", 5), ("cat/2.png", 3))}
    loaded = load_images(str(pack(tmp_path / "b.zip", packed)), need_labels=True)
    assert loaded.labels is not None and loaded.labels.tolist() == [3, 5]


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
        (
            labels_json(("a.png", 0), ("b.png", 1), ("./a.png", 1)),
            "one label for each image, got two for a.png",
        ),
        (
            b'{"labels": [["a.png", 0], ["b.png", 1]], "classes": {"0": "x", "1": "y"}}',
            'list of names, got {"0"',
        ),
        (b'{"labels": [["a.png", 0], ["b.png", 1]], "classes": "xy"}', 'list of names, got "xy"'),
        (b'{"labels": [["a.png", 0], ["b.png", 1]], "classes": [1, 2]}', "list of names, got [1, 2]"),
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
        loaded = load_images(str(source))
        assert loaded.labels is None and loaded.classes == () and loaded.num_classes == 0
        output = capsys.readouterr().err
        assert output.startswith("warning: ") and part in output and output.count("\n") == 1


def test_labels_of_images_that_are_missing_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: the labels of the images that are there can be used all the same."""
    pairs = labels_json(("a.png", 1), ("gone.png", 7), ("lost.png", 0))
    loaded = load_images(str(fill(tmp_path, {"a.png": random_pixels(), "dataset.json": pairs})))
    assert loaded.labels is not None and loaded.labels.tolist() == [1]
    output = capsys.readouterr().err
    assert "2 of its 3 labels are for images that do not exist, such as gone.png" in output


@pytest.mark.parametrize("name", ["labels", "y", "label"])
def test_npz_labels_by_each_of_their_names(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "set.npz")
    images = random_pixels(shape=(3, 4, 6))
    np.savez(path, images=images, **{name: np.array([4, 0, 2], np.uint8)})
    loaded = load_images(path, need_labels=True)
    assert loaded.labels is not None and loaded.labels.dtype == torch.int64
    assert loaded.labels.tolist() == [4, 0, 2] and loaded.classes == ("0", "1", "2", "3", "4")
    # One column is a list of numbers; names are classes in the order of the alphabet.
    np.savez(path, images=images, **{name: np.array([[1], [0], [1]])}, classes=np.array(["x", "y", "z"]))
    loaded = load_images(path, need_labels=True)
    assert loaded.labels is not None and loaded.labels.tolist() == [1, 0, 1]
    assert loaded.classes == ("x", "y", "z")
    np.savez(path, images=images, **{name: np.array(["owl", "cat", "owl"])})
    loaded = load_images(path, need_labels=True)
    assert (
        loaded.labels is not None and loaded.labels.tolist() == [1, 0, 1] and loaded.classes == ("cat", "owl")
    )


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (np.array([b"cat", "é".encode()]), ("cat", "é")),
        (np.array([7, 12]), ("7", "12")),
        (np.array([0.5, 1.5]), "array classes: expected a list of names, got float64 [2]"),
        (np.array([["a", "b"]]), "array classes: expected a list of names, got <U1 [1, 2]"),
        (np.array([b"\xff", b"a"]), "not UTF-8"),
        (np.array([{}, None]), "cannot be read"),
    ],
)
def test_names_of_classes_in_an_npz_are_read_or_refused(
    tmp_path: Path, classes: np.ndarray, expected: tuple[str, ...] | str
) -> None:
    # Rule: names that are there are never left out without a word.
    path = tmp_path / "set.npz"
    np.savez(path, images=random_pixels(shape=(3, 4, 6)), labels=np.array([1, 0, 1]), classes=classes)
    if isinstance(expected, tuple):
        assert load_images(str(path), need_labels=True).classes == expected
    else:
        assert expected in message(path, need_labels=True)


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


def test_classes_are_numbered_as_in_the_run_that_goes_on() -> None:
    """Rule: a name keeps the number that it had, unless every image has its number still; what the run does
    not know is refused."""
    pixels = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1)
    old = ImageSet(pixels, "a", torch.tensor([0, 1, 2]), ("1", "10", "2"))
    new = ImageSet(pixels, "a", torch.tensor([0, 2, 1]), ("1", "2", "10"))
    digest = old.digest(labels=True)
    same = new.numbered_as(old.classes, digest)
    assert same.classes == old.classes and same.digest(labels=True) == digest
    # Fewer classes than the run knew are numbered by it, too.
    few = ImageSet(pixels, "a", torch.tensor([0, 1, 0]), ("2", "10")).numbered_as(old.classes, digest)
    assert few.labels is not None and few.labels.tolist() == [2, 1, 2] and few.classes == old.classes
    # Other names of the same numbers, image by image, change nothing for the network.
    named = ImageSet(pixels, "a", torch.tensor([0, 1, 2]), ("cat", "dog", "owl"))
    assert named.numbered_as(old.classes, digest) is named
    for strange in (("1", "2", "11"), ("1", "1", "2")):
        with pytest.raises(
            UserError, match=r"the classes that the run was trained on \(1, 10, 2\), got others"
        ):
            ImageSet(pixels, "a", torch.tensor([2, 1, 0]), strange).numbered_as(old.classes, digest)


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
    with pytest.raises(ValueError, match="one for each image"):
        ImageSet(pixels, "a", torch.tensor([0]))
