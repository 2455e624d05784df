# SPDX-License-Identifier: Apache-2.0
"""Priors: distributions from which x_1, the start of sampling, is drawn.

The paper leaves the distribution of x_1 open, so all of these are ours. Each image is a function of its key
(seed, stream, draw 0) only, so image k is the same at any batch size. The noise of noise_std(1) uses the
first words of an image's stream, everything else the words after them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from .. import functional, spectrum
from ..images import pieces
from ..noise import NoiseKey, fresh_key, normals_from_words, words_after
from .blur import BlurCorruption
from .corruption import Corruption

_THRESHOLD = 1e-3
_FULL_COVARIANCE_UP_TO = 1024
_BASES = ("dct", "pixels")
_MOST_VALUES = 2**24


class Prior:
    """The base of all priors. `name` identifies the prior in a checkpoint and in the record of samples.

    A subclass implements `_mean`, `describe`, `fit` and `from_state`, extends `state_dict` and `config` if it
    has a state of its own, and has an entry in PRIORS.

    Examples:
        >>> prior = PlainGaussianPrior((16, 16), channels=3, std=0.5)
        >>> isinstance(prior, Prior), prior.name
        (True, 'plain-gaussian')
        >>> torch.equal(prior.sample(4, key=sk.NoiseKey(0))[:2], prior.sample(2, key=sk.NoiseKey(0)))
        True
    """

    name = ""

    def __init__(self, image_size: tuple[int, int], channels: int, noise_std: float) -> None:
        self.image_size = args.image_size("prior", image_size)
        self.channels: int = args.integer("prior", "channels", channels, least=1)
        self.noise_std: float = args.number("prior", "noise_std", noise_std)

    @classmethod
    def fit(cls, batches: Iterable[Any], corruption: Corruption) -> Prior:
        """Fitted to x_1 of a stream of batches [B, C, H, W], uint8 or floating-point."""
        raise NotImplementedError

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Prior:
        """The prior whose `config()` and `state_dict()` these are."""
        raise NotImplementedError

    def sample(
        self,
        images: int | Tensor,
        *,
        key: NoiseKey | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """x_1, [B, C, H, W].

        Args:
            images: Their number B, whose streams start at the key's; or their streams, int64 [B] on the
                device.
            key: Used at draw 0. None takes a fresh key from torch's generator.
            device: Where to draw.
            dtype: Of x_1.
        """
        where = torch.device(device)
        key, batch = _for_images(key, images)
        return self._add_noise(self._mean(key, batch, where, dtype), key)

    def describe(self) -> str:
        """One line for the record of samples.

        `softdiff sample` adds images to a folder only if its record has the same line, so the wording is part
        of the file format.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors from which, with `config`, `prior_from_state` restores the prior."""
        return {}

    def config(self) -> dict[str, Any]:
        """The part of the state that is not tensors, as JSON can store it."""
        return {
            "prior": self.name,
            "image_size": list(self.image_size),
            "channels": self.channels,
            "noise_std": self.noise_std,
        }

    def _mean(self, key: NoiseKey, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """x_1 without its noise, [B, C, H, W] in dtype on the device."""
        raise NotImplementedError

    def _add_noise(self, clean: Tensor, key: NoiseKey) -> Tensor:
        # A blur of 0 px leaves the image exactly as it is, and the noise is added in the same pass.
        noisy = functional.corrupt(clean, 0.0, self.noise_std, key=key)
        assert isinstance(noisy, Tensor)
        return noisy

    @property
    def _elements(self) -> int:
        return self.channels * self.image_size[0] * self.image_size[1]


def _for_images(key: NoiseKey | None, images: int | Tensor) -> tuple[NoiseKey, int]:
    """(key at draw 0, batch size), from a number of images or from their streams (int64 [B])."""
    key = fresh_key() if key is None else key
    if isinstance(images, Tensor):
        if images.dtype != torch.int64 or images.dim() != 1:
            raise TypeError(
                f"sample: expected the images as a number or as streams, an int64 tensor [B], got "
                f"{images.dtype} of shape {list(images.shape)}"
            )
        return replace(key, stream=images, draw=0), images.shape[0]
    count = args.whole(images)
    if count is None or not 0 <= count < 2**31:
        wanted = "an int of at least 0" + (" and under 2^31" if count and count > 0 else "")
        raise ValueError(f"sample: expected the number of images as {wanted}, got {args.shown(images)}")
    return key.at(0), count


class Surviving:
    """The few coefficients of an image that survive the corruption at t = 1: gathered, and scattered back.

    They are `m_1 V^T x` where the gain m_1 at t = 1 exceeds `threshold` (V is the DCT for a corruption over
    frequencies). At the paper's strongest blur 13 frequencies have m_1 > 1e-3: 39 numbers for an RGB image.
    Of a corruption in another basis, or in none, they are the pixels of C_1 x.

    image_size: (H, W); gain: m_1, float64 [C, H, W], or [1, H, W] for all channels alike; basis: as
    `Corruption.basis`.
    """

    def __init__(self, channels: int, gain: Tensor, threshold: float, basis: str = "dct") -> None:
        self.image_size = gain.shape[-2], gain.shape[-1]
        self.channels: int = args.integer("prior", "channels", channels, least=1)
        threshold = args.number("prior", "threshold", threshold)
        args.choice("prior", "basis", basis, _BASES)
        self.basis = basis
        self.all_gains = gain.double().cpu()
        full = self.all_gains.reshape(-1, *self.image_size).expand(self.channels, -1, -1).reshape(-1)
        self.index = (full.abs() > threshold).nonzero()[:, 0]
        self.gain = full[self.index]

    @classmethod
    def of_blur(
        cls, image_size: tuple[int, int], channels: int, blur_std: float, threshold: float
    ) -> Surviving:
        """Those of a Gaussian blur of blur_std pixels."""
        size = args.image_size("prior", image_size)
        std = torch.tensor([args.number("prior", "blur_std", blur_std)], dtype=torch.float64)
        return cls(channels, spectrum.heat_gain(std, *size)[0], threshold)

    @property
    def size(self) -> int:
        """Numbers per image."""
        return len(self.index)

    def gather(self, images: Tensor) -> Tensor:
        """Corrupted coefficients of images [B, C, H, W]: float64 [B, size], channel by channel."""
        coefficients = functional.dct2(images) if self.basis == "dct" else images
        return coefficients.flatten(1)[:, self.index.to(images.device)].double() * self.gain.to(images.device)

    def scatter(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """The corrupted images [B, C, H, W] that have these coefficients [B, size]."""
        height, width = self.image_size
        coefficients = values.new_zeros(values.shape[0], self.channels * height * width)
        coefficients[:, self.index.to(values.device)] = values
        coefficients = coefficients.view(-1, self.channels, height, width)
        return (functional.idct2(coefficients) if self.basis == "dct" else coefficients).to(dtype)


def _surviving(
    op: str, batches: Iterable[Any], corruption: Corruption, threshold: float
) -> Iterator[tuple[Surviving, Tensor]]:
    """(Surviving, its coefficients [b, size]) of a stream of batches, piece by piece."""
    surviving: Surviving | None = None
    known = corruption.basis in _BASES
    for images in pieces(op, batches):
        corruption.check_size(op, images)
        if surviving is None:
            gain, basis = corruption.gain(1.0) if known else torch.ones(1), corruption.basis
            gain = gain.reshape((1,) * (4 - gain.dim()) + gain.shape).expand(1, -1, *corruption.image_size)
            surviving = Surviving(images.shape[1], gain[0], threshold, basis if known else "pixels")
        if not known:
            corrupted = corruption.corrupt(images, 1.0, noise=torch.zeros_like(images))
            assert isinstance(corrupted, Tensor)
            images = corrupted
        yield surviving, surviving.gather(images)
    if surviving is None:
        raise ValueError(f"{op}: expected at least one image, got none")


def _end(op: str, corruption: Corruption, *, white: bool = False) -> tuple[float | None, float | Tensor]:
    """The blur at t = 1 if it alone makes the gain, and the noise; coloured noise as [C or 1, H, W].

    white: whether the prior takes no other noise.
    """
    noise = corruption.noise(1.0)
    plain = isinstance(corruption, BlurCorruption) and corruption.floor == 0 and corruption.mean(1.0) == 1
    blur = corruption.blur_std(1.0) if plain else None  # type: ignore[attr-defined]
    if noise.numel() == 1:
        return blur, noise.item()
    if white or corruption.basis not in _BASES:
        raise ValueError(
            f"{op}: expected white noise at t = 1, got the coloured noise of {type(corruption).__name__}; "
            + ("take the Gaussian prior" if white else "draw x_1 by its own `corrupt`")
        )
    noise = noise.reshape((1,) * (4 - noise.dim()) + noise.shape).expand(1, -1, *corruption.image_size)
    return blur, noise[0].double().contiguous()


class _SpectralPrior(Prior):
    """A prior over the coefficients that survive the corruption at t = 1.

    noise_std: a number, or coloured noise [C or 1, H, W] in the basis of the coefficients.
    """

    def __init__(
        self,
        surviving: Surviving,
        blur_std: float | None,
        threshold: float,
        noise_std: float | Tensor,
        count: int,
    ) -> None:
        self.noise = noise_std.double().cpu() if isinstance(noise_std, Tensor) else None
        level = noise_std if self.noise is None else self.noise.square().mean().sqrt().item()
        super().__init__(surviving.image_size, surviving.channels, level)  # type: ignore[arg-type]
        self.surviving = surviving
        self.blur_std = None if blur_std is None else args.number("prior", "blur_std", blur_std)
        self.threshold: float = args.number("prior", "threshold", threshold)
        self.count: int = args.integer("prior", "count", count)

    def config(self) -> dict[str, Any]:
        return {
            **super().config(),
            "blur_std": self.blur_std,
            "threshold": self.threshold,
            "images": self.count,
            **({} if self.surviving.basis == "dct" else {"basis": self.surviving.basis}),
        }

    def state_dict(self) -> dict[str, Tensor]:
        state = {} if self.blur_std is not None else {"gain": self.surviving.all_gains.contiguous()}
        return state if self.noise is None else {**state, "noise": self.noise}

    def _add_noise(self, clean: Tensor, key: NoiseKey) -> Tensor:
        if self.noise is None:
            return super()._add_noise(clean, key)
        dtype = torch.float64 if clean.dtype == torch.float64 else torch.float32
        noise = self.noise.to(clean.device, dtype)
        if self.surviving.basis == "dct":
            keep = torch.ones(1, dtype=dtype, device=clean.device)
            return functional.spectral_mix([clean], [keep], noise_mask=noise, key=key)
        white = functional.normal(clean.shape, key, device=clean.device, dtype=dtype)
        return (clean + noise * white).to(clean.dtype)

    @staticmethod
    def _parts(
        config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[Surviving, float | None, float, float | Tensor, int]:
        blur, threshold, channels = config["blur_std"], config["threshold"], config["channels"]
        if blur is not None:
            surviving = Surviving.of_blur(config["image_size"], channels, blur, threshold)
        else:
            surviving = Surviving(channels, tensors["gain"], threshold, config.get("basis", "dct"))
        noise = tensors.get("noise", config["noise_std"])
        return surviving, blur, threshold, noise, config["images"]

    def _tail(self) -> str:
        kind = "DCT coefficients" if self.surviving.basis == "dct" else "pixels"
        blur = "" if self.blur_std is None else f"blur {self.blur_std:g} px, "
        colour = "" if self.noise is None else "coloured "
        return (
            f"{self.surviving.size} surviving {kind} ({blur}gain over "
            f"{self.threshold:g}) of {self.count} images, plus {colour}noise {self.noise_std:g}"
        )


class GaussianDCTPrior(_SpectralPrior):
    """A Gaussian fitted to the data's frequencies that survive the strongest blur, plus noise.

    The noise is noise_std(1) n. The covariance is full, over channels and frequencies, for up to 1024 numbers
    per image. For more (if the strongest blur is mild) it has only the variances, and `describe` says so.

    Examples:
        >>> images = torch.rand(32, 1, 16, 16) * 2 - 1  # your images
        >>> prior = GaussianDCTPrior.fit([images], BlurCorruption.paper((16, 16)))
        >>> prior.sample(4, key=sk.NoiseKey(0)).shape
        torch.Size([4, 1, 16, 16])
    """

    name = "gaussian-dct"

    def __init__(
        self,
        surviving: Surviving,
        blur_std: float | None,
        threshold: float,
        noise_std: float | Tensor,
        count: int,
        mean: Tensor,
        factor: Tensor,
    ) -> None:
        super().__init__(surviving, blur_std, threshold, noise_std, count)
        size = surviving.size
        if mean.shape != (size,) or factor.shape not in ((size,), (size, size)):
            raise ValueError(
                f"GaussianDCTPrior: expected a mean of {size} numbers and its factor, got shapes "
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
        surviving: Surviving | None = None
        full = False
        for surviving, values in _surviving("GaussianDCTPrior.fit", batches, corruption, threshold):
            if count == 0:
                full = surviving.size <= _FULL_COVARIANCE_UP_TO
                shift = values.mean(dim=0)
                first, second = (
                    torch.zeros_like(shift),
                    shift.new_zeros((surviving.size,) * (2 if full else 1)),
                )
            values = values - shift
            first += values.sum(dim=0)
            second += values.T @ values if full else values.square().sum(dim=0)
            count += values.shape[0]
        assert surviving is not None
        mean = first / count
        blur, noise = _end("GaussianDCTPrior.fit", corruption)
        if full:
            # The symmetric root is unique: it does not depend on a library's choice of signs or pivots.
            values, vectors = torch.linalg.eigh(second / count - torch.outer(mean, mean))
            factor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        else:
            factor = (second / count - mean.square()).clamp(min=0).sqrt()
        return cls(surviving, blur, threshold, noise, count, (mean + shift).cpu(), factor.cpu())

    def describe(self) -> str:
        covariance = "full covariance" if self.factor.dim() == 2 else "variances alone, they are many"
        return f"{self.name}: Gaussian ({covariance}) of the {self._tail()}"

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "mean": self.mean.contiguous(), "factor": self.factor.contiguous()}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GaussianDCTPrior:
        return cls(*cls._parts(config, tensors), tensors["mean"].cpu(), tensors["factor"].cpu())

    def _mean(self, key: NoiseKey, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        size = self.surviving.size
        words = words_after(key, batch, self._elements, size + size % 2, device)
        z = normals_from_words(words)[:, :size]
        factor = self.factor.to(device)
        values = z @ factor.T if factor.dim() == 2 else z * factor
        return self.surviving.scatter(self.mean.to(device) + values, dtype)


class BlurredImagesPrior(_SpectralPrior):
    """Training images, blurred as at t = 1, plus noise.

    The noise is noise_std(1) n, as in Rissanen et al. 2022 (IHDM). Keeps the surviving coefficients of the
    first `most` images (of fewer, if these have many coefficients: at most 16 Mi numbers in total). So a
    checkpoint contains blurred training images.

    Examples:
        >>> images = torch.rand(32, 1, 16, 16) * 2 - 1  # your images
        >>> prior = BlurredImagesPrior.fit([images], BlurCorruption.paper((16, 16)))
        >>> prior.sample(4, key=sk.NoiseKey(0)).shape
        torch.Size([4, 1, 16, 16])
    """

    name = "blurred-images"

    def __init__(
        self,
        surviving: Surviving,
        blur_std: float | None,
        threshold: float,
        noise_std: float | Tensor,
        count: int,
        values: Tensor,
    ) -> None:
        super().__init__(surviving, blur_std, threshold, noise_std, count)
        size = surviving.size
        if values.dim() != 2 or values.shape[1] != size or values.shape[0] < 1:
            raise ValueError(
                f"BlurredImagesPrior: expected coefficients [images, {size}], got {list(values.shape)}"
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
        """From the first images of a stream of batches [B, C, H, W], uint8 or floating-point."""
        most = args.integer("BlurredImagesPrior.fit", "most", most, least=1)
        parts: list[Tensor] = []
        surviving: Surviving | None = None
        count = 0
        for surviving, values in _surviving("BlurredImagesPrior.fit", batches, corruption, threshold):
            missing = min(most, max(1, _MOST_VALUES // max(1, surviving.size))) - count
            parts.append(values[:missing].float().cpu())
            count += parts[-1].shape[0]
            if missing <= values.shape[0]:
                break
        assert surviving is not None
        blur, noise = _end("BlurredImagesPrior.fit", corruption)
        return cls(surviving, blur, threshold, noise, count, torch.cat(parts))

    def describe(self) -> str:
        return f"{self.name}: blurred training images, the {self._tail()}"

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "values": self.values.contiguous()}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> BlurredImagesPrior:
        return cls(*cls._parts(config, tensors), tensors["values"].cpu())

    def _mean(self, key: NoiseKey, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        word = words_after(key, batch, self._elements, 1, device)[:, 0]
        chosen = (word * self.values.shape[0]) >> 32  # uniform over the images
        return self.surviving.scatter(self.values.to(device)[chosen].double(), dtype)


class PlainGaussianPrior(Prior):
    """White noise of mean 0, the start of noise-only diffusion.

    Examples:
        >>> prior = PlainGaussianPrior((16, 16), channels=3, std=0.5)
        >>> prior.sample(4, key=sk.NoiseKey(0)).shape
        torch.Size([4, 3, 16, 16])
    """

    name = "plain-gaussian"

    def __init__(self, image_size: tuple[int, int], channels: int, std: float) -> None:
        super().__init__(image_size, channels, std)

    @classmethod
    def fit(cls, batches: Iterable[Any], corruption: Corruption) -> PlainGaussianPrior:
        """White noise with the mean square of the data's x_1."""
        total, count, channels = 0.0, 0, 1
        for surviving, values in _surviving("PlainGaussianPrior.fit", batches, corruption, 0.0):
            total += float(values.square().sum())
            count += values.shape[0]
            channels = surviving.channels
        height, width = corruption.image_size
        mean_square = total / (count * channels * height * width)
        _, noise = _end("PlainGaussianPrior.fit", corruption, white=True)
        assert isinstance(noise, float)
        return cls(corruption.image_size, channels, (mean_square + noise**2) ** 0.5)

    def describe(self) -> str:
        return f"{self.name}: white noise of deviation {self.noise_std:.4g}, mean 0"

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PlainGaussianPrior:
        return cls(config["image_size"], config["channels"], config["noise_std"])

    def _mean(self, key: NoiseKey, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, self.channels, *self.image_size, device=device, dtype=dtype)


PRIORS: dict[str, type[Prior]] = {
    "gaussian": GaussianDCTPrior,
    "blurred": BlurredImagesPrior,
    "plain": PlainGaussianPrior,
}
"""The priors by the names that options take; a checkpoint stores the class's `name`. Help texts are the first
lines of the docstrings."""


def prior_from_state(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Prior:
    """The prior whose `config()` and `state_dict()` these are. ValueError if they are not a prior's.

    Examples:
        >>> prior = GaussianDCTPrior.fit([torch.rand(32, 1, 16, 16)], BlurCorruption.paper((16, 16)))
        >>> again = prior_from_state(prior.config(), prior.state_dict())
        >>> torch.equal(again.sample(2, key=sk.NoiseKey(0)), prior.sample(2, key=sk.NoiseKey(0)))
        True
    """
    classes = {prior.name: prior for prior in PRIORS.values()}
    name = config.get("prior") if isinstance(config, Mapping) else None
    if name not in classes:
        raise ValueError(f"prior: expected one of {', '.join(map(repr, classes))}, got {args.shown(name)}")
    try:
        return classes[str(name)].from_state(config, tensors)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"prior {name}: expected its complete configuration and tensors, got {error!r}"
        ) from None
