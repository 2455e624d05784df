# SPDX-License-Identifier: Apache-2.0
"""Images from a weights file: seed k gives the same image at any batch size and among any others."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion import SAMPLERS, Corruption, SoftDenoiser, prior_from_state, time_steps
from ..noise import NoiseKey
from .checkpoint import Checkpoint, find, load_checkpoint
from .config import SampleConfig, TrainConfig
from .errors import UserError, user_errors
from .images import save_png, tile, to_uint8
from .model import build_model

SAMPLING_SEED = 0x50F7D1FF
"""Keeps the noise of sampled images apart from the noise of the training images, whose streams
also count from 0."""

MOST_SEEDS = 10_000_000
GRID_MOST = 256


def parse_seeds(text: str) -> list[int]:
    """`0-63`, `3,5,8-10` or `7` as a list."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise UserError(f"--seeds: expected a form such as 0-63, 3,5,8-10 or 7, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"--seeds: expected a range that rises, got {part.strip()!r}")
        if last >= 2**63 or last - first >= MOST_SEEDS:
            wanted = f"at most {MOST_SEEDS} seeds, each under 2^63"
            raise UserError(f"--seeds: expected {wanted}, got {part.strip()!r}")
        seeds.extend(range(first, last + 1))
    return seeds


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--device: expected auto, cpu, or a cuda device usable here, got {name!r} ({reason})"
        ) from None
    return device


@dataclass
class LoadedModel:
    """What a weights file holds, ready to sample: shape is (C, H, W)."""

    denoiser: SoftDenoiser
    prior: Any
    shape: tuple[int, int, int]
    config: TrainConfig
    step: int

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device


def restore(checkpoint: Checkpoint, part: str, path: object, device: torch.device) -> LoadedModel:
    """The model in a checkpoint, with the weights under `part` (`model` or `ema`)."""
    meta = checkpoint.meta
    try:
        with user_errors(f"{path}: "):
            config = TrainConfig.from_dict(meta["config"])
            channels, height, width = meta["shape"]
            corruption = Corruption.from_dict(meta["corruption"])
            prior = prior_from_state(meta["prior"], checkpoint.part("prior"))
            model = build_model(config, (channels, height, width))
            model.load_state_dict(checkpoint.part(part))
            step = int(meta["step"])
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        what = f"{type(error).__name__}: {reason}"
        raise UserError(f"{path}: its parts do not fit together ({what})") from error
    denoiser = SoftDenoiser(model, corruption, config.prediction).to(device).eval()
    return LoadedModel(denoiser, prior, (channels, height, width), config, step)


def load_model(path: str, device: torch.device) -> LoadedModel:
    """The averaged model in a weights file, or in the newest one of a run folder."""
    file = find(path, "weights")
    return restore(load_checkpoint(file, "weights"), "model", file, device)


@torch.no_grad()
def generate(
    denoiser: SoftDenoiser,
    prior: Any,
    seeds: Sequence[int],
    *,
    sampler: str = "momentum",
    steps: int = 64,
    batch: int = 64,
    device: torch.device,
    bar: bool = False,
) -> Tensor:
    """uint8 [N, C, H, W]: one image a seed.

    Image noise comes from NoiseKey(SAMPLING_SEED, stream=seed): draw 0 for the prior, draw i for
    step i. bar: draw a progress bar for each batch.
    """
    ts = time_steps(steps)
    made = []
    for start in range(0, len(seeds), batch):
        streams = torch.tensor(seeds[start : start + batch], dtype=torch.int64, device=device)
        key = NoiseKey(SAMPLING_SEED, stream=streams)
        x = prior.sample(len(streams), key=key, device=device, dtype=torch.float32)
        made.append(to_uint8(SAMPLERS[sampler](denoiser, x, ts, disable=not bar, key=key)))
    return torch.cat(made)


def sample(config: SampleConfig, say: Callable[[str], None] = print) -> list[Path]:
    """`softdiff sample`: one PNG a seed and a grid; returns the files."""
    seeds = parse_seeds(config.seeds)
    device = pick_device(config.device)
    loaded = load_model(config.weights, device)
    folder = Path(config.outdir)
    with user_errors():
        folder.mkdir(parents=True, exist_ok=True)
    say(
        f"{len(seeds)} images by the {config.sampler} sampler in {config.steps} steps, from the "
        f"{loaded.prior.describe()}, with the weights of step {loaded.step}"
    )
    digits = max(6, len(str(max(seeds))))
    files: list[Path] = []
    shown: list[Tensor] = []
    for start in range(0, len(seeds), config.batch):
        part = seeds[start : start + config.batch]
        images = generate(
            loaded.denoiser,
            loaded.prior,
            part,
            sampler=config.sampler,
            steps=config.steps,
            batch=config.batch,
            device=device,
            bar=sys.stderr.isatty(),
        )
        for seed, image in zip(part, images, strict=True):
            files.append(folder / f"{seed:0{digits}d}.png")
            save_png(files[-1], image)
        shown.extend(images[: max(0, GRID_MOST - len(shown))])
        say(f"{min(start + len(part), len(seeds))}/{len(seeds)} images in {folder}")
    if config.grid:
        files.append(folder / "grid.png")
        save_png(files[-1], tile(torch.stack(shown)))
        say(f"{files[-1]}")
    return files
