# SPDX-License-Identifier: Apache-2.0
"""Names of files inside a data set: one spelling for every source, and what of them is shown."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
Parts = tuple[str, ...]
MOST_NAMED = 5
LONGEST = 120


def parts_of(name: str) -> Parts:
    r"""The folders and the name of a file, relative to the data set: `./cat/a.png`, `cat\a.png`,
    `/cat/a.png`, `C:\cat\a.png`, `../cat/a.png` and `cat/b/../a.png` are all ("cat", "a.png").

    Letters with accents are composed (NFC), as file systems and archives spell them in two ways.
    """
    found: list[str] = []
    for place, part in enumerate(name.replace("\\", "/").split("/")):
        if part == "..":
            del found[-1:]
        elif part not in ("", ".") and not (place == 0 and re.fullmatch(r"[A-Za-z]:", part)):
            found.append(part if part.isascii() else unicodedata.normalize("NFC", part))
    return tuple(found)


def is_hidden(parts: Parts) -> bool:
    """Whether a file or one of its folders is hidden, or what macOS puts beside an archive's files."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def suffix_of(parts: Parts) -> str:
    """`.png` of a.PNG; empty where there is none."""
    return os.path.splitext(parts[-1])[1].lower()


def by_parts(named: Iterable[tuple[str, Value]]) -> tuple[dict[Parts, Value], dict[str, str]]:
    """Files by the parts of their names, without those that are hidden; and those that are left out, by
    name with the reason: of two that have one name the first, since unpacking would overwrite it."""
    found: dict[Parts, Value] = {}
    others: dict[str, str] = {}
    for name, value in named:
        parts = parts_of(name)
        if not parts or is_hidden(parts):
            continue
        if parts in found:
            others["/".join(parts)] = "a later file has the same name"
        found[parts] = value
    return found, others


def shown(name: str) -> str:
    """A name as a message takes it: printable, on one line, and of a long one the end."""
    plain = printable(name)
    return plain if len(plain) <= LONGEST else f"...{plain[3 - LONGEST :]}"


def printable(name: str) -> str:
    """A name with escapes for line ends and for bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def listed(names: Mapping[str, str]) -> str:
    """The first few names, each with its reason where it has one, and how many more there are."""
    first = list(names.items())[:MOST_NAMED]
    told = [f"{shown(name)} ({why[:LONGEST]})" if why else shown(name) for name, why in first]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(told) + more
