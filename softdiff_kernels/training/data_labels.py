# SPDX-License-Identifier: Apache-2.0
"""Class labels: from arrays, from a dataset.json, and from the names of folders."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

MOST_CLASSES = 1_000_000
WHERE_FROM = (
    "labels come from class sub-folders (every image in one, two or more of them), from a dataset.json by "
    "the images, from an array labels in an .npz file, or from a column label of a Hugging Face data set"
)


@dataclass(frozen=True)
class Labels:
    """values: int64 [N] in 0..K-1, or None; classes: K names. fault: why labels that are there cannot be
    used; note: what is odd about labels that can."""

    values: np.ndarray[Any, Any] | None = None
    classes: tuple[str, ...] = ()
    fault: str = ""
    note: str = ""

    def take(self, places: Any) -> Labels:
        """The labels of some of the images."""
        return self if self.values is None else replace(self, values=self.values[places])


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
        names, places = np.unique(array, return_inverse=True)
        return Labels(places.reshape(-1).astype(np.int64), tuple(names.tolist()))
    least, most = (int(array.min()), int(array.max())) if count else (0, -1)
    if least < 0:
        return Labels(fault=f"{wanted}, got {least}")
    bound = len(classes) or MOST_CLASSES
    if most >= bound:
        known = f"{bound} class names" if classes else f"at most {bound} classes"
        return Labels(fault=f"{where}: expected labels of {known}, got {most}")
    return Labels(array.astype(np.int64), tuple(classes) or tuple(map(str, range(most + 1))))


def from_json(text: bytes, names: Sequence[str], where: str) -> Labels:
    """Labels by EDM's dataset.json, {"labels": [[NAME, LABEL], ...]} or {"labels": null}, for the images
    `names`. A list "classes" of names beside it is taken too."""
    wanted = f'{where}: expected {{"labels": [[NAME, LABEL], ...]}} with a whole number for each image'
    try:
        content = json.loads(text)
        pairs = content.get("labels") if isinstance(content, dict) else content["labels"]
        if pairs is None:
            return Labels()
        found = {str(name).replace("\\", "/"): label for name, label in pairs}
        classes = [str(name) for name in content.get("classes") or ()]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return Labels(fault=f"{wanted}, got something else ({error})")
    missing = [name for name in names if name not in found]
    if missing:
        return Labels(
            fault=f"{where}: expected a label for each image, got none for {len(missing)} of {len(names)}, "
            f"such as {missing[0]}"
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
        labels = replace(labels, note=note + absent[0])
    return labels


def from_folders(names: Sequence[str]) -> Labels:
    """Labels by the first folder of each image's path, where every image lies in one and there are two or
    more. Folders named by five digits or more (00000, 00001) are parts of a large set, not classes."""
    firsts = [name.partition("/")[0] if "/" in name else None for name in names]
    classes = sorted({first for first in firsts if first is not None})
    if None in firsts or len(classes) < 2 or all(re.fullmatch(r"\d{5,}", name) for name in classes):
        return Labels()
    place = {name: i for i, name in enumerate(classes)}
    return Labels(np.array([place[first] for first in firsts if first is not None], np.int64), tuple(classes))
