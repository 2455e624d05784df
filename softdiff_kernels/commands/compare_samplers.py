# SPDX-License-Identifier: Apache-2.0
"""`softdiff compare-samplers`: one picture of samplers by numbers of steps, all from the same starts."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.choices import class_list, format_seeds, labels_of, parse_seeds
from ..diffusion import SAMPLERS, check_sampler, time_steps
from ..errors import UserError, need, with_nearest
from ..files import PathText, check_no_folder
from ..images import labelled_grid, save_png, tile
from ..training.distributed import pick_device
from ..training.weights import LoadedModel
from .sample import open_model

MOST_SEEDS = 64
PICTURE = "samplers.png"


@dataclass(frozen=True)
class CompareSamplersConfig:
    """Draw the same seeds by several samplers, each in several numbers of steps, as one picture."""

    weights: PathText
    """Weights file, run folder (its newest weights), or folder of `softdiff export`."""
    ema: float | None = None
    """As in `softdiff sample`."""
    samplers: tuple[str, ...] = field(
        default=(),
        metadata={"help": f"The rows: {', '.join(SAMPLERS)}. Default: all that suit the corruption."},
    )
    steps: tuple[int, ...] = (5, 10, 25)
    """Numbers of steps, the columns."""
    seeds: str = "0-3"
    """Seeds, as in `softdiff sample`: a field of the picture shows all of them."""
    classes: str | None = None
    """As in `softdiff sample`."""
    out: PathText | None = None
    """Picture to write (.png); an old one is replaced. Default: samplers.png beside the weights, where
    `softdiff report` finds it."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range."""
        for name in self.samplers:
            if name not in SAMPLERS:
                expected = f"names among {', '.join(SAMPLERS)}"
                raise UserError(f"--samplers: expected {expected}, got {with_nearest(name, SAMPLERS)}")
        if not self.steps or min(self.steps) < 1:
            raise UserError(f"--steps: expected numbers of at least 1, got {list(self.steps)}")
        for name in ("samplers", "steps"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"--{name}: expected each once, got {' '.join(map(str, values))}")
        if self.out is not None and not self.out.endswith(".png"):
            raise UserError(f"--out: expected a name that ends in .png, got {self.out}")


def run(config: CompareSamplersConfig, argv: Sequence[str]) -> int:
    """Draws and writes the picture."""
    for module in ("safetensors", "PIL", "diffusers"):
        need(module, "softdiff compare-samplers")
    compare(config)
    return 0


def compare(config: CompareSamplersConfig, say: Callable[[str], Any] = print) -> Path:
    """Draws and writes the picture; returns its path."""
    start = time.perf_counter()
    seeds = parse_seeds(config.seeds)
    if len(seeds) > MOST_SEEDS:
        raise UserError(f"--seeds: expected at most {MOST_SEEDS}, which a field can show, got {len(seeds)}")
    weights = Path(config.weights)
    out = Path(config.out) if config.out else (weights if weights.is_dir() else weights.parent) / PICTURE
    check_no_folder("--out", out)
    if not out.parent.is_dir():
        raise UserError(f"--out: cannot write {out}: there is no folder {out.parent}")
    model = open_model(config.weights, pick_device(config.device), config.ema)
    labels = labels_of(seeds, class_list(config.classes, model.classes))
    samplers, refused = suitable(model, config.samplers or tuple(SAMPLERS), config.steps)
    for name, why in refused.items():
        say(f"left out: {name}, which the corruption refuses ({why})")
    if not samplers:
        raise UserError("--samplers: expected one that suits the corruption, got none (see above)")
    rows = []
    columns = min(len(seeds), max(4, math.ceil(math.sqrt(2 * len(seeds)))))
    for name in samplers:
        before = time.perf_counter()
        fields = []
        for steps in config.steps:
            images = model.generate(
                seeds, sampler=name, steps=steps, labels=labels, progress=sys.stderr.isatty()
            )
            fields.append(tile(images, columns))
        rows.append(fields)
        say(f"{name}: {time.perf_counter() - before:.1f} s")
    notes = [f"{_name(model)}, step {model.step}: seeds {format_seeds(seeds)}, the same start in every field"]
    sheet = labelled_grid(rows, [_label(name) for name in samplers], [_steps(n) for n in config.steps], notes)
    save_png(out, sheet)
    drawn = len(seeds) * len(samplers) * len(config.steps)
    say(f"{out}: {drawn} images in {time.perf_counter() - start:.0f} s, {len(samplers)} samplers as rows")
    return out


def suitable(
    model: LoadedModel, samplers: Sequence[str], steps: Sequence[int]
) -> tuple[list[str], dict[str, str]]:
    """The samplers that make sense for the model's corruption, and the reason for each of the others."""
    good: list[str] = []
    refused: dict[str, str] = {}
    for name in samplers:
        try:
            for n in steps:
                check_sampler(model.denoiser.corruption, model.shape[0], name, time_steps(n))
            good.append(name)
        except ValueError as error:
            refused[name] = " ".join(str(error).split())
    return good, refused


def _name(model: LoadedModel) -> str:
    return Path(model.file).resolve().parent.name


def _label(sampler: str) -> str:
    """The name, and what a step costs where that is not one evaluation of the network."""
    return f"{sampler}\n2n - 1 evaluations" if sampler == "heun" else sampler


def _steps(steps: int) -> str:
    return f"{steps} step" if steps == 1 else f"{steps} steps"
