# SPDX-License-Identifier: Apache-2.0
"""A whole training run: from the options to the last checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..data.image_set import ImageSet, load_images
from ..diffusion import PRIORS, SAMPLING_SEED, Corruption, generate, prior_from_state
from ..errors import UserError, user_errors
from ..files import HF, save_text, seen_from
from ..images import save_png, tile, to_uint8
from ..noise import NoiseKey
from ..progress import Progress, StopFlag, stop_on_signals
from .checkpoint import (
    checkpoint_name,
    find,
    load_checkpoint,
    load_meta,
    newest_whole,
    prune,
    remove_after,
    remove_partial,
    weights_kind,
)
from .config import SCHEDULES, TrainConfig, check_resumed
from .corruptions import make_corruption
from .device import autocast, pick_device, set_precision
from .distributed import Processes, abandon, join
from .meter import Meter
from .metrics import Log
from .options import describe, share, to_yaml
from .run_folder import drop_stats_after, fresh_folder, next_run_folder
from .trainer import Trainer

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


def resolve_resume(config: TrainConfig, *, look: bool = False) -> Path | None:
    """The state file that `--resume` means, if it means one: of a folder, its newest that is whole.

    look: for a first look at its options, which reads no tensors and says nothing of what is damaged.
    """
    if config.resume is None:
        return None
    how = (lambda _: None, load_meta) if look else (_warn, load_checkpoint)
    if config.resume == "auto":
        if config.outdir is None:
            raise UserError("--resume auto: expected --outdir with it, to look for the newest state in")
        return newest_whole(Path(config.outdir), "state", *how)
    named = find(config.resume, "state")
    return newest_whole(named.parent, "state", *how) if Path(config.resume).is_dir() else named


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def options_of(state: Path) -> TrainConfig:
    """The options that a training state was saved with; relative places are of the folder that the run was
    started in."""
    try:
        with user_errors(f"{state}: "):
            meta = load_meta(state, "state")
            started = meta.get("data", {}).get("started_in")
            config = TrainConfig.from_dict(meta["config"])
            return config if started in (None, os.getcwd()) else placed(config, Path(started))
    except (KeyError, TypeError) as error:
        raise UserError(f"{state}: expected the run's options in it, found none") from error


def placed(config: TrainConfig, folder: Path) -> TrainConfig:
    """The options with the places of images and schedule as any folder sees them: relative ones are of
    `folder`, and stay as they are where nothing is there."""
    schedule = config.schedule
    if schedule not in SCHEDULES:
        schedule = seen_from(folder, schedule)
    return replace(config, data=seen_from(folder, config.data), schedule=schedule)


def load_data(config: TrainConfig) -> ImageSet:
    """The run's images; UserError where they lack what the options ask for."""
    images = load_images(config.data, config.size, need_labels=config.conditional)
    found = images.shape[0]
    if config.channels not in (None, found):
        preset = f" (preset {config.preset})" if config.preset else ""
        raise UserError(
            f"{config.data}: expected images of {config.channels} channels{preset}, got {found}; convert "
            f"them by `softdiff dataset --channels {config.channels}`, or give --channels {found}"
        )
    return images


def _begin(config: TrainConfig, device: torch.device, processes: Processes) -> tuple[Trainer, Path]:
    """A new run: its schedule, prior and folder."""
    images = load_data(config)
    corruption, schedule = make_corruption(config, images)
    prior = PRIORS[config.prior].fit(images.batches(), corruption)
    trainer = Trainer(config, images, corruption, prior, device, processes)

    def write() -> Path:
        outdir = config.outdir
        folder = fresh_folder(outdir) if outdir else next_run_folder(run_name(config, images.name))
        if schedule is not None:
            with user_errors(f"cannot write {folder / 'schedule.json'}: "):
                schedule.save(folder / "schedule.json")
        columns = min(16, len(images.pixels))
        save_png(folder / "real.png", tile(images.pixels[: columns * columns], columns))
        save_png(folder / "corruption.png", tile(corruption_sheet(images, corruption), len(SHOWN_TIMES)))
        return folder

    return trainer, processes.from_first(write)


def run_name(config: TrainConfig, data: str) -> str:
    """What a numbered run folder is called after its number: photos-cifar10-bs128-bf16, say."""
    preset = config.preset if config.preset != data else None
    return "-".join(filter(None, (data, preset, f"bs{config.batch}", config.precision, config.desc)))


