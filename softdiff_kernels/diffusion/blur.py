# SPDX-License-Identifier: Apache-2.0
"""Gaussian blur and white noise as tables over t: Soft Diffusion, Blurring Diffusion, IHDM, noise alone."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from .. import _arguments as args
from .. import functional, spectrum
from ..caches import Tables
from ..noise import NoiseKey
from .corruption import Corruption, Factor, is_number, register
from .schedule import LOG_STEP, Schedule, geometric_noise_std, noise_nodes, noise_range, paper_blur_std_max

_GEOMETRIC_FROM = 0.01
_COSINE_NODES = 1025


@register("blur")
@dataclass(frozen=True)
class BlurCorruption(Corruption):
    """`x_t = C_t x_0 + noise_std(t) n`, `C_t = mean(t) ((1 - floor) G_t + floor)`, as tables over t.

    G_t is a Gaussian blur of blur_std(t) pixels. The tables are linear between their nodes. Any other tables
    than described here raise ValueError.

    Attributes:
        image_size: (H, W) of the images.
        t: Times of the nodes, rising from 0 to 1.
        blur_std_nodes: Blur at the nodes in pixels, at least 0 and nondecreasing.
        noise_std_nodes: Noise at the nodes, for images in [-1, 1], at least 0.
        name: How the corruption was made.
        floor: Share of the image that is not blurred, in [0, 1].
        mean_nodes: a_t at the nodes, over 0. None is 1 everywhere.

    Examples:
        >>> corruption = BlurCorruption.paper((64, 64))
        >>> corruption.blur_std(1.0), corruption.noise_std(1.0)
        (23.0, 0.1)
        >>> t = torch.tensor([0.1, 0.9])  # a time for each image
        >>> corruption.corrupt(torch.zeros(2, 3, 64, 64), t, key=sk.NoiseKey(0)).shape
        torch.Size([2, 3, 64, 64])
    """

    image_size: tuple[int, int]
    t: tuple[float, ...]
    blur_std_nodes: tuple[float, ...]
    noise_std_nodes: tuple[float, ...]
    name: str = "custom"
    floor: float = 0.0
    mean_nodes: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        op = "BlurCorruption"
        object.__setattr__(self, "image_size", args.image_size(op, self.image_size))
        object.__setattr__(self, "floor", args.number(op, "floor", self.floor, most=1.0))
        tables = ["blur_std_nodes", "noise_std_nodes"]
        if self.mean_nodes is not None:
            tables.append("mean_nodes")
        for field in ("t", *tables):
            object.__setattr__(self, field, _table(field, getattr(self, field)))
        if len(self.t) < 2 or self.t[0] != 0.0 or self.t[-1] != 1.0 or not _rises(self.t, strictly=True):
            raise ValueError(
                f"{op}: expected t as at least 2 times that rise from 0 to 1, got {args.shown(self.t)}"
            )
        for field in tables:
            values = getattr(self, field)
            if len(values) != len(self.t):
                raise ValueError(
                    f"{op}: expected {field} with {len(self.t)} values, as many as t, got {len(values)}"
                )
        blur = self.blur_std_nodes
        if blur[0] < 0 or not _rises(blur, strictly=False):
            raise ValueError(
                f"{op}: expected blur_std_nodes of at least 0 and nondecreasing, got {args.shown(blur)}"
            )
        if min(self.noise_std_nodes) < 0:
            raise ValueError(
                f"{op}: expected noise_std_nodes of at least 0, got {args.shown(self.noise_std_nodes)}"
            )
        if self.mean_nodes is not None and not min(self.mean_nodes) > 0:
            raise ValueError(f"{op}: expected mean_nodes over 0, got {args.shown(self.mean_nodes)}")

    @property
    def family(self) -> str:  # type: ignore[override]
        """Blurring Diffusion, noise alone, IHDM, or Soft Diffusion, of which it is a case."""
        if self.mean_nodes is not None:
            return "blurring"
        if self.blur_std_nodes[-1] == 0:
            return "noise"
        return "ihdm" if self.name == "ihdm" else "soft"

    @overload
    def blur_std(self, t: float) -> float: ...
    @overload
    def blur_std(self, t: Tensor) -> Tensor: ...
    def blur_std(self, t: float | Tensor) -> float | Tensor:
        """Standard deviation of the blur at t, in pixels.

        Args:
            t: A number in [0, 1], or a floating-point tensor of any shape, whose dtype and device the result
                has. Not differentiable in t.

        Raises:
            ValueError: If t is outside [0, 1], requires grad or carries a tangent. On a device values are
                clamped instead, because reading them would synchronise.
        """
        return self._at("blur_std_nodes", t)

    @overload
    def noise_std(self, t: float) -> float: ...
    @overload
    def noise_std(self, t: Tensor) -> Tensor: ...
    def noise_std(self, t: float | Tensor) -> float | Tensor:
        """Standard deviation of the noise at t, in units of the image; t as in `blur_std`."""
        return self._at("noise_std_nodes", t)

    @overload
    def mean(self, t: float) -> float: ...
    @overload
    def mean(self, t: Tensor) -> Tensor: ...
    def mean(self, t: float | Tensor) -> float | Tensor:
        """a_t, the factor of the image as a whole; t as in `blur_std`."""
        if self.mean_nodes is None:
            return torch.ones_like(t) if isinstance(t, Tensor) else 1.0
        return self._at("mean_nodes", t)

    def _at(self, field: str, t: float | Tensor) -> float | Tensor:
        t = args.time("BlurCorruption", t)
        if isinstance(t, Tensor):
            return interpolate(_tables(self, field, t.device), t)
        values: tuple[float, ...] = getattr(self, field)
        i = min(bisect_right(self.t, t) - 1, len(self.t) - 2)
        low, high = values[i], values[i + 1]
        slope = (high - low) / (self.t[i + 1] - self.t[i])
        value = low + (t - self.t[i]) * slope
        # Not beyond the next node's value, so that rounding cannot make a rising table fall.
        return min(value, high) if low <= high else max(value, high)

    def gain(self, t: float | Tensor) -> Tensor:
        """m_t at each DCT frequency: [B, 1, H, W] for t [B], in t's dtype; float64 for a number."""
        blur_std = _column(self.blur_std(t))
        scale = 1.0 if self.mean_nodes is None else _column(self.mean(t))
        return spectrum.heat_gain(blur_std, *self.image_size, floor=self.floor, scale=scale)

    def noise(self, t: float | Tensor) -> Tensor:
        """noise_std(t) as [B, 1, 1, 1]; t as in `gain`."""
        return _column(self.noise_std(t)).view(-1, 1, 1, 1)

    def gain_ratio(self, t: float, s: float) -> Tensor:
        """m_t / m_s for s < t, in float64; without a floor from the difference of the blurs, never 0 / 0."""
        scale = self.mean(t) / self.mean(s)
        if self.floor != 0.0:
            return self.gain(t) / self.gain(s)
        apart = math.sqrt(max(self.blur_std(t) ** 2 - self.blur_std(s) ** 2, 0.0))
        return spectrum.heat_gain(_column(apart), *self.image_size, scale=scale)

    def white(self, x: Tensor, key: NoiseKey) -> Tensor:
        """The white noise n that `corrupt` adds to images x for this key: `softdiff_kernels.normal`'s."""
        dtype = torch.float32 if x.dtype == torch.uint8 else x.dtype
        return functional.normal(x.shape, key, device=x.device, dtype=dtype)

    def corrupt(
        self,
        x0: Tensor,
        t: float | Tensor,
        *,
        key: NoiseKey | None = None,
        noise: Tensor | None = None,
        return_residual: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As in `Corruption`, in one pass, by `softdiff_kernels.corrupt`."""
        self.check_size("BlurCorruption.corrupt", x0)
        return functional.corrupt(
            x0,
            self.blur_std(t),
            self.noise_std(t),
            floor=self.floor,
            scale=1.0 if self.mean_nodes is None else self.mean(t),
            key=key,
            noise=noise,
            return_residual=return_residual,
        )

    def step(
        self,
        x_t: Tensor,
        x0_hat: Tensor,
        t: float,
        s: float,
        A: Factor,
        B: Factor,
        *,
        key: NoiseKey | None = None,
    ) -> Tensor:
        """As in `Corruption`. With numbers A and B by the fused `softdiff_kernels.reverse_step`."""
        if not (is_number(A) and is_number(B)):
            return super().step(x_t, x0_hat, t, s, A, B, key=key)
        x_t, x0_hat, ratio = self._over_mean(x_t, x0_hat, t, s)
        return functional.reverse_step(
            x_t,
            x0_hat,
            blur_std_t=self.blur_std(t),
            blur_std_s=self.blur_std(s),
            a=A / ratio,
            b=B,
            floor=self.floor,
            key=key,
        )

    def momentum_step(
        self, x_t: Tensor, x0_hat: Tensor, t: float, s: float, variance: str, *, key: NoiseKey | None = None
    ) -> Tensor:
        """The step of the momentum rule, by the fused `softdiff_kernels.momentum_step`.

        The noise of x_t / mean(t) has the standard deviation noise_std(t) / mean(t), which must not rise from
        t to s.
        """
        x_t, x0_hat, _ = self._over_mean(x_t, x0_hat, t, s)
        if self.mean_nodes is None:
            noise_t, noise_s = self.noise_std(t), self.noise_std(s)
        else:  # times mean(s), which the result is to have
            noise_t, noise_s = self.noise_std(t) * self.mean(s) / self.mean(t), self.noise_std(s)
        return functional.momentum_step(
            x_t,
            x0_hat,
            blur_std_t=self.blur_std(t),
            blur_std_s=self.blur_std(s),
            noise_std_t=noise_t,
            noise_std_s=noise_s,
            variance=variance,
            floor=self.floor,
            key=key,
        )

    def _over_mean(self, x_t: Tensor, x0_hat: Tensor, t: float, s: float) -> tuple[Tensor, Tensor, float]:
        """mean(s) x_t / mean(t), mean(s) x0_hat, and the first factor. A step without means, from
        these, gives x_s with its mean."""
        if self.mean_nodes is None:
            return x_t, x0_hat, 1.0
        mean_s = self.mean(s)
        ratio = mean_s / self.mean(t)
        return x_t * ratio, x0_hat * mean_s, ratio

    def loss(
        self,
        prediction: Tensor,
        target: Tensor,
        t: Tensor,
        *,
        mask: Factor | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """As in `Corruption`. Where the mask is C_t's or a number, by the fused
        `softdiff_kernels.soft_score_loss`."""
        blur_std: float | Tensor = self.blur_std(t)
        floor, factor = self.floor, None if self.mean_nodes is None else self.mean(t)
        if mask is not None:
            if not is_number(mask):
                return super().loss(prediction, target, t, mask=mask, weight=weight, reduction=reduction)
            blur_std, floor = 0.0, 0.0
            factor = None if mask == 1.0 else torch.full_like(t, float(mask))
        if factor is not None:
            weight = factor.square() if weight is None else factor.square() * weight
        return functional.soft_score_loss(
            prediction, target, blur_std, weight=weight, floor=floor, reduction=reduction
        )

    def config(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "image_size": list(self.image_size),
            "t": list(self.t),
            "blur_std": list(self.blur_std_nodes),
            "noise_std": list(self.noise_std_nodes),
            "name": self.name,
        }
        if self.floor != 0.0:
            content["floor"] = self.floor
        if self.mean_nodes is not None:
            content["mean"] = list(self.mean_nodes)
        return content

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BlurCorruption:
        missing = [n for n in ("image_size", "t", "blur_std", "noise_std", "name") if n not in config]
        if missing:
            raise ValueError(f"Corruption: {', '.join(missing)} missing from the dictionary")
        return cls.from_tables(**{**config, "name": str(config["name"])})

    @classmethod
    def from_tables(
        cls,
        image_size: tuple[int, int],
        t: Sequence[float],
        blur_std: Sequence[float],
        noise_std: Sequence[float],
        name: str = "custom",
        *,
        floor: float = 0.0,
        mean: Sequence[float] | None = None,
    ) -> BlurCorruption:
        """A corruption from values of blur_std (pixels), noise_std and, where it is not 1, mean at the times
        t, linear in between."""
        return cls(
            image_size,
            _table("t", t),
            _table("blur_std", blur_std),
            _table("noise_std", noise_std),
            name,
            floor,
            None if mean is None else _table("mean", mean),
        )

    @classmethod
    def paper(
        cls,
        image_size: tuple[int, int],
        *,
        blur_std_min: float = 0.01,
        blur_std_max: float | None = None,
        noise_std_min: float = 0.01,
        noise_std_max: float = 0.10,
        noise_full_at: float = 0.25,
    ) -> BlurCorruption:
        """The paper's ranges without its schedule: blur linear in t, noise geometric up to noise_full_at.

        blur_std_max: None is the paper's 23 px at 64 px, times max(H, W) / 64; a number is used unchanged.
        The geometric part is tabulated so densely that interpolation is within 3.2e-4 of it.
        Daras et al. 2022, section 5 and figure 6 (blur 0.01 to 23 px, noise 0.01 to 0.10, here taken to be of
        images in [-1, 1]; if the paper means [0, 1], it is 0.02 to 0.20).
        """
        op = "BlurCorruption.paper"
        size = args.image_size(op, image_size)
        least, most = _blur_range(op, size, blur_std_min, blur_std_max)
        noise = noise_range(op, noise_std_min, noise_std_max, noise_full_at)
        t = noise_nodes(*noise)
        blur = least + (most - least) * t
        return cls.from_tables(
            size, t.tolist(), blur.tolist(), geometric_noise_std(t, *noise).tolist(), "paper"
        )

    @classmethod
    def geometric(
        cls,
        image_size: tuple[int, int],
        *,
        blur_std_min: float = 0.5,
        blur_std_max: float | None = None,
        noise_std_min: float = 0.01,
        noise_std_max: float = 0.10,
        noise_full_at: float = 0.25,
    ) -> BlurCorruption:
        """Blur geometric in t, as in IHDM (Rissanen et al. 2022: from 0.5 px), with the paper's noise.

        In the first hundredth of t the blur rises from 0.01 px to blur_std_min. Otherwise as `paper`.
        """
        op = "BlurCorruption.geometric"
        size = args.image_size(op, image_size)
        least, most = _blur_range(op, size, blur_std_min, blur_std_max)
        least = min(least, most)
        if not least > 0:
            raise ValueError(f"{op}: expected blur_std_min and blur_std_max over 0, got {least!r}")
        parts = max(1, math.ceil(math.log(most / least) / LOG_STEP))
        blur_t = np.linspace(_GEOMETRIC_FROM, 1.0, parts + 1)
        noise = noise_range(op, noise_std_min, noise_std_max, noise_full_at)
        t = np.union1d(blur_t, noise_nodes(*noise))
        blur = np.interp(t, np.append(0.0, blur_t), np.append(0.01, np.geomspace(least, most, parts + 1)))
        return cls.from_tables(
            size, t.tolist(), blur.tolist(), geometric_noise_std(t, *noise).tolist(), "geometric"
        )

    @classmethod
    def noise_only(
        cls, image_size: tuple[int, int], *, noise_std_min: float = 0.01, noise_std_max: float
    ) -> BlurCorruption:
        """No blur, noise geometric in t: the variance-exploding process of Song et al. 2021.

        noise_std_max: should be about the largest distance between two images (Song & Ermon 2020,
        technique 1).
        """
        size = args.image_size("BlurCorruption.noise_only", image_size)
        noise = noise_range("BlurCorruption.noise_only", noise_std_min, noise_std_max, 1.0)
        t = noise_nodes(*noise)
        return cls.from_tables(
            size, t.tolist(), [0.0] * len(t), geometric_noise_std(t, *noise).tolist(), "noise-only"
        )

    @classmethod
    def blurring_diffusion(
        cls,
        image_size: tuple[int, int],
        *,
        blur_std_max: float = 20.0,
        floor: float = 0.001,
        logsnr_min: float = -10.0,
        logsnr_max: float = 10.0,
    ) -> BlurCorruption:
        """Blurring Diffusion: blur within a variance-preserving process.

        blur_std = blur_std_max sin^2(pi t / 2); mean^2 + noise_std^2 = 1, with the cosine schedule of the
        signal-to-noise ratio, clipped to [logsnr_min, logsnr_max]. Hoogeboom & Salimans 2022, eq. 25 to 27
        and appendix A, whose blur_std_max is 20 for CIFAR-10 and 10 for LSUN. The tables are within 1e-5 of
        the formulas.
        """
        op = "BlurCorruption.blurring_diffusion"
        most = args.number(op, "blur_std_max", blur_std_max)
        low = args.number(op, "logsnr_min", logsnr_min, nonnegative=False)
        high = args.number(op, "logsnr_max", logsnr_max, nonnegative=False)
        if not -100 <= low < high <= 100:
            raise ValueError(f"{op}: expected -100 <= logsnr_min < logsnr_max <= 100, got {low!r}, {high!r}")
        t = np.linspace(0.0, 1.0, _COSINE_NODES)
        start, end = math.atan(math.exp(-high / 2)), math.atan(math.exp(-low / 2))
        angle = start + (end - start) * t
        return cls.from_tables(
            image_size,
            t.tolist(),
            (most * np.sin(0.5 * np.pi * t) ** 2).tolist(),
            np.sin(angle).tolist(),
            "blurring",
            floor=floor,
            mean=np.cos(angle).tolist(),
        )

    @classmethod
    def ihdm(
        cls,
        image_size: tuple[int, int],
        *,
        blur_std_min: float = 0.5,
        blur_std_max: float | None = None,
        noise_std: float = 0.02,
    ) -> BlurCorruption:
        """Inverse Heat Dissipation: blur geometric in t, and a constant, small noise.

        Rissanen et al. 2022. Its noise is 0.01 of images in [0, 1], which is 0.02 here. blur_std_max: None is
        half of the longer side (theirs at 64 and 128 px; 20 px for MNIST, 24 for CIFAR-10).
        """
        size = args.image_size("BlurCorruption.ihdm", image_size)
        made = cls.geometric(
            size,
            blur_std_min=blur_std_min,
            blur_std_max=max(size) / 2 if blur_std_max is None else blur_std_max,
            noise_std_min=noise_std,
            noise_std_max=noise_std,
        )
        return replace(made, name="ihdm")

    @classmethod
    def from_schedule(cls, schedule: Schedule) -> BlurCorruption:
        """Blur and noise at the nodes of the schedule, linear in between (Daras et al. 2022)."""
        return cls(schedule.image_size, schedule.t, schedule.blur_std, schedule.noise_std, "schedule")


def _blur_range(
    op: str, size: tuple[int, int], blur_std_min: float, blur_std_max: float | None
) -> tuple[float, float]:
    most = paper_blur_std_max(size) if blur_std_max is None else blur_std_max
    return args.number(op, "blur_std_min", blur_std_min), args.number(op, "blur_std_max", most)


def _table(name: str, values: object) -> tuple[float, ...]:
    return tuple(args.numbers("BlurCorruption", name, values))


def _rises(values: Sequence[float], *, strictly: bool) -> bool:
    return all(a < b or (a == b and not strictly) for a, b in pairwise(values))


def pieces(t: Sequence[float], values: Sequence[float], device: torch.device) -> Tensor:
    """Start, value, slope and limit of each piece of a table over t: float64 [4, nodes - 1]; see
    `interpolate`."""
    # Not by zip: torch 2.6 cannot trace it with `strict`.
    slope = [(values[i + 1] - values[i]) / (t[i + 1] - t[i]) for i in range(len(t) - 1)]
    return torch.tensor([t[:-1], values[:-1], slope, values[1:]], dtype=torch.float64, device=device)


def _make_tables(corruption: BlurCorruption, field: str, device: torch.device) -> Tensor:
    return pieces(corruption.t, getattr(corruption, field), device)


# Cached, so that a table is copied to a device once: a later copy could not be captured in a graph. The key,
# a corruption, takes three times as much memory as its table.
_kept_tables = Tables("corruption", _make_tables, copied=True, share=4)


def _tables(corruption: BlurCorruption, field: str, device: torch.device) -> Tensor:
    # torch.compile warns about a cache and traces through it; the traced table is a constant anyway.
    tables = _make_tables if torch.compiler.is_compiling() else _kept_tables
    return tables(corruption, field, device)


def interpolate(tables: Tensor, t: Tensor) -> Tensor:
    """The table of `pieces` at t, of any shape, in t's dtype."""
    start, value, slope, limit = tables.unbind(0)
    # Not detached: a derivative that was not detected above reaches the op, which refuses it.
    exact = t.double().clamp(0.0, 1.0)
    piece = torch.searchsorted(start, exact.contiguous(), right=True).sub_(1).clamp(min=0)
    found, end = value[piece] + (exact - start[piece]) * slope[piece], limit[piece]
    return torch.where(slope[piece] < 0, found.maximum(end), found.minimum(end)).to(t.dtype)


def _column(value: float | Tensor) -> Tensor:
    """[B], of a number in float64."""
    return value.reshape(-1) if isinstance(value, Tensor) else torch.tensor([value], dtype=torch.float64)
