# SPDX-License-Identifier: Apache-2.0
"""Where the time goes: the parts of `corrupt` alone, and each op's share of the machine's limits."""

from __future__ import annotations

from typing import Any

import torch

import softdiff_kernels as sk

from . import cases
from .measure import interleaved
from .rows import Row

# Of one value of the result, in units of N multiply-adds by dense matrix products: two products for a blur or
# a transform, so 2 x 2 N operations; the loss needs two and its gradient two more; spectral_mix three
# transforms.
_DENSE = {"soft_score_loss": 8, "spectral_mix": 12, "normal": 0}
# Bytes that a float32 op has to read and write for one value: images in and out; spectral_mix also has three
# masks that three channels share.
_BYTES = {"momentum_step": 12, "reverse_step": 12, "soft_score_loss": 12, "spectral_mix": 16, "normal": 4}
NOISY = ("corrupt", "momentum_step", "reverse_step", "spectral_mix", "normal")


def dense_operations(op: str, px: int) -> int:
    """Floating-point operations for one value by dense matrix products, at `px` a side."""
    return _DENSE.get(op, 4) * px


def bytes_of(op: str) -> int:
    """Bytes that the op has to read and write for one float32 value."""
    return _BYTES.get(op, 8)


def parts(size: int, *, budget: float = 0.3) -> dict[str, float]:
    """ns per value of `corrupt`, of its parts on the same batch, and of a copy of it, timed in turn."""
    case = cases.make("corrupt", size, size, cases.batch_of(size))
    x, std, sigma = case.arguments.values()
    out = torch.empty_like(x)
    key = sk.NoiseKey(cases.SEED)
    timings = interleaved(
        {
            "corrupt": lambda: sk.corrupt(x, std, sigma),
            "transform alone": lambda: sk.corrupt(x, std, 0.0),
            "noise alone": lambda: sk.normal(x.shape, key),
            "copy, new memory": lambda: x.clone(),
            "copy, old memory": lambda: out.copy_(x),
            "torch.randn": lambda: torch.randn_like(x),
        },
        budget=budget,
    )
    return {name: timing.median * 1e9 / case.values for name, timing in timings.items()}


def shares(row: Row, limits: dict[str, float], normal_ns: float) -> dict[str, Any]:
    """An op's speed as parts of the machine's limits at the row's thread count.

    dense_gflop_s: operations of the dense matrix form per second; above the GEMM's peak where the kernel does
    fewer.
    """
    dense = dense_operations(row.op, row.px) / row.ours
    bandwidth = bytes_of(row.op) / row.ours
    return {
        "op": row.op,
        "px": row.px,
        "threads": row.threads,
        "dense_gflop_s": dense,
        "of_gemm_peak": dense / limits["gemm_gflop_s"],
        "gb_s": bandwidth,
        "of_copy": bandwidth / limits["copy_gb_s"],
        "of_time_noise": normal_ns / row.ours if row.op in NOISY else None,
    }
