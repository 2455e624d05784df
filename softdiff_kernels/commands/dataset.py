# SPDX-License-Identifier: Apache-2.0
"""`softdiff dataset`: what is in a data set, and its conversion to one file that loads fast."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..data.image_set import read
from ..data.labels import MOST_SHOWN
from ..data.names import printable
from ..data.pixels import Found, Wanted
from ..errors import UserError
from ..files import PathText, check_free, whole_file
from ..images import to_pil
from ..training.config import check_sides, height_and_width

PER_FOLDER = 1000
NAMES = {1: "grey", 2: "grey with alpha", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class DatasetConfig:
    """Report what is in a data set (count, sizes, classes, mean and standard deviation, unreadable images)
    and, with --out, convert it."""

    source: PathText
    """Folder of images, .npz, .npy, .zip, hf:NAME_OR_PATH[:SPLIT], or the word digits."""
    out: PathText | None = None
    """File to write: .zip (PNG files and dataset.json, as EDM reads it) or .npz (images, labels, classes)."""
    image_size: tuple[int, ...] = ()
    """One number, or height and width: images are resized to cover it, and the centre is cut out."""
    channels: Literal[1, 3, 4] | None = None
    """1 (grey), 3 (RGB, alpha laid over black) or 4 (RGBA). Default: what the images have in common."""
    limit: int | None = None
    """Read the first so many images alone, in the order of their paths or rows."""
    labels: bool = True
    """Keep class labels where the source has them."""
    overwrite: bool = False
    """Replace --out if it exists."""

    def __post_init__(self) -> None:
        """Refuses what no conversion could mean."""
        check_sides(self.image_size)
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit: expected at least 1, got {self.limit}")
        if self.out is not None and Path(self.out).suffix.lower() not in (".zip", ".npz"):
            raise UserError(f"--out: expected a name that ends in .zip or .npz, got {self.out}")


def convert(config: DatasetConfig, say: Callable[[str], None] = print) -> Found:
    """Reads the source, says what is in it, and writes --out. Returns what was read.

    Raises UserError, one sentence, for a source that cannot be read, labels that cannot be used, and a
    file that exists already or cannot be written; nothing half written stays under --out's name.
    """
    out = None if config.out is None else Path(config.out)
    listed = None if out is None else out.with_name(out.name + ".unreadable.txt")
    for path in (out, listed):
        check_free("--out", path, overwrite=config.overwrite)
    size = height_and_width(config.image_size)
    found = read(config.source, Wanted(size, config.channels, config.limit))
    if config.labels and found.labels.fault:
        raise UserError(f"{found.labels.fault}; --no-labels goes on without labels")
    for line in report(config.source, found, labels=config.labels):
        say(line)
    if out is None or listed is None:
        return found
    (_write_zip if out.suffix.lower() == ".zip" else _write_npz)(out, found, config.labels)
    say(f"wrote {out} ({out.stat().st_size:,} bytes)")
    if len(found.unreadable) > MOST_SHOWN:
        with whole_file(listed) as file:
            file.write("".join(f"{printable(n)}: {why}\n" for n, why in found.unreadable.items()).encode())
        say(f"wrote {listed}")
    else:
        listed.unlink(missing_ok=True)  # an earlier conversion's, which would tell of other images
    return found


def report(source: str, found: Found, *, labels: bool = True) -> Iterator[str]:
    """Lines that say what was found; sizes are width x height."""
    count, channels, height, width = found.pixels.shape
    yield f"{source}: {count:,} images"
    before = _most(found.sizes, lambda size: f"{size[0]} x {size[1]}")
    yield f"sizes found (width x height): {before}"
    yield f"size: {width} x {height}"
    yield f"modes found: {_most(found.modes, str)}"
    yield f"channels: {channels} ({NAMES[channels]})"
    if labels:
        yield from _classes(found)
    mean, std = moments(torch.from_numpy(found.pixels))
    for told, scale, shift in (("[0, 1]", 1, 0), ("[-1, 1]", 2, 1)):
        means = " ".join(f"{scale * m - shift:.6f}" for m in mean.tolist())
        stds = " ".join(f"{scale * s:.6f}" for s in std.tolist())
        yield f"mean, standard deviation on {told}, by channel: {means}, {stds}"
    if found.unreadable:
        yield f"unreadable, left out: {len(found.unreadable)} of {count + len(found.unreadable)}"
        yield from (f"  {printable(name)}: {reason}" for name, reason in found.unreadable.items())
    if found.animated:
        yield f"several frames or pages, of which the first is taken: {len(found.animated)} of {count}"
        yield from _first(map(printable, found.animated))
    if found.others:
        yield f"other files, left out: {len(found.others)}"
        yield from _first(f"{printable(name)}: {reason}" for name, reason in found.others.items())


def _first(names: Iterable[str]) -> Iterator[str]:
    told = list(names)
    yield from (f"  {name}" for name in told[:MOST_SHOWN])
    if len(told) > MOST_SHOWN:
        yield f"  and {len(told) - MOST_SHOWN} more"


def _most(counted: Counter[tuple[int, int]] | Counter[str], text: Callable[..., str]) -> str:
    told = [f"{text(key)} ({count:,})" for key, count in counted.most_common(MOST_SHOWN)]
    more = [f"and {len(counted) - MOST_SHOWN} more"] if len(counted) > MOST_SHOWN else []
    return ", ".join(told + more)


def _classes(found: Found) -> Iterator[str]:
    values, classes = found.labels.values, found.labels.classes
    if values is None:
        yield f"classes: none ({found.labels.why})" if found.labels.why else "classes: none"
        return
    yield f"classes: {len(classes)}"
    counts = np.bincount(values, minlength=len(classes))
    for i, name in enumerate(classes[:MOST_SHOWN]):
        yield f"  {i} {printable(name)}: {counts[i]:,}" if name != str(i) else f"  {i}: {counts[i]:,}"
    if len(classes) > MOST_SHOWN:
        yield f"  and {len(classes) - MOST_SHOWN} more"
    if found.labels.note:
        yield f"note: {found.labels.note}"


def moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation on [0, 1] of each channel of uint8 [N, C, H, W], float64 [C].

    From counts of the 256 levels, so that they are exact up to the last division and root.
    """
    channels = pixels.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for part in pixels.split(1024):
        for c in range(channels):
            counts[c] += torch.from_numpy(np.bincount(part[:, c].numpy().reshape(-1), minlength=256))
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ levels
    return mean, (share * (levels - mean[:, None]) ** 2).sum(1).sqrt()


