# SPDX-License-Identifier: Apache-2.0
"""Files: written whole or not at all, checked before any work, and named by options (~, other folders)."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar, get_args, get_type_hints

from .errors import UserError

PARTIAL = ".partial"
HF = "hf:"
PathText = Annotated[str, "path"]
"""The type of an option that names a file or folder, or may do so."""
Options = TypeVar("Options")


def _fsync_folder(folder: Path) -> None:
    """Puts a rename on the disk; systems that cannot open a folder (Windows) need and allow none."""
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
    """A file to write that lies beside `path` under a temporary name, and gets its name once it is whole and
    on the disk.

    At every instant `path` is the old file or the whole new one. Raises UserError where it cannot
    be written; what was there before is then still there. sync=False does not wait for the disk, so
    that a power cut, though no kill, may lose the file: for pictures, of which there can be thousands.
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
            kept = "; the file that it was to replace is untouched" if path.exists() else ""
            raise UserError(f"cannot write {path}: {error.strerror or error}{kept}") from error
        raise


def write_atomically(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Writes these bytes as a `whole_file`."""
    with whole_file(path, sync=sync) as file:
        file.write(data)


def save_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    write_atomically(path, text.encode())


def save_json(path: Path, content: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    save_text(path, json.dumps(content, indent=1) + "\n")


def check_free(flag: str, path: str | Path | None, *, overwrite: bool) -> None:
    """Refuses, before any work, a file to write that exists already or has no folder to lie in."""
    if path is None:
        return
    check_no_folder(flag, path)
    if Path(path).exists() and not overwrite:
        raise UserError(f"{path} exists already: choose another {flag}, or add --overwrite")
    if not Path(path).parent.is_dir():
        raise UserError(f"{flag}: cannot write {path}: there is no folder {Path(path).parent}")


def check_no_folder(flag: str, path: str | Path | None) -> None:
    """Refuses, before any work, a folder as the name of a file to write."""
    if path is not None and Path(path).is_dir():
        raise UserError(f"{flag}: expected the name of a file to write, got the folder {path}")


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
