# SPDX-License-Identifier: Apache-2.0
"""Argument checks and conversions that the public functions and their eager twins share.

Shapes, dtypes, devices and Python numbers are checked here, before anything is computed. Values inside a
coefficient tensor are checked where the tensor is read, by the backend and only on the CPU, so that nothing
here synchronises with a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad

from ._numbers import listed, plain, shown, whole

IMAGE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def describe(value: object) -> str:
    """A value as an error message names it: its type and, if it is short, the value itself."""
    if isinstance(value, (Tensor, np.ndarray)):
        return shown(value)
    return f"{type(value).__name__} {shown(value)}"


def image(op: str, name: str, value: Tensor, *, like: Tensor | None = None, uint8: bool = False) -> None:
    """Checks that `value` is a batch of images, of the shape and device of `like` if given."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {name} as a tensor [B, C, H, W], got {describe(value)}")
    if value.dtype not in IMAGE_DTYPES and not (uint8 and value.dtype == torch.uint8):
        allowed = "float64, float32, bfloat16 or float16" + (" (or uint8)" if uint8 else "")
        raise TypeError(f"{op}: expected {name} as {allowed}, got {describe(value)}")
    if value.dim() != 4:
        raise ValueError(f"{op}: expected {name} as [B, C, H, W], got {describe(value)}")
    if value.layout is not torch.strided or value.is_nested:
        raise _not_dense(op, name, value)
    if value.shape[2] == 0 or value.shape[3] == 0:
        raise ValueError(f"{op}: expected {name} with H and W of at least 1, got {describe(value)}")
    if like is not None:
        if value.shape != like.shape:
            raise ValueError(f"{op}: expected {name} of shape {list(like.shape)}, got {describe(value)}")
        if value.device != like.device:
            raise ValueError(f"{op}: expected {name} on {like.device}, got {describe(value)}")


def _not_dense(op: str, name: str, value: Tensor) -> TypeError:
    return TypeError(f"{op}: expected {name} as a dense tensor, got {describe(value)}")


def one_or(size: int, got: int) -> bool:
    """Whether a size is 1 or `size`. (By `==`: torch.compile takes an unknown size to be in no tuple.)"""
    return got == 1 or got == size


def readable(value: Tensor) -> bool:
    """Whether Python may look at the numbers in a tensor: it is on the CPU and nothing records the call.

    Not on a device, where it would wait; nor where there are no numbers to see: under torch.compile, export
    and jit.trace, in a fake tensor, or below a transform of torch.func.
    """
    return not torch.compiler.is_compiling() and value.is_cpu and not _recorded(value)


def seen(value: Tensor) -> Tensor | None:
    """The numbers in a tensor, where Python may look at them; below vmap, too, as all slices' numbers."""
    while not torch.compiler.is_compiling() and _functorch.is_functorch_wrapped_tensor(value):
        value = _functorch.get_unwrapped(value)
    return value if readable(value) else None


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
    """Refuses a tensor for which a derivative is asked, backward or forward, at any level of torch.func.

    torch.compile sees neither a tangent nor an outer level here: there the ops' own rules refuse both. Below
    autograd, where the eager backend asks again, they have done so.
    """
    if value.requires_grad:
        raise not_differentiable(op, name, "requires grad", what)
    if (
        not torch.compiler.is_compiling()
        and (forward_ad._current_level >= 0 or _functorch.is_functorch_wrapped_tensor(value))
        and not torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradOther)
    ):
        how = _derivative_below(value)
        if how:
            raise not_differentiable(op, name, how, what)


def not_differentiable(op: str, name: str, how: str, what: str) -> ValueError:
    """how: "requires grad" or "carries a tangent"; what: "coefficients" or "masks"."""
    return ValueError(
        f"{op}: {name} {how}, but the ops are not differentiable in their {what}; pass {name}.detach()"
    )


