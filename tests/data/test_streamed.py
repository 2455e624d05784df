# SPDX-License-Identifier: Apache-2.0
"""Sets that memory has no room for: decoded where they are indexed, with what is kept beside them, and read
ahead."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import fill, message, pack, png, random_pixels

from softdiff_kernels.data import ImageOrder, ImageSet, load_images
from softdiff_kernels.data import decode as data_decode
from softdiff_kernels.data import streamed as data_streamed
from softdiff_kernels.data.kept import Kept
from softdiff_kernels.data.prefetch import Prefetch
from softdiff_kernels.data.streamed import DecodedPixels
from softdiff_kernels.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a few images of 6 x 4, not for all."""
    monkeypatch.setattr(data_decode, "available_memory", lambda: 300)


def files() -> dict[str, bytes | np.ndarray]:
    """Seven images in two classes; a grey one, and one that cannot be read, among them."""
    images = {f"{'cat' if i < 3 else 'dog'}/{i}.png": random_pixels(i) for i in range(7)}
    return {**images, "dog/4.png": b"no picture", "dog/5.png": random_pixels(5, (4, 6))}


def source_of(kind: str, tmp_path: Path) -> str:
    if kind == "folder":
        return str(fill(tmp_path / "set", files()))
    if kind == "zip":
        return str(pack(tmp_path / "set.zip", files()))
    datasets: Any = pytest.importorskip("datasets")
    cells = [{"bytes": c if isinstance(c, bytes) else png(c), "path": None} for c in files().values()]
    content = {"image": cells, "label": [0, 0, 0, 1, 1, 1, 1]}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    datasets.Dataset.from_dict(content, features=features).save_to_disk(str(tmp_path / "set"))
    return f"hf:{tmp_path / 'set'}"


