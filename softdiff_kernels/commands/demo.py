# SPDX-License-Identifier: Apache-2.0
"""`softdiff demo`: digits in a few minutes on two CPU cores, by the momentum and the naive sampler."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.image_set import load_images
from ..diffusion import generate
from ..errors import UserError, user_errors
from ..images import labelled, save_png, tile
from ..training.config import TrainConfig
from ..training.loop import train
from ..training.presets import preset
from ..training.run_folder import next_run_folder
from ..training.weights import load_model
from .configs import DemoConfig

SAMPLER_STEPS = 300
ROWS, COLUMNS = 4, 15
ENLARGED = 5


def options(config: DemoConfig, folder: Path) -> TrainConfig:
    """How the demo trains: as `softdiff train --preset digits` does, without its grids."""
    settings = {name: setting.value for name, setting in preset("digits").items()}
    if config.steps is not None:
        settings["steps"] = config.steps
    settings.update(outdir=str(folder), sample_count=0, save_every=settings["steps"], seed=config.seed)
    return TrainConfig(preset="digits", **settings)


def enlarge(pixels: Tensor) -> Tensor:
    """Smoothly, for eyes that find 8 x 8 squares hard to read: uint8 in, uint8 out."""
    framed = F.pad(pixels.float(), (1, 1, 1, 1))
    return F.interpolate(framed, scale_factor=ENLARGED, mode="bicubic").round().clamp(0, 255).byte()


def demo(config: DemoConfig, say: Callable[[str], Any] = print) -> Path:
    """Trains, samples twice from the same weights and the same starts, draws digits.png; returns it."""
    begun = time.perf_counter()
    sampler_steps = SAMPLER_STEPS if config.sampler_steps is None else config.sampler_steps
    if sampler_steps < 1:
        raise UserError(f"--sampler-steps: expected at least 1, got {sampler_steps}")
    outdir = Path(config.outdir)
    result = train(options(config, next_run_folder("digits", outdir)))
    if result.stopped_by is not None:
        raise KeyboardInterrupt
    trained = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(str(result.weights), device)
    count = ROWS * COLUMNS
    rows = [("Real digits (scikit-learn, 8 x 8 pixels)", load_images("digits").pixels[:count])]
    for sampler in ("momentum", "naive"):
        images = generate(
            model.denoiser,
            model.prior,
            range(count),
            sampler=sampler,
            steps=sampler_steps,
            batch=count,
            device=device,
            progress=sys.stderr.isatty(),
        )
        rows.append((f"{sampler.capitalize()} sampler, {sampler_steps} steps", images))
    path = outdir / "digits.png"
    with user_errors():
        save_png(path, labelled([(label, tile(enlarge(x), COLUMNS)) for label, x in rows]))
    ended = time.perf_counter()
    say(f"start of both samplers, the same for each image: {model.prior.describe()}")
    say(
        f"real digits above momentum above naive samples: {path.resolve()} "
        f"({ended - begun:.0f} s: training {trained - begun:.0f}, sampling {ended - trained:.0f})"
    )
    return path
