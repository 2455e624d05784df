# SPDX-License-Identifier: Apache-2.0
"""Masking: pixels that fade one after the other as t grows, under white noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from ..caches import Tables
from .corruption import Corruption, register, times
from .schedule import GeometricNoise

_OP = "MaskCorruption"
CENTRE_OUT = "centre-out"
_NEVER = 2.0


@register("mask")
class MaskCorruption(Corruption):
    """`x_t = m_t * x_0 + s_t n` over pixels: a mask that grows with t, and the paper's noise.

    A pixel is kept until its own time, then fades, and is gone `softness` later: with z = (t - start) /
    softness, clamped to [0, 1], its gain is 1 - z^2 (3 - 2 z). So the mask has a soft edge where start
    changes from pixel to pixel, and every pixel has a schedule. Daras et al. 2022 name masking as a
    corruption of Soft Diffusion; what of their masks could be read does not give their form, so this one is
    ours.

    Args:
        image_size: (H, W) of the images.
        start: The time from which each pixel fades, [H, W], at least 0; one over 1 never fades. Or
            "centre-out": the mask grows from the centre, and hides the whole image at t = 1.
        softness: How long a pixel takes to fade, in (0, 1].
        noise_std_min: As in `BlurCorruption.paper`.
        noise_std_max: Likewise.
        noise_full_at: Likewise.

    Raises:
        ValueError: For any other start, softness or noise.

    Examples:
        >>> corruption = MaskCorruption((8, 8))
        >>> corruption.gain(0.5)[0, 0, :4, 4]  # hidden at the centre, kept at the border
        tensor([1.0000, 0.5677, 0.0000, 0.0000], dtype=torch.float64)
        >>> corruption.corrupt(torch.ones(2, 3, 8, 8), torch.tensor([0.1, 0.9]), key=sk.NoiseKey(0)).shape
        torch.Size([2, 3, 8, 8])
    """

    basis = "pixels"
    family = "mask"

    def __init__(
        self,
        image_size: tuple[int, int],
        start: Tensor | Sequence[Any] | str = CENTRE_OUT,
        *,
        softness: float = 0.25,
        noise_std_min: float = 0.01,
        noise_std_max: float = 0.10,
        noise_full_at: float = 0.25,
    ) -> None:
        self.image_size = args.image_size(_OP, image_size)
        self.softness: float = args.number(_OP, "softness", softness, most=1.0)
        if self.softness == 0:
            raise ValueError(f"{_OP}: expected softness over 0, without which a mask has no schedule, got 0")
        self.name = start if isinstance(start, str) else "mask"
        if isinstance(start, str):
            args.choice(_OP, "start", start, (CENTRE_OUT,))
            self.start = _centre_out(self.image_size) * (1.0 - self.softness)
        else:
            self.start = _map(start, self.image_size)
        self._levels = GeometricNoise(noise_std_min, noise_std_max, noise_full_at)

    @classmethod
    def centre_out(cls, image_size: tuple[int, int], **options: Any) -> MaskCorruption:
        """A mask that grows from the centre; options: softness and the noise's. The same as without start."""
        return cls(image_size, CENTRE_OUT, **options)

    @classmethod
    def region(cls, hidden: Tensor | Sequence[Any], **options: Any) -> MaskCorruption:
        """A constant region that fades as a whole, for inpainting: gone at t = 1, the rest kept.

        Args:
            hidden: The region, [H, W], bool or with numbers that are over 1/2 there.
            **options: The noise's.
        """
        region = torch.as_tensor(hidden)
        if region.dim() != 2:
            raise ValueError(f"{_OP}.region: expected hidden as [H, W], got {args.shown(hidden)}")
        start = torch.where(region > 0.5, 0.0, _NEVER)
        return cls((region.shape[0], region.shape[1]), start, softness=1.0, **options)

    def gain(self, t: float | Tensor) -> Tensor:
        t = times(_OP, t)
        start = (_make_start if torch.compiler.is_compiling() else _kept_start)(self, t.device)
        z = ((t.double().view(-1, 1, 1, 1) - start) / self.softness).clamp(0.0, 1.0)
        return (1.0 - z.square() * (3.0 - 2.0 * z)).to(t.dtype)

    def noise(self, t: float | Tensor) -> Tensor:
        return self._levels.at(times(_OP, t))

    def config(self) -> dict[str, Any]:
        return {
            "image_size": list(self.image_size),
            "start": self.name if self.name == CENTRE_OUT else self.start.tolist(),
            "softness": self.softness,
            **asdict(self._levels),
        }


def _make_start(corruption: MaskCorruption, device: torch.device) -> Tensor:
    return corruption.start.to(device)


_kept_start = Tables("mask corruption", _make_start, copied=True, share=2)


def _centre_out(size: tuple[int, int]) -> Tensor:
    """The distance of each pixel from the image's centre over that of the corners, float64 [H, W]."""
    down, across = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size)
    distance = torch.hypot(down[:, None], across[None, :])
    return distance / distance.max().clamp(min=1e-9)


def _map(start: Tensor | Sequence[Any], size: tuple[int, int]) -> Tensor:
    try:
        table = torch.as_tensor(start, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError):
        table = torch.empty(0)
    if tuple(table.shape) != size or not bool((table.isfinite() & (table >= 0)).all()):
        height, width = size
        raise ValueError(
            f'{_OP}: expected start as finite numbers of at least 0, [{height}, {width}], or "{CENTRE_OUT}", '
            f"got {args.shown(start)}"
        )
    return table
