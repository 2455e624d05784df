# SPDX-License-Identifier: Apache-2.0
"""Images into one uint8 array [N, C, H, W]: decoding of files (PNG, JPEG, ...), channels, sizes, memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import UserError, bare_reason, need
from ..memory import available_memory, is_out_of_memory
from ..progress import Progress
from .kept import first_process
from .names import HEIC, IMAGE_ERRORS, formats, parts_of, shown, suffix_of

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, Any]
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
CHANNELS = {mode: channels for channels, mode in MODES.items()}
GREY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"))
ALPHA_MODES = frozenset(("LA", "La", "PA", "RGBA", "RGBa"))
WHOLE_RANGE = frozenset(("PNG", "PPM"))
"""Formats whose mode I is 16 bits, scaled so that 65535 is white."""
STILL = frozenset(("MPO", "PSD"))
"""Formats whose further frames are previews or layers of one picture."""
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF files."""
LEAVE_FREE = 0.95
CHUNK = 64
UNKNOWN = "not an image that Pillow knows"
HEIC_REASON = "Pillow reads HEIC only with the package pillow-heif"
OpenImage = Callable[[int], "Path | IO[bytes]"]


@dataclass(frozen=True)
class ReadRequest:
    """How a data set is to be read. size: (height, width) to resize and crop to; channels: 1, 3 or 4; None
    leaves either as it is. limit: read only this many images, from the first.

    stream: images that memory has no room for stay on the disk, instead of being refused. into: where the
    images go instead, `into(shape)[i] = image`, in order; then `[:count]` gives those that could be read."""

    size: tuple[int, int] | None = None
    channels: int | None = None
    limit: int | None = None
    stream: bool = False
    into: Callable[[tuple[int, int, int, int]], Any] | None = None


@dataclass
class DecodedImages:
    """pixels: uint8 [N, C, H, W] of the images that can be read; kept: their places in the list.
    The pixels are an array, `Unheld`, or what was written `into`.

    sizes, (width, height) before resizing, and modes: each with its count. By name: unreadable images, with
    the reason; animated ones, of which only the first frame was taken."""

    pixels: Any
    kept: list[int] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)
    animated: dict[str, str] = field(default_factory=dict)


class Unheld:
    """Stands for images that memory has no room for. Only their shape is known, [N, C, H, W]."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.shape = shape

    def __setitem__(self, i: int, image: Array) -> None:
        """Drops the image; `decode` goes on, to find out which images can be read."""

    def __getitem__(self, part: slice) -> Unheld:
        return Unheld((len(range(self.shape[0])[part]), *self.shape[1:]))


def fits(needed: int) -> bool:
    """Whether memory has this many bytes free, and a margin."""
    room = available_memory()
    return room is None or needed <= room * LEAVE_FREE


def check_memory(needed: int, what: str) -> None:
    """Refuses `needed` bytes if they exceed what memory has free, less a margin."""
    if not fits(needed):
        room = available_memory() or 0
        raise UserError(
            f"{what} need {needed:,} bytes, and {room:,} bytes of memory are free; a smaller --image-size, "
            "or fewer images, would fit"
        )


def unreadable_reason(error: Exception) -> str:
    """Why a file cannot be read. Running out of memory says nothing about the file and is raised again."""
    if is_out_of_memory(error):
        raise error
    return bare_reason(error)


def worker_threads() -> int:
    """How many threads decode images: torch's, which torchrun leaves at 1 for each of its processes, or this
    process's share of the cores that it may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(1, torch.get_num_threads(), cores // processes)


def has_alpha(image: Image) -> bool:
    """Whether an image has transparency: a channel of its own, a palette entry, or one colour."""
    return image.mode in ALPHA_MODES or "transparency" in image.info


