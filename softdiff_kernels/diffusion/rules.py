# SPDX-License-Identifier: Apache-2.0
"""The rules of the samplers: each is a choice of (A, B) in one step of the general process (`corruption`),

    x_s = A x_t + (m_s - A m_t) x0_hat + B n,        s < t.

A rule is any function (corruption, t, s) -> (A, B), t and s numbers, A and B numbers or masks. Those here act
on x_t / mean(t), so that they also hold where the mean of the process is not 1, and frequency by frequency
where the noise is coloured. Below, s_t is the noise at t over mean(t).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from ..noise import NoiseKey
from .corruption import Corruption, Factor

RuleFunction = Callable[[Corruption, float, float], tuple[Factor, Factor]]


class Rule:
    """The base of the rules: (A, B) by a call, and the step that they make.

    Examples:
        >>> rule = TACoS()
        >>> rule(BlurCorruption.paper((16, 16)), 0.5, 0.25)
        (1.0, 0.0)
    """

    def __call__(self, corruption: Corruption, t: float, s: float) -> tuple[Factor, Factor]:
        raise NotImplementedError

    def step(
        self, corruption: Corruption, x_t: Tensor, x0_hat: Tensor, t: float, s: float, key: NoiseKey | None
    ) -> Tensor:
        """x_s, [B, C, H, W]."""
        return corruption.step(x_t, x0_hat, t, s, *self(corruption, t, s), key=key)


def _level(corruption: Corruption, t: float) -> Factor:
    """The noise at t over the mean: a number for white noise, else a float64 mask."""
    noise = corruption.noise(t).double()
    mean = corruption.mean(t)
    return noise.item() / mean if noise.numel() == 1 else noise / mean


def _root(value: Factor) -> Factor:
    """The root; 0 of what rounding made negative."""
    return value.clamp(min=0).sqrt() if isinstance(value, Tensor) else math.sqrt(max(value, 0.0))


def _over(value: Factor, by: Factor, otherwise: float) -> Factor:
    """value / by; `otherwise` where `by` is 0."""
    if isinstance(by, Tensor):
        return torch.where(by == 0, otherwise, value / torch.where(by == 0, 1.0, by))
    return otherwise if by == 0 else value / by


def _falls(op: str, noise_t: Factor, noise_s: Factor, t: float, s: float, over: str = "mean") -> None:
    """Raises ValueError where the noise, over the mean or gain, rises from t to s."""
    rises = noise_s > noise_t
    if bool(rises.any() if isinstance(rises, Tensor) else rises):
        raise ValueError(
            f"{op}: expected noise over {over} that does not rise towards t = 0, got a rise from t = {t:.4g} "
            f"to {s:.4g}; take ddim with eta = 0"
        )


@dataclass(frozen=True)
class Naive(Rule):
    """A = 0, B = s_s. Daras et al. 2022, Algorithm 1.

    Examples:
        >>> Naive()(BlurCorruption.paper((16, 16)), 0.5, 0.25)
        (0.0, 0.1)
    """

    def __call__(self, corruption: Corruption, t: float, s: float) -> tuple[Factor, Factor]:
        return 0.0, _scaled(_level(corruption, s), corruption, s)


@dataclass(frozen=True)
class Momentum(Rule):
    """A = s_s^2 / s_t^2, B = sqrt(s_t^2 - s_s^2), times s_s / s_t if variance is "small".

    Daras et al. 2022, Algorithm 2.

    Examples:
        >>> Momentum()(BlurCorruption.paper((16, 16)), 0.5, 0.25)  # constant noise there
        (1.0, 0.0)
    """

    variance: str = "large"

    def __post_init__(self) -> None:
        args.choice("Momentum", "variance", self.variance, ("large", "small"))

    def __call__(self, corruption: Corruption, t: float, s: float) -> tuple[Factor, Factor]:
        noise_t, noise_s = _level(corruption, t), _level(corruption, s)
        _falls("momentum", noise_t, noise_s, t, s)
        ratio = _over(noise_s, noise_t, 1.0)
        fresh = _root((noise_t - noise_s) * (noise_t + noise_s))
        if self.variance == "small":
            fresh = fresh * ratio
        return _kept(ratio * ratio, corruption, t, s), _scaled(fresh, corruption, s)

    def step(
        self, corruption: Corruption, x_t: Tensor, x0_hat: Tensor, t: float, s: float, key: NoiseKey | None
    ) -> Tensor:
        """x_s; by the corruption's own `momentum_step` if it has one."""
        fused: Any = getattr(corruption, "momentum_step", None)
        if fused is None:
            return super().step(corruption, x_t, x0_hat, t, s, key)
        out: Tensor = fused(x_t, x0_hat, t, s, self.variance, key=key)
        return out


