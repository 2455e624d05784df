# SPDX-License-Identifier: Apache-2.0
"""A data set of uint8 images [N, C, H, W], in memory or on the disk, and the order in which a run sees its
images. Decoding to [-1, 1] is left to the `corrupt` op."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..diffusion import PowerSpectrum, power_spectrum
from ..diffusion.shortest_path import SpectrumSums
from ..errors import UserError
from ..images import Pixels, pieces
from ..progress import Progress
from .choices import new_numbers
from .kept import Kept, first_process
from .sources import check_labels, read_source, set_name

__all__ = ["ImageOrder", "ImageSet", "load_images"]

Fitted = TypeVar("Fitted")
BATCH, BATCH_BYTES = 512, 2**26
"""The most images, and bytes of images, that a pass takes at a time."""


@dataclass(frozen=True)
class ImageSet:
    """A data set: its images, and a short name for run folders.

    pixels: uint8 [N, C, H, W], a tensor or, where memory has no room, images on the disk that are read where
    they are indexed (`Pixels`). labels: int64 [N] in 0..K-1, or None; classes: the K names; unlabelled: why
    there are no labels.
    """

    pixels: Pixels
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

    @property
    def tensor(self) -> Tensor:
        """The pixels of a set in memory. UserError for a set on the disk."""
        if not isinstance(self.pixels, Tensor):
            raise UserError(
                f"{self.name}: expected images that fit into memory, got {list(self.pixels.shape)}"
            )
        return self.pixels

    @property
    def kept(self) -> Kept | None:
        """Where results of a pass over a set on the disk are kept; None for a set in memory."""
        kept: Kept | None = getattr(self.pixels, "kept", None)
        return kept

    @cached_property
    def spectrum(self) -> PowerSpectrum:
        """The images' power spectrum, computed once; both schedule and network use it."""
        if self.kept is None:
            return power_spectrum(self.batches())
        known = self.kept.load("spectrum")
        if known is None:
            self._measure()
            return self.__dict__["spectrum"]
        mean, power = (torch.from_numpy(known[name]) for name in ("mean", "power"))
        return PowerSpectrum(mean, power, int(known["count"]))

    def _pixel_hash(self) -> Any:
        """The hash of all pixels, to which that of labels can be added. On the disk they are read once."""
        if self.kept is not None:
            if "_measured_hash" not in self.__dict__:
                self._measure()
            return self.__dict__["_measured_hash"].copy()
        digest = self._empty_hash()
        for batch in self.batches():
            digest.update(batch.contiguous().numpy().data)
        return digest

    def _empty_hash(self) -> Any:
        return hashlib.blake2b(repr(list(self.pixels.shape)).encode(), digest_size=8)

    def digest(self, labels: bool = False) -> str:
        """Sixteen hex digits that identify these pixels and, if `labels`, their labels if there are any. They
        are the same for a set in memory and on the disk."""
        tail = b""
        if labels and self.labels is not None:
            tail = f"labels of {self.num_classes}".encode() + self.labels.contiguous().numpy().tobytes()
        name = f"digest-{hashlib.blake2b(tail, digest_size=8).hexdigest()}"
        known = None if self.kept is None else self.kept.load(name)
        if known is not None:
            return str(known["digest"])
        digest = self._pixel_hash()
        digest.update(tail)
        if self.kept is not None:
            self.kept.save(name, {"digest": np.array(digest.hexdigest())})
        return str(digest.hexdigest())

    def fit(self, use: Callable[[Iterator[Tensor]], Fitted]) -> Fitted:
        """The result of `use(batches)`, which takes some or all of them.

        Of a set on the disk the same pass computes and keeps the spectrum and the digests, if they are not
        known yet.
        """
        if self.kept is None:
            return use(self.batches())
        if "_measured_hash" in self.__dict__ or self.kept.load("spectrum") is not None:
            return use(self.batches(progress=True))
        batches = self._measured()
        result = use(batches)
        for _ in batches:
            pass
        return result

    def _measure(self) -> None:
        for _ in self._measured():
            pass

    def _measured(self) -> Iterator[Tensor]:
        assert self.kept is not None
        sums, digest = SpectrumSums(), self._empty_hash()
        for batch in self.batches(progress=True):
            for piece in pieces("power_spectrum", [batch]):
                sums.add(piece)
            digest.update(batch.numpy().data)
            yield batch
        spectrum = sums.result()
        self.__dict__.update(spectrum=spectrum, _measured_hash=digest)
        arrays = {"mean": spectrum.mean.numpy(), "power": spectrum.power.numpy()}
        self.kept.save("spectrum", {**arrays, "count": np.array(spectrum.count)})
        for labels in (False, True):
            self.digest(labels)

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

    def batches(self, size: int = BATCH, *, progress: bool = False) -> Iterator[Tensor]:
        """The whole set in order, as uint8 [B, C, H, W]; fewer than `size` at a time of large images.
        progress: show a bar."""
        count = len(self.pixels)
        size = max(1, min(size, BATCH_BYTES // max(1, math.prod(self.shape))))
        quiet = not (progress and first_process())
        shown = Progress(count, 0, bar=progress, quiet=quiet, unit="image")
        shown.say(f"reading the {count:,} images of {self.name} once")
        try:
            for first in range(0, count, size):
                yield self.pixels[first : first + size]
                shown.advance(min(size, count - first))
        finally:
            shown.close()


def load_images(
    source: str,
    image_size: int | tuple[int, int] | None = None,
    *,
    channels: int | None = None,
    need_labels: bool = False,
    stream: bool = False,
) -> ImageSet:
    """The data set that `--data` names: anything that `sources.SOURCES` lists.

    image_size: (height, width), or one number for both; images are resized so that they just cover it, and
    cropped to its centre. Without it all images must have one size. channels: 1 (grey), 3 (RGB, alpha laid
    over black) or 4 (RGBA); without it what the images have in common. need_labels: refuse a source without
    usable labels; otherwise it gives none, with a warning if it has labels that cannot be used. stream: what
    memory has no room for, and what `softdiff dataset` packed, stays on the disk; otherwise the one is
    refused, and the other read into memory. What is left out is counted and named on standard error, by the
    first of several processes. Raises UserError, one sentence, for anything that cannot be read.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    result = read_source(source, size=size, channels=channels, stream=stream)
    labels = result.labels
    if need_labels:
        check_labels(source, labels)
    remarks = list(result.remarks())
    if labels.error or labels.note:
        unused = "; continuing without labels" if labels.error else ""
        remarks.append(f"warning: {labels.error or labels.note}{unused}")
    if first_process():
        for line in remarks:
            print(line, file=sys.stderr, flush=True)
    values = None if labels.values is None else torch.from_numpy(labels.values)
    unlabelled = labels.error or labels.absent
    pixels = torch.from_numpy(result.pixels) if isinstance(result.pixels, np.ndarray) else result.pixels
    return ImageSet(pixels, set_name(source), values, labels.classes, unlabelled)


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
