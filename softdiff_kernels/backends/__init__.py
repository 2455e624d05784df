# SPDX-License-Identifier: Apache-2.0
"""Which implementation takes a call: by the user's choice, then by device, speed (measured or predicted) and
dtype.

`protocol.py` says what a backend is. No compiled module and no Triton is imported before it is asked for, and
what cannot be imported gives a reason in words, never an error at import. A backend that is asked for by name
and does not work here is refused at once; a single call that it does not cover (float64 images, another
device) takes the reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch

from .._arguments import IMAGE_DTYPES, shown
from . import _measured, cuda, native, protocol, reference, triton
from .protocol import warn_once

_BACKENDS: dict[str, protocol.Backend] = {
    "reference": reference,
    "native": native.BACKEND,
    "triton": triton,
    "cuda": cuda.BACKEND,
}
NAMES = tuple(_BACKENDS)

# What `auto` takes first on each kind of device. On the CPU the fused kernels beat the reference at every
# size tried from 8 to 1024 px: blur, float32, one thread of an AMD EPYC with AVX-512, by 2.9 (509 px, a
# prime, where the transform is dense) to 100 times (1024 px). On a GPU the order is this for ops that neither
# faster.json nor predicted.json names (_measured.py).
_PREFERENCE = {"cpu": ("native",), "cuda": ("triton", "cuda")}


@dataclass(frozen=True)
class Backend:
    """Whether a backend works on this machine.

    Attributes:
        name: "reference", "native", "triton" or "cuda".
        usable: Whether it works.
        reason: Why it works or does not, in words.
    """

    name: str
    usable: bool
    reason: str


def backends() -> dict[str, Backend]:
    """Which backends are usable on this machine and, for each that is not, the reason.

    Examples:
        >>> sorted(sk.backends())
        ['cuda', 'native', 'reference', 'triton']
        >>> sk.backends()["reference"]
        Backend(name='reference', usable=True, reason='plain PyTorch, any device')
    """
    found = {name: Backend(name, *_probe(name)) for name in NAMES}
    if all(found[name].usable for name in _PREFERENCE["cuda"]):
        for i, name in enumerate(_PREFERENCE["cuda"]):
            reasons = filter(None, (found[name].reason, _measured.reason(name, others=i == 0)))
            found[name] = replace(found[name], reason="; ".join(reasons))
    return found


def _probe(name: str) -> tuple[bool, str]:
    try:
        return _BACKENDS[name].status()
    except ValueError as error:  # an environment variable that the user has to put right
        return False, str(error)


class _Block:
    """One `with use_backend(...)` block; two blocks of the same name are told apart."""

    def __init__(self, name: str) -> None:
        self.name = name


# The blocks that enclose this context, the innermost last.
_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("softdiff_kernels.backend", default=())


def chosen() -> str:
    """The backend asked for by `use_backend` in this context, else by SOFTDIFF_BACKEND, else "auto"."""
    blocks = _blocks.get()
    if blocks:
        return blocks[-1].name
    value = os.environb.get(b"SOFTDIFF_BACKEND")  # in 3/4 of the time of os.environ, which encodes the name
    if not value or value == b"auto":
        return "auto"
    name = os.fsdecode(value)
    _check(name, "SOFTDIFF_BACKEND")
    return name


def _check(name: str, where: str) -> None:
    if not isinstance(name, str) or name not in ("auto", *NAMES):
        raise ValueError(f"{where}: expected one of {', '.join(NAMES)} or auto, got {shown(name)}")
    usable, reason = (True, "") if name == "auto" else _probe(name)
    if not usable:
        raise RuntimeError(f"{where}: backend {name!r} does not work here: {reason}")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Uses the named backend for all ops that run inside the `with` block, in its context.

    The choice counts when an op runs, not when a graph of it is made: a compiled function takes the backend
    of the block in which it is called (enter the block outside of it), and a backward pass that of the block
    in which `backward` is called, not that of the forward pass. The choice is a context variable
    (contextvars):

    - an asyncio task and `asyncio.to_thread` inherit the choice from the place where they are started;
    - a `threading.Thread` and the threads of a ThreadPoolExecutor start without one (Python 3.14 has an
      option to inherit it), and so do autograd's threads, which run the backward pass of tensors on a GPU;
      on the CPU, backward runs in the thread that calls it;
    - a DataLoader's worker inherits the choice if it is forked, and has none if it is spawned.

    The environment variable SOFTDIFF_BACKEND holds for all threads and processes outside of any block.

    Args:
        name: "reference", "native", "triton", "cuda" or "auto".

    Raises:
        ValueError: If the name is unknown.
        RuntimeError: If the backend does not work on this machine; the message has the reason.

    Examples:
        >>> x = sk.normal([1, 3, 16, 16], sk.NoiseKey(0))
        >>> with sk.use_backend("reference"):
        ...     expected = sk.blur(x, 2.0)
        >>> torch.allclose(sk.blur(x, 2.0), expected, atol=1e-5)
        True
    """
    _check(name, "use_backend")
    mine = _Block(name)
    _blocks.set((*_blocks.get(), mine))
    try:
        yield
    finally:
        # Not by a token: blocks of two generators in one context may end in any order.
        _blocks.set(tuple(block for block in _blocks.get() if block is not mine))


