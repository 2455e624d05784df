# SPDX-License-Identifier: Apache-2.0
"""Packed data sets, which training reads from the disk: uint8 [N, C, H, W], written by `softdiff dataset`.

One file, `photos.npy` with its index `photos.npy.json`; or a folder with `softdiff.json` and the shards
`images-00000.npy`, ... The index has the number and shape of the images, the size and digest of each shard,
the labels and the names of the classes. A shard is an .npy file that any reader of arrays opens. Its images
start at byte 4096: that is the beginning of a page, and it tells a packed file from an array that somebody
saved, whose axes mean something else ([N, H, W, C]).

Images are read by position and not mapped into the address space. All processes of a machine share the
system's page cache either way; but a mapped file that is cut short ends a process by SIGBUS, and a short read
is an error with a sentence.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..progress import Progress
from .kept import Kept, first_process, place_beside
from .labels import Labels
from .names import listed

FOLDER_INDEX = "softdiff.json"
FORMAT, VERSION = "softdiff images", 1
DATA_AT = 4096
"""The byte at which a shard's images start."""
MAGIC = b"\x93NUMPY\x01\x00" + (DATA_AT - 10).to_bytes(2, "little")
"""The first ten bytes of a shard: an .npy file of version 1 with a header of this length."""
PIECE = 2**24
"""Bytes that a digest reads at a time."""


def index_of(path: Path) -> Path:
    """The index that belongs to a packed file or folder."""
    return path / FOLDER_INDEX if path.is_dir() else path.with_name(path.name + ".json")


def is_packed(path: Path) -> bool:
    """Whether a file or folder is a packed data set, or was one before a part of it was lost."""
    if path.is_dir():
        return (path / FOLDER_INDEX).exists()
    if path.suffix.lower() != ".npy" or not path.is_file():
        return False
    with suppress(OSError), open(path, "rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            return True
    with suppress(OSError, ValueError, RecursionError):
        index = json.loads(index_of(path).read_text(encoding="utf-8"))
        return isinstance(index, dict) and index.get("format") == FORMAT
    return False


def _header(shape: tuple[int, ...]) -> bytes:
    """The first 4096 bytes of a shard of this shape."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    return MAGIC + text.encode().ljust(DATA_AT - 11) + b"\n"


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is the one of before without reading it: bytes, times of changes in ns."""

    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, handle: int) -> Stamp:
        stat = os.fstat(handle)
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class _OpenShard:
    """A shard that is open for reading, by position, from any thread or forked process."""

    def __init__(self, path: Path, count: int, image_bytes: int) -> None:
        if not hasattr(os, "preadv"):
            raise UserError(
                f"{path}: a packed set needs Linux, or macOS from 11 on: reads by position (preadv)"
            )
        self.path, self.count, self.image_bytes = path, count, image_bytes
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (for as long as the images are used)
        self.stamp = Stamp.of(self._file.fileno())

    def read(self, first: int, out: memoryview) -> None:
        """Reads images from place `first` on into bytes. UserError if the file has changed since it was
        opened."""
        at = DATA_AT + first * self.image_bytes
        try:
            while out:
                got = os.preadv(self._file.fileno(), [out], at)
                if got == 0:
                    raise self._changed()
                at, out = at + got, out[got:]
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read any more ({error.strerror or error})") from error

    def check(self) -> None:
        """UserError if the file was written to since it was opened. Call it after reading: what was read then
        is what the file had at the start."""
        now = Stamp.of(self._file.fileno())
        if (now.size, now.modified) != (self.stamp.size, self.stamp.modified):
            raise self._changed()

    def _changed(self) -> UserError:
        size = os.fstat(self._file.fileno()).st_size
        what = "cut short" if size < self.stamp.size else "changed"
        return UserError(
            f"{self.path}: was {what} while it was in use (it had {self.stamp.size:,} bytes at the start and "
            f"has {size:,} now); pack the images again, and resume from the last checkpoint"
        )

    def digest(self, progress: Progress) -> str:
        """Sixteen hex digits that identify the images' bytes."""
        digest = hashlib.blake2b(digest_size=8)
        left, first = self.count * self.image_bytes, DATA_AT
        buffer = memoryview(bytearray(min(PIECE, left)))
        while left:
            got = os.preadv(self._file.fileno(), [buffer[: min(PIECE, left)]], first)
            if got == 0:
                raise self._changed()
            digest.update(buffer[:got])
            first, left = first + got, left - got
            progress.advance(got)
        return digest.hexdigest()


