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
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad

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


def readable(value: Tensor) -> bool:
    """Whether Python may look at the numbers in a tensor: it is on the CPU and nothing records the call.

    Not on a device, where it would wait; nor where there are no numbers to see: under torch.compile, export
    and jit.trace, in a fake tensor, or below a transform of torch.func.
    """
    return not torch.compiler.is_compiling() and value.is_cpu and not _recorded(value)


def _recorded(value: Tensor) -> bool:
    return (
        type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__
        or _functorch.is_functorch_wrapped_tensor(value)
        or _functorch.is_legacy_batchedtensor(value)
        or torch._is_functional_tensor(value)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.jit.is_tracing()
    )


def no_derivative(op: str, name: str, value: Tensor, what: str = "coefficients") -> None:
    """Refuses a tensor by which someone differentiates, backward or forward, at any level of torch.func.

    torch.compile sees neither a tangent nor an outer level here: there the ops' own rules refuse both.
    """
    found = "requires grad" if value.requires_grad else None
    if not torch.compiler.is_compiling() and (
        forward_ad._current_level >= 0 or _functorch.is_functorch_wrapped_tensor(value)
    ):
        found = found or _derivative_below(value)
    if found:
        raise not_differentiable(op, name, found, what)


def not_differentiable(op: str, name: str, found: str, what: str) -> ValueError:
    """found: "requires grad" or "carries a tangent"; what: "coefficients" or "masks"."""
    return ValueError(
        f"{op}: {name} {found}, but the ops are not differentiable in their {what}; pass {name}.detach()"
    )


def _derivative_below(value: Tensor) -> str | None:
    """How someone differentiates by `value`, at this level of torch.func or one below it."""
    if value.requires_grad:
        return "requires grad"
    # A batched tensor hides the tangent of the one within; vmap has no rule for looking at it.
    if (
        forward_ad._current_level >= 0
        and not _functorch.is_batchedtensor(value)
        and forward_ad.unpack_dual(value).tangent is not None
    ):
        return "carries a tangent"
    interpreter = _functorch.peek_interpreter_stack()
    if interpreter is None:
        return None
    wrapped_here = _functorch.maybe_get_level(value) == interpreter.level()
    with temporarily_pop_interpreter_stack():
        return _derivative_below(_functorch.get_unwrapped(value) if wrapped_here else value)


def coefficient(
    op: str, name: str, value: float | Tensor, batch: int, device: torch.device, *, nonnegative: bool = True
) -> Tensor:
    """A coefficient as the ops take it: a float32 or float64 tensor, [1] or [B], on the device.

    A number stays in host memory, as float64 [1], where it becomes an argument of a kernel instead of a
    launch of its own; a compiled graph, which would not be captured with it, has it on the device.
    """
    if isinstance(value, Tensor):
        no_derivative(op, name, value)
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
    """Checks the numbers inside a coefficient tensor where they can be seen."""
    if not readable(value):
        return
    good = torch.isfinite(value)
    if nonnegative:
        good = good & (value >= 0)
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        wanted = "finite numbers" + (" of at least 0" if nonnegative else "")
        raise ValueError(f"{op}: expected {name} as {wanted}, got {value[row].item()!r} for sample {row}")


def ordered(op: str, name_s: str, value_s: Tensor, name_t: str, value_t: Tensor) -> None:
    """Checks value_s <= value_t per sample, where they can be seen."""
    if not (readable(value_s) and readable(value_t)):
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
    no_derivative(op, name, value, "masks")
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
