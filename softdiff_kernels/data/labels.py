# SPDX-License-Identifier: Apache-2.0
"""Class labels: from arrays, from a dataset.json, and from the names of folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np

from .names import Parts, listed, parts_of, shown

MOST_CLASSES = 1_000_000
SPLITS = frozenset(
    (
        *("train", "training", "test", "testing", "val", "valid", "validation"),
        *("eval", "evaluation", "dev", "extra"),
    )
)
"""Folders with these names are usually parts of one set."""


@dataclass(frozen=True)
class Labels:
    """values: int64 [N] in 0..K-1, or None; classes: K names.

    error: why labels that exist cannot be used; note: a remark on labels that can; absent: why there are no
    labels."""

    values: np.ndarray[Any, Any] | None = None
    classes: tuple[str, ...] = ()
    error: str = ""
    note: str = ""
    absent: str = ""

    def take(self, places: Any) -> Labels:
        """The labels of some of the images."""
        return self if self.values is None else replace(self, values=self.values[places])


def class_order(names: Iterable[str]) -> list[str]:
    """Each name once: numbers first, by value (2 before 10), then the others in alphabetical order."""

    def key(name: str) -> tuple[bool, Decimal, str]:
        number = re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", name)
        return number is None, Decimal(name if number else 0), name

    return sorted(set(names), key=key)


def from_values(values: Any, count: int, where: str, classes: Sequence[str] = ()) -> Labels:
    """Labels from one number, or one name, for each image. where: the place that errors name."""
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    expected = f"{where}: expected one whole number from 0 up for each of {count} images"
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        return Labels(error=f"{expected}, got {array.dtype} {list(array.shape)}")
    if len(array) != count:
        return Labels(error=f"{expected}, got {len(array)}")
    if array.dtype.kind == "U":
        return _from_names(array.tolist())
    least, most = (int(array.min()), int(array.max())) if count else (0, -1)
    if least < 0:
        return Labels(error=f"{expected}, got {least}")
    bound = len(classes) or MOST_CLASSES
    if most >= bound:
        expected = f"{bound} class names" if classes else f"at most {bound} classes"
        return Labels(error=f"{where}: expected labels of {expected}, got {most}")
    return Labels(array.astype(np.int64), tuple(classes) or tuple(map(str, range(most + 1))))


def _from_names(names: list[str]) -> Labels:
    """Labels from the name of each image's class."""
    classes = class_order(names)
    number = {name: i for i, name in enumerate(classes)}
    return Labels(np.array([number[name] for name in names], np.int64), tuple(classes))


def from_json(text: bytes, images: Sequence[Parts], where: str) -> Labels:
    """Labels from EDM's dataset.json, {"labels": [[NAME, LABEL], ...]} or {"labels": null}.
    A list "classes" of names beside it is read too."""
    expected = f'{where}: expected {{"labels": [[NAME, LABEL], ...]}} with a whole number for each image'
    try:
        content = json.loads(text)
        pairs = content.get("labels") if isinstance(content, dict) else content["labels"]
        if pairs is None:
            return Labels()
        entries = [("/".join(parts_of(str(name))), label) for name, label in pairs]
        label_of: dict[str, Any] = dict(entries)
        classes = content.get("classes") or []
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            return Labels(
                error=f'{where}: expected "classes" as a list of names, got {json.dumps(classes)[:80]}'
            )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return Labels(error=f"{expected}, got something else ({error})")
    twice = next((name for name, label in entries if label_of[name] != label), None)
    if twice is not None:
        return Labels(error=f"{where}: expected one label for each image, got two for {shown(twice)}")
    names = ["/".join(parts) for parts in images]
    missing = [name for name in names if name not in label_of]
    if missing:
        return Labels(
            error=f"{where}: expected a label for each image, got none for {len(missing)} of {len(names)}, "
            f"such as {shown(missing[0])}"
        )
    values = [label_of[name] for name in names]
    wrong = [value for value in values if type(value) is not int]  # null among them
    if wrong:
        return Labels(error=f"{expected}, got {json.dumps(wrong[0])[:80]}")
    too_large = next((value for value in values if abs(value) >= 2**63), None)
    if too_large is not None:
        return Labels(error=f"{expected}, got {too_large}")
    absent = sorted(set(label_of) - set(names))
    labels = from_values(np.array(values, np.int64), len(names), where, classes)
    if absent:
        note = f"{where}: {len(absent)} of its {len(label_of)} labels are for images that do not exist, "
        labels = replace(labels, note=f"{note}such as {shown(absent[0])}")
    return labels


def from_folders(images: Sequence[Parts]) -> Labels:
    """Labels from the first folder of each image's path, if every image is in a folder and there are at
    least two. Folders named by five digits or more (00000, 00001) are parts of a large set, not classes."""
    outside = ["/".join(parts) for parts in images if len(parts) == 1]
    folders = [parts[0] for parts in images if len(parts) > 1]
    labels = _from_names(folders)
    names = listed(dict.fromkeys(labels.classes, ""))
    if not folders:
        return Labels(absent="its images are in no sub-folder")
    if outside:
        where = f"{len(outside)} of its {len(images)} images are in none of its sub-folders"
        return Labels(absent=f"{where}, such as {shown(outside[0])}")
    if len(labels.classes) == 1:
        return Labels(
            absent=f"its images are all in the one folder {names}; if the folders in it are the classes, "
            "give that one as the data set"
        )
    if all(re.fullmatch(r"\d{5,}", name) for name in labels.classes):
        return Labels(
            absent=f"its folders ({names}) have names of five digits or more, which mean parts of a large "
            f"set, not classes; if they are classes, rename them (id{labels.classes[0]}, for example) or "
            "write their numbers into a dataset.json"
        )
    if all(name.lower() in SPLITS for name in labels.classes):
        note = (
            f"its classes became {names}, which look like parts of one data set; if the classes are the "
            "folders in them, give one of these parts alone as the data set"
        )
        labels = replace(labels, note=note)
    return labels
