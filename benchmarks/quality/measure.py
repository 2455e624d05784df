# SPDX-License-Identifier: Apache-2.0
"""Trains what an experiment needs, draws its samples and measures them.

A result is a line of JSON. What is trained or measured already is not repeated, so what was stopped continues
where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softdiff_kernels.data import ImageSet, load_images
from softdiff_kernels.diffusion import PowerSpectrum, SoftDenoiser, generate, time_steps
from softdiff_kernels.evaluation import Classifier, load_classifier, train_classifier
from softdiff_kernels.images import save_png, tile
from softdiff_kernels.training.weights import load_model

from .mixture import Mixture
from .plan import EXPERIMENTS, MIXTURE, NETWORKS, Curve, Experiment

LINES = "lines.jsonl"
CLASSIFIER = "classifier.safetensors"
FEATURES = "features.json"
REAL = "real"
SHOWN, COLUMNS = 40, 10
BATCH = 250
REFERENCE = 10_000
"""Samples of the mixture to compare with. A network's are compared with the whole test set."""


class Source(NamedTuple):
    """What samples are drawn from, and what of it a line records."""

    denoiser: SoftDenoiser
    prior: Any
    spectrum: PowerSpectrum | None
    record: dict[str, Any]


class Lab:
    """The data, the classifier and the results in a folder."""

    def __init__(self, data: str, test: str, out: Path) -> None:
        self.data, self.out = data, out
        (out / "grids").mkdir(parents=True, exist_ok=True)
        self.images: ImageSet = load_images(data, need_labels=True)
        self.tested = load_images(test).pixels
        self.classifier = self._classifier()
        self.references: dict[str, Any] = {}
        self.done = {key(line) for line in read(out)}

    def _classifier(self) -> Classifier:
        path = self.out / CLASSIFIER
        if not path.exists():
            assert self.images.labels is not None
            train_classifier(self.images.pixels, self.images.labels).save(path)
        return load_classifier(path)

    def run(self, name: str, training: int, most: int) -> None:
        """One training of an experiment: every network is trained, then what is drawn of it in up to `most`
        evaluations."""
        experiment = EXPERIMENTS[name]
        if training not in experiment.trainings:
            return
        for network in dict.fromkeys(curve.network for curve in experiment.curves):
            planned = [d for d in experiment.drawings(training) if d[0] <= most]
            drawings = [d for d in planned if d[1].network == network]
            floor = f"{REAL} {MIXTURE}" if network == MIXTURE else REAL
            wanted = [(floor, 0, 0, sampling, experiment.images) for sampling in {d[2] for d in drawings}]
            wanted += [(curve.name, n, training, s, experiment.images) for n, curve, s in drawings]
            if self.done.issuperset(wanted):
                continue
            source = self.source(network, training)
            new = {**source.record, "training": training, "classifier": self.classifier.describe()}
            check_together([*lines_of(self.out, experiment), new])
            for sampling in sorted({d[2] for d in drawings}):
                self._floor(floor, source, sampling, experiment.images)
            for n, curve, sampling in drawings:
                self._draw(curve, n, source, training, sampling, experiment.images)

    def source(self, network: str, training: int) -> Source:
        """A network, trained if it is not yet; or the mixture, under the first E1 network's corruption."""
        if network == MIXTURE:
            corruption = self.source("plain-paper", 0).denoiser.corruption
            mixture = Mixture(self.images.pixels, corruption)
            denoiser = SoftDenoiser(mixture, corruption, "sample")
            return Source(denoiser, mixture, None, {"network": network})
        folder = self.out / f"{network}-s{training}"
        self._train(network, training, folder)
        model = load_model(str(folder), torch.device("cpu"))
        record = {"network": network, "weights": model.digest, "weights_step": model.step}
        return Source(model.denoiser, model.prior, model.spectrum, record)

    def _train(self, network: str, training: int, folder: Path) -> None:
        flags = [str(self.out / flag) if flag == FEATURES else flag for flag in NETWORKS[network].flags]
        steps = NETWORKS[network].steps
        if str(self.out / FEATURES) in flags and not (self.out / FEATURES).exists():
            schedule = ["--features", str(self.out / CLASSIFIER), "--out", str(self.out / FEATURES)]
            _softdiff("schedule", "--data", self.data, *schedule)
        argv = ["--data", self.data, "--outdir", str(folder), "--resume", "auto", *flags]
        argv += ["--seed", str(training), "--sample-count", "0"]
        argv += [] if steps is None else ["--steps", str(steps), "--save-every", str(steps)]
        # Of a finished run, too: it ends at once, and refuses a network that was trained with other options.
        begun = time.monotonic()
        _softdiff("train", *argv)
        print(f"{folder.name}: {time.monotonic() - begun:.0f} s")

    def _floor(self, name: str, source: Source, sampling: int, count: int) -> None:
        """The distance of as many real images, or of as many exact samples of the mixture."""
        numbers = torch.arange(sampling * count, (sampling + 1) * count)
        mixture = source.prior if isinstance(source.prior, Mixture) else None
        images = self.images.pixels[numbers] if mixture is None else mixture.exact(numbers)
        self._write({"curve": name}, 0, 0, sampling, images, mixture)

    def _draw(self, curve: Curve, n: int, source: Source, training: int, sampling: int, count: int) -> None:
        if (curve.name, n, training, sampling, count) in self.done:
            return
        corruption = source.denoiser.corruption
        ts = time_steps(curve.steps(n), curve.spacing, corruption=corruption, spectrum=source.spectrum)
        seeds = range(sampling * count, (sampling + 1) * count)
        begun = time.perf_counter()
        images = generate(source.denoiser, source.prior, seeds, sampler=curve.sampler, ts=ts, batch=BATCH)
        seconds = round(time.perf_counter() - begun, 1)
        if training == sampling == 0:
            save_png(self.out / "grids" / grid_name(curve, n), tile(images[:SHOWN], COLUMNS))
        record = {"curve": curve.name, **source.record, "sampler": curve.sampler, "spacing": curve.spacing}
        record |= {"prior": source.prior.describe(), "seconds": seconds, "threads": torch.get_num_threads()}
        mixture = source.prior if isinstance(source.prior, Mixture) else None
        self._write(record, n, training, sampling, images, mixture)

    def _write(
        self, record: dict[str, Any], n: int, training: int, sampling: int, images: Tensor, mixture: Any
    ) -> None:
        """Measures images and appends their line, if it is not there yet."""
        kind = REAL if mixture is None else MIXTURE
        if kind not in self.references:
            compared = self.tested if mixture is None else mixture.reference(REFERENCE)
            self.references[kind] = self.classifier.statistics(compared)
        where = {"evaluations": n, "training": training, "sampling": sampling, "images": len(images)}
        line = {**record, **where}
        if key(line) in self.done:
            return
        line["distance"] = self.classifier.statistics(images).distance(self.references[kind])
        line["classifier"] = self.classifier.describe()
        line |= {"torch": torch.__version__, "utc": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        with open(self.out / LINES, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.done.add(key(line))
        print(line["curve"], *where.values(), f"{line['distance']:.3f}", flush=True)


def _softdiff(*argv: str) -> None:
    code = subprocess.call([sys.executable, "-m", "softdiff_kernels", *argv])
    if code != 0:
        raise SystemExit(f"softdiff {argv[0]} failed with exit status {code}")


def key(line: dict[str, Any]) -> tuple[str, int, int, int, int]:
    """What identifies a line."""
    return line["curve"], line["evaluations"], line["training"], line["sampling"], line["images"]


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines in a folder, none if there is no file yet."""
    path = folder / LINES
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lines_of(folder: Path, experiment: Experiment) -> list[dict[str, Any]]:
    """The lines in a folder that an experiment's table may show."""
    lines = read(folder)
    return [x for x in lines if x["images"] == experiment.images and x["training"] in experiment.trainings]


def check_together(lines: list[dict[str, Any]]) -> None:
    """SystemExit if lines of one table are by two classifiers, or of two trainings of one name, as
    after continuing on a machine that rounds otherwise: such distances do not compare."""
    seen: dict[str, str] = {}
    for line in lines:
        samples = f"samples of {line.get('network')}-s{line['training']}"
        for what, of in (("classifier", "distances"), ("weights", samples)):
            if what in line and seen.setdefault(of, line[what]) != line[what]:
                raise SystemExit(
                    f"expected {of} by the same {what}, got {seen[of]} and {line[what]}: remove the lines of "
                    f"one from {LINES}, or work in a new folder"
                )


def grid_name(curve: Curve, n: int) -> str:
    """The file name of a curve's first images."""
    name = curve.name.replace(",", "").replace(" ", "-")
    return f"{name}-{n:03d}.png"