def grey_range(image: Image) -> tuple[int, bool] | None:
    """The level of white of a grey image deeper than 8 bits, and whether 0 is white; None for any other
    image.

    Call it on an image as it was opened: a TIFF file's tags say what its mode does not. ValueError, with
    what to do, if the levels of black and white are not known.
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


def eight_bits(image: Image, white: int, zero_is_white: bool) -> Image:
    """Deep grey as L, or as LA if one level is transparent. A level v becomes floor(255 v / white). Pillow
    would clip at 255, and drop the transparency."""
    pil = need("PIL.Image", "reading images")
    levels = np.asarray(image).astype(np.int64).clip(0, white)
    grey = pil.fromarray(((white - levels if zero_is_white else levels) * 255 // white).astype(np.uint8))
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
    """Resized so that it just covers `size`, (height, width), and cropped to its centre."""
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


def from_array(array: Array, request: ReadRequest) -> Any:
    """uint8 [N, H, W, C] as [N, C, H, W] of the requested size and channels: an array, or what was written
    `into`."""
    array = array[: request.limit]
    _, height, width, channels = array.shape
    same = request.size in (None, (height, width)) and request.channels in (None, channels)
    if same and request.into is None:
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    return from_images(array, array.shape, request)


def from_images(images: Iterable[Array], shape: tuple[int, ...], request: ReadRequest) -> Any:
    """As `from_array`, of images uint8 [H, W, C] one after the other, all of them [N, H, W, C] = `shape`.

    Four channels are RGBA: resized with colours weighted by alpha. Two are resized one by one.
    """
    count, height, width, channels = shape
    mode = MODES[request.channels or channels]
    size = request.size or (height, width)
    out = _place((count, CHANNELS[mode], *size), replace(request, stream=False))
    if size == (height, width) and CHANNELS[mode] == channels:
        for i, pixels in enumerate(images):
            out[i] = pixels.transpose(2, 0, 1)
        return out[:count]
    pil = need("PIL.Image", "resizing")

    def fitted(image: Image) -> Image:
        return image if size == (height, width) else cropped(image, size)

    for i, pixels in enumerate(images):
        if mode == "LA":
            channel = (pil.fromarray(np.ascontiguousarray(pixels[..., c])) for c in range(2))
            out[i] = np.stack([np.asarray(fitted(image)) for image in channel])
        else:
            image = pil.fromarray(np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels))
            out[i] = planes(fitted(to_mode(image, mode)))
    return out[:count]


def planes(image: Image) -> Array:
    """An image as [C, H, W]."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _place(shape: tuple[int, int, int, int], request: ReadRequest) -> Any:
    """What takes the images: an uninitialised uint8 array, if nothing else is requested. UserError with the
    bytes needed if memory has no room for it."""
    if request.into is not None:
        return request.into(shape)
    needed = int(np.prod(shape, dtype=object))
    if request.stream and not fits(needed):
        return Unheld(shape)
    check_memory(needed, f"{shape[0]} images of {list(shape[1:])} (C, H, W)")
    return np.empty(shape, np.uint8)


@dataclass(frozen=True)
class _DecodedImage:
    """image: converted and resized; mode, size, grey, alpha: of the image as it was stored."""

    image: Image
    mode: str
    size: tuple[int, int]
    grey: bool
    alpha: bool
    animated: bool


def decode_image(source: Path | IO[bytes], mode: str | None, request: ReadRequest) -> _DecodedImage | str:
    """An image as `mode`, or without one as its own channels require; or the reason why it cannot be read."""
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
        image = to_mode(image, mode or _common_mode(not grey, not alpha))
        image = image if request.size is None else cropped(image, request.size)
        return _DecodedImage(image, stored, size, grey, alpha, animated)
    except pil.UnidentifiedImageError:
        return UNKNOWN  # Pillow's own text names an object in memory
    except (*IMAGE_ERRORS, pil.DecompressionBombError) as error:
        return unreadable_reason(error)


def _is_animated(image: Image) -> bool:
    """Whether there are more frames. If the second is damaged, the first can still be read."""
    try:
        return bool(getattr(image, "is_animated", False))
    except IMAGE_ERRORS:
        return True


