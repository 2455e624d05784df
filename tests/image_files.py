# SPDX-License-Identifier: Apache-2.0
"""Small images in folders and zips, for tests of data sets."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softdiff_kernels.training.data import load_images
from softdiff_kernels.training.errors import UserError


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


def message(source: Path | str, **options: Any) -> str:
    """The sentence with which a source is refused: one line, whatever went wrong."""
    with pytest.raises(UserError) as caught:
        load_images(str(source), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labels_json(*pairs: tuple[str, Any]) -> bytes:
    return json.dumps({"labels": [list(pair) for pair in pairs]}).encode()
