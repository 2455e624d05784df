# SPDX-License-Identifier: Apache-2.0
"""Data sets as one uint8 tensor [N, C, H, W]: a folder of images, an .npz file, or the digits that
ship inside scikit-learn. Decoding to [-1, 1] is left to the `corrupt` op."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import UserError, need

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
MOST_NAMED = 5
EXPECTED = "expected a folder of images, an .npz file, or the word digits"
GREY_MODES = frozenset(("1", "L", "LA", "I;16", "I"))


@dataclass(frozen=True)
class ImageSet:
    """A data set held in memory: pixels uint8 [N, C, H, W], and a short name for run folders."""

    pixels: Tensor
    name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.pixels.shape[1:]
        return c, h, w

    def digest(self) -> str:
        """Sixteen hex digits that name these pixels."""
        digest = hashlib.blake2b(repr(list(self.pixels.shape)).encode(), digest_size=8)
        digest.update(self.pixels.contiguous().numpy().data)
        return digest.hexdigest()

    def batches(self, size: int = 512) -> Iterator[Tensor]:
        """The whole set in order, as uint8 [B, C, H, W]."""
        yield from self.pixels.split(size)


def load_images(source: str, image_size: int | None = None) -> ImageSet:
    """The data set that `--data` names: `digits`, a folder (searched recursively) or an .npz file.

    image_size: resize the shorter side to it and cut out the centre square. Without it all images
    must be of one size. Raises UserError, one sentence, for anything that cannot be read.
    """
    path = Path(source)
    if source == "digits" and not path.exists():
        return ImageSet(_digits(image_size), "digits")
    if path.is_dir():
        return ImageSet(_folder(path, image_size), path.resolve().name)
    if path.suffix == ".npz" and path.is_file():
        return ImageSet(_npz(path, image_size), path.stem)
    if not path.exists():
        raise UserError(f"{source}: no such file or folder; {EXPECTED}")
    raise UserError(f"{source}: {EXPECTED}")


def _digits(image_size: int | None) -> Tensor:
    datasets = need("sklearn.datasets", "the digits data set")
    if image_size is not None and image_size < 8:
        raise UserError(f"--image-size: expected 8 or more for the digits, which are 8 x 8, got {image_size}")
    grey = datasets.load_digits().images.astype(np.float64) * (255 / 16)
    pixels = np.rint(grey).astype(np.uint8)[..., None]
    return _channels_first(_resized(pixels, image_size))


def _npz(path: Path, image_size: int | None) -> Tensor:
    try:
        with np.load(path, allow_pickle=False) as archive:
            name = next((n for n in ("images", "arr_0") if n in archive.files), None)
            if name is None:
                found = ", ".join(archive.files) or "nothing"
                raise UserError(f"{path}: expected an array named images or arr_0, found {found}")
            array = archive[name]
    except UserError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable .npz file ({error})") from error
    what = f"{path}: expected {name} as uint8 [N, H, W] or [N, H, W, C] with C of 1 to 4"
    shaped = array.ndim == 3 or (array.ndim == 4 and 1 <= array.shape[3] <= 4)
    if array.dtype != np.uint8 or not shaped:
        raise UserError(f"{what}, got {array.dtype} {list(array.shape)}")
    if 0 in array.shape:
        raise UserError(f"{what} and at least one image, got {list(array.shape)}")
    return _channels_first(_resized(array if array.ndim == 4 else array[..., None], image_size))


def _folder(folder: Path, image_size: int | None) -> Tensor:
    pil = need("PIL.Image", "a folder of images")
    operations = need("PIL.ImageOps", "a folder of images")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"{folder}: expected images ({', '.join(sorted(SUFFIXES))}), found none")
    images: list[Image] = []
    unreadable: dict[Path, str] = {}
    first = files[0]
    for file in files:
        try:
            with pil.open(file) as image:
                image.load()
                images.append(operations.exif_transpose(image))
        except (OSError, SyntaxError, ValueError, pil.DecompressionBombError) as error:
            unreadable[file] = " ".join(str(error).split())
            continue
        first = file if len(images) == 1 else first
        if image_size is None and images[-1].size != images[0].size:
            raise UserError(
                f"expected images of one size, got {_size(images[0])} in {first} and {_size(images[-1])} "
                f"in {file}; --image-size N resizes and crops them all to N x N"
            )
    if not images:
        file, reason = next(iter(unreadable.items()))
        raise UserError(f"{folder}: none of its {len(files)} images can be read; {file}: {reason}")
    if unreadable:
        _tell_unreadable(unreadable, len(files))
    mode = "L" if all(image.mode in GREY_MODES for image in images) else "RGB"
    arrays = []
    for image in images:
        small = _to_mode(image, mode)
        arrays.append(np.asarray(small if image_size is None else _crop(small, image_size)))
    stacked = np.stack(arrays)
    return _channels_first(stacked if stacked.ndim == 4 else stacked[..., None])


def _tell_unreadable(unreadable: dict[Path, str], count: int) -> None:
    """A warning that counts the files that are left out, and names the first few."""
    named = [f"{file} ({reason})" for file, reason in list(unreadable.items())[:MOST_NAMED]]
    more = f" and {len(unreadable) - MOST_NAMED} more" if len(unreadable) > MOST_NAMED else ""
    told = f"{len(unreadable)} of {count} images cannot be read and are left out: {', '.join(named)}{more}"
    print(f"warning: {told}", file=sys.stderr, flush=True)


def _to_mode(image: Image, mode: str) -> Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit greys at 255 instead of scaling them.
        pil = need("PIL.Image", "a folder of images")
        return pil.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert(mode)
    return image.convert(mode)


def _size(image: Image) -> str:
    return f"{image.width} x {image.height}"


def _crop(image: Image, side: int) -> Image:
    """The shorter side resized to `side`, then the centre square."""
    pil = need("PIL.Image", "resizing")
    shorter = min(image.size)
    width, height = (max(side, round(length * side / shorter)) for length in image.size)
    kind = pil.Resampling.BICUBIC if side > shorter else pil.Resampling.LANCZOS
    filtered = image.resize((width, height), kind)
    left, top = (width - side) // 2, (height - side) // 2
    return filtered.crop((left, top, left + side, top + side))


def _resized(pixels: np.ndarray[Any, Any], side: int | None) -> np.ndarray[Any, Any]:
    """[N, H, W, C] at `side` x `side`, channel by channel so that any number of them works."""
    if side is None or pixels.shape[1:3] == (side, side):
        return pixels
    pil = need("PIL.Image", "resizing")

    def one(plane: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(_crop(pil.fromarray(np.ascontiguousarray(plane)), side))

    return np.stack([np.stack([one(x[..., c]) for c in range(x.shape[2])], axis=-1) for x in pixels])


def _channels_first(pixels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


class ImageOrder:
    """Which image comes at each place of a run, as a function of the seed and the place alone.

    Every image comes once an epoch, in an order drawn from (seed, epoch), so that a resumed run, or
    one of several processes that takes only its share of each batch, needs no other state than the
    number of images seen.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            # Hashed, so that neighbouring (seed, epoch) pairs share nothing.
            mixed = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(mixed) % 2**63)
            self._order = torch.randperm(self.count, generator=generator)
            self._epoch = epoch
        return self._order

    def __call__(self, first: int, size: int) -> Tensor:
        """Indices int64 [size] of the images at places first, ..., first + size - 1."""
        parts = []
        while size > 0:
            epoch, at = divmod(first, self.count)
            part = self._epoch_order(epoch)[at : at + size]
            parts.append(part)
            first, size = first + len(part), size - len(part)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
