# SPDX-License-Identifier: Apache-2.0
"""Argument checks and conversions that the public functions and their eager twins share.

What can be known from shapes, dtypes, devices and Python numbers is checked here, before anything
is computed. Values inside a coefficient tensor are checked where it is read (by the backend, and
only on the CPU), so that nothing here synchronises with a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

IMAGE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def describe(value: object) -> str:
    """What was got, for an error message."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}"


def image(op: str, name: str, value: Tensor, *, like: Tensor | None = None, uint8: bool = False) -> None:
    """Checks that `value` is a batch of images, of the shape and device of `like` if given."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {name} as a tensor [B, C, H, W], got {describe(value)}")
    if value.dtype not in IMAGE_DTYPES and not (uint8 and value.dtype == torch.uint8):
        allowed = "float64, float32, bfloat16 or float16" + (" (or uint8)" if uint8 else "")
        raise TypeError(f"{op}: expected {name} as {allowed}, got {describe(value)}")
    if value.dim() != 4:
        raise ValueError(f"{op}: expected {name} as [B, C, H, W], got {describe(value)}")
    if value.shape[2] == 0 or value.shape[3] == 0:
        raise ValueError(f"{op}: expected {name} with H and W of at least 1, got {describe(value)}")
    if like is not None:
        if value.shape != like.shape:
            raise ValueError(f"{op}: expected {name} of shape {list(like.shape)}, got {describe(value)}")
        if value.device != like.device:
            raise ValueError(f"{op}: expected {name} on {like.device}, got {describe(value)}")


def coefficient(
    op: str, name: str, value: float | Tensor, batch: int, device: torch.device, *, nonnegative: bool = True
) -> Tensor:
    """A coefficient as the ops take it: a float32 or float64 tensor, [1] or [B], on the device.

    A number stays in host memory, as float64 [1], where it becomes an argument of a kernel instead of a
    launch of its own; a compiled graph, which would not be captured with it, has it on the device.
    """
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(
                f"{op}: {name} requires grad, but the ops are not differentiable in their coefficients; "
                f"pass {name}.detach()"
            )
        if value.dim() > 1 or (value.dim() == 1 and value.shape[0] not in (1, batch)):
            raise ValueError(
                f"{op}: expected {name} as a number or a tensor [{batch}], got {describe(value)}"
            )
        if not value.dtype.is_floating_point:
            raise TypeError(f"{op}: expected {name} as a floating-point tensor, got {describe(value)}")
        if value.device != device:
            raise ValueError(f"{op}: expected {name} on {device}, got {describe(value)}")
        if value.dtype not in (torch.float32, torch.float64):
            value = value.float()
        return value if value.dim() == 1 else value.reshape(1)
    number(op, name, value, nonnegative=nonnegative)
    where = device if torch.compiler.is_compiling() else "cpu"
    return torch.full((1,), value, dtype=torch.float64, device=where)


def indexed(device: torch.device) -> torch.device:
    """ "cuda" as the device that it means now, so that it equals the device of a tensor there."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def on(value: Tensor, device: torch.device) -> Tensor:
    """A coefficient on the device; a number that waits in host memory is filled in there, never copied."""
    if value.device == device:
        return value
    return torch.full((1,), float(value[0]), dtype=value.dtype, device=device)


def number(op: str, name: str, value: float, *, nonnegative: bool = True, most: float = math.inf) -> None:
    """Checks a plain number: finite, not negative where that has no meaning, at most `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
        try:
            if isinstance(value, (bool, str)):
                raise TypeError
            value = float(value)  # numpy scalars
        except (TypeError, ValueError):
            raise TypeError(f"{op}: expected {name} as a number or a tensor, got {describe(value)}") from None
    if not isinstance(value, (int, float)):
        return
    if not math.isfinite(value) or (nonnegative and value < 0) or value > most:
        wanted = "a finite number" + (" of at least 0" if nonnegative else "")
        wanted += f" and at most {most:g}" if most < math.inf else ""
        raise ValueError(f"{op}: expected {name} as {wanted}, got {value!r}")


def values(op: str, name: str, value: Tensor, *, nonnegative: bool = True) -> None:
    """Checks the numbers inside a CPU coefficient tensor; on a device that would synchronise."""
    if value.device.type != "cpu":
        return
    good = torch.isfinite(value)
    if nonnegative:
        good &= value >= 0
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        wanted = "finite numbers" + (" of at least 0" if nonnegative else "")
        raise ValueError(f"{op}: expected {name} as {wanted}, got {value[row].item()!r} for sample {row}")


def ordered(op: str, name_s: str, value_s: Tensor, name_t: str, value_t: Tensor) -> None:
    """Checks value_s <= value_t per sample, on the CPU."""
    if value_s.device.type != "cpu" or value_t.device.type != "cpu":
        return
    low, high = torch.broadcast_tensors(value_s.double(), value_t.double())
    if bool((low > high).any()):
        row = int((low > high).nonzero()[0])
        raise ValueError(
            f"{op}: expected {name_s} <= {name_t} (a step towards the clean image), got "
            f"{low[row].item()!r} > {high[row].item()!r} for sample {row}"
        )


def choice(op: str, name: str, value: str, allowed: Sequence[str]) -> None:
    """Checks that a word is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{op}: expected {name} as one of {', '.join(map(repr, allowed))}, got {value!r}")


def mask(op: str, name: str, value: Tensor, shape: torch.Size, device: torch.device) -> None:
    """Checks that a spectral mask broadcasts against [B, C, H, W]."""
    if not isinstance(value, Tensor) or value.dtype not in IMAGE_DTYPES:
        raise TypeError(f"{op}: expected {name} as a floating-point tensor, got {describe(value)}")
    if value.requires_grad:
        raise ValueError(
            f"{op}: {name} requires grad, but the ops are not differentiable in their masks; "
            f"pass {name}.detach()"
        )
    if value.device != device:
        raise ValueError(f"{op}: expected {name} on {device}, got {describe(value)}")
    padded = (1,) * (4 - value.dim()) + tuple(value.shape)
    if len(padded) != 4 or any(got not in (1, want) for got, want in zip(padded, shape, strict=True)):
        raise ValueError(f"{op}: expected {name} to broadcast to {list(shape)}, got {describe(value)}")


def ordered_numbers(op: str, low: str, value_low: object, high: str, value_high: object) -> None:
    """Checks value_low <= value_high where both are plain numbers that are good each by itself."""
    if (
        isinstance(value_low, (int, float))
        and isinstance(value_high, (int, float))
        and not (isinstance(value_low, bool) or isinstance(value_high, bool))
        and math.inf > value_low > value_high >= 0
    ):
        raise ValueError(
            f"{op}: expected {low} <= {high} (a step towards the clean image), "
            f"got {value_low!r} > {value_high!r}"
        )


def output(op: str, out: Tensor | None, x_t: Tensor, *images: Tensor | None) -> None:
    """Checks `out=`: like x_t, not overlapping itself, and not under autograd."""
    if out is None:
        return
    image(op, "out", out, like=x_t)
    if out.dtype != x_t.dtype:
        raise TypeError(f"{op}: expected out as {x_t.dtype}, got {describe(out)}")
    if any(step == 0 and size > 1 for step, size in zip(out.stride(), out.shape, strict=True)):
        raise ValueError(f"{op}: expected out whose elements do not share memory, got strides {out.stride()}")
    grads = [x for x in (out, x_t, *images) if x is not None and x.requires_grad]
    if torch.is_grad_enabled() and grads:
        raise ValueError(f"{op}: out= cannot be differentiated; drop it, or work under torch.no_grad()")
