# SPDX-License-Identifier: Apache-2.0
"""Corruptions by any linear C_t, given as a function on images, under white noise.

C_t need not be diagonal in any basis, so a step is made of two applications of it,

    x_s = A x_t + C_s x0_hat - A C_t x0_hat + B n,

with A and B numbers only. Every rule but the ancestral one gives numbers here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from .. import _arguments as args
from .. import functional
from ..images import decode
from ..noise import NoiseKey
from .corruption import Corruption, Factor, is_number, register, squares, times
from .schedule import GeometricNoise

Apply = Callable[[Tensor, Tensor], Tensor]
"""(images [B, C, H, W], t [B]) -> C_t of each image, of the same shape; differentiable in the images."""

_NOT_LINEAR = 1e-3


class LinearCorruption(Corruption):
    """`x_t = C_t x_0 + s_t n` for any linear C_t, with the paper's noise.

    A corruption made of a function serves for training and sampling, but no file can hold a function: derive
    a class that has `apply` as a method and `config`, and decorate it with `@register("name")`. Motion blur,
    downsampling and blur by channel are here and can be stored.

    Args:
        apply: C_t, as a function (x [B, C, H, W], t [B]) -> [B, C, H, W]. It is tried on random images,
            which a function that is not linear does not pass. None in a class that has it as a method.
        image_size: (H, W) of the images.
        channels: C, if apply needs a certain number.
        noise_std_min: As in `BlurCorruption.paper`.
        noise_std_max: Likewise.
        noise_full_at: Likewise.

    Raises:
        ValueError: If apply is not linear, or changes the images' shape.

    Examples:
        >>> def shake(x, t):  # a mixture with the image's mirror image
        ...     half = t.view(-1, 1, 1, 1) / 2
        ...     return (1 - half) * x + half * x.flip(3)
        >>> corruption = LinearCorruption(shake, (16, 16))
        >>> corruption.corrupt(torch.ones(2, 3, 16, 16), 0.5, key=sk.NoiseKey(0)).shape
        torch.Size([2, 3, 16, 16])
        >>> blur = LinearCorruption.motion_blur((16, 16), length=5.0, angle=30.0)
        >>> Corruption.from_dict(blur.to_dict()).length
        5.0
    """

    basis = ""
    name = "linear"
    family = "linear"

    def __init__(
        self,
        apply: Apply | None,
        image_size: tuple[int, int],
        *,
        channels: int | None = None,
        noise_std_min: float = 0.01,
        noise_std_max: float = 0.10,
        noise_full_at: float = 0.25,
    ) -> None:
        op = "LinearCorruption"
        self.image_size = args.image_size(op, image_size)
        self.channels = None if channels is None else args.integer(op, "channels", channels, least=1)
        self._levels = GeometricNoise(noise_std_min, noise_std_max, noise_full_at)
        if apply is None and type(self).apply is LinearCorruption.apply:
            raise TypeError(f"{op}: expected apply as a function or as a method of {type(self).__name__}")
        if apply is not None:
            if not callable(apply):
                raise TypeError(f"{op}: expected apply as a function of (x, t), got {args.describe(apply)}")
            self._apply = apply
            self._check_linear()

    def apply(self, x: Tensor, t: Tensor) -> Tensor:
        """C_t x, [B, C, H, W] for x [B, C, H, W] and t [B], differentiable in x."""
        return self._apply(x, t)

    @staticmethod
    def motion_blur(
        image_size: tuple[int, int], length: float, angle: float = 0.0, **noise: float
    ) -> LinearCorruption:
        """The mean of the image along a line, as of a camera that moves; the image wraps at its borders.

        Args:
            image_size: (H, W).
            length: Of the line at t = 1, in pixels; linear in t from 0.
            angle: Of the line, in degrees from the horizontal.
            **noise: noise_std_min, noise_std_max and noise_full_at.
        """
        return MotionBlur(image_size, length, angle, **noise)

    @staticmethod
    def downsampling(image_size: tuple[int, int], factor: int = 8, **noise: float) -> LinearCorruption:
        """The mean over blocks of 1, 2, 4, ... pixels a side, back at full size, linear between these.

        The blocks' logarithm is linear in t. As Cold Diffusion's, with means for its nearest pixels.

        Args:
            image_size: (H, W).
            factor: Side of a block at t = 1, a power of 2 of at least 2.
            **noise: noise_std_min, noise_std_max and noise_full_at.
        """
        return Downsampling(image_size, factor, **noise)

    @staticmethod
    def channel_blur(
        image_size: tuple[int, int], blur_std: Sequence[float], **noise: float
    ) -> LinearCorruption:
        """Gaussian blur of another strength in each channel, as a lens blurs colours, linear in t from 0.

        Args:
            image_size: (H, W).
            blur_std: In pixels at t = 1, one for each channel.
            **noise: noise_std_min, noise_std_max and noise_full_at.
        """
        return ChannelBlur(image_size, blur_std, **noise)

    def gain(self, t: float | Tensor) -> Tensor:
        raise ValueError(
            f"{type(self).__name__}: expected a corruption that is diagonal in a basis, for only such has a "
            'gain; take the losses "soft" or "plain", and any sampler but ancestral'
        )

    def noise(self, t: float | Tensor) -> Tensor:
        return self._levels.at(times("LinearCorruption", t))

    def config(self) -> dict[str, Any]:
        """The part that all have in common: a class with `apply` adds its own."""
        content: dict[str, Any] = {"image_size": list(self.image_size), **asdict(self._levels)}
        return content if self.channels is None else {**content, "channels": self.channels}

    def to_dict(self) -> dict[str, Any]:
        if type(self) is LinearCorruption:
            raise ValueError(
                "LinearCorruption: expected a class that files can name, got a function, which they cannot "
                "hold; derive a class whose method is `apply`, with `config`, and decorate it with "
                '@register("name")'
            )
        return super().to_dict()

    def white(self, x: Tensor, key: NoiseKey) -> Tensor:
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
        self.check_size("LinearCorruption.corrupt", x0)
        clean = decode(x0)
        std = self.noise(t)
        x_t = _noisy(self._seen(clean, t), std if isinstance(t, Tensor) else std.item(), key, noise)
        return (x_t, clean - x_t) if return_residual else x_t

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
        """As in `Corruption`, A and B numbers."""
        if isinstance(A, Tensor) or isinstance(B, Tensor):
            raise ValueError(
                f"{type(self).__name__}.step: expected A and B as numbers, for C_t is diagonal in no basis, "
                "got masks; take a rule of numbers, such as momentum or DDIM"
            )
        x_s = self._seen(x0_hat, s)
        if A != 0:
            x_s = x_s + A * (x_t - self._seen(x0_hat, t))
        return _noisy(x_s.to(x_t.dtype), B, key, None)

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
        """As in `Corruption`; mask: a number, or None for C_t."""
        args.image("LinearCorruption.loss", "prediction", prediction)
        args.image("LinearCorruption.loss", "target", target, like=prediction)
        if mask is not None and not is_number(mask):
            raise ValueError(
                f"{type(self).__name__}.loss: expected the mask as a number, as C_t is diagonal in no basis, "
                'got a mask; take the losses "soft" or "plain"'
            )
        error = prediction - target
        error = error if error.dtype == torch.float64 else error.float()
        return squares(self._seen(error, t) if mask is None else error * mask, weight, reduction)

    def _seen(self, x: Tensor, t: float | Tensor) -> Tensor:
        """C_t x in x's dtype, computed in float32 or float64."""
        wide = x if x.dtype == torch.float64 else x.float()
        if isinstance(t, Tensor):
            t = times("LinearCorruption", t).expand(x.shape[0])
        else:
            t = torch.full((x.shape[0],), args.time("LinearCorruption", t), dtype=wide.dtype, device=x.device)
        y = self.apply(wide, t)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise ValueError(
                f"{type(self).__name__}: expected apply to return {list(x.shape)}, as it got, got "
                f"{args.describe(y)}"
            )
        return y.to(x.dtype)

    def _check_linear(self) -> None:
        """Raises ValueError where C_t (2 x - y) is not 2 C_t x - C_t y, or C_t 0 not 0: for random images."""
        shape = (1, self.channels or 1, *self.image_size)
        x, y = functional.normal((2, *shape), NoiseKey(0)).unbind(0)
        for t in (0.3, 1.0):
            of_x, of_y, of_both = (self._seen(z, t) for z in (x, y, 2.0 * x - y))
            nothing = self._seen(torch.zeros_like(x), t)
            size = of_x.abs().max() + of_y.abs().max()
            error = max((2.0 * of_x - of_y - of_both).abs().max(), nothing.abs().max())
            if not error <= _NOT_LINEAR * size:
                raise ValueError(
                    f"LinearCorruption: expected apply to be linear in the images, got one that is off by "
                    f"{float(error):.3g} for random images at t = {t}"
                )


def _noisy(x: Tensor, std: Factor, key: NoiseKey | None, noise: Tensor | None) -> Tensor:
    """x + std n, std a number or [B, 1, 1, 1]. A blur of 0 px leaves the image as it is."""
    std = std.reshape(-1) if isinstance(std, Tensor) else std
    out = functional.corrupt(x, 0.0, std, key=key, noise=noise)
    assert isinstance(out, Tensor)
    return out


class _Stored(LinearCorruption):
    """A corruption whose arguments are attributes of the same names."""

    _arguments: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        return {**super().config(), **{name: getattr(self, name) for name in self._arguments}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Corruption:
        return cls(**config)


@register("motion-blur")
class MotionBlur(_Stored):
    """See `LinearCorruption.motion_blur`."""

    name = "motion-blur"
    _arguments = ("length", "angle")

    def __init__(
        self, image_size: tuple[int, int], length: float, angle: float = 0.0, **noise: float
    ) -> None:
        super().__init__(None, image_size, channels=None, **noise)
        self.length: float = args.number("LinearCorruption.motion_blur", "length", length)
        self.angle: float = args.number("LinearCorruption.motion_blur", "angle", angle, nonnegative=False)

    def apply(self, x: Tensor, t: Tensor) -> Tensor:
        if x.numel() == 0:  # of which the FFT makes an error
            return x
        height, width = self.image_size
        down = torch.fft.fftfreq(height, dtype=x.dtype, device=x.device)[:, None]
        across = torch.fft.rfftfreq(width, dtype=x.dtype, device=x.device)
        # Down is the images' first axis, so a rising line has a falling row.
        along = across * math.cos(math.radians(self.angle)) - down * math.sin(math.radians(self.angle))
        transfer = torch.sinc(self.length * t.to(x.dtype).view(-1, 1, 1, 1) * along)
        return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=(height, width))


@register("downsampling")
class Downsampling(_Stored):
    """See `LinearCorruption.downsampling`."""

    name = "downsampling"
    _arguments = ("factor",)

    def __init__(self, image_size: tuple[int, int], factor: int = 8, **noise: float) -> None:
        super().__init__(None, image_size, channels=None, **noise)
        op = "LinearCorruption.downsampling"
        self.factor: int = args.integer(op, "factor", factor, least=2)
        if self.factor & (self.factor - 1):
            raise ValueError(f"{op}: expected factor as a power of 2, got {self.factor}")

    def apply(self, x: Tensor, t: Tensor) -> Tensor:
        levels = self.factor.bit_length() - 1
        height, width = self.image_size
        share = t.to(x.dtype).view(-1, 1, 1, 1) * levels
        y = (1.0 - share).clamp(min=0.0) * x
        for level in range(1, levels + 1):
            blocks = math.ceil(height / 2**level), math.ceil(width / 2**level)
            means = interpolate(adaptive_avg_pool2d(x, blocks), (height, width), mode="nearest-exact")
            y = y + (1.0 - (share - level).abs()).clamp(min=0.0) * means
        return y


@register("channel-blur")
class ChannelBlur(_Stored):
    """See `LinearCorruption.channel_blur`."""

    name = "channel-blur"
    _arguments = ("blur_std",)

    def __init__(self, image_size: tuple[int, int], blur_std: Sequence[float], **noise: float) -> None:
        op = "LinearCorruption.channel_blur"
        stds = args.numbers(op, "blur_std", blur_std)
        if not stds or min(stds) < 0:
            raise ValueError(
                f"{op}: expected blur_std of at least 0, one for each channel, got {args.shown(blur_std)}"
            )
        super().__init__(None, image_size, channels=len(stds), **noise)
        self.blur_std = stds

    def config(self) -> dict[str, Any]:
        return {name: value for name, value in super().config().items() if name != "channels"}

    def apply(self, x: Tensor, t: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        # One number after the other, for a copy from host memory would wait for the device.
        std = torch.stack([t * value for value in self.blur_std], dim=1)
        flat = functional.blur(x.reshape(batch * channels, 1, *x.shape[2:]), std.reshape(-1))
        return flat.view_as(x)
