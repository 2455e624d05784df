# SPDX-License-Identifier: Apache-2.0
"""Data sets: what is read, as what, and one clear sentence for what cannot be."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import pack, random_pixels
from PIL import Image

from softdiff_kernels.commands.dataset import DatasetConfig, convert
from softdiff_kernels.data import ImageOrder, load_images
from softdiff_kernels.errors import UserError


def picture(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB", seed: int = 0) -> np.ndarray:
    """Saves a random picture of (width, height) and returns its pixels."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def message(source: Path | str, image_size: int | None = None) -> str:
    """The sentence with which a source is refused: one line, whatever went wrong."""
    with pytest.raises(UserError) as caught:
        load_images(str(source), image_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_is_read_recursively_in_order_and_exactly(tmp_path: Path) -> None:
    first = picture(tmp_path / "a" / "one.png", seed=1)
    second = picture(tmp_path / "b.PNG", seed=2)
    (tmp_path / "notes.txt").write_text("not an image")
    loaded = load_images(str(tmp_path))
    # PNG is lossless, so every byte must arrive, H x W and not W x H, sorted by path.
    expected = np.stack([first, second]).transpose(0, 3, 1, 2)
    assert loaded.pixels.dtype == torch.uint8
    assert loaded.shape == (3, 4, 6)
    assert np.array_equal(loaded.pixels.numpy(), expected)
    assert loaded.name == tmp_path.name


def test_grey_folder_has_one_channel_and_one_colour_image_makes_it_three(tmp_path: Path) -> None:
    grey = picture(tmp_path / "0.png", mode="L")
    assert load_images(str(tmp_path)).shape == (1, 4, 6)
    picture(tmp_path / "1.png", mode="RGB")
    both = load_images(str(tmp_path))
    assert both.shape == (3, 4, 6)
    # Grey as RGB is the same number three times.
    assert np.array_equal(both.pixels[0].numpy(), np.stack([grey] * 3))


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path) -> None:
    levels = np.array([[0, 1000, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    # 65535 / 255 = 257: a level is the whole 257s in the number. Clipping would give 255 for all but 0.
    assert load_images(str(tmp_path)).pixels.flatten().tolist() == [0, 3, 128, 255]


def test_mixed_sizes_name_two_files_and_their_sizes_or_are_cropped(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (6, 4))
    picture(tmp_path / "b.png", (5, 9))
    text = message(tmp_path)
    for part in ("6 x 4", "a.png", "5 x 9", "b.png", "--image-size"):
        assert part in text
    assert load_images(str(tmp_path), 4).shape == (3, 4, 4)


def test_image_size_crops_the_centre_after_resizing_the_shorter_side(tmp_path: Path) -> None:
    columns = np.repeat(np.array([10, 10, 200, 200, 200, 200, 10, 10], dtype=np.uint8)[None], 4, axis=0)
    Image.fromarray(columns).save(tmp_path / "wide.png")
    # 8 x 4 at its own shorter side: nothing is resampled, the two outer columns go on each side.
    assert load_images(str(tmp_path), 4).pixels.unique().tolist() == [200]
    assert load_images(str(tmp_path), 8).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("images", (3, 4, 5), (1, 4, 5)),
        ("arr_0", (3, 4, 5, 3), (3, 4, 5)),
        ("images", (2, 4, 5, 2), (2, 4, 5)),
    ],
)
def test_npz_layouts(tmp_path: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "set.npz", **{name: pixels}, labels=np.arange(shape[0]))
    loaded = load_images(str(tmp_path / "set.npz"))
    assert loaded.shape == expected
    last = pixels if pixels.ndim == 4 else pixels[..., None]
    assert np.array_equal(loaded.pixels.numpy(), last.transpose(0, 3, 1, 2))


def test_npy_is_read_as_the_array_of_an_npz(tmp_path: Path) -> None:
    """Rule: one array alone is images without labels, refused by the rules of an .npz; a file that is named
    as the other of the two kinds is a sentence."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "set.npy", pixels)
    loaded = load_images(str(tmp_path / "set.npy"))
    assert np.array_equal(loaded.pixels.numpy(), pixels.transpose(0, 3, 1, 2)) and loaded.name == "set"
    loaded.pixels[0] = 0  # a copy, not the file
    assert np.array_equal(np.load(tmp_path / "set.npy"), pixels)
    assert load_images(str(tmp_path / "set.npy"), 3).shape == (3, 3, 3)
    np.save(tmp_path / "grey.npy", pixels[..., 0])
    assert load_images(str(tmp_path / "grey.npy")).shape == (1, 4, 5)
    (tmp_path / "set.npz").write_bytes((tmp_path / "set.npy").read_bytes())
    text = message(tmp_path / "set.npz")
    assert "set.npz: expected an .npz file, got one array alone, as in an .npy file" in text
    np.savez(tmp_path / "packed.npz", images=pixels)
    (tmp_path / "packed.npy").write_bytes((tmp_path / "packed.npz").read_bytes())
    assert "packed.npy: expected an .npy file, got an .npz file" in message(tmp_path / "packed.npy")
    np.save(tmp_path / "floats.npy", pixels.astype(np.float32))
    assert "uint8 [N, H, W]" in message(tmp_path / "floats.npy")
    assert "got float32 [3, 4, 5, 3]" in message(tmp_path / "floats.npy")
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "set.npy").read_bytes()[:150])
    (tmp_path / "none.npy").write_bytes(b"")
    for name in ("objects.npy", "cut.npy", "none.npy"):
        assert f"{name}: not a readable .npy file" in message(tmp_path / name)


def test_npz_is_resized_with_any_number_of_channels(tmp_path: Path) -> None:
    np.savez(tmp_path / "flat.npz", images=np.full((2, 6, 4, 2), 77, dtype=np.uint8))
    loaded = load_images(str(tmp_path / "flat.npz"), 3)
    # A flat image is flat at every size.
    assert loaded.shape == (2, 3, 3)
    assert loaded.pixels.unique().tolist() == [77]


def test_digits_fill_the_range_of_uint8() -> None:
    loaded = load_images("digits")
    # 1797 images of 17 levels, 0 to 16, spread over 0 to 255: level k is round(k * 255 / 16).
    assert loaded.pixels.shape == (1797, 1, 8, 8)
    assert loaded.pixels.unique().tolist() == [round(k * 255 / 16) for k in range(17)]
    assert load_images("digits", 16).shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 4), "u1"), ((2, 4, 4), "f4"), ((2, 4, 4, 5), "u1"), ((0, 4, 4), "u1")]
)
def test_npz_of_wrong_shape_or_type_says_which(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    array = np.zeros(shape, dtype)
    np.savez(tmp_path / "bad.npz", images=array)
    text = message(tmp_path / "bad.npz")
    assert "bad.npz" in text and "uint8 [N, H, W]" in text and str(list(array.shape)) in text


def test_npz_without_images_names_what_it_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    assert "images or arr_0, found weights" in message(tmp_path / "other.npz")


def test_unreadable_sources_are_named(tmp_path: Path) -> None:
    assert "found none" in message(tmp_path)
    assert "no such file or folder" in message(tmp_path / "missing")
    whole = tmp_path / "whole.npz"
    np.savez(whole, images=np.zeros((2, 64, 64), np.uint8))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:2000])
    assert "cut.npz: not a readable .npz" in message(tmp_path / "cut.npz")
    broken = tmp_path / "folder" / "broken.png"
    picture(broken, (64, 64))
    broken.write_bytes(broken.read_bytes()[:3000])
    assert "none of its 1 images can be read" in message(tmp_path / "folder")
    assert "broken.png: " in message(tmp_path / "folder")
    (tmp_path / "list.csv").write_text("a,b")
    assert "expected a folder" in message(tmp_path / "list.csv")
    assert "--image-size" in message("digits", 4)


def test_an_unreadable_image_among_good_ones_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: what cannot be read is left out with a count and its name, never silently."""
    good = picture(tmp_path / "b.png")
    for i in range(7):
        (tmp_path / f"a{i}.png").write_bytes(b"no picture")
    loaded = load_images(str(tmp_path))
    assert np.array_equal(loaded.pixels[0].numpy().transpose(1, 2, 0), good) and len(loaded.pixels) == 1
    output = capsys.readouterr().err
    assert "7 of 8 images cannot be read and are left out" in output and output.count("\n") == 1
    assert "a0.png" in output and "a4.png" in output and "a5.png" not in output and "and 2 more" in output


def test_digest_tells_pixels_and_shapes_apart() -> None:
    loaded = load_images("digits")
    other = type(loaded)(loaded.pixels.clone(), "renamed")
    assert other.digest() == loaded.digest()
    other.pixels[5, 0, 3, 3] ^= 1
    assert other.digest() != loaded.digest()
    assert type(loaded)(loaded.pixels.view(1797, 1, 4, 16), "digits").digest() != loaded.digest()


def test_every_image_comes_once_an_epoch_whatever_the_batch() -> None:
    order = ImageOrder(10, seed=3)
    places = torch.cat([order(first, 4) for first in range(0, 40, 4)])
    for epoch in places.view(4, 10):
        assert sorted(epoch.tolist()) == list(range(10))
    # Asked for in another order, and in pieces that straddle epochs, each place holds the same image.
    for first, size in ((35, 5), (3, 25), (0, 7), (19, 2)):
        assert ImageOrder(10, seed=3)(first, size).tolist() == places[first : first + size].tolist()
    # 10! orders: two equal ones out of a few would be a fault, not chance.
    assert len({tuple(epoch.tolist()) for epoch in places.view(4, 10)}) == 4
    assert ImageOrder(10, seed=4)(0, 10).tolist() != places[:10].tolist()


def test_photographs_stand_as_their_camera_says(tmp_path: Path) -> None:
    upright = np.zeros((4, 6), dtype=np.uint8)
    upright[0] = 255
    turned = Image.fromarray(np.rot90(upright, 1).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to show
    turned.save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(load_images(str(tmp_path)).pixels[0, 0].numpy(), upright)


def header(text: str) -> bytes:
    """An .npy file whose header says this, and 12 bytes of images."""
    line = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + bytes(12)


@pytest.mark.parametrize(
    "shape", ["(-1, 4, 3)", "(-4, 1, 3)", "(9**9, 1, 3)", "(" * 3, "(1e3, 1)", f"({10**30}, 1, 1)"]
)
def test_an_array_whose_header_says_what_cannot_be(tmp_path: Path, shape: str) -> None:
    # Rule: whatever numpy raises, one sentence; in an .npz as in an .npy.
    content = header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}")
    (tmp_path / "a.npy").write_bytes(content)
    pack(tmp_path / "a.npz", {"images.npy": content})
    for name in ("a.npy", "a.npz"):
        assert f"{name}: not a readable" in message(tmp_path / name)


@pytest.mark.parametrize("content", [pickle.dumps([1]), b"no array at all"], ids=["pickle", "text"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_no_advice_to_unpickle(tmp_path: Path, suffix: str, content: bytes) -> None:
    # Rule: what may run other people's code is refused, and not recommended.
    (tmp_path / f"a{suffix}").write_bytes(content)
    text = message(tmp_path / f"a{suffix}")
    assert "allow_pickle" not in text and "load" not in text and "another kind of file" in text


@pytest.mark.parametrize("channels", [3, 4])
def test_one_image_in_colour_is_not_read_as_narrow_grey_ones(tmp_path: Path, channels: int) -> None:
    # Rule: three axes of which the last is 3 or 4 can be either, so that the way out names both.
    pixels = random_pixels(shape=(8, 7, channels))
    np.save(tmp_path / "one.npy", pixels)
    np.savez(tmp_path / "one.npz", images=pixels)
    for name in ("one.npy", "one.npz"):
        text = message(tmp_path / name)
        assert f"make it [1, 8, 7, {channels}] or [8, 7, {channels}, 1]" in text
    np.save(tmp_path / "one.npy", pixels[None])
    assert load_images(str(tmp_path / "one.npy")).shape == (channels, 8, 7)
    # What `softdiff dataset` writes of such narrow images can be read again.
    np.save(tmp_path / "narrow.npy", pixels[..., None])
    convert(DatasetConfig(str(tmp_path / "narrow.npy"), out=str(tmp_path / "narrow.npz")), say=lambda _: None)
    assert np.array_equal(load_images(str(tmp_path / "narrow.npz")).pixels[:, 0], pixels)
