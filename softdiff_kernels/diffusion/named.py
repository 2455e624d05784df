# SPDX-License-Identifier: Apache-2.0
"""The corruptions that a name and a data set make."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import _arguments as args
from ..images import Pixels
from .blur import BlurCorruption
from .corruption import Corruption
from .mask import MaskCorruption
from .schedule import Schedule
from .shortest_path import PowerSpectrum, shortest_path_schedule
from .spectral import SpectralCorruption

_PAPER_NOISE_STD_MAX = 0.1
_IHDM_NOISE_STD = 0.02
_BLURRING_STD_MAX = 20.0
_FARTHEST_OF = 2000
_FARTHEST_NUMBERS = 2**25


class DataSet(Protocol):
    """What a named corruption is made for, such as an `ImageSet`: pixels are uint8 [N, C, H, W]."""

    @property
    def name(self) -> str: ...
    @property
    def pixels(self) -> Pixels: ...
    @property
    def spectrum(self) -> PowerSpectrum: ...


@dataclass(frozen=True)
class CorruptionOptions:
    """Options of the named corruptions; each uses those that apply to it.

    Attributes:
        schedule: For "soft": how blur and noise grow with t, a name in SCHEDULES.
        nodes: Number of nodes on the shortest path.
        blur_std_max: Strongest blur in pixels. None: for "soft" the paper's, 23 px at 64 px in proportion to
            the longer side; for "blurring" 20; for "ihdm" half of the longer side.
        noise_std_min: Noise at t = 0.
        noise_std_max: Strongest noise. None: the paper's 0.1 (noise_std_min if that is larger); for "noise"
            the largest distance between two images; for "ihdm", whose noise is constant, 0.02.
        floor: For "blurring": share of the image that is not blurred.
        logsnr_min: For "blurring" and "equal-snr": logarithm of the signal-to-noise ratio at t = 1.
        logsnr_max: Likewise at t = 0.
        softness: For "mask": how long a pixel takes to fade.

    Examples:
        >>> CorruptionOptions(noise_std_max=0.05).ranges()
        {'blur_std_max': None, 'noise_std_min': 0.01, 'noise_std_max': 0.05}
    """

    schedule: str = "wasserstein"
    nodes: int = 32
    blur_std_max: float | None = None
    noise_std_min: float = 0.01
    noise_std_max: float | None = None
    floor: float = 0.001
    logsnr_min: float = -10.0
    logsnr_max: float = 10.0
    softness: float = 0.25

    def ranges(self) -> dict[str, Any]:
        """The ranges of blur and noise as keyword arguments of `BlurCorruption.paper` and `.geometric`."""
        return {"blur_std_max": self.blur_std_max, **self.noise_range()}

    def noise_range(self) -> dict[str, Any]:
        """The paper's noise, as keyword arguments of all corruptions that have it."""
        most = self.noise_std_max
        return {
            "noise_std_min": self.noise_std_min,
            "noise_std_max": max(_PAPER_NOISE_STD_MAX, self.noise_std_min) if most is None else most,
        }

    def logsnr_range(self) -> dict[str, float]:
        """logsnr_min and logsnr_max as keyword arguments."""
        return {"logsnr_min": self.logsnr_min, "logsnr_max": self.logsnr_max}


Made = tuple[Corruption, Schedule | None]
"""A corruption, and its Schedule if one was computed."""


class Named(NamedTuple):
    """What a name in CORRUPTIONS or SCHEDULES stands for.

    Attributes:
        make: The corruption for a data set, and its Schedule if one was computed.
        help: What the name means.
        options: The fields of CorruptionOptions that have an effect.

    Examples:
        >>> from types import SimpleNamespace
        >>> pixels = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8)
        >>> data = SimpleNamespace(name="mine", pixels=pixels, spectrum=power_spectrum([pixels]))
        >>> corruption, schedule = CORRUPTIONS["soft"].make(data, CorruptionOptions(schedule="linear"))
        >>> corruption.blur_std(1.0), schedule
        (5.75, None)
    """

    make: Callable[[DataSet, CorruptionOptions], Made]
    help: str
    options: tuple[str, ...]


