# SPDX-License-Identifier: Apache-2.0
"""What `softdiff sample` writes, and how it is read back: one PNG for each seed, named by the seed, in a
folder (or packed as .zip) with a record of how the images were made; or one .npz with the record inside."""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import UserError, reason, user_errors
from ..files import write_atomically
from .choices import format_seeds, parse_seeds
from .image_set import ImageSet
from .sources import ARRAY_ERRORS, zip_entries

RECORD = "samples.json"
NPZ_RECORD = "record"
"""The record's name inside an .npz. It describes the images in that file, not those in a folder beside it."""
GRID = "grid.png"
Load = Callable[[str], ImageSet]


def image_name(seed: int) -> str:
    """000063.png: a seed's image has this name, whatever else is drawn."""
    return f"{seed:06d}.png"


def named_seeds(names: Iterable[str]) -> list[int]:
    """The seeds that these file names stand for, in rising order; other names are skipped."""
    return sorted(int(name[:-4]) for name in names if re.fullmatch(r"\d+\.png", name))


def read_record(path: Path) -> dict[str, Any]:
    """How `softdiff sample` made its images, as it wrote it; empty if there is no such file."""
    if not path.is_file():
        return {}
    with user_errors():
        content = path.read_bytes()
    return as_record(content, str(path))


