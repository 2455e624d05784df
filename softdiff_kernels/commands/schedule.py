# SPDX-License-Identifier: Apache-2.0
"""`softdiff schedule`: the shortest path of a data set, as a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..data.image_set import load_images
from ..diffusion import Schedule, shortest_path_schedule
from ..errors import UserError, need, user_errors
from ..files import check_free
from ..training.config import check_sides, height_and_width
from .configs import ScheduleConfig


def make_schedule(config: ScheduleConfig, say: Callable[[str], None] = print) -> Schedule:
    """Computes, saves and, if asked, plots the schedule."""
    need("scipy.sparse", "the Wasserstein schedule")
    if config.plot is not None:
        need("matplotlib.figure", "--plot")
    check_sides(config.image_size)
    for flag, path in (("--out", config.out), ("--plot", config.plot)):
        check_free(flag, path, overwrite=config.overwrite)
    images = load_images(config.data, height_and_width(config.image_size))
    with user_errors():
        schedule = shortest_path_schedule(
            images.spectrum,
            levels=config.levels,
            nodes=config.nodes,
            blur_std_max=config.blur_std_max,
            noise_std_min=config.noise_std_min,
            noise_std_max=config.noise_std_max,
            noise_term=config.noise_term,
            dataset=images.name,
        )
    for path, write in ((config.out, schedule.save), (config.plot, schedule.plot)):
        if path is not None:
            try:
                write(Path(path))
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    say(f"{config.out}: {schedule.describe()}")
    if config.plot is not None:
        say(f"{config.plot}")
    return schedule
