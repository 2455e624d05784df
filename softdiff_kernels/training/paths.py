# SPDX-License-Identifier: Apache-2.0
"""Options that name files and folders: ~ in them, and where they are when seen from another folder."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from .errors import UserError

HF = "hf:"
PathText = Annotated[str, "path"]
"""The type of an option that names a file or folder, or may do so."""
Options = TypeVar("Options")


def at_home(text: str, name: str) -> str:
    """With ~ or ~user at its beginning, or behind hf:, as that home folder. UserError for an empty text, as
    of a shell's variable that is not set, which would be the present folder: name is what it was given as."""
    if not text:
        raise UserError(f"expected the name of a file or folder as {name}, got an empty text")
    prefix = HF if text.startswith(HF) else ""
    return prefix + os.path.expanduser(text.removeprefix(prefix))


def expanded(options: Options) -> Options:
    """The dataclass with ~ as the home folder in every option that is a `PathText`."""
    changed: dict[str, Any] = {}
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        if isinstance(value, str) and (hint == PathText or PathText in get_args(hint)):
            changed[name] = at_home(value, name)
    return dataclasses.replace(options, **changed)  # type: ignore[type-var]


def seen_from(folder: Path, text: str) -> str:
    """What `text` names in `folder`, as an absolute path; `text` itself where nothing of that name is there.

    Of hf:FOLDER:SPLIT the folder.
    """
    prefix = HF if text.startswith(HF) else ""
    name, split = text.removeprefix(prefix), ""
    if prefix and not (folder / name).exists() and (found := re.fullmatch(r"(.+?)(:[^:]*)", name)):
        name, split = found[1], found[2]
    return f"{prefix}{os.path.abspath(folder / name)}{split}" if name and (folder / name).exists() else text