def _common_mode(colour: bool, opaque: bool) -> str:
    """The mode of a set in which some images have colour, and some no alpha."""
    return ("RGB" if colour else "L") if opaque else "RGBA"


def decode(names: Sequence[str], open_image: OpenImage, request: ReadRequest, where: str) -> DecodedImages:
    """Decodes every image that can be read straight into the array that is returned.

    names: the images' names in messages; open_image(i): the path of image i, or its bytes. Without requested
    channels, grey images give one channel, images that all have alpha four (RGBA), and others three, alpha
    laid over black. The channel count is inferred while decoding; if a later image changes it, decoding
    restarts, so that every image is converted in the same way whatever their order. Raises UserError if no
    image can be read, if sizes differ and none is requested, and if memory has no room.
    """
    if not names:
        raise UserError(f"{where}: expected at least one image, found none")
    elsewhere = request.stream or request.into is not None
    if request.size is not None:  # before the first of them is enlarged
        height, width = request.size
        count = min(CHUNK, len(names)) if elsewhere else len(names)
        needed = count * (request.channels or 1) * height * width
        check_memory(needed, f"{count} images of {width} x {height}")
    colour = opaque = False
    mode = None if request.channels is None else MODES[request.channels]
    while True:
        result = DecodedImages(np.empty(0, np.uint8))
        restart = False
        first, shape = "", (0, 0, 0)
        for i, decoded in _decode_each(len(names), open_image, mode, request, bar=elsewhere):
            if isinstance(decoded, str):
                heic = decoded == UNKNOWN and suffix_of(parts_of(names[i])) in HEIC
                result.unreadable[names[i]] = HEIC_REASON if heic else decoded
                continue
            if request.channels is None:
                colour, opaque = colour or not decoded.grey, opaque or not decoded.alpha
                before, mode = mode, _common_mode(colour, opaque)
                if decoded.image.mode != mode or before not in (None, mode):
                    restart = True
                    break
            if not result.kept:
                first = names[i]
                shape = (CHANNELS[decoded.image.mode], decoded.image.height, decoded.image.width)
                result.pixels = _place((len(names), *shape), request)
            elif shape[1:] != (decoded.image.height, decoded.image.width):
                height, width = shape[1:]
                raise UserError(
                    f"expected images of one size, got {width} x {height} in {shown(first)} and "
                    f"{decoded.size[0]} x {decoded.size[1]} in {shown(names[i])}; --image-size N resizes and "
                    "crops them all to N x N"
                )
            result.pixels[len(result.kept)] = planes(decoded.image)
            result.kept.append(i)
            result.sizes[decoded.size] += 1
            result.modes[decoded.mode] += 1
            if decoded.animated:
                result.animated[names[i]] = ""
        if restart:
            continue
        if not result.kept:
            name, reason = next(iter(result.unreadable.items()))
            raise UserError(f"{where}: none of its {len(names)} images can be read; {shown(name)}: {reason}")
        result.pixels = result.pixels[: len(result.kept)]
        return result


def _decode_each(
    count: int, open_image: OpenImage, mode: str | None, request: ReadRequest, *, bar: bool
) -> Iterator[tuple[int, _DecodedImage | str]]:
    """Every image in order. A few at a time, so that threads do not run ahead of memory. bar: show one."""

    def load(i: int) -> _DecodedImage | str:
        try:
            source = open_image(i)
        except IMAGE_ERRORS as error:
            return unreadable_reason(error)
        return decode_image(source, mode, request)

    progress = Progress(count, 0, bar=bar and count > CHUNK, quiet=not first_process(), unit="image")
    try:
        with ThreadPoolExecutor(worker_threads()) as pool:
            for start in range(0, count, CHUNK):
                chunk = range(start, min(start + CHUNK, count))
                yield from zip(chunk, pool.map(load, chunk), strict=True)
                progress.advance(len(chunk))
    finally:
        progress.close()
