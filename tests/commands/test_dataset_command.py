# SPDX-License-Identifier: Apache-2.0
"""`softdiff dataset`: its report, the files that it writes, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import fill, labels_json, pack, png, random_pixels
from PIL import Image

from softdiff_kernels.cli import main
from softdiff_kernels.commands import dataset
from softdiff_kernels.commands.dataset import DatasetConfig, convert, moments
from softdiff_kernels.data import load_images
from softdiff_kernels.errors import UserError


def lines(config: DatasetConfig) -> list[str]:
    """What a conversion says."""
    said: list[str] = []
    convert(config, said.append)
    return said


def refusal(config: DatasetConfig) -> str:
    """The sentence with which a conversion is refused."""
    with pytest.raises(UserError) as caught:
        convert(config, lambda line: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Five RGB images of 6 x 4 in two classes."""
    files = {f"{'cat' if i < 2 else 'dog'}/{i}.png": random_pixels(i) for i in range(5)}
    return fill(tmp_path / "pets", files)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_folder_zip_npz_and_back_hold_the_same_images_and_labels(tmp_path: Path, channels: int) -> None:
    """Rule: a conversion changes no byte of a pixel, no label and no class name, whatever the channels."""
    shape = (4, 6) if channels == 1 else (4, 6, channels)
    images = {f"{'b' if i % 2 else 'a'}/{i}.png": random_pixels(i, shape) for i in range(4)}
    source = fill(tmp_path / "set", images)
    first, second = str(tmp_path / "one.zip"), str(tmp_path / "two.npz")
    third = str(tmp_path / "three.zip")
    for start, end in ((str(source), first), (first, second), (second, third)):
        assert lines(DatasetConfig(start, out=end))[-1].startswith(f"wrote {end}")
    whole = load_images(str(source), need_labels=True)
    # Grey with alpha becomes RGBA where it is read.
    assert whole.shape[0] == (4 if channels == 2 else channels)
    for path in (first, second, third):
        loaded = load_images(path, need_labels=True)
        assert torch.equal(loaded.pixels, whole.pixels)
        assert loaded.labels is not None and loaded.labels.tolist() == [0, 0, 1, 1]
        assert loaded.classes == ("a", "b")
    # The same images make the same file.
    assert Path(first).read_bytes() == Path(third).read_bytes()


