# SPDX-License-Identifier: Apache-2.0
"""Seeds and classes as options choose them: `--seeds 0-63`, `--classes cat,3`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from ..errors import UserError, with_nearest
from .names import MOST_SHOWN, listed, printable, shown

MOST_SEEDS = 10_000_000


def parse_numbers(text: str, flag: str) -> list[int]:
    """`0-63`, `3,5,8-10` or `7` as a list. UserError, which names the flag, for any other form, for a range
    that falls, for a number of 2^63 or more, and for a range of more than MOST_SEEDS numbers."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise UserError(f"{flag}: expected a form such as 0-63, 3,5,8-10 or 7, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"{flag}: expected a range that rises, got {part.strip()!r}")
        if last >= 2**63 or last - first >= MOST_SEEDS:
            expected = f"at most {MOST_SEEDS} seeds, each under 2^63"
            raise UserError(f"{flag}: expected {expected}, got {part.strip()!r}")
        numbers.extend(range(first, last + 1))
    return numbers


def parse_seeds(text: str) -> list[int]:
    """The seeds of `--seeds`. Duplicate seeds are rejected: they would draw the same image twice."""
    seeds = parse_numbers(text, "--seeds")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: expected each seed once, got {text!r}")
    return seeds


def format_seeds(seeds: Iterable[int]) -> str:
    """The shortest form that `parse_seeds` reads, in rising order."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def class_table(classes: Sequence[str]) -> Iterator[str]:
    """Lines of number and name, as many as fit a screen."""
    yield "classes, number and name:"
    yield from (f"  {i:4}  {printable(name)}" for i, name in enumerate(classes[:MOST_SHOWN]))
    if len(classes) > MOST_SHOWN:
        yield f"  and {len(classes) - MOST_SHOWN} more"


def named_class(number: int, classes: Sequence[str]) -> str:
    """`3 "dog"`: a class's number and its name."""
    return f'{number} "{printable(classes[number])}"'


def class_names(numbers: Sequence[int], classes: Sequence[str]) -> str:
    """These classes in one line, as many as fit: `3 "dog", 0 "cat" and 7 more`."""
    names = ", ".join(named_class(i, classes) for i in numbers[:MOST_SHOWN])
    return names + (f" and {len(numbers) - MOST_SHOWN} more" if len(numbers) > MOST_SHOWN else "")


def class_list(text: str | None, classes: Sequence[str]) -> list[int] | None:
    """The classes that seeds take in turn, of a model with these classes; None for a model without any.

    text: the value of `--classes`; None means all of them.
    """
    if not classes:
        if text is not None:
            raise UserError("--classes: the model was trained without classes (softdiff train --conditional)")
        return None
    return list(range(len(classes))) if text is None else choose_classes(text, classes)


def labels_of(seeds: Sequence[int], classes: Sequence[int] | None) -> list[int] | None:
    """Each seed's class. It depends on the seed alone, not on the other seeds that are drawn."""
    return None if classes is None else [classes[seed % len(classes)] for seed in seeds]


def choose_classes(text: str, classes: Sequence[str]) -> list[int]:
    """The numbers that `3`, `0-9`, `cat,dog` or `3,dog` mean among these classes, in that order.

    number:3 and name:3 say which is meant if a class has another's number as its name. Raises UserError
    for a text that can mean both, and for one that is neither a number nor a name.
    """
    # Keyboards spell accents in two ways, and spaces at the end of a name are not seen.
    text = unicodedata.normalize("NFC", text)
    classes = [unicodedata.normalize("NFC", name).strip() for name in classes]
    as_one_name = _readings(text.strip(), classes) if "," in text else set()
    if len(as_one_name) == 1 and text.strip().startswith("name:"):
        return list(as_one_name.pop())
    chosen: list[int] = []
    try:
        for part in text.split(","):
            chosen += _choose_part(part.strip(), classes)
    except UserError:
        if len(as_one_name) != 1:
            raise
        return list(as_one_name.pop())  # a name with a comma in it
    if as_one_name - {tuple(chosen)}:
        raise UserError(
            f"--classes: {text!r} is the name of a class, and also a list of others: write name:{text} for "
            "the class of that name"
        )
    return chosen


def _choose_part(part: str, classes: Sequence[str]) -> tuple[int, ...]:
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
        f"{with_nearest(shown(part) or 'none', classes)}; the model's classes are {table}"
    )


def _readings(part: str, classes: Sequence[str]) -> set[tuple[int, ...]]:
    """What a part can mean: classes of that name, of that number or range, and of the names that a range
    goes through. A range has several readings as soon as one of its numbers has."""
    kind, mark, value = part.partition(":")
    if mark and kind in ("number", "name") and part not in classes:
        part = value.strip()
    else:
        kind = "any"
    readings: set[tuple[int, ...]] = (
        {(i,) for i, name in enumerate(classes) if name == part} if kind != "number" else set()
    )
    match = re.fullmatch(r"([0-9]{1,18})\s*(?:-\s*([0-9]{1,18}))?", part)
    if match is None or int(match[2] or match[1]) - int(match[1]) not in range(len(classes)):
        return readings
    numbers = range(int(match[1]), int(match[2] or match[1]) + 1)
    values = [int(name) if re.fullmatch("[0-9]{1,18}", name) else -1 for name in classes]
    classes_called = {n: [i for i, value in enumerate(values) if value == n] for n in numbers if n in values}
    if kind != "number" and all(len(classes_called.get(n, ())) == 1 for n in numbers):
        readings.add(tuple(classes_called[n][0] for n in numbers))
    if kind == "name" or numbers[-1] >= len(classes):
        return readings
    others = {(i,) for n, places in classes_called.items() for i in places if i != n}
    return readings | {tuple(numbers)} | (others if kind == "any" else set())


def new_numbers(classes: Sequence[str], run_classes: Sequence[str]) -> list[int]:
    """For each of a data set's classes the number that a run has for the same name.

    UserError for classes that the run does not know, and if a name stands for two classes.
    """
    number = {name: i for i, name in enumerate(run_classes)}
    unknown = [name for name in classes if name not in number]
    if unknown or len(number) < len(run_classes) or len(set(classes)) < len(classes):
        expected = listed(dict.fromkeys(run_classes, ""))
        raise UserError(
            f"expected images of the classes that the run was trained on ({expected}), got others "
            f"({listed(dict.fromkeys(unknown or classes, ''))})"
        )
    return [number[name] for name in classes]
