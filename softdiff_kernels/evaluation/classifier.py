# SPDX-License-Identifier: Apache-2.0
"""A small classifier of the user's own labelled images, whose features a Fréchet distance is taken on.

It needs no weights from elsewhere and fits images that Inception was not made for: grey, or a few
pixels wide. A distance on its features is comparable under one classifier alone; its digest tells which.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.image_set import ImageSet
from ..errors import UserError
from ..images import decode
from ..memory import is_out_of_memory
from ..training.checkpoint import Checkpoint, load_checkpoint
from .frechet import FeatureStatistics

FEATURES = 64
LEAST_IMAGES = 200
LEAST_SIDE = 8
SIDE_AT_END = 8
WIDTHS = (16, 32, 64)
BATCH = 128
PEAK_RATE = 4e-3
IMAGES_SEEN = 160_000
"""Images that a training of the default length sees, over all its epochs."""
SHARE_HELD_OUT = 10


class _Network(nn.Module):
    """Convolutions down to about 8 x 8, then 4 x 4 averages, 64 features, and one score a class."""

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        level = 0
        while level < len(WIDTHS) or side > SIDE_AT_END:
            width = WIDTHS[min(level, len(WIDTHS) - 1)]
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            if side > SIDE_AT_END:  # before the rest of the level, which then has a quarter to do
                layers.append(nn.MaxPool2d(2))
                side //= 2
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            channels, level = width, level + 1
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        # Normalised, so that no feature dies: a constant one would be lost to the covariance.
        self.narrow = nn.Sequential(
            nn.Linear(16 * channels, FEATURES, bias=False), nn.BatchNorm1d(FEATURES), nn.ReLU()
        )
        self.score = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = self.narrow(self.body(x))
        return found

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(self.features(x))
        return scores


def _network(shape: tuple[int, int, int], classes: int) -> _Network:
    """On the meta device first: to construct layers elsewhere would draw from the global generator."""
    with torch.device("meta"):
        network = _Network(shape[0], classes, min(shape[1:]))
    network.to_empty(device="cpu")
    return network


def _initialise(network: _Network, generator: torch.Generator) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _decoded(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return decode(pixels).contiguous(memory_format=torch.channels_last)


def least_accuracy(chance: float) -> float:
    """The held-out accuracy below which features mean nothing: three times that of always naming the
    commonest class, or half way from there to 1 where that is less."""
    return min(3 * chance, (1 + chance) / 2)


@dataclass
class Classifier:
    """A trained classifier: images uint8 [N, C, H, W] to float32 features [N, 64].

    accuracy: share of held-out images named rightly. chance: share of the commonest class among
    them. data, data_digest: the images it was trained on. scale: what features are multiplied by,
    so that over the training images their mean variance is 1.
    """

    network: _Network
    classes: list[str]
    shape: tuple[int, int, int]
    accuracy: float
    chance: float
    data: str
    data_digest: str
    seed: int
    epochs: int
    scale: float = 1.0
    file: str | None = None

    def _checked(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or tuple(pixels.shape[1:]) != self.shape:
            what = f"uint8 images [N, {', '.join(map(str, self.shape))}], as the classifier was trained on"
            raise UserError(f"expected {what}, got {str(pixels.dtype)[6:]} {list(pixels.shape)}")
        return pixels

    @torch.no_grad()
    def features(self, pixels: Tensor, batch: int = 500) -> Tensor:
        """float32 [N, 64]: what the last layer sees of uint8 [N, C, H, W]. UserError for another shape."""
        self.network.eval()
        parts = self._checked(pixels).split(batch)
        return torch.cat([self.network.features(_decoded(part)) for part in parts]) * self.scale

    @torch.no_grad()
    def predict(self, pixels: Tensor, batch: int = 500) -> Tensor:
        """int64 [N]: the place in `classes` of each image's likeliest class."""
        self.network.eval()
        return torch.cat([self.network(_decoded(p)).argmax(1) for p in self._checked(pixels).split(batch)])

    def statistics(self, pixels: Tensor) -> FeatureStatistics:
        """Mean and covariance of the features of uint8 [N, C, H, W]."""
        return FeatureStatistics(self.describe()).update(self.features(pixels))

    def digest(self) -> str:
        """Sixteen hex digits that name these weights."""
        digest = hashlib.blake2b(repr((self.classes, self.shape, self.scale)).encode(), digest_size=8)
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def describe(self) -> str:
        """Where the features come from, in words, for the line that a distance stands on."""
        where = f"{self.file} ({self.digest()})" if self.file else self.digest()
        right = f"{100 * self.accuracy:.2f} % of held-out images right"
        return f"classifier {where} of {self.data} ({self.data_digest}), {right}"

    def check_useful(self) -> None:
        """Raises UserError where the classifier is too near to guessing for a distance to mean anything."""
        least = least_accuracy(self.chance)
        if self.accuracy < least:
            raise UserError(
                f"the classifier of {self.data} names {100 * self.accuracy:.1f} % of held-out images rightly"
                f", under the {100 * least:.1f} % from which its features mean something (chance: "
                f"{100 * self.chance:.1f} %)"
            )

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, whole or not at all."""
        meta = {
            "classes": self.classes,
            "shape": list(self.shape),
            "accuracy": self.accuracy,
            "chance": self.chance,
            "data": self.data,
            "data_digest": self.data_digest,
            "seed": self.seed,
            "epochs": self.epochs,
            "scale": self.scale,
        }
        file = Checkpoint("classifier", meta)
        file.put("model", self.network.state_dict())
        file.save(Path(path))
        self.file = Path(path).name


def load_classifier(path: str | Path) -> Classifier:
    """Reads what `Classifier.save` wrote. UserError, one sentence, for any other file."""
    file = load_checkpoint(Path(path), "classifier")
    meta: dict[str, Any] = file.meta
    try:
        channels, height, width = meta["shape"]
        network = _network((channels, height, width), len(meta["classes"]))
        network.load_state_dict(file.part("model"))
        return Classifier(
            network.eval(),
            list(meta["classes"]),
            (channels, height, width),
            accuracy=float(meta["accuracy"]),
            chance=float(meta["chance"]),
            data=str(meta["data"]),
            data_digest=str(meta["data_digest"]),
            seed=int(meta["seed"]),
            epochs=int(meta["epochs"]),
            scale=float(meta["scale"]),
            file=Path(path).name,
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise UserError(f"{path}: its parts do not fit together ({reason})") from error


def _shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `most` pixels along both axes, its edge repeated."""
    n, _, height, width = images.shape
    rows, columns = torch.randint(-most, most + 1, (2, n, 1), generator=generator)
    rows = (rows + torch.arange(height)).clamp_(0, height - 1)
    columns = (columns + torch.arange(width)).clamp_(0, width - 1)
    each = torch.arange(n)[:, None, None]
    return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _checked_labels(pixels: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Labels as places among the sorted distinct ones, and those."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or min(pixels.shape[2:]) < LEAST_SIDE:
        got = f"{str(pixels.dtype)[6:]} {list(pixels.shape)}"
        wanted = f"uint8 images [N, C, H, W] of {LEAST_SIDE} pixels a side or more"
        raise UserError(f"{name}: a classifier takes {wanted}, got {got}")
    if labels.shape != pixels.shape[:1] or labels.is_floating_point():
        got = f"{str(labels.dtype)[6:]} {list(labels.shape)}"
        raise UserError(f"{name}: expected whole-number labels [{len(pixels)}], one an image, got {got}")
    if len(pixels) < LEAST_IMAGES:
        wanted = f"{LEAST_IMAGES} or more labelled images"
        raise UserError(f"{name}: a classifier takes {wanted}, got {len(pixels)}")
    found, places = torch.unique(labels.long(), return_inverse=True)
    if len(found) < 2:
        raise UserError(f"{name}: a classifier takes labels of 2 classes or more, got only {int(found[0])}")
    return places, found


def train_classifier(
    pixels: Tensor,
    labels: Tensor,
    *,
    epochs: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    name: str = "images",
    classes: Sequence[str] | None = None,
) -> Classifier:
    """Trains a classifier on nine tenths of labelled images and measures it on the last tenth.

    pixels: uint8 [N, C, H, W], at least 200 of 8 pixels a side or more. labels: whole numbers [N].
    epochs: times that each image is seen; without it as many as make 160 000 images, 3 to 50.
    name: what the data set is called in messages and in the file. classes: the labels' names, by
    label. The result follows from the seed (on one machine, with one number of threads); torch's
    global generator is neither read nor moved. Raises UserError for data that cannot be learnt from;
    whether the result is any good is left to `check_useful`.
    """
    places, found = _checked_labels(pixels, labels, name)
    count = len(pixels)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    held, rest = order[: count // SHARE_HELD_OUT], order[count // SHARE_HELD_OUT :]
    epochs = epochs or max(3, min(50, round(IMAGES_SEEN / len(rest))))
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    network = _network(shape, len(found))
    _initialise(network, generator)
    shift = max(1, min(shape[1:]) // 14)
    steps = epochs * math.ceil(len(rest) / BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, 5 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    say(f"training a classifier on {len(rest)} images of {name}, {len(found)} classes, {epochs} epochs")
    with torch.enable_grad():
        for epoch in range(epochs):
            network.train()
            total = 0.0
            for batch in rest[torch.randperm(len(rest), generator=generator)].split(BATCH):
                if len(batch) < 2:  # batch statistics of one image are none
                    continue
                scores = network(_decoded(_shifted(pixels[batch], shift, generator)))
                loss = nn.functional.cross_entropy(scores, places[batch])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                rate.step()
                total += loss.item() * len(batch)
            say(f"epoch {epoch + 1}/{epochs}: loss {total / len(rest):.4f}")
    names = [str(int(i)) if classes is None else classes[int(i)] for i in found]
    shares = torch.bincount(places[held], minlength=len(found)) / len(held)
    digest = ImageSet(pixels, name).digest()
    chance = float(shares.max())
    result = Classifier(network.eval(), names, shape, 0.0, chance, name, digest, seed, epochs)
    result.accuracy = float((result.predict(pixels[held]) == places[held]).float().mean())
    variance = result.features(pixels[rest]).double().var(dim=0).mean()
    result.scale = float(variance.clamp(min=1e-12).rsqrt())
    say(f"held-out accuracy {100 * result.accuracy:.2f} % of {len(held)} images")
    return result


def classifier_frechet(classifier: Classifier, images_a: Tensor, images_b: Tensor) -> float:
    """The classifier Fréchet distance of two sets of images, uint8 [N, C, H, W] and [M, C, H, W].

    The formula of Heusel et al. 2017 on this classifier's features, in units of a feature's variance
    over its training images. Comparable only under the same classifier and for like N and M: with
    fewer images it comes out larger. UserError for images of another shape or a useless classifier.
    """
    classifier.check_useful()
    return classifier.statistics(images_a).distance(classifier.statistics(images_b))
