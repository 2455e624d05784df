# SPDX-License-Identifier: Apache-2.0
"""Zip files and folders of images: modes, sizes, and what is left out or refused."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import fill, labels_json, message, pack, png, random_pixels, tiff
from PIL import Image

from softdiff_kernels.data import decode as data_decode
from softdiff_kernels.data import load_images
from softdiff_kernels.errors import UserError, user_errors


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_like_the_folder_it_was_made_of(tmp_path: Path, method: int) -> None:
    """Rule: nested images in the order of their paths, with dataset.json's labels; what macOS adds, what is
    hidden and what is no image stays out of it."""
    files: dict[str, bytes | np.ndarray] = {
        "00001/img1.png": random_pixels(1),
        "00000/img0.PNG": random_pixels(0),
        "00000/deep/er.png": random_pixels(2),
    }
    pairs = [("00000/img0.PNG", 2), ("00000/deep/er.png", 0), ("00001/img1.png", 1)]
    other = {"__MACOSX/img1.png": b"no", ".hidden/x.png": b"no", "00000/._a.png": b"no", "notes.txt": b"no"}
    everything = {**files, "dataset.json": labels_json(*pairs), **other}
    zipped = load_images(str(pack(tmp_path / "set.zip", everything, method)), need_labels=True)
    folder = load_images(str(fill(tmp_path / "set", everything)), need_labels=True)
    order = ["00000/deep/er.png", "00000/img0.PNG", "00001/img1.png"]
    expected = np.stack([np.asarray(files[name]) for name in order]).transpose(0, 3, 1, 2)
    for loaded in (zipped, folder):
        assert np.array_equal(loaded.pixels.numpy(), expected)
        assert loaded.labels is not None and loaded.labels.dtype == torch.int64
        assert loaded.labels.tolist() == [0, 2, 1] and loaded.classes == ("0", "1", "2")
        assert loaded.name == "set" and loaded.num_classes == 3


def test_damaged_entries_of_a_zip_are_counted_and_left_out_with_their_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: neither bytes that are no image nor an entry whose checksum is wrong ends the reading, and the
    labels of the others stay with them."""
    images = [random_pixels(i) for i in range(3)]
    files = {"0.png": images[0], "1.png": b"no picture", "2.png": images[1], "3.png": images[2]}
    pairs = labels_json(("0.png", 3), ("1.png", 0), ("2.png", 1), ("3.png", 2))
    path = pack(tmp_path / "set.zip", {**files, "dataset.json": pairs})
    content = path.read_bytes()
    place = content.index(png(images[1])) + 45  # inside the pixels of 2.png
    path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    loaded = load_images(str(path), need_labels=True)
    assert np.array_equal(loaded.pixels.numpy(), np.stack([images[0], images[2]]).transpose(0, 3, 1, 2))
    assert loaded.labels is not None and loaded.labels.tolist() == [3, 2]
    output = capsys.readouterr().err
    assert "2 of 4 images cannot be read" in output and "1.png" in output and "2.png" in output
    assert "0x" not in output  # an object's address says nothing to anyone


def test_zips_that_are_cut_encrypted_or_empty_say_so(tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole.zip", {"a.png": random_pixels()}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    assert "cut.zip: not a readable .zip file" in message(tmp_path / "cut.zip")
    # Bit 0 of an entry's flags says that it is encrypted; they stand 8 bytes behind the mark of the central
    # directory's record, and 6 behind that of the entry.
    locked = bytearray(whole)
    locked[whole.index(b"PK\x01\x02") + 8] |= 1
    locked[whole.index(b"PK\x03\x04") + 6] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    assert "without a password, got encrypted images" in message(tmp_path / "locked.zip")
    # The same where labels are locked, in the words of no library; what is no image is told of.
    for name, output in (("dataset.json", "without a password"), ("notes.txt", "notes.txt (encrypted)")):
        locked = bytearray(pack(tmp_path / "locked.zip", {name: b"{}"}).read_bytes())
        locked[locked.index(b"PK\x01\x02") + 8] |= 1
        locked[locked.index(b"PK\x03\x04") + 6] |= 1
        (tmp_path / "locked.zip").write_bytes(locked)
        assert output in message(tmp_path / "locked.zip")
    assert "found none" in message(pack(tmp_path / "empty.zip", {"notes.txt": b""}))
    assert "none of its 1 images can be read" in message(pack(tmp_path / "bad.zip", {"a.png": b"no"}))


def test_images_that_all_have_alpha_are_rgba(tmp_path: Path) -> None:
    """Rule: RGBA, grey with alpha and a palette with a transparent entry are alpha all of them."""
    rgba, grey = random_pixels(1, (4, 6, 4)), random_pixels(2, (4, 6, 2))
    Image.fromarray(rgba).save(tmp_path / "1.png")
    Image.fromarray(grey).save(tmp_path / "2.png")
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "3.png", transparency=0)
    loaded = load_images(str(tmp_path))
    assert loaded.shape == (4, 4, 6)
    assert np.array_equal(loaded.pixels[0].numpy(), rgba.transpose(2, 0, 1))
    assert np.array_equal(loaded.pixels[1].numpy(), grey[..., [0, 0, 0, 1]].transpose(2, 0, 1))
    assert loaded.pixels[2, :, 0, 0].tolist() == [10, 20, 30, 0]
    assert loaded.pixels[2, :, 3, 5].tolist() == [40, 50, 60, 255]


