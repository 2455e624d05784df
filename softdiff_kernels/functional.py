# SPDX-License-Identifier: Apache-2.0
"""The public ops: argument checks, then one registered op each.

Each has an eager twin of the same name and signature in `reference`, whose docstring it shares.
Differentiable any number of times in every image argument; not in the coefficients, which are refused if they
require grad. Nothing synchronises with a device: values inside coefficient tensors are checked on the CPU
alone. Under autocast, arithmetic is in float32 and the result has the image's dtype.

`warm_up` compiles in advance what a run of them will need. Only Triton compiles at first use, 1 to 4 s for
each kernel; nothing is done where its kernels do not run. What a run needs is found by making its calls with
the launches recorded instead of made (`rehearse`): the trainer and `generate` make theirs with a network that
computes nothing, `warm_up` makes the usual ones.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import _arguments as args
from . import _ops, reference
from .backends import chosen, triton
from .noise import NoiseKey, pack_key

Coefficient = float | Tensor
F = TypeVar("F", bound=Callable[..., object])

__all__ = [
    "blur",
    "corrupt",
    "dct2",
    "idct2",
    "momentum_step",
    "normal",
    "reverse_step",
    "soft_score_loss",
    "spectral_loss",
    "spectral_mix",
]


def _twin(fn: F) -> F:
    """Shares the docstring of the eager twin, which specifies the op."""
    fn.__doc__ = getattr(reference, fn.__name__).__doc__
    return fn


def _silent(value: Coefficient) -> bool:
    """Whether the noise is known to be multiplied by nothing, so that none need be drawn."""
    return args.equals(value, 0)


def _key(
    op: str, key: NoiseKey | None, noise: Tensor | None, like: Tensor, std: Coefficient
) -> tuple[list[int], Tensor | None]:
    if noise is not None:
        if key is not None:
            raise ValueError(f"{op}: expected key or noise, got both")
        args.image(op, "noise", noise, like=like)
        return [], None
    if key is not None and not isinstance(key, NoiseKey):
        raise TypeError(f"{op}: expected key as a NoiseKey, got {args.describe(key)}")
    if _silent(std):
        return [], None
    return pack_key(key, like.shape[0], like.device)


def _optional(
    op: str, name: str, value: Coefficient | None, x: Tensor, *, any_sign: bool = False
) -> Tensor | None:
    """A factor that is absent where it is one."""
    if value is None or args.equals(value, 1):
        return None
    return args.coefficient(op, name, value, x.shape[0], x.device, nonnegative=not any_sign)


@_twin
def dct2(x: Tensor) -> Tensor:
    args.image("dct2", "x", x)
    return _ops.dct2(x, False)


@_twin
def idct2(u: Tensor) -> Tensor:
    args.image("idct2", "u", u)
    return _ops.dct2(u, True)


@_twin
def identity(x: Tensor) -> Tensor:  # template: copy this for a new op, and add its name to __all__
    args.image("identity", "x", x)
    return _ops.identity(x)


@_twin
def blur(x: Tensor, blur_std: Coefficient, *, floor: float = 0.0, scale: Coefficient = 1.0) -> Tensor:
    args.image("blur", "x", x)
    floor = args.number("blur", "floor", floor, most=1.0)
    std = args.coefficient("blur", "blur_std", blur_std, x.shape[0], x.device)
    factor = _optional("blur", "scale", scale, x, any_sign=True)
    return _ops.blur(x, std, factor, floor)


@_twin
def corrupt(
    x0: Tensor,
    blur_std: Coefficient,
    noise_std: Coefficient,
    *,
    floor: float = 0.0,
    scale: Coefficient = 1.0,
    key: NoiseKey | None = None,
    noise: Tensor | None = None,
    return_residual: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    op = "corrupt"
    args.image(op, "x0", x0, uint8=True)
    floor = args.number(op, "floor", floor, most=1.0)
    batch, device = x0.shape[0], x0.device
    std = args.coefficient(op, "blur_std", blur_std, batch, device)
    sigma = args.coefficient(op, "noise_std", noise_std, batch, device)
    factor = _optional(op, "scale", scale, x0, any_sign=True)
    packed, rows = _key(op, key, noise, x0, noise_std)
    x_t, residual = _ops.corrupt(x0, std, sigma, factor, floor, packed, rows, noise, return_residual)
    return (x_t, residual) if return_residual else x_t


def _step(
    op: str,
    x_t: Tensor,
    x0_hat: Tensor,
    coefficients: dict[str, Coefficient],
    rule: str,
    floor: float,
    key: NoiseKey | None,
    noise: Tensor | None,
    silent: Coefficient,
    out: Tensor | None,
) -> Tensor:
    args.image(op, "x_t", x_t)
    args.image(op, "x0_hat", x0_hat, like=x_t)
    floor = args.number(op, "floor", floor, most=1.0)
    args.output(op, out, x_t, x0_hat, noise)
    batch, device = x_t.shape[0], x_t.device
    tensors = [
        args.coefficient(op, name, value, batch, device, nonnegative=name != "a")
        for name, value in coefficients.items()
    ]
    packed, rows = _key(op, key, noise, x_t, silent)
    if out is not None:
        _ops.step_out(x_t, x0_hat, *tensors, rule, floor, packed, rows, noise, out)
        return out
    return _ops.step(x_t, x0_hat, *tensors, rule, floor, packed, rows, noise)


@_twin
def reverse_step(
    x_t: Tensor,
    x0_hat: Tensor,
    *,
    blur_std_t: Coefficient,
    blur_std_s: Coefficient,
    a: Coefficient,
    b: Coefficient,
    floor: float = 0.0,
    key: NoiseKey | None = None,
    noise: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    coefficients = {"blur_std_t": blur_std_t, "blur_std_s": blur_std_s, "a": a, "b": b}
    return _step("reverse_step", x_t, x0_hat, coefficients, "given", floor, key, noise, b, out)


@_twin
def momentum_step(
    x_t: Tensor,
    x0_hat: Tensor,
    *,
    blur_std_t: Coefficient,
    blur_std_s: Coefficient,
    noise_std_t: Coefficient,
    noise_std_s: Coefficient,
    variance: str = "large",
    floor: float = 0.0,
    key: NoiseKey | None = None,
    noise: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    op = "momentum_step"
    args.choice(op, "variance", variance, ("large", "small"))
    coefficients = {
        "blur_std_t": blur_std_t,
        "blur_std_s": blur_std_s,
        "noise_std_t": noise_std_t,
        "noise_std_s": noise_std_s,
    }
    for low, high in (("blur_std_s", "blur_std_t"), ("noise_std_s", "noise_std_t")):
        args.ordered_numbers(op, low, coefficients[low], high, coefficients[high])
    return _step(op, x_t, x0_hat, coefficients, variance, floor, key, noise, 1.0, out)


@_twin
def soft_score_loss(
    prediction: Tensor,
    target: Tensor,
    blur_std: Coefficient,
    *,
    weight: Coefficient | None = None,
    floor: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    op = "soft_score_loss"
    args.image(op, "prediction", prediction)
    args.image(op, "target", target, like=prediction)
    floor = args.number(op, "floor", floor, most=1.0)
    args.choice(op, "reduction", reduction, ("none", "mean", "sum"))
    std = args.coefficient(op, "blur_std", blur_std, prediction.shape[0], prediction.device)
    factor = _optional(op, "weight", weight, prediction)
    return _ops.soft_score_loss(prediction, target, std, factor, floor, reduction)


@_twin
def spectral_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    weight: Coefficient | None = None,
    reduction: str = "mean",
) -> Tensor:
    op = "spectral_loss"
    args.image(op, "prediction", prediction)
    args.image(op, "target", target, like=prediction)
    args.mask(op, "mask", mask, prediction.shape, prediction.device)
    args.choice(op, "reduction", reduction, ("none", "mean", "sum"))
    factor = _optional(op, "weight", weight, prediction)
    return _ops.spectral_loss(prediction, target, mask, factor, reduction)


@_twin
def spectral_mix(
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    noise_mask: Tensor | None = None,
    key: NoiseKey | None = None,
    noise: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    reference.check_mix("spectral_mix", inputs, masks, noise_mask, noise, out)
    packed, rows = _key("spectral_mix", key, noise, inputs[0], 0.0 if noise_mask is None else 1.0)
    if out is not None:
        _ops.spectral_mix_out(inputs, masks, noise_mask, packed, rows, noise, out)
        return out
    return _ops.spectral_mix(inputs, masks, noise_mask, packed, rows, noise)


@_twin
def normal(
    shape: Sequence[int],
    key: NoiseKey,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    shape = reference.check_normal(shape, key, dtype)
    where = args.indexed(torch.device(device))
    return _ops.normal(shape, *pack_key(key, shape[0], where), dtype, where)


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
    if _rehearsing.get() or chosen() not in ("auto", "triton") or not triton.compiles(device):
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


def _usual(x: Tensor, each: Tensor, key: NoiseKey) -> dict[str, Callable[[], object]]:
    """Each op as a training loop and a sampler call it, on images x, with coefficients `each` [B]."""
    network = x if x.dtype == torch.uint8 else echo(x, each)
    return {
        "blur": lambda: (blur(x, each), blur(x, 1.0)),
        "corrupt": lambda: (
            corrupt(x, each, each, key=key, return_residual=True),
            corrupt(x, 1.0, 1.0, key=key),
        ),
        "dct2": lambda: dct2(x),
        "idct2": lambda: idct2(x),
        "momentum_step": lambda: momentum_step(
            x, x, blur_std_t=2.0, blur_std_s=1.0, noise_std_t=2.0, noise_std_s=1.0, key=key
        ),
        "normal": lambda: normal(x.shape, key, device=x.device, dtype=x.dtype),
        "reverse_step": lambda: [
            reverse_step(x, x, blur_std_t=2.0, blur_std_s=1.0, a=1.0, b=b, key=key) for b in (0.0, 1.0)
        ],
        "soft_score_loss": lambda: [soft_score_loss(network, x, std, weight=each) for std in (each, 0.0)],
        "spectral_loss": lambda: [
            spectral_loss(network, x, mask, weight=each) for mask in (x[:, :1], x[:1, :1])
        ],
        "spectral_mix": lambda: spectral_mix([x, x], [x[:1], x[:1]], noise_mask=x[:1], key=key),
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
    ops: str | Sequence[str] = ("corrupt", "soft_score_loss", "momentum_step", "reverse_step"),
    *,
    device: torch.device | str | None = None,
) -> WarmUp:
    """Compiles the kernels that a run will need, side by side, before it needs them.

    The Triton backend compiles a kernel for each op, image size, number of channels, dtype and set of
    options, at first use. That takes 1 to 4 s each, and is impossible while a CUDA graph is captured. Other
    backends compile nothing: there this does nothing. The trainer and `diffusion.generate` warm up by
    themselves.

    Each op is compiled as training loops and samplers call it: contiguous images; `corrupt` with numbers,
    and with tensors [B] and its residual; the loss with its gradient, blur_std a tensor [B] or 0 and weight
    a tensor [B], and with a mask [B, 1, H, W] or [1, 1, H, W]; steps with numbers; noise by a key of
    numbers, and by one of tensors. For other options, make the call once. After a warm-up, a kernel that is
    still compiled in the middle of a run is logged once, as a warning of the logger "softdiff_kernels".

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
        args.choice("warm_up", "ops", name, tuple(__all__))
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)

    def call() -> None:
        for shape, dtype in itertools.product(sizes, several):
            x, each = torch.zeros(shape, dtype=dtype, device=where), torch.ones(shape[0], device=where)
            stream = torch.zeros(shape[0], dtype=torch.int64, device=where)
            for key in (NoiseKey(0), NoiseKey(0, stream)):
                calls = _usual(x, each, key)
                for name in names:
                    if dtype != torch.uint8 or name == "corrupt":
                        calls[name]()

    with torch.inference_mode(False), torch.enable_grad():
        return rehearse(call, where)
