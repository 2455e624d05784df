# SPDX-License-Identifier: Apache-2.0
"""Small images in folders and zips, for tests of data sets."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softdiff_kernels.data import load_images
from softdiff_kernels.errors import UserError


def random_pixels(seed: int = 0, shape: tuple[int, ...] = (4, 6, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def fill(folder: Path, files: Mapping[str, bytes | np.ndarray]) -> Path:
    """A folder with these files, images where arrays are given."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(content) if isinstance(content, np.ndarray) else content)
    return folder


def pack(path: Path, files: Mapping[str, bytes | np.ndarray], method: int = zipfile.ZIP_STORED) -> Path:
    """The same files as a zip."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, png(content) if isinstance(content, np.ndarray) else content)
    return path


def tiff(pixels: np.ndarray, *, bits: int, sample_format: int = 1, white_is_zero: bool = False) -> bytes:
    """A grey TIFF file, [H, W], with the tags BitsPerSample and SampleFormat (1 unsigned, 2 signed, 3 float)
    as given: Pillow writes fewer kinds than it reads. 12-bit numbers are packed, two in three bytes."""
    data = pixels.tobytes()
    if bits == 12:
        pairs = pixels.reshape(-1, 2).tolist()
        data = b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in pairs)
    height, width = pixels.shape
    whole, long = 3, 4  # the types of tags: 16 and 32 bits
    tags = [
        *((256, whole, width), (257, whole, height), (258, whole, bits), (259, whole, 1)),
        *((262, whole, 0 if white_is_zero else 1), (273, long, 8), (277, whole, 1), (278, whole, height)),
        *((279, long, len(data)), (339, whole, sample_format)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    start = struct.pack("<I", 8 + len(data))
    return b"II*\0" + start + data + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def animation(form: str, frames: int = 3) -> bytes:
    """Frames 6 x 4 of the greys 10, 50, 90, ..."""
    first, *rest = [Image.new("RGB", (6, 4), (10 + 40 * i,) * 3) for i in range(frames)]
    buffer = io.BytesIO()
    first.save(buffer, form, save_all=True, append_images=rest)
    return buffer.getvalue()


def encoded(form: str, seed: int = 0) -> bytes:
    """A random picture 6 x 4 in one of Pillow's formats."""
    buffer = io.BytesIO()
    Image.fromarray(random_pixels(seed)).save(buffer, form)
    return buffer.getvalue()


def message(source: Path | str, **options: Any) -> str:
    """The sentence with which a source is refused: one line, whatever went wrong."""
    with pytest.raises(UserError) as caught:
        load_images(str(source), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labels_json(*pairs: tuple[str, Any]) -> bytes:
    return json.dumps({"labels": [list(pair) for pair in pairs]}).encode()
