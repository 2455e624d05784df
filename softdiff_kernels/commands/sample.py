# SPDX-License-Identifier: Apache-2.0
"""`softdiff sample`: images from a weights file, as PNGs, a grid, an .npz, and a picture of how they form."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data import load_images
from ..data.choices import class_list, class_table, format_seeds, labels_of, named_class, parse_seeds
from ..data.names import MOST_SHOWN
from ..data.sample_folder import GRID, NPZ_RECORD, RECORD, enter_folder, image_name
from ..data.sources import ARRAY_ERRORS
from ..diffusion import SAMPLERS
from ..errors import UserError, need, user_errors
from ..files import PathText, check_no_folder, save_json, write_atomically
from ..images import save_png, tile
from ..training.build import fit_prior
from ..training.config import PriorName, SamplerName, summaries
from ..training.distributed import (
    Processes,
    autocast,
    join,
    leave_after_error,
    pick_device,
    set_precision,
)
from ..training.weights import LoadedModel, load_model

GRID_MOST = 256
SHOWN = 8
COLUMNS = 10
FRAMES = 48
FRAME_MS, LAST_MS = 60, 2000


@dataclass(frozen=True)
class SampleConfig:
    """Generate images from a weights file."""

    weights: PathText
    """Weights file, or run folder (its newest weights)."""
    ema: float | None = None
    """Decay of the averaged weights to use, of those in a run folder. Default: the first."""
    outdir: PathText = "samples"
    """Folder for one PNG per seed, named after its seed, and for samples.json and grid.png."""
    seeds: str = "0-63"
    """Seeds: a range such as 0-63, a list such as 3,5,8-10, or one number. The image of a seed does not
    depend on the other seeds, on --batch or on the number of processes."""
    sampler: SamplerName = field(default="momentum", metadata={"help": f"Sampler: {summaries(SAMPLERS)}."})
    steps: int = 64
    """Sampler steps. Each evaluates the network once."""
    variance: Literal["large", "small"] = "large"
    """Noise that the momentum sampler adds: large (the paper's) or small (the exact posterior's)."""
    eta: float = 0.0
    """Noise that ddim adds, as a fraction of the exact posterior's: 0 is deterministic."""
    prior: PriorName | None = None
    """Start from this prior, fitted to --data, instead of the prior in the weights file."""
    data: PathText | None = None
    """Images to fit --prior to, as in `softdiff train`."""
    classes: str | None = None
    """Classes of a conditional model, which the seeds use in turn: names or numbers, such as cat,dog or 0-9;
    name:3 or number:3 where 3 could be either. Default: all."""
    guidance: float = 1.0
    """Classifier-free guidance: x0_hat without a class, plus this factor times the change due to the
    class."""
    batch: int = 64
    """Images per batch in each process."""
    grid: bool = True
    """Also write grid.png."""
    npz: PathText | None = None
    """Also write all images to this .npz: arr_0 uint8 [N, H, W, C], seeds, and labels with classes. A file of
    an earlier `softdiff sample` is replaced, any other file is not."""
    trajectory: PathText | None = None
    """Also show how the first eight images form: a strip (.png) or an animation (.gif)."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Precision of the network, as in `softdiff train`."""
    compile: bool = False
    """Compile the network with torch.compile."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    timeout: float = 600.0
    """Seconds that a process waits for the others before it fails."""

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range, and for options that do not go together."""
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
                raise UserError(f"{flag} is for --sampler {sampler}, got --sampler {self.sampler}")
        if (self.prior is None) != (self.data is None):
            raise UserError("--prior and --data: expected both (a prior is fitted to images) or neither")
        if self.trajectory is not None and not self.trajectory.endswith((".png", ".gif")):
            raise UserError(f"--trajectory: expected a name that ends in .png or .gif, got {self.trajectory}")
        if self.npz is not None and not self.npz.endswith(".npz"):
            raise UserError(f"--npz: expected a name that ends in .npz, got {self.npz}")