def _write_npz(path: Path, found: Found, labels: bool) -> None:
    images = found.pixels.transpose(0, 2, 3, 1)
    # Three axes where they cannot be taken for one image in colour.
    flat = images.shape[3] == 1 and images.shape[2] not in (3, 4)
    arrays = {"images": images[..., 0] if flat else images}
    if labels and found.labels.values is not None:
        arrays |= {"labels": found.labels.values, "classes": np.array(found.labels.classes, dtype=str)}
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _write_zip(path: Path, found: Found, labels: bool) -> None:
    if found.pixels.shape[1] == 2:
        raise UserError(f"{path}: expected 1, 3 or 4 channels for PNG files, got 2; --channels 4 makes RGBA")
    values = found.labels.values if labels else None
    pairs = None if values is None else [[_name(i), label] for i, label in enumerate(values.tolist())]
    content: dict[str, object] = {"labels": pairs}
    if values is not None:
        content["classes"] = found.labels.classes
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for i, pixels in enumerate(found.pixels):
            buffer = io.BytesIO()
            to_pil(torch.from_numpy(pixels)).save(buffer, format="PNG")
            _add(archive, _name(i), buffer.getvalue())
        _add(archive, "dataset.json", json.dumps(content).encode())


def _name(i: int) -> str:
    return f"{i // PER_FOLDER:05d}/img{i:08d}.png"


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    # A fixed date: the same images make the same file.
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)
