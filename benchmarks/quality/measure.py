# SPDX-License-Identifier: Apache-2.0
"""Draws the plan's samples and measures them; every number is a line of JSON, and none is measured twice."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softdiff_kernels.data.image_set import ImageSet, load_images
from softdiff_kernels.diffusion import Corruption, time_steps
from softdiff_kernels.diffusion.generate import generate
from softdiff_kernels.evaluation.classifier import Classifier, load_classifier, train_classifier
from softdiff_kernels.evaluation.frechet import FeatureStatistics
from softdiff_kernels.images import save_png, tile
from softdiff_kernels.training.checkpoint import checkpoint_name
from softdiff_kernels.training.weights import LoadedModel, load_model

from .plan import IMAGES, PARTS, SEEDS, Drawing

CPU = torch.device("cpu")
BATCH = 100
SHOWN = 40
COLUMNS = 10


def measure(data: str, test: str, out: Path, part: str) -> None:
    """Lines of out/PART.jsonl, and a grid of each curve's first images in out/grids."""
    out.mkdir(parents=True, exist_ok=True)
    train_set, test_set = load_images(data, need_labels=True), load_images(test)
    classifier = _classifier(out / "classifier.safetensors", train_set)
    reference = classifier.statistics(test_set.pixels)
    lines = out / f"{part}.jsonl"
    done = {(line["name"], line["steps"], line["seed"]) for line in read(lines)}
    with open(lines, "a", encoding="utf-8") as file:

        def write(line: dict[str, Any]) -> None:
            stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
            file.write(json.dumps({**line, "torch": torch.__version__, "utc": stamp}) + "\n")
            file.flush()
            print(line["name"], line["steps"], line["seed"], f"{line['distance']:.3f}", flush=True)

        for seed in range(SEEDS):
            if ("real", 0, seed) not in done:
                chosen = train_set.pixels[seed * IMAGES : (seed + 1) * IMAGES]
                found = classifier.statistics(chosen).distance(reference)
                write({"name": "real", "steps": 0, "seed": seed, "distance": found})
        # Fewer steps first, and all seeds of them, so that what there is can be compared at any time.
        plan = [(steps, drawing) for drawing in PARTS[part] for steps in drawing.steps]
        for steps, drawing in sorted(plan, key=lambda item: item[0]):
            model = _model(drawing.network, drawing.step, out)
            for seed in range(SEEDS):
                if (drawing.name, steps, seed) in done:
                    continue
                write(_draw(drawing, steps, seed, model, classifier, reference, out))


def grid_name(drawing: Drawing, steps: int) -> str:
    """The file of a curve's first images."""
    name = drawing.name.replace(" ", "-").replace("=", "-")
    return f"{name}{'' if drawing.step is None else f'-{drawing.step}'}-{steps:03d}.png"


def read(path: Path) -> list[dict[str, Any]]:
    """The lines that there are."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _classifier(path: Path, images: ImageSet) -> Classifier:
    if path.exists():
        return load_classifier(path)
    assert images.labels is not None
    made = train_classifier(images.pixels, images.labels)
    made.save(path)
    return made


def _model(network: str, step: int | None, out: Path) -> LoadedModel:
    folder = out / network
    return load_model(str(folder if step is None else folder / checkpoint_name("weights", step)), CPU)


def times_at(blur_std: list[float], corruption: Corruption) -> Tensor:
    """The times, from 1 to 0, at which a corruption has these blurs; its first and last are the ends."""
    times = np.interp(blur_std, corruption.blur_std_nodes, corruption.t)
    times[0], times[-1] = 1.0, 0.0
    return torch.from_numpy(times)


def _draw(
    drawing: Drawing,
    steps: int,
    seed: int,
    model: LoadedModel,
    classifier: Classifier,
    reference: FeatureStatistics,
    out: Path,
) -> dict[str, Any]:
    ts = time_steps(steps)
    if drawing.blurs_of is not None:
        other = _model(drawing.blurs_of, drawing.step, out).denoiser.corruption
        ts = times_at([other.blur_std(t) for t in ts.tolist()], model.denoiser.corruption)
    begun = time.perf_counter()
    images = generate(
        model.denoiser,
        model.prior,
        range(seed * IMAGES, (seed + 1) * IMAGES),
        sampler=drawing.sampler,
        ts=ts,
        batch=BATCH,
        device=CPU,
        options=drawing.options,
    )
    seconds = time.perf_counter() - begun
    if seed == 0:
        grids = out / "grids"
        grids.mkdir(exist_ok=True)
        save_png(grids / grid_name(drawing, steps), tile(images[:SHOWN], COLUMNS))
    return {
        "name": drawing.name,
        "network": drawing.network,
        "weights": model.digest,
        "weights_step": model.step,
        "sampler": drawing.sampler,
        "options": drawing.options,
        "prior": model.prior.describe(),
        "steps": steps,
        "seed": seed,
        "images": IMAGES,
        "distance": classifier.statistics(images).distance(reference),
        "classifier": classifier.describe(),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
    }
