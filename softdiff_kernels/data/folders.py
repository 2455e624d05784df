# SPDX-License-Identifier: Apache-2.0
"""Folders of images, and the same in a .zip file, in EDM's layout or any other."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from functools import partial
from pathlib import Path

from ..errors import UserError
from .decode import Opened, decode
from .formats import SUFFIXES, why_no_image
from .labels import Labels, from_folders, from_json
from .names import Parts, by_parts, listed, suffix_of
from .pixels import Found, Wanted

JSON = "dataset.json"
ENCRYPTED = 1
"""Of the flags of a zip's entry."""


def _raise(error: OSError) -> None:
    raise error


def read_folder(folder: Path, wanted: Wanted) -> Found:
    """Every image under a folder, in the order of their paths. Links to folders are not followed."""
    named: list[tuple[str, str]] = []
    others: dict[str, str] = {}
    try:
        for where, below, files in os.walk(folder, onerror=_raise):
            above = os.path.relpath(where, folder)
            links = [name for name in below if os.path.islink(os.path.join(where, name))]
            named += [(f"{above}/{name}", os.path.join(where, name)) for name in (*files, *links)]
        there, others = by_parts(named)
        text = Path(there.pop((JSON,))).read_bytes() if (JSON,) in there else None
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from error
    images = []
    for parts, path in sorted(there.items()):
        if why := _why_no_image(parts, path):
            others["/".join(parts)] = why
        else:
            images.append((parts, path))
    names = [parts for parts, _ in images]
    labels = _labels(folder, names, text)
    return _found(folder, names, labels, others, lambda i: Path(images[i][1]), wanted)


def _why_no_image(parts: Parts, path: str) -> str:
    """A link that leads nowhere is an image that cannot be read, if its name is an image's."""
    if not os.path.isfile(path) and os.path.exists(path):
        # Opening a pipe would never end.
        return "a link to a folder" if os.path.isdir(path) else "not a regular file"
    return why_no_image(parts, lambda: open(path, "rb"))


def zip_entries(archive: zipfile.ZipFile) -> tuple[dict[Parts, zipfile.ZipInfo], dict[str, str]]:
    """The files of an archive by the parts of their names, without what is hidden; and those left out."""
    return by_parts((e.filename, e) for e in archive.infolist() if not e.filename.endswith(("/", "\\")))


def read_zip(path: Path, wanted: Wanted) -> Found:
    """Every image in a .zip file, in the order of their paths. A folder that holds all of them is left out
    where labels are looked for. Raises UserError, one sentence, for a file that is truncated or encrypted;
    entries that are damaged are left out and told of."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries, others = zip_entries(archive)
            locked = {place for place, entry in entries.items() if entry.flag_bits & ENCRYPTED}
            if any(place[-1] == JSON or suffix_of(place) in SUFFIXES for place in locked):
                raise UserError(f"{path}: expected a zip without a password, got encrypted images or labels")
            parts = []
            for place, entry in sorted(entries.items()):
                locks = "encrypted" if place in locked else ""
                if why := locks or why_no_image(place, partial(archive.open, entry)):
                    others["/".join(place)] = why
                else:
                    parts.append(place)
            tops = {p[:1] if len(p) > 1 else () for p in parts}
            root = tops.pop() if len(tops) == 1 and (JSON,) not in entries else ()
            note = entries.get((*root, JSON))
            text = None if note is None else archive.read(note)
            others.pop("/".join((*root, JSON)), None)
            labels = _labels(path, [p[len(root) :] for p in parts], text)

            def opened(i: int) -> io.BytesIO:
                return io.BytesIO(archive.read(entries[parts[i]]))

            return _found(path, parts, labels, others, opened, wanted)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable .zip file ({error})") from error


def _found(
    where: Path, parts: list[Parts], labels: Labels, others: dict[str, str], opened: Opened, wanted: Wanted
) -> Found:
    if not parts:
        among = f" among {len(others)} files: {listed(others)}" if others else ""
        raise UserError(f"{where}: expected images, found none{among}")
    some = [f"{where}/{'/'.join(p)}" for p in parts[: wanted.limit]]
    return decode(some, opened, wanted, str(where)).found(labels, others)


def _labels(where: Path, parts: list[Parts], text: bytes | None) -> Labels:
    return from_folders(parts) if text is None else from_json(text, parts, f"{where}/{JSON}")
