# SPDX-License-Identifier: Apache-2.0
"""Every option of a training run, as one flat dataclass: the flags, the YAML file in the run folder, and
the record inside each checkpoint."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from ..files import PathText


@dataclass(frozen=True)
class TrainConfig:
    """Train a Soft Diffusion model on a folder of images, an .npz file, or the built-in digits."""

    data: PathText
    """Folder of images (searched recursively), .npz, .npy, .zip, hf:NAME[:SPLIT], or the word digits."""
    preset: str | None = None
    """Options to begin with: digits, mnist, cifar10 or celeba64. --config and flags override them."""
    config: PathText | None = None
    """YAML file of options, such as a run's config.yaml. Flags override it."""
    outdir: PathText | None = None
    """Run folder. Default: the next number under runs/, such as runs/00000-digits-bs64-fp32."""
    desc: str | None = None
    """Words to end the name of a numbered run folder with."""
    dry_run: bool = False
    """Print the options as they are resolved, and end. Also -n."""
    resume: PathText | None = None
    """Training state to go on from: a state file, a run folder (its newest state), or the word auto
    (the newest state in --outdir; a fresh start if it holds none). Flags given beside it override."""
    allow_changes: bool = False
    """Resume although options or images differ from the run's; it is another run from there on. Corruption,
    prior and network stay."""
    image_size: tuple[int, ...] = ()
    """Side, or height and width: images are resized to cover it, and its centre is cut out."""
    channels: int | None = None
    """Channels that the images must have; `softdiff dataset --channels` converts."""
    flip: bool = False
    """Mirror every other image at random. For photographs; not for text or digits."""
    conditional: bool = False
    """Train on the data's class labels."""
    class_dropout: float = 0.1
    """Share of the images whose label is hidden, so that sampling can be guided."""

    steps: int = 50_000
    """Optimiser steps in all."""
    duration: str | None = None
    """Length in images instead of steps: 500k, 8Mi, 200M."""
    batch: int = 64
    """Images a step, over all processes."""
    batch_gpu: int | None = None
    """Images at a time in each process; the rest of a step's are accumulated."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Of the network: float32, with TF32 products, or under autocast; weights stay in float32."""
    compile: bool = False
    """Compile the network with torch.compile."""
    lr: float = 2e-4
    """Learning rate of Adam, reached after --warmup steps."""
    beta2: float = 0.99
    """Adam's decay of squared gradients."""
    warmup: int = 500
    """Steps over which the learning rate rises from 0."""
    decay: Literal["none", "cosine"] = "none"
    """What the learning rate does after the warm-up: stays, or falls to 5 % by the last step."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    ema: tuple[float, ...] = (0.9995,)
    """Decays of the averaged weights; the first are those that are sampled from unless said otherwise."""

    network: Literal["ddpm", "ncsnpp"] = "ddpm"
    """U-Net of DDPM's blocks, or of NCSN++'s, with progressive input and output."""
    width: int = 64
    """Channels of the U-Net at full resolution."""
    multipliers: tuple[int, ...] = ()
    """Channels at each level, in units of --width. Default: 1 2 2 2, as many as the image size allows."""
    blocks: int = 2
    """Residual blocks a level."""
    dropout: float = 0.0
    """Share of activations dropped in residual blocks."""
    patch: int = 1
    """Pixels a side that the network takes as one, as channels (space-to-depth): 2 costs a quarter."""
    prediction: Literal["residual", "sample"] = "residual"
    """What the network predicts: x_0 - x_t (the paper's), or x_0."""

    loss: Literal["soft", "plain", "increment"] = "soft"
    """soft (Soft Score Matching: errors seen through the blur), plain (the residual's own error), or
    increment (errors seen as the next step of the sampler brings them out)."""

    schedule: PathText = "wasserstein"
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
    tensorboard: bool = False
    """Also log for TensorBoard, into tensorboard/ of the run folder."""
    wandb: str | None = None
    """Also log to this project of Weights & Biases; WANDB_MODE=offline keeps it in the run folder."""
    timeout: float = 600.0
    """Seconds that a process waits for the others before it gives up."""

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
        good = len(self.ema) == len(set(self.ema)) > 0 and all(0 <= decay < 1 for decay in self.ema)
        _check(self, "ema", good, "one or more different decays in [0, 1)")
        _check(self, "class_dropout", 0 <= self.class_dropout < 1, "in [0, 1)")
        _check(self, "beta2", 0 < self.beta2 < 1, "in (0, 1)")
        _check(self, "dropout", 0 <= self.dropout < 1, "in [0, 1)")
        _check(self, "timeout", 0 < self.timeout < math.inf, "a positive number")
        _check(self, "channels", self.channels is None or 1 <= self.channels <= 4, "1 to 4")
        _check(self, "batch_gpu", self.batch_gpu is None or self.batch_gpu >= 1, "at least 1")
        _check(self, "seed", 0 <= self.seed < 2**63, "in [0, 2^63)")
        check_sides(self.image_size)
        _check(self, "multipliers", all(m >= 1 for m in self.multipliers), "whole numbers of at least 1")

    @property
    def size(self) -> tuple[int, int] | None:
        """--image-size as (height, width), None where it is not given."""
        return height_and_width(self.image_size)

    def resolved(self) -> TrainConfig:
        """With --duration turned into steps."""
        if self.duration is None:
            return self
        steps = math.ceil(images_of(self.duration) / self.batch)
        return dataclasses.replace(self, steps=max(1, steps), duration=None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON and YAML take it."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """From `to_dict`'s form. Options that this version does not know are refused by name."""
        check_known(values)
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


SCHEDULES = ("wasserstein", "linear", "paper", "geometric", "noise")


def schedule_file(schedule: str) -> bool:
    """Whether --schedule names a file that is there, and no schedule."""
    return schedule not in SCHEDULES and Path(schedule).is_file()


def check_sides(sides: tuple[int, ...]) -> None:
    """Refuses an --image-size that is no side and no height and width."""
    if len(sides) > 2 or any(side < 1 for side in sides):
        got = " ".join(map(str, sides))
        raise UserError(f"--image-size: expected one or two whole numbers of at least 1, got {got}")


def height_and_width(sides: tuple[int, ...]) -> tuple[int, int] | None:
    """--image-size as (height, width), None where it is not given."""
    return (sides[0], sides[-1]) if sides else None


def check_known(names: Iterable[str]) -> None:
    """Refuses names that are no options, each with the nearest one that is."""
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    unknown = [described(name, known) for name in sorted(set(names) - set(known))]
    if unknown:
        raise UserError(f"options that this version of softdiff_kernels does not know: {'; '.join(unknown)}")


UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def images_of(text: str) -> int:
    """A number of images: 50000, 500k, 1.5M, 8Mi."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?|)\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise UserError(f"--duration: expected a number of images such as 500k, 8Mi or 200M, got {text!r}")
    return math.ceil(Decimal(match[1]) * UNITS[match[2].lower()])


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
        *("sampler", "sample_steps", "sample_count", "device", "progress", "preset", "config", "desc"),
        *("dry_run", "allow_changes", "duration", "batch_gpu", "compile", "tensorboard", "wandb", "timeout"),
    }
)
"""Options that a resumed run may change and still be the same run."""


FITTED = frozenset(
    {
        *("schedule", "nodes", "blur_std_max", "noise_std_min", "noise_std_max", "prior", "image_size"),
        *("network", "width", "multipliers", "blocks", "patch", "prediction", "conditional", "ema"),
    }
)
"""Options that are part of a training state, and cannot change even in another run that goes on from it."""


def check_resumed(old: TrainConfig, new: TrainConfig) -> None:
    """Refuses changes that would make the resumed run another one, all of them in one sentence, unless they
    are allowed; and those to what the state was made with, always."""
    changed = []
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        may = field.name in MAY_CHANGE or (new.allow_changes and field.name not in FITTED)
        if field.name == "schedule" and _same_file(before, after):
            continue
        if not may and before != after:
            changed.append(f"--{field.name.replace('_', '-')}: expected {before}, got {after}")
    if changed:
        way_out = "a resumed run keeps its corruption, prior, network and averages"
        if not new.allow_changes:
            way_out = "--allow-changes goes on all the same, but for corruption, prior, network and averages"
        raise UserError(
            f"these options differ from those of the run being resumed: {'; '.join(changed)}; {way_out}"
        )


def _same_file(before: str, after: str) -> bool:
    """Whether both are files of the same bytes: a schedule may be named from another folder, or copied."""
    files = Path(before), Path(after)
    return all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes()
