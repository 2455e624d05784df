# SPDX-License-Identifier: Apache-2.0
"""Data sets in .npz files, an array of images and perhaps one of labels, or .npy files, of images alone."""

from __future__ import annotations

import tokenize
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, reason
from ..memory import is_out_of_memory
from .formats import UNREADABLE
from .labels import Labels, from_values
from .pixels import MODES, Found, Pixels, Wanted, check_memory, from_array

IMAGES = ("images", "arr_0")
LABELS = ("labels", "y", "label")
DAMAGED = (*UNREADABLE, OverflowError, AttributeError, RecursionError, tokenize.TokenError)
"""What numpy raises for files that are none, or whose headers say what cannot be."""


def read_npz(path: Path, wanted: Wanted) -> Found:
    """The arrays `images` (or `arr_0`), uint8 [N, H, W] or [N, H, W, C], and `labels` (or `y`, `label`),
    whole numbers [N], with `classes`, their names, beside them."""
    try:
        opened: Any = np.load(path, allow_pickle=False, mmap_mode="r")
        if isinstance(opened, np.ndarray):
            raise UserError(
                f"{path}: expected an .npz file, got one array alone, as in an .npy file: name it so"
            )
        with opened as archive:
            name = _first(IMAGES, archive)
            if name is None:
                found = ", ".join(archive.files) or "nothing"
                raise UserError(f"{path}: expected an array named images or arr_0, found {found}")
            size = sum(e.file_size for e in archive.zip.infolist() if e.filename in (name, f"{name}.npy"))
            check_memory(size, f"the images in {path}")
            array = archive[name]
            labels = _labels(archive, path, array)
    except UserError:
        raise
    except DAMAGED as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path}: not a readable .npz file ({_damage(error)})") from error
    return _found(array, labels, f"{path}: expected {name}", wanted)


def read_npy(path: Path, wanted: Wanted) -> Found:
    """An array of images as in an .npz file, without labels."""
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
        if not isinstance(array, np.ndarray):
            array.close()
            raise UserError(f"{path}: expected an .npy file, got an .npz file: name it so")
        check_memory(array.nbytes, f"the images in {path}")
        labels = Labels(why="an .npy file holds images alone")
        return _found(np.array(array), labels, f"{path}: expected an array", wanted)
    except UserError:
        raise
    except DAMAGED as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path}: not a readable .npy file ({_damage(error)})") from error


def _damage(error: Exception) -> str:
    told = reason(error)
    # Of any other file as well numpy says that it is pickled, and how to run what is in it.
    pickled = "allow_pickle" in told or "Python objects" in told
    return "it holds Python objects, which are not read, or is another kind of file" if pickled else told


def _found(array: Pixels, labels: Labels, what: str, wanted: Wanted) -> Found:
    what = f"{what} as uint8 [N, H, W] or [N, H, W, C] with C of 1 to 4"
    shaped = array.ndim == 3 or (array.ndim == 4 and 1 <= array.shape[3] <= 4)
    if array.dtype != np.uint8 or not shaped:
        raise UserError(f"{what}, got {array.dtype} {list(array.shape)}")
    if 0 in array.shape:
        raise UserError(f"{what} and at least one image, got {list(array.shape)}")
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.shape[2] < min(array.shape[:2]):
        count, height, width = array.shape
        raise UserError(
            f"{what}, got {list(array.shape)}, which can be one image in colour or {count} grey ones: make "
            f"it {[1, count, height, width]} or {[count, height, width, 1]}"
        )
    if array.ndim == 3:
        array = array[..., None]
    pixels = from_array(array, wanted)
    count = len(pixels)
    sizes = Counter({(array.shape[2], array.shape[1]): count})
    return Found(pixels, labels.take(slice(count)), sizes, Counter({MODES[array.shape[3]]: count}))


def _first(names: Sequence[str], archive: np.lib.npyio.NpzFile) -> str | None:
    return next((name for name in names if name in archive.files), None)


def _labels(archive: np.lib.npyio.NpzFile, path: Path, images: Pixels) -> Labels:
    name = _first(LABELS, archive)
    if name is None or images.ndim == 0:
        return Labels()
    try:
        values = archive[name]
        classes = archive["classes"] if "classes" in archive.files else np.empty(0, str)
    except ValueError:  # an array of objects, which would have to be unpickled
        return Labels(fault=f"{path}: its arrays {name} and classes cannot be read: they hold Python objects")
    if classes.ndim != 1 or classes.dtype.kind not in "USiu":
        got = f"{classes.dtype} {list(classes.shape)}"
        return Labels(fault=f"{path}, array classes: expected a list of names, got {got}")
    try:
        values, classes = (
            np.char.decode(a, "utf-8") if a.dtype.kind == "S" else a for a in (values, classes)
        )
    except UnicodeDecodeError as error:
        return Labels(fault=f"{path}: names of classes are not UTF-8 ({error})")
    names = [str(c) for c in classes.tolist()]
    return from_values(values, len(images), f"{path}, array {name}", names)