@dataclass(frozen=True)
class DDIM(Rule):
    """A = sqrt(s_s^2 - nu^2) / s_t, B = nu; with eta, nu = eta s_s sqrt(s_t^2 - s_s^2) / s_t.

    Song, Meng & Ermon 2021, eq. 12 and 16. Of noise 0 at t: A = 1, B = 0.

    Examples:
        >>> DDIM(eta=0.0)(BlurCorruption.paper((16, 16)), 0.5, 0.25)
        (1.0, 0.0)
    """

    nu: float = 0.0
    eta: float | None = None

    def __post_init__(self) -> None:
        args.number("DDIM", "nu", self.nu)
        if self.eta is not None:
            args.number("DDIM", "eta", self.eta, most=1.0)

    def __call__(self, corruption: Corruption, t: float, s: float) -> tuple[Factor, Factor]:
        noise_t, noise_s = _level(corruption, t), _level(corruption, s)
        nu: Factor = self.nu
        if self.eta is not None:
            if self.eta > 0:
                _falls("ddim", noise_t, noise_s, t, s)
            gap = (noise_t - noise_s) * (noise_t + noise_s)
            nu = _over(self.eta * noise_s * _root(gap), noise_t, 0.0)
        least = noise_s.min().item() if isinstance(noise_s, Tensor) else noise_s
        if self.eta is None and self.nu > least and not _is_zero(noise_t):
            raise ValueError(
                f"sample_ddim: expected nu of at most noise_std(s) = {least:.6g}, got {self.nu!r}"
            )
        kept = _over(_root((noise_s - nu) * (noise_s + nu)), noise_t, 1.0)
        nu = 0.0 if _is_zero(noise_t) else nu
        return _kept(kept, corruption, t, s), _scaled(nu, corruption, s)


@dataclass(frozen=True)
class TACoS(Rule):
    """A = 1, B = 0. Bansal et al. 2022, Algorithm 2.

    Examples:
        >>> TACoS()(BlurCorruption.paper((16, 16)), 0.5, 0.25)
        (1.0, 0.0)
    """

    def __call__(self, corruption: Corruption, t: float, s: float) -> tuple[Factor, Factor]:
        return _kept(1.0, corruption, t, s), 0.0


@dataclass(frozen=True)
class Ancestral(Rule):
    """The exact posterior of the process whose steps are independent in each frequency.

    With r = m_t / m_s: A = r s_s^2 / s_t^2 and B = s_s sqrt(s_t^2 - r^2 s_s^2) / s_t, here with the noise
    itself. Hoogeboom & Salimans 2022 (Blurring Diffusion), eq. 6 to 9.

    Examples:
        >>> A, B = Ancestral()(BlurCorruption.paper((16, 16)), 0.5, 0.25)
        >>> A.shape, B.shape  # masks
        (torch.Size([1, 1, 16, 16]), torch.Size([1, 1, 16, 16]))
    """

    def __call__(self, corruption: Corruption, t: float, s: float) -> tuple[Factor, Factor]:
        noise_t, noise_s = corruption.noise(t).double(), corruption.noise(s).double()
        ratio = corruption.gain_ratio(t, s)
        known = ratio * noise_s
        _falls("ancestral", noise_t, known, t, s, "gain")
        share = _over(noise_s, noise_t, 1.0)
        fresh = _root((noise_t - known) * (noise_t + known))
        A = ratio * share * share
        return A, torch.where(noise_t == 0, 0.0, share * fresh)


@dataclass(frozen=True)
class IHDM(Rule):
    """A = 0, B = delta, by default 1.25 times the noise at s. Rissanen et al. 2022, Algorithm 2.

    Examples:
        >>> IHDM(delta=0.02)(BlurCorruption.paper((16, 16)), 0.5, 0.25)
        (0.0, 0.02)
    """

    delta: float | None = None

    def __post_init__(self) -> None:
        if self.delta is not None:
            args.number("IHDM", "delta", self.delta)

    def __call__(self, corruption: Corruption, t: float, s: float) -> tuple[Factor, Factor]:
        if self.delta is not None:
            return 0.0, self.delta
        return 0.0, _scaled(1.25 * _level(corruption, s), corruption, s)


@dataclass(frozen=True)
class Langevin(Rule):
    """A = 1/2, B = s_s: Langevin's step of temperature 1 at constant noise.

    By Tweedie's formula a step with A = a moves x_t along the score by (1 - a) s^2, so its temperature is
    B^2 / (2 (1 - a) s^2): 1/2 for naive, 0.78 for IHDM, 1 here.

    Examples:
        >>> Langevin()(BlurCorruption.paper((16, 16)), 0.5, 0.25)
        (0.5, 0.1)
    """

    def __call__(self, corruption: Corruption, t: float, s: float) -> tuple[Factor, Factor]:
        return _kept(0.5, corruption, t, s), _scaled(_level(corruption, s), corruption, s)


RULES: dict[str, type[Rule]] = {
    "naive": Naive,
    "momentum": Momentum,
    "ddim": DDIM,
    "tacos": TACoS,
    "ancestral": Ancestral,
    "ihdm": IHDM,
    "langevin": Langevin,
    "multistep": DDIM,
    "heun": DDIM,
}
"""The rule of each sampler in SAMPLERS; of the last two in a step of second order."""


def _is_zero(noise: Factor) -> bool:
    return not isinstance(noise, Tensor) and noise == 0.0


def _kept(a: Factor, corruption: Corruption, t: float, s: float) -> Factor:
    """A of x_t, from a of x_t / mean(t)."""
    mean_t, mean_s = corruption.mean(t), corruption.mean(s)
    return a if mean_t == mean_s else a * (mean_s / mean_t)


def _scaled(b: Factor, corruption: Corruption, s: float) -> Factor:
    """B of x_s, from b of x_s / mean(s)."""
    mean = corruption.mean(s)
    return b if mean == 1.0 else b * mean
