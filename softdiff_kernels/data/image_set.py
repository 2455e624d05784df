# SPDX-License-Identifier: Apache-2.0
"""Data sets as one uint8 tensor [N, C, H, W], from whatever `--data` names. Decoding to [-1, 1] is left
to the `corrupt` op."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..diffusion import PowerSpectrum, power_spectrum
from ..errors import UserError, need
from .folders import read_folder, read_zip
from .formats import SUFFIXES
from .hf import PREFIX, parsed, read_hf
from .image_order import ImageOrder
from .labels import WHERE_FROM, Labels
from .names import listed
from .npz import read_npy, read_npz
from .pixels import Found, Wanted, from_array

__all__ = ["SUFFIXES", "ImageOrder", "ImageSet", "load_images", "read", "set_name"]

EXPECTED = "expected a folder of images, an .npz, .npy or .zip file, hf:NAME, or the word digits"


@dataclass(frozen=True)
class ImageSet:
    """A data set held in memory: pixels uint8 [N, C, H, W], and a short name for run folders.

    labels: int64 [N] in 0..K-1, or None; classes: the K names; unlabelled: why there are no labels.
    """

    pixels: Tensor
    name: str
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    unlabelled: str = ""

    def __post_init__(self) -> None:
        """Refuses labels that are not one an image."""
        if self.labels is not None and self.labels.shape != (len(self.pixels),):
            got = list(self.labels.shape)
            raise ValueError(f"labels: expected shape [{len(self.pixels)}], one an image, got {got}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.pixels.shape[1:]
        return c, h, w

    @property
    def num_classes(self) -> int:
        """K; 0 without labels."""
        if self.labels is None:
            return 0
        return len(self.classes) or int(self.labels.max()) + 1

    @cached_property
    def spectrum(self) -> PowerSpectrum:
        """The images' power spectrum: one pass, of which schedule and network both make use."""
        return power_spectrum(self.batches())

    def digest(self, labels: bool = False) -> str:
        """Sixteen hex digits that name these pixels; labels: and, where there are any, their labels."""
        digest = hashlib.blake2b(repr(list(self.pixels.shape)).encode(), digest_size=8)
        digest.update(self.pixels.contiguous().numpy().data)
        if labels and self.labels is not None:
            digest.update(f"labels of {self.num_classes}".encode())
            digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def numbered_as(self, classes: Sequence[str], digest: str | None) -> ImageSet:
        """These images with their classes numbered as in a run, whose classes are given, whose images have
        this digest, and which may have been begun when class folders had another order.

        The names tell which number a class had, unless every image has the number that it had. UserError
        where the run does not know one of the names.
        """
        if self.labels is None or self.classes == tuple(classes) or self.digest(labels=True) == digest:
            return self
        number = {name: i for i, name in enumerate(classes)}
        unknown = [name for name in self.classes if name not in number]
        if unknown or len(number) < len(classes) or len(set(self.classes)) < len(self.classes):
            known = listed(dict.fromkeys(classes, ""))
            raise UserError(
                f"expected images of the classes that the run was trained on ({known}), got others "
                f"({listed(dict.fromkeys(unknown or self.classes, ''))})"
            )
        numbers = torch.tensor([number[name] for name in self.classes])
        return replace(self, labels=numbers[self.labels], classes=tuple(classes))

    def batches(self, size: int = 512) -> Iterator[Tensor]:
        """The whole set in order, as uint8 [B, C, H, W]."""
        yield from self.pixels.split(size)


def load_images(
    source: str,
    image_size: int | tuple[int, int] | None = None,
    *,
    channels: int | None = None,
    need_labels: bool = False,
) -> ImageSet:
    """The data set that `--data` names: `digits`, a folder (searched recursively), an .npz, .npy or .zip
    file, or hf:NAME_OR_PATH[:SPLIT].

    image_size: (height, width), or one number for both; images are resized so that they cover it, and the
    centre cut out. Without it all images must be of one size. channels: 1 (grey), 3 (RGB, alpha laid over
    black) or 4 (RGBA); without it what the images have in common. need_labels: refuse a source without usable
    labels, which otherwise gives none (and a warning, where it has some that cannot be used). What is left
    out is counted and named on standard error, by the first of several processes. Raises UserError, one
    sentence, for anything that cannot be read.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    found = read(source, Wanted(size, channels))
    labels = found.labels
    if need_labels and labels.values is None:
        why = f": {labels.why}" if labels.why else ""
        raise UserError(labels.fault or f"{source}: has no labels{why}; {WHERE_FROM}")
    remarks = list(found.remarks())
    if labels.fault or labels.note:
        unused = "; going on without labels" if labels.fault else ""
        remarks.append(f"warning: {labels.fault or labels.note}{unused}")
    if os.environ.get("RANK", "") in ("", "0"):
        for line in remarks:
            print(line, file=sys.stderr, flush=True)
    values = None if labels.values is None else torch.from_numpy(labels.values)
    why = labels.fault or labels.why
    return ImageSet(torch.from_numpy(found.pixels), set_name(source), values, labels.classes, why)


def set_name(source: str) -> str:
    """The short name of a source, for run folders."""
    path = Path(source)
    if source.startswith(PREFIX):
        return Path(parsed(source)[0]).name
    return path.resolve().name if path.is_dir() else path.stem


def read(source: str, wanted: Wanted) -> Found:
    """What a source holds, with all that there is to tell of it. Raises UserError, one sentence."""
    if wanted.size is not None and min(wanted.size) < 1:
        raise UserError(f"--image-size: expected at least 1, got {min(wanted.size)}")
    path = Path(source)
    if source == "digits" and not path.exists():
        return _digits(wanted)
    if source.startswith(PREFIX):
        return read_hf(source, wanted)
    if path.is_dir():
        return read_folder(path, wanted)
    kinds = {".npz": read_npz, ".npy": read_npy, ".zip": read_zip}
    if path.suffix.lower() in kinds and path.is_file():
        return kinds[path.suffix.lower()](path, wanted)
    if not path.exists():
        raise UserError(f"{source}: no such file or folder; {EXPECTED}")
    raise UserError(f"{source}: {EXPECTED}")


def _digits(wanted: Wanted) -> Found:
    datasets = need("sklearn.datasets", "the digits data set")
    if wanted.size is not None and min(wanted.size) < 8:
        raise UserError(
            f"--image-size: expected 8 or more for the digits, which are 8 x 8, got {min(wanted.size)}"
        )
    digits = datasets.load_digits()
    grey = digits.images.astype(np.float64) * (255 / 16)
    pixels = from_array(np.rint(grey).astype(np.uint8)[..., None], wanted)
    count = len(pixels)
    labels = Labels(digits.target[:count].astype(np.int64), tuple(map(str, range(10))))
    return Found(pixels, labels, Counter({(8, 8): count}), Counter({"L": count}))