@pytest.mark.parametrize("kind", ["folder", "zip", "hf"])
@pytest.mark.parametrize("size", [None, (8, 5)])
def test_on_the_fly_means_the_same_images(
    kind: str, size: tuple[int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: images, their places, labels, spectrum and digests do not depend on where the pixels are; the
    second start decodes none to find out which can be read."""
    source = source_of(kind, tmp_path)
    whole = load_images(source, size, stream=True)
    assert isinstance(whole.pixels, torch.Tensor)
    monkeypatch.setattr(data_decode, "available_memory", lambda: 300)
    loaded = load_images(source, size, stream=True)
    assert isinstance(loaded.pixels, DecodedPixels) and loaded.shape == whole.shape
    for index in (slice(None), slice(1, 4), torch.tensor([5, 0, 0, 4])):
        assert torch.equal(loaded.pixels[index], whole.pixels[index])
    assert torch.equal(loaded.labels, whole.labels)  # type: ignore[arg-type]
    assert [loaded.digest(x) for x in (False, True)] == [whole.digest(x) for x in (False, True)]
    assert torch.equal(loaded.spectrum.mean, whole.spectrum.mean)
    assert torch.equal(loaded.spectrum.power, whole.spectrum.power)
    with monkeypatch.context() as patch:
        for module in (data_decode, data_streamed):
            patch.setattr(module, "decode_image", lambda *_: pytest.fail("an image was decoded"))
        again = load_images(source, size, stream=True)
        assert again.digest(True) == whole.digest(True)
        assert torch.equal(again.spectrum.power, whole.spectrum.power)
    # Room again: the tensor again.
    monkeypatch.undo()
    assert torch.equal(load_images(source, size, stream=True).tensor, whole.tensor)


def test_an_array_that_does_not_fit_is_refused(tmp_path: Path, little_memory: None) -> None:
    """Rule: only what can be read in any order stays on the disk; an array that grows too large does not."""
    np.savez(tmp_path / "set.npz", images=random_pixels(shape=(2, 4, 6)))
    assert load_images(str(tmp_path / "set.npz"), stream=True).shape == (1, 4, 6)
    assert "bytes of memory are free" in message(tmp_path / "set.npz", image_size=20, stream=True)


def test_a_changed_folder_is_looked_at_again(tmp_path: Path, little_memory: None) -> None:
    """Rule: what is kept is of files of these names, sizes and times alone."""
    source = Path(source_of("folder", tmp_path))
    first = load_images(str(source), stream=True).digest()
    (source / "cat/0.png").write_bytes(png(random_pixels(99)))
    changed = load_images(str(source), stream=True)
    assert changed.digest() != first and torch.equal(
        changed.pixels[:1][0], torch.from_numpy(random_pixels(99).transpose(2, 0, 1))
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no picture", "can no longer be read"),
        (png(random_pixels(9)), "was changed while"),
        (None, "no longer"),
    ],
)
def test_a_file_that_changes_in_mid_run_is_a_sentence(
    content: bytes | None, said: str, tmp_path: Path, little_memory: None
) -> None:
    source = Path(source_of("folder", tmp_path))
    loaded = load_images(str(source), stream=True)
    if content is None:
        (source / "cat/1.png").unlink()
    else:
        (source / "cat/1.png").write_bytes(content)
    assert len(loaded.pixels[2:]) == 4
    with pytest.raises(UserError, match=said) as caught:
        loaded.pixels[torch.tensor([2, 1, 0])]
    assert "cat/1.png" in str(caught.value) and "\n" not in str(caught.value)


def test_an_archive_that_is_cut_short_in_mid_run_is_a_sentence(tmp_path: Path, little_memory: None) -> None:
    # Larger than the buffer of the open file, from which the old bytes would be read.
    large = {f"{i}.png": random_pixels(i, (64, 64, 3)) for i in range(7)}
    source = pack(tmp_path / "set.zip", large)
    loaded = load_images(str(source), stream=True)
    with open(source, "r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match=r"can no longer be read .*; the set has changed"):
        loaded.pixels[:]


def test_no_threads_are_left(tmp_path: Path, little_memory: None) -> None:
    loaded = load_images(source_of("folder", tmp_path), stream=True)
    before = threading.active_count()
    loaded.pixels[:]
    assert threading.active_count() == before


def test_a_class_that_is_numbered_otherwise_has_another_digest(tmp_path: Path, little_memory: None) -> None:
    """Rule: kept digests are of these labels; others are computed, and equal those of the set in memory."""
    loaded = load_images(source_of("folder", tmp_path), stream=True)
    whole = ImageSet(loaded.pixels[:], "set", loaded.labels, loaded.classes)
    loaded.digest(True)
    swapped = (dataclasses.replace(x, labels=1 - x.labels) for x in (loaded, whole))  # type: ignore[operator]
    first, second = (images.digest(True) for images in swapped)
    assert first == second != whole.digest(True)


def test_one_pass_gives_what_is_fitted_and_all_statistics(tmp_path: Path, little_memory: None) -> None:
    """Rule: each image is read once, even if what is fitted takes only the first few."""
    loaded = load_images(source_of("folder", tmp_path), stream=True)
    read: list[int] = []

    class Counting:
        shape, kept = loaded.pixels.shape, loaded.kept

        def __len__(self) -> int:
            return len(loaded.pixels)

        def __getitem__(self, index: slice) -> torch.Tensor:
            read.extend(range(len(self))[index])
            return loaded.pixels[index]

    counted = dataclasses.replace(loaded, pixels=Counting())
    assert counted.fit(lambda batches: next(batches).shape[0]) == 6
    counted.digest(), counted.digest(True), counted.spectrum
    assert read == list(range(6))


def test_what_is_kept_is_exact_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: a damaged file, one of another layout and one of other data are as if they were not there; a disk
    that cannot be written is a note, once."""
    kept = Kept(tmp_path / "set.softdiff", "0123456789abcdef")
    arrays = {"a": np.array([0.1, 1 / 3]), "text": np.array("x")}
    kept.save("spectrum", arrays)
    loaded = kept.load("spectrum")
    assert loaded is not None and list(loaded) == ["a", "text"] and np.array_equal(loaded["a"], arrays["a"])
    assert Kept(kept.place, "f" * 16).load("spectrum") is None
    (path,) = list((tmp_path / "set.softdiff").iterdir())
    path.write_bytes(path.read_bytes()[:-40])
    assert kept.load("spectrum") is None
    with open(path, "wb") as file:
        np.savez(file, layout=np.array(2), **arrays)  # type: ignore[arg-type]
    assert kept.load("spectrum") is None
    (tmp_path / "file").write_bytes(b"")
    nowhere = Kept(tmp_path / "file", "0" * 16)
    for name in ("one", "two"):
        nowhere.save(name, arrays)
    assert capsys.readouterr().err.count("note: nothing can be kept in") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "set.softdiff"]


class Slow:
    """Ten one-pixel images, numbered; notes who asked for what."""

    shape = torch.Size((10, 1, 1, 1))

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []
        self.error: Exception | None = None

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        self.asked.append((threading.current_thread().name, index.tolist()))
        if self.error is not None:
            raise self.error
        return index.to(torch.uint8).view(-1, 1, 1, 1)


def test_reading_ahead_changes_no_image(tmp_path: Path) -> None:
    """Rule: whatever is asked for, in whatever order, is what the order says; and a run that goes on as
    expected waits for a thread only, which has read the next batches already."""
    pixels, order = Slow(), ImageOrder(10, seed=1)
    ahead = Prefetch(pixels, order, stride=6, device=CPU)
    for first, size in ((4, 3), (4, 3), (10, 3), (16, 3), (0, 3), (6, 3), (6, 2), (12, 2), (18, 2)):
        index, images = ahead(first, size)
        assert index.tolist() == ImageOrder(10, seed=1)(first, size).tolist() == images.flatten().tolist()
    ahead.close()
    assert {name for name, _ in pixels.asked} == {"softdiff-prefetch_0"}
    # The last three batches followed each other, so that 6 and 12, 12 and 18 were not read twice.
    asked = [index for _, index in pixels.asked]
    assert all(asked.count(ImageOrder(10, seed=1)(first, 2).tolist()) == 1 for first in (6, 12, 18))


def test_an_error_of_the_thread_is_raised_where_its_images_are_asked_for() -> None:
    pixels = Slow()
    ahead = Prefetch(pixels, ImageOrder(10, seed=1), stride=2, device=CPU)
    ahead(0, 2)
    ahead.close()
    pixels.error = UserError("the file has changed")
    ahead = Prefetch(pixels, ImageOrder(10, seed=1), stride=2, device=CPU)
    with pytest.raises(UserError, match="the file has changed"):
        ahead(0, 2)
    ahead.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("softdiff")]


def test_batches_for_a_gpu_are_pinned_for_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: the thread pins each batch with the run's own GPU current: on another it would make a context,
    which takes hundreds of megabytes there."""
    current: list[str] = []
    pinned: list[str] = []

    class Current:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            current.append(str(self.device))

        def __exit__(self, *_: object) -> None:
            current.pop()

    def pin(images: torch.Tensor) -> torch.Tensor:
        pinned.append(current[-1] if current else "none")
        return images

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    ahead = Prefetch(Slow(), ImageOrder(10, seed=1), stride=2, device=torch.device("cuda", 3))
    ahead(0, 2)
    ahead.close()
    assert pinned and set(pinned) == {"cuda:3"}
