# SPDX-License-Identifier: Apache-2.0
"""Every option of a training run, as one flat dataclass: the flags, the file in the run folder, and
the record inside each checkpoint."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from .errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    """Train a Soft Diffusion model on a folder of images, an .npz file, or the built-in digits."""

    data: str
    """Folder of images (searched recursively), .npz with uint8 `images` or `arr_0`, or the word digits."""
    outdir: str | None = None
    """Run folder. Default: the next numbered folder under runs/, such as runs/00000-digits."""
    resume: str | None = None
    """Training state to go on from: a state file, a run folder (its newest state), or the word auto
    (the newest state in --outdir; a fresh start if it holds none). Flags given beside it override."""
    image_size: int | None = None
    """Resize the shorter side to this many pixels and cut out the centre square. Digits: 8 or more."""
    flip: bool = False
    """Mirror every other image at random. For photographs; not for text or digits."""

    steps: int = 50_000
    """Optimiser steps in all."""
    batch: int = 64
    """Images a step."""
    lr: float = 2e-4
    """Learning rate of Adam, reached after --warmup steps."""
    warmup: int = 500
    """Steps over which the learning rate rises from 0."""
    decay: Literal["none", "cosine"] = "none"
    """What the learning rate does after the warm-up: stays, or falls to 5 % by the last step."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    ema: float = 0.9995
    """Decay of the averaged weights, which are the ones that are sampled from."""

    width: int = 64
    """Channels of the U-Net at full resolution."""
    multipliers: tuple[int, ...] = ()
    """Channels at each level, in units of --width. Default: 1 2 2 2, as many as the image size allows."""
    blocks: int = 2
    """Residual blocks a level."""
    patch: int = 1
    """Pixels a side that the network takes as one, as channels (space-to-depth): 2 costs a quarter."""
    prediction: Literal["residual", "sample"] = "residual"
    """What the network predicts: x_0 - x_t (the paper's), or x_0."""

    loss: Literal["soft", "plain"] = "soft"
    """soft (Soft Score Matching: errors seen through the blur), or plain (the residual's own error)."""

    schedule: str = "wasserstein"
    """wasserstein (the shortest path for this data), linear (the paper's ranges, blur linear in t),
    geometric (blur geometric in t, as IHDM), noise (no blur: VE), or a file from `softdiff schedule`."""
    nodes: int = 32
    """Distributions on the shortest path."""
    blur_std_max: float | None = None
    """Strongest blur in pixels. Default: the paper's 23 px at 64 px, in proportion to the longer side."""
    noise_std_min: float = 0.01
    """Noise at t = 0, for images in [-1, 1]."""
    noise_std_max: float | None = None
    """Noise from t = 1/4 on. Default: the paper's 0.1; for --schedule noise, at t = 1, the largest
    distance between two images. These three do not apply to a schedule file."""
    prior: Literal["gaussian", "blurred", "plain"] = "gaussian"
    """What sampling starts from: a Gaussian fitted to the data's surviving frequencies, blurred
    training images (kept inside the weights file), or a plain Gaussian."""

    sampler: Literal["momentum", "naive", "ddim", "tacos"] = "momentum"
    """Sampler of the grids drawn during training."""
    sample_steps: int = 64
    """Steps of that sampler."""
    sample_count: int = 64
    """Images in a grid; 0 draws none."""

    log_every: int = 50
    """Steps between lines of stats.jsonl."""
    sample_every: int = 2_000
    """Steps between sample grids."""
    save_every: int = 2_000
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept; 0 keeps all."""

    seed: int = 0
    """Rules the weights at the start, the order of the images, t and the noise."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    progress: bool = True
    """Draw a progress bar on a terminal; lines otherwise."""

    def __post_init__(self) -> None:
        """Refuses numbers that no run could mean."""
        counts = (
            "steps",
            "batch",
            "width",
            "blocks",
            "patch",
            "sample_steps",
            "log_every",
            "sample_every",
            "save_every",
        )
        for name in counts:
            _check(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup", "keep", "sample_count", "grad_clip"):
            _check(self, name, getattr(self, name) >= 0, "at least 0")
        _check(self, "nodes", self.nodes >= 2, "at least 2")
        blur, least, most = self.blur_std_max, self.noise_std_min, self.noise_std_max
        _check(self, "blur_std_max", blur is None or 0.01 < blur < math.inf, "over 0.01")
        _check(self, "noise_std_min", 0 < least < math.inf, "a positive number")
        _check(self, "noise_std_max", most is None or least <= most < math.inf, "at least --noise-std-min")
        _check(self, "lr", math.isfinite(self.lr) and self.lr > 0, "a positive number")
        _check(self, "ema", 0 <= self.ema < 1, "in [0, 1)")
        _check(self, "seed", 0 <= self.seed < 2**63, "in [0, 2^63)")
        _check(self, "image_size", self.image_size is None or self.image_size >= 1, "at least 1")
        _check(self, "multipliers", all(m >= 1 for m in self.multipliers), "whole numbers of at least 1")

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """From `to_dict`'s form. Options that this version does not know are refused by name."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [described(name, known) for name in sorted(set(values) - set(known))]
        if unknown:
            raise UserError(
                f"options that this version of softdiff_kernels does not know: {'; '.join(unknown)}"
            )
        return cls(**{**values, "multipliers": tuple(values.get("multipliers", ()))})


def described(name: str, known: Iterable[str]) -> str:
    """An unknown name, with the known one that is nearest, if one is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name


def _check(config: TrainConfig, name: str, good: bool, wanted: str) -> None:
    if not good:
        flag = "--" + name.replace("_", "-")
        raise UserError(f"{flag}: expected {wanted}, got {getattr(config, name)}")


MAY_CHANGE = frozenset(
    {
        *("data", "outdir", "resume", "steps", "log_every", "sample_every", "save_every", "keep"),
        *("sampler", "sample_steps", "sample_count", "device", "progress"),
    }
)
"""Options that a resumed run may change and still be the same run."""


def check_resumed(old: TrainConfig, new: TrainConfig) -> None:
    """Refuses changes that would make the resumed run another one, all of them in one sentence."""
    changed = []
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.name not in MAY_CHANGE and before != after:
            changed.append(f"--{field.name.replace('_', '-')}: expected {before}, got {after}")
    if changed:
        raise UserError(f"these options differ from those of the run being resumed: {'; '.join(changed)}")


@dataclass(frozen=True)
class SampleConfig:
    """Draw images from a weights file."""

    weights: str
    """Weights file, or a run folder (its newest weights)."""
    outdir: str = "samples"
    """Folder for one PNG a seed, named by its seed, and grid.png."""
    seeds: str = "0-63"
    """Seeds: a range such as 0-63, a list such as 3,5,8-10, or one number. A seed's image does not
    depend on the others or on --batch."""
    sampler: Literal["momentum", "naive", "ddim", "tacos"] = "momentum"
    """momentum (the paper's Algorithm 2), naive (its Algorithm 1), ddim (deterministic), or tacos
    (Cold Diffusion's Algorithm 2)."""
    steps: int = 64
    """Sampler steps: one network evaluation each."""
    batch: int = 64
    """Images at a time."""
    grid: bool = True
    """Also write grid.png."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        """Refuses numbers that no run could mean."""
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class ScheduleConfig:
    """Compute the Wasserstein shortest-path schedule of a data set and save it as JSON."""

    data: str
    """Folder of images, .npz, or the word digits: as in `softdiff train`."""
    out: str = "schedule.json"
    """File to write."""
    image_size: int | None = None
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
    plot: str | None = None
    """Also draw the schedule into this PNG."""


@dataclass(frozen=True)
class DemoConfig:
    """Train on scikit-learn's digits for a few minutes and draw momentum beside naive samples."""

    outdir: str = "demo"
    """Folder for digits.png and the run."""
    steps: int | None = None
    """Optimiser steps, for a shorter or longer demo."""
    sampler_steps: int | None = None
    """Steps of both samplers."""
    seed: int = 0
    """Rules the training."""
