# SPDX-License-Identifier: Apache-2.0
"""Kernels compiled before a run needs them, side by side, instead of one by one in the middle of it.

Only Triton compiles at first use, 1 to 4 s for each kernel; nothing is done where its kernels do not run.
What a run needs is found by making its calls with the launches recorded instead of made (`rehearse`): the
trainer and `generate` make theirs with a network that computes nothing, `warm_up` makes the usual ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _arguments as args
from . import functional
from .backends import triton
from .noise import NoiseKey


@dataclass(frozen=True)
class WarmUp:
    """What `warm_up` did.

    Attributes:
        compiled: Number of kernels that were compiled.
        found: Number of kernels that were compiled before: in memory, or in Triton's cache on the disk.
        seconds: How long all of it took.

    Examples:
        >>> print(sk.WarmUp(compiled=7, found=1, seconds=3.21))
        compiled 7 kernels in 3.2 s
    """

    compiled: int
    found: int
    seconds: float

    def __str__(self) -> str:
        return f"compiled {self.compiled} kernel{'s' * (self.compiled != 1)} in {self.seconds:.1f} s"


_rehearsing: ContextVar[bool] = ContextVar("softdiff_kernels.rehearsing", default=False)


def rehearse(call: Callable[[], object], device: torch.device) -> WarmUp:
    """Compiles what a call needs on a device. The call is made once, if kernels are compiled there at all;
    what the ops return in it is not computed. A rehearsal within another one does nothing.
    """
    device, start = args.indexed(device), time.perf_counter()
    if _rehearsing.get() or not triton.compiles(device):
        return WarmUp(0, 0, 0.0)
    before = _rehearsing.set(True)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            compiled, found = triton.rehearse(call)
    finally:
        _rehearsing.reset(before)
    return WarmUp(compiled, found, time.perf_counter() - start)


def echo(x: Tensor, t: Tensor, **_: Any) -> Tensor:
    """A network for rehearsals: it computes nothing, and its result asks for a gradient."""
    return x.detach().requires_grad_()


def _corrupt(x: Tensor, each: Tensor, keys: Sequence[NoiseKey]) -> None:
    for key in keys:
        functional.corrupt(x, each, each, key=key, return_residual=True)
        functional.corrupt(x, 1.0, 1.0, key=key)


def _loss(x: Tensor, each: Tensor, keys: Sequence[NoiseKey]) -> None:
    prediction = echo(x, each)
    for blur_std in (each, 0.0):
        functional.soft_score_loss(prediction, x, blur_std, weight=each)


def _momentum_step(x: Tensor, each: Tensor, keys: Sequence[NoiseKey]) -> None:
    for key in keys:
        functional.momentum_step(
            x, x, blur_std_t=2.0, blur_std_s=1.0, noise_std_t=2.0, noise_std_s=1.0, key=key
        )


def _reverse_step(x: Tensor, each: Tensor, keys: Sequence[NoiseKey]) -> None:
    for b, key in ((0.0, None), *((1.0, key) for key in keys)):
        functional.reverse_step(x, x, blur_std_t=2.0, blur_std_s=1.0, a=1.0, b=b, key=key)


def _mix(x: Tensor, each: Tensor, keys: Sequence[NoiseKey]) -> None:
    for key in keys:
        functional.spectral_mix([x, x], [x[:1], x[:1]], noise_mask=x[:1], key=key)


def _normal(x: Tensor, each: Tensor, keys: Sequence[NoiseKey]) -> None:
    for key in keys:
        functional.normal(x.shape, key, device=x.device, dtype=x.dtype)


# Each op as a training loop and a sampler call it, on images x, coefficients [B] and both kinds of keys.
_CALLS: dict[str, Callable[[Tensor, Tensor, Sequence[NoiseKey]], object]] = {
    "blur": lambda x, each, keys: (functional.blur(x, each), functional.blur(x, 1.0)),
    "corrupt": _corrupt,
    "dct2": lambda x, each, keys: functional.dct2(x),
    "idct2": lambda x, each, keys: functional.idct2(x),
    "momentum_step": _momentum_step,
    "normal": _normal,
    "reverse_step": _reverse_step,
    "soft_score_loss": _loss,
    "spectral_mix": _mix,
}


def _shapes(shapes: Any) -> list[list[int]]:
    """One shape or several, as a list."""
    several = [shapes] if args.listed(shapes, args.whole) is not None else shapes
    read = [args.listed(shape, args.whole) for shape in several] if isinstance(several, (list, tuple)) else []
    if not read or any(s is None or len(s) != 4 or min(s) < 1 for s in read):
        raise ValueError(
            f"warm_up: expected shapes as [B, C, H, W] of at least 1 each, or a list of such, got "
            f"{args.shown(shapes)}"
        )
    return read  # type: ignore[return-value]


def warm_up(
    shapes: Sequence[int] | Sequence[Sequence[int]],
    dtypes: torch.dtype | Sequence[torch.dtype] = torch.float32,
    ops: str | Sequence[str] = ("corrupt", "soft_score_loss", "momentum_step"),
    *,
    device: torch.device | str | None = None,
) -> WarmUp:
    """Compiles the kernels that a run will need, side by side, before it needs them.

    The Triton backend compiles a kernel for each op, image size, number of channels, dtype and set of
    options, at first use. That takes 1 to 4 s each, and is impossible while a CUDA graph is captured. Other
    backends compile nothing: there this does nothing. The trainer and `diffusion.generate` warm up by
    themselves.

    Each op is compiled as training loops and samplers call it: contiguous images; `corrupt` with numbers, and
    with tensors [B] and its residual; the loss with its gradient, blur_std a tensor [B] or 0 and weight a
    tensor [B]; steps with numbers; noise by a key of numbers, and by one of tensors. For other options, make
    the call once. After a warm-up, a kernel that is still compiled in the middle of a run is logged once, as
    a warning of the logger "softdiff_kernels".

    Args:
        shapes: [B, C, H, W] of the images, or a list of such. B counts only above 128 px, where a batch of
            fewer planes than the GPU has multiprocessors takes other kernels.
        dtypes: Of the images: one, or a list. uint8 is for `corrupt` alone.
        ops: Names of the ops: one, or a list.
        device: Where. None is the current GPU if there is one.

    Raises:
        ValueError: If a shape is not four whole numbers of at least 1, or an op's name is unknown.

    Examples:
        >>> warm = sk.warm_up([64, 3, 32, 32], [torch.float32, torch.uint8])
        >>> warm.compiled  # on a CPU, whose kernels are compiled at installation
        0
    """
    sizes = _shapes(shapes)
    several = [dtypes] if isinstance(dtypes, torch.dtype) else list(dtypes)
    names = [ops] if isinstance(ops, str) else list(ops)
    for name in names:
        args.choice("warm_up", "ops", name, tuple(_CALLS))
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)

    def call() -> None:
        for shape in sizes:
            each = torch.ones(shape[0], device=where)
            keys = (NoiseKey(0), NoiseKey(0, stream=torch.zeros(shape[0], dtype=torch.int64, device=where)))
            for dtype in several:
                x = torch.zeros(shape, dtype=dtype, device=where)
                for name in names:
                    if dtype != torch.uint8 or name == "corrupt":
                        _CALLS[name](x, each, keys)

    with torch.inference_mode(False), torch.enable_grad():
        return rehearse(call, where)
