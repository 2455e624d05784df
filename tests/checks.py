# SPDX-License-Identifier: Apache-2.0
"""How the tests compare: one rule in words for each dtype, and the images and calls they share.

Truth is the eager twin in float64. The rules, image by image (along the first axis):

- float32: the relative L2 error is at most twice that of the eager twin in float32, plus 1e-6.
- float32, the residual x_0 - x_t by the Triton backend: likewise, but the 1e-6 is of x_t where that is
  larger. The residual has the error of x_t, which products on tensor cores take relative to x_t.
- bfloat16, float16: every element lies within 1.5 roundings of the truth, beside what the float32
  arithmetic before the rounding may be off: twice the largest error of the eager twin in float32, plus
  1e-6 of the image's root mean square.
- bfloat16 on the Triton backend: likewise, but a rounding is that of the image's root mean square where the
  element is smaller: its products keep float16's digits, which the rounding of most elements hides.
- float64: the relative L2 error is at most 1e-12; n = 257 terms of 1.1e-16 each, summed twice, are below.

`test_checks.py` shows that the rules fail where they should.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from chip_arithmetic import TENSOR_CORES, chip
from cuda_emulated import install
from torch import Tensor

import softdiff_kernels as sk
from softdiff_kernels.backends import chosen, native, triton

# The relative size of one rounding to nearest, and the absolute one below the smallest normal number.
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST_NORMAL = {torch.float16: 2.0**-14, torch.bfloat16: 2.0**-126}

SLACK = 1e-6  # what the accuracy contract adds to twice the eager twin's error

NATIVE, WHY_NOT = native.status()
_COMPILERS = (os.environ.get("CXX", "g++"), "g++", "clang++", "c++")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, _COMPILERS)), reason="inductor needs a C++ compiler, and none was found"
)
needs_native = pytest.mark.skipif(not NATIVE, reason=WHY_NOT)
# The Triton kernels run here where Triton interprets them (TRITON_INTERPRET=1), or on a GPU.
INTERPRETED = triton.interpreted() and triton.status()[0]
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="needs Triton and TRITON_INTERPRET=1")
# The CUDA kernels run here where the tests' stand-in was asked for (SOFTDIFF_CUDA_SHIM=1), or on a GPU.
EMULATED = install()
needs_emulation = pytest.mark.skipif(not EMULATED, reason="needs SOFTDIFF_CUDA_SHIM=1")
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
BACKENDS += ["triton"] * INTERPRETED + ["cuda"] * EMULATED
# The same, Triton's kernels under every model of a tensor core (`chip_arithmetic`), for `on`.
MODELLED = BACKENDS[:2] + [f"triton-{core}" for core in TENSOR_CORES] * INTERPRETED + ["cuda"] * EMULATED


@contextmanager
def on(name: str, errors: str = "down") -> Iterator[None]:
    """A backend of MODELLED: its name and, after a hyphen, the tensor core that interpreted kernels have.

    errors: the side to which a GPU's approximate functions err, where they are modelled.
    """
    backend, _, model = name.partition("-")
    shim = patch.dict(os.environ, SOFTDIFF_SHIM_ERRORS=errors)
    with sk.use_backend(backend), chip(model or "plain", errors), shim:
        yield


def _images(x: Tensor) -> Tensor:
    """One row an image, in float64."""
    return x.detach().double().reshape(x.shape[0], -1) if x.dim() else x.detach().double().reshape(1, 1)


def relative_l2(got: Tensor, truth: Tensor) -> Tensor:
    """Relative L2 error of each image; 0 where both are zero, infinite where only the truth is."""
    got, truth = _images(got), _images(truth)
    error, size = (got - truth).norm(dim=1), truth.norm(dim=1)
    return torch.where(error == 0, error, error / size)


def assert_accurate(
    got: Tensor, truth: Tensor, eager: Tensor | None = None, error_of: Tensor | None = None
) -> None:
    """Fails unless `got` keeps the rule of its dtype; `eager` is the float32 twin (absent: exact).

    error_of: the truth of the larger image whose error a float32 `got` has, if it has another's.
    """
    assert truth.dtype == torch.float64, f"the truth must be float64, not {truth.dtype}"
    assert got.shape == truth.shape, f"shape {list(got.shape)}, expected {list(truth.shape)}"
    if truth.numel() == 0:
        return
    if eager is None:
        eager = truth
    if got.dtype in ROUNDING:
        _assert_rounded(got, truth, eager)
        return
    bound = torch.tensor(1e-12)
    if got.dtype == torch.float32:
        size = _images(truth).norm(dim=1)
        larger = size if error_of is None else torch.maximum(_images(error_of).norm(dim=1), size)
        bound = 2 * relative_l2(eager, truth) + SLACK * torch.where(size > 0, larger / size, 1.0)
    error = relative_l2(got, truth)
    # Written so that NaN fails.
    assert bool((error <= bound).all()), (
        f"relative L2 error {error.tolist()}, at most {bound.tolist()} allowed"
    )


def _assert_rounded(got: Tensor, truth: Tensor, eager: Tensor) -> None:
    result, exact = _images(got), _images(truth)
    arithmetic = 2 * (_images(eager) - exact).abs().amax(dim=1, keepdim=True)
    arithmetic = arithmetic + SLACK * exact.square().mean(dim=1, keepdim=True).sqrt()
    size = exact.abs()
    if chosen() == "triton" and got.dtype == torch.bfloat16:
        size = torch.maximum(size, exact.square().mean(dim=1, keepdim=True).sqrt())
    rounding = 1.5 * ROUNDING[got.dtype] * size.clamp(min=SMALLEST_NORMAL[got.dtype])
    error = (result - exact).abs()
    worst = (error / (rounding + arithmetic)).amax()
    assert bool((error <= rounding + arithmetic).all()), (
        f"an element is {float(worst):.3g} times its bound off"
    )


def assert_mean_kept(y: Tensor, x: Tensor, bound: float = 1e-6) -> None:
    """Fails unless every plane of y has x's mean within `bound`, for images in [-1, 1]."""
    error = (y.double().mean(dim=(2, 3)) - x.double().mean(dim=(2, 3))).abs()
    assert bool((error <= bound).all()), (
        f"the mean moved by {float(error.max()):.3g}, at most {bound:.3g} allowed"
    )


