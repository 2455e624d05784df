# SPDX-License-Identifier: Apache-2.0
"""The corruption process that a run's options name, for its images."""

from __future__ import annotations

from ..data.image_set import ImageSet
from ..diffusion import SCHEDULES, Corruption, Schedule, ScheduleOptions
from ..errors import UserError, need, user_errors
from .config import TrainConfig, schedule_file


def make_corruption(config: TrainConfig, images: ImageSet) -> tuple[Corruption, Schedule | None]:
    """What `--schedule` names, for these images: a word, or a schedule file."""
    _, height, width = images.shape
    if config.schedule in SCHEDULES:
        if config.schedule == "wasserstein":
            need("scipy.sparse", "the Wasserstein schedule")
        ranges = config.blur_std_max, config.noise_std_min, config.noise_std_max
        with user_errors(f"--schedule {config.schedule}: "):
            return SCHEDULES[config.schedule].make(images, ScheduleOptions(config.nodes, *ranges))
    if not schedule_file(config.schedule):
        wanted = "wasserstein, linear, geometric, noise or a schedule file"
        raise UserError(f"--schedule: expected {wanted}, got {config.schedule!r}")
    with user_errors():
        schedule = Schedule.load(config.schedule, image_size=(height, width))
    return Corruption.from_schedule(schedule), schedule
