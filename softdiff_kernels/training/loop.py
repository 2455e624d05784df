# SPDX-License-Identifier: Apache-2.0
"""A whole training run: from the options to the last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion import PRIORS, Corruption, Schedule, power_spectrum, prior_from_state, shortest_path_schedule
from ..noise import NoiseKey
from .checkpoint import checkpoint_name, find, load_checkpoint, newest_whole, prune, remove_partial
from .config import TrainConfig, check_resumed
from .data import ImageSet, load_images
from .errors import UserError, need, user_errors
from .images import save_png, tile, to_uint8
from .meter import Meter
from .progress import Progress, StopFlag, stop_on_signals
from .run_folder import append_stats, drop_stats_after, fresh_folder, next_run_folder, save_json
from .sampling import SAMPLING_SEED, generate, pick_device
from .trainer import Trainer

PRIOR_NAMES = {"gaussian": "gaussian-dct", "blurred": "blurred-images", "plain": "plain-gaussian"}
SHOWN_TIMES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SHOWN_IMAGES = 6


@dataclass(frozen=True)
class RunResult:
    """Where a run left off: its folder, its newest weights file, the step, and the signal that
    stopped it before its last step, if one did."""

    folder: Path
    weights: Path
    step: int
    stopped_by: int | None = None


PAPER_NOISE_STD_MAX = 0.1
FARTHEST_OF = 2000


def farthest(images: ImageSet) -> float:
    """The largest distance between two of (at most 2000, evenly spaced) images in [-1, 1]."""
    chosen = torch.linspace(0, len(images.pixels) - 1, min(len(images.pixels), FARTHEST_OF)).round().long()
    flat = images.pixels[chosen].flatten(1).float() / 127.5
    return float(torch.cdist(flat, flat).max())


def make_corruption(config: TrainConfig, images: ImageSet) -> tuple[Corruption, Schedule | None]:
    """What `--schedule` names, for these images: a word, or a schedule file."""
    _, height, width = images.shape
    with user_errors(f"--schedule {config.schedule}: "):
        if config.schedule == "noise":
            most = config.noise_std_max or max(farthest(images), config.noise_std_min)
            least = config.noise_std_min
            return Corruption.noise_only((height, width), noise_std_min=least, noise_std_max=most), None
        ranges: dict[str, Any] = {
            "blur_std_max": config.blur_std_max,
            "noise_std_min": config.noise_std_min,
            "noise_std_max": config.noise_std_max or max(PAPER_NOISE_STD_MAX, config.noise_std_min),
        }
        if config.schedule in ("linear", "paper"):
            return Corruption.paper((height, width), **ranges), None
        if config.schedule == "geometric":
            return Corruption.geometric((height, width), **ranges), None
        if config.schedule == "wasserstein":
            need("scipy.sparse", "the Wasserstein schedule")
            spectrum = power_spectrum(images.batches())
            found = shortest_path_schedule(spectrum, nodes=config.nodes, dataset=images.name, **ranges)
            return Corruption.from_schedule(found), found
    if not Path(config.schedule).is_file():
        wanted = "wasserstein, linear, geometric, noise or a schedule file"
        raise UserError(f"--schedule: expected {wanted}, got {config.schedule!r}")
    with user_errors():
        found = Schedule.load(config.schedule, image_size=(height, width))
    return Corruption.from_schedule(found), found


def corruption_sheet(images: ImageSet, corruption: Corruption) -> Tensor:
    """uint8 [rows * times, C, H, W]: a few images, each from t = 0 to t = 1."""
    some = images.pixels[torch.linspace(0, len(images.pixels) - 1, SHOWN_IMAGES).round().long()]
    key = NoiseKey(SAMPLING_SEED)
    columns = []
    for t in SHOWN_TIMES:
        x_t = corruption.corrupt(some, t, key=key)
        assert isinstance(x_t, Tensor)
        columns.append(to_uint8(x_t))
    return torch.stack(columns, dim=1).flatten(0, 1)


def resolve_resume(config: TrainConfig) -> Path | None:
    """The state file that `--resume` means, if it means one: of a folder, its newest that is whole."""
    if config.resume is None:
        return None
    if config.resume == "auto":
        if config.outdir is None:
            raise UserError("--resume auto: expected --outdir with it, to look for the newest state in")
        return newest_whole(Path(config.outdir), "state", _warn)
    named = find(config.resume, "state")
    return newest_whole(named.parent, "state", _warn) if Path(config.resume).is_dir() else named


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def options_of(state: Path) -> TrainConfig:
    """The options that a training state was saved with."""
    try:
        with user_errors(f"{state}: "):
            return TrainConfig.from_dict(load_checkpoint(state, "state").meta["config"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{state}: expected the run's options in it, found none") from error


def _begin(config: TrainConfig, device: torch.device) -> tuple[Trainer, Path]:
    """A new run: its schedule, prior and folder."""
    images = load_images(config.data, config.image_size)
    corruption, schedule = make_corruption(config, images)
    prior = PRIORS[PRIOR_NAMES[config.prior]].fit(images.batches(), corruption)
    trainer = Trainer(config, images, corruption, prior, device)
    folder = fresh_folder(config.outdir) if config.outdir else next_run_folder(images.name)
    if schedule is not None:
        with user_errors():
            schedule.save(folder / "schedule.json")
    columns = min(16, len(images.pixels))
    save_png(folder / "real.png", tile(images.pixels[: columns * columns], columns))
    save_png(folder / "corruption.png", tile(corruption_sheet(images, corruption), len(SHOWN_TIMES)))
    return trainer, folder


def _go_on(config: TrainConfig, state: Path, device: torch.device) -> tuple[Trainer, Path]:
    """A resumed run: all but the images comes from the state file."""
    checkpoint = load_checkpoint(state, "state")
    check_resumed(options_of(state), config)
    images = load_images(config.data, config.image_size)
    with user_errors(f"{state}: "):
        corruption = Corruption.from_dict(checkpoint.meta.get("corruption", {}))
        prior = prior_from_state(checkpoint.meta.get("prior", {}), checkpoint.part("prior"))
        if corruption.image_size != images.shape[1:] or list(images.shape) != checkpoint.meta.get("shape"):
            raise UserError(
                f"{state}: expected images of {checkpoint.meta.get('shape')} (channels, height, width), "
                f"got {list(images.shape)}"
            )
    trainer = Trainer(config, images, corruption, prior, device)
    trainer.load_state(checkpoint, state)
    folder = state.parent
    if config.outdir is not None and Path(config.outdir).resolve() != folder.resolve():
        folder = fresh_folder(config.outdir)
    drop_stats_after(folder, trainer.step)
    return trainer, folder


def train(config: TrainConfig) -> RunResult:
    """`softdiff train`: trains to the last step, or until a signal; either way ends with a checkpoint."""
    device = pick_device(config.device)
    state = resolve_resume(config)
    trainer, folder = _begin(config, device) if state is None else _go_on(config, state, device)
    remove_partial(folder)
    save_json(folder / "config.json", {**config.to_dict(), "outdir": str(folder)})
    with stop_on_signals() as stop:
        return _run(trainer, folder, stop, state)


def _run(trainer: Trainer, folder: Path, stop: StopFlag, state: Path | None) -> RunResult:
    config = trainer.config
    progress = Progress(config.steps, trainer.step, bar=config.progress)
    count, parameters = len(trainer.pixels), sum(p.numel() for p in trainer.model.parameters())
    begun = f"going on from {state}" if state else "starting"
    progress.say(
        f"{begun} in {folder}: {count} images {list(trainer.shape)}, network of {parameters / 1e6:.2f} M "
        f"parameters, {trainer.device}, steps {trainer.step} to {config.steps} of {config.batch} images"
    )
    meter, saved = Meter(trainer.device), trainer.step if state else -1
    try:
        while trainer.step < config.steps and stop.signal is None:
            meter.add(trainer.step + 1, trainer.advance())
            progress.advance()
            last = trainer.step == config.steps or stop.signal is not None
            if trainer.step % config.log_every == 0 or last or trainer.step % config.save_every == 0:
                line = meter.line(trainer, saved)
                append_stats(folder, line)
                text = f"loss {line['loss']:.4g}, {line['images_per_second']:.0f} images/s"
                progress.numbers(text, f"step {trainer.step}/{config.steps}: {text}")
            if trainer.step % config.save_every == 0 or last:
                _save(trainer, folder)
                saved = trainer.step
            drawn = trainer.step % config.sample_every == 0 or last
            if config.sample_count and stop.signal is None and drawn:
                path = _sample_grid(trainer, folder)
                progress.say(f"samples in {path}, from the {trainer.prior.describe()}")
        if saved != trainer.step:
            _save(trainer, folder)
    finally:
        progress.close()
    weights = folder / checkpoint_name("weights", trainer.step)
    finished = trainer.step >= config.steps
    return RunResult(folder, weights, trainer.step, None if finished else stop.signal)


def _save(trainer: Trainer, folder: Path) -> None:
    trainer.weights().save(folder / checkpoint_name("weights", trainer.step))
    trainer.state().save(folder / checkpoint_name("state", trainer.step))
    prune(folder, trainer.config.keep)


def _sample_grid(trainer: Trainer, folder: Path) -> Path:
    config = trainer.config
    images = generate(
        trainer.averaged,
        trainer.prior,
        range(config.sample_count),
        sampler=config.sampler,
        steps=config.sample_steps,
        batch=config.batch,
        device=trainer.device,
    )
    path = folder / f"samples-{trainer.step:08d}.png"
    save_png(path, tile(images))
    return path


def with_resume_defaults(resume: str | None, outdir: str | None) -> TrainConfig | None:
    """The options of the run that is to be resumed, as the defaults of the flags given beside it."""
    if resume is None:
        return None
    probe = TrainConfig(data="", resume=resume, outdir=outdir)
    with contextlib.suppress(FileNotFoundError):
        state = resolve_resume(probe)
        if state is not None:
            return dataclasses.replace(options_of(state), resume=resume, outdir=outdir)
    return None