class ShardPixels:
    """The images of shards, read where they are indexed: what a uint8 tensor [N, C, H, W] is to a reader.

    `pixels[index]` with a slice or an int64 tensor gives a tensor; UserError, one sentence, if a file was cut
    short or written to since it was opened.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], image: tuple[int, int, int]) -> None:
        size = int(np.prod(image))
        self.shards = [_OpenShard(path, count, size) for path, count in files]
        self._ends = [*accumulate(count for _, count in files)]
        self.shape = torch.Size((self._ends[-1], *image))
        self.kept: Kept | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        if isinstance(index, Tensor):
            numbers = index.numpy()
            if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
                raise IndexError(
                    f"expected places in 0..{len(self) - 1}, got {numbers.min()}..{numbers.max()}"
                )
        else:
            numbers = np.arange(*index.indices(len(self)))
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        if out.size:
            rows = out.reshape(-1).data
            size = out[0].size
            # Neighbours are read together.
            breaks = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
            for start, end in pairwise(breaks):
                self._read(int(numbers[start]), rows[start * size : end * size])
            for shard in self.shards:
                shard.check()
        return torch.from_numpy(out)

    def _read(self, first: int, out: memoryview) -> None:
        """Reads neighbouring images, of one shard or more."""
        while out:
            number = bisect_right(self._ends, first)
            shard = self.shards[number]
            place = first - (self._ends[number] - shard.count)
            count = min(shard.count - place, len(out) // shard.image_bytes)
            shard.read(place, out[: count * shard.image_bytes])
            first, out = first + count, out[count * shard.image_bytes :]


class Writer:
    """Takes images in order, `writer[i] = image` with uint8 [C, H, W], and writes them into shards.

    `writer[:count]` ends it, and gives the images for reading. out: what messages call it. folder: where the
    shards are written; name: of a shard, with {} for its number. shape: [N, C, H, W], at most N images.
    shard_bytes: the most bytes of images in a shard; None for one shard. UserError if the disk is full.
    """

    def __init__(
        self, out: Path, folder: Path, name: str, shape: tuple[int, int, int, int], shard_bytes: int | None
    ) -> None:
        self.out, self.folder, self.name, self.image = out, folder, name, shape[1:]
        size = int(np.prod(self.image))
        self.per_shard = shape[0] if shard_bytes is None else max(1, shard_bytes // size)
        self.shards: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None
        self._digest = hashlib.blake2b(digest_size=8)
        self._count = 0
        for old in folder.iterdir():  # of an attempt with other channels
            old.unlink()
        needed, free = DATA_AT + shape[0] * size, shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"cannot write {out}: {shape[0]} images of {list(self.image)} (C, H, W) need {needed:,} "
                f"bytes, and {free:,} are free on this disk"
            )

    def __setitem__(self, i: int, image: np.ndarray[Any, Any]) -> None:
        assert i == sum(shard["count"] for shard in self.shards) + self._count
        data = np.ascontiguousarray(image).data
        with _writing(self.out):  # here, because readers take an OSError for one of the file that they read
            if self._file is None:
                path = self.folder / self.name.format(len(self.shards))
                self._file = open(path, "wb", buffering=2**20)  # noqa: SIM115
                self._file.write(bytes(DATA_AT))
            self._file.write(data)
        self._digest.update(data)
        self._count += 1
        if self._count == self.per_shard:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._file is None:
            return
        with _writing(self.out), self._file as file:
            file.seek(0)
            file.write(_header((self._count, *self.image)))
            file.flush()
            os.fsync(file.fileno())
            name = Path(file.name).name
        size = DATA_AT + self._count * int(np.prod(self.image))
        entry = {"file": name, "count": self._count, "bytes": size, "digest": self._digest.hexdigest()}
        self.shards.append(entry)
        self._file, self._count, self._digest = None, 0, hashlib.blake2b(digest_size=8)

    def __getitem__(self, _: slice) -> ShardPixels:
        self._end_shard()
        files = [(self.folder / shard["file"], shard["count"]) for shard in self.shards]
        return ShardPixels(files, self.image)

    def save_index(self, name: str, labels: Labels | None) -> None:
        """Writes the index, after the last image."""
        labels = labels or Labels()
        values = None if labels.values is None else labels.values.tolist()
        content = {
            **{"format": FORMAT, "version": VERSION},
            "count": sum(shard["count"] for shard in self.shards),
            **{"shape": list(self.image), "shards": self.shards},
            **{"classes": list(labels.classes), "labels": values},
        }
        with _writing(self.out), open(self.folder / name, "wb") as file:
            file.write(json.dumps(content).encode())
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turns the OSError of a disk that is full or cannot be written into a UserError."""
    try:
        yield
    except OSError as error:
        kept = "; the existing file is unchanged" if out.exists() else ""
        raise UserError(f"cannot write {out}: {error.strerror or error}{kept}") from error


@contextmanager
def sole_writer(out: Path) -> Iterator[Path]:
    """An empty folder `OUT.packing` beside the output, for this process alone until the block ends.

    UserError where another process has it or it holds other files, and for a disk that is full or cannot be
    written; the folder goes away, and the output stays as it was. A folder that a killed process left is
    taken over.
    """
    folder = out.with_name(out.name + ".packing")
    lock, mine = None, False
    try:
        with _writing(out):
            folder.mkdir(exist_ok=True)
            lock = _locked(folder, out)
            others = {p.name: "" for p in folder.iterdir() if p.suffix not in (".npy", ".json")}
            if others:
                raise UserError(
                    f"{folder}: expected no such folder, or what a killed process left in it, got other "
                    f"files: {listed(others)}; move it, or choose another --out"
                )
            mine = True
            for old in folder.iterdir():
                old.unlink()
            yield folder
    finally:
        # Where it was moved away, its name can be another process's now.
        if mine and (lock is None or _same(lock, folder)):
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _same(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except OSError:
        return False


def _locked(folder: Path, out: Path) -> int | None:
    """A handle that holds the lock of a folder; None on Windows, which has none. The system frees it when the
    process ends in any way."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder, os.O_RDONLY)
    locked = False
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    # The other process may have finished, and moved the folder, before the lock was free.
    if not locked or not _same(handle, folder):
        os.close(handle)
        raise UserError(f"{out}: another process is writing it now; wait for it, or choose another --out")
    return handle


def publish(folder: Path, out: Path) -> None:
    """Moves what was packed in `folder` to its place: a file and then its index, or the folder itself."""
    if (folder / FOLDER_INDEX).exists():
        # A folder of its own name, so that none of the user's is deleted.
        old = Path(tempfile.mkdtemp(prefix=f"{out.name}.replaced-", dir=out.parent))
        if out.exists():
            os.rename(out, old / out.name)
        os.rename(folder, out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        for name in (out.name, index_of(out).name):
            os.replace(folder / name, out.with_name(name))
    packed = PackedPixels(out, trusted=True)
    assert packed.kept is not None
    packed.kept.drop_others()


class PackedPixels(ShardPixels):
    """A packed data set: its images as `ShardPixels`, and labels. path: of the .npy file, or of the folder.

    Opening compares the files with the index: their sizes always, and their digests unless they are known to
    be the ones that were read before (by size and times of change, which are kept). UserError, one sentence,
    for shards that are missing, cut short or changed, and for an index that is missing or disagrees.
    trusted: the files were just written by this process.
    """

    def __init__(self, path: Path, *, trusted: bool = False) -> None:
        index, shards, image = _read_index(path)
        folder = path if path.is_dir() else path.parent
        missing = [entry["file"] for entry in shards if not (folder / entry["file"]).is_file()]
        if missing:
            few = listed(dict.fromkeys(missing, ""))
            raise UserError(f"{path}: {len(missing)} of its {len(shards)} files of images are missing: {few}")
        for entry in shards:
            _check_header(folder / entry["file"], entry, image)
        super().__init__([(folder / entry["file"], entry["count"]) for entry in shards], image)
        self.labels = index
        identity = hashlib.blake2b(json.dumps([image, shards]).encode(), digest_size=8).hexdigest()
        self.kept = Kept(place_beside(path), identity)
        self._verify([entry["digest"] for entry in shards], trusted)

    def _verify(self, digests: list[str], trusted: bool) -> None:
        assert self.kept is not None
        known = self.kept.load("verified") or {}
        now = [[s.stamp.size, s.stamp.modified, s.stamp.changed] for s in self.shards]
        before = known["stamps"].tolist() if "stamps" in known else []
        if now == before:
            return
        todo = [] if trusted else [i for i, stamp in enumerate(now) if before[i : i + 1] != [stamp]]
        total = sum(self.shards[i].count * self.shards[i].image_bytes for i in todo)
        progress = Progress(total, 0, bar=True, quiet=not (todo and first_process()), unit="B")
        try:
            for i in todo:
                if self.shards[i].digest(progress) != digests[i]:
                    raise UserError(
                        f"{self.shards[i].path}: has other bytes than those that were packed (its digest is "
                        "not that of the index): pack the images again"
                    )
        finally:
            progress.close()
        self.kept.save("verified", {"stamps": np.array(now, np.int64)})


def _read_index(path: Path) -> tuple[Labels, list[dict[str, Any]], tuple[int, int, int]]:
    """The labels, the entries of the shards, and the shape of an image. UserError for what cannot be."""
    index = index_of(path)
    again = "`softdiff dataset` writes it: pack the images again"
    try:
        content = json.loads(index.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{path}: is a packed data set, but its index {index.name} is missing; {again}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{index}: expected the index of a packed data set ({error}); {again}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f'{index}: expected the index of a packed data set, "format": "{FORMAT}"; {again}')
    if content.get("version") != VERSION:
        got = content.get("version")
        raise UserError(f"{index}: expected version {VERSION} of the format, got {got!r}: update the package")
    try:
        count, image, shards = content["count"], content["shape"], content["shards"]
        labels, classes = content["labels"], content["classes"]
        numbers = [count, *image, *(s[key] for s in shards for key in ("count", "bytes"))]
        if len(image) != 3 or not all(type(n) is int and n > 0 for n in numbers):
            raise ValueError("count, shape and the shards' sizes have to be whole numbers over 0")
        if sum(entry["count"] for entry in shards) != count:
            raise ValueError(f"its shards do not have {count} images together")
        if not all(Path(s["file"]).name == s["file"] and isinstance(s["digest"], str) for s in shards):
            raise ValueError("its shards are not files beside it")
        if not path.is_dir() and [entry["file"] for entry in shards] != [path.name]:
            raise ValueError(f"it is not about {path.name}; the index of a renamed file names the old one")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes have to be names")
        values = None
        if labels is not None:
            if len(labels) != count or not all(type(n) is int and 0 <= n < len(classes) for n in labels):
                raise ValueError(f"its labels are not {count} numbers under {len(classes)}")
            values = np.array(labels, np.int64)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{index}: disagrees with itself or with its images: {what}; {again}") from error
    absent = "" if values is not None else "it was packed without labels"
    return Labels(values, tuple(classes), absent=absent), shards, (image[0], image[1], image[2])


def _check_header(path: Path, entry: dict[str, Any], image: tuple[int, int, int]) -> None:
    """UserError for a shard of another size or shape than the index says."""
    size, count = path.stat().st_size, entry["count"]
    expected = DATA_AT + count * int(np.prod(image))
    if size != entry["bytes"] or size != expected:
        what = "was cut short" if size < entry["bytes"] else "has another size"
        raise UserError(
            f"{path}: {what}: expected {entry['bytes']:,} bytes for {count} images of {list(image)}, as its "
            f"index says, got {size:,}; pack the images again"
        )
    with open(path, "rb") as file:
        if file.read(DATA_AT) != _header((count, *image)):
            raise UserError(
                f"{path}: expected the {count} images of {list(image)} (C, H, W) that its index says, got "
                "another array; pack the images again"
            )