def _check_there(data: str, started: str | None) -> None:
    """Refuses a resumed run's images where they are not to be found, with the folder it was started in."""
    if data.startswith(HF) or data == "digits" or Path(data).exists():
        return
    elsewhere = started not in (None, os.getcwd())
    where = f" here, nor in {started}, where the run was started" if elsewhere else ""
    raise UserError(f"{data}: no such file or folder{where}; give the place of the run's images by --data")


def _go_on(
    config: TrainConfig, state: Path, device: torch.device, processes: Processes
) -> tuple[Trainer, Path]:
    """A resumed run: all but the images comes from the state file."""
    checkpoint = load_checkpoint(state, "state")
    check_resumed(options_of(state), config)
    _check_there(config.data, checkpoint.meta.get("data", {}).get("started_in"))
    images = load_data(config)
    with user_errors(f"{state}: "):
        if config.conditional:
            digest = checkpoint.meta.get("data", {}).get("digest")
            images = images.numbered_as(checkpoint.meta.get("classes", ()), digest)
        corruption = Corruption.from_dict(checkpoint.meta.get("corruption", {}))
        prior = prior_from_state(checkpoint.meta.get("prior", {}), checkpoint.part("prior"))
        if corruption.image_size != images.shape[1:] or list(images.shape) != checkpoint.meta.get("shape"):
            raise UserError(
                f"{state}: expected images of {checkpoint.meta.get('shape')} (channels, height, width), "
                f"got {list(images.shape)}"
            )
    trainer = Trainer(config, images, corruption, prior, device, processes)
    trainer.load_state(checkpoint, state)
    if config.steps < trainer.step:
        raise UserError(f"--steps: expected at least {trainer.step}, where {state} is, got {config.steps}")

    def write() -> Path:
        folder = state.parent
        if config.outdir is not None and Path(config.outdir).resolve() != folder.resolve():
            return fresh_folder(config.outdir)
        drop_stats_after(folder, trainer.step)
        # They are of steps that this run makes again, or of a way that it does not go.
        if later := remove_after(folder, trainer.step):
            _warn(f"going on from step {trainer.step}: removed {', '.join(p.name for p in later)}")
        return folder

    return trainer, processes.from_first(write)


def train(config: TrainConfig) -> RunResult:
    """`softdiff train`: trains to the last step, or until a signal; either way ends with a checkpoint.

    Under torchrun, each of its processes takes its share of every batch.
    """
    config = config.resolved()
    device = pick_device(config.device)
    set_precision(config.precision)
    processes, device = join(config.timeout, device)
    try:
        share(config, processes.world)
        state = processes.from_first(lambda: resolve_resume(config))
        begin = _begin if state is None else partial(_go_on, state=state)
        trainer, folder = begin(config, device=device, processes=processes)
        if processes.first:
            remove_partial(folder)
            save_text(folder / "config.yaml", to_yaml(placed(config, Path.cwd())))
        with stop_on_signals(quiet=not processes.first) as stop:
            result = _run(trainer, folder, stop, state)
        processes.close()
        return result
    except BaseException:
        abandon()
        raise


