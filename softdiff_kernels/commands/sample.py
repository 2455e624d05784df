# SPDX-License-Identifier: Apache-2.0
"""`softdiff sample`: images from a weights file, as PNGs, a grid, an .npz, and how they came about."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.class_choice import choose_classes, named_class
from ..data.image_set import load_images
from ..data.labels import MOST_SHOWN, class_table
from ..data.npz import DAMAGED
from ..data.sample_folder import GRID, NPZ_RECORD, RECORD, enter_folder, format_seeds, image_name, parse_seeds
from ..diffusion import PRIORS, generate
from ..errors import UserError, user_errors
from ..files import check_no_folder, save_json, write_atomically
from ..images import save_png, tile
from ..training.device import autocast, pick_device, set_precision
from ..training.distributed import Processes, abandon, join
from ..training.weights import LoadedModel, load_model
from .configs import SampleConfig
from .trajectory import save_trajectory

GRID_MOST = 256
SHOWN = 8


def class_list(text: str | None, model: LoadedModel) -> list[int] | None:
    """The classes that seeds take in turn; None for a model that knows none."""
    if not model.classes:
        if text is not None:
            raise UserError("--classes: the model was trained without classes (softdiff train --conditional)")
        return None
    if text is None:
        return list(range(len(model.classes)))
    return choose_classes(text, model.classes)


def labels_of(seeds: Sequence[int], classes: Sequence[int] | None) -> list[int] | None:
    """Each seed's class: a function of the seed, so that it is the same whatever is drawn beside it."""
    return None if classes is None else [classes[seed % len(classes)] for seed in seeds]


def choose_prior(config: SampleConfig, model: LoadedModel) -> Any:
    """The prior of the weights file, or another one, fitted to --data."""
    if config.prior is None or config.data is None:
        return model.prior
    images = load_images(config.data, model.config.size)
    if images.shape != model.shape:
        way = f"; `softdiff dataset --channels {model.shape[0]}` converts them"
        raise UserError(
            f"--data: expected images of {list(model.shape)}, got {list(images.shape)}"
            f"{way if images.shape[0] != model.shape[0] else ''}"
        )
    return PRIORS[config.prior].fit(images.batches(), model.denoiser.corruption)


def sampler_options(config: SampleConfig) -> dict[str, Any]:
    """What the chosen sampler takes beside the common arguments."""
    taken: dict[str, dict[str, Any]] = {
        "momentum": {"variance": config.variance},
        "ddim": {"eta": config.eta},
    }
    return taken.get(config.sampler, {})


def sample(config: SampleConfig, say: Callable[[str], None] = print) -> list[Path]:
    """`softdiff sample`: one PNG a seed, samples.json and a grid; returns this process's files."""
    seeds = parse_seeds(config.seeds)
    device = pick_device(config.device)
    set_precision(config.precision)
    processes, device = join(config.timeout, device)
    try:
        files = _sample(config, seeds, device, processes, say if processes.first else lambda _: None)
        processes.close()
        return files
    except BaseException:
        abandon()
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
    classes = class_list(config.classes, model)
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
        "device": device,
        "guidance": config.guidance,
        "options": sampler_options(config),
    }
    say(
        f"{len(seeds)} images by the {config.sampler} sampler in {config.steps} steps, from the "
        f"{prior.describe()}, with the weights of step {model.step}"
    )
    drawn = ", ".join(named_class(i, model.classes) for i in (classes or ())[:MOST_SHOWN])
    if classes is not None and len(classes) > MOST_SHOWN:
        drawn += f" and {len(classes) - MOST_SHOWN} more"
    record: dict[str, Any] = {
        "weights": os.path.abspath(config.weights),
        "weights_digest": model.digest,
        "step": model.step,
        "sampler": config.sampler,
        **sampler_options(config),
        "steps": config.steps,
        "prior": prior.describe(),
        "class": None if classes is None else "all" if config.classes is None else drawn,
        "guidance": config.guidance,
        "precision": config.precision,
    }
    if classes is not None:
        record["classes"] = [{"number": i, "name": model.classes[i]} for i in classes]
        for line in class_table(model.classes):
            say(line)
        if config.classes is not None:
            say(f"seeds take in turn: {drawn}")

    # Written before the images: whatever comes, it names all that may be there.
    processes.from_first(lambda: save_json(folder / RECORD, enter_folder(folder, record, seeds)))
    mine = seeds[processes.rank :: processes.world]
    files: list[Path] = []
    kept: list[Tensor] = []
    wanted = len(mine) if config.npz else -(-GRID_MOST // processes.world) if config.grid else 0
    for start in range(0, len(mine), config.batch):
        part = mine[start : start + config.batch]
        bar = processes.first and sys.stderr.isatty()
        with autocast(device, config.precision):
            images = generate(
                model.denoiser,
                prior,
                part,
                batch=config.batch,
                labels=labels_of(part, classes),
                progress=bar,
                **common,
            )
        for seed, image in zip(part, images, strict=True):
            files.append(folder / image_name(seed))
            save_png(files[-1], image)
        # Copies, since a slice would keep, and send, its whole batch.
        kept.extend(image.clone() for image in images[: max(0, wanted - len(kept))])
        done = min((start + len(part)) * processes.world, len(seeds))
        say(f"{done}/{len(seeds)} images in {folder}")
    shown = _in_order(processes.gather(kept), seeds)
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
            generate(
                model.denoiser,
                prior,
                first,
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
    """Refuses to replace an archive that no call of `softdiff sample` wrote: a data set, say."""
    if npz is None or not Path(npz).exists():
        return
    try:
        with np.load(npz, allow_pickle=False) as archive:
            own = NPZ_RECORD in archive.files
    except DAMAGED:
        own = False
    if not own:
        raise UserError(
            f"{npz} exists already, and is not of softdiff sample: choose another --npz, or remove it"
        )


def _in_order(parts: list[list[Tensor]], seeds: Sequence[int]) -> list[Tensor]:
    """The processes' images, each process's those of every so-many-th seed, in the order of the seeds."""
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
    """The images as [N, H, W, C], which other evaluators read as arr_0, and how they were made."""
    pixels = torch.stack(images).permute(0, 2, 3, 1).numpy()
    arrays: dict[str, Any] = {"arr_0": pixels, "seeds": np.array(seeds)}
    arrays[NPZ_RECORD] = np.array(json.dumps({**record, "seeds": format_seeds(seeds)}))
    if labels is not None:
        arrays |= {"labels": np.array(labels), "classes": np.array(classes, dtype=str)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