def farthest(pixels: Pixels) -> float:
    """The largest distance between two of (at most 2000, evenly spaced) images in [-1, 1]; pixels: uint8."""
    chosen = torch.linspace(0, len(pixels) - 1, min(len(pixels), _FARTHEST_OF)).round().long()
    blocks = chosen.split(max(1, _FARTHEST_NUMBERS // math.prod(pixels.shape[1:])))
    # Large images are taken again and again, so that no more than two blocks are held.
    pairs = (
        torch.cdist(_flat(pixels[a]), _flat(pixels[b])) for i, a in enumerate(blocks) for b in blocks[i:]
    )
    return max(float(distances.max()) for distances in pairs)


def _flat(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).float() / 127.5


def _size(data: DataSet) -> tuple[int, int]:
    return data.pixels.shape[2], data.pixels.shape[3]


def _wasserstein(data: DataSet, options: CorruptionOptions) -> Made:
    schedule = shortest_path_schedule(
        data.spectrum, nodes=options.nodes, dataset=data.name, **options.ranges()
    )
    return BlurCorruption.from_schedule(schedule), schedule


def _linear(data: DataSet, options: CorruptionOptions) -> Made:
    return BlurCorruption.paper(_size(data), **options.ranges()), None


def _geometric(data: DataSet, options: CorruptionOptions) -> Made:
    return BlurCorruption.geometric(_size(data), **options.ranges()), None


_NOISE = ("noise_std_min", "noise_std_max")
_RANGES = ("blur_std_max", *_NOISE)

SCHEDULES: dict[str, Named] = {
    "wasserstein": Named(_wasserstein, "the shortest path for this data", ("nodes", *_RANGES)),
    "linear": Named(_linear, "the paper's ranges, blur linear in t", _RANGES),
    "paper": Named(_linear, "another name of linear", _RANGES),
    "geometric": Named(_geometric, "blur geometric in t, as IHDM", _RANGES),
}
"""The schedules of "soft" by name: command options, help texts and tests derive from this."""


def _soft(data: DataSet, options: CorruptionOptions) -> Made:
    args.choice("soft", "schedule", options.schedule, tuple(SCHEDULES))
    return SCHEDULES[options.schedule].make(data, options)


def _blurring(data: DataSet, options: CorruptionOptions) -> Made:
    most = _BLURRING_STD_MAX if options.blur_std_max is None else options.blur_std_max
    made = BlurCorruption.blurring_diffusion(
        _size(data), blur_std_max=most, floor=options.floor, **options.logsnr_range()
    )
    return made, None


def _ihdm(data: DataSet, options: CorruptionOptions) -> Made:
    noise = _IHDM_NOISE_STD if options.noise_std_max is None else options.noise_std_max
    return BlurCorruption.ihdm(_size(data), blur_std_max=options.blur_std_max, noise_std=noise), None


def _mask(data: DataSet, options: CorruptionOptions) -> Made:
    return MaskCorruption(_size(data), softness=options.softness, **options.noise_range()), None


def _equal_snr(data: DataSet, options: CorruptionOptions) -> Made:
    return SpectralCorruption.equal_snr(data.spectrum, **options.logsnr_range()), None


def _noise(data: DataSet, options: CorruptionOptions) -> Made:
    least, most = options.noise_std_min, options.noise_std_max
    most = max(farthest(data.pixels), least) if most is None else most
    return BlurCorruption.noise_only(_size(data), noise_std_min=least, noise_std_max=most), None


_LOGSNR = ("logsnr_min", "logsnr_max")

CORRUPTIONS: dict[str, Named] = {
    "soft": Named(_soft, "Soft Diffusion: blur and a little noise", ("schedule", "nodes", *_RANGES)),
    "blurring": Named(
        _blurring,
        "Blurring Diffusion: blur within a variance-preserving process",
        ("blur_std_max", "floor", *_LOGSNR),
    ),
    "ihdm": Named(_ihdm, "Inverse Heat Dissipation: blur, constant noise", ("blur_std_max", "noise_std_max")),
    "mask": Named(_mask, "a mask that grows from the centre, a little noise", ("softness", *_NOISE)),
    "equal-snr": Named(_equal_snr, "EqualSNR: noise coloured as the data", _LOGSNR),
    "noise": Named(_noise, "noise alone: VE", _NOISE),
}
"""The corruptions by name: command options, help texts and tests derive from this."""