@pytest.mark.parametrize("last", [False, True])
def test_mixed_modes_are_rgb_with_alpha_over_black_in_any_order(tmp_path: Path, last: bool) -> None:
    """Rule: a pixel of colour c and alpha a over black is round(c a / 255), whatever image comes first."""
    rgba, grey = random_pixels(1, (4, 6, 4)), random_pixels(2, (4, 6))
    Image.fromarray(rgba).save(tmp_path / ("z.png" if last else "a.png"))
    Image.fromarray(grey).save(tmp_path / "m.png")
    loaded = load_images(str(tmp_path))
    assert loaded.shape == (3, 4, 6)
    colour, alpha = rgba[..., :3].astype(int), rgba[..., 3:].astype(int)
    expected = np.rint(colour * alpha / 255).transpose(2, 0, 1)
    assert np.abs(loaded.pixels[1 if last else 0].numpy() - expected).max() <= 1
    assert np.array_equal(loaded.pixels[0 if last else 1].numpy(), np.stack([grey] * 3))


def test_grey_images_some_of_them_with_alpha_stay_grey(tmp_path: Path) -> None:
    grey, both = random_pixels(1, (4, 6)), np.full((4, 6, 2), 100, np.uint8)
    both[..., 1] = np.arange(6) * 51
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(both).save(tmp_path / "b.png")
    loaded = load_images(str(tmp_path))
    assert loaded.shape == (1, 4, 6)
    # 100 at alpha 0, 51, ..., 255 over black is 0, 20, ..., 100.
    assert loaded.pixels[1, 0, 0].tolist() == [0, 20, 40, 60, 80, 100]


def test_an_unreadable_image_does_not_choose_the_mode(tmp_path: Path) -> None:
    """Rule: a colour image whose pixels are cut off leaves a grey set grey."""
    fill(tmp_path, {"b.png": random_pixels(1, (64, 64)), "c.png": random_pixels(2, (64, 64))})
    (tmp_path / "a.png").write_bytes(png(random_pixels(3, (64, 64, 3)))[:6000])
    loaded = load_images(str(tmp_path))
    assert loaded.shape == (1, 64, 64) and len(loaded.pixels) == 2


