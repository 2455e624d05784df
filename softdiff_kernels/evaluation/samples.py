# SPDX-License-Identifier: Apache-2.0
"""The images that `softdiff evaluate` measures, and what is known of how they were made."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..commands.evaluate_config import EvaluateConfig
from ..commands.sample import class_list, labels_of
from ..data.folders import zip_entries
from ..data.image_set import ImageSet
from ..data.npz import DAMAGED
from ..data.sample_folder import (
    GRID,
    NPZ_RECORD,
    RECORD,
    as_record,
    check_record,
    format_seeds,
    named_seeds,
    parse_seeds,
    read_record,
)
from ..diffusion import generate
from ..errors import UserError, reason
from ..training.checkpoint import find, numbered
from ..training.device import pick_device
from ..training.weights import LoadedModel, load_model

KNOWN = ("weights", "weights_digest", "step", "prior", "sampler", "steps", "seeds", "guidance", "class")


@dataclass(frozen=True)
class Samples:
    """Images to measure. made: what is known of KNOWN, by name."""

    count: int
    shape: tuple[int, int, int]
    name: str
    pixels: Callable[[], Tensor]
    """uint8 [N, C, H, W]; where they are still to be drawn, this draws them."""
    made: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    """Of the images, in their order; empty where they are not known."""


def samples(config: EvaluateConfig, say: Callable[[str], None]) -> Samples:
    """What --images or --weights names, cut to --num. Drawing is left for later, when all else is
    known to fit. Raises UserError, one sentence, for anything that cannot be read, or too few."""
    found = _drawn(config, say) if config.images is None else _read(config.images, config)
    kept = found.count if config.num is None else config.num
    if kept > found.count:
        raise UserError(f"--num: expected at most the {found.count} images of {found.name}, got {config.num}")
    seeds, pixels = found.seeds[:kept], found.pixels
    made = {**found.made, "seeds": format_seeds(seeds)} if seeds else found.made
    return Samples(kept, found.shape, found.name, lambda: pixels()[:kept], made, seeds)


def _read(source: str, config: EvaluateConfig) -> Samples:
    path = Path(source)
    if path.suffix == ".safetensors" or (path.is_dir() and numbered(path, "weights")):
        what = "a run folder" if path.is_dir() else "a file of weights"
        raise UserError(f"--images: {source} is {what}: give it as --weights, and its samples are drawn")
    of = _of_folder if path.is_dir() else {".zip": _of_zip, ".npz": _of_npz}.get(path.suffix.lower())
    read, record, seeds = of(path, config) if of is not None else (config.load(source), {}, [])
    made = {name: record[name] for name in KNOWN if record.get(name) is not None}
    return Samples(len(read.pixels), read.shape, source, lambda: read.pixels, made, seeds)


Read = tuple[ImageSet, dict[str, Any], list[int]]
"""Images, the record of how they were made (empty where there is none), and their seeds."""


def _of_folder(folder: Path, config: EvaluateConfig) -> Read:
    """Of a folder of samples the images alone, not the pictures that `softdiff sample` draws beside them."""
    own = {p.name: p.read_bytes for p in folder.glob("*.png") if named_seeds([p.name])}
    record = read_record(folder / RECORD)
    if not own or not (record or (folder / GRID).is_file()):
        return config.load(str(folder)), {}, []
    return _copied(own, record, str(folder), config)


def _of_zip(path: Path, config: EvaluateConfig) -> Read:
    """The same of a folder that was packed; it is refused where not all of its images can be read."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile):
        return config.load(str(path)), {}, []  # which tells what is wrong with it

    def read(entry: zipfile.ZipInfo) -> bytes:
        try:
            return archive.read(entry)
        except (RuntimeError, zlib.error, zipfile.BadZipFile) as error:  # RuntimeError: a password
            raise UserError(f"{path}: {entry.filename} cannot be unpacked ({error})") from error

    with archive:
        entries, _ = zip_entries(archive)
        records = [parts for parts in entries if parts[-1] == RECORD]
        if len(records) != 1:
            return config.load(str(path)), {}, []
        top = records[0][:-1]
        at = len(top)
        inside = {"/".join(p[at:]): partial(read, e) for p, e in entries.items() if p[:at] == top}
        own = {name: unpack for name, unpack in inside.items() if named_seeds([name])}
        return _copied(own, as_record(inside[RECORD](), f"{path}: {RECORD}"), str(path), config)


def _of_npz(path: Path, config: EvaluateConfig) -> Read:
    """The images of an archive, and the record that `softdiff sample --npz` put into it."""
    images = config.load(str(path))
    with np.load(path, allow_pickle=False) as archive:
        if NPZ_RECORD not in archive.files or "seeds" not in archive.files:
            return images, {}, []
        try:
            seeds, record = archive["seeds"], str(archive[NPZ_RECORD])
        except DAMAGED as error:
            raise UserError(f"{path}: its seeds and {NPZ_RECORD} cannot be read ({reason(error)})") from error
    if seeds.shape != (len(images.pixels),) or seeds.dtype.kind not in "iu" or seeds.min() < 0:
        got = f"{seeds.dtype} {list(seeds.shape)}"
        raise UserError(f"{path}: expected seeds as a whole number from 0 up for each image, got {got}")
    return images, as_record(record.encode(), f"{path}: {NPZ_RECORD}"), seeds.tolist()


def _copied(
    files: Mapping[str, Callable[[], bytes]], record: dict[str, Any], where: str, config: EvaluateConfig
) -> Read:
    """The images of some files alone, held to their record."""
    if record:
        check_record(record, named_seeds(files), where)
    with tempfile.TemporaryDirectory() as kept:
        for name, read in files.items():
            (Path(kept) / name).write_bytes(read())
        images = config.load(kept)
    # Those that could not be read were left out, with a warning.
    known = record and len(images.pixels) == len(files)
    return images, record, [int(name[:-4]) for name in sorted(files)] if known else []


def _drawn(config: EvaluateConfig, say: Callable[[str], None]) -> Samples:
    assert config.weights is not None
    seeds = parse_seeds(config.seeds)[: config.num]
    device = pick_device(config.device)
    loaded = load_model(config.weights, device)
    file = find(config.weights, "weights")
    made = {
        "weights": os.path.abspath(file),
        "weights_digest": loaded.digest,
        "step": loaded.step,
        "prior": loaded.prior.describe(),
        "sampler": config.sampler,
        "steps": config.steps,
    }
    if config.size not in (None, loaded.shape[1:]):
        size = " x ".join(map(str, loaded.shape[1:]))
        raise UserError(f"--image-size: expected {size}, which {file} draws, got {list(config.image_size)}")

    if config.channels not in (None, loaded.shape[0]):
        raise UserError(f"--channels: expected {loaded.shape[0]}, which {file} draws, got {config.channels}")

    def draw() -> Tensor:
        return _draw(loaded, seeds, config, say)

    known = {name: value for name, value in made.items() if value is not None}
    return Samples(len(seeds), loaded.shape, str(file), draw, known, seeds)


def _draw(
    loaded: LoadedModel, seeds: list[int], config: EvaluateConfig, say: Callable[[str], None]
) -> Tensor:
    say(f"drawing {len(seeds)} images by the {config.sampler} sampler in {config.steps} steps")
    return generate(
        loaded.denoiser,
        loaded.prior,
        seeds,
        sampler=config.sampler,
        steps=config.steps,
        batch=config.batch,
        device=loaded.device,
        labels=labels_of(seeds, class_list(None, loaded)),
    )
