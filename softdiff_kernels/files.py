# SPDX-License-Identifier: Apache-2.0
"""Files: written completely or not at all, checked before any work, and named by options (~, relative
paths)."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar, get_args, get_type_hints

from .errors import UserError

PARTIAL = ".partial"
HF = "hf:"
DIGITS = "digits"
PathText = Annotated[str, "path"]
"""The type of an option that names, or may name, a file or folder."""
Options = TypeVar("Options")


def _fsync_folder(folder: Path) -> None:
    """Makes a rename durable. Windows, where a folder cannot be opened, neither needs nor allows it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """Opens a file to write. It has a temporary name beside `path` until it is complete and on the disk.

    At any time `path` is either the old file or the complete new one. UserError where the file cannot be
    written; the old file then remains. sync=False does not wait for the disk: a power failure may lose the
    file, though a kill cannot. It is meant for pictures, of which there can be thousands.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
        if sync:
            _fsync_folder(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            kept = "; the existing file is unchanged" if path.exists() else ""
            raise UserError(f"cannot write {path}: {error.strerror or error}{kept}") from error
        raise


def write_atomically(path: Path, data: bytes | Iterable[bytes | memoryview], *, sync: bool = True) -> None:
    """Writes bytes, or pieces of them, to a file, completely or not at all."""
    with whole_file(path, sync=sync) as file:
        for piece in [data] if isinstance(data, bytes) else data:
            file.write(piece)


def save_text(path: Path, text: str) -> None:
    """Writes a text file, completely or not at all."""
    write_atomically(path, text.encode())


def save_json(path: Path, content: Any) -> None:
    """Writes indented JSON, completely or not at all."""
    save_text(path, json.dumps(content, indent=1) + "\n")


def check_free(flag: str, path: str | Path | None, *, overwrite: bool) -> None:
    """Raises UserError, before any work, for an output file that exists already or whose folder does not
    exist."""
    if path is None:
        return
    check_no_folder(flag, path)
    if Path(path).exists() and not overwrite:
        raise UserError(f"{path} exists already: choose another {flag}, or add --overwrite")
    if not Path(path).parent.is_dir():
        raise UserError(f"{flag}: cannot write {path}: there is no folder {Path(path).parent}")


def check_no_folder(flag: str, path: str | Path | None) -> None:
    """Raises UserError, before any work, where the name of an output file is that of a folder."""
    if path is not None and Path(path).is_dir():
        raise UserError(f"{flag}: expected the name of a file to write, got the folder {path}")


def at_home(text: str, name: str) -> str:
    """A path with ~ or ~user, at its beginning or after hf:, replaced by that home folder. UserError for an
    empty text, which would mean the current folder, but comes from an unset shell variable. name: of the
    option."""
    if not text:
        raise UserError(f"expected the name of a file or folder as {name}, got an empty text")
    prefix = HF if text.startswith(HF) else ""
    return prefix + os.path.expanduser(text.removeprefix(prefix))


def expanded(options: Options) -> Options:
    """The dataclass with ~ replaced by the home folder in every `PathText`."""
    changed: dict[str, Any] = {}
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        if isinstance(value, str) and _is_path(hint):
            changed[name] = at_home(value, name)
    return dataclasses.replace(options, **changed)  # type: ignore[type-var]


def _is_path(hint: Any) -> bool:
    """Whether a type hint is PathText, or a union or annotation of it."""
    if "path" in getattr(hint, "__metadata__", ()):
        return True
    return any(_is_path(part) for part in get_args(hint) if not isinstance(part, str))


def seen_from(folder: Path, text: str) -> str:
    """The absolute path of what `text` names in `folder`; `text` itself where no such file or folder exists.

    Of hf:FOLDER:SPLIT only the folder is looked up. The word digits is a data set, whatever lies there.
    """
    if text == DIGITS:
        return text
    prefix = HF if text.startswith(HF) else ""
    name, split = text.removeprefix(prefix), ""
    if prefix and not (folder / name).exists() and (match := re.fullmatch(r"(.+?)(:[^:]*)", name)):
        name, split = match[1], match[2]
    return f"{prefix}{os.path.abspath(folder / name)}{split}" if name and (folder / name).exists() else text
