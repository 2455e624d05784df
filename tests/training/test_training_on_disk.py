# SPDX-License-Identifier: Apache-2.0
"""Training from the disk: packed sets, and folders that memory has no room for, are as a set in memory."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from image_files import fill
from training_runs import losses, small, tensors

from softdiff_kernels.commands.dataset import DatasetConfig, convert
from softdiff_kernels.data import decode as data_decode
from softdiff_kernels.data import load_images
from softdiff_kernels.data.packed import PackedPixels
from softdiff_kernels.data.streamed import DecodedPixels
from softdiff_kernels.diffusion import PRIORS
from softdiff_kernels.errors import UserError
from softdiff_kernels.training.loop import train


@pytest.fixture(scope="module")
def folder(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The blobs as a folder of two classes."""
    images = np.load(blobs)["images"]
    named = {f"{'ab'[i % 2]}/{i:02d}.png": image for i, image in enumerate(images)}
    return fill(tmp_path_factory.mktemp("large") / "set", named)


@pytest.fixture(scope="module")
def in_memory(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps from memory."""
    return train(
        small(folder, tmp_path_factory.mktemp("runs") / "memory", conditional=True, batch_gpu=3)
    ).folder


def packed(source: Path, out: Path, **options: Any) -> Path:
    convert(DatasetConfig(str(source), out=str(out), **options), say=lambda _: None)
    return out


def same(run: Path, other: Path) -> bool:
    """Whether two runs have the same numbers in every bit: weights, averages, moments, prior, losses."""
    first, second = (tensors(r, 6) for r in (run, other))
    equal = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    return equal and losses(run) == losses(other)


@pytest.mark.parametrize("kind", ["file", "shards", "on the fly"])
def test_a_run_from_the_disk_is_the_run_from_memory_and_resumes_as_it(
    kind: str, folder: Path, in_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: where the pixels are changes no bit of a run, not of the statistics that it starts from either. A
    run from memory goes on from the disk: the digests are equal. The threads end with the run."""
    data, images = folder, DecodedPixels
    if kind == "on the fly":
        monkeypatch.setattr(data_decode, "available_memory", lambda: 300)
    else:
        images = PackedPixels  # type: ignore[assignment]
        options = {"shard_gb": 7 * 64 / 1e9} if kind == "shards" else {}
        data = packed(folder, tmp_path / ("set.npy" if kind == "file" else "set"), **options)
    assert isinstance(load_images(str(data), stream=True).pixels, images)
    whole = train(small(data, tmp_path / "whole", conditional=True, batch_gpu=3)).folder
    assert same(whole, in_memory)
    half = dataclasses.replace(small(folder, tmp_path / "half", conditional=True, batch_gpu=3), steps=3)
    monkeypatch.undo()
    train(half)
    if kind == "on the fly":
        monkeypatch.setattr(data_decode, "available_memory", lambda: 300)
    rest = small(data, tmp_path / "half", conditional=True, batch_gpu=3, resume=str(tmp_path / "half"))
    train(rest)
    assert same(tmp_path / "half", in_memory)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("softdiff")]


@pytest.mark.parametrize("prior", list(PRIORS))
def test_the_second_start_reads_only_the_images_that_it_trains_on(
    prior: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: the first start reads all images once, for prior, spectrum, scales and digest together; the next
    ones read none for that, and have the same prior."""
    data = packed(folder, tmp_path / "set.npy")
    slices: list[slice] = []
    get = PackedPixels.__getitem__

    def noted(self: PackedPixels, index: Any) -> torch.Tensor:
        slices.extend([index] if isinstance(index, slice) else [])
        return get(self, index)

    monkeypatch.setattr(PackedPixels, "__getitem__", noted)
    folders = []
    for name, expected in (("one", 1), ("two", 0)):
        slices.clear()
        config = small(data, tmp_path / name, prior=prior, steps=1, schedule="linear")
        folders.append(train(config).folder)
        # The other slice is of the pictures of real images in the run folder.
        assert len(slices) == expected + 1
    first, second = (tensors(f, 1) for f in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 4096 + 64), lambda path: os.utime(path)])
def test_a_file_that_changes_under_a_run_ends_it_with_a_sentence(
    change: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: neither a signal nor training on other bytes; the checkpoint before stays, and no thread."""
    data = packed(folder, tmp_path / "set.npy")

    class Changing(PackedPixels):
        """The file changes when the twelfth batch is gathered, after the checkpoint of step 3."""

        calls = 0

        def __getitem__(self, index: Any) -> torch.Tensor:
            Changing.calls += not isinstance(index, slice)
            if Changing.calls == 12:
                change(data)
            return super().__getitem__(index)

    monkeypatch.setattr("softdiff_kernels.data.sources.PackedPixels", Changing)
    with pytest.raises(UserError, match="while it was in use") as caught:
        train(small(data, tmp_path / "run", steps=40))
    assert str(data) in str(caught.value) and "\n" not in str(caught.value)
    assert list((tmp_path / "run").glob("state-*"))
    assert not [t.name for t in threading.enumerate() if t.name.startswith("softdiff")]
    monkeypatch.undo()
    if os.path.getsize(data) < 4096 + 20 * 64:
        with pytest.raises(UserError, match="was cut short"):
            train(small(data, tmp_path / "run", steps=40, resume=str(tmp_path / "run")))


def test_other_bytes_do_not_resume(folder: Path, tmp_path: Path) -> None:
    """Rule: a set that was packed again with other images is not the one of the run."""
    data = packed(folder, tmp_path / "set.npy")
    train(small(data, tmp_path / "run", steps=1))
    packed(folder, data, overwrite=True, limit=19)
    with pytest.raises(UserError, match="with other pixels or labels"):
        train(small(data, tmp_path / "run", steps=2, resume=str(tmp_path / "run")))
