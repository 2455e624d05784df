# SPDX-License-Identifier: Apache-2.0
"""`softdiff sample`: images from a weights file, as PNGs, a grid, an .npz, and a picture of how they form."""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.choices import class_list, class_names, class_table, labels_of, parse_seeds
from ..data.sample_folder import GRID, RECORD, check_npz, enter_folder, image_name, save_npz
from ..diffusion import SPACINGS, check_sampler, time_steps
from ..errors import UserError, need, user_errors
from ..files import PathText, check_no_folder, save_json, write_atomically
from ..images import save_png, tile
from ..training.config import SAMPLER_HELP, PriorName, SamplerName, SpacingName, summaries
from ..training.distributed import (
    Processes,
    autocast,
    join,
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
    """Weights file, run folder (its newest weights), or folder of `softdiff export`."""
    ema: float | None = None
    """Decay of the averaged weights to use, of those in a run folder. Default: the first."""
    outdir: PathText = "samples"
    """Folder for one PNG per seed, named after its seed, and for samples.json and grid.png."""
    seeds: str = "0-63"
    """Seeds: a range such as 0-63, a list such as 3,5,8-10, or one number. The image of a seed does not
    depend on the other seeds, on --batch or on the number of processes."""
    sampler: SamplerName | None = field(default=None, metadata={"help": SAMPLER_HELP})
    steps: int | None = None
    """Sampler steps. Each evaluates the network once. Default: the run's --sample-steps."""
    spacing: SpacingName = field(
        default="t", metadata={"help": f"What the steps are even in: {summaries(SPACINGS)}."}
    )
    variance: Literal["large", "small"] = "large"
    """Noise that the momentum sampler adds: large (the paper's) or small (the exact posterior's)."""
    eta: float = 0.0
    """Noise that ddim adds, as a fraction of the exact posterior's: 0 is deterministic."""
    delta: float | None = None
    """Noise that ihdm adds in each step. Default: 1.25 times the corruption's, the paper's."""
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
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The t from which to which --guidance acts; outside, the model of the class alone is used."""
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
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name}: expected at least 1, got {value}")
        if not 0 <= self.eta <= 1:
            raise UserError(f"--eta: expected a number in [0, 1], got {self.eta}")
        if not math.isfinite(self.guidance):
            raise UserError(f"--guidance: expected a finite number, got {self.guidance}")
        if self.sampler is not None:
            self.check_options_of(self.sampler, f"--sampler {self.sampler}")
        if self.delta is not None and not 0 <= self.delta < math.inf:
            raise UserError(f"--delta: expected a number of at least 0, got {self.delta}")
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise UserError(f"--guidance-interval: expected two rising times in [0, 1], got {low} {high}")
        if (self.prior is None) != (self.data is None):
            raise UserError("--prior and --data: expected both (a prior is fitted to images) or neither")
        if self.trajectory is not None and not self.trajectory.endswith((".png", ".gif")):
            raise UserError(f"--trajectory: expected a name that ends in .png or .gif, got {self.trajectory}")
        if self.npz is not None and not self.npz.endswith(".npz"):
            raise UserError(f"--npz: expected a name that ends in .npz, got {self.npz}")

    def check_options_of(self, sampler: str, got: str) -> None:
        """Raises UserError for options of another sampler."""
        for flag, its, given in (
            ("--variance", "momentum", self.variance != "large"),
            ("--eta", "ddim", self.eta != 0),
            ("--delta", "ihdm", self.delta is not None),
        ):
            if given and sampler != its:
                raise UserError(f"{flag} is for --sampler {its}, got {got}")


def run(config: SampleConfig, argv: Sequence[str]) -> int:
    """Generates the images."""
    for module in ("safetensors", "PIL", "diffusers"):
        need(module, "softdiff sample")
    sample(config)
    return 0


def sampler_options(config: SampleConfig) -> dict[str, Any]:
    """The arguments of the chosen sampler that not all samplers have."""
    options: dict[str, dict[str, Any]] = {
        "momentum": {"variance": config.variance},
        "ddim": {"eta": config.eta},
        "ihdm": {"delta": config.delta},
    }
    return options.get(config.sampler or "", {})


def for_model(config: SampleConfig, model: LoadedModel) -> tuple[SampleConfig, Tensor]:
    """The options with the run's steps and the best sampler for them where none are given, and the steps'
    times. UserError for a sampler or a spacing that makes no sense for the model's corruption."""
    corruption = model.denoiser.corruption
    steps = model.config.sample_steps if config.steps is None else config.steps
    config = replace(config, steps=steps)
    if config.sampler is None:
        best = corruption.best_sampler(steps)
        config.check_options_of(best, f"no --sampler, so {best} for {steps} steps")
        config = replace(config, sampler=best)
    with user_errors("--spacing: "):
        ts = time_steps(steps, config.spacing, corruption=corruption, spectrum=model.spectrum)
    with user_errors("--sampler: "):
        check_sampler(corruption, model.shape[0], config.sampler, ts, sampler_options(config))
    return config, ts


def sample(config: SampleConfig, say: Callable[[str], None] = print) -> list[Path]:
    """Writes one PNG per seed, samples.json and a grid. Returns the files that this process wrote."""
    seeds = parse_seeds(config.seeds)
    device = pick_device(config.device)
    set_precision(config.precision)
    processes, device = join(config.timeout, device)
    with processes:
        model = open_model(config.weights, device, config.ema)
        return _sample(config, seeds, model, processes, say if processes.first else lambda _: None)


def open_model(weights: str, device: torch.device, ema: float | None = None) -> LoadedModel:
    """The model that --weights names, of whichever kind: a weights file, a run's folder, a pipeline's folder.
    ema: the decay of the average, of those in a run's folder."""
    # A pipeline's folder needs more packages than a weights file.
    if not (Path(weights) / "model_index.json").is_file():
        return load_model(weights, device, ema)
    if ema is not None:
        raise UserError(f"--ema: {weights} has one network, whose average was chosen in its export")
    need("diffusers", "a pipeline's folder", "diffusers")
    from ..integrations.diffusers import load_pipeline

    with user_errors(f"{weights}: "):
        return load_pipeline(weights, device)


def _sample(
    config: SampleConfig,
    seeds: list[int],
    model: LoadedModel,
    processes: Processes,
    say: Callable[[str], None],
) -> list[Path]:
    prior, device = model.prior, model.device
    why = ", chosen for this number of steps" if config.sampler is None else ""
    config, ts = for_model(config, model)
    if config.prior is not None and config.data is not None:
        prior = model.fit_prior(config.prior, config.data)
    classes = class_list(config.classes, model.classes)
    if config.guidance != 1.0 and classes is None:
        raise UserError("--guidance: the model was trained without classes (softdiff train --conditional)")
    if config.guidance != 1.0 and model.config.class_dropout == 0:
        raise UserError("--guidance: the model never saw an image without its class (--class-dropout 0)")
    if config.compile:
        compiled: Any = torch.compile(model.denoiser.inner_model)
        model.denoiser.inner_model = compiled
    folder = _make_folders(config)
    say(
        f"{len(seeds)} images by the {config.sampler} sampler in {config.steps} steps{why}, from the "
        f"{prior.describe()}, with the weights of step {model.step}"
    )
    record = _record(config, model, prior.describe(), classes)
    if classes is not None:
        for line in class_table(model.classes):
            say(line)
        if config.classes is not None:
            say(f"seeds use in turn: {class_names(classes, model.classes)}")

    def generate(part: list[int], **options: Any) -> Tensor:
        with autocast(device, config.precision):
            return model.generate(
                part,
                prior,
                device=device,
                sampler=config.sampler,
                ts=ts,
                guidance=config.guidance,
                interval=config.guidance_interval,
                options=sampler_options(config),
                labels=labels_of(part, classes),
                say=say,
                **options,
            )

    # Written before the images, so that it names all of them whatever happens.
    processes.from_first(lambda: save_json(folder / RECORD, enter_folder(folder, record, seeds)))
    own_seeds = seeds[processes.rank :: processes.world]
    files: list[Path] = []
    collected: list[Tensor] = []
    wanted = len(own_seeds) if config.npz else -(-GRID_MOST // processes.world) if config.grid else 0
    for start in range(0, len(own_seeds), config.batch):
        part = own_seeds[start : start + config.batch]
        images = generate(part, batch=config.batch, progress=processes.first and sys.stderr.isatty())
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
        save_npz(extra[-1], torch.stack(shown), seeds, record, labels_of(seeds, classes), model.classes)
    if config.trajectory:
        extra.append(Path(config.trajectory))
        states: list[Tensor] = []
        generate(seeds[:SHOWN], batch=SHOWN, states=states)
        save_trajectory(extra[-1], states)
    for path in extra:
        say(f"{path}")
    return files + extra


def _make_folders(config: SampleConfig) -> Path:
    """Creates the folders of all files to write; returns --outdir."""
    folder = Path(config.outdir)
    for flag, name in (("--npz", config.npz), ("--trajectory", config.trajectory)):
        check_no_folder(flag, name)
    if config.npz is not None:
        check_npz(Path(config.npz))
    with user_errors("--outdir, --npz or --trajectory: "):
        for path in (folder, *(Path(name).parent for name in (config.npz, config.trajectory) if name)):
            path.mkdir(parents=True, exist_ok=True)
    return folder


def _record(
    config: SampleConfig, model: LoadedModel, prior: str, classes: Sequence[int] | None
) -> dict[str, Any]:
    """How the images are made, for samples.json and --npz."""
    record: dict[str, Any] = {
        "weights": os.path.abspath(config.weights),
        "weights_digest": model.digest,
        "step": model.step,
        "sampler": config.sampler,
        **sampler_options(config),
        "steps": config.steps,
        "spacing": config.spacing,
        "prior": prior,
        "class": None,
        "guidance": config.guidance,
        "guidance_interval": list(config.guidance_interval),
        "precision": config.precision,
    }
    if classes is not None:
        record["class"] = "all" if config.classes is None else class_names(classes, model.classes)
        record["classes"] = [{"number": i, "name": model.classes[i]} for i in classes]
    return record


def _in_order(parts: list[list[Tensor]], seeds: Sequence[int]) -> list[Tensor]:
    """The images of all processes in the order of the seeds. Process r of n has those of seeds r, r + n,
    ..."""
    world = len(parts)
    places = ((i % world, i // world) for i in range(len(seeds)))
    return [parts[rank][place] for rank, place in places if place < len(parts[rank])]


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
