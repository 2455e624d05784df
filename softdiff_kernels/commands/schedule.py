# SPDX-License-Identifier: Apache-2.0
"""`softdiff schedule`: computes the shortest-path schedule of a data set, and writes it to a file.

The distance along the path is that of the images, or, with --features, that of a classifier's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from ..data import SOURCE_LIST, ImageSet, check_sides, height_and_width, load_images
from ..diffusion import FeatureDistance, Schedule, shortest_path_schedule
from ..errors import UserError, need, user_errors
from ..evaluation import load_classifier
from ..files import PathText, check_free

FEWEST_IMAGES, MOST_IMAGES = 100, 500


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
    features: PathText | None = field(
        default=None,
        metadata={
            "help": "Classifier file of `softdiff evaluate`: distances are of its features instead "
            f"of pixels, over at most {MOST_IMAGES} images."
        },
    )
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
        """Raises UserError for options that contradict each other, and for a plot's unknown format."""
        if self.features is not None and self.noise_term != "shared":
            raise UserError(f"--features has shared noise, got --noise-term {self.noise_term}")
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
    images = load_images(config.data, height_and_width(config.image_size), stream=True)
    distance, distance_name = (
        _feature_distance(config.features, images) if config.features is not None else (None, "")
    )
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
            distance=distance,
            distance_name=distance_name,
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


def _feature_distance(file: str, images: ImageSet) -> tuple[FeatureDistance, str]:
    """The distance on the features of a classifier file, over evenly spaced images, and its description."""
    need("safetensors", "--features")
    classifier = load_classifier(file)
    classifier.check_useful()
    if classifier.shape != images.shape:
        raise UserError(
            f"--features: expected a classifier of images {list(images.shape)} (channels, height, width), as "
            f"{images.name} has, got one of {list(classifier.shape)}"
        )
    pixels = images.pixels
    if len(pixels) < FEWEST_IMAGES:
        raise UserError(f"--features needs {FEWEST_IMAGES} or more images, got {len(pixels)}")
    chosen = torch.linspace(0, len(pixels) - 1, min(len(pixels), MOST_IMAGES)).round().long()
    name = (
        f"root of E|f(x_s) - f(x_t)|^2, image and noise shared, over {len(chosen)} images, "
        f"f: {classifier.describe()}"
    )
    return FeatureDistance(pixels[chosen], classifier.features_of_floats), name
