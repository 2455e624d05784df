# SPDX-License-Identifier: Apache-2.0
"""The options of the commands beside `softdiff train`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError
from ..files import PathText


@dataclass(frozen=True)
class SampleConfig:
    """Draw images from a weights file."""

    weights: PathText
    """Weights file, or a run folder (its newest weights)."""
    ema: float | None = None
    """Which averaged weights of a run folder, by their decay. Default: the first."""
    outdir: PathText = "samples"
    """Folder for one PNG a seed, named by its seed, samples.json and grid.png."""
    seeds: str = "0-63"
    """Seeds: a range such as 0-63, a list such as 3,5,8-10, or one number. A seed's image does not
    depend on the others, on --batch or on the number of processes."""
    sampler: Literal["momentum", "naive", "ddim", "tacos"] = "momentum"
    """momentum (the paper's Algorithm 2), naive (its Algorithm 1), ddim (deterministic), or tacos
    (Cold Diffusion's Algorithm 2)."""
    steps: int = 64
    """Sampler steps: one network evaluation each."""
    variance: Literal["large", "small"] = "large"
    """Fresh noise of the momentum sampler: the paper's, or the exact posterior's."""
    eta: float = 0.0
    """Fresh noise of ddim, as a share of the exact posterior's: 0 is deterministic."""
    prior: Literal["gaussian", "blurred", "plain"] | None = None
    """Start from this prior, fitted to --data, instead of the one in the weights file."""
    data: PathText | None = None
    """Images to fit --prior to; as in `softdiff train`."""
    classes: str | None = None
    """Of a conditional model: classes that seeds take in turn, by name or number, such as cat,dog or 0-9;
    name:3 and number:3 where 3 could be either. Default: all."""
    guidance: float = 1.0
    """Classifier-free guidance: x0_hat without a class, plus this many times what the class changes."""
    batch: int = 64
    """Images at a time, in each process."""
    grid: bool = True
    """Also write grid.png."""
    npz: PathText | None = None
    """Also write all images into this .npz: arr_0 uint8 [N, H, W, C], seeds, and labels with classes. One of
    an earlier call is replaced, another file is not."""
    trajectory: PathText | None = None
    """Also draw how the first eight images come about: a strip (.png) or an animation (.gif)."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Of the network, as in `softdiff train`."""
    compile: bool = False
    """Compile the network with torch.compile."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    timeout: float = 600.0
    """Seconds that a process waits for the others before it gives up."""

    def __post_init__(self) -> None:
        """Refuses numbers that no run could mean."""
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.eta <= 1:
            raise UserError(f"--eta: expected a number in [0, 1], got {self.eta}")
        if not math.isfinite(self.guidance):
            raise UserError(f"--guidance: expected a finite number, got {self.guidance}")
        for flag, sampler, changed in (
            ("--variance", "momentum", self.variance != "large"),
            ("--eta", "ddim", self.eta != 0),
        ):
            if changed and self.sampler != sampler:
                raise UserError(f"{flag} is of --sampler {sampler}, got --sampler {self.sampler}")
        if (self.prior is None) != (self.data is None):
            raise UserError("--prior and --data: expected both (a prior is fitted to images) or neither")
        if self.trajectory is not None and not self.trajectory.endswith((".png", ".gif")):
            raise UserError(f"--trajectory: expected a name that ends in .png or .gif, got {self.trajectory}")
        if self.npz is not None and not self.npz.endswith(".npz"):
            raise UserError(f"--npz: expected a name that ends in .npz, got {self.npz}")


@dataclass(frozen=True)
class ScheduleConfig:
    """Compute the Wasserstein shortest-path schedule of a data set and save it as JSON."""

    data: PathText
    """Folder of images, .npz, .npy, .zip, or the word digits: as in `softdiff train`."""
    out: PathText = "schedule.json"
    """File to write."""
    image_size: tuple[int, ...] = ()
    """As in `softdiff train`."""
    nodes: int = 32
    """Distributions on the path."""
    levels: int = 256
    """Candidate blur levels."""
    noise_term: Literal["shared", "gaussian"] = "shared"
    """How noise enters the distance: shared (an upper bound) or gaussian (a closed form)."""
    blur_std_max: float | None = None
    """As in `softdiff train`."""
    noise_std_min: float = 0.01
    """As in `softdiff train`."""
    noise_std_max: float = 0.1
    """As in `softdiff train`."""
    plot: PathText | None = None
    """Also draw the schedule into this file: .png, .svg or .pdf."""
    overwrite: bool = False
    """Replace --out and --plot if they exist."""

    def __post_init__(self) -> None:
        """Refuses a picture in no form that can be drawn."""
        if self.plot is not None and not self.plot.lower().endswith((".png", ".svg", ".pdf")):
            raise UserError(f"--plot: expected a name that ends in .png, .svg or .pdf, got {self.plot}")


@dataclass(frozen=True)
class DemoConfig:
    """Train on scikit-learn's digits for a few minutes and draw momentum beside naive samples."""

    outdir: PathText = "demo"
    """Folder for digits.png and the run."""
    steps: int | None = None
    """Optimiser steps, for a shorter or longer demo."""
    sampler_steps: int | None = None
    """Steps of both samplers."""
    seed: int = 0
    """Rules the training."""
