# SPDX-License-Identifier: Apache-2.0
"""The images that `softdiff evaluate` measures, and what is known of how they were made."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import find, numbered
from .data import ImageSet, load_images
from .device import pick_device
from .errors import UserError
from .evaluate_config import EvaluateConfig
from .generate import generate
from .loaded import LoadedModel, load_model
from .sampling import class_list, labels_of, parse_seeds

RECORD = "samples.json"
GRID = "grid.png"
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


def samples(config: EvaluateConfig, say: Callable[[str], None]) -> Samples:
    """What --images or --weights names, cut to --num. Drawing is left for later, when all else is
    known to fit. Raises UserError, one sentence, for anything that cannot be read, or too few."""
    found = _drawn(config, say) if config.images is None else _read(config.images, config)
    if config.num is None:
        return found
    if config.num > found.count:
        raise UserError(f"--num: expected at most the {found.count} images of {found.name}, got {config.num}")
    kept, pixels = config.num, found.pixels
    return Samples(kept, found.shape, found.name, lambda: pixels()[:kept], found.made)


def _read(source: str, config: EvaluateConfig) -> Samples:
    path = Path(source)
    if path.suffix == ".safetensors" or (path.is_dir() and numbered(path, "weights")):
        what = "a run folder" if path.is_dir() else "a file of weights"
        raise UserError(f"--images: {source} is {what}: give it as --weights, and its samples are drawn")
    read = _sampled_folder(path, config) if path.is_dir() else load_images(source, config.size)
    made = _record(path / RECORD) if path.is_dir() else {}
    return Samples(len(read.pixels), read.shape, source, lambda: read.pixels, made)


def _sampled_folder(folder: Path, config: EvaluateConfig) -> ImageSet:
    """A folder's images, without the grid that `softdiff sample` draws beside them."""
    own = sorted(p for p in folder.glob("*.png") if re.fullmatch(r"\d+", p.stem))
    if not (folder / GRID).is_file() or not own:
        return load_images(str(folder), config.size)
    with tempfile.TemporaryDirectory() as kept:
        for file in own:
            shutil.copyfile(file, Path(kept) / file.name)
        return load_images(kept, config.size)


def _record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as what `softdiff sample` writes ({error})") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: expected a JSON object, as `softdiff sample` writes it")
    return {name: record[name] for name in KNOWN if record.get(name) is not None}


def _drawn(config: EvaluateConfig, say: Callable[[str], None]) -> Samples:
    assert config.weights is not None
    seeds = parse_seeds(config.seeds)[: config.num]
    device = pick_device(config.device)
    loaded = load_model(config.weights, device)
    file = find(config.weights, "weights")
    made = {
        "weights": str(file),
        "weights_digest": loaded.digest,
        "step": loaded.step,
        "prior": loaded.prior.describe(),
        "sampler": config.sampler,
        "steps": config.steps,
        "seeds": config.seeds,
    }
    if config.size not in (None, loaded.shape[1:]):
        size = " x ".join(map(str, loaded.shape[1:]))
        raise UserError(f"--image-size: expected {size}, which {file} draws, got {list(config.image_size)}")

    def draw() -> Tensor:
        return _draw(loaded, seeds, config, say)

    known = {name: value for name, value in made.items() if value is not None}
    return Samples(len(seeds), loaded.shape, str(file), draw, known)


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
