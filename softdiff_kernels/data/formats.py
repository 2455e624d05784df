# SPDX-License-Identifier: Apache-2.0
"""Which files are images: what Pillow reads, decided by content where the name does not tell."""

from __future__ import annotations

import importlib
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import IO

from ..errors import bare_reason, need
from .names import Parts, suffix_of

SUFFIXES = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".tif"),
        *(".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".tga"),
    )
)
"""Files that are images by their names: those of them that cannot be read are told with the reason."""
HEIC = frozenset((".heic", ".heif"))
RAW = frozenset(
    (
        *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".kdc", ".nef", ".nrw", ".orf"),
        *(".pef", ".raf", ".rw2", ".srw"),
    )
)
"""Photographs as sensors saw them. Many are TIFF files by content, of which Pillow reads a small preview."""
NO_PICTURES = frozenset(
    ("BUFR", "EPS", "FITS", "GRIB", "HDF5", "IM", "IMT", "IPTC", "MCIDAS", "MIC", "MPEG", "SPIDER", "WMF")
)
"""Formats of measurements, films and drawings. Some run another program; some take any text for theirs."""
HEAD = 32
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, IndexError, KeyError, TypeError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)
"""What Pillow and zipfile raise for damaged files."""


@cache
def formats() -> tuple[str, ...]:
    """The formats of images that Pillow reads here, the common ones first."""
    pil = need("PIL.Image", "reading images")
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    pil.preinit()
    pil.init()
    return tuple(name for name in pil.ID if name not in NO_PICTURES)


def why_no_image(parts: Parts, opened: Callable[[], IO[bytes]]) -> str:
    """Empty where a file is an image by its name or its content; else why it is none.

    opened: gives the content, of which no more is read than its format needs.
    """
    suffix = suffix_of(parts)
    if suffix in SUFFIXES:
        return ""
    if suffix in RAW:
        return "raw photographs have to be converted first"
    try:
        with opened() as file:
            return "" if _is_known(file) else "not an image"
    except UNREADABLE as error:
        return bare_reason(error)


def _is_known(file: IO[bytes]) -> bool:
    pil = need("PIL.Image", "reading images")
    head = file.read(HEAD)
    likely = [name for name in formats() if _accepted(pil.OPEN[name][1], head)]
    if not likely:
        return False
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size: decoding comes to it again
            pil.open(file, formats=likely)
    except pil.DecompressionBombError:
        return True
    except UNREADABLE:
        return False
    return True


def _accepted(accept: Callable[[bytes], bool | str] | None, head: bytes) -> bool:
    """Whether a format's mark stands at the head of a file; False for formats that have none."""
    try:
        return accept is not None and accept(head) is True
    except UNREADABLE:
        return False
