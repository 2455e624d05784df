# SPDX-License-Identifier: Apache-2.0
"""`softdiff evaluate`: how far images are from a reference, with all that the number depends on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..data.image_set import ImageSet
from ..errors import UserError
from ..evaluation.classifier import Classifier, load_classifier, train_classifier
from ..evaluation.frechet import FeatureStatistics, kernel_distance
from ..evaluation.inception import RESIZE, Inception, check_channels
from ..evaluation.samples import KNOWN, Samples, samples
from ..files import check_no_folder, save_json, seen_from
from ..training.device import pick_device
from .evaluate_config import EvaluateConfig

Say = Callable[[str], None]

LEAST = {"classifier": 500, "fid": 10_000, "kid": 1_000}
"""Images from which a metric is computed without --num: several for each of 64 or 2048 features; for
kid, which has no bias, the size of its subsets."""
USUAL_FID = 50_000
CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}
NAMES = {
    "classifier": "classifier Fréchet distance",
    "fid": "FID (Fréchet inception distance)",
    "kid": "KID (kernel inception distance)",
}


def evaluate(config: EvaluateConfig, say: Say = print) -> list[dict[str, Any]]:
    """Computes, prints and, if asked, writes each metric; returns the results as the JSON has them."""

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    for flag, path in (("--out", config.out), ("--classifier", config.classifier)):
        if path is not None and not Path(path).parent.is_dir():
            raise UserError(f"{flag}: {Path(path).parent}: no such folder")
        check_no_folder(flag, path)
    pick_device(config.device)  # whether or not the metric makes use of it
    reference = config.load(config.reference)
    found = samples(config, progress)
    _check(config, found, reference)
    inception = _inception(config, reference)
    classifier = _classifier(config, reference, progress) if "classifier" in config.metrics else None
    pixels = found.pixels()
    common = _common(config, found, ImageSet(pixels, found.name), reference)
    results: list[dict[str, Any]] = []
    for extractor in (classifier, inception):
        wanted = [m for m in config.metrics if (m == "classifier") == isinstance(extractor, Classifier)]
        if extractor is None or not wanted:
            continue
        ours, theirs = (_features(extractor, x, progress) for x in (pixels, reference.pixels))
        for metric in wanted:
            result = {**_measured(metric, ours, theirs, config.seed), **_source(extractor), **common}
            if metric != "classifier" and isinstance(extractor, Inception) and not extractor.published:
                result["metric"] += " with other weights"
            results.append(result)
    for result in results:
        say(json.dumps(result) if config.json else described(result))
    if config.out is not None:
        save_json(Path(config.out), results)
    return results


def _check(config: EvaluateConfig, found: Samples, reference: ImageSet) -> None:
    if found.shape != reference.shape:
        ours, theirs = _shape(found.shape), _shape(reference.shape)
        raise UserError(
            f"expected images like the reference's ({theirs} in {config.reference}), got {ours} in "
            f"{found.name}{_way_out(found.shape, reference.shape, fixed=config.weights is not None)}"
        )
    for metric in config.metrics:
        if metric != "classifier":
            check_channels(found.shape[0])
        fewest = min(found.count, len(reference.pixels))
        if fewest < 2:
            raise UserError(f"--metric {metric} takes at least 2 images, got {fewest}")
        if config.num is None and fewest < LEAST[metric]:
            whose = "--reference" if fewest == len(reference.pixels) else "samples"
            wanted = f"{LEAST[metric]} images or more"
            raise UserError(
                f"--metric {metric} takes {wanted} on both sides, got {fewest} ({whose}); "
                f"--num {found.count} computes it all the same, and says so"
            )


def _way_out(ours: tuple[int, int, int], theirs: tuple[int, int, int], *, fixed: bool = False) -> str:
    """The options that bring images of two shapes to one; fixed: ours cannot be changed."""
    ways = []
    if ours[0] != theirs[0]:
        both = {ours[0]} if fixed else {min(ours[0], theirs[0]), 3}
        ways += [f"--channels {c} compares all as {CHANNELS[c]}" for c in sorted(both) if c in CHANNELS]
    if ours[1:] != theirs[1:]:
        height, width = ours[1:]
        size = f"{height} {width} brings all to {height} x {width}" if fixed else "N brings all to N x N"
        ways.append(f"--image-size {size}")
    return "".join(f"; {way}" for way in ways)


def _shape(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{channels} channel{'s' * (channels != 1)} of {height} x {width}"


def _inception(config: EvaluateConfig, reference: ImageSet) -> Inception | None:
    if config.feature_extractor_weights is None or not {"fid", "kid"} & set(config.metrics):
        return None
    return Inception(config.feature_extractor_weights, pick_device(config.device))


def _classifier(config: EvaluateConfig, reference: ImageSet, say: Say) -> Classifier:
    """The classifier in --classifier, if that file is there; else one trained on --labelled."""
    file = None if config.classifier is None else Path(config.classifier)
    labelled = None if config.labelled is None else config.load(config.labelled)
    if file is not None and file.exists():
        found = load_classifier(file)
        if labelled is not None and labelled.digest() != found.data_digest:
            raise UserError(f"{file} was trained on {found.data} ({found.data_digest}), not on --labelled")
    else:
        source = config.labelled or config.reference
        data = reference if labelled is None else labelled
        if data.labels is None:
            why = f" ({data.unlabelled})" if data.unlabelled else ""
            raise UserError(
                f"{source}: has no labels{why}, which --metric classifier trains its classifier on; "
                "--labelled names a labelled data set, --classifier a trained classifier"
            )
        _check_classifier_shape(data.shape, reference, source)
        found = train_classifier(
            *(data.pixels, data.labels),
            epochs=config.epochs,
            seed=config.seed,
            say=say,
            name=data.name,
            classes=data.classes or None,
        )
        found.check_useful()  # before it is kept
        if file is not None:
            found.save(file)
    found.check_useful()
    _check_classifier_shape(found.shape, reference, str(file))
    return found


def _check_classifier_shape(shape: tuple[int, int, int], reference: ImageSet, source: str) -> None:
    if shape != reference.shape:
        theirs, ours = _shape(reference.shape), _shape(shape)
        wanted = f"a classifier of images like the reference's ({theirs})"
        ways = _way_out(shape, reference.shape, fixed=True)
        raise UserError(f"expected {wanted}, got {ours} ({source}){ways}")


def _features(extractor: Classifier | Inception, pixels: Tensor, say: Say) -> Tensor:
    if isinstance(extractor, Inception):
        return extractor.features(pixels, say)
    return extractor.features(pixels)


def _distance(metric: str, ours: Tensor, theirs: Tensor, seed: int) -> tuple[float, float | None]:
    if metric == "kid":
        return kernel_distance(ours, theirs, seed=seed)
    return FeatureStatistics().update(ours).distance(FeatureStatistics().update(theirs)), None


def _measured(metric: str, ours: Tensor, theirs: Tensor, seed: int) -> dict[str, Any]:
    """The number, and beside it what as many real images get: the reference split in two."""
    value, spread = _distance(metric, ours, theirs, seed)
    result: dict[str, Any] = {"metric": NAMES[metric], "value": value, "feature_dimension": ours.shape[1]}
    if spread is not None:
        result["std_over_subsets"] = spread
    part = min(len(ours), len(theirs) // 2)
    if part >= 2:
        order = torch.randperm(len(theirs), generator=torch.Generator().manual_seed(seed))
        result["floor"] = _distance(metric, theirs[order[:part]], theirs[order[part:]], seed)[0]
        result["floor_images"] = [part, len(theirs) - part]
    notes = []
    if min(len(ours), len(theirs)) < LEAST[metric]:
        notes.append(f"fewer than {LEAST[metric]} images: not to be compared with figures of more")
    elif metric == "fid" and len(ours) < USUAL_FID:
        notes.append(f"published FIDs are of {USUAL_FID} images; fewer come out larger")
    result["notes"] = notes
    return result


def _source(extractor: Classifier | Inception) -> dict[str, Any]:
    if isinstance(extractor, Inception):
        return {
            "features": extractor.describe(),
            "features_digest": extractor.sha256,
        }
    return {
        "features": extractor.describe(),
        "features_digest": extractor.digest(),
        "held_out_accuracy": extractor.accuracy,
    }


def _common(config: EvaluateConfig, found: Samples, ours: ImageSet, reference: ImageSet) -> dict[str, Any]:
    size = " x ".join(map(str, reference.shape[1:]))
    resized = f"{size}, none resized"
    if config.size is not None:
        resized = f"{size}, by --image-size: Lanczos down, bicubic up, centre square"
    if config.channels is not None:
        resized += f"; {CHANNELS[config.channels]}, by --channels"
    return {
        "samples": found.count,
        "samples_source": seen_from(Path.cwd(), found.name),
        "samples_digest": ours.digest(),
        **{name: found.made.get(name) for name in KNOWN},
        "reference": len(reference.pixels),
        "reference_source": seen_from(Path.cwd(), config.reference),
        "reference_digest": reference.digest(),
        "channels": reference.shape[0],
        "resize": resized,
        "seed": config.seed,
        "softdiff_kernels": __version__,
    }


def described(result: dict[str, Any]) -> str:
    """A result as lines: the number, then all that it depends on."""

    def known(name: str) -> str:
        return "unknown" if result[name] is None else str(result[name])

    spread = f" ± {result['std_over_subsets']:.6g} over subsets" if "std_over_subsets" in result else ""
    lines = [f"{result['metric']}: {result['value']:.6g}{spread}"]
    if "floor" in result:
        part, rest = result["floor_images"]
        floor = f"{result['floor']:.6g} ({part} images of the reference against its other {rest})"
        lines.append(f"  floor      {floor}")
    ours = f"{result['samples']} of {result['samples_source']} ({result['samples_digest']})"
    lines.append(f"  samples    {ours}")
    weights = [f"weights {known('weights')}", f"step {known('step')}", f"prior {known('prior')}"]
    lines.append(f"  made by    {', '.join(weights)}")
    sampler = [f"{name} {known(name)}" for name in ("sampler", "steps", "seeds")]
    sampler += [f"{name} {result[name]}" for name in ("guidance", "class") if result[name] is not None]
    lines.append(f"             {', '.join(sampler)}")
    reference = f"{result['reference']} of {result['reference_source']} ({result['reference_digest']})"
    lines.append(f"  reference  {reference}")
    lines.append(f"  features   {result['features']}")
    inception = "held_out_accuracy" not in result
    grey = ", grey repeated to RGB" if inception and result["channels"] == 1 else ""
    lines.append(f"  size       {result['resize']}{f'; then {RESIZE}{grey}' if inception else ''}")
    lines += [f"  note       {note}" for note in result["notes"]]
    return "\n".join(lines)
