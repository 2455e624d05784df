# SPDX-License-Identifier: Apache-2.0
"""The inputs that are timed, our call on them, what each result is compared with, and the cost of an op."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import softdiff_kernels as sk

CHANNELS = 3
SEED = 20220911
HEADLINE = ("corrupt", "momentum_step", "soft_score_loss")  # the ops of a training and of a sampling step
LOSSES = ("soft_score_loss", "spectral_loss")  # timed with their gradients
_GIVEN_NOISE = ("corrupt", "blurring_corrupt", "momentum_step", "reverse_step", "spectral_mix")
NOISY = (*_GIVEN_NOISE, "normal")
FLOOR = 0.001  # of blurring_corrupt: Hoogeboom & Salimans 2022, appendix A
_ELEMENTS = 3 * 2**18  # a call's values, 0.79 M: enough to hide the cost of a call, few enough for the caches
# For one value of the result, in units of N multiply-adds by dense matrix products: two products for a blur
# or a transform, so 2 x 2 N operations; a loss needs two and its gradient two more; spectral_mix three
# transforms.
_DENSE = {"soft_score_loss": 8, "spectral_loss": 8, "spectral_mix": 12, "normal": 0}
# Images that an op has to read and write; a mask, which three channels share, is a third of one.
_IMAGES = {"momentum_step": 3, "reverse_step": 3, "soft_score_loss": 3, "spectral_loss": 10 / 3}
_IMAGES |= {"spectral_mix": 4, "normal": 1}


def dense_operations(op: str, px: int) -> int:
    """Floating-point operations for one value by dense matrix products, at `px` a side."""
    return _DENSE.get(op, 4) * px


def bytes_of(op: str) -> float:
    """Bytes that the op has to read and write for one float32 value."""
    return 4 * _IMAGES.get(op, 2)


@dataclass(frozen=True)
class Case:
    """An op on a batch. `arguments` are those of the baselines, in order, one row for each sample."""

    op: str
    height: int
    width: int
    arguments: dict[str, Tensor]
    noise: Tensor | None

    @property
    def batch(self) -> int:
        return next(iter(self.arguments.values())).shape[0]

    @property
    def values(self) -> int:
        """How many numbers a result has: what "px" means in ns/px."""
        return next(iter(self.arguments.values())).numel()


def batch_of(size: int) -> int:
    """Images a call, so that it has about 3/4 million values: 256 at 32 px, 4 at 256 px."""
    return max(1, _ELEMENTS // (CHANNELS * size * size))


def make(
    op: str,
    height: int,
    width: int,
    batch: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Case:
    """Random inputs of an op, from a fixed seed: blur_std log-uniform from 0.01 px to N/3 for each sample."""
    generator = torch.Generator(device).manual_seed(SEED + 1000 * height + width)
    shape = (batch, CHANNELS, height, width)

    def uniform(low: float, high: float, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator, device=device) * (high - low) + low

    def images(*names: str) -> dict[str, Tensor]:
        return {name: uniform(-1, 1, shape).to(dtype) for name in names}

    def log_uniform(low: float, high: float) -> Tensor:
        return torch.exp(uniform(math.log(low), math.log(high), (batch,))).to(dtype)

    def mask(most: float) -> Tensor:
        return uniform(0, most, (batch, 1, height, width)).to(dtype)

    blur_std, noise_std = log_uniform(0.01, max(height, width) / 3), log_uniform(0.01, 0.1)
    blurs = {"blur_std_t": blur_std, "blur_std_s": 0.9 * blur_std}
    noises = {"noise_std_t": noise_std, "noise_std_s": 0.9 * noise_std}
    build: dict[str, Callable[[], dict[str, Tensor]]] = {
        "corrupt": lambda: {**images("x0"), "blur_std": blur_std, "noise_std": noise_std},
        "blurring_corrupt": lambda: {
            **images("x0"),
            **{"blur_std": blur_std, "noise_std": noise_std, "scale": (1 - noise_std.square()).sqrt()},
        },
        "momentum_step": lambda: images("x_t", "x0_hat") | blurs | noises,
        "reverse_step": lambda: {
            **(images("x_t", "x0_hat") | blurs),
            **{"a": uniform(0, 1, (batch,)).to(dtype), "b": 0.1 * noise_std},
        },
        "soft_score_loss": lambda: {
            **images("prediction", "target"),
            **{"blur_std": blur_std, "weight": noise_std.square().reciprocal()},
        },
        "spectral_loss": lambda: {
            **images("prediction", "target"),
            **{"mask": mask(1), "weight": noise_std.square().reciprocal()},
        },
        "blur": lambda: {**images("x"), "blur_std": blur_std},
        "dct2": lambda: images("x"),
        "idct2": lambda: images("u"),
        "spectral_mix": lambda: {
            **images("x_t", "x0_hat"),
            **{"mask_t": mask(1), "mask_0": mask(1), "noise_mask": mask(0.1)},
        },
        "normal": lambda: {"like": torch.empty(shape, dtype=dtype, device=device)},
    }
    if op not in build:
        raise ValueError(f"make: expected one of {', '.join(build)}, got {op!r}")
    draws = op in _GIVEN_NOISE
    noise = torch.randn(shape, generator=generator, device=device).to(dtype) if draws else None
    return Case(op, height, width, build[op](), noise)


def ours(case: Case, *, noise: Tensor | None = None, module: Any = sk) -> Any:
    """The library's op on the case. Without `noise` it draws its own, where it has noise."""
    a, function = case.arguments, getattr(module, case.op.removeprefix("blurring_"))
    given = {} if noise is None else {"noise": noise}
    if case.op == "blurring_corrupt":
        return function(**a, floor=FLOOR, **given)
    if case.op == "spectral_mix":
        x_t, x0_hat, mask_t, mask_0, noise_mask = a.values()
        return function((x_t, x0_hat), (mask_t, mask_0), noise_mask=noise_mask, **given)
    if case.op in _GIVEN_NOISE:
        return function(**a, **given)
    if case.op in LOSSES:
        prediction, target, seen, weight = a.values()
        leaf = prediction.detach().requires_grad_()
        loss = function(leaf, target, seen, weight=weight)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]
    if case.op == "normal":
        like = a["like"]
        return function(like.shape, sk.NoiseKey(SEED), device=like.device, dtype=like.dtype)
    return function(*a.values())


def truth(case: Case) -> Any:
    """The specification in float64 on the case's numbers, with its noise given."""
    arguments = {name: value.double() for name, value in case.arguments.items()}
    noise = None if case.noise is None else case.noise.double()
    return ours(replace(case, arguments=arguments, noise=noise), noise=noise, module=sk.reference)


def synthetic_photographs(count: int, size: int, seed: int = SEED) -> Tensor:
    """uint8 [count, 3, size, size] with the 1/f amplitudes of photographs and random phases."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1.0 / size
    white = generator.standard_normal((count, CHANNELS, size, size), dtype=np.float32)
    shaped = np.fft.irfft2(np.fft.rfft2(white) / frequency, s=(size, size))
    spread = shaped.std(axis=(1, 2, 3), keepdims=True)
    return torch.from_numpy(np.clip(127.5 + 55.0 * shaped / spread, 0, 255).astype(np.uint8))


def relative_error(result: Any, exact: Any) -> float:
    """|result - exact| / |exact| in the L2 norm, the largest where there are several results."""
    if isinstance(result, tuple):
        return max(relative_error(r, e) for r, e in zip(result, exact, strict=True))
    return float((result.double() - exact).norm() / exact.norm())
