# SPDX-License-Identifier: Apache-2.0
"""Options of `softdiff evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..data.image_set import ImageSet, load_images
from ..errors import UserError
from ..files import PathText
from ..training.config import check_sides, height_and_width

METRICS = ("classifier", "fid", "kid")
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure how far images are from a reference data set. No weights are ever downloaded."""

    reference: PathText
    """Data set to compare with: a folder of images, .npz, .npy, .zip, or the word digits."""
    images: PathText | None = None
    """Images to measure: a folder (that of `softdiff sample`, say), .npz, .npy or .zip. Or give --weights."""
    weights: PathText | None = None
    """Weights file or run folder to draw the images from, instead of --images."""
    metric: str = "classifier"
    """classifier (Fréchet distance on a small classifier's features), fid, kid, or several: fid,kid."""
    num: int | None = None
    """Take exactly the first this many images, be they fewer than a metric asks for."""
    image_size: tuple[int, ...] = ()
    """Side, or height and width: all images are resized to cover it, and its centre is cut out."""
    channels: Literal[1, 3, 4] | None = None
    """All images are compared as 1 (grey), 3 (RGB, alpha laid over black) or 4 (RGBA)."""

    labelled: PathText | None = None
    """Labelled data set that the classifier is trained on. Default: the reference."""
    classifier: PathText | None = None
    """Classifier file: read if it is there; else written once it is trained."""
    epochs: int | None = None
    """Times that the classifier sees each image. Default: as many as make 160 000 images, 3 to 50."""
    feature_extractor_weights: PathText | None = None
    """Inception weights for fid and kid: torch-fidelity's weights-inception-2015-12-05-6726825d.pth."""

    sampler: Literal["momentum", "naive", "ddim", "tacos"] = "momentum"
    """With --weights, as the next three: as in `softdiff sample`."""
    steps: int = 64
    """Sampler steps."""
    seeds: str = "0-999"
    """Seeds, one an image."""
    batch: int = 64
    """Images at a time."""

    seed: int = 0
    """Rules the classifier's training, the split of the reference and kid's subsets."""
    device: str = "auto"
    """For sampling and Inception: auto (a GPU if there is one), cpu, cuda or cuda:N."""
    out: PathText | None = None
    """Also write the results, with all that they depend on, into this JSON file; an old one is replaced."""
    json: bool = False
    """Print each result as one line of JSON instead."""

    def __post_init__(self) -> None:
        """Refuses what no evaluation could mean."""
        if (self.images is None) == (self.weights is None):
            got = "neither" if self.images is None else "both"
            raise UserError(f"expected either --images or --weights, got {got}")
        names = self.metrics
        if not names or not set(names) <= set(METRICS) or len(set(names)) < len(names):
            wanted = f"one or several of {', '.join(METRICS)}, with commas between"
            raise UserError(f"--metric: expected {wanted}, got {self.metric!r}")
        if "classifier" not in names:
            for name in ("labelled", "classifier", "epochs"):
                if getattr(self, name) is not None:
                    raise UserError(f"--{name} is for --metric classifier, got --metric {self.metric}")
        if set(names) & {"fid", "kid"} and self.feature_extractor_weights is None:
            raise UserError(
                f"--metric {self.metric} needs --feature-extractor-weights FILE, the file {INCEPTION_FILE} "
                "of release v0.2.0 of github.com/toshas/torch-fidelity; softdiff downloads nothing"
            )
        check_sides(self.image_size)
        least_values = {"num": 2, "epochs": 1, "steps": 1, "batch": 1}
        for name, least in least_values.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed: expected in [0, 2^63), got {self.seed}")

    @property
    def size(self) -> tuple[int, int] | None:
        """--image-size as (height, width), None where it is not given."""
        return height_and_width(self.image_size)

    def load(self, source: str) -> ImageSet:
        """A data set at --image-size and --channels."""
        return load_images(source, self.size, channels=self.channels)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics asked for, in order."""
        return tuple(part.strip() for part in self.metric.split(",") if part.strip())