def test_sixteen_bit_grey_stays_grey_among_grey_and_scales_among_colour(tmp_path: Path) -> None:
    """Rule: 65535 / 255 = 257, and a level is the whole 257s in the number."""
    levels = np.array([[256, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    fill(tmp_path, {"grey.png": random_pixels(1, (1, 4))})
    assert load_images(str(tmp_path)).pixels[0, 0, 0].tolist() == [0, 1, 128, 255]
    fill(tmp_path, {"colour.png": random_pixels(1, (1, 4, 3))})
    # In the order of the paths deep.png is the second now, and its one channel stands three times.
    assert load_images(str(tmp_path)).pixels[1].tolist() == [[[0, 1, 128, 255]]] * 3


def test_floating_point_images_are_left_out_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((4, 6), np.float32)).save(tmp_path / "a.tif")
    fill(tmp_path, {"b.png": random_pixels(1, (4, 6))})
    assert len(load_images(str(tmp_path)).pixels) == 1
    assert "a.tif (pixels are floating-point numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "bits", "sample_format", "kind"),
    [
        *(
            ("<u4", 32, 1, "32-bit numbers"),
            ("<i4", 32, 2, "signed numbers"),
            ("<i2", 16, 2, "signed numbers"),
        ),
        *(("i1", 8, 2, "signed numbers"), ("<f4", 32, 3, "floating-point numbers")),
    ],
)
@pytest.mark.parametrize("top", [1, 100])
def test_numbers_whose_range_is_not_known_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dtype: str,
    bits: int,
    sample_format: int,
    kind: str,
    top: int,
) -> None:
    """Rule: where a file does not say what is white, no number is taken for it, whatever the numbers are."""
    pixels = (np.arange(24).reshape(4, 6) % 2 * top).astype(dtype)
    fill(tmp_path, {"a.tif": tiff(pixels, bits=bits, sample_format=sample_format)})
    text = message(tmp_path)
    assert (
        "none of its 1 images can be read" in text and f"pixels are {kind}, whose range is not known" in text
    )
    assert "save them with 8 or 16 bits" in text
    fill(tmp_path, {"b.png": random_pixels(1, (4, 6))})
    assert len(load_images(str(tmp_path)).pixels) == 1
    assert (
        f"1 of 2 images cannot be read and are left out: {tmp_path}/a.tif (pixels are"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # A level is the whole 255ths of white in the number: 257 to one of 16 bits, 4095 / 255 to one of 12.
        (tiff(np.array([[0, 256, 257, 65535]], "<u2"), bits=16), [0, 0, 1, 255]),
        (tiff(np.array([[0, 256, 257, 65535]], "<u2"), bits=16, white_is_zero=True), [255, 254, 254, 0]),
        (tiff(np.array([[0, 16, 17, 4095]], "<u2"), bits=12), [0, 0, 1, 255]),
        (tiff(np.array([[0, 1, 254, 255]], "u1"), bits=8), [0, 1, 254, 255]),
        (tiff(np.array([[0, 1, 254, 255]], "u1"), bits=8, white_is_zero=True), [255, 254, 1, 0]),
        # Pillow stretches a portable grey map to 16 bits: 512 of 1023 is 32800, of which 127 are whole.
        (b"P5 4 1 1023\n" + np.array([0, 1, 512, 1023], ">u2").tobytes(), [0, 0, 127, 255]),
    ],
)
def test_deep_greys_whose_range_is_known_are_scaled(
    tmp_path: Path, content: bytes, expected: list[int]
) -> None:
    fill(tmp_path, {"a.tif": content})
    assert load_images(str(tmp_path)).pixels[0, 0, 0].tolist() == expected


def test_a_height_and_width_are_covered_and_cut_from_the_centre(tmp_path: Path) -> None:
    """Rule: (height, width); the image is scaled by the larger of the two ratios, and the middle is kept."""
    tall = np.zeros((8, 4), np.uint8)
    tall[3:5] = 200
    Image.fromarray(tall).save(tmp_path / "tall.png")
    # 4 wide already: nothing is resampled, and of 8 rows the middle two are left.
    assert load_images(str(tmp_path), (2, 4)).pixels.unique().tolist() == [200]
    assert load_images(str(tmp_path), (2, 4)).shape == (1, 2, 4)
    assert load_images(str(tmp_path), (16, 5)).shape == (1, 16, 5)
    np.savez(tmp_path / "set.npz", images=tall[None])
    for size in ((2, 4), (16, 5), (3, 3)):
        npz, folder = load_images(str(tmp_path / "set.npz"), size), load_images(str(tmp_path), size)
        assert torch.equal(npz.pixels, folder.pixels)
    assert load_images("digits", (8, 12)).shape == (1, 8, 12)
    assert "--image-size" in message("digits", image_size=(12, 7))
    assert "--image-size" in message(tmp_path, image_size=0)


