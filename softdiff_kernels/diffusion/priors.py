# SPDX-License-Identifier: Apache-2.0
"""Priors: distributions from which x_1, the sampler's start, is drawn.

The paper leaves x_1's distribution open; all of these are ours. Each image is a function of its key
(seed, stream, draw 0) alone, so image k is the same at any batch size. Noise of noise_std(1) takes the
first words of an image's stream, all else the words after them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from ..noise import NoiseKey, normals_from_words
from . import surviving
from ._stream import words_after
from .corruption import Corruption
from .prior import Prior
from .surviving import Surviving

_THRESHOLD = 1e-3
_FULL_COVARIANCE_UP_TO = 1024
_KEPT_VALUES = 2**24


class _SpectralPrior(Prior):
    """A prior over the coefficients that survive the blur at t = 1."""

    def __init__(
        self, kept: Surviving, blur_std: float, threshold: float, noise_std: float, count: int
    ) -> None:
        super().__init__(kept.image_size, kept.channels, noise_std)
        self.kept = kept
        self.blur_std: float = args.number("prior", "blur_std", blur_std)
        self.threshold: float = args.number("prior", "threshold", threshold)
        self.count: int = args.integer("prior", "count", count)

    def config(self) -> dict[str, Any]:
        return {
            **super().config(),
            "blur_std": self.blur_std,
            "threshold": self.threshold,
            "images": self.count,
        }

    @staticmethod
    def _parts(config: Mapping[str, Any]) -> tuple[Surviving, float, float, float, int]:
        blur, threshold = config["blur_std"], config["threshold"]
        kept = Surviving(config["image_size"], config["channels"], blur, threshold)
        return kept, blur, threshold, config["noise_std"], config["images"]

    def _tail(self) -> str:
        return (
            f"{self.kept.size} surviving DCT coefficients (blur {self.blur_std:g} px, gain over "
            f"{self.threshold:g}) of {self.count} images, plus noise {self.noise_std:g}"
        )


class GaussianDCTPrior(_SpectralPrior):
    """A Gaussian fitted to the surviving coefficients of the data, plus noise_std(1) n. The default.

    Full covariance over channels and frequencies up to 1024 numbers an image; over that (a mild
    strongest blur) only the variances, and `describe` says so.
    """

    name = "gaussian-dct"

    def __init__(
        self,
        kept: Surviving,
        blur_std: float,
        threshold: float,
        noise_std: float,
        count: int,
        mean: Tensor,
        factor: Tensor,
    ) -> None:
        super().__init__(kept, blur_std, threshold, noise_std, count)
        if mean.shape != (kept.size,) or factor.shape not in ((kept.size,), (kept.size, kept.size)):
            raise ValueError(
                f"GaussianDCTPrior: expected a mean of {kept.size} numbers and its factor, got shapes "
                f"{list(mean.shape)} and {list(factor.shape)}"
            )
        self.mean = mean.double()
        self.factor = factor.double()

    @classmethod
    def fit(
        cls, batches: Iterable[Any], corruption: Corruption, *, threshold: float = _THRESHOLD
    ) -> GaussianDCTPrior:
        """Fitted in one pass over batches [B, C, H, W], uint8 or floating-point."""
        count = 0
        first = second = shift = torch.zeros(0)
        kept: Surviving | None = None
        full = False
        for kept, values in surviving.stream("GaussianDCTPrior.fit", batches, corruption, threshold):
            if count == 0:
                full = kept.size <= _FULL_COVARIANCE_UP_TO
                shift = values.mean(dim=0)
                first, second = torch.zeros_like(shift), shift.new_zeros((kept.size,) * (2 if full else 1))
            values = values - shift
            first += values.sum(dim=0)
            second += values.T @ values if full else values.square().sum(dim=0)
            count += values.shape[0]
        assert kept is not None
        mean = first / count
        blur, noise = corruption.blur_std(1.0), corruption.noise_std(1.0)
        if full:
            # The symmetric root is the one that no library's sign or pivot choice can change.
            values, vectors = torch.linalg.eigh(second / count - torch.outer(mean, mean))
            factor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        else:
            factor = (second / count - mean.square()).clamp(min=0).sqrt()
        return cls(kept, blur, threshold, noise, count, (mean + shift).cpu(), factor.cpu())

    def describe(self) -> str:
        covariance = "full covariance" if self.factor.dim() == 2 else "variances alone, they are many"
        return f"{self.name}: Gaussian ({covariance}) of the {self._tail()}"

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean.contiguous(), "factor": self.factor.contiguous()}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GaussianDCTPrior:
        """The prior that `config` and `state_dict` describe."""
        return cls(*cls._parts(config), tensors["mean"].cpu(), tensors["factor"].cpu())

    def _mean(self, key: NoiseKey, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        size = self.kept.size
        words = words_after(key, batch, self._elements, size + size % 2, device)
        z = normals_from_words(words)[:, :size]
        factor = self.factor.to(device)
        values = z @ factor.T if factor.dim() == 2 else z * factor
        return self.kept.scatter(self.mean.to(device) + values, dtype)


class BlurredImagesPrior(_SpectralPrior):
    """Training images blurred as at t = 1, plus noise_std(1) n: Rissanen et al. 2022 (IHDM) start so.

    Keeps the surviving coefficients of the first `most` images (fewer where those are many: 16 Mi
    numbers in all), so a checkpoint holds blurred training images.
    """

    name = "blurred-images"

    def __init__(
        self, kept: Surviving, blur_std: float, threshold: float, noise_std: float, count: int, values: Tensor
    ) -> None:
        super().__init__(kept, blur_std, threshold, noise_std, count)
        if values.dim() != 2 or values.shape[1] != kept.size or values.shape[0] < 1:
            raise ValueError(
                f"BlurredImagesPrior: expected coefficients [images, {kept.size}], got {list(values.shape)}"
            )
        self.values = values.float()

    @classmethod
    def fit(
        cls,
        batches: Iterable[Any],
        corruption: Corruption,
        *,
        threshold: float = _THRESHOLD,
        most: int = 10_000,
    ) -> BlurredImagesPrior:
        """Kept from the start of a stream of batches [B, C, H, W], uint8 or floating-point."""
        most = args.integer("BlurredImagesPrior.fit", "most", most, least=1)
        pieces: list[Tensor] = []
        kept: Surviving | None = None
        held = 0
        for kept, values in surviving.stream("BlurredImagesPrior.fit", batches, corruption, threshold):
            room = min(most, max(1, _KEPT_VALUES // max(1, kept.size))) - held
            pieces.append(values[:room].float().cpu())
            held += pieces[-1].shape[0]
            if room <= values.shape[0]:
                break
        assert kept is not None
        blur, noise = corruption.blur_std(1.0), corruption.noise_std(1.0)
        return cls(kept, blur, threshold, noise, held, torch.cat(pieces))

    def describe(self) -> str:
        return f"{self.name}: blurred training images, the {self._tail()}"

    def state_dict(self) -> dict[str, Tensor]:
        return {"values": self.values.contiguous()}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> BlurredImagesPrior:
        """The prior that `config` and `state_dict` describe."""
        return cls(*cls._parts(config), tensors["values"].cpu())

    def _mean(self, key: NoiseKey, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        word = words_after(key, batch, self._elements, 1, device)[:, 0]
        chosen = (word * self.values.shape[0]) >> 32
        return self.kept.scatter(self.values.to(device)[chosen].double(), dtype)


class PlainGaussianPrior(Prior):
    """White noise of mean 0: what noise-only diffusion starts from, kept for comparison."""

    name = "plain-gaussian"

    def __init__(self, image_size: tuple[int, int], channels: int, std: float) -> None:
        super().__init__(image_size, channels, std)

    @classmethod
    def fit(cls, batches: Iterable[Any], corruption: Corruption) -> PlainGaussianPrior:
        """White noise with the mean square of the data's x_1."""
        total, count, channels = 0.0, 0, 1
        for kept, values in surviving.stream("PlainGaussianPrior.fit", batches, corruption, 0.0):
            total += float(values.square().sum())
            count += values.shape[0]
            channels = kept.channels
        height, width = corruption.image_size
        mean_square = total / (count * channels * height * width)
        std = (mean_square + corruption.noise_std(1.0) ** 2) ** 0.5
        return cls(corruption.image_size, channels, std)

    def describe(self) -> str:
        return f"{self.name}: white noise of deviation {self.noise_std:.4g}, mean 0"

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PlainGaussianPrior:
        """The prior that `config` describes."""
        return cls(config["image_size"], config["channels"], config["noise_std"])

    def _mean(self, key: NoiseKey, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, self.channels, *self.image_size, device=device, dtype=dtype)


PRIORS: dict[str, type[GaussianDCTPrior] | type[BlurredImagesPrior] | type[PlainGaussianPrior]] = {
    p.name: p for p in (GaussianDCTPrior, BlurredImagesPrior, PlainGaussianPrior)
}


def prior_from_state(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Prior:
    """The prior whose `config()` and `state_dict()` these are; ValueError where they are not."""
    name = config.get("prior") if isinstance(config, Mapping) else None
    if name not in PRIORS:
        raise ValueError(f"prior: expected one of {', '.join(map(repr, PRIORS))}, got {args.shown(name)}")
    try:
        return PRIORS[str(name)].from_state(config, tensors)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"prior {name}: expected its whole configuration and tensors, got {error!r}"
        ) from None
