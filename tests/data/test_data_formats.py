# SPDX-License-Identifier: Apache-2.0
"""Which files are read as images, and that no other disappears without a word."""

from __future__ import annotations

import importlib.util
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import animation, encoded, fill, message, pack, png, random_pixels, tiff
from PIL import Image, features

from softdiff_kernels.commands.dataset import DatasetConfig, convert
from softdiff_kernels.data import load_images


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("a.jfif", "JPEG"), ("a.jpe", "JPEG"), ("a", "JPEG"), ("a.jpg_large", "JPEG"), ("a.1", "PNG")),
        *(("a.dat", "WEBP"), ("a.tga", "TGA"), ("a.jp2", "JPEG2000"), ("a.qoi", "QOI"), ("A.JFIF", "JPEG")),
        *(("a.pnm", "PPM"), ("a.pcx", "PCX"), ("a.avif", "AVIF"), ("a.ico", "BMP"), ("a.txt", "PNG")),
    ],
)
def test_content_decides_what_an_image_is(name: str, form: str, tmp_path: Path) -> None:
    """Rule: what Pillow reads is read, whatever it is called, from a folder and from a zip."""
    if form == "AVIF" and not (features.check("avif") if "avif" in features.modules else False):
        pytest.skip("this Pillow reads no AVIF")
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {form}")
    files = {name: encoded(form, 1), "b.png": random_pixels(2)}
    with Image.open(fill(tmp_path / "set", files) / name) as opened:
        expected = np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    for source in (tmp_path / "set", pack(tmp_path / "set.zip", files)):
        loaded = load_images(str(source))
        assert len(loaded.pixels) == 2 and np.array_equal(loaded.pixels[0].numpy(), expected)


def test_every_other_file_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: the user reads how many files are no images, which, and why, on one line of bounded length."""
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"
    files = {
        **{"a.png": random_pixels(1), "b/film.mp4": b"\0\0\0\x18ftypisom" + bytes(40), "c.csv": b"a,b\n"},
        **{"d.eps": drawing, "e.nef": tiff(random_pixels(1, (4, 6)), bits=8), "f": b"", "Pygmy": b"Python"},
    }
    for source in (fill(tmp_path / "set", files), pack(tmp_path / "set.zip", files)):
        assert len(load_images(str(source)).pixels) == 1
        output = capsys.readouterr().err
        assert output.count("\n") == 1 and "6 other files are left out: " in output and "and 1 more" in output
        for part in ("b/film.mp4 (not an image)", "c.csv (not an image)", "e.nef (raw photographs"):
            assert part in output
        said: list[str] = []
        convert(DatasetConfig(str(source)), said.append)
        # A drawing is a program, and no picture; the smaller preview in a raw photograph is not the picture.
        listed = said[said.index("other files, left out: 6") + 1 :]
        assert [line.partition(":")[0].strip() for line in listed] == sorted(set(files) - {"a.png"})
    many = fill(
        tmp_path / "many", {"a.png": random_pixels(), **{f"{'n' * 200}{i:04}.txt": b"" for i in range(99)}}
    )
    load_images(str(many))
    output = capsys.readouterr().err
    assert "99 other files" in output and "and 94 more" in output and len(output) < 1000
    said = []
    convert(DatasetConfig(str(many)), said.append)
    assert "other files, left out: 99" in said and said[-1] == "  and 79 more"


def test_a_folder_without_images_says_what_is_in_it(tmp_path: Path) -> None:
    files = {f"shard{i}.npz": b"PK\3\4" for i in range(7)}
    for source in (fill(tmp_path / "set", files), pack(tmp_path / "set.zip", files)):
        text = message(source)
        assert "found none among 7 files: shard0.npz (not an image)" in text and "and 2 more" in text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_links_to_folders_and_pipes_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: a class that is a link to a folder is missing from the set, and the user reads it."""
    fill(tmp_path / "elsewhere", {"b.png": random_pixels()})
    folder = fill(tmp_path / "set", {"cat/a.png": random_pixels()})
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe.png")
    assert len(load_images(str(folder)).pixels) == 1
    output = capsys.readouterr().err
    assert "2 other files are left out: dog (a link to a folder), pipe.png (not a regular file)" in output


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is not None, reason="Pillow reads HEIC here")
def test_heic_without_its_package_is_unreadable_and_says_what_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heic = b"\0\0\0\x18ftypheic" + bytes(60)
    load_images(str(fill(tmp_path, {"a.png": random_pixels(), "phone.HEIC": heic, "phone": heic})))
    output = capsys.readouterr().err
    assert "1 of 2 images cannot be read" in output and "phone.HEIC (Pillow reads HEIC only with" in output
    assert "1 other file is left out: phone (not an image)" in output


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken_and_that_is_told_once(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: one note with a count, not one an image, and none where there is one frame alone."""
    name = {"TIFF": "tif"}.get(form, form.lower())
    files = {f"{i}.{name}": animation(form) for i in range(7)}
    source = fill(tmp_path / "set", {**files, "one.gif": animation("GIF", 1), "z.png": png(random_pixels())})
    if form == "GIF":
        # Damage behind the first frame does not spoil it.
        fill(source, {"0.gif": animation("GIF")[:-12]})
    loaded = load_images(str(source))
    # The first frame is grey 10; WebP may move it by a level.
    assert np.abs(loaded.pixels[:7].numpy().astype(int) - 10).max() <= 1
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and "and 2 more" in output
    assert "7 of 9 images have several frames or pages; the first is taken" in output
    said: list[str] = []
    convert(DatasetConfig(str(source)), said.append)
    assert "several frames or pages, of which the first is taken: 7 of 9" in said
    assert any(line.endswith(f"set/6.{name}") for line in said)


def test_only_the_first_of_several_processes_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(tmp_path, {"a.gif": animation("GIF"), "b.txt": b""})
    monkeypatch.setenv("RANK", "1")
    load_images(str(source))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    load_images(str(source))
    assert capsys.readouterr().err.count("\n") == 2


def test_one_transparent_level_of_sixteen_bits_is_alpha(tmp_path: Path) -> None:
    # Rule: as the transparent level of an 8-bit image; of levels that are one in 8 bits, that one alone.
    levels = np.array([[0, 1, 40000, 65535]], ">u2")

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 16, 0, 0, 0, 0))
    content += chunk(b"tRNS", struct.pack(">H", 1)) + chunk(b"IDAT", zlib.compress(b"\0" + levels.tobytes()))
    loaded = load_images(str(fill(tmp_path, {"a.png": content + chunk(b"IEND", b"")})))
    assert loaded.pixels[0, :, 0].tolist() == [[0, 0, 155, 255]] * 3 + [[255, 0, 255, 255]]
    # Laid over black where alpha has to go.
    assert load_images(str(tmp_path), channels=1).pixels[0, 0, 0].tolist() == [0, 0, 155, 255]