def picture(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images [B, C, H, W] that look like images to the ops: an offset, a slope, detail, all in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, height, width = shape
    detail = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
    offset = 0.2 + 0.2 * torch.rand(batch, channels, 1, 1, generator=generator, dtype=torch.float64)
    rows = torch.linspace(-0.2, 0.2, height, dtype=torch.float64).view(-1, 1)
    columns = torch.linspace(0.1, -0.1, width, dtype=torch.float64)
    image = (offset + rows + columns + 0.5 * detail).clamp(-1, 1)
    return (image * 127.5 + 127.5).to(torch.uint8) if dtype == torch.uint8 else image.to(dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """An image as `dtype`, uint8 ones decoded in it; coefficients and all else as they are."""
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(v, dtype) for v in value)
    if not isinstance(value, Tensor) or value.dim() != 4:
        return value
    return value.to(dtype) / 127.5 - 1 if value.dtype == torch.uint8 else value.to(dtype)


def twins(op: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The float64 truth and the float32 eager result of an op on the same numbers."""
    fn = getattr(sk.reference, op)
    results = []
    for dtype in (torch.float64, torch.float32):
        with torch.no_grad():
            results.append(
                fn(*(_cast(a, dtype) for a in args), **{k: _cast(v, dtype) for k, v in kwargs.items()})
            )
    return results[0], results[1]


def check(op: str, *args: Any, **kwargs: Any) -> Any:
    """Calls the public op, holds its result against the twins, and returns it."""
    got = getattr(sk, op)(*args, **kwargs)
    assert_results(got, *twins(op, *args, **kwargs))
    return got


def assert_results(got: Any, truth: Any, eager: Any) -> None:
    """`assert_accurate` for all that one call of the chosen backend returns: a result, or (x_t, residual)."""
    results, truths, others = map(_listed, (got, truth, eager))
    assert len(results) == len(truths)
    for i, result in enumerate(results):
        of_x_t = truths[0] if i == 1 and chosen() == "triton" else None
        assert_accurate(result, truths[i], others[i], of_x_t)


def _listed(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def std_range(batch: int, low: float = 1e-2, high: float = 30.0) -> Tensor:
    """[batch] blurs, evenly spaced in the logarithm."""
    return torch.logspace(math.log10(low), math.log10(high), max(batch, 1), dtype=torch.float32)[:batch]


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that an op allocates and does not write reads as NaN (or as the largest integer)."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill
