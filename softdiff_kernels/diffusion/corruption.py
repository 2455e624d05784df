# SPDX-License-Identifier: Apache-2.0
"""The general corruption process, over times t in [0, 1]:

    x_t = V[m_t * V^T x_0 + s_t * V^T n]

V is an orthonormal basis, m_t the gain and s_t the noise, each a number or one for each element of V^T x.
With a rule's (A, B), numbers or masks, one step of any first-order sampler, from t to s < t, is

    x_s = A x_t + (m_s - A m_t) x0_hat + B n        (the products in the basis V).

Samplers, denoiser, priors, trainer and files ask for a `Corruption` and what is described here, no more. To
write your own, derive from `Corruption`: `gain`, `noise` and `config` are enough for a process over DCT
frequencies, and `@register` makes files of it readable.
"""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .. import _arguments as args
from .. import functional
from ..caches import Tables
from ..files import save_json
from ..images import decode
from ..noise import NoiseKey, fresh_key

FORMAT = "softdiff-corruption"
Factor = float | Tensor
"""A or B of a step, or a gain: a number, or a mask over V^T x that broadcasts to [B, C, H, W]."""


FEW_STEPS = 25
BEST_SAMPLERS: dict[str, tuple[tuple[str, float], ...]] = {
    # On MNIST (docs/experiments.md, E3) the second order is nearer in up to 25 steps. In 50 both are level,
    # and the paper's is kept.
    "soft": (("multistep", FEW_STEPS), ("momentum", math.inf)),
    # Nearer at every number measured, 10 to 50.
    "mask": (("multistep", math.inf),),
    # Nearer with x_0 predicted. With the noise predicted both fail in so few steps.
    "blurring": (("multistep", FEW_STEPS), ("ancestral", math.inf)),
    "ihdm": (("multistep", FEW_STEPS), ("ihdm", math.inf)),
    # Momentum is 40 times as far in 10 steps, and still farther in 50.
    "noise": (("multistep", math.inf),),
    # Not measured: the paper's; and what is right for any gain and noise.
    "linear": (("momentum", math.inf),),
    "other": (("ddim", math.inf),),
}
"""The samplers of a family of corruptions, each with the largest number of steps for which it is taken."""


class Corruption(ABC):
    """The base of all corruption processes. As it stands, V is the orthonormal 2-D DCT-II.

    A subclass sets `image_size` and implements `gain`, `noise` and `config`. Where V is the identity it sets
    `basis` to "pixels"; for any other V it sets a name of its own and implements `to_basis` and `from_basis`.
    It changes `corrupt`, `step` and `loss` where an op does better.

    Attributes:
        image_size: (H, W) of the images.
        channels: C, where gain or noise differ between channels; None allows any number.
        name: How the corruption was made.
        kind: The name of the class in files; set by `register`.
        family: The row of BEST_SAMPLERS that holds for it.
        basis: "dct", "pixels", a name of your own, or "" where the corruption is diagonal in no basis.

    Examples:
        >>> @register("fade")
        ... class Fade(Corruption):
        ...     def __init__(self, image_size):
        ...         self.image_size = image_size
        ...     def gain(self, t):  # every frequency fades alike, the mean too
        ...         return (1 - torch.as_tensor(t, dtype=torch.float64)).reshape(-1, 1, 1, 1)
        ...     def noise(self, t):
        ...         return torch.full_like(self.gain(t), 0.1)
        ...     def config(self):
        ...         return {"image_size": list(self.image_size)}
        >>> fade = Fade((16, 16))
        >>> fade.corrupt(torch.ones(2, 3, 16, 16), 0.5, key=sk.NoiseKey(0)).shape
        torch.Size([2, 3, 16, 16])
        >>> type(Corruption.from_dict(fade.to_dict())).__name__
        'Fade'
    """

    image_size: tuple[int, int]
    channels: int | None = None
    name: str = "custom"
    family: str = "other"
    kind: ClassVar[str] = ""
    basis: ClassVar[str] = "dct"

    @abstractmethod
    def gain(self, t: float | Tensor) -> Tensor:
        """m_t, broadcasting to [B, C, H, W].

        Args:
            t: A number in [0, 1], for which the gain is in float64 on the CPU, or a floating-point tensor
                [B], whose dtype and device the gain has.
        """

    @abstractmethod
    def noise(self, t: float | Tensor) -> Tensor:
        """s_t, of at least 0: [B, 1, 1, 1] for white noise, else broadcasting to [B, C, H, W]. t as in
        `gain`."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that `from_config` makes the same corruption from, as JSON can store them."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Corruption:
        """The corruption whose `config()` this is. As it stands: the class, called with it."""
        return cls(**config)

    def mean(self, t: float) -> float:
        """a_t over 0: the factor that the image as a whole has at t, 1 for blur.

        Momentum, DDIM and TACoS assume that it is 1; of other processes they act on x_t / a_t.
        """
        return 1.0

    def best_sampler(self, steps: float = math.inf) -> str:
        """The name in SAMPLERS of the sampler to take in so many steps where none is asked for."""
        return next(sampler for sampler, most in BEST_SAMPLERS[self.family] if steps <= most)

    def gain_ratio(self, t: float, s: float) -> Tensor:
        """m_t / m_s for s < t, in float64; 0 where m_s is 0, whose elements hold nothing of x_0."""
        gain_t, gain_s = self.gain(t), self.gain(s)
        nothing = gain_s == 0
        return torch.where(nothing, 0.0, gain_t / torch.where(nothing, 1.0, gain_s))

    def to_basis(self, x: Tensor) -> Tensor:
        """V^T x of images [B, C, H, W], differentiable."""
        return functional.dct2(x) if self._known_basis() == "dct" else x

    def from_basis(self, u: Tensor) -> Tensor:
        """V u, the images [B, C, H, W], differentiable."""
        return functional.idct2(u) if self._known_basis() == "dct" else u

    def _known_basis(self) -> str:
        if self.basis not in ("dct", "pixels"):
            raise NotImplementedError(
                f"{type(self).__name__}: expected to_basis and from_basis for the basis {self.basis!r}, or "
                "the basis 'dct' or 'pixels'"
            )
        return self.basis

    def mix(
        self,
        inputs: Sequence[Tensor],
        masks: Sequence[Factor],
        *,
        noise_mask: Factor | None = None,
        key: NoiseKey | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """`V[sum_k m_k * V^T x_k + d * n]`, in the first input's dtype: all that corruption and steps are.

        Args:
            inputs: Images x_k [B, C, H, W].
            masks: As many m_k, numbers or masks that broadcast to [B, C, H, W].
            noise_mask: d, likewise. None, or the number 0, adds no noise.
            key: Of n, as in `softdiff_kernels.spectral_mix`.
            noise: n itself, in the basis, in place of a key.
        """
        first = inputs[0]
        factors = [_mask(mask, first) for mask in masks]
        if noise_mask is not None and is_zero(noise_mask):
            noise_mask = key = noise = None
        spread = None if noise_mask is None else _mask(noise_mask, first)
        own = type(self).to_basis is not Corruption.to_basis
        if not own and self._known_basis() == "dct":
            return functional.spectral_mix(inputs, factors, noise_mask=spread, key=key, noise=noise)
        dtype = factors[0].dtype
        total = sum(m * self.to_basis(x.to(dtype)) for m, x in zip(factors, inputs, strict=True))
        assert isinstance(total, Tensor)
        if spread is not None and not own and spread.dim() == 4 and spread.numel() == spread.shape[0]:
            # White noise over pixels: a blur of 0 px leaves the image as it is, and n is added in one pass.
            out = functional.corrupt(total, 0.0, spread.reshape(-1), key=key, noise=noise)
            assert isinstance(out, Tensor)
            return out.to(first.dtype)
        if spread is not None:
            if noise is None:
                key = fresh_key() if key is None else key
                noise = functional.normal(first.shape, key, device=first.device, dtype=dtype)
            total = total + spread * noise
        return self.from_basis(total).to(first.dtype)

    def white(self, x: Tensor, key: NoiseKey) -> Tensor:
        """The white noise n of images x [B, C, H, W] that `corrupt` adds for this key, in x's dtype."""
        dtype = torch.float32 if x.dtype == torch.uint8 else x.dtype
        return self.from_basis(functional.normal(x.shape, key, device=x.device, dtype=dtype))

    def check_size(self, op: str, x: Tensor) -> None:
        """Raises ValueError for images [B, C, H, W] of another size or number of channels. op: the caller."""
        if tuple(x.shape[-2:]) != tuple(self.image_size):
            height, width = self.image_size
            raise ValueError(
                f"{op}: the corruption is for images of {height} x {width}, got {args.describe(x)}"
            )
        if self.channels is not None and x.shape[-3] != self.channels:
            raise ValueError(
                f"{op}: the corruption is for images of {self.channels} channels, got {args.describe(x)}"
            )

    def corrupt(
        self,
        x0: Tensor,
        t: float | Tensor,
        *,
        key: NoiseKey | None = None,
        noise: Tensor | None = None,
        return_residual: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x_t, and, if asked, the residual `x_0 - x_t`.

        Args:
            x0: Images [B, C, H, W] in [-1, 1], or uint8.
            t: A number or [B].
            key: As in `softdiff_kernels.corrupt`.
            noise: n of the images' shape, in place of a key.
            return_residual: As in `softdiff_kernels.corrupt`.
        """
        self.check_size("Corruption.corrupt", x0)
        clean = decode(x0)
        if noise is not None:
            args.image("Corruption.corrupt", "noise", noise, like=clean)
            noise = self.to_basis(noise)
        time = _there("Corruption.corrupt", t, clean)
        x_t = self.mix([clean], [self.gain(time)], noise_mask=self.noise(time), key=key, noise=noise)
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
        """`x_s = A x_t + (m_s - A m_t) x0_hat + B n`, the products in the basis V.

        Args:
            x_t: Images at time t, [B, C, H, W].
            x0_hat: Estimate of the clean images, likewise.
            t: A number in [0, 1].
            s: Likewise, s < t.
            A: A number, or a mask that broadcasts to [B, C, H, W].
            B: Likewise, of at least 0.
            key: Of the noise n. None takes a fresh key from torch's default generator.
        """
        keep = _on_device(A, x_t.device, torch.float64) if isinstance(A, Tensor) else A
        gain_t, gain_s = (self.gain(_there("Corruption.step", time, x_t)) for time in (t, s))
        moved = gain_s - keep * gain_t
        return self.mix([x_t, x0_hat], [keep, moved], noise_mask=B, key=key)

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
        """`weight sum_k mask[k]^2 (V^T (prediction - target))[k]^2`, summed over an image's elements.

        Args:
            prediction: [B, C, H, W].
            target: Likewise.
            t: [B].
            mask: A number, or what broadcasts to [B, C, H, W]. None is m_t: errors are seen through C_t, as
                Soft Score Matching does.
            weight: A number or [B]; None is 1.
            reduction: "none" gives [B], "mean" the mean over the batch, "sum" the sum.

        Returns:
            float32, float64 for float64 images.
        """
        seen = _mask(self.gain(t) if mask is None else mask, prediction)
        if type(self).to_basis is Corruption.to_basis and self._known_basis() == "dct":
            return functional.spectral_loss(prediction, target, seen, weight=weight, reduction=reduction)
        args.image("Corruption.loss", "prediction", prediction)
        args.image("Corruption.loss", "target", target, like=prediction)
        return squares(seen * self.to_basis((prediction - target).to(seen.dtype)), weight, reduction)

    def to_dict(self) -> dict[str, Any]:
        """The corruption as JSON can store it; `from_dict` reads it."""
        if REGISTRY.get(self.kind) is not type(self):
            raise ValueError(
                f"{type(self).__name__}: expected a class with a name in files, got none; decorate it with "
                '@register("name")'
            )
        return {"format": FORMAT, "kind": self.kind, **self.config()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_dict` as a JSON file, whole or not at all. UserError, a ValueError, if it cannot be
        written."""
        save_json(Path(path), self.to_dict())

    @staticmethod
    def load(path: str | os.PathLike[str], shape: tuple[int, int, int] | None = None) -> Corruption:
        """The corruption in a file of `save`. ValueError if the file is damaged, or not for images of shape
        (C, H, W)."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: expected a whole JSON file, got another one ({error})") from None
        try:
            corruption = Corruption.from_dict(content)
            if shape is not None:
                corruption.check_size("images", torch.empty(1, *shape))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return corruption

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Corruption:
        """The corruption that `to_dict` wrote. ValueError for any other content."""
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise ValueError(
                f"Corruption: expected a dictionary of format {FORMAT!r}, got {args.shown(content)}"
            )
        kind = content.get("kind", "blur")  # files of before there were others name none
        if kind not in REGISTRY:
            raise ValueError(
                f"Corruption: expected a kind among {', '.join(sorted(REGISTRY))}, got {args.shown(kind)}; "
                "import the module that registers it"
            )
        config = {name: value for name, value in content.items() if name not in ("format", "kind")}
        try:
            return REGISTRY[kind].from_config(config)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"Corruption of kind {kind}: expected its complete configuration: {error}"
            ) from None


REGISTRY: dict[str, type[Corruption]] = {}
"""The classes of corruptions by their name in files."""

C = TypeVar("C", bound=type[Corruption])


def register(kind: str) -> Any:
    """A class decorator: the name of a class of corruptions in files. ValueError for a name that is taken.

    A class that is defined again, as in a notebook, replaces the one of the same name and module.

    Examples:
        >>> @register("halves")
        ... class Halves(SpectralCorruption):
        ...     pass
        >>> Halves((8, 8), [1.0, 0.5], [0.0, 0.1]).to_dict()["kind"]
        'halves'
    """
    if not isinstance(kind, str) or not kind:
        raise ValueError(f"register: expected a name, got {args.shown(kind)}")

    def enter(cls: C) -> C:
        other = REGISTRY.get(kind)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"register: expected a name that is free, got {kind!r}, the name of {other.__module__}."
                f"{other.__qualname__}"
            )
        cls.kind = kind
        REGISTRY[kind] = cls
        return cls

    return enter


def squares(error: Tensor, weight: float | Tensor | None, reduction: str) -> Tensor:
    """The loss of an error [B, C, H, W] as `Corruption.loss` returns it."""
    args.choice("Corruption.loss", "reduction", reduction, ("none", "mean", "sum"))
    loss = error.square().sum(dim=(1, 2, 3))
    if weight is not None:
        loss = loss * weight
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def times(op: str, t: float | Tensor) -> Tensor:
    """A checked time as [B], for a number in float64 on the CPU; on a device clamped to [0, 1]."""
    t = args.time(op, t)
    return t.reshape(-1).clamp(0.0, 1.0) if isinstance(t, Tensor) else torch.tensor([t], dtype=torch.float64)


def is_number(factor: object) -> bool:
    """Whether A or B of a step is a number, not a mask."""
    return not isinstance(factor, Tensor)


def is_zero(factor: Factor) -> bool:
    """Whether a step's B is the number 0: then it draws no noise."""
    return not isinstance(factor, Tensor) and factor == 0


def _there(op: str, t: float | Tensor, x: Tensor) -> Tensor:
    """A number as a time [1] where the images are, so that masks are made there and not copied."""
    t = args.time(op, t)
    return t if isinstance(t, Tensor) else torch.full((1,), t, dtype=torch.float64, device=x.device)


def _mask(factor: Factor, x: Tensor) -> Tensor:
    """A number or mask as the ops take it for images x: at most float32, but for float64 images, on x's
    device."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if not isinstance(factor, Tensor):
        return torch.full((1, 1, 1, 1), factor, dtype=dtype, device=x.device)
    return _on_device(factor, x.device, dtype)


def _on_device(mask: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A mask on a device. Rules make theirs in host memory, where they also decide by them. A copy in each
    step would make the host wait for the GPU, so copies are kept, by content; not those of masks for each
    image, such as an observation's, which come once and fill the cache."""
    there = mask.device.type != "cpu" or device.type == "cpu"
    for_each = mask.dim() == 4 and mask.shape[0] != 1
    if there or for_each or torch.compiler.is_compiling():
        return mask.to(device=device, dtype=dtype)
    args.no_derivative("Corruption", "a mask", mask, "masks")
    if torch._C._functorch.is_functorch_wrapped_tensor(mask):
        return mask.to(device=device, dtype=dtype)
    content = mask.to(dtype).contiguous()
    return _kept_masks(content.numpy().tobytes(), tuple(mask.shape), dtype, device)


def _make_mask(content: bytes, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=dtype).view(shape).to(device)


_kept_masks = Tables("masks of steps", _make_mask, copied=True, share=2)