def run(config: SampleConfig, argv: Sequence[str]) -> int:
    """Generates the images."""
    for module in ("safetensors", "PIL", "diffusers"):
        need(module, "softdiff sample")
    sample(config)
    return 0


def choose_prior(config: SampleConfig, model: LoadedModel) -> Any:
    """The prior in the weights file, or another one, fitted to --data."""
    if config.prior is None or config.data is None:
        return model.prior
    images = load_images(config.data, model.config.size)
    if images.shape != model.shape:
        advice = f"; `softdiff dataset --channels {model.shape[0]}` converts them"
        raise UserError(
            f"--data: expected images of {list(model.shape)}, got {list(images.shape)}"
            f"{advice if images.shape[0] != model.shape[0] else ''}"
        )
    return fit_prior(config.prior, images, model.denoiser.corruption)


def sampler_options(config: SampleConfig) -> dict[str, Any]:
    """The arguments of the chosen sampler that not all samplers have."""
    options: dict[str, dict[str, Any]] = {
        "momentum": {"variance": config.variance},
        "ddim": {"eta": config.eta},
    }
    return options.get(config.sampler, {})


def sample(config: SampleConfig, say: Callable[[str], None] = print) -> list[Path]:
    """Writes one PNG per seed, samples.json and a grid. Returns the files that this process wrote."""
    seeds = parse_seeds(config.seeds)
    device = pick_device(config.device)
    set_precision(config.precision)
    processes, device = join(config.timeout, device)
    try:
        files = _sample(config, seeds, device, processes, say if processes.first else lambda _: None)
        processes.close()
        return files
    except BaseException:
        leave_after_error()
        raise


