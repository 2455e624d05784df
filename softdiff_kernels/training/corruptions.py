# SPDX-License-Identifier: Apache-2.0
"""The corruption process that a run's options name, for its images."""

from __future__ import annotations

from typing import Any

import torch

from ..data.image_set import ImageSet
from ..diffusion import Corruption, Schedule, shortest_path_schedule
from ..errors import UserError, need, user_errors
from .config import TrainConfig, schedule_file

PAPER_NOISE_STD_MAX = 0.1
FARTHEST_OF = 2000


def farthest(images: ImageSet) -> float:
    """The largest distance between two of (at most 2000, evenly spaced) images in [-1, 1]."""
    chosen = torch.linspace(0, len(images.pixels) - 1, min(len(images.pixels), FARTHEST_OF)).round().long()
    flat = images.pixels[chosen].flatten(1).float() / 127.5
    return float(torch.cdist(flat, flat).max())


def make_corruption(config: TrainConfig, images: ImageSet) -> tuple[Corruption, Schedule | None]:
    """What `--schedule` names, for these images: a word, or a schedule file."""
    _, height, width = images.shape
    with user_errors(f"--schedule {config.schedule}: "):
        if config.schedule == "noise":
            most = config.noise_std_max or max(farthest(images), config.noise_std_min)
            least = config.noise_std_min
            return Corruption.noise_only((height, width), noise_std_min=least, noise_std_max=most), None
        ranges: dict[str, Any] = {
            "blur_std_max": config.blur_std_max,
            "noise_std_min": config.noise_std_min,
            "noise_std_max": config.noise_std_max or max(PAPER_NOISE_STD_MAX, config.noise_std_min),
        }
        if config.schedule in ("linear", "paper"):
            return Corruption.paper((height, width), **ranges), None
        if config.schedule == "geometric":
            return Corruption.geometric((height, width), **ranges), None
        if config.schedule == "wasserstein":
            need("scipy.sparse", "the Wasserstein schedule")
            found = shortest_path_schedule(images.spectrum, nodes=config.nodes, dataset=images.name, **ranges)
            return Corruption.from_schedule(found), found
    if not schedule_file(config.schedule):
        wanted = "wasserstein, linear, geometric, noise or a schedule file"
        raise UserError(f"--schedule: expected {wanted}, got {config.schedule!r}")
    with user_errors():
        found = Schedule.load(config.schedule, image_size=(height, width))
    return Corruption.from_schedule(found), found
