# SPDX-License-Identifier: Apache-2.0
"""Folders of images, and the same in a .zip file, in EDM's layout or any other."""

from __future__ import annotations

import io
import zipfile
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
    return not hidden and Path(parts[-1]).suffix.lower() in SUFFIXES


def read_folder(folder: Path, wanted: Wanted) -> Found:
    """Every image under a folder, in the order of their paths."""
    files = {path.relative_to(folder).parts: path for path in folder.rglob("*")}
    parts = sorted(p for p, path in files.items() if _is_image(p) and path.is_file())
    names = ["/".join(p) for p in parts]
    text = None
    if (folder / JSON).is_file():
        try:
            text = (folder / JSON).read_bytes()
        except OSError as error:
            raise UserError(f"{folder / JSON}: {error.strerror or error}") from error
    return _found(folder, names, text, lambda i: files[parts[i]], wanted)


def read_zip(path: Path, wanted: Wanted) -> Found:
    """Every image in a .zip file, in the order of their paths. Raises UserError, one sentence, for a file
    that is truncated or encrypted; entries that are damaged are left out and told of."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {tuple(e.filename.split("/")): e for e in archive.infolist() if not e.is_dir()}
            parts = sorted(p for p in entries if _is_image(p))
            if any(entries[p].flag_bits & 1 for p in parts):
                raise UserError(f"{path}: expected a zip without a password, got encrypted images")
            text = archive.read(entries[(JSON,)]) if (JSON,) in entries else None

            def opened(i: int) -> io.BytesIO:
                return io.BytesIO(archive.read(entries[parts[i]]))

            return _found(path, ["/".join(p) for p in parts], text, opened, wanted)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable .zip file ({error})") from error


def _found(where: Path, names: list[str], text: bytes | None, opened: Opened, wanted: Wanted) -> Found:
    if not names:
        raise UserError(f"{where}: expected images ({', '.join(sorted(SUFFIXES))}), found none")
    labels = _labels(where, names, text)
    some = names[: wanted.limit]
    decoded = decode([f"{where}/{name}" for name in some], opened, wanted, str(where))
    return Found(
        decoded.pixels, labels.take(decoded.kept), decoded.sizes, decoded.modes, decoded.unreadable
    )


def _labels(where: Path, names: list[str], text: bytes | None) -> Labels:
    return from_folders(names) if text is None else from_json(text, names, f"{where}/{JSON}")
