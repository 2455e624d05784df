# SPDX-License-Identifier: Apache-2.0
"""Names of the files in a data set: one spelling for every source, which of them are images, and how a
message prints them."""

from __future__ import annotations

import importlib
import os
import re
import struct
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import IO, TypeVar

from ..errors import bare_reason, need

Value = TypeVar("Value")
Parts = tuple[str, ...]
"""The folders and the name of a file, as `parts_of` gives them."""
MOST_NAMED = 5
MOST_SHOWN = 20
LONGEST = 120
SUFFIXES = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".tif"),
        *(".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".tga"),
    )
)
"""Suffixes of images. A file with such a name that cannot be read is reported as an unreadable image."""
HEIC = frozenset((".heic", ".heif"))
RAW = frozenset(
    (
        *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".kdc", ".nef", ".nrw", ".orf"),
        *(".pef", ".raf", ".rw2", ".srw"),
    )
)
"""Raw photographs. Many are TIFF files by content, of which Pillow reads only a small preview."""
NOT_PICTURES = frozenset(
    ("BUFR", "EPS", "FITS", "GRIB", "HDF5", "IM", "IMT", "IPTC", "MCIDAS", "MIC", "MPEG", "SPIDER", "WMF")
)
"""Pillow's formats of measurements, films and drawings. Some run another program; some accept any text."""
HEADER_BYTES = 32
IMAGE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, IndexError, KeyError, TypeError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)
"""What Pillow and zipfile raise for damaged files."""


def parts_of(name: str) -> Parts:
    r"""The folders and the name of a file, relative to the data set: `./cat/a.png`, `cat\a.png`,
    `/cat/a.png`, `C:\cat\a.png`, `../cat/a.png` and `cat/b/../a.png` are all ("cat", "a.png").

    Letters with accents are composed (NFC), because file systems and archives spell them in two ways.
    """
    parts: list[str] = []
    for place, part in enumerate(name.replace("\\", "/").split("/")):
        if part == "..":
            del parts[-1:]
        elif part not in ("", ".") and not (place == 0 and re.fullmatch(r"[A-Za-z]:", part)):
            parts.append(part if part.isascii() else unicodedata.normalize("NFC", part))
    return tuple(parts)


def is_hidden(parts: Parts) -> bool:
    """Whether a file or one of its folders is hidden, or was added to an archive by macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def suffix_of(parts: Parts) -> str:
    """`.png` of a.PNG; empty if it has none."""
    return os.path.splitext(parts[-1])[1].lower()


def by_parts(files: Iterable[tuple[str, Value]]) -> tuple[dict[Parts, Value], dict[str, str]]:
    """The files that are not hidden, by the parts of their names; and those that are left out, by name with
    the reason.

    Of two files with one name the first is left out, because unpacking would overwrite it.
    """
    kept: dict[Parts, Value] = {}
    left_out: dict[str, str] = {}
    for name, value in files:
        parts = parts_of(name)
        if not parts or is_hidden(parts):
            continue
        if parts in kept:
            left_out["/".join(parts)] = "a later file has the same name"
        kept[parts] = value
    return kept, left_out


def printable(name: str) -> str:
    """A name with escapes for line ends and for bytes that are not text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def shown(name: str) -> str:
    """A name as a message prints it: printable, on one line, and only the end of a long one."""
    plain = printable(name)
    return plain if len(plain) <= LONGEST else f"...{plain[3 - LONGEST :]}"


def listed(names: Mapping[str, str]) -> str:
    """The first few names, each with its reason if it has one, and how many more there are."""
    first = list(names.items())[:MOST_NAMED]
    texts = [f"{shown(name)} ({why[:LONGEST]})" if why else shown(name) for name, why in first]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(texts) + more


@cache
def formats() -> tuple[str, ...]:
    """The formats of images that this Pillow reads, the common ones first."""
    pil = need("PIL.Image", "reading images")
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    pil.preinit()
    pil.init()
    return tuple(name for name in pil.ID if name not in NOT_PICTURES)


def why_not_image(parts: Parts, open_file: Callable[[], IO[bytes]]) -> str:
    """Empty if a file is an image by its name or its content; otherwise the reason why it is not.

    open_file: opens the content, of which no more is read than the format needs.
    """
    suffix = suffix_of(parts)
    if suffix in SUFFIXES:
        return ""
    if suffix in RAW:
        return "raw photographs have to be converted first"
    try:
        with open_file() as file:
            return "" if _has_known_format(file) else "not an image"
    except IMAGE_ERRORS as error:
        return bare_reason(error)


def _has_known_format(file: IO[bytes]) -> bool:
    pil = need("PIL.Image", "reading images")
    header = file.read(HEADER_BYTES)
    likely = [name for name in formats() if _accepts(pil.OPEN[name][1], header)]
    if not likely:
        return False
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the size, which decoding checks again
            pil.open(file, formats=likely)
    except pil.DecompressionBombError:
        return True
    except IMAGE_ERRORS:
        return False
    return True


def _accepts(accept: Callable[[bytes], bool | str] | None, header: bytes) -> bool:
    """Whether a file's header is of a format; False for formats that have no such check."""
    try:
        return accept is not None and accept(header) is True
    except IMAGE_ERRORS:
        return False