def test_a_zip_is_laid_out_as_edm_reads_it(pets: Path, tmp_path: Path) -> None:
    """Rule: stored, not deflated; 00000/img00000000.png and so on, 1000 to a folder; labels by name."""
    convert(DatasetConfig(str(pets), out=str(tmp_path / "set.zip")), lambda line: None)
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        names = [f"00000/img{i:08d}.png" for i in range(5)]
        assert archive.namelist() == [*names, "dataset.json"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        content = json.loads(archive.read("dataset.json"))
        assert content["labels"] == [[name, i // 2 and 1] for i, name in enumerate(names)]
        image = Image.open(io.BytesIO(archive.read(names[3])))
        assert np.array_equal(np.asarray(image), random_pixels(3))
    assert dataset._name(1234) == "00001/img00001234.png"


def test_without_labels_dataset_json_says_null(pets: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", images=random_pixels(shape=(2, 4, 6)))
    convert(DatasetConfig(str(tmp_path / "bare.npz"), out=str(tmp_path / "a.zip")), lambda line: None)
    said = lines(DatasetConfig(str(pets), out=str(tmp_path / "b.zip"), labels=False))
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name) as archive:
            assert json.loads(archive.read("dataset.json")) == {"labels": None}
    assert not any("class" in line for line in said)
    convert(DatasetConfig(str(pets), out=str(tmp_path / "b.npz"), labels=False), lambda line: None)
    assert np.load(tmp_path / "b.npz").files == ["images"]


def test_the_report_counts_sizes_modes_classes_and_unreadable_images(tmp_path: Path) -> None:
    """Rule: every unreadable image is listed with the reason, under its count."""
    files: dict[str, bytes | np.ndarray] = {
        "a/1.png": np.zeros((4, 6), np.uint8),
        "a/2.png": np.full((4, 8), 255, np.uint8),
        "b/3.png": np.zeros((4, 6), np.uint8),
        **{f"b/x{i}.png": b"no picture" for i in range(7)},
    }
    source = fill(tmp_path / "set", files)
    said = lines(DatasetConfig(str(source), image_size=(4, 5)))
    assert f"{source}: 3 images" in said
    assert "sizes found (width x height): 6 x 4 (2), 8 x 4 (1)" in said
    assert "size: 5 x 4" in said and "modes found: L (3)" in said and "channels: 1 (grey)" in said
    assert said[said.index("classes: 2") :][:3] == ["classes: 2", "  0 a: 2", "  1 b: 1"]
    # One image of three is white: the mean is 1/3, the deviation sqrt(1/3 * 2/3) = sqrt(2) / 3.
    assert "mean, standard deviation on [0, 1], by channel: 0.333333, 0.471405" in said
    assert "mean, standard deviation on [-1, 1], by channel: -0.333333, 0.942809" in said
    assert "unreadable, left out: 7 of 10" in said
    for i in range(7):
        assert f"  {source}/b/x{i}.png: not an image that Pillow knows" in said


def test_many_unreadable_images_are_listed_in_a_file_too(tmp_path: Path) -> None:
    bad = {f"x{i:02d}.png": b"no picture" for i in range(21)}
    source = fill(tmp_path / "set", {"good.png": random_pixels(), **bad})
    out = tmp_path / "out.zip"
    said = lines(DatasetConfig(str(source), out=str(out)))
    listed = out.with_name("out.zip.unreadable.txt")
    assert sum("not an image" in line for line in said) == 21 and f"wrote {listed}" in said
    assert [line.partition(":")[0][-7:] for line in listed.read_text().splitlines()] == list(bad)
    # Of twenty or fewer the report says enough, and an earlier list goes away with the file it was about.
    (source / "x00.png").unlink()
    convert(DatasetConfig(str(source), out=str(out), overwrite=True), lambda line: None)
    assert not listed.exists()


def test_no_more_than_twenty_classes_are_shown(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.zeros((25, 2, 2), np.uint8), labels=np.arange(25))
    said = lines(DatasetConfig(str(tmp_path / "set.npz")))
    assert "classes: 25" in said and "  19: 1" in said and "  20: 1" not in said and "  and 5 more" in said


def test_moments_are_those_of_numpy() -> None:
    pixels = torch.from_numpy(random_pixels(shape=(1500, 3, 2, 3)))  # more than one part of 1024
    mean, std = moments(pixels)
    scaled = pixels.numpy().astype(np.float64) / 255
    assert np.allclose(mean.numpy(), scaled.mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(std.numpy(), scaled.std((0, 2, 3)), rtol=1e-12)


def test_channels_limit_and_size_are_obeyed(pets: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "a.npz")
    convert(DatasetConfig(str(pets), out=out, channels=1, limit=3, image_size=(2,)), lambda line: None)
    loaded = load_images(out)
    assert loaded.pixels.shape == (3, 1, 2, 2)
    # A class of which the first images show nothing is a class all the same.
    assert (
        loaded.labels is not None and loaded.labels.tolist() == [0, 0, 1] and loaded.classes == ("cat", "dog")
    )
    one = load_images(str(pets))
    for source in (str(pets), out):
        path = str(tmp_path / f"rgba-{Path(source).stem}.zip")
        read = convert(DatasetConfig(source, out=path, channels=4, limit=1), lambda line: None)
        assert read.labels.values is not None and read.labels.values.tolist() == [0]
        rgba = load_images(path)
        assert len(rgba.pixels) == 1 and rgba.shape[0] == 4 and rgba.num_classes == 2
        assert rgba.pixels[:, 3].unique().tolist() == [255]
        if source == str(pets):
            assert torch.equal(rgba.pixels[0, :3], one.pixels[0])
    # Alpha laid over black: 100 at half of 255 is 50.
    half = np.full((4, 6, 4), 100, np.uint8)
    half[..., 3] = 128
    np.savez(tmp_path / "half.npz", images=half[None])
    flat = str(tmp_path / "flat.npz")
    convert(DatasetConfig(str(tmp_path / "half.npz"), out=flat, channels=3), lambda line: None)
    assert load_images(flat).pixels.unique().tolist() == [50]


def test_an_existing_file_is_kept_unless_told_otherwise(pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "set.zip"
    out.write_bytes(b"precious")
    assert "--overwrite" in refusal(DatasetConfig(str(pets), out=str(out)))
    assert out.read_bytes() == b"precious"
    convert(DatasetConfig(str(pets), out=str(out), overwrite=True), lambda line: None)
    assert len(load_images(str(out)).pixels) == 5
    # A file may be its own source: all of it is in memory before it is replaced.
    config = DatasetConfig(str(out), out=str(out), overwrite=True, limit=2)
    convert(config, lambda line: None)
    assert len(load_images(str(out)).pixels) == 2


@pytest.mark.parametrize("name", ["set.zip", "set.npz"])
def test_a_full_disk_leaves_neither_half_a_file_nor_the_old_one_touched(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / name
    out.write_bytes(b"before")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    config = DatasetConfig(str(pets), out=str(out), overwrite=True)
    kept = "the existing file is unchanged"
    assert refusal(config) == f"cannot write {out}: No space left on device; {kept}"
    assert out.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pets", name]


def test_ctrl_c_in_the_middle_leaves_nothing(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = dataset._add

    def stopped(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
        if name.endswith("3.png"):
            raise KeyboardInterrupt
        added(archive, name, data)

    monkeypatch.setattr(dataset, "_add", stopped)
    with pytest.raises(KeyboardInterrupt):
        convert(DatasetConfig(str(pets), out=str(tmp_path / "set.zip")), lambda line: None)
    assert [p.name for p in tmp_path.iterdir()] == ["pets"]


def test_what_cannot_be_converted_is_refused(pets: Path, tmp_path: Path) -> None:
    away = tmp_path / "no" / "set.zip"
    assert f"there is no folder {away.parent}" in refusal(DatasetConfig(str(pets), out=str(away)))
    bad = {"a.png": png(random_pixels()), "dataset.json": labels_json(("a.png", -1))}
    zipped = str(pack(tmp_path / "bad.zip", bad))
    assert "--no-labels continues without labels" in refusal(DatasetConfig(zipped))
    assert any(line.endswith("1 images") for line in lines(DatasetConfig(zipped, labels=False)))
    np.savez(tmp_path / "la.npz", images=random_pixels(shape=(2, 4, 6, 2)))
    two = DatasetConfig(str(tmp_path / "la.npz"), out=str(tmp_path / "la.zip"))
    assert "--channels 4" in refusal(two)
    for options in ({"out": "set.tar"}, {"limit": 0}, {"image_size": (1, 2, 3)}, {"image_size": (0,)}):
        with pytest.raises(UserError, match="--"):
            DatasetConfig("x", **options)  # type: ignore[arg-type]


def test_the_command_line(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tyro")
    out = str(tmp_path / "set.npz")
    argv = ["dataset", str(pets), "--out", out, "--image-size", "3", "5", "--channels", "1", "--no-labels"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "size: 5 x 3" in said and f"wrote {out}" in said
    loaded = load_images(out)
    assert loaded.shape == (1, 3, 5) and loaded.labels is None
    assert main(argv) == 2
    output = capsys.readouterr().err
    assert output.startswith("softdiff: error: ") and "--overwrite" in output and output.count("\n") == 1
    assert main(["dataset", str(tmp_path / "missing")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert main(["dataset", str(pets), "--channels", "2"]) == 2