def _derivative_below(value: Tensor) -> str | None:
    """How a derivative for `value` is asked for, at this level of torch.func or one below it."""
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
        axes, dtype = value.dim(), value.dtype
        if axes > 1 or (axes == 1 and not one_or(batch, value.shape[0])):
            raise ValueError(
                f"{op}: expected {name} as a number or a tensor [{batch}], got {describe(value)}"
            )
        if not dtype.is_floating_point:
            raise TypeError(f"{op}: expected {name} as a floating-point tensor, got {describe(value)}")
        if value.layout is not torch.strided:
            raise _not_dense(op, name, value)
        if value.device != device:
            raise ValueError(f"{op}: expected {name} on {device}, got {describe(value)}")
        if dtype is not torch.float32 and dtype is not torch.float64:
            value = value.float()
        return value if axes == 1 else value.reshape(1)
    if isinstance(value, np.ndarray) and value.ndim == 0 and torch.compiler.is_compiling():
        # What a number of numpy is in a graph: torch sees no value, only a tensor.
        tensor = torch.as_tensor(value, device=device)
        no_number = tensor.dtype == torch.bool or tensor.is_complex()
        return coefficient(op, name, tensor if no_number else tensor.double(), batch, device)
    got = number(op, name, value, nonnegative=nonnegative, kind="a number or a tensor")
    where = device if torch.compiler.is_compiling() else "cpu"
    return torch.full((1,), got, dtype=torch.float64, device=where)


def indexed(device: torch.device) -> torch.device:
    """ "cuda" as the device that it means now, so that it equals the device of a tensor there."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def on(value: Tensor, device: torch.device) -> Tensor:
    """A coefficient on the device; a number in host memory is filled in there, not copied."""
    if value.device == device:
        return value
    return torch.full((1,), float(value[0]), dtype=value.dtype, device=device)


def number(
    op: str,
    name: str,
    value: object,
    *,
    nonnegative: bool = True,
    most: float = math.inf,
    kind: str = "a number",
) -> Any:
    """A number as a float (a symbolic one as it is): finite, not negative where that has no meaning, and at
    most `most`. kind: what could have been given, for the message."""
    got = plain(value)
    if got is None:
        raise TypeError(f"{op}: expected {name} as {kind}, got {describe(value)}")
    if isinstance(got, (int, float)) and not (
        -math.inf < got < math.inf and (got >= 0 or not nonnegative) and got <= most
    ):
        wanted = "a finite number" + _range(nonnegative, most)
        size = value if isinstance(value, int) and math.isinf(got) else got
        raise ValueError(f"{op}: expected {name} as {wanted}, got {shown(size)}")
    return got


def integer(op: str, name: str, value: object, *, least: int = 0) -> Any:
    """A whole number as an int (a symbolic one as it is), at least `least`."""
    got = whole(value)
    if got is None:
        raise TypeError(f"{op}: expected {name} as a whole number, got {describe(value)}")
    if got < least:
        raise ValueError(f"{op}: expected {name} as a whole number of at least {least}, got {shown(got)}")
    return got


def image_size(op: str, value: object) -> tuple[int, int]:
    """(H, W) as two ints of at least 1."""
    sides = listed(value, whole)
    if sides is None or len(sides) != 2:
        raise ValueError(f"{op}: expected image_size as (H, W), got {shown(value)}")
    height, width = sides
    if not (1 <= height < 2**31 and 1 <= width < 2**31):
        got = f"{shown(height)} x {shown(width)}"
        raise ValueError(f"{op}: expected image_size of at least 1 x 1 and sides under 2^31, got {got}")
    return height, width


def numbers(op: str, name: str, values: object, what: str = "tables") -> list[float]:
    """A list, an array or a tensor of one axis as finite floats. A tensor must not require grad."""
    if isinstance(values, Tensor):
        no_derivative(op, name, values, what)
    items = listed(values)
    if items is None:
        raise ValueError(f"{op}: expected {name} as a list of numbers, got {describe(values)}")
    for position, value in enumerate(items):
        if not math.isfinite(value):
            raise ValueError(f"{op}: expected {name} as finite numbers, got {value!r} at position {position}")
    return items


def equals(value: object, number: float) -> bool:
    """Whether an argument is a number, known now, of this value."""
    if isinstance(value, Tensor):
        return False
    got = plain(value)
    return isinstance(got, (int, float)) and got == number


def time(op: str, value: object, name: str = "t") -> Any:
    """A time: a number in [0, 1], or a floating-point tensor of such numbers, which must not require grad.

    Numbers inside a tensor are looked at where that is free (`readable`).
    """
    if not isinstance(value, Tensor):
        return number(op, name, value, most=1.0, kind="a number or a floating-point tensor")
    no_derivative(op, name, value, "times")
    if not value.dtype.is_floating_point:
        raise TypeError(
            f"{op}: expected {name} as a number or a floating-point tensor, got {describe(value)}"
        )
    if value.layout is not torch.strided:
        raise _not_dense(op, name, value)
    values(op, name, value, most=1.0)
    return value


def _range(nonnegative: bool, most: float) -> str:
    return (" of at least 0" if nonnegative else "") + (f" and at most {most:g}" if most < math.inf else "")


def values(op: str, name: str, value: Tensor, *, nonnegative: bool = True, most: float = math.inf) -> None:
    """Checks the numbers inside a coefficient tensor where they can be seen."""
    visible = seen(value)
    if visible is None or visible.numel() == 0:
        return
    low, high = (end.item() for end in visible.aminmax())
    if -math.inf < low and high < math.inf and (low >= 0 or not nonnegative) and high <= most:
        return  # a NaN is neither
    flat = visible.reshape(-1)
    good = torch.isfinite(flat) & (flat <= most)
    if nonnegative:
        good = good & (flat >= 0)
    row = int((~good).nonzero()[0])
    wanted = "finite numbers" + _range(nonnegative, most)
    raise ValueError(f"{op}: expected {name} as {wanted}, got {flat[row].item()!r} for sample {row}")


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


def host_values(op: str, name: str, value: Tensor | None, *, signed: bool = False) -> None:
    """Checks a coefficient in host memory, for a GPU's kernel: finite and, unless signed, not negative.

    One on a device is not looked at, which would wait for the device.
    """
    if value is None or not value.is_cpu:
        return
    if value.numel() == 1:
        number(op, name, value.item(), nonnegative=not signed)
    else:
        values(op, name, value, nonnegative=not signed)


def host_order(op: str, low: str, s: Tensor, high: str, t: Tensor) -> None:
    """Checks s <= t per sample, where both are in host memory."""
    if s.numel() == t.numel() == 1 and s.is_cpu and t.is_cpu:
        ordered_numbers(op, low, s.item(), high, t.item())
    else:
        ordered(op, low, s, high, t)


def choice(op: str, name: str, value: str, allowed: Sequence[str]) -> None:
    """Checks that a word is one of those allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(
            f"{op}: expected {name} as one of {', '.join(map(repr, allowed))}, got {shown(value)}"
        )


