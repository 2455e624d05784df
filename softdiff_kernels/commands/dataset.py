# SPDX-License-Identifier: Apache-2.0
"""`softdiff dataset`: a report on a data set, and its conversion to one file that loads fast."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data.names import MOST_SHOWN, printable
from ..data.packed import FOLDER_INDEX, Writer, index_of, is_packed, publish, sole_writer
from ..data.sources import SOURCE_LIST, ReadResult, check_sides, height_and_width, read_source
from ..errors import UserError, need
from ..files import PathText, check_free, whole_file
from ..images import Pixels, to_pil

PER_FOLDER = 1000
NAMES = {1: "grey", 2: "grey with alpha", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class DatasetConfig:
    """Report what is in a data set (count, sizes, classes, mean and standard deviation, unreadable images)
    and, with --out, convert it."""

    source: PathText = field(metadata={"help": f"Data set: {SOURCE_LIST}."})
    out: PathText | None = None
    """What to write: .zip (PNG files and dataset.json, as EDM reads it), .npz (images, labels, classes), or
    .npy, which training reads from the disk; a name without a suffix is a folder of such files."""
    shard_gb: float = 50.0
    """The most GB of images in each file of such a folder."""
    image_size: tuple[int, ...] = ()
    """Side, or height and width: images are resized to cover it, and cropped to its centre."""
    channels: Literal[1, 3, 4] | None = None
    """1 (grey), 3 (RGB, alpha laid over black) or 4 (RGBA). Default: what the images have in common."""
    limit: int | None = None
    """Read only this many images, the first in the order of their paths or rows."""
    labels: bool = True
    """Keep class labels if the source has them."""
    overwrite: bool = False
    """Replace --out if it exists."""

    def __post_init__(self) -> None:
        """Raises UserError for options out of range."""
        check_sides(self.image_size)
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit: expected at least 1, got {self.limit}")
        if not 0 < self.shard_gb < math.inf:
            raise UserError(f"--shard-gb: expected a number over 0, got {self.shard_gb}")
        if self.out is not None and Path(self.out).suffix.lower() not in (".zip", ".npz", ".npy", ""):
            expected = "a name that ends in .zip, .npz or .npy, or one without a suffix for a folder"
            raise UserError(f"--out: expected {expected}, got {self.out}")


def run(config: DatasetConfig, argv: Sequence[str]) -> int:
    """Reports, and converts if asked."""
    need("PIL", "softdiff dataset")
    convert(config)
    return 0


def convert(config: DatasetConfig, say: Callable[[str], None] = print) -> ReadResult:
    """Reads the source, reports what is in it, and writes --out. Returns what was read.

    Raises UserError, one sentence, for a source that cannot be read, labels that cannot be used, and a
    file that exists already or cannot be written. --out is never left half written.
    """
    if config.out is None:
        return _read(config, say, stream=True)
    out = Path(config.out)
    list_file = out.with_name(out.name + ".unreadable.txt")
    packed, folder = out.suffix.lower() in (".npy", ""), out.suffix == ""
    if folder and config.overwrite and out.exists():
        if not is_packed(out):
            raise UserError(f"--out: expected a folder that `softdiff dataset` packed to replace, got {out}")
    elif folder and out.exists():
        raise UserError(
            f"{out} exists already: choose another --out, or add --overwrite if it is a packed set"
        )
    else:
        check_free("--out", out, overwrite=config.overwrite)
    for path in (list_file, *([index_of(out)] if packed and not folder else [])):
        check_free("--out", path, overwrite=config.overwrite)
    with sole_writer(out) as place:
        if packed:
            result = _pack(config, out, place, say)
        else:
            # An .npz is compressed from one array.
            result = _read(config, say, stream=out.suffix.lower() == ".zip")
            (_write_zip if out.suffix.lower() == ".zip" else _write_npz)(out, result, config.labels)
        if folder:
            say(f"wrote {out} ({len(result.pixels.shards)} files, {index_of(out).name} names them)")
        else:
            say(f"wrote {out} ({out.stat().st_size:,} bytes)")
    if len(result.unreadable) > MOST_SHOWN:
        lines = [f"{printable(name)}: {why}\n" for name, why in result.unreadable.items()]
        with whole_file(list_file) as file:
            file.write("".join(lines).encode())
        say(f"wrote {list_file}")
    else:
        list_file.unlink(missing_ok=True)  # that of an earlier conversion, which lists other images
    return result


def _read(config: DatasetConfig, say: Callable[[str], None], **options: Any) -> ReadResult:
    """What the source holds, reported. UserError for labels that cannot be used."""
    size = height_and_width(config.image_size)
    result = read_source(config.source, size=size, channels=config.channels, limit=config.limit, **options)
    if config.labels and result.labels.error:
        raise UserError(f"{result.labels.error}; --no-labels continues without labels")
    for line in report(config.source, result, labels=config.labels):
        say(line)
    return result


def _pack(config: DatasetConfig, out: Path, place: Path, say: Callable[[str], None]) -> ReadResult:
    """Reads the source straight into files in `place`, reports, and moves them to `out`."""
    writers: list[Writer] = []
    folder = out.suffix == ""

    def into(shape: tuple[int, int, int, int]) -> Writer:
        name, most = ("images-{:05d}.npy", int(config.shard_gb * 1e9)) if folder else (out.name, None)
        writers.append(Writer(out, place, name, shape, most))
        return writers[-1]

    result = _read(config, say, into=into)
    name = FOLDER_INDEX if folder else index_of(out).name
    writers[-1].save_index(name, result.labels if config.labels else None)
    publish(place, out)
    return result


def report(source: str, result: ReadResult, *, labels: bool = True) -> Iterator[str]:
    """Lines that describe what was read; sizes are width x height."""
    count, channels, height, width = result.pixels.shape
    yield f"{source}: {count:,} images"
    stored = _most_frequent(result.sizes, lambda size: f"{size[0]} x {size[1]}")
    yield f"sizes found (width x height): {stored}"
    yield f"size: {width} x {height}"
    yield f"modes found: {_most_frequent(result.modes, str)}"
    yield f"channels: {channels} ({NAMES[channels]})"
    if labels:
        yield from _classes(result)
    mean, std = moments(result.pixels)
    for interval, scale, shift in (("[0, 1]", 1, 0), ("[-1, 1]", 2, 1)):
        means = " ".join(f"{scale * m - shift:.6f}" for m in mean.tolist())
        stds = " ".join(f"{scale * s:.6f}" for s in std.tolist())
        yield f"mean, standard deviation on {interval}, by channel: {means}, {stds}"
    if result.unreadable:
        yield f"unreadable, left out: {len(result.unreadable)} of {count + len(result.unreadable)}"
        yield from (f"  {printable(name)}: {reason}" for name, reason in result.unreadable.items())
    if result.animated:
        yield f"several frames or pages, of which the first is taken: {len(result.animated)} of {count}"
        yield from _first(map(printable, result.animated))
    if result.others:
        yield f"other files, left out: {len(result.others)}"
        yield from _first(f"{printable(name)}: {reason}" for name, reason in result.others.items())


def _first(texts: Iterable[str]) -> Iterator[str]:
    """The first few as lines, and how many more there are."""
    lines = list(texts)
    yield from (f"  {line}" for line in lines[:MOST_SHOWN])
    if len(lines) > MOST_SHOWN:
        yield f"  and {len(lines) - MOST_SHOWN} more"


def _most_frequent(counts: Counter[tuple[int, int]] | Counter[str], text: Callable[..., str]) -> str:
    """The most frequent first, each with its count."""
    items = [f"{text(key)} ({count:,})" for key, count in counts.most_common(MOST_SHOWN)]
    more = [f"and {len(counts) - MOST_SHOWN} more"] if len(counts) > MOST_SHOWN else []
    return ", ".join(items + more)


def _classes(result: ReadResult) -> Iterator[str]:
    values, classes = result.labels.values, result.labels.classes
    if values is None:
        yield f"classes: none ({result.labels.absent})" if result.labels.absent else "classes: none"
        return
    yield f"classes: {len(classes)}"
    counts = np.bincount(values, minlength=len(classes))
    yield from _first(
        f"{i} {printable(name)}: {counts[i]:,}" if name != str(i) else f"{i}: {counts[i]:,}"
        for i, name in enumerate(classes)
    )
    if result.labels.note:
        yield f"note: {result.labels.note}"


def moments(pixels: Pixels | np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation on [0, 1] of each channel of uint8 [N, C, H, W], float64 [C].

    Computed from counts of the 256 levels, so that they are exact up to the last division and root.
    """
    channels = pixels.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for part in _parts(pixels):
        for c in range(channels):
            counts[c] += torch.from_numpy(np.bincount(part[:, c].reshape(-1), minlength=256))
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ levels
    return mean, (share * (levels - mean[:, None]) ** 2).sum(1).sqrt()


