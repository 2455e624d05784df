# SPDX-License-Identifier: Apache-2.0
"""Classes as they are asked for, by number or by name, and refused where both readings make sense."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ..errors import UserError
from ..training.config import described
from .names import listed, printable, shown


def named_class(number: int, classes: Sequence[str]) -> str:
    """`3 "dog"`: a class's number and its name."""
    return f'{number} "{printable(classes[number])}"'


def choose_classes(text: str, classes: Sequence[str]) -> list[int]:
    """The numbers that `3`, `0-9`, `cat,dog` or `3,dog` mean among these classes, in that order.

    number:3 and name:3 say which is meant where a class is called by the number of another. Raises
    UserError for that, and for what is neither a number nor a name.
    """
    # As people write them: another keyboard spells accents in another way, and spaces are not seen.
    text = unicodedata.normalize("NFC", text)
    classes = [unicodedata.normalize("NFC", name).strip() for name in classes]
    whole = _readings(text.strip(), classes) if "," in text else set()
    if len(whole) == 1 and text.strip().startswith("name:"):
        return list(whole.pop())
    found: list[int] = []
    try:
        for part in text.split(","):
            found += _one(part.strip(), classes)
    except UserError:
        if len(whole) != 1:
            raise
        return list(whole.pop())  # a name with a comma in it
    if whole - {tuple(found)}:
        raise UserError(
            f"--classes: {text!r} is the name of a class, and a list of others: write name:{text} for the one"
        )
    return found


def _one(part: str, classes: Sequence[str]) -> tuple[int, ...]:
    readings = _readings(part, classes)
    if len(readings) == 1:
        return readings.pop()
    if readings:
        kinds = [", ".join(named_class(i, classes) for i in reading[:3]) for reading in sorted(readings)[:3]]
        raise UserError(
            f"--classes: {part!r} can mean class {' or '.join(kinds)}: write number:... for numbers, and "
            "name:... for names"
        )
    table = listed({named_class(i, classes): "" for i in range(len(classes))})
    raise UserError(
        f"--classes: expected numbers under {len(classes)} or names of classes, got "
        f"{described(shown(part) or 'none', classes)}; the model's classes are {table}"
    )


def _readings(part: str, classes: Sequence[str]) -> set[tuple[int, ...]]:
    """What a part can mean: classes of that name, of that number or range, and of the names that a range
    goes through. A range is several readings as soon as one of its numbers is."""
    kind, mark, rest = part.partition(":")
    if mark and kind in ("number", "name") and part not in classes:
        part = rest.strip()
    else:
        kind = "any"
    names: set[tuple[int, ...]] = (
        {(i,) for i, name in enumerate(classes) if name == part} if kind != "number" else set()
    )
    match = re.fullmatch(r"([0-9]{1,18})\s*(?:-\s*([0-9]{1,18}))?", part)
    if match is None or int(match[2] or match[1]) - int(match[1]) not in range(len(classes)):
        return names
    numbers = range(int(match[1]), int(match[2] or match[1]) + 1)
    values = [int(name) if re.fullmatch("[0-9]{1,18}", name) else -1 for name in classes]
    called = {n: [i for i, value in enumerate(values) if value == n] for n in numbers if n in values}
    if kind != "number" and all(len(called.get(n, ())) == 1 for n in numbers):
        names.add(tuple(called[n][0] for n in numbers))
    if kind == "name" or numbers[-1] >= len(classes):
        return names
    others = {(i,) for n, found in called.items() for i in found if i != n}
    return names | {tuple(numbers)} | (others if kind == "any" else set())
