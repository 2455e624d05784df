# SPDX-License-Identifier: Apache-2.0
"""Packed sets: what `softdiff dataset` writes for training to read from the disk, and what it refuses."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import fill, message, pack, random_pixels

from softdiff_kernels.commands.dataset import DatasetConfig, convert
from softdiff_kernels.data import decode as data_decode
from softdiff_kernels.data import load_images
from softdiff_kernels.data import packed as data_packed
from softdiff_kernels.data.packed import PackedPixels, index_of, sole_writer
from softdiff_kernels.errors import UserError

IMAGE = 4 * 6 * 3


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Seven RGB images of 6 x 4 in two classes."""
    files = {f"{'cat' if i < 3 else 'dog'}/{i}.png": random_pixels(i) for i in range(7)}
    return fill(tmp_path / "pets", files)


def packed(source: Path | str, out: Path, **options: object) -> Path:
    convert(DatasetConfig(str(source), out=str(out), **options), say=lambda _: None)  # type: ignore[arg-type]
    return out


def both(tmp_path: Path, source: Path) -> list[Path]:
    """The set as one file, and as a folder of shards of three images at most."""
    return [packed(source, tmp_path / "one.npy"), packed(source, tmp_path / "many", shard_gb=3 * IMAGE / 1e9)]


def refusal(config: DatasetConfig) -> str:
    with pytest.raises(UserError) as caught:
        convert(config, lambda line: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_packed_images_are_those_of_the_source_wherever_they_are_read(pets: Path, tmp_path: Path) -> None:
    """Rule: any index gives what the tensor in memory gives, also across shards; labels, classes and digests
    are the same, so that a run goes on with either."""
    whole = load_images(str(pets), need_labels=True)
    order = torch.tensor([6, 0, 1, 2, 3, 3, 5])
    for path in both(tmp_path, pets):
        loaded = load_images(str(path), need_labels=True, stream=True)
        assert isinstance(loaded.pixels, PackedPixels) and loaded.pixels.shape == whole.tensor.shape
        for index in (slice(None), slice(2, 6), slice(1, 7, 2), slice(4, 4), order, order[:0]):
            assert torch.equal(loaded.pixels[index], whole.pixels[index])
        assert loaded.labels is not None and torch.equal(loaded.labels, whole.labels)  # type: ignore[arg-type]
        assert loaded.classes == ("cat", "dog")
        for labels in (False, True):
            assert loaded.digest(labels) == whole.digest(labels)
        assert torch.equal(loaded.spectrum.power, whole.spectrum.power)
        assert torch.equal(load_images(str(path)).tensor, whole.tensor)
        for place in (7, -1):
            with pytest.raises(IndexError, match=r"expected places in 0\.\.6"):
                loaded.pixels[torch.tensor([0, place])]
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == [
        *(f"images-0000{i}.npy" for i in range(3)),
        "softdiff.json",
    ]


def test_a_packed_file_is_an_array_that_numpy_opens(pets: Path, tmp_path: Path) -> None:
    path = packed(pets, tmp_path / "one.npy")
    assert np.array_equal(np.load(path), load_images(str(pets)).tensor.numpy())
    index = json.loads(index_of(path).read_text())
    assert (index["count"], index["shape"], index["labels"]) == (7, [3, 4, 6], [0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize("kind", ["zip", "npz", "npy", "packed"])
def test_every_source_can_be_packed_resized_and_without_labels(kind: str, pets: Path, tmp_path: Path) -> None:
    """Rule: packing changes how images are kept, not which they are."""
    source = tmp_path / f"source.{kind}"
    if kind == "npy":
        np.save(source, random_pixels(shape=(5, 4, 6, 2)))
    elif kind == "packed":
        source = packed(pets, tmp_path / "source.npy")
    else:
        packed(pets, source)
    for options in ({}, {"image_size": (8, 9), "limit": 4}, {"channels": 1, "labels": False}):
        expected = packed(source, tmp_path / "plain.npz", overwrite=True, **options)
        out = packed(source, tmp_path / "out.npy", overwrite=True, **options)
        first, second = load_images(str(expected)), load_images(str(out))
        assert torch.equal(first.tensor, second.tensor) and first.classes == second.classes
        assert (first.labels is None) == (second.labels is None)
        assert first.labels is None or torch.equal(first.labels, second.labels)  # type: ignore[arg-type]


def test_a_zip_and_a_report_stream_what_memory_has_no_room_for(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_images(str(pets)).tensor
    monkeypatch.setattr(data_decode, "available_memory", lambda: 3 * IMAGE)
    said: list[str] = []
    convert(DatasetConfig(str(pets), out=str(tmp_path / "set.zip")), said.append)
    assert any(line.startswith("mean, standard deviation on [0, 1]") for line in said)
    # Rule: an .npz is compressed from one array, so it is refused; so is what needs a tensor.
    assert "bytes of memory are free" in refusal(DatasetConfig(str(pets), out=str(tmp_path / "set.npz")))
    assert "bytes of memory are free" in message(packed(pets, tmp_path / "one.npy"))
    monkeypatch.undo()
    assert torch.equal(load_images(str(tmp_path / "set.zip")).tensor, whole)


def test_an_array_of_the_user_keeps_its_meaning(tmp_path: Path) -> None:
    """Rule: what numpy saved is [N, H, W, C], whatever lies beside it; only the header of a packed file, or
    an index that is ours, makes a set of another order of axes."""
    array = random_pixels(shape=(3, 4, 5, 2))
    np.save(tmp_path / "mine.npy", array)
    (tmp_path / "mine.npy.json").write_text('{"made": "by me"}')
    loaded = load_images(str(tmp_path / "mine.npy"), stream=True)
    assert np.array_equal(loaded.tensor.numpy(), array.transpose(0, 3, 1, 2))


def test_without_its_index_a_packed_file_is_no_other_array(pets: Path, tmp_path: Path) -> None:
    """Rule: [7, 1, 4, 4] as [N, C, H, W] could be read as [N, H, W, C]; it is refused instead."""
    path = packed(pets, tmp_path / "one.npy", image_size=(4,), channels=1)
    index_of(path).unlink()
    assert "its index one.npy.json is missing" in message(path)
    (tmp_path / "one.npy.json").write_text("{")
    assert "expected the index of a packed data set" in message(path)


def edit(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        content = json.loads(index_of(path).read_text())
        change(content)
        index_of(path).write_text(json.dumps(content))

    return apply


def first_shard(path: Path) -> Path:
    return path / "images-00000.npy" if path.is_dir() else path


def flip_a_byte(path: Path) -> None:
    content = bytearray(first_shard(path).read_bytes())
    content[-1] ^= 1
    first_shard(path).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: os.truncate(first_shard(p), 4096 + IMAGE + 5), "was cut short: expected "),
        (flip_a_byte, "has other bytes than those that were packed"),
        (lambda p: np.save(first_shard(p), random_pixels()), "was cut short"),
        (edit(lambda c: c.update(count=8)), "do not have 8 images together"),
        (edit(lambda c: c.update(shape=[3, 6, 4])), "expected the "),
        (edit(lambda c: c.update(labels=[0] * 6)), "labels are not 7 numbers under 2"),
        (edit(lambda c: c.update(labels=[2] * 7)), "labels are not 7 numbers under 2"),
        (edit(lambda c: c.pop("shards")), "'shards' is missing"),
        (edit(lambda c: c.update(version=2)), "expected version 1 of the format, got 2: update the package"),
        (edit(lambda c: c.update(format="other")), "softdiff images"),
        (edit(lambda c: c["shards"][0].update(file="../x.npy")), "are not files beside it"),
        (
            edit(lambda c: c["shards"][0].update(digest="0" * 16)),
            "has other bytes than those that were packed",
        ),
        (lambda p: index_of(p).write_text("[" * 100_000), "expected the index of a packed data set"),
    ],
)
def test_a_set_that_is_not_the_one_that_was_packed_is_refused(
    damage: Callable[[Path], object], said: str, pets: Path, tmp_path: Path
) -> None:
    """Rule: sizes, headers, digests and the index agree, or one sentence says which does not."""
    for path in both(tmp_path, pets):
        damage(path)
        assert said in message(path, stream=True)


def test_missing_shards_are_named(pets: Path, tmp_path: Path) -> None:
    _, folder = both(tmp_path, pets)
    (folder / "images-00001.npy").unlink()
    assert "1 of its 3 files of images are missing: images-00001.npy" in message(folder)


def test_bytes_are_read_again_only_if_the_file_may_have_changed(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a start reads no image; after a copy, which has other times, one start does."""
    path = packed(pets, tmp_path / "one.npy")
    digested: list[Path] = []
    digest = data_packed._OpenShard.digest
    monkeypatch.setattr(
        data_packed._OpenShard, "digest", lambda s, p: (digested.append(s.path), digest(s, p))[1]
    )
    load_images(str(path), stream=True)
    assert digested == []
    copy = tmp_path / "elsewhere" / "one.npy"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    shutil.copy(index_of(path), index_of(copy))
    for _ in range(2):
        load_images(str(copy), stream=True)
    assert digested == [copy]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: os.truncate(path, 4096 + 2 * IMAGE), "was cut short while it was in use"),
        (flip_a_byte, "was changed while it was in use"),
        (lambda path: os.utime(path, ns=(0, 0)), "was changed while it was in use"),
    ],
)
def test_a_file_that_changes_in_mid_run_is_a_sentence(
    change: Callable[[Path], object], said: str, pets: Path, tmp_path: Path
) -> None:
    """Rule: no signal, and no image that differs from those at the start."""
    path = packed(pets, tmp_path / "one.npy")
    loaded = load_images(str(path), stream=True)
    before = loaded.pixels[:]
    change(path)
    for index in (slice(0, 1), slice(5, 7), torch.tensor([6, 1])):
        with pytest.raises(UserError, match=said):
            loaded.pixels[index]
    # A file that takes the place of another leaves the open one as it was.
    path = packed(pets, tmp_path / "two.npy")
    loaded = load_images(str(path), stream=True)
    packed(pets, path, overwrite=True, limit=2)
    assert torch.equal(loaded.pixels[:], before) and len(load_images(str(path)).pixels) == 2


@pytest.mark.parametrize("out", ["set.npy", "set"])
@pytest.mark.parametrize("source", ["folder", "zip", "npy"])
def test_a_full_disk_keeps_the_old_set(
    source: str, out: str, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: the sentence says that the disk is full, whatever was being read, and the old set can be used."""
    given = pets
    if source == "zip":
        given = pack(tmp_path / "set.zip", {"a.png": random_pixels()})
    elif source == "npy":
        given = tmp_path / "plain.npy"
        np.save(given, random_pixels(shape=(2, 4, 6, 3)))
    path = packed(pets, tmp_path / out, limit=2)
    here = sorted(p.name for p in tmp_path.iterdir())

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    config = DatasetConfig(str(given), out=str(path), overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        text = f"cannot write {path}: No space left on device; the existing file is unchanged"
        assert refusal(config) == text
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
        assert "bytes, and 0 are free on this disk" in refusal(config)
    assert sorted(p.name for p in tmp_path.iterdir()) == here
    assert len(load_images(str(path)).pixels) == 2


def test_a_folder_of_other_files_is_never_replaced(pets: Path, tmp_path: Path) -> None:
    assert "exists already" in refusal(DatasetConfig(str(pets), out=str(pets)))
    assert "to replace" in refusal(DatasetConfig(str(pets), out=str(pets), overwrite=True))
    assert len(list(pets.rglob("*.png"))) == 7
    folder = packed(pets, tmp_path / "many", limit=2)
    assert "--overwrite" in refusal(DatasetConfig(str(pets), out=str(folder)))
    mine = tmp_path / f"{folder.name}.replaced" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    packed(pets, folder, overwrite=True)
    assert len(load_images(str(folder)).pixels) == 7
    left = [p.name for p in tmp_path.iterdir() if "replaced" in p.name or "packing" in p.name]
    assert left == [mine.parent.name] and mine.read_text() == "mine"
    taken = tmp_path / "other.npy.packing" / "mine.txt"
    taken.parent.mkdir()
    taken.write_text("mine")
    said = refusal(DatasetConfig(str(pets), out=str(tmp_path / "other.npy")))
    assert "mine.txt" in said and "choose another --out" in said and taken.read_text() == "mine"


def _hold(out: str, held: object, done: object) -> None:
    with sole_writer(Path(out)):
        held.set()  # type: ignore[attr-defined]
        done.wait(60)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["set.npy", "set", "set.zip"])
def test_two_processes_do_not_pack_the_same_output(name: str, pets: Path, tmp_path: Path) -> None:
    """Rule: the second is refused while the first lives, even if it lives in another process; what a killed
    one left is taken over."""
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    out = tmp_path / name
    first = context.Process(target=_hold, args=(str(out), held, done))
    first.start()
    try:
        assert held.wait(60)
        expected = f"{out}: another process is writing it now; wait for it, or choose another --out"
        assert refusal(DatasetConfig(str(pets), out=str(out))) == expected
        assert out.with_name(name + ".packing").is_dir()
    finally:
        first.kill()
        first.join()
    assert len(load_images(str(packed(pets, out))).pixels) == 7
    assert not out.with_name(name + ".packing").exists()


def test_threads_read_one_set_at_the_same_time(pets: Path, tmp_path: Path) -> None:
    """Rule: reads are by position, so that no reader moves another's place."""
    _, folder = both(tmp_path, pets)
    loaded = load_images(str(folder), stream=True)
    whole = loaded.pixels[:]
    wrong: list[int] = []

    def read(seed: int) -> None:
        order = torch.randint(0, 7, (40, 5), generator=torch.Generator().manual_seed(seed))
        wrong.extend(seed for index in order if not torch.equal(loaded.pixels[index], whole[index]))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
