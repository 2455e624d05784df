# SPDX-License-Identifier: Apache-2.0
"""A data set as one uint8 tensor [N, C, H, W], and the order in which a run sees its images. Decoding to
[-1, 1] is left to the `corrupt` op."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..diffusion import PowerSpectrum, power_spectrum
from .choices import new_numbers
from .sources import check_labels, read_source, set_name

__all__ = ["ImageOrder", "ImageSet", "load_images"]


@dataclass(frozen=True)
class ImageSet:
    """A data set in memory: pixels uint8 [N, C, H, W], and a short name for run folders.

    labels: int64 [N] in 0..K-1, or None; classes: the K names; unlabelled: why there are no labels.
    """

    pixels: Tensor
    name: str
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    unlabelled: str = ""

    def __post_init__(self) -> None:
        """Refuses labels of another shape than one for each image."""
        if self.labels is not None and self.labels.shape != (len(self.pixels),):
            got = list(self.labels.shape)
            raise ValueError(f"labels: expected shape [{len(self.pixels)}], one for each image, got {got}")

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
        """The images' power spectrum, computed once; both schedule and network use it."""
        return power_spectrum(self.batches())

    def digest(self, labels: bool = False) -> str:
        """Sixteen hex digits that identify these pixels and, if `labels`, their labels if there are any."""
        digest = hashlib.blake2b(repr(list(self.pixels.shape)).encode(), digest_size=8)
        digest.update(self.pixels.contiguous().numpy().data)
        if labels and self.labels is not None:
            digest.update(f"labels of {self.num_classes}".encode())
            digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def numbered_as(self, classes: Sequence[str], digest: str | None) -> ImageSet:
        """These images with their classes numbered as in a run with these classes and a data set with this
        digest. The run may have started when class folders were sorted in another way.

        A class keeps the number that its name had in the run, unless every image already has its old number.
        UserError if the run does not know one of the names.
        """
        if self.labels is None or self.classes == tuple(classes) or self.digest(labels=True) == digest:
            return self
        numbers = torch.tensor(new_numbers(self.classes, classes))
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
    """The data set that `--data` names: anything that `sources.SOURCES` lists.

    image_size: (height, width), or one number for both; images are resized so that they just cover it, and
    cropped to its centre. Without it all images must have one size. channels: 1 (grey), 3 (RGB, alpha laid
    over black) or 4 (RGBA); without it what the images have in common. need_labels: refuse a source without
    usable labels; otherwise it gives none, with a warning if it has labels that cannot be used. What is left
    out is counted and named on standard error, by the first of several processes. Raises UserError, one
    sentence, for anything that cannot be read.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    result = read_source(source, size=size, channels=channels)
    labels = result.labels
    if need_labels:
        check_labels(source, labels)
    remarks = list(result.remarks())
    if labels.error or labels.note:
        unused = "; continuing without labels" if labels.error else ""
        remarks.append(f"warning: {labels.error or labels.note}{unused}")
    if os.environ.get("RANK", "") in ("", "0"):
        for line in remarks:
            print(line, file=sys.stderr, flush=True)
    values = None if labels.values is None else torch.from_numpy(labels.values)
    unlabelled = labels.error or labels.absent
    return ImageSet(torch.from_numpy(result.pixels), set_name(source), values, labels.classes, unlabelled)


class ImageOrder:
    """Which image comes at each place of a run, as a function of the seed and the place alone.

    Every image comes once an epoch, in an order drawn from (seed, epoch). So a resumed run, or one of
    several processes that takes only its share of each batch, needs no other state than the number of
    images seen.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            # Hashed, so that the orders of neighbouring (seed, epoch) pairs are independent.
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
