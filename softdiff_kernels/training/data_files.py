# SPDX-License-Identifier: Apache-2.0
"""Folders of images, and the same in a .zip file, in EDM's layout or any other."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from .data_decode import Opened, decode
from .data_labels import Labels, from_folders, from_json
from .data_pixels import Found, Wanted
from .errors import UserError

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
JSON = "dataset.json"


def _is_image(parts: Sequence[str]) -> bool:
    """Whether a path inside a folder or zip is an image's, neither hidden nor a resource of macOS."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and os.path.splitext(parts[-1])[1].lower() in SUFFIXES


def _is_file(path: str) -> bool:
    """A file, or a link that leads nowhere: an image that cannot be read. A pipe would never end."""
    return os.path.isfile(path) or not os.path.exists(path)


def _raise(error: OSError) -> None:
    raise error


def read_folder(folder: Path, wanted: Wanted) -> Found:
    """Every image under a folder, in the order of their paths. Links to folders are not followed."""
    parts: list[tuple[str, ...]] = []
    text = None
    try:
        for where, _, files in os.walk(folder, onerror=_raise):
            above = Path(where).relative_to(folder).parts
            found = (name for name in files if _is_image((*above, name)))
            parts += [(*above, name) for name in found if _is_file(os.path.join(where, name))]
        if (folder / JSON).is_file():
            text = (folder / JSON).read_bytes()
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from error
    names = ["/".join(p) for p in sorted(parts)]
    return _found(folder, names, _labels(folder, names, text), lambda i: folder / names[i], wanted)


def read_zip(path: Path, wanted: Wanted) -> Found:
    """Every image in a .zip file, in the order of their paths. A folder that holds all of them is left out
    where labels are looked for. Raises UserError, one sentence, for a file that is truncated or encrypted;
    entries that are damaged are left out and told of."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {tuple(e.filename.split("/")): e for e in archive.infolist() if not e.is_dir()}
            parts = sorted(p for p in entries if _is_image(p))
            if any(entries[p].flag_bits & 1 for p in parts):
                raise UserError(f"{path}: expected a zip without a password, got encrypted images")
            tops = {p[:1] if len(p) > 1 else () for p in parts}
            root = tops.pop() if len(tops) == 1 and (JSON,) not in entries else ()
            note = entries.get((*root, JSON))
            text = None if note is None else archive.read(note)
            labels = _labels(path, ["/".join(p[len(root) :]) for p in parts], text)

            def opened(i: int) -> io.BytesIO:
                return io.BytesIO(archive.read(entries[parts[i]]))

            return _found(path, ["/".join(p) for p in parts], labels, opened, wanted)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable .zip file ({error})") from error


def _found(where: Path, names: list[str], labels: Labels, opened: Opened, wanted: Wanted) -> Found:
    if not names:
        raise UserError(f"{where}: expected images ({', '.join(sorted(SUFFIXES))}), found none")
    some = [f"{where}/{name}" for name in names[: wanted.limit]]
    decoded = decode(some, opened, wanted, str(where))
    return Found(decoded.pixels, labels.take(decoded.kept), decoded.sizes, decoded.modes, decoded.unreadable)


def _labels(where: Path, names: list[str], text: bytes | None) -> Labels:
    return from_folders(names) if text is None else from_json(text, names, f"{where}/{JSON}")