def as_record(content: bytes, where: str) -> dict[str, Any]:
    """The record in a file's bytes; UserError if they hold none."""
    try:
        record = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as a record of `softdiff sample` ({error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object, as `softdiff sample` writes it")
    return record


def recorded_seeds(record: dict[str, Any], where: str) -> list[int]:
    """The seeds that a record names, in rising order."""
    try:
        return sorted(parse_seeds(str(record["seeds"])))
    except (KeyError, UserError):
        raise UserError(f"{where}: its {RECORD} does not name the seeds of its images") from None


def check_record(record: dict[str, Any], seeds: Sequence[int], where: str) -> None:
    """Refuses images of other seeds than those that the record names: the record is not theirs."""
    expected = recorded_seeds(record, where)
    if sorted(seeds) == expected:
        return
    wrong = sorted(set(seeds) ^ set(expected)) or seeds[:1]
    raise UserError(
        f"{where}: expected the images of the {len(expected)} seeds that its {RECORD} names, got "
        f"{len(seeds)}; {image_name(wrong[0])} is in only one of the two, or there twice: draw them again "
        "into another folder"
    )


def enter_folder(folder: Path, record: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Makes room for images of `seeds` in a folder. Returns the record of these and of those that stay there.

    UserError, and nothing is changed, if the folder holds other images that were made differently, because
    its one record would be wrong about them, or that have no record and may not be samples at all.
    """
    existing = {path: int(path.stem) for path in folder.glob("*.png") if named_seeds([path.name])}
    old = read_record(folder / RECORD)
    drawn = set(seeds)
    others = {seed for seed in existing.values() if not old or seed not in drawn}
    if others:
        # The place of the weights makes no difference: their digest identifies them.
        changed = [name for name in record if name != "weights" and old.get(name) != record[name]]
        if not old or changed or not others.issubset(recorded_seeds(old, str(folder))):
            how = f"made differently ({', '.join(changed)})" if old else f"without a {RECORD}"
            raise UserError(
                f"--outdir: {folder} already holds {len(others)} images, such as {image_name(min(others))}, "
                f"{how}; choose another folder, or remove them"
            )
    # If this call is cut short, images are missing; none of an earlier call stays under the new record.
    for path, seed in existing.items():
        if seed not in others:
            path.unlink(missing_ok=True)
    (folder / GRID).unlink(missing_ok=True)
    return {**record, "seeds": format_seeds(others.union(seeds))}


def check_npz(path: Path) -> None:
    """Raises UserError where --npz would replace a file that `softdiff sample` did not write, such as a data
    set."""
    if not path.exists():
        return
    try:
        with np.load(path, allow_pickle=False) as archive:
            own = NPZ_RECORD in archive.files
    except ARRAY_ERRORS:
        own = False
    if not own:
        raise UserError(f"{path} exists already and was not written by softdiff sample: choose another --npz")


def save_npz(
    path: Path,
    images: Tensor,
    seeds: Sequence[int],
    record: Mapping[str, Any],
    labels: Sequence[int] | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Writes uint8 images [N, C, H, W] as [N, H, W, C] under arr_0, the name that other evaluators read,
    with the record of how they were made."""
    arrays: dict[str, Any] = {"arr_0": images.permute(0, 2, 3, 1).numpy(), "seeds": np.array(seeds)}
    arrays[NPZ_RECORD] = np.array(json.dumps({**record, "seeds": format_seeds(seeds)}))
    if labels is not None:
        arrays |= {"labels": np.array(labels), "classes": np.array(classes, dtype=str)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


@dataclass(frozen=True)
class SavedSamples:
    """Images and what is known of them. record: how they were made, empty if that is not known; seeds: of the
    images, in their order, empty if they are not known."""

    images: ImageSet
    record: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)


def read_samples(source: str, load: Load) -> SavedSamples:
    """Images from what `softdiff sample` wrote, or from any other data set, read by `load`.

    UserError if a record cannot be read, or names other images than those that are there.
    """
    path = Path(source)
    readers = {".zip": _from_zip, ".npz": _from_npz}
    reader = _from_folder if path.is_dir() else readers.get(path.suffix.lower())
    return SavedSamples(load(source)) if reader is None else reader(path, load)


def _from_folder(folder: Path, load: Load) -> SavedSamples:
    """Only the images, not the pictures that `softdiff sample` draws beside them."""
    files = {p.name: p.read_bytes for p in folder.glob("*.png") if named_seeds([p.name])}
    record = read_record(folder / RECORD)
    if not files or not (record or (folder / GRID).is_file()):
        return SavedSamples(load(str(folder)))
    return _from_files(files, record, str(folder), load)


def _from_zip(path: Path, load: Load) -> SavedSamples:
    """As of the folder that was packed. UserError if not all of its images can be read."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile):
        return SavedSamples(load(str(path)))  # which says what is wrong with it

    def read(entry: zipfile.ZipInfo) -> bytes:
        try:
            return archive.read(entry)
        except (RuntimeError, zlib.error, zipfile.BadZipFile) as error:  # RuntimeError: a password
            raise UserError(f"{path}: {entry.filename} cannot be unpacked ({error})") from error

    with archive:
        entries, _ = zip_entries(archive)
        records = [parts for parts in entries if parts[-1] == RECORD]
        if len(records) != 1:
            return SavedSamples(load(str(path)))
        top = records[0][:-1]
        depth = len(top)
        inside = {"/".join(p[depth:]): partial(read, e) for p, e in entries.items() if p[:depth] == top}
        files = {name: unpack for name, unpack in inside.items() if named_seeds([name])}
        return _from_files(files, as_record(inside[RECORD](), f"{path}: {RECORD}"), str(path), load)


def _from_npz(path: Path, load: Load) -> SavedSamples:
    """The images, and the record that `softdiff sample --npz` put beside them."""
    images = load(str(path))
    with np.load(path, allow_pickle=False) as archive:
        if NPZ_RECORD not in archive.files or "seeds" not in archive.files:
            return SavedSamples(images)
        try:
            seeds, record = archive["seeds"], str(archive[NPZ_RECORD])
        except ARRAY_ERRORS as error:
            raise UserError(f"{path}: its seeds and {NPZ_RECORD} cannot be read ({reason(error)})") from error
    if seeds.shape != (len(images.pixels),) or seeds.dtype.kind not in "iu" or seeds.min() < 0:
        got = f"{seeds.dtype} {list(seeds.shape)}"
        raise UserError(f"{path}: expected seeds as a whole number from 0 up for each image, got {got}")
    return SavedSamples(images, as_record(record.encode(), f"{path}: {NPZ_RECORD}"), seeds.tolist())


def _from_files(
    files: Mapping[str, Callable[[], bytes]], record: dict[str, Any], where: str, load: Load
) -> SavedSamples:
    """Only these files, by name, checked against their record."""
    if record:
        check_record(record, named_seeds(files), where)
    with tempfile.TemporaryDirectory() as folder:
        for name, read in files.items():
            (Path(folder) / name).write_bytes(read())
        images = load(folder)
    # Images that could not be read were left out with a warning: then it is not known which seeds these are.
    complete = record and len(images.pixels) == len(files)
    return SavedSamples(images, record, [int(name[:-4]) for name in sorted(files)] if complete else [])
