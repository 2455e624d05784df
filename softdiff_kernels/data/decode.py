# SPDX-License-Identifier: Apache-2.0
"""Encoded images (PNG, JPEG, ...) into one array, wherever their bytes come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch

from ..errors import UserError, bare_reason, need
from ..memory import is_out_of_memory
from .formats import HEIC, UNREADABLE, formats
from .labels import Labels
from .names import parts_of, shown, suffix_of
from .pixels import (
    CHANNELS,
    GREY_MODES,
    MODES,
    Found,
    Pixels,
    Wanted,
    allocated,
    check_memory,
    cropped,
    eight_bits,
    grey_range,
    has_alpha,
    put,
    to_mode,
)

if TYPE_CHECKING:
    from PIL.Image import Image

CHUNK = 256
UNKNOWN = "not an image that Pillow knows"
HEIC_REASON = "Pillow reads HEIC with the package pillow-heif alone"
STILL = frozenset(("MPO", "PSD"))
"""Formats whose further frames are previews or layers of one picture."""
Opened = Callable[[int], "Path | IO[bytes]"]


@dataclass
class Decoded:
    """pixels: uint8 [N, C, H, W] of the images that can be read; kept: their places in the list."""

    pixels: Pixels
    kept: list[int] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)
    animated: dict[str, str] = field(default_factory=dict)

    def found(self, labels: Labels, others: dict[str, str] | None = None) -> Found:
        """With the labels of the whole list, and what else lies beside the images."""
        kept = labels.take(self.kept)
        told = (self.sizes, self.modes, self.unreadable, self.animated)
        return Found(self.pixels, kept, *told, others or {})


@dataclass(frozen=True)
class _One:
    image: Image
    mode: str
    size: tuple[int, int]
    grey: bool
    alpha: bool
    animated: bool


def _one(source: Path | IO[bytes], mode: str | None, wanted: Wanted) -> _One | str:
    """An image as `mode`, or as its own kind asks; or the reason why it cannot be read."""
    pil = need("PIL.Image", "reading images")
    operations = need("PIL.ImageOps", "reading images")
    try:
        with pil.open(source, formats=formats()) as opened:
            opened.load()
            levels = grey_range(opened)
            image = operations.exif_transpose(opened)
            animated = opened.format not in STILL and _is_animated(opened)
        grey, alpha, size, stored = image.mode in GREY_MODES, has_alpha(image), image.size, image.mode
        if levels is not None:
            image = eight_bits(image, *levels)
        image = to_mode(image, mode or _mode(not grey, not alpha))
        image = image if wanted.size is None else cropped(image, wanted.size)
        return _One(image, stored, size, grey, alpha, animated)
    except pil.UnidentifiedImageError:
        return UNKNOWN  # its own words name an object in memory
    except (*UNREADABLE, pil.DecompressionBombError) as error:
        if is_out_of_memory(error):
            raise
        return bare_reason(error)


def _is_animated(image: Image) -> bool:
    """Whether there are more frames; a damaged second one does not spoil the first, which is read."""
    try:
        return bool(getattr(image, "is_animated", False))
    except UNREADABLE:
        return True


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
    if wanted.size is not None:  # before the first of them is enlarged
        height, width = wanted.size
        needed = len(names) * (wanted.channels or 1) * height * width
        check_memory(needed, f"{len(names)} images of {width} x {height}")
    colour = opaque = False
    mode = None if wanted.channels is None else MODES[wanted.channels]
    while True:
        found = Decoded(np.empty(0, np.uint8))
        restart = False
        first = ""
        for i, one in _each(len(names), opened, mode, wanted):
            if isinstance(one, str):
                heic = one == UNKNOWN and suffix_of(parts_of(names[i])) in HEIC
                found.unreadable[names[i]] = HEIC_REASON if heic else one
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
                    f"expected images of one size, got {width} x {height} in {shown(first)} and "
                    f"{one.size[0]} x {one.size[1]} in {shown(names[i])}; --image-size N resizes and "
                    "crops them all to N x N"
                )
            put(found.pixels, len(found.kept), one.image)
            found.kept.append(i)
            found.sizes[one.size] += 1
            found.modes[one.mode] += 1
            if one.animated:
                found.animated[names[i]] = ""
        if restart:
            continue
        if not found.kept:
            name, reason = next(iter(found.unreadable.items()))
            raise UserError(f"{where}: none of its {len(names)} images can be read; {shown(name)}: {reason}")
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
            return bare_reason(error)
        return _one(source, mode, wanted)

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for start in range(0, count, CHUNK):
            chunk = range(start, min(start + CHUNK, count))
            yield from zip(chunk, pool.map(load, chunk), strict=True)
