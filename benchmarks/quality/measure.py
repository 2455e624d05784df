# SPDX-License-Identifier: Apache-2.0
"""Draws the plan's samples and measures them. A result is a line of JSON; existing ones are not repeated."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softdiff_kernels.data import ImageSet, load_images
from softdiff_kernels.diffusion import Corruption, generate, time_steps
from softdiff_kernels.evaluation import Classifier, load_classifier, train_classifier
from softdiff_kernels.images import save_png, tile
from softdiff_kernels.training.checkpoint import checkpoint_name
from softdiff_kernels.training.weights import LoadedModel, load_model

from .plan import IMAGES, PARTS, SEEDS, Drawing

CPU = torch.device("cpu")
SHOWN = 40
COLUMNS = 10


def measure(data: str, test: str, out: Path, part: str) -> None:
    """Writes lines of out/PART.jsonl, and a grid of each curve's first images into out/grids."""
    grids = out / "grids"
    grids.mkdir(parents=True, exist_ok=True)
    train_set, test_set = load_images(data, need_labels=True), load_images(test)
    classifier = _classifier(out / "classifier.safetensors", train_set)
    reference = classifier.statistics(test_set.pixels)
    results = out / f"{part}.jsonl"
    done = {(line["name"], line["steps"], line["seed"]) for line in read(results)}
    with open(results, "a", encoding="utf-8") as file:

        def write(line: dict[str, Any]) -> None:
            stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
            file.write(json.dumps({**line, "torch": torch.__version__, "utc": stamp}) + "\n")
            file.flush()
            print(line["name"], line["steps"], line["seed"], f"{line['distance']:.3f}", flush=True)

        for seed in range(SEEDS):
            if ("real", 0, seed) not in done:
                chosen = train_set.pixels[seed * IMAGES : (seed + 1) * IMAGES]
                distance = classifier.statistics(chosen).distance(reference)
                write({"name": "real", "steps": 0, "seed": seed, "distance": distance})
        # Fewer steps first, and for all seeds, so that unfinished results can be compared, too.
        plan = [(steps, drawing) for drawing in PARTS[part] for steps in drawing.steps]
        for steps, drawing in sorted(plan, key=lambda item: item[0]):
            model = _model(drawing.network, drawing.step, out)
            for seed in range(SEEDS):
                if (drawing.name, steps, seed) in done:
                    continue
                images, record = _draw(drawing, steps, seed, model, out)
                if seed == 0:
                    save_png(grids / grid_name(drawing, steps), tile(images[:SHOWN], COLUMNS))
                distance = classifier.statistics(images).distance(reference)
                write({**record, "distance": distance, "classifier": classifier.describe()})


def grid_name(drawing: Drawing, steps: int) -> str:
    """The file name of a curve's first images."""
    name = drawing.name.replace(" ", "-").replace("=", "-")
    return f"{name}{'' if drawing.step is None else f'-{drawing.step}'}-{steps:03d}.png"


def read(path: Path) -> list[dict[str, Any]]:
    """The results in a file, none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _classifier(path: Path, images: ImageSet) -> Classifier:
    if path.exists():
        return load_classifier(path)
    assert images.labels is not None
    classifier = train_classifier(images.pixels, images.labels)
    classifier.save(path)
    return classifier


def _model(network: str, step: int | None, out: Path) -> LoadedModel:
    folder = out / network
    return load_model(str(folder if step is None else folder / checkpoint_name("weights", step)), CPU)


def times_at(blur_std: list[float], corruption: Corruption) -> Tensor:
    """The times from 1 to 0 at which a corruption has these blurs; the first is 1 and the last is 0."""
    times = np.interp(blur_std, corruption.blur_std_nodes, corruption.t)
    times[0], times[-1] = 1.0, 0.0
    return torch.from_numpy(times)


def _draw(
    drawing: Drawing, steps: int, seed: int, model: LoadedModel, out: Path
) -> tuple[Tensor, dict[str, Any]]:
    """The images of one curve, number of steps and seed, and how they were made."""
    ts = time_steps(steps)
    if drawing.blurs_of is not None:
        other = _model(drawing.blurs_of, drawing.step, out).denoiser.corruption
        ts = times_at([other.blur_std(t) for t in ts.tolist()], model.denoiser.corruption)
    sampler: dict[str, Any] = {"sampler": drawing.sampler, "options": drawing.options}
    seeds = range(seed * IMAGES, (seed + 1) * IMAGES)
    begun = time.perf_counter()
    images = generate(model.denoiser, model.prior, seeds, ts=ts, **sampler)
    seconds = round(time.perf_counter() - begun, 1)
    network = {"network": drawing.network, "weights": model.digest, "weights_step": model.step}
    size = {"steps": steps, "seed": seed, "images": IMAGES, "prior": model.prior.describe()}
    cost = {"seconds": seconds, "threads": torch.get_num_threads()}
    return images, {"name": drawing.name, **network, **sampler, **size, **cost}