def _sample(
    config: SampleConfig,
    seeds: list[int],
    device: torch.device,
    processes: Processes,
    say: Callable[[str], None],
) -> list[Path]:
    model = load_model(config.weights, device, config.ema)
    prior = choose_prior(config, model)
    classes = class_list(config.classes, model.classes)
    if config.guidance != 1.0 and classes is None:
        raise UserError("--guidance: the model was trained without classes (softdiff train --conditional)")
    if config.compile:
        compiled: Any = torch.compile(model.denoiser.inner_model)
        model.denoiser.inner_model = compiled
    if config.guidance != 1.0 and model.config.class_dropout == 0:
        raise UserError("--guidance: the model never saw an image without its class (--class-dropout 0)")
    folder = Path(config.outdir)
    for flag, name in (("--npz", config.npz), ("--trajectory", config.trajectory)):
        check_no_folder(flag, name)
    _check_no_data(config.npz)
    with user_errors("--outdir, --npz or --trajectory: "):
        for path in (folder, *(Path(name).parent for name in (config.npz, config.trajectory) if name)):
            path.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {
        "sampler": config.sampler,
        "steps": config.steps,
        "guidance": config.guidance,
        "options": sampler_options(config),
    }
    say(
        f"{len(seeds)} images by the {config.sampler} sampler in {config.steps} steps, from the "
        f"{prior.describe()}, with the weights of step {model.step}"
    )
    class_names = ", ".join(named_class(i, model.classes) for i in (classes or ())[:MOST_SHOWN])
    if classes is not None and len(classes) > MOST_SHOWN:
        class_names += f" and {len(classes) - MOST_SHOWN} more"
    record: dict[str, Any] = {
        "weights": os.path.abspath(config.weights),
        "weights_digest": model.digest,
        "step": model.step,
        "sampler": config.sampler,
        **sampler_options(config),
        "steps": config.steps,
        "prior": prior.describe(),
        "class": None if classes is None else "all" if config.classes is None else class_names,
        "guidance": config.guidance,
        "precision": config.precision,
    }
    if classes is not None:
        record["classes"] = [{"number": i, "name": model.classes[i]} for i in classes]
        for line in class_table(model.classes):
            say(line)
        if config.classes is not None:
            say(f"seeds use in turn: {class_names}")

    # Written before the images, so that it names all of them whatever happens.
    processes.from_first(lambda: save_json(folder / RECORD, enter_folder(folder, record, seeds)))
    mine = seeds[processes.rank :: processes.world]
    files: list[Path] = []
    collected: list[Tensor] = []
    wanted = len(mine) if config.npz else -(-GRID_MOST // processes.world) if config.grid else 0
    for start in range(0, len(mine), config.batch):
        part = mine[start : start + config.batch]
        bar = processes.first and sys.stderr.isatty()
        with autocast(device, config.precision):
            images = model.generate(
                part,
                prior,
                batch=config.batch,
                labels=labels_of(part, classes),
                progress=bar,
                **common,
            )
        for seed, image in zip(part, images, strict=True):
            files.append(folder / image_name(seed))
            save_png(files[-1], image)
        # Copies, because a slice would keep, and send, its whole batch.
        collected.extend(image.clone() for image in images[: max(0, wanted - len(collected))])
        done = min((start + len(part)) * processes.world, len(seeds))
        say(f"{done}/{len(seeds)} images in {folder}")
    shown = _in_order(processes.gather(collected), seeds)
    if not processes.first:
        return files
    extra = [folder / RECORD]
    if config.grid:
        extra.append(folder / GRID)
        save_png(extra[-1], tile(torch.stack(shown[:GRID_MOST])))
    if config.npz:
        extra.append(Path(config.npz))
        _save_npz(extra[-1], shown, seeds, labels_of(seeds, classes), model.classes, record)
    if config.trajectory:
        extra.append(Path(config.trajectory))
        first = seeds[:SHOWN]
        states: list[Tensor] = []
        with autocast(device, config.precision):
            model.generate(
                first,
                prior,
                batch=len(first),
                labels=labels_of(first, classes),
                states=states,
                **common,
            )
        save_trajectory(extra[-1], states)
    for path in extra:
        say(f"{path}")
    return files + extra


def _check_no_data(npz: str | None) -> None:
    """Raises UserError where --npz would replace a file that `softdiff sample` did not write, such as a data
    set."""
    if npz is None or not Path(npz).exists():
        return
    try:
        with np.load(npz, allow_pickle=False) as archive:
            own = NPZ_RECORD in archive.files
    except ARRAY_ERRORS:
        own = False
    if not own:
        raise UserError(
            f"{npz} exists already and was not written by softdiff sample: choose another --npz, or remove it"
        )


def _in_order(parts: list[list[Tensor]], seeds: Sequence[int]) -> list[Tensor]:
    """The images of all processes in the order of the seeds. Process r of n has those of seeds r, r + n,
    ..."""
    world = len(parts)
    places = ((i % world, i // world) for i in range(len(seeds)))
    return [parts[rank][place] for rank, place in places if place < len(parts[rank])]


def _save_npz(
    path: Path,
    images: list[Tensor],
    seeds: list[int],
    labels: list[int] | None,
    classes: Sequence[str],
    record: dict[str, Any],
) -> None:
    """Writes the images as [N, H, W, C] under arr_0, the name that other evaluators read, and the record of
    how they were made."""
    pixels = torch.stack(images).permute(0, 2, 3, 1).numpy()
    arrays: dict[str, Any] = {"arr_0": pixels, "seeds": np.array(seeds)}
    arrays[NPZ_RECORD] = np.array(json.dumps({**record, "seeds": format_seeds(seeds)}))
    if labels is not None:
        arrays |= {"labels": np.array(labels), "classes": np.array(classes, dtype=str)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def save_trajectory(path: Path, states: Sequence[Tensor]) -> None:
    """Writes uint8 states [B, C, H, W], from the first to the last. As .png: a row per image, with ten evenly
    spaced times as columns. As .gif: at most 48 frames, the last one shown for two seconds."""
    shown = COLUMNS if path.suffix == ".png" else FRAMES
    places = torch.linspace(0, len(states) - 1, min(shown, len(states))).round().long().tolist()
    chosen = [states[i] for i in places]
    if path.suffix == ".png":
        save_png(path, tile(torch.stack(chosen, dim=1).flatten(0, 1), len(chosen)))
        return
    frames = [tile(state) for state in chosen]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    write_atomically(path, buffer.getvalue(), sync=False)
