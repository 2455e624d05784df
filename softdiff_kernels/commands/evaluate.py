# SPDX-License-Identifier: Apache-2.0
"""`softdiff evaluate`: how far images are from a reference, and everything that the number depends on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .._version import __version__
from ..data import SOURCE_LIST, ImageSet, check_sides, height_and_width, load_images
from ..data.choices import format_seeds, parse_seeds
from ..errors import UserError, need
from ..evaluation import METRICS, Classifier, load_classifier, train_classifier
from ..evaluation.inception import INCEPTION_FILE, RELEASE, RESIZE, Inception, check_channels
from ..files import PathText, check_no_folder, save_json, seen_from
from ..training.config import SamplerName
from ..training.distributed import pick_device

if TYPE_CHECKING:
    from ..evaluation.samples import Samples

Say = Callable[[str], None]
CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}
_METRIC_HELP = ", ".join(f"{name} ({metric.summary})" for name, metric in METRICS.items())


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure how far images are from a reference data set. No weights are ever downloaded."""

    reference: PathText = field(metadata={"help": f"Data set to compare with: {SOURCE_LIST}."})
    images: PathText | None = field(
        default=None,
        metadata={
            "help": f"Images to measure: {SOURCE_LIST}. A folder, .zip or .npz of `softdiff sample` contains "
            "the record of how they were made. Or give --weights."
        },
    )
    weights: PathText | None = None
    """Weights file, run folder, or folder of `softdiff export` to draw images from, instead of --images."""
    metric: str = field(
        default="classifier",
        metadata={"help": f"One of {_METRIC_HELP}, or several with commas: fid,kid."},
    )
    num: int | None = None
    """Use exactly this many images, from the first, even if they are fewer than a metric requires."""
    image_size: tuple[int, ...] = ()
    """Side, or height and width: all images are resized to cover it, and cropped to its centre."""
    channels: Literal[1, 3, 4] | None = None
    """Compare all images as 1 (grey), 3 (RGB, alpha laid over black) or 4 (RGBA) channels."""

    labelled: PathText | None = None
    """Labelled data set that the classifier is trained on. Default: the reference."""
    classifier: PathText | None = None
    """Classifier file: read if it exists; otherwise written once the classifier is trained."""
    epochs: int | None = None
    """Times that the classifier sees each image. Default: 3 to 50, enough for 160 000 images in all."""
    feature_extractor_weights: PathText | None = field(
        default=None,
        metadata={"help": f"Inception weights for fid and kid: torch-fidelity's {INCEPTION_FILE}."},
    )

    sampler: SamplerName | None = None
    """For --weights, like the next three options: as in `softdiff sample`."""
    steps: int | None = None
    """Sampler steps."""
    seeds: str = "0-999"
    """Seeds, one for each image."""
    batch: int = 64
    """Images at a time."""

    seed: int = 0
    """Seed of the classifier's training, of the split of the reference and of kid's subsets."""
    device: str = "auto"
    """For sampling and Inception: auto (a GPU if there is one), cpu, cuda or cuda:N."""
    out: PathText | None = None
    """Also write the results, with all that they depend on, to this JSON file. An old file is replaced."""
    json: bool = False
    """Print each result as one line of JSON instead."""

    def __post_init__(self) -> None:
        """Raises UserError for options that contradict each other or are out of range."""
        if (self.images is None) == (self.weights is None):
            got = "neither" if self.images is None else "both"
            raise UserError(f"expected either --images or --weights, got {got}")
        names = self.metrics
        if not names or not set(names) <= set(METRICS) or len(set(names)) < len(names):
            expected = f"one or several of {', '.join(METRICS)}, with commas between"
            raise UserError(f"--metric: expected {expected}, got {self.metric!r}")
        networks = {METRICS[name].features for name in names}
        if "classifier" not in networks:
            for name in ("labelled", "classifier", "epochs"):
                if getattr(self, name) is not None:
                    raise UserError(f"--{name} is for --metric classifier, got --metric {self.metric}")
        if "inception" in networks and self.feature_extractor_weights is None:
            raise UserError(
                f"--metric {self.metric} needs --feature-extractor-weights FILE, the file {INCEPTION_FILE} "
                f"of {RELEASE}; softdiff downloads nothing"
            )
        check_sides(self.image_size)
        for name, least in {"num": 2, "epochs": 1, "steps": 1, "batch": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name}: expected at least {least}, got {value}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed: expected in [0, 2^63), got {self.seed}")

    @property
    def size(self) -> tuple[int, int] | None:
        """--image-size as (height, width), None if it is not given."""
        return height_and_width(self.image_size)

    def load(self, source: str) -> ImageSet:
        """A data set at --image-size and --channels."""
        return load_images(source, self.size, channels=self.channels)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The requested metrics, in order."""
        return tuple(part.strip() for part in self.metric.split(",") if part.strip())


def run(config: EvaluateConfig, argv: Sequence[str]) -> int:
    """Computes and prints the metrics."""
    for module in ("safetensors", "PIL", *(("diffusers",) if config.weights is not None else ())):
        need(module, "softdiff evaluate")
    evaluate(config)
    return 0


def evaluate(config: EvaluateConfig, say: Say = print) -> list[dict[str, Any]]:
    """Computes, prints and, if asked, writes each metric; returns the results as the JSON has them."""

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    for flag, path in (("--out", config.out), ("--classifier", config.classifier)):
        if path is not None and not Path(path).parent.is_dir():
            raise UserError(f"{flag}: {Path(path).parent}: no such folder")
        check_no_folder(flag, path)
    pick_device(config.device)  # checked whether or not the metric uses it
    reference = config.load(config.reference)
    measured = samples(config, progress)
    _check(config, measured, reference)
    networks = {METRICS[name].features for name in config.metrics}
    inception = _inception(config) if "inception" in networks else None
    classifier = _classifier(config, reference, progress) if "classifier" in networks else None
    pixels = measured.pixels()
    common = _common(config, measured, ImageSet(pixels, measured.name), reference)
    results: list[dict[str, Any]] = []
    for network, extractor in (("classifier", classifier), ("inception", inception)):
        if extractor is None:
            continue
        ours, theirs = (_features(extractor, x, progress) for x in (pixels, reference.tensor))
        for metric in config.metrics:
            if METRICS[metric].features != network:
                continue
            result = {**_measure(metric, ours, theirs, config.seed), **_source(extractor), **common}
            if isinstance(extractor, Inception) and not extractor.published:
                result["metric"] += " with other weights"
            results.append(result)
    for result in results:
        say(json.dumps(result) if config.json else described(result))
    if config.out is not None:
        save_json(Path(config.out), results)
    return results


def samples(config: EvaluateConfig, say: Say) -> Samples:
    """What --images or --weights names, reduced to --num. Images of --weights are drawn later, after all
    other checks. UserError, one sentence, for what cannot be read, and for too few images."""
    # Only here, because it needs safetensors: options are parsed, and --help is printed, without it.
    from ..evaluation.samples import drawn_samples, saved_samples
    from ..training.checkpoint import numbered
    from .sample import open_model

    if config.images is None:
        assert config.weights is not None
        measured = drawn_samples(
            open_model(config.weights, pick_device(config.device)),
            parse_seeds(config.seeds)[: config.num],
            sampler=config.sampler,
            steps=config.steps,
            batch=config.batch,
            say=say,
        )
        channels, *size = measured.shape
        drawn = f", which {measured.name} draws"
        if config.size not in (None, tuple(size)):
            expected = f"{size[0]} x {size[1]}{drawn}"
            raise UserError(f"--image-size: expected {expected}, got {list(config.image_size)}")
        if config.channels not in (None, channels):
            raise UserError(f"--channels: expected {channels}{drawn}, got {config.channels}")
    else:
        path = Path(config.images)
        if path.suffix == ".safetensors" or (path.is_dir() and numbered(path, "weights")):
            kind = "a run folder" if path.is_dir() else "a file of weights"
            raise UserError(f"--images: {path} is {kind}: give it as --weights, and its samples are drawn")
        measured = saved_samples(config.images, config.load)
    if config.num is None:
        return measured
    if config.num > measured.count:
        expected = f"at most the {measured.count} images of {measured.name}"
        raise UserError(f"--num: expected {expected}, got {config.num}")
    return measured.first(config.num)


def _check(config: EvaluateConfig, measured: Samples, reference: ImageSet) -> None:
    if measured.shape != reference.shape:
        ours, theirs = _shape(measured.shape), _shape(reference.shape)
        raise UserError(
            f"expected images like the reference's ({theirs} in {config.reference}), got {ours} in "
            f"{measured.name}{_remedy(measured.shape, reference.shape, fixed=config.weights is not None)}"
        )
    for name in config.metrics:
        if METRICS[name].features == "inception":
            check_channels(measured.shape[0])
        fewest, required = min(measured.count, len(reference.pixels)), METRICS[name].fewest
        if fewest < 2:
            raise UserError(f"--metric {name} needs at least 2 images, got {fewest}")
        if config.num is None and fewest < required:
            whose = "--reference" if fewest == len(reference.pixels) else "samples"
            raise UserError(
                f"--metric {name} needs {required} images or more on both sides, got {fewest} ({whose}). "
                f"Pass --num {measured.count} to compute it anyway; the output will note this."
            )


def _remedy(ours: tuple[int, int, int], theirs: tuple[int, int, int], *, fixed: bool = False) -> str:
    """The options that bring images of two shapes to one; fixed: ours cannot be changed."""
    options = []
    if ours[0] != theirs[0]:
        both = {ours[0]} if fixed else {min(ours[0], theirs[0]), 3}
        options += [f"--channels {c} compares all as {CHANNELS[c]}" for c in sorted(both) if c in CHANNELS]
    if ours[1:] != theirs[1:]:
        height, width = ours[1:]
        size = f"{height} {width} brings all to {height} x {width}" if fixed else "N brings all to N x N"
        options.append(f"--image-size {size}")
    return "".join(f"; {option}" for option in options)


def _shape(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{channels} channel{'s' * (channels != 1)} of {height} x {width}"


def _inception(config: EvaluateConfig) -> Inception:
    assert config.feature_extractor_weights is not None
    return Inception(config.feature_extractor_weights, pick_device(config.device))


def _classifier(config: EvaluateConfig, reference: ImageSet, say: Say) -> Classifier:
    """The classifier in --classifier, if that file exists; otherwise one trained on --labelled."""
    file = None if config.classifier is None else Path(config.classifier)
    labelled = None if config.labelled is None else config.load(config.labelled)
    if file is not None and file.exists():
        classifier = load_classifier(file)
        if labelled is not None and labelled.digest() != classifier.data_digest:
            data = f"{classifier.data} ({classifier.data_digest})"
            raise UserError(f"{file} was trained on {data}, not on --labelled")
    else:
        source = config.labelled or config.reference
        data_set = reference if labelled is None else labelled
        if data_set.labels is None:
            why = f" ({data_set.unlabelled})" if data_set.unlabelled else ""
            raise UserError(
                f"{source}: has no labels{why}, which --metric classifier needs to train its classifier; "
                "--labelled names a labelled data set, --classifier a trained classifier"
            )
        _check_classifier_shape(data_set.shape, reference, source)
        classifier = train_classifier(
            data_set.tensor,
            data_set.labels,
            epochs=config.epochs,
            seed=config.seed,
            say=say,
            name=data_set.name,
            classes=data_set.classes or None,
        )
        classifier.check_useful()  # before it is saved
        if file is not None:
            classifier.save(file)
    classifier.check_useful()
    _check_classifier_shape(classifier.shape, reference, str(file))
    return classifier


def _check_classifier_shape(shape: tuple[int, int, int], reference: ImageSet, source: str) -> None:
    if shape != reference.shape:
        theirs, ours = _shape(reference.shape), _shape(shape)
        expected = f"a classifier of images like the reference's ({theirs})"
        remedy = _remedy(shape, reference.shape, fixed=True)
        raise UserError(f"expected {expected}, got {ours} ({source}){remedy}")


def _features(extractor: Classifier | Inception, pixels: Tensor, say: Say) -> Tensor:
    if isinstance(extractor, Inception):
        return extractor.features(pixels, say)
    return extractor.features(pixels)


def _measure(name: str, ours: Tensor, theirs: Tensor, seed: int) -> dict[str, Any]:
    """The number, and beside it that of as many real images: the reference split in two."""
    metric = METRICS[name]
    value, spread = metric.distance(ours, theirs, seed)
    result: dict[str, Any] = {"metric": metric.title, "value": value, "feature_dimension": ours.shape[1]}
    if spread is not None:
        result["std_over_subsets"] = spread
    part = min(len(ours), len(theirs) // 2)
    if part >= 2:
        order = torch.randperm(len(theirs), generator=torch.Generator().manual_seed(seed))
        result["floor"] = metric.distance(theirs[order[:part]], theirs[order[part:]], seed)[0]
        result["floor_images"] = [part, len(theirs) - part]
    notes = []
    if min(len(ours), len(theirs)) < metric.fewest:
        notes.append(f"fewer than {metric.fewest} images: not comparable with figures of more images")
    elif len(ours) < metric.published:
        notes.append(f"published figures use {metric.published} images; fewer images give larger ones")
    result["notes"] = notes
    return result


def _source(extractor: Classifier | Inception) -> dict[str, Any]:
    if isinstance(extractor, Inception):
        return {"features": extractor.describe(), "features_digest": extractor.sha256}
    return {
        "features": extractor.describe(),
        "features_digest": extractor.digest(),
        "held_out_accuracy": extractor.accuracy,
    }


def _common(config: EvaluateConfig, measured: Samples, ours: ImageSet, reference: ImageSet) -> dict[str, Any]:
    from ..evaluation.samples import PROVENANCE

    size = " x ".join(map(str, reference.shape[1:]))
    resized = f"{size}, none resized"
    if config.size is not None:
        resized = f"{size}, by --image-size: Lanczos down, bicubic up, centre square"
    if config.channels is not None:
        resized += f"; {CHANNELS[config.channels]}, by --channels"
    provenance = {name: measured.provenance.get(name) for name in PROVENANCE}
    if measured.seeds:
        provenance["seeds"] = format_seeds(measured.seeds)
    return {
        "samples": measured.count,
        "samples_source": seen_from(Path.cwd(), measured.name),
        "samples_digest": ours.digest(),
        **provenance,
        "reference": len(reference.pixels),
        "reference_source": seen_from(Path.cwd(), config.reference),
        "reference_digest": reference.digest(),
        "channels": reference.shape[0],
        "resize": resized,
        "seed": config.seed,
        "softdiff_kernels": __version__,
    }


def described(result: dict[str, Any]) -> str:
    """A result as lines: the number, then everything that it depends on."""

    def known(name: str) -> str:
        return "unknown" if result[name] is None else str(result[name])

    spread = f" ± {result['std_over_subsets']:.6g} over subsets" if "std_over_subsets" in result else ""
    lines = [f"{result['metric']}: {result['value']:.6g}{spread}"]
    if "floor" in result:
        part, others = result["floor_images"]
        floor = f"{result['floor']:.6g} ({part} images of the reference against its other {others})"
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