def _implementation(
    op: str, device: torch.device, shape: Sequence[int], dtype: torch.dtype, arguments: tuple[Any, ...]
) -> protocol.Backend:
    """The backend that takes a call: the first of its candidates that covers it and works here."""
    candidates: tuple[str, ...] = (chosen(),)
    if candidates[0] == "auto":
        candidates = _PREFERENCE.get(device.type, ())
        first = _measured.fastest(op, shape, dtype) if len(candidates) > 1 else None
        if first is not None:
            candidates = (first, *(name for name in candidates if name != first))
    for candidate in candidates:
        backend = _BACKENDS[candidate]
        if backend.covers(op, device, arguments):
            usable, reason = backend.status()
            if usable:
                return backend
            if candidate == "native":
                warn_once(
                    f"the CPU's kernels are missing, plain PyTorch runs instead, many times slower: {reason} "
                    "(SOFTDIFF_BACKEND=reference asks for that without this warning)"
                )
    return reference


_IMAGES = frozenset(IMAGE_DTYPES)
_SINGLE, _DOUBLE = torch.float32, torch.float64


def _check_arguments(op: str, x: Any, shape: Sequence[int], arguments: Sequence[Any]) -> bool:
    """Checks images of one shape, coefficients [1] or [B], and keys, since the kernels read them by address.

    x: one of the images, if there is any; shape: its shape. Returns whether an image is float64. The public
    functions check this and more; a graph made by jit.trace and a direct call of torch.ops do not.
    """
    wide = False
    batch = shape[0] if len(shape) else 1
    for a in arguments:
        if a is None:
            continue
        if isinstance(a, torch.Tensor):
            axes, dtype = a.dim(), a.dtype
            if axes == 1:
                good = (dtype is _SINGLE or dtype is _DOUBLE) and ((n := a.numel()) == batch or n == 1)
            elif axes == 4:
                good = (
                    dtype is _SINGLE
                    or dtype in _IMAGES
                    or (op == "corrupt" and a is x and dtype is torch.uint8)
                )
                good = good and (shape[2] * shape[3] > 0 if a is x else a.shape == shape)
                wide = wide or dtype is _DOUBLE
            else:
                good = axes == 2 and a.size(0) in (1, batch) and a.size(1) == 3 and dtype is torch.int64
        elif type(a) is float:  # floor, or an image's share of the loss
            good = 0.0 <= a <= 1.0
        else:
            good = type(a) not in (list, tuple) or len(a) in (0, 3)
        if not good:
            raise ValueError(
                f"softdiff::{op}: expected images of one shape [B, C, H, W], 1 or {batch} of a float32 or "
                f"float64 coefficient, a key's three int64 numbers and floor in [0, 1]; got {shown(a)}"
            )
    return wide


def _check_rule(op: str, rule: str) -> None:
    """Checks that `step` knows the rule."""
    if rule not in ("given", "large", "small"):
        raise ValueError(f"softdiff::{op}: expected rule as 'given', 'large' or 'small', got {shown(rule)}")


def _without_masks(op: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """An op's arguments without its masks, which are not checked here; lists of images spread out."""
    if op == "spectral_loss":
        return (*arguments[:2], *arguments[3:])
    inputs, _, noise_mask, key, rows, noise, *out = arguments
    if noise is not None and noise_mask is None:
        raise ValueError(f"softdiff::{op}: expected noise_mask with noise, got None")
    return (*inputs, key, rows, noise, *out)


def dispatcher(op: str) -> Callable[..., Any]:
    """The function that `_ops.py` registers for an op."""
    steps, mixes = op in ("step", "step_out"), op in ("spectral_mix", "spectral_mix_out")
    masked = mixes or op == "spectral_loss"

    def call(*args: Any) -> Any:
        if op == "normal":
            shape, key, rows, dtype, device = args
            _check_arguments(op, None, shape, (key if key or rows is not None else (None,), rows))
            wide = dtype is torch.float64
        else:
            x = args[0][0] if mixes else args[1] if args[0] is None else args[0]
            shape, dtype, device = x.shape, x.dtype, x.device
            wide = _check_arguments(op, x, shape, _without_masks(op, args) if masked else args)
            if steps:
                _check_rule(op, args[6])
        # float64 images take the reference, whatever was asked for.
        backend = reference if wide else _implementation(op, device, shape, dtype, args)
        return getattr(backend, op)(*args)

    call.__name__ = op
    return call
