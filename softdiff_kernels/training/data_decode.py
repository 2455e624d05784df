# SPDX-License-Identifier: Apache-2.0
"""Encoded images (PNG, JPEG, ...) into one array, wherever their bytes come from."""

from __future__ import annotations

import struct
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch

from .data_pixels import (
    CHANNELS,
    GREY_MODES,
    MODES,
    Pixels,
    Wanted,
    allocated,
    cropped,
    has_alpha,
    put,
    to_mode,
)
from .errors import UserError, need
from .memory import is_out_of_memory

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK = 256
MOST_NAMED = 5
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, IndexError, KeyError, TypeError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)
Opened = Callable[[int], "Path | IO[bytes]"]


@dataclass
class Decoded:
    """pixels: uint8 [N, C, H, W] of the images that can be read; kept: their places in the list."""

    pixels: Pixels
    kept: list[int] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _One:
    image: Image
    mode: str
    size: tuple[int, int]
    grey: bool
    alpha: bool


def _one(source: Path | IO[bytes], mode: str | None, wanted: Wanted) -> _One | str:
    """An image as `mode`, or as its own kind asks; or the reason why it cannot be read."""
    pil = need("PIL.Image", "reading images")
    operations = need("PIL.ImageOps", "reading images")
    try:
        with pil.open(source) as opened:
            opened.load()
            image = operations.exif_transpose(opened)
        grey, alpha, size, stored = image.mode in GREY_MODES, has_alpha(image), image.size, image.mode
        image = to_mode(image, mode or _mode(not grey, not alpha))
        return _One(image if wanted.size is None else cropped(image, wanted.size), stored, size, grey, alpha)
    except pil.UnidentifiedImageError:
        return "not an image that Pillow knows"  # its own words name an object in memory
    except (*UNREADABLE, pil.DecompressionBombError) as error:
        if is_out_of_memory(error):
            raise
        return " ".join(str(error).split()) or type(error).__name__


def _mode(colour: bool, opaque: bool) -> str:
    """The mode of a set in which some images have colour, and some no alpha."""
    return ("RGB" if colour else "L") if opaque else "RGBA"


def decode(names: Sequence[str], opened: Opened, wanted: Wanted, where: str) -> Decoded:
    """Decodes every image that can be read straight into the array that is returned.

    names: how messages call the images; opened(i): the path of image i, or its bytes. All grey images
    give one channel, images that all have alpha four (RGBA), others three, alpha laid over black. Which
    of them it is shows on the way: where an image changes it, decoding starts over, so that every image
    goes the same way whatever their order. Raises UserError where no image can be read, where sizes
    differ and none is wanted, and where memory has no room.
    """
    if not names:
        raise UserError(f"{where}: expected at least one image, found none")
    colour = opaque = False
    mode = None if wanted.channels is None else MODES[wanted.channels]
    while True:
        found = Decoded(np.empty(0, np.uint8))
        restart = False
        first = ""
        for i, one in _each(len(names), opened, mode, wanted):
            if isinstance(one, str):
                found.unreadable[names[i]] = one
                continue
            if wanted.channels is None:
                colour, opaque = colour or not one.grey, opaque or not one.alpha
                before, mode = mode, _mode(colour, opaque)
                if one.image.mode != mode or before not in (None, mode):
                    restart = True
                    break
            if not found.kept:
                first = names[i]
                shape = (len(names), CHANNELS[one.image.mode], one.image.height, one.image.width)
                found.pixels = allocated(shape)
            elif found.pixels.shape[2:] != (one.image.height, one.image.width):
                height, width = found.pixels.shape[2:]
                raise UserError(
                    f"expected images of one size, got {width} x {height} in {first} and {one.size[0]} x "
                    f"{one.size[1]} in {names[i]}; --image-size N resizes and crops them all to N x N"
                )
            put(found.pixels, len(found.kept), one.image)
            found.kept.append(i)
            found.sizes[one.size] += 1
            found.modes[one.mode] += 1
        if restart:
            continue
        if not found.kept:
            name, reason = next(iter(found.unreadable.items()))
            raise UserError(f"{where}: none of its {len(names)} images can be read; {name}: {reason}")
        found.pixels = found.pixels[: len(found.kept)]
        return found


def _each(count: int, opened: Opened, mode: str | None, wanted: Wanted) -> Iterator[tuple[int, _One | str]]:
    """Every image in order. A few hundred at a time, so that threads do not run ahead of memory."""

    def load(i: int) -> _One | str:
        try:
            source = opened(i)
        except UNREADABLE as error:
            if is_out_of_memory(error):
                raise
            return " ".join(str(error).split()) or type(error).__name__
        return _one(source, mode, wanted)

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for start in range(0, count, CHUNK):
            chunk = range(start, min(start + CHUNK, count))
            yield from zip(chunk, pool.map(load, chunk), strict=True)


def tell_unreadable(unreadable: dict[str, str], count: int) -> None:
    """A warning that counts the images that are left out, and names the first few."""
    named = [f"{file} ({reason})" for file, reason in list(unreadable.items())[:MOST_NAMED]]
    more = f" and {len(unreadable) - MOST_NAMED} more" if len(unreadable) > MOST_NAMED else ""
    told = f"{len(unreadable)} of {count} images cannot be read and are left out: {', '.join(named)}{more}"
    print(f"warning: {told}", file=sys.stderr, flush=True)
