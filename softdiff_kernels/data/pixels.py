# SPDX-License-Identifier: Apache-2.0
"""What the readers of data sets share: what is wanted, what was found, sizes and channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError, need
from ..memory import available_memory
from .labels import Labels
from .names import listed

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = np.ndarray[Any, Any]
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
CHANNELS = {mode: channels for channels, mode in MODES.items()}
GREY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"))
ALPHA_MODES = frozenset(("LA", "La", "PA", "RGBA", "RGBa"))
WHOLE_RANGE = frozenset(("PNG", "PPM"))
"""Formats whose mode I is 16 bits, scaled so that 65535 is white."""
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
LEAVE_FREE = 0.95


@dataclass(frozen=True)
class Wanted:
    """size: (height, width) to resize and crop to, channels: 1, 3 or 4; None leaves them as they are.
    limit: read the first so many images alone."""

    size: tuple[int, int] | None = None
    channels: int | None = None
    limit: int | None = None


@dataclass
class Found:
    """What a source holds: pixels uint8 [N, C, H, W]; sizes, (width, height) before resizing, and modes,
    each with its count; labels of the N images. By name: images that are unreadable, with the reason;
    images of which only the first frame was taken; other files, with the reason why they are left out."""

    pixels: Pixels
    labels: Labels
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)
    animated: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)

    def remarks(self) -> Iterator[str]:
        """One sentence each on what was left out or taken in part, with its count and the first few names."""
        count = len(self.pixels) + len(self.unreadable)
        if self.unreadable:
            told = f"{len(self.unreadable)} of {count} images cannot be read and are left out"
            yield f"warning: {told}: {listed(self.unreadable)}"
        if self.animated:
            told = f"{len(self.animated)} of {len(self.pixels)} images have several frames or pages"
            yield f"note: {told}; the first is taken: {listed(self.animated)}"
        if self.others:
            files = "1 other file is" if len(self.others) == 1 else f"{len(self.others)} other files are"
            yield f"note: {files} left out: {listed(self.others)}"


def has_alpha(image: Image) -> bool:
    """Whether an image has transparency: a channel of its own, a palette entry, or one colour."""
    return image.mode in ALPHA_MODES or "transparency" in image.info


def grey_range(image: Image) -> tuple[int, bool] | None:
    """The level of white of a grey image deeper than 8 bits, and whether black and white are exchanged; None
    for any other image.

    Call it on an image as it was opened: a TIFF file's tags tell what its mode does not. ValueError, with
    the way out, where black and white are not known.
    """
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(BITS_PER_SAMPLE, (8,)))
    deep = image.mode.startswith("I")
    kind = ""
    if image.mode == "F":
        kind = "floating-point numbers"
    elif 2 in tags.get(SAMPLE_FORMAT, ()):
        kind = "signed numbers"
    elif image.mode == "I" and image.format not in WHOLE_RANGE:
        kind = f"{bits}-bit numbers" if tags else "whole numbers of more than 16 bits"
    if kind:
        raise ValueError(
            f"pixels are {kind}, whose range is not known: scale them so that black is 0 and white the "
            "largest number, and save them with 8 or 16 bits"
        )
    return (2**bits - 1 if tags else 65535, tags.get(PHOTOMETRIC) == 0) if deep else None


def eight_bits(image: Image, white: int, exchanged: bool) -> Image:
    """Deep grey as L, or LA where one level is transparent: a level is the whole 255ths of white in the
    number. Pillow would clip at 255, and drop the transparency."""
    pil = need("PIL.Image", "reading images")
    levels = np.asarray(image).astype(np.int64).clip(0, white)
    grey = pil.fromarray(((white - levels if exchanged else levels) * 255 // white).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is None:
        return grey
    return pil.merge("LA", (grey, pil.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8))))


def to_mode(image: Image, mode: str) -> Image:
    """The image as L, RGB or RGBA. Where alpha has to go, the image is laid over black."""
    pil = need("PIL.Image", "reading images")
    if mode != "RGBA" and has_alpha(image):
        black = pil.new("RGBA", image.size, (0, 0, 0, 255))
        black.alpha_composite(image.convert("RGBA"))
        image = black.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def cropped(image: Image, size: tuple[int, int]) -> Image:
    """Resized so that it just covers `size`, (height, width), then the centre of that size."""
    pil = need("PIL.Image", "resizing")
    high, wide = size
    if image.height * wide >= image.width * high:
        width, height = wide, max(high, round(image.height * wide / image.width))
        enlarged = wide > image.width
    else:
        width, height = max(wide, round(image.width * high / image.height)), high
        enlarged = high > image.height
    filtered = image.resize((width, height), pil.Resampling.BICUBIC if enlarged else pil.Resampling.LANCZOS)
    left, top = (width - wide) // 2, (height - high) // 2
    return filtered.crop((left, top, left + wide, top + high))


def from_array(array: Pixels, wanted: Wanted) -> Pixels:
    """uint8 [N, H, W, C] as [N, C, H, W] of the wanted size and channels.

    Four channels are RGBA: resized with colours weighted by alpha. Two are resized one by one.
    """
    array = array[: wanted.limit]
    count, height, width, channels = array.shape
    mode = MODES[wanted.channels or channels]
    size = wanted.size or (height, width)
    if size == (height, width) and CHANNELS[mode] == channels:
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    pil = need("PIL.Image", "resizing")
    out = allocated((count, CHANNELS[mode], *size))

    def fitted(pixels: Pixels) -> Image:
        image = pil.fromarray(np.ascontiguousarray(pixels))
        return image if size == (height, width) else cropped(image, size)

    for i, pixels in enumerate(array):
        if mode == "LA":
            for channel in range(2):
                out[i, channel] = np.asarray(fitted(pixels[..., channel]))
        else:
            image = pil.fromarray(np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels))
            image = to_mode(image, mode)
            put(out, i, image if size == (height, width) else cropped(image, size))
    return out


def put(out: Pixels, i: int, image: Image) -> None:
    """Stores an image as out[i], [C, H, W]."""
    pixels = np.asarray(image)
    out[i] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def allocated(shape: tuple[int, ...]) -> Pixels:
    """An array uint8, or a sentence with the bytes needed where memory has no room for it."""
    check_memory(int(np.prod(shape, dtype=object)), f"{shape[0]} images of {list(shape[1:])} (C, H, W)")
    return np.empty(shape, np.uint8)


def check_memory(needed: int, what: str) -> None:
    """Refuses what would not fit in memory beside all that is there."""
    room = available_memory()
    if room is not None and needed > room * LEAVE_FREE:
        raise UserError(
            f"{what} need {needed:,} bytes, and {room:,} bytes of memory are free; a smaller --image-size, "
            "or fewer images, would fit"
        )
