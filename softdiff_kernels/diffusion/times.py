# SPDX-License-Identifier: Apache-2.0
"""Times: the steps of a sampler, and the t of training, spaced evenly in t or in what the corruption does.

The same spacing serves both, and they need not be the same: a network trained with t even in one quantity can
be sampled in steps that are even in another.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .. import _arguments as args
from .blur import BlurCorruption, interpolate, pieces
from .corruption import Corruption
from .shortest_path import PowerSpectrum

_NODES = 2049
_LEAST_BLUR = 0.01
# Karras et al. 2022, table 1: mean and deviation of ln(sigma) in training, for images of deviation 0.5; rho.
LOG_NORMAL = -1.2, 1.2
KARRAS_RHO = 7


def time_steps(
    n: int,
    spacing: str = "t",
    *,
    corruption: Corruption | None = None,
    spectrum: PowerSpectrum | None = None,
) -> Tensor:
    """n + 1 times from 1 down to 0, for a sampler of n steps: float64 [n + 1] on the CPU.

    Args:
        n: Number of steps.
        spacing: A name in SPACINGS: what the times are even in.
        corruption: Needed by every spacing but "t".
        spectrum: The data's, needed by "w2".

    Raises:
        ValueError: If the spacing lacks what it needs, or the corruption has no such quantity.

    Examples:
        >>> time_steps(4)
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
        >>> paper = BlurCorruption.paper((64, 64))
        >>> [round(paper.blur_std(float(t)), 2) for t in time_steps(3, "log_blur_std", corruption=paper)]
        [23.0, 1.74, 0.13, 0.01]
        >>> noise = BlurCorruption.noise_only((64, 64), noise_std_max=80.0)
        >>> [round(noise.noise_std(float(t)), 2) for t in time_steps(3, "karras", corruption=noise)]
        [80.0, 11.61, 0.8, 0.01]
    """
    steps = args.whole(n)
    if steps is None or not 1 <= steps < 2**31:
        raise ValueError(
            "time_steps: expected the number of steps as an int under 2^31 and of at least 1, got "
            f"{args.shown(n)}"
        )
    even = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    return even if spacing == "t" else time_warp(spacing, corruption, spectrum)(even)


def time_warp(
    spacing: str, corruption: Corruption | None = None, spectrum: PowerSpectrum | None = None
) -> Callable[[Tensor], Tensor]:
    """A function from shares u in [0, 1] of the quantity's whole way to the times t, of any shape, in u's
    dtype. Arguments as in `time_steps`.

    Examples:
        >>> warp = time_warp("blur_std", BlurCorruption.paper((64, 64)))  # whose blur is linear in t
        >>> torch.allclose(warp(torch.tensor([0.0, 0.3, 1.0])), torch.tensor([0.0, 0.3, 1.0]))
        True
    """
    args.choice("time_steps", "spacing", spacing, tuple(SPACINGS))
    if spacing == "t":
        return lambda u: u
    if corruption is None:
        raise ValueError(f"time_steps: expected a corruption for the spacing {spacing!r}, got none")
    t = np.linspace(0.0, 1.0, _NODES)
    way = SPACINGS[spacing](corruption, t, spectrum)
    if not way[-1] > way[0]:
        raise ValueError(
            f"time_steps: expected a corruption that grows in {spacing}, got one that is the same at every t"
        )
    # Where the quantity stands still, the first of its times.
    rising = np.concatenate([[True], np.diff(np.maximum.accumulate(way)) > 0])
    share, times = (way[rising] - way[0]) / (way[-1] - way[0]), t[rising]
    times[-1] = 1.0

    tables = pieces(share.tolist(), times.tolist(), torch.device("cpu"))

    def warp(u: Tensor) -> Tensor:
        return interpolate(tables.to(u.device), u)

    return warp


def _even(corruption: Corruption, t: np.ndarray, spectrum: PowerSpectrum | None) -> np.ndarray:
    """even in t"""
    return t


def _blur_std(corruption: Corruption, t: np.ndarray, spectrum: PowerSpectrum | None) -> np.ndarray:
    """even in the blur's standard deviation"""
    if not isinstance(corruption, BlurCorruption):
        raise ValueError(
            "time_steps: expected a BlurCorruption for a spacing in blur_std, got "
            f"{type(corruption).__name__}"
        )
    return np.asarray(corruption.blur_std(torch.from_numpy(t)))


def _log_blur_std(corruption: Corruption, t: np.ndarray, spectrum: PowerSpectrum | None) -> np.ndarray:
    """even in the logarithm of the blur's standard deviation, from 0.01 px"""
    return np.asarray(np.log(np.maximum(_blur_std(corruption, t, spectrum), _LEAST_BLUR)))


def _w2(corruption: Corruption, t: np.ndarray, spectrum: PowerSpectrum | None) -> np.ndarray:
    """even in the Wasserstein distance that the data travel"""
    if spectrum is None or corruption.basis != "dct":
        got = "no spectrum" if spectrum is None else type(corruption).__name__
        raise ValueError(
            f"time_steps: expected the data's spectrum and a corruption over DCT frequencies for the spacing "
            f"'w2', got {got}"
        )
    way = np.zeros(len(t))
    power = spectrum.power.double()
    before: tuple[Tensor, Tensor] | None = None
    for i, time in enumerate(t):
        gain, noise = corruption.gain(float(time)), corruption.noise(float(time))
        if before is not None:
            moved = ((gain - before[0]).square() * power).sum() + (
                (noise - before[1]).square().expand(1, *power.shape).sum()
            )
            way[i] = way[i - 1] + float(moved) ** 0.5
        before = gain, noise
    return way


def _sigma(spacing: str, corruption: Corruption, t: np.ndarray) -> np.ndarray:
    """The noise over the mean at the times t, which must be white and grow with t."""
    levels = [(corruption.noise(float(time)), corruption.mean(float(time))) for time in t]
    if any(noise.numel() != 1 for noise, _ in levels):
        raise ValueError(
            f"time_steps: expected white noise for the spacing {spacing!r}, got the coloured noise of "
            f"{type(corruption).__name__}"
        )
    sigma = np.array([noise.item() / mean for noise, mean in levels])
    still = np.flatnonzero(np.diff(sigma) <= 0)
    if still.size:
        # Steps even in it would leap over what the corruption does meanwhile, such as a blur.
        raise ValueError(
            f"time_steps: expected noise over mean that grows with t for the spacing {spacing!r}, got noise "
            f"that does not at t = {t[still[0]]:.4g}"
        )
    return sigma


def _log_normal(corruption: Corruption, t: np.ndarray, spectrum: PowerSpectrum | None) -> np.ndarray:
    """even in the probability of a log-normal noise, EDM's density of training"""
    mean, std = LOG_NORMAL
    sigma = _sigma("log_normal", corruption, t)
    z = [(math.log(s) - mean) / std if s > 0 else -math.inf for s in sigma]
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])


def _karras(corruption: Corruption, t: np.ndarray, spectrum: PowerSpectrum | None) -> np.ndarray:
    """even in the seventh root of the noise, EDM's steps"""
    return np.asarray(_sigma("karras", corruption, t) ** (1 / KARRAS_RHO))


SPACINGS: dict[str, Callable[[Corruption, np.ndarray, PowerSpectrum | None], np.ndarray]] = {
    "t": _even,
    "blur_std": _blur_std,
    "log_blur_std": _log_blur_std,
    "w2": _w2,
    "log_normal": _log_normal,
    "karras": _karras,
}
"""The spacings by name, each the length of the way up to the times t. Help texts are their docstrings."""
