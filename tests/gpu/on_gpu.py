# SPDX-License-Identifier: Apache-2.0
"""Where the GPU tests run, and how they count, capture and watch what runs there.

SOFTDIFF_GPU_TESTS_ON=cpu is a dry run on CPU tensors at tiny sizes, by Triton's interpreter
(TRITON_INTERPRET=1): graphs, streams and clocks are stand-ins then, and only the tests themselves are tested.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from checks import assert_accurate as _assert_accurate
from checks import picture, twins
from torch import Tensor

import softdiff_kernels as sk
from softdiff_kernels.backends import triton

DRY = os.environ.get("SOFTDIFF_GPU_TESTS_ON") == "cpu"
DEVICE = torch.device("cpu") if DRY else torch.device("cuda", 0)
READY, WHY_NOT = triton.status()
READY = READY and (DRY or torch.cuda.is_available())
marks = [pytest.mark.gpu, pytest.mark.skipif(not READY, reason=WHY_NOT)]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KERNELS = ("corrupt_kernel", "step_kernel", "loss_kernel", "mix_kernel", "transform_kernel", "normal_kernel")
OPS = (
    "dct2",
    "idct2",
    "blur",
    "corrupt",
    "reverse_step",
    "momentum_step",
    "soft_score_loss",
    "spectral_mix",
    "normal",
)


def name_of(value: Any) -> str:
    """A parameter in a test's name."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(value).removeprefix("torch.")


def sizes(real: Sequence[Any], dry: Sequence[Any]) -> list[Any]:
    """The parameters for the GPU, or those small enough for a dry run."""
    return list(dry if DRY else real)


def image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """`checks.picture` on the device."""
    return picture(*shape, seed=seed, dtype=dtype).to(DEVICE)


def on(values: Sequence[float] | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Coefficients on the device."""
    return torch.as_tensor(values).to(device=DEVICE, dtype=dtype)


def spread(batch: int, low: float = 1e-2, high: float = 30.0) -> Tensor:
    """[batch] blurs on the device, evenly spaced in the logarithm."""
    return torch.logspace(-2, 1.477, max(batch, 1))[:batch].clamp(low, high).to(DEVICE)


def check(op: str, *args: Any, **kwargs: Any) -> Any:
    """Calls the public op by the Triton kernels, holds it against the twins in float64 and float32."""
    with sk.use_backend("triton"):
        got = getattr(sk, op)(*args, **kwargs)
        truth, eager = (r if isinstance(r, tuple) else (r,) for r in twins(op, *args, **kwargs))
        for result, exact, other in zip(got if isinstance(got, tuple) else (got,), truth, eager, strict=True):
            assert result.device.type == DEVICE.type
            _assert_accurate(result, exact, other)
    return got


def call(op: str, x: Tensor, y: Tensor, *, key: Any = None, std: Any = 1.5, level: Any = 0.1) -> Any:
    """An op on two images with every coefficient given, so that none draws a fresh key unless key is None."""
    if op in ("dct2", "idct2"):
        return getattr(sk, op)(x)
    if op == "blur":
        return sk.blur(x, std)
    if op == "corrupt":
        return sk.corrupt(x, std, level, key=key)
    if op == "reverse_step":
        return sk.reverse_step(x, y, blur_std_t=std, blur_std_s=0.5 * std, a=0.5, b=level, key=key)
    if op == "momentum_step":
        blurs = {"blur_std_t": std, "blur_std_s": 0.5 * std}
        return sk.momentum_step(x, y, **blurs, noise_std_t=level, noise_std_s=0.5 * level, key=key)
    if op == "soft_score_loss":
        return sk.soft_score_loss(x, y, std, reduction="none")
    if op == "spectral_mix":
        return sk.spectral_mix([x, y], [mask_of(x), mask_of(x)], noise_mask=mask_of(x), key=key)
    assert op == "normal"
    return sk.normal(x.shape, sk.NoiseKey(1) if key is None else key, device=x.device, dtype=x.dtype)


_masks: dict[Any, Tensor] = {}


def mask_of(x: Tensor) -> Tensor:
    """A spectral mask [H, W] for x that falls from 1 to 0, made once."""
    at = (tuple(x.shape[2:]), x.device)
    if at not in _masks:
        values = torch.linspace(1, 0, x.shape[2] * x.shape[3])
        _masks[at] = values.view(*x.shape[2:]).to(x.device)
    return _masks[at]


def captured(function: Callable[[], Any], warm: int = 2) -> tuple[Callable[[], None], Any]:
    """(replay, the result that each replay writes to) of `function` in a CUDA graph.

    Dry: replay calls the function again, and copies into the result.
    """
    if DRY:
        result = function()

        def again() -> None:
            result.copy_(function())

        return again, result
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph.replay, result


@contextmanager
def without_synchronising() -> Iterator[None]:
    """Anything inside that makes the host wait for the device raises."""
    if DRY:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def kernels_of(function: Callable[[], Any]) -> list[str]:
    """The names of the kernels that a call enqueues, our own and others', once it is warm."""
    function()
    if DRY:
        from softdiff_kernels.backends.triton import launch

        with launch.recording() as recorded:
            function()
        return [found.kernel.__name__ for found in recorded]
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    return [
        event.name
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Mem", "cuda"))
    ]


def stream() -> Any:
    """A `with` block in a stream of its own."""
    return nullcontext() if DRY else torch.cuda.stream(torch.cuda.Stream())


def synchronize() -> None:
    if not DRY:
        torch.cuda.synchronize()


def multiprocessors() -> int:
    """How many the GPU has: what a batch must fill."""
    return 2 if DRY else torch.cuda.get_device_properties(DEVICE).multi_processor_count


def needs_memory(gigabytes: float) -> None:
    """Skips a test for which the GPU has too little memory left."""
    if not DRY:
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] / 1e9
        if free < gigabytes:
            pytest.skip(f"needs {gigabytes:.0f} GB of GPU memory, {free:.0f} GB are free")
