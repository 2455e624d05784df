# SPDX-License-Identifier: Apache-2.0
"""A small classifier of the user's own labelled images, whose features give a Fréchet distance.

It needs no weights from elsewhere and fits images that Inception was not made for: grey, or a few
pixels wide. Distances can be compared only under the same classifier; its digest identifies it.
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
ONE_HELD_OUT_OF = 10


class _Network(nn.Module):
    """Convolutions down to about 8 x 8, then 4 x 4 averages, 64 features, and one score for each class."""

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        level = 0
        while level < len(WIDTHS) or side > SIDE_AT_END:
            width = WIDTHS[min(level, len(WIDTHS) - 1)]
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            if side > SIDE_AT_END:  # first in the level, so that the layers after it do a quarter of the work
                layers.append(nn.MaxPool2d(2))
                side //= 2
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            channels, level = width, level + 1
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        # Normalised, so that no feature is constant: such a one would add nothing to the covariance.
        self.narrow = nn.Sequential(
            nn.Linear(16 * channels, FEATURES, bias=False), nn.BatchNorm1d(FEATURES), nn.ReLU()
        )
        self.score = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = self.narrow(self.body(x))
        return features

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(self.features(x))
        return scores


def _network(shape: tuple[int, int, int], classes: int) -> _Network:
    """On the meta device first, because construction elsewhere draws from the global generator."""
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
    """The held-out accuracy below which features mean nothing: three times that of always naming the most
    frequent class, or half way from that to 1, whichever is less."""
    return min(3 * chance, (1 + chance) / 2)


@dataclass
class Classifier:
    """A trained classifier: images uint8 [N, C, H, W] to float32 features [N, 64].

    accuracy: share of held-out images that it classifies correctly. chance: share of the most frequent class
    among them. data, data_digest: the images it was trained on. scale: what features are multiplied by,
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
            expected = (
                f"uint8 images [N, {', '.join(map(str, self.shape))}], as the classifier was trained on"
            )
            raise UserError(f"expected {expected}, got {str(pixels.dtype)[6:]} {list(pixels.shape)}")
        return pixels

    @torch.no_grad()
    def features(self, pixels: Tensor, batch: int = 500) -> Tensor:
        """float32 [N, 64]: the last layer's input for uint8 [N, C, H, W]. UserError for another shape."""
        parts = self._checked(pixels).split(batch)
        return torch.cat([self.features_of_floats(_decoded(part)) for part in parts])

    @torch.no_grad()
    def features_of_floats(self, images: Tensor) -> Tensor:
        """`features` of float32 images in [-1, 1], such as x_t, whose noise uint8 would round away."""
        self.network.eval()
        if images.dtype != torch.float32 or tuple(images.shape[1:]) != self.shape:
            expected = f"float32 images [N, {', '.join(map(str, self.shape))}] in [-1, 1]"
            raise UserError(f"expected {expected}, got {str(images.dtype)[6:]} {list(images.shape)}")
        return self.network.features(images.contiguous(memory_format=torch.channels_last)) * self.scale

    @torch.no_grad()
    def predict(self, pixels: Tensor, batch: int = 500) -> Tensor:
        """int64 [N]: the index in `classes` of each image's most likely class."""
        self.network.eval()
        return torch.cat([self.network(_decoded(p)).argmax(1) for p in self._checked(pixels).split(batch)])

    def statistics(self, pixels: Tensor) -> FeatureStatistics:
        """Mean and covariance of the features of uint8 [N, C, H, W]."""
        return FeatureStatistics(self.describe()).update(self.features(pixels))

    def digest(self) -> str:
        """Sixteen hex digits that identify these weights."""
        digest = hashlib.blake2b(repr((self.classes, self.shape, self.scale)).encode(), digest_size=8)
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def describe(self) -> str:
        """A description of where the features come from, printed beside a distance."""
        where = f"{self.file} ({self.digest()})" if self.file else self.digest()
        correct = f"{100 * self.accuracy:.2f} % of held-out images right"
        return f"classifier {where} of {self.data} ({self.data_digest}), {correct}"

    def check_useful(self) -> None:
        """Raises UserError if the classifier is so close to guessing that a distance would mean nothing."""
        least = least_accuracy(self.chance)
        if self.accuracy < least:
            raise UserError(
                f"the classifier of {self.data} is right for {100 * self.accuracy:.1f} % of held-out images; "
                f"its features are meaningful from {100 * least:.1f} % on (chance: {100 * self.chance:.1f} %)"
            )

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, whole or not at all. Needs the extra `train`."""
        from ..training.checkpoint import Checkpoint

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
    """Reads what `Classifier.save` wrote. UserError, one sentence, for any other file. Needs the extra
    `train`."""
    from ..training.checkpoint import load_checkpoint

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
    """Each image shifted by up to `most` pixels along both axes, its edge repeated."""
    n, _, height, width = images.shape
    rows, columns = torch.randint(-most, most + 1, (2, n, 1), generator=generator)
    rows = (rows + torch.arange(height)).clamp_(0, height - 1)
    columns = (columns + torch.arange(width)).clamp_(0, width - 1)
    each = torch.arange(n)[:, None, None]
    return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _checked_labels(pixels: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Labels as indices into the sorted distinct ones; and the distinct ones."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or min(pixels.shape[2:]) < LEAST_SIDE:
        got = f"{str(pixels.dtype)[6:]} {list(pixels.shape)}"
        expected = f"uint8 images [N, C, H, W] of {LEAST_SIDE} pixels a side or more"
        raise UserError(f"{name}: a classifier needs {expected}, got {got}")
    if labels.shape != pixels.shape[:1] or labels.is_floating_point():
        got = f"{str(labels.dtype)[6:]} {list(labels.shape)}"
        raise UserError(
            f"{name}: expected whole-number labels [{len(pixels)}], one for each image, got {got}"
        )
    if len(pixels) < LEAST_IMAGES:
        expected = f"{LEAST_IMAGES} or more labelled images"
        raise UserError(f"{name}: a classifier needs {expected}, got {len(pixels)}")
    distinct, indices = torch.unique(labels.long(), return_inverse=True)
    if len(distinct) < 2:
        only = int(distinct[0])
        raise UserError(f"{name}: a classifier needs labels of 2 classes or more, got only {only}")
    return indices, distinct


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
    epochs: times that each image is seen; by default 3 to 50, enough for 160 000 images in all.
    name: what the data set is called in messages and in the file. classes: the labels' names, by
    label. The seed determines the result (on one machine, with one number of threads); torch's
    global generator is neither read nor moved. Raises UserError for data that cannot be learnt from;
    `check_useful` says whether the result is good enough.
    """
    indices, distinct = _checked_labels(pixels, labels, name)
    count = len(pixels)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    held_out, training = order[: count // ONE_HELD_OUT_OF], order[count // ONE_HELD_OUT_OF :]
    epochs = epochs or max(3, min(50, round(IMAGES_SEEN / len(training))))
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    network = _network(shape, len(distinct))
    _initialise(network, generator)
    shift = max(1, min(shape[1:]) // 14)
    steps = epochs * math.ceil(len(training) / BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, 5 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    say(
        f"training a classifier on {len(training)} images of {name}, {len(distinct)} classes, {epochs} epochs"
    )
    with torch.enable_grad():
        for epoch in range(epochs):
            network.train()
            total = 0.0
            for batch in training[torch.randperm(len(training), generator=generator)].split(BATCH):
                if len(batch) < 2:  # one image has no batch statistics
                    continue
                scores = network(_decoded(_shifted(pixels[batch], shift, generator)))
                loss = nn.functional.cross_entropy(scores, indices[batch])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                rate.step()
                total += loss.item() * len(batch)
            say(f"epoch {epoch + 1}/{epochs}: loss {total / len(training):.4f}")
    names = [str(int(i)) if classes is None else classes[int(i)] for i in distinct]
    shares = torch.bincount(indices[held_out], minlength=len(distinct)) / len(held_out)
    digest = ImageSet(pixels, name).digest()
    chance = float(shares.max())
    result = Classifier(network.eval(), names, shape, 0.0, chance, name, digest, seed, epochs)
    result.accuracy = float((result.predict(pixels[held_out]) == indices[held_out]).float().mean())
    variance = result.features(pixels[training]).double().var(dim=0).mean()
    result.scale = float(variance.clamp(min=1e-12).rsqrt())
    say(f"held-out accuracy {100 * result.accuracy:.2f} % of {len(held_out)} images")
    return result


def classifier_frechet(classifier: Classifier, images_a: Tensor, images_b: Tensor) -> float:
    """The classifier Fréchet distance of two sets of images, uint8 [N, C, H, W] and [M, C, H, W].

    The formula of Heusel et al. 2017 on this classifier's features, in units of a feature's variance
    over its training images. Compare only under the same classifier and for similar N and M: with
    fewer images it is larger. UserError for images of another shape or a useless classifier.
    """
    classifier.check_useful()
    return classifier.statistics(images_a).distance(classifier.statistics(images_b))
