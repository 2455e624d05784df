# SPDX-License-Identifier: Apache-2.0
"""From an op's arguments to an enqueued kernel: compiled once for a signature, then found by its key.

Triton's own launch path binds, types and specialises every argument at every call. Here the caller knows the
types, so that a signature is looked up by one tuple, and what runs is exactly what was compiled ahead of time
by `aot.py`: no value of an integer is ever compiled in. The compiled kernel takes addresses, not tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource

INTERPRETED = bool(triton.knobs.runtime.interpret)
# The fast variants are PTX and libdevice, which neither the interpreter nor an AMD GPU has.
FAST = not INTERPRETED and torch.version.hip is None

_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int64: "*i64",
}
_HINT = [["tt.divisibility", 16]]

Argument = Tensor | int | float | None
_kernels: dict[Any, Any] = {}


def signature_of(arguments: Sequence[Argument]) -> tuple[str, ...]:
    """Triton's type of each argument, "!" after a pointer that 16 divides; "none" for one that is absent."""
    kinds = []
    for a in arguments:
        if isinstance(a, Tensor):
            kind = _TYPES[a.dtype]
            kinds.append(kind + "!" if a.data_ptr() % 16 == 0 else kind)
        else:
            kinds.append("none" if a is None else "i64" if isinstance(a, int) else "fp32")
    return tuple(kinds)


def source(kernel: Any, kinds: Sequence[str], constants: Sequence[Any]) -> ASTSource:
    """What Triton compiles for a kernel, its arguments' types and the constants that follow them."""
    names = kernel.arg_names
    signature = {}
    constexprs = dict(zip(names[len(kinds) :], constants, strict=True))
    attributes = {}
    for i, (name, kind) in enumerate(zip(names, kinds, strict=False)):
        if kind == "none":
            constexprs[name] = None
        elif kind.endswith("!"):
            attributes[(i,)] = _HINT
        signature[name] = "constexpr" if kind == "none" else kind.rstrip("!")
    signature.update(dict.fromkeys(names[len(kinds) :], "constexpr"))
    return ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)


def options(warps: int, stages: int) -> dict[str, Any]:
    """Triton's options: contraction to fused multiply-adds is part of the kernels' arithmetic."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def launch(
    kernel: Any,
    device: torch.device,
    grid: tuple[int, int],
    arguments: Sequence[Argument],
    constants: tuple[Any, ...],
    warps: int,
    stages: int = 2,
) -> None:
    """Enqueues `kernel` over `grid` on the device's current stream."""
    if INTERPRETED:
        kernel[(*grid, 1)](*arguments, *constants)
        return
    kinds = signature_of(arguments)
    key = (kernel, kinds, constants, warps, stages, device.index)
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            _enqueue(key, grid, arguments)
    else:
        _enqueue(key, grid, arguments)


def _enqueue(key: Any, grid: tuple[int, int], arguments: Sequence[Argument]) -> None:
    compiled = _kernels.get(key)
    if compiled is None:
        kernel, kinds, constants, warps, stages, _ = key
        compiled = triton.compile(source(kernel, kinds, constants), options=options(warps, stages))
        _kernels[key] = compiled
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    compiled[(*grid, 1)](*values, *key[2])