def _run(trainer: Trainer, folder: Path, stop: StopFlag, state: Path | None) -> RunResult:
    config, processes = trainer.config, trainer.processes
    progress = Progress(config.steps, trainer.step, bar=config.progress, quiet=not processes.first)
    count, parameters = len(trainer.pixels), sum(p.numel() for p in trainer.model.parameters())
    begun = f"going on from {state}" if state else "starting"
    progress.say(
        f"{begun} in {folder}: {count} images {list(trainer.shape)}, network of {parameters / 1e6:.2f} M "
        f"parameters, {trainer.device}, {config.precision}, steps {trainer.step} to {config.steps}, "
        f"{describe(config, processes.world)}"
    )
    meter = Meter(trainer.device, processes)
    saved = -1
    if state is not None and state.parent.resolve() == folder.resolve():
        saved = trainer.step
        if processes.first and not all(path.exists() for path in _weights_files(trainer, folder)):
            _save(trainer, folder)
    log = Log(folder, config, trainer.step, quiet=not processes.first)
    stopped = failed = False
    try:
        while trainer.step < config.steps and not stopped:
            meter.add(trainer.step + 1, trainer.advance())
            progress.advance()
            stopped = processes.any(stop.signal is not None)
            last = trainer.step == config.steps or stopped
            if trainer.step % config.log_every == 0 or last or trainer.step % config.save_every == 0:
                line = meter.line(trainer, saved)
                if processes.first:
                    log.write(line)
                text = f"loss {line['loss']:.4g}, {line['images_per_second']:.0f} images/s"
                progress.numbers(text, f"step {trainer.step}/{config.steps}: {text}")
            with meter.paused():
                if trainer.step % config.save_every == 0 or last:
                    if processes.first:
                        _save(trainer, folder)
                    saved = trainer.step
                drawn = trainer.step % config.sample_every == 0 or last
                if config.sample_count and not stopped and drawn:
                    path = _sample_grid(trainer, folder, log, stop)
                    stopped = path is None
                    if path is not None:
                        progress.say(f"samples in {path}, from the {trainer.prior.describe()}")
        if saved != trainer.step and processes.first:
            _save(trainer, folder)
    except BaseException:
        failed = True
        raise
    finally:
        progress.close()
        log.close(failed=failed)
    weights = folder / checkpoint_name("weights", trainer.step)
    finished = trainer.step >= config.steps
    number = stop.signal if stop.signal is not None else signal.SIGTERM
    return RunResult(folder, weights, trainer.step, None if finished else number)


def _weights_files(trainer: Trainer, folder: Path) -> list[Path]:
    """Those of the step, one for each average."""
    kinds = [weights_kind(decay if number else None) for number, decay in enumerate(trainer.config.ema)]
    return [folder / checkpoint_name(kind, trainer.step) for kind in kinds]


def _save(trainer: Trainer, folder: Path) -> None:
    # The state first: a kill before the weights leaves a run that can be gone on with, and makes them then.
    trainer.state().save(folder / checkpoint_name("state", trainer.step))
    for number, path in enumerate(_weights_files(trainer, folder)):
        trainer.weights(number).save(path)
    prune(folder, trainer.config.keep)


class _Left(Exception):
    """A grid that is not drawn to its end."""


def _sample_grid(trainer: Trainer, folder: Path, log: Log, stop: StopFlag) -> Path | None:
    """Draws the grid, each process its part of the images; the first one writes it; None after a signal."""

    def look() -> None:
        if stop.signal is not None:
            raise _Left

    config, processes = trainer.config, trainer.processes
    seeds = list(range(config.sample_count))
    mine = slice(processes.rank, None, processes.world)
    images = torch.empty(0)
    with autocast(trainer.device, config.precision), contextlib.suppress(_Left):
        images = generate(
            trainer.averaged,
            trainer.prior,
            seeds[mine],
            sampler=config.sampler,
            steps=config.sample_steps,
            batch=trainer.each,
            device=trainer.device,
            labels=[seed % len(trainer.classes) for seed in seeds[mine]] if trainer.classes else None,
            on_step=look,
        )
    # All or none: a signal reaches the processes one after the other.
    if processes.any(stop.signal is not None):
        return None
    parts = processes.gather(images)
    path = folder / f"samples-{trainer.step:08d}.png"
    if processes.first:
        whole = torch.empty(len(seeds), *trainer.shape, dtype=torch.uint8)
        for rank, part in enumerate(parts):
            whole[rank :: processes.world] = part
        sheet = tile(whole)
        save_png(path, sheet)
        log.picture("samples", sheet, trainer.step)
    return path


def check_dry_run(config: TrainConfig) -> None:
    """What a resumed run would refuse of the options."""
    state = resolve_resume(config, look=True)
    if state is not None:
        check_resumed(options_of(state), config)


def with_resume_defaults(resume: str | None, outdir: str | None) -> TrainConfig | None:
    """The options of the run that is to be resumed, as the defaults of the flags given beside it."""
    if resume is None:
        return None
    probe = TrainConfig(data="", resume=resume, outdir=outdir)
    with contextlib.suppress(FileNotFoundError):
        state = resolve_resume(probe, look=True)
        if state is not None:
            options = replace(options_of(state), allow_changes=False, dry_run=False)
            return replace(options, resume=resume, outdir=outdir)
    return None