def test_rgba_is_resized_with_its_colours_weighted_by_alpha(tmp_path: Path) -> None:
    """Rule: a colour that nobody sees does not bleed into its neighbours: red beside transparent green."""
    pixels = np.zeros((4, 8, 4), np.uint8)
    pixels[:, :4] = (255, 0, 0, 255)
    pixels[:, 4:] = (0, 255, 0, 0)
    np.savez(tmp_path / "set.npz", images=pixels[None])
    fill(tmp_path / "folder", {"a.png": pixels})
    npz, folder = (load_images(str(tmp_path / name), (2, 4)) for name in ("set.npz", "folder"))
    assert torch.equal(npz.pixels, folder.pixels)
    assert npz.pixels[0, 1].max() == 0 and npz.pixels[0, 0, :, :2].min() == 255


def test_a_link_that_leads_nowhere_is_told_of_and_a_hidden_file_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "set", {"a.png": random_pixels(), ".b.png": random_pixels(), ".c/d.png": random_pixels()})
    (tmp_path / "set" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "set" / "folder.png").mkdir()
    assert len(load_images(str(tmp_path / "set")).pixels) == 1
    output = capsys.readouterr().err
    assert "1 of 2 images cannot be read" in output and "lost.png" in output


def test_mixed_sizes_in_a_zip_name_two_images(tmp_path: Path) -> None:
    files = {"a.png": random_pixels(1, (4, 6)), "b.png": random_pixels(2, (5, 6))}
    text = message(pack(tmp_path / "set.zip", files))
    for part in ("6 x 4", "a.png", "6 x 5", "b.png", "--image-size"):
        assert part in text


def test_more_images_than_a_chunk_keep_their_order(tmp_path: Path) -> None:
    files = {f"{i:04d}.png": np.full((1, 2), i % 251, np.uint8) for i in range(600)}
    loaded = load_images(str(pack(tmp_path / "set.zip", files)))
    assert loaded.pixels[:, 0, 0, 1].tolist() == [i % 251 for i in range(600)]


def test_a_set_that_memory_has_no_room_for_is_refused_with_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: N C H W bytes are needed: 5 images of 3 x 4 x 6 are 360."""
    monkeypatch.setattr(data_decode, "available_memory", lambda: 300)
    fill(tmp_path / "folder", {f"{i}.png": random_pixels(i) for i in range(5)})
    np.savez(tmp_path / "set.npz", images=np.zeros((5, 4, 6, 3), np.uint8))
    assert "need 360 bytes, and 300 bytes of memory are free" in message(tmp_path / "folder")
    assert "bytes of memory are free" in message(tmp_path / "set.npz")
    monkeypatch.setattr(data_decode, "available_memory", lambda: None)
    assert len(load_images(str(tmp_path / "folder")).pixels) == 5


def test_this_machine_says_how_much_memory_is_free() -> None:
    room = data_decode.available_memory()
    assert room is None or 2**20 < room < 2**50


def test_an_image_that_memory_had_no_room_for_is_not_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: to go on without such images would be another data set, with or without a warning."""
    fill(tmp_path / "folder", {f"{i}.png": random_pixels(i) for i in range(3)})

    def none(*_: object, **__: object) -> None:
        raise OSError("out of memory error when reading image file")  # Pillow's, which has no number

    monkeypatch.setattr("PIL.Image.open", none)
    with pytest.raises(OSError, match="out of memory"):
        load_images(str(tmp_path / "folder"))


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_a_reason_is_without_numbers_and_names_a_file_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, {"a.png": random_pixels()})
    (tmp_path / "b.png").symlink_to("gone.png")
    load_images(str(tmp_path))
    output = capsys.readouterr().err
    assert "b.png (No such file or directory)" in output and "Errno" not in output
    # As where a prefix names the file that an error of the system names as well.
    with pytest.raises(UserError, match=r"^x: Permission denied$"), user_errors("x: "):
        raise PermissionError(13, "Permission denied", "x")


def test_a_set_that_is_too_large_is_refused_before_an_image_is_enlarged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rule: one image at this size takes 30 GB already; at the least each pixel is a byte.
    monkeypatch.setattr(data_decode, "available_memory", lambda: 10**9)
    monkeypatch.setattr(data_decode, "decode_image", lambda *_: pytest.fail("an image was decoded"))
    fill(tmp_path, {"a.png": random_pixels(1), "b.png": random_pixels(2)})
    assert "2 images of 100000 x 100000 need 20,000,000,000 bytes" in message(tmp_path, image_size=100_000)
