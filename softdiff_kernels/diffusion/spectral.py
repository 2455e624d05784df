# SPDX-License-Identifier: Apache-2.0
"""Corruptions with any gain and noise at each DCT frequency: from tables, or by a formula of t.

Where a formula is given here, no table is made, and files store its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from .. import spectrum
from ..caches import Tables
from .corruption import Corruption, register, times
from .schedule import GeometricNoise, paper_blur_std_max
from .shortest_path import PowerSpectrum

_OP = "SpectralCorruption"
_LEAST_SHARE = 1e-6


@register("spectral")
class SpectralCorruption(Corruption):
    """`x_t = V[m_t * V^T x_0 + s_t * V^T n]` over DCT frequencies, from tables of m_t and s_t over t.

    The tables are linear between their nodes, so a gain keeps its sign, and 0 stays 0. Gains may rise with t
    and may be negative; the noise may fall, and may be coloured. `mean(t)` is the gain at frequency (0, 0)
    where that is over 0 and alike in all channels at every node, else 1.

    Args:
        image_size: (H, W) of the images.
        gain: m_t at each node of t: [N] for all frequencies alike, [N, H, W], or [N, C, H, W].
        noise: s_t, likewise, at least 0; [N] is white noise.
        t: Times of the nodes, rising from 0 to 1. None is even.
        name: How the corruption was made.

    Raises:
        ValueError: For any other tables.

    Examples:
        >>> keep = torch.linspace(1, 0, 8 * 8).reshape(8, 8)  # what is left of each frequency at t = 1
        >>> corruption = SpectralCorruption((8, 8), torch.stack([torch.ones(8, 8), keep]), [0.01, 0.2])
        >>> corruption.gain(0.5)[0, 0, 7, 7]
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        gain: Tensor | Sequence[Any],
        noise: Tensor | Sequence[Any],
        *,
        t: Sequence[float] | None = None,
        name: str = "spectral",
    ) -> None:
        self.image_size = args.image_size(_OP, image_size)
        self.name = str(name)
        self._gain = _table("gain", gain, self.image_size)
        self._noise = _table("noise", noise, self.image_size)
        nodes = len(self._gain)
        even = torch.linspace(0.0, 1.0, nodes, dtype=torch.float64).tolist()
        self.t = tuple(even if t is None else args.numbers(_OP, "t", t))
        rises = all(a < b for a, b in zip(self.t, self.t[1:], strict=False))
        if nodes < 2 or self.t[0] != 0.0 or self.t[-1] != 1.0 or not rises:
            raise ValueError(
                f"{_OP}: expected t as at least 2 times that rise from 0 to 1, got {args.shown(self.t)}"
            )
        for field, table in (("gain", self._gain), ("noise", self._noise)):
            if len(table) != len(self.t):
                raise ValueError(
                    f"{_OP}: expected {field} at {len(self.t)} times, as many as t and the gain have, got "
                    f"{len(table)}"
                )
        if self._noise.min() < 0:
            raise ValueError(f"{_OP}: expected noise of at least 0, got {self._noise.min().item():.6g}")
        counts = {table.shape[1] for table in (self._gain, self._noise)} - {1}
        if len(counts) > 1:
            raise ValueError(f"{_OP}: expected gain and noise of as many channels, got {sorted(counts)}")
        self.channels = counts.pop() if counts else None
        first = self._gain[:, :, 0, 0]
        alike = bool((first == first[:, :1]).all() and first.min() > 0)
        self._mean = tuple(first[:, 0].tolist()) if alike else None

    def gain(self, t: float | Tensor) -> Tensor:
        return self._at("_gain", t).expand(-1, -1, *self.image_size)

    def noise(self, t: float | Tensor) -> Tensor:
        return self._at("_noise", t)

    def _at(self, field: str, t: float | Tensor) -> Tensor:
        t = times(_OP, t)
        nodes, table = _on(self, "t", t.device), _on(self, field, t.device)
        exact = t.double().clamp(0.0, 1.0)
        piece = (torch.searchsorted(nodes, exact.contiguous(), right=True) - 1).clamp(0, len(self.t) - 2)
        share = (exact - nodes[piece]) / (nodes[piece + 1] - nodes[piece])
        return torch.lerp(table[piece], table[piece + 1], share.view(-1, 1, 1, 1)).to(t.dtype)

    def mean(self, t: float) -> float:
        if self._mean is None:
            return 1.0
        return float(self.gain(t)[0, 0, 0, 0])

    def config(self) -> dict[str, Any]:
        return {
            "image_size": list(self.image_size),
            "gain": _plain(self._gain),
            "noise": _plain(self._noise),
            "t": list(self.t),
            "name": self.name,
        }

    @staticmethod
    def equal_snr(
        spectrum: PowerSpectrum | Tensor | Sequence[Any],
        *,
        logsnr_min: float = -10.0,
        logsnr_max: float = 10.0,
    ) -> SpectralCorruption:
        """EqualSNR: noise coloured like the data, so that all frequencies are lost at the same t.

        m_t = a_t at every frequency and s_t = sigma_t sqrt(C_k), with a_t^2 + sigma_t^2 = 1 and the cosine
        schedule of `BlurCorruption.blurring_diffusion`, so the signal-to-noise ratio is a_t^2 / sigma_t^2
        everywhere. Falck et al. 2025, there over the DFT.

        Args:
            spectrum: The data's (`power_spectrum`), whose variances are C_k; or C_k itself, [C, H, W] or
                [H, W]. What is under 1e-6 of its mean counts as that.
            logsnr_min: Logarithm of the ratio at t = 1.
            logsnr_max: Likewise at t = 0.
        """
        variance = spectrum.variance if isinstance(spectrum, PowerSpectrum) else spectrum
        return EqualSNR(variance, logsnr_min, logsnr_max)

    @staticmethod
    def anisotropic(
        image_size: tuple[int, int],
        blur_std_h: float,
        blur_std_w: float,
        *,
        noise_std_min: float = 0.01,
        noise_std_max: float = 0.10,
        noise_full_at: float = 0.25,
    ) -> SpectralCorruption:
        """Gaussian blur of different strength along H and W, each linear in t from 0, with the paper's noise.

        Args:
            image_size: (H, W).
            blur_std_h: Blur along H at t = 1, in pixels.
            blur_std_w: Likewise along W.
            noise_std_min: As in `BlurCorruption.paper`.
            noise_std_max: Likewise.
            noise_full_at: Likewise.
        """
        return AnisotropicBlur(
            image_size, blur_std_h, blur_std_w, noise_std_min, noise_std_max, noise_full_at
        )

    @staticmethod
    def ideal_low_pass(
        image_size: tuple[int, int],
        *,
        cutoff: float | None = None,
        edge: float = 0.5,
        noise_std_min: float = 0.01,
        noise_std_max: float = 0.10,
        noise_full_at: float = 0.25,
    ) -> SpectralCorruption:
        """A low pass whose cutoff falls with t: every frequency is kept, then fades, then is gone.

        The frequency of (k, l) is sqrt((k / H)^2 + (l / W)^2) half cycles per pixel; the cutoff is geometric
        in t. Ours.

        Args:
            image_size: (H, W).
            cutoff: That of t = 1, where gains reach 0. None is the frequency of a blur of the paper's
                strongest.
            edge: Octaves over which a gain rises from 0 to 1, over 0.
            noise_std_min: As in `BlurCorruption.paper`.
            noise_std_max: Likewise.
            noise_full_at: Likewise.
        """
        size = args.image_size("SpectralCorruption.ideal_low_pass", image_size)
        if cutoff is None:
            # There the blur's gain exp(-(pi f blur_std)^2 / 2) is 1 / e.
            cutoff = min(1.0, math.sqrt(2.0) / (math.pi * paper_blur_std_max(size)))
        return LowPass(size, cutoff, edge, noise_std_min, noise_std_max, noise_full_at)


