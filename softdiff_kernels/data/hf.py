# SPDX-License-Identifier: Apache-2.0
"""Data sets of the package `datasets` (Hugging Face), which is imported only here."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import IO, Any

from ..errors import UserError, need
from ..files import HF as PREFIX
from .decode import decode
from .labels import Labels, from_values
from .pixels import Found, Wanted

LABELS = ("label", "labels")


def parsed(source: str) -> tuple[str, str]:
    """The name or path, and the split, of hf:NAME_OR_PATH[:SPLIT]."""
    name = source.removeprefix(PREFIX)
    split = re.fullmatch(r"(.+?):([A-Za-z_]\w*(?:\[[^\]]*\])?)", name)
    return (name, "train") if split is None or Path(name).exists() else (split[1], split[2])


def read_hf(source: str, wanted: Wanted) -> Found:
    """A split's first column of images, and its labels. Rows are decoded as files are."""
    datasets: Any = need("datasets", "a Hugging Face data set", "hf")
    name, split = parsed(source)
    if not name:
        raise UserError(f"{source}: expected hf:NAME or hf:FOLDER, with a :SPLIT behind it or not")
    try:
        table = _loaded(datasets, name, split, source)
        if len(table) == 0:
            raise UserError(f"{source}: expected at least one image, found no rows")
        columns = table.features
        images = [c for c, feature in columns.items() if isinstance(feature, datasets.Image)]
        if not images:
            told = ", ".join(f"{c} ({type(feature).__name__})" for c, feature in columns.items())
            raise UserError(f"{source}: expected a column of images, found {told or 'none'}")
        labels = _labels(table, columns, source)
        table = table.select_columns([images[0]]).cast_column(images[0], datasets.Image(decode=False))
        count = len(table) if wanted.limit is None else min(wanted.limit, len(table))
    except UserError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # the package, its file systems and its network client each have their own
        told = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source}: cannot be loaded as split {split} of a data set ({told})") from error

    def opened(i: int) -> Path | IO[bytes]:
        cell = table[i][images[0]]
        if cell is None or (cell.get("bytes") is None and not cell.get("path")):
            raise ValueError("no image in this row")
        return Path(cell["path"]) if cell.get("bytes") is None else io.BytesIO(cell["bytes"])

    decoded = decode([f"{source} row {i}" for i in range(count)], opened, wanted, source)
    return decoded.found(labels)


def _loaded(datasets: Any, name: str, split: str, source: str) -> Any:
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise UserError(f"{name}: expected one of the splits {', '.join(splits)}, got {split}")
        folder = folder / split
    elif not (folder / "state.json").is_file():
        return datasets.load_dataset(name, split=split)
    elif split != "train":
        raise UserError(f"{name}: holds one split alone, so that :{split} cannot be chosen")
    if not json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]:
        raise UserError(f"{source}: expected at least one image, found no rows")  # the package cannot load it
    return datasets.load_from_disk(str(folder))


def _labels(table: Any, columns: Any, source: str) -> Labels:
    column = next((c for c in LABELS if c in columns), None)
    if column is None:
        return Labels()
    values = table.select_columns([column])[:][column]
    if any(value is None for value in values):
        return Labels(fault=f"{source}: expected a label in each row, got none in some")
    classes = getattr(columns[column], "names", None) or ()
    try:
        return from_values(values, len(table), f"{source}, column {column}", classes)
    except (ValueError, OverflowError) as error:  # lists of several lengths are no array
        return Labels(fault=f"{source}, column {column}: expected one whole number a row ({error})")
