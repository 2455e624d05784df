# SPDX-License-Identifier: Apache-2.0
"""`softdiff demo`: trains on digits in about two minutes on two CPU cores, and samples with two samplers."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import load_images
from ..errors import UserError, need, user_errors
from ..files import PathText
from ..images import labelled, save_png, tile
from ..training.checkpoint import next_run_folder
from ..training.config import TrainConfig
from ..training.loop import train
from ..training.weights import load_model

SHOWN = {"multistep": 25, "naive": 300}
"""The samplers of the picture and their steps: the best for so few, and one whose fault shows with many. The
training's steps and all its other options are those of the preset digits."""
ROWS, COLUMNS = 4, 15
ENLARGED = 5


@dataclass(frozen=True)
class DemoConfig:
    """Train on the digits of scikit-learn for about two minutes, and show samples of two samplers."""

    outdir: PathText = "demo"
    """Folder for digits.png and the run."""
    steps: int | None = None
    """Optimiser steps. Default: those of the preset digits."""
    sampler_steps: int | None = field(
        default=None,
        metadata={
            "help": "Steps of both samplers. Default: "
            + ", ".join(f"{steps} of {sampler}" for sampler, steps in SHOWN.items())
            + "."
        },
    )
    seed: int = 0
    """Seed of the training."""


def run(config: DemoConfig, argv: Sequence[str]) -> int:
    """Runs the demo."""
    for module in ("safetensors", "PIL", "diffusers", "sklearn"):
        need(module, "softdiff demo")
    demo(config)
    return 0


def training_options(config: DemoConfig, folder: Path) -> TrainConfig:
    """The options of `softdiff train --preset digits`, without sample grids."""
    changes: dict[str, Any] = {} if config.steps is None else {"steps": config.steps}
    options = TrainConfig.from_preset(
        "digits", outdir=str(folder), sample_count=0, seed=config.seed, **changes
    )
    return replace(options, save_every=options.steps)


def enlarge(pixels: Tensor) -> Tensor:
    """Enlarges images smoothly, which makes 8 x 8 pixels readable: uint8 in, uint8 out."""
    padded = F.pad(pixels.float(), (1, 1, 1, 1))
    return F.interpolate(padded, scale_factor=ENLARGED, mode="bicubic").round().clamp(0, 255).byte()


def demo(config: DemoConfig, say: Callable[[str], Any] = print) -> Path:
    """Trains, samples with both samplers from the same weights and starts, and writes digits.png. Returns its
    path."""
    start = time.perf_counter()
    if config.sampler_steps is not None and config.sampler_steps < 1:
        raise UserError(f"--sampler-steps: expected at least 1, got {config.sampler_steps}")
    outdir = Path(config.outdir)
    say("1. a small network learns to undo the blur of handwritten digits")
    result = train(training_options(config, next_run_folder("digits", outdir)))
    if result.stopped_by is not None:
        raise KeyboardInterrupt
    trained = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(str(result.weights), device)
    count = ROWS * COLUMNS
    say(
        f"2. it draws {count} new ones from blurred noise, by each of two samplers from the same starts: "
        f"{model.prior.describe()}"
    )
    rows = [("Real digits (scikit-learn, 8 x 8 pixels)", load_images("digits").pixels[:count])]
    for sampler, its_steps in SHOWN.items():
        steps = config.sampler_steps or its_steps
        images = model.generate(
            range(count), sampler=sampler, steps=steps, batch=count, progress=sys.stderr.isatty()
        )
        rows.append((f"{sampler.capitalize()} sampler, {steps} steps", images))
    path = outdir / "digits.png"
    with user_errors():
        save_png(path, labelled([(label, tile(enlarge(x), COLUMNS)) for label, x in rows]))
    ended = time.perf_counter()
    say(
        f"3. look at {path.resolve()}, from the top: {', '.join(label for label, _ in rows)} "
        f"({ended - start:.0f} s: training {trained - start:.0f}, sampling {ended - trained:.0f})"
    )
    say(f"more of them: softdiff sample --weights {shlex.quote(str(result.folder))} --outdir samples")
    say("your own images: softdiff train --data FOLDER --image-size 64")
    return path