def _parts(pixels: Pixels | np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """The images in order, a few at a time."""
    size = max(1, min(1024, 2**26 // max(1, math.prod(pixels.shape[1:]))))
    for first in range(0, len(pixels), size):
        yield np.asarray(pixels[first : first + size])


def _write_npz(path: Path, result: ReadResult, labels: bool) -> None:
    images = result.pixels.transpose(0, 2, 3, 1)
    # Three axes only if they cannot mean one image in colour.
    flat = images.shape[3] == 1 and images.shape[2] not in (3, 4)
    arrays = {"images": images[..., 0] if flat else images}
    if labels and result.labels.values is not None:
        arrays |= {"labels": result.labels.values, "classes": np.array(result.labels.classes, dtype=str)}
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)


def _write_zip(path: Path, result: ReadResult, labels: bool) -> None:
    if result.pixels.shape[1] == 2:
        raise UserError(f"{path}: expected 1, 3 or 4 channels for PNG files, got 2; --channels 4 makes RGBA")
    values = result.labels.values if labels else None
    pairs = None if values is None else [[_name(i), label] for i, label in enumerate(values.tolist())]
    content: dict[str, object] = {"labels": pairs}
    if values is not None:
        content["classes"] = result.labels.classes
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for i, pixels in enumerate(image for part in _parts(result.pixels) for image in part):
            buffer = io.BytesIO()
            to_pil(torch.from_numpy(pixels)).save(buffer, format="PNG")
            _add(archive, _name(i), buffer.getvalue())
        _add(archive, "dataset.json", json.dumps(content).encode())


def _name(i: int) -> str:
    return f"{i // PER_FOLDER:05d}/img{i:08d}.png"


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    # A fixed date, so that the same images make the same file.
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)