def _table(name: str, values: Tensor | Sequence[Any], size: tuple[int, int]) -> Tensor:
    """A table over t as float64 [N, C or 1, H or 1, W or 1] on the CPU."""
    if isinstance(values, Tensor):
        args.no_derivative(_OP, name, values, "tables")
    try:
        table = torch.as_tensor(values, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{_OP}: expected {name} as a table of numbers, got {args.shown(values)}") from None
    if table.dim() not in (1, 3, 4) or (table.dim() > 1 and tuple(table.shape[-2:]) not in (size, (1, 1))):
        height, width = size
        raise ValueError(
            f"{_OP}: expected {name} as [N], [N, {height}, {width}] or [N, C, {height}, {width}], got "
            f"{list(table.shape)}"
        )
    if table.numel() == 0 or not bool(table.isfinite().all()):
        raise ValueError(f"{_OP}: expected {name} as finite numbers, at least one, got others")
    return table.view(-1, 1, 1, 1) if table.dim() == 1 else table[:, None] if table.dim() == 3 else table


def _plain(table: Tensor) -> list[Any]:
    return (table.flatten() if table[0].numel() == 1 else table).tolist()


def _make(corruption: SpectralCorruption, field: str, device: torch.device) -> Tensor:
    return torch.as_tensor(getattr(corruption, field), dtype=torch.float64).to(device)


# Kept for each device, as the tables of `blur`. The key, a corruption, holds the table once more.
_kept = Tables("spectral corruption", _make, copied=True, share=2)


def _on(corruption: SpectralCorruption, field: str, device: torch.device) -> Tensor:
    return (_make if torch.compiler.is_compiling() else _kept)(corruption, field, device)


class _Formula(SpectralCorruption):
    """A corruption whose fields are its arguments, and all that files store."""

    def config(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Corruption:
        return cls(**config)

    def mean(self, t: float) -> float:
        return 1.0


class _WithPapersNoise(_Formula):
    noise_std_min: float
    noise_std_max: float
    noise_full_at: float

    def _check_noise(self) -> None:
        levels = GeometricNoise(self.noise_std_min, self.noise_std_max, self.noise_full_at)
        object.__setattr__(self, "_levels", levels)

    def noise(self, t: float | Tensor) -> Tensor:
        levels: GeometricNoise = self._levels  # type: ignore[attr-defined]
        return levels.at(times(_OP, t))


@register("anisotropic-blur")
@dataclass(frozen=True)
class AnisotropicBlur(_WithPapersNoise):
    """See `SpectralCorruption.anisotropic`."""

    image_size: tuple[int, int]
    blur_std_h: float
    blur_std_w: float
    noise_std_min: float = 0.01
    noise_std_max: float = 0.10
    noise_full_at: float = 0.25

    name = "anisotropic"

    def __post_init__(self) -> None:
        op = "SpectralCorruption.anisotropic"
        object.__setattr__(self, "image_size", args.image_size(op, self.image_size))
        for field in ("blur_std_h", "blur_std_w"):
            object.__setattr__(self, field, args.number(op, field, getattr(self, field)))
        self._check_noise()

    def gain(self, t: float | Tensor) -> Tensor:
        share = times(_OP, t)
        return self._heat(share.square())

    def _heat(self, square: Tensor) -> Tensor:
        """The gain of a blur whose squared deviations are these shares [B] of those at t = 1."""
        along_h, along_w = (
            torch.exp(-0.5 * std**2 * square[:, None] * spectrum.eigenvalues(n, device=square.device))
            for n, std in zip(self.image_size, (self.blur_std_h, self.blur_std_w), strict=True)
        )
        return (along_h[:, None, :, None] * along_w[:, None, None, :]).to(square.dtype)

    def gain_ratio(self, t: float, s: float) -> Tensor:
        return self._heat((times(_OP, t).square() - times(_OP, s).square()).clamp(min=0))


@register("low-pass")
@dataclass(frozen=True)
class LowPass(_WithPapersNoise):
    """See `SpectralCorruption.ideal_low_pass`."""

    image_size: tuple[int, int]
    cutoff: float
    edge: float = 0.5
    noise_std_min: float = 0.01
    noise_std_max: float = 0.10
    noise_full_at: float = 0.25

    name = "low-pass"

    def __post_init__(self) -> None:
        op = "SpectralCorruption.ideal_low_pass"
        object.__setattr__(self, "image_size", args.image_size(op, self.image_size))
        for field, most in (("cutoff", 1.0), ("edge", math.inf)):
            value = args.number(op, field, getattr(self, field), most=most)
            if value == 0:
                raise ValueError(f"{op}: expected {field} over 0, got 0")
            object.__setattr__(self, field, value)
        self._check_noise()

    def gain(self, t: float | Tensor) -> Tensor:
        share = times(_OP, t)
        height, width = self.image_size
        k, l = (torch.arange(n, dtype=torch.float64, device=share.device) / n for n in (height, width))
        octaves = torch.log2((k[:, None].square() + l.square()).sqrt())  # -inf for the mean
        # From where the highest frequency, under sqrt(2), is just kept.
        start, end = 0.5 + self.edge, math.log2(self.cutoff)
        cutoff = (start + (end - start) * share.double()).view(-1, 1, 1, 1)
        kept = ((cutoff - octaves) / self.edge).clamp(0.0, 1.0)
        return (kept.square() * (3.0 - 2.0 * kept)).to(share.dtype)


@register("equal-snr")
@dataclass(frozen=True, eq=False)
class EqualSNR(_Formula):
    """See `SpectralCorruption.equal_snr`."""

    variance: Any
    logsnr_min: float = -10.0
    logsnr_max: float = 10.0

    name = "equal-snr"

    def __post_init__(self) -> None:
        op = "SpectralCorruption.equal_snr"
        for field in ("logsnr_min", "logsnr_max"):
            value = args.number(op, field, getattr(self, field), nonnegative=False)
            object.__setattr__(self, field, value)
        if not -100 <= self.logsnr_min < self.logsnr_max <= 100:
            raise ValueError(
                f"{op}: expected -100 <= logsnr_min < logsnr_max <= 100, got {self.logsnr_min!r}, "
                f"{self.logsnr_max!r}"
            )
        try:
            table = torch.as_tensor(self.variance, dtype=torch.float64).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            table = torch.empty(0)
        good = table.dim() in (2, 3) and table.numel() > 0 and bool(table.isfinite().all())
        if not good or table.min() < 0 or table.max() == 0:
            raise ValueError(
                f"{op}: expected the spectrum as variances [C, H, W] or [H, W] of at least 0, not all 0, got "
                f"{args.shown(self.variance)}"
            )
        table = table if table.dim() == 3 else table[None]
        object.__setattr__(self, "variance", table.tolist())
        object.__setattr__(self, "image_size", (table.shape[1], table.shape[2]))
        object.__setattr__(self, "channels", table.shape[0] if table.shape[0] > 1 else None)

    @cached_property
    def colour(self) -> Tensor:
        """sqrt(C_k), float64 [1, C, H, W]."""
        table = torch.tensor(self.variance, dtype=torch.float64)
        return table.clamp(min=_LEAST_SHARE * table.mean().item()).sqrt()[None]

    def _angle(self, t: Tensor) -> Tensor:
        """a_t is its cosine and sigma_t its sine: float64 [B, 1, 1, 1]."""
        start, end = (math.atan(math.exp(-0.5 * value)) for value in (self.logsnr_max, self.logsnr_min))
        return (start + (end - start) * t.double()).view(-1, 1, 1, 1)

    def gain(self, t: float | Tensor) -> Tensor:
        t = times(_OP, t)
        return self._angle(t).cos().to(t.dtype).expand(-1, 1, *self.image_size)

    def noise(self, t: float | Tensor) -> Tensor:
        t = times(_OP, t)
        return (self._angle(t).sin() * _on(self, "colour", t.device)).to(t.dtype)

    def mean(self, t: float) -> float:
        return float(self._angle(times(_OP, t)).cos())

    def gain_ratio(self, t: float, s: float) -> Tensor:
        return self.gain(t) / self.gain(s)
