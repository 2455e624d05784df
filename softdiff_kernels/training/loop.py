# SPDX-License-Identifier: Apache-2.0
"""A training run, from its options to the last checkpoint: `train` starts or resumes it, `_run` is the
loop."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import UserError, user_errors
from ..images import save_png, tile, to_uint8
from ..progress import Progress, StopFlag, stop_on_signals
from .build import check_data_exists, fit_prior, load_data, make_corruption, saved_process
from .checkpoint import (
    Saver,
    checkpoint_name,
    find,
    load_checkpoint,
    load_meta,
    new_folder,
    newest_readable,
    next_run_folder,
    remove_after,
    remove_partial,
    weights_kind,
)
from .config import TrainConfig, check_resumed
from .config_file import save_yaml, to_yaml
from .distributed import (
    Processes,
    join,
    pick_device,
    rank,
    set_precision,
    world_size,
)
from .metrics import Log, Meter, drop_stats_after, rename_old_stats
from .trainer import SHOWN_TIMES, Trainer


@dataclass(frozen=True)
class RunResult:
    """How a run ended: its folder, its newest weights file, the step, and the signal that stopped it before
    its last step, if one did. first: whether this is the process that prints."""

    folder: Path
    weights: Path
    step: int
    stopped_by: int | None = None
    first: bool = True


def train(config: TrainConfig) -> RunResult:
    """Trains to the last step, or until a signal; either way the run ends with a checkpoint.

    Under torchrun each process takes its share of every batch. Only the first one writes files.
    """
    device = pick_device(config.device)
    set_precision(config.precision)
    processes, device = join(config.timeout, device)
    with processes:
        state = processes.from_first(lambda: state_to_resume(config.resume, config.outdir))
        if state is not None:
            _check_seen(state, processes)
            check_resumed(options_of(state), config)
        config = config.resolved()
        config.batch_split(processes.world)  # a batch that cannot be divided is refused before any work
        processes.agree({n: v for n, v in vars(config).items() if n not in OF_ONE_MACHINE})
        if state is None:
            trainer, folder = _start(config, device, processes)
        else:
            trainer, folder = _resume(config, state, device, processes)
        processes.advice = f"continue with softdiff train --resume; the checkpoints are in {folder}"
        corruption = trainer.denoiser.corruption.to_dict()
        processes.agree({"corruption": corruption, "digest of the images": trainer.data["digest"]})
        if processes.first:
            remove_partial(folder)
            save_yaml(folder / "config.yaml", config.with_absolute_paths(Path.cwd()))
        with closing(trainer), stop_on_signals(quiet=not processes.first) as stop:
            return _run(trainer, folder, stop, state)


OF_ONE_MACHINE = frozenset(
    ("data", "outdir", "resume", "config", "preset", "desc", "schedule", "corruption", "device", "progress")
)
"""Options that may differ between the processes of a run. Of the files that they name the content is
compared."""


_SHARED = (
    "to resume, keep the run on a file system that all machines share, or copy its folder to each of them"
)


def _check_seen(state: Path, processes: Processes) -> None:
    """UserError, in all processes, where some do not see the state: their machine has another file system."""
    seen = processes.gather((state.is_file(), socket.gethostname()))
    blind = [f"process {number} on {host}" for number, (sees, host) in enumerate(seen) if not sees]
    if blind:
        raise UserError(
            f"{state}: expected a file that all processes see, not seen by {', '.join(blind)}; {_SHARED}"
        )


def dry_run(config: TrainConfig) -> str:
    """The resolved options as YAML and how the batch is divided; UserError for what a run would refuse."""
    rank()  # a wrong RANK is a UserError
    state = state_to_resume(config.resume, config.outdir, options_only=True)
    if state is not None:
        check_resumed(options_of(state), config)
    config = config.resolved()
    return f"{to_yaml(config)}# {config.describe_batch(world_size())}"


def resumed_options(resume: str | None, outdir: str | None) -> TrainConfig | None:
    """The options of the run to be resumed, which the flags then override; None where there is no such
    run."""
    try:
        state = state_to_resume(resume, outdir, options_only=True)
    except FileNotFoundError:
        return None
    if state is None:
        return None
    return replace(options_of(state), allow_changes=False, dry_run=False, resume=resume, outdir=outdir)


def state_to_resume(resume: str | None, outdir: str | None, *, options_only: bool = False) -> Path | None:
    """The state file that --resume stands for, if any: of a folder, its newest that can be read.

    options_only: reads no tensors, and does not warn of damaged files; for a first look at the options.
    """
    if resume is None:
        return None
    if resume != "auto" and rank() > 0 and not Path(resume).exists():
        raise UserError(
            f"{resume}: process {rank()} on {socket.gethostname()} sees no such file or folder; {_SHARED}"
        )
    warn, read = (lambda _: None, load_meta) if options_only else (_warn, load_checkpoint)
    if resume == "auto":
        if outdir is None:
            raise UserError("--resume auto: expected --outdir with it, the folder with the states")
        return newest_readable(Path(outdir), "state", warn, read)
    file = find(resume, "state")
    return newest_readable(file.parent, "state", warn, read) if Path(resume).is_dir() else file


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def options_of(state: Path) -> TrainConfig:
    """The options in a training state. Relative paths are those of the folder in which the run was started;
    they are made absolute if that is another folder than the current one."""
    try:
        with user_errors(f"{state}: "):
            meta = load_meta(state, "state")
            started_in = meta.get("data", {}).get("started_in")
            config = TrainConfig.from_dict(meta["config"])
            if started_in in (None, os.getcwd()):
                return config
            return config.with_absolute_paths(Path(started_in))
    except (KeyError, TypeError) as error:
        raise UserError(f"{state}: expected the options of the run in it, found none") from error


def run_name(config: TrainConfig, data: str) -> str:
    """The name of a numbered run folder, after its number: photos-cifar10-bs128-bf16, for example."""
    preset = config.preset if config.preset != data else None
    return "-".join(filter(None, (data, preset, f"bs{config.batch}", config.precision, config.desc)))


def _start(config: TrainConfig, device: torch.device, processes: Processes) -> tuple[Trainer, Path]:
    """A new run and its folder."""
    images = load_data(config)
    corruption, schedule = make_corruption(config, images)
    prior = fit_prior(config.prior, images, corruption)
    trainer = Trainer(config, images, corruption, prior, device, processes)

    def make_folder() -> Path:
        if config.outdir:
            folder = new_folder(config.outdir)
            rename_old_stats(folder)
        else:
            folder = next_run_folder(run_name(config, images.name))
        if schedule is not None:
            with user_errors(f"cannot write {folder / 'schedule.json'}: "):
                schedule.save(folder / "schedule.json")
        columns = min(16, len(images.pixels))
        save_png(folder / "real.png", tile(images.pixels[: columns * columns], columns))
        corrupted = to_uint8(trainer.corrupted_examples())
        save_png(folder / "corruption.png", tile(corrupted, len(SHOWN_TIMES)))
        return folder

    return trainer, processes.from_first(make_folder)


def _resume(
    config: TrainConfig, state: Path, device: torch.device, processes: Processes
) -> tuple[Trainer, Path]:
    """A resumed run and its folder: everything but the images comes from the state."""
    checkpoint = load_checkpoint(state, "state")
    saved_data = checkpoint.meta.get("data", {})
    check_data_exists(config.data, saved_data.get("started_in"))
    images = load_data(config)
    with user_errors(f"{state}: "):
        if config.conditional:
            images = images.numbered_as(checkpoint.meta.get("classes", ()), saved_data.get("digest"))
        corruption, prior = saved_process(checkpoint)
        shape = checkpoint.meta.get("shape")
        if corruption.image_size != images.shape[1:] or list(images.shape) != shape:
            raise UserError(
                f"{state}: expected images of {shape} (channels, height, width), got {list(images.shape)}"
            )
    trainer = Trainer(config, images, corruption, prior, device, processes)
    if saved_data.get("digest") != trainer.data["digest"] and not config.allow_changes:
        raise UserError(
            f"{state}: expected the images that the run was trained on ({saved_data.get('count')} of "
            f"{saved_data.get('name')}), got {trainer.data['count']} of {trainer.data['name']} with other "
            "pixels or labels; --allow-changes resumes with them"
        )
    trainer.load_state(checkpoint, state)
    if config.steps < trainer.step:
        raise UserError(f"--steps: expected at least {trainer.step}, the step of {state}, got {config.steps}")

    def make_folder() -> Path:
        folder = state.parent
        if config.outdir is not None and Path(config.outdir).resolve() != folder.resolve():
            folder = new_folder(config.outdir)
            rename_old_stats(folder)
            return folder
        drop_stats_after(folder, trainer.step)
        # This run repeats their steps, or takes another course.
        if removed := remove_after(folder, trainer.step):
            _warn(f"resuming from step {trainer.step}: removed {', '.join(p.name for p in removed)}")
        return folder

    return trainer, processes.from_first(make_folder)


def _run(trainer: Trainer, folder: Path, stop: StopFlag, state: Path | None) -> RunResult:
    """The loop: steps, and at their intervals lines of metrics, checkpoints and sample grids."""
    config, processes = trainer.config, trainer.processes
    progress = Progress(config.steps, trainer.step, bar=config.progress, quiet=not processes.first)
    progress.say(_summary(trainer, folder, state))
    warm = processes.from_first(trainer.warm_up)
    if not processes.first:  # what the first has compiled is on the disk
        trainer.warm_up()
    if warm.compiled:
        progress.say(str(warm))
    meter = Meter(trainer)
    saved_step = -1
    log = Log(folder, trainer)
    stopped = failed = False
    try:
        with Saver(folder, config.keep) as saver:
            if state is not None and state.parent.resolve() == folder.resolve():
                saved_step = trainer.step
                if processes.first and not all(path.exists() for path in _weights_files(trainer, folder)):
                    _save(trainer, folder, saver)
            while trainer.step < config.steps and not stopped:
                meter.add(trainer.advance())
                progress.advance()
                saver.check()
                stopped = processes.any(stop.signal is not None)
                last = trainer.step == config.steps or stopped
                save = trainer.step % config.save_every == 0 or last
                if trainer.step % config.log_every == 0 or save:
                    line = meter.line(saved_step)
                    if processes.first:
                        log.write(line)
                    text = f"loss {line['loss']:.4g}, {line['images_per_second']:.0f} images/s"
                    progress.numbers(text, f"step {trainer.step}/{config.steps}: {text}")
                with meter.paused():
                    if save:
                        if processes.first:
                            _save(trainer, folder, saver)
                        saved_step = trainer.step
                    draw = trainer.step % config.sample_every == 0 or last
                    if config.sample_count and draw and not stopped:
                        grid = _sample_grid(trainer, folder, log, stop)
                        stopped = grid is None
                        if grid is not None:
                            progress.say(f"samples in {grid}, from the {trainer.prior.describe()}")
            if saved_step != trainer.step and processes.first:
                _save(trainer, folder, saver)
        # No process ends before the last checkpoint is written: torchrun ends a job with its first process.
        processes.any(False)
    except BaseException:
        failed = True
        raise
    finally:
        progress.close()
        log.close(failed=failed)
    weights = folder / checkpoint_name("weights", trainer.step)
    stopped_by = None
    if trainer.step < config.steps:  # the signal may have reached another process only
        stopped_by = stop.signal if stop.signal is not None else signal.SIGTERM
    return RunResult(folder, weights, trainer.step, stopped_by, processes.first)


def _summary(trainer: Trainer, folder: Path, state: Path | None) -> str:
    """The first line of a run."""
    config = trainer.config
    begin = f"resuming {state}" if state else "starting"
    parameters = sum(p.numel() for p in trainer.model.parameters())
    return (
        f"{begin} in {folder}: {len(trainer.pixels)} images {list(trainer.shape)}, network of "
        f"{parameters / 1e6:.2f} M parameters, {trainer.device}, {config.precision}, steps {trainer.step} to "
        f"{config.steps}, {config.describe_batch(trainer.processes.world)}"
    )


def _weights_files(trainer: Trainer, folder: Path) -> list[Path]:
    """The weights files of the current step, one for each average."""
    kinds = [weights_kind(decay if number else None) for number, decay in enumerate(trainer.config.ema)]
    return [folder / checkpoint_name(kind, trainer.step) for kind in kinds]


def _save(trainer: Trainer, folder: Path, saver: Saver) -> None:
    # The state first: after a kill before the weights the run can be resumed, and then writes them.
    files = {folder / checkpoint_name("state", trainer.step): trainer.state()}
    for number, path in enumerate(_weights_files(trainer, folder)):
        files[path] = trainer.weights(number)
    saver.save(files)


class _Stopped(Exception):
    """A signal arrived while a grid was drawn."""


def _sample_grid(trainer: Trainer, folder: Path, log: Log, stop: StopFlag) -> Path | None:
    """Draws the grid: each process some of the images, the first one writes the file. None after a signal."""

    def check_signal() -> None:
        if stop.signal is not None:
            raise _Stopped

    processes, count = trainer.processes, trainer.config.sample_count
    try:
        images = trainer.sample(range(processes.rank, count, processes.world), check_signal)
    except _Stopped:
        images = torch.empty(0)
    # All or none: a signal reaches the processes at different times.
    if processes.any(stop.signal is not None):
        return None
    parts = processes.gather(images)
    path = folder / f"samples-{trainer.step:08d}.png"
    if processes.first:
        grid = torch.empty(count, *trainer.shape, dtype=torch.uint8)
        for number, part in enumerate(parts):
            grid[number :: processes.world] = part
        sheet = tile(grid)
        save_png(path, sheet)
        log.picture("samples", sheet, trainer.step)
    return path
