# SPDX-License-Identifier: Apache-2.0
"""Class labels: from arrays, from a dataset.json, and from the names of folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np

from .names import Parts, listed, parts_of, printable, shown

MOST_CLASSES = 1_000_000
MOST_SHOWN = 20
SPLITS = frozenset(
    (
        *("train", "training", "test", "testing", "val", "valid", "validation"),
        *("eval", "evaluation", "dev", "extra"),
    )
)
"""Folders that are called so are usually parts of one set."""
WHERE_FROM = (
    "labels come from class sub-folders (every image in one, two or more of them), from a dataset.json by "
    "the images, from an array labels in an .npz file, or from a column label of a Hugging Face data set"
)


@dataclass(frozen=True)
class Labels:
    """values: int64 [N] in 0..K-1, or None; classes: K names. fault: why labels that are there cannot be
    used; note: what is odd about labels that can; why: of class folders, why they give no labels."""

    values: np.ndarray[Any, Any] | None = None
    classes: tuple[str, ...] = ()
    fault: str = ""
    note: str = ""
    why: str = ""

    def take(self, places: Any) -> Labels:
        """The labels of some of the images."""
        return self if self.values is None else replace(self, values=self.values[places])


def class_order(names: Iterable[str]) -> list[str]:
    """Each name once: numbers first, as numbers (2 before 10), then the others by the alphabet."""

    def place(name: str) -> tuple[bool, Decimal, str]:
        number = re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", name)
        return number is None, Decimal(name if number else 0), name

    return sorted(set(names), key=place)


def class_table(classes: Sequence[str]) -> Iterator[str]:
    """Lines of number and name, as many as fit a screen."""
    yield "classes, number and name:"
    yield from (f"  {i:4}  {printable(name)}" for i, name in enumerate(classes[:MOST_SHOWN]))
    if len(classes) > MOST_SHOWN:
        yield f"  and {len(classes) - MOST_SHOWN} more"


def from_values(values: Any, count: int, where: str, classes: Sequence[str] = ()) -> Labels:
    """Labels from one number, or one name, an image. where: how a fault calls them."""
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    wanted = f"{where}: expected one whole number from 0 up for each of {count} images"
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        return Labels(fault=f"{wanted}, got {array.dtype} {list(array.shape)}")
    if len(array) != count:
        return Labels(fault=f"{wanted}, got {len(array)}")
    if array.dtype.kind == "U":
        return _named(array.tolist())
    least, most = (int(array.min()), int(array.max())) if count else (0, -1)
    if least < 0:
        return Labels(fault=f"{wanted}, got {least}")
    bound = len(classes) or MOST_CLASSES
    if most >= bound:
        known = f"{bound} class names" if classes else f"at most {bound} classes"
        return Labels(fault=f"{where}: expected labels of {known}, got {most}")
    return Labels(array.astype(np.int64), tuple(classes) or tuple(map(str, range(most + 1))))


def _named(names: list[str]) -> Labels:
    """Labels from the name of each image's class."""
    classes = class_order(names)
    number = {name: i for i, name in enumerate(classes)}
    return Labels(np.array([number[name] for name in names], np.int64), tuple(classes))


def from_json(text: bytes, images: Sequence[Parts], where: str) -> Labels:
    """Labels by EDM's dataset.json, {"labels": [[NAME, LABEL], ...]} or {"labels": null}, for the images.
    A list "classes" of names beside it is taken too."""
    wanted = f'{where}: expected {{"labels": [[NAME, LABEL], ...]}} with a whole number for each image'
    try:
        content = json.loads(text)
        pairs = content.get("labels") if isinstance(content, dict) else content["labels"]
        if pairs is None:
            return Labels()
        named = [("/".join(parts_of(str(name))), label) for name, label in pairs]
        found: dict[str, Any] = dict(named)
        classes = content.get("classes") or []
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            return Labels(
                fault=f'{where}: expected "classes" as a list of names, got {json.dumps(classes)[:80]}'
            )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return Labels(fault=f"{wanted}, got something else ({error})")
    twice = next((name for name, label in named if found[name] != label), None)
    if twice is not None:
        return Labels(fault=f"{where}: expected one label for each image, got two for {shown(twice)}")
    names = ["/".join(parts) for parts in images]
    missing = [name for name in names if name not in found]
    if missing:
        return Labels(
            fault=f"{where}: expected a label for each image, got none for {len(missing)} of {len(names)}, "
            f"such as {shown(missing[0])}"
        )
    values = [found[name] for name in names]
    odd = [value for value in values if type(value) is not int]  # null among them
    if odd:
        return Labels(fault=f"{wanted}, got {json.dumps(odd[0])[:80]}")
    too_large = next((value for value in values if abs(value) >= 2**63), None)
    if too_large is not None:
        return Labels(fault=f"{wanted}, got {too_large}")
    absent = sorted(set(found) - set(names))
    labels = from_values(np.array(values, np.int64), len(names), where, classes)
    if absent:
        note = f"{where}: {len(absent)} of its {len(found)} labels are of images that are not there, such as "
        labels = replace(labels, note=note + shown(absent[0]))
    return labels


def from_folders(images: Sequence[Parts]) -> Labels:
    """Labels by the first folder of each image's path, where every image lies in one and there are two or
    more. Folders named by five digits or more (00000, 00001) are parts of a large set, not classes."""
    outside = ["/".join(parts) for parts in images if len(parts) == 1]
    firsts = [parts[0] for parts in images if len(parts) > 1]
    labels = _named(firsts)
    told = listed(dict.fromkeys(labels.classes, ""))
    if not firsts:
        return Labels(why="its images lie in no sub-folder")
    if outside:
        where = f"{len(outside)} of its {len(images)} images lie in none of its sub-folders"
        return Labels(why=f"{where}, such as {shown(outside[0])}")
    if len(labels.classes) == 1:
        return Labels(
            why=f"its images lie all in the one folder {told}; if the folders in it are the classes, give "
            "that one as the data set"
        )
    if all(re.fullmatch(r"\d{5,}", name) for name in labels.classes):
        return Labels(
            why=f"its folders ({told}) have names of five digits or more, which are taken for parts of a "
            f"large set and not for classes; if they are, rename them (id{labels.classes[0]}, say) or "
            "write their numbers into a dataset.json"
        )
    if all(name.lower() in SPLITS for name in labels.classes):
        note = (
            f"its classes became {told}, which look like parts of one data set; if the classes are the "
            "folders in them, give one of these parts alone as the data set"
        )
        labels = replace(labels, note=note)
    return labels