def mask(op: str, name: str, value: Tensor, shape: torch.Size, device: torch.device) -> None:
    """Checks that a spectral mask broadcasts against [B, C, H, W]."""
    if not isinstance(value, Tensor) or value.dtype not in IMAGE_DTYPES:
        raise TypeError(f"{op}: expected {name} as a floating-point tensor, got {describe(value)}")
    if value.layout is not torch.strided or value.is_nested:
        raise _not_dense(op, name, value)
    no_derivative(op, name, value, "masks")
    if value.device != device:
        raise ValueError(f"{op}: expected {name} on {device}, got {describe(value)}")
    padded = (1,) * (4 - value.dim()) + tuple(value.shape)
    if len(padded) != 4 or not all(map(one_or, shape, padded)):
        raise ValueError(f"{op}: expected {name} to broadcast to {list(shape)}, got {describe(value)}")


def ordered_numbers(op: str, low: str, value_low: object, high: str, value_high: object) -> None:
    """Checks value_low <= value_high where both are plain numbers, and each is valid by itself."""
    if isinstance(value_low, Tensor) or isinstance(value_high, Tensor):
        return
    below, above = plain(value_low), plain(value_high)
    if isinstance(below, (int, float)) and isinstance(above, (int, float)) and math.inf > below > above >= 0:
        raise ValueError(
            f"{op}: expected {low} <= {high} (a step towards the clean image), got {below!r} > {above!r}"
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
