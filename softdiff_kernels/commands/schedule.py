# SPDX-License-Identifier: Apache-2.0
"""`softdiff schedule`: computes the shortest-path schedule of a data set, and writes it to a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data import SOURCE_LIST, check_sides, height_and_width, load_images
from ..diffusion import Schedule, shortest_path_schedule
from ..errors import UserError, need, user_errors
from ..files import PathText, check_free


@dataclass(frozen=True)
class ScheduleConfig:
    """Compute the Wasserstein shortest-path schedule of a data set, and save it as JSON."""

    data: PathText = field(metadata={"help": f"Images: {SOURCE_LIST}."})
    out: PathText = "schedule.json"
    """File to write."""
    image_size: tuple[int, ...] = ()
    """As in `softdiff train`."""
    nodes: int = 32
    """Number of distributions on the path."""
    levels: int = 256
    """Number of candidate blur levels."""
    noise_term: Literal["shared", "gaussian"] = "shared"
    """How the distance includes noise: shared (an upper bound) or gaussian (a closed form)."""
    blur_std_max: float | None = None
    """As in `softdiff train`."""
    noise_std_min: float = 0.01
    """As in `softdiff train`."""
    noise_std_max: float = 0.1
    """As in `softdiff train`."""
    plot: PathText | None = None
    """Also plot the schedule to this file: .png, .svg or .pdf."""
    overwrite: bool = False
    """Replace existing files."""

    def __post_init__(self) -> None:
        """Raises UserError for a plot in a format that cannot be written."""
        if self.plot is not None and not self.plot.lower().endswith((".png", ".svg", ".pdf")):
            raise UserError(f"--plot: expected a name that ends in .png, .svg or .pdf, got {self.plot}")


def run(config: ScheduleConfig, argv: Sequence[str]) -> int:
    """Computes and writes the schedule."""
    make_schedule(config)
    return 0


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
