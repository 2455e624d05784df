# SPDX-License-Identifier: Apache-2.0
"""Where the GPU tests run, on which backends, and how they count, capture and watch what runs there.

Every test file with `pytestmark = marks` runs once for each fused GPU backend;
SOFTDIFF_GPU_TESTS_BACKENDS="cuda" leaves the others out. SOFTDIFF_GPU_TESTS_ON=cpu is a dry run on CPU
tensors at tiny sizes: by Triton's interpreter (TRITON_INTERPRET=1), by the CUDA kernels compiled for the CPU
(SOFTDIFF_CUDA_SHIM=1), or both. Graphs, streams and clocks are stand-ins then, and only the tests themselves
are tested.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import pytest
import torch
from checks import EMULATED, assert_results, picture, twins
from torch import Tensor

import softdiff_kernels as sk
from softdiff_kernels import caches
from softdiff_kernels.backends import chosen, cuda, triton

DRY = os.environ.get("SOFTDIFF_GPU_TESTS_ON") == "cpu"
DEVICE = torch.device("cpu") if DRY else torch.device("cuda", 0)
BACKENDS = ("triton", "cuda")
_ASKED = os.environ.get("SOFTDIFF_GPU_TESTS_BACKENDS", "").split() or BACKENDS
LARGEST = {"triton": triton.LARGEST_SIDE, "cuda": cuda.LARGEST_SIDE}


def _why_not(backend: str) -> str:
    """What keeps a backend from running these tests here; empty if nothing does."""
    usable, reason = {"triton": triton, "cuda": cuda}[backend].status()
    on_cpu = {"triton": triton.interpreted(), "cuda": EMULATED}[backend]
    switch = {"triton": "TRITON_INTERPRET", "cuda": "SOFTDIFF_CUDA_SHIM"}[backend]
    if backend not in _ASKED:
        return f"{backend} is not among SOFTDIFF_GPU_TESTS_BACKENDS"
    if DRY and not on_cpu:
        return f"a dry run of {backend} needs {switch}=1"
    if not DRY and on_cpu:
        return f"{switch}=1 runs {backend} on the CPU: SOFTDIFF_GPU_TESTS_ON=cpu asks for that"
    if not DRY and not torch.cuda.is_available():
        return "torch finds no GPU"
    return "" if usable else f"{backend}: {reason}"


WHY_NOT = {backend: _why_not(backend) for backend in BACKENDS}
READY = [backend for backend in BACKENDS if not WHY_NOT[backend]]


def _unless_ready(*backends: str) -> Any:
    reasons = [WHY_NOT[backend] for backend in backends if WHY_NOT[backend]]
    return pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))


def marks_of(*backends: str) -> list[Any]:
    """For files whose tests take no `backend`: they need all of these."""
    return [pytest.mark.gpu, _unless_ready(*backends)]


marks = [
    pytest.mark.gpu,
    pytest.mark.parametrize("backend", [pytest.param(b, marks=[_unless_ready(b)]) for b in BACKENDS]),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KERNELS = {
    "triton": (
        "corrupt_kernel",
        "step_kernel",
        "soft_score_loss_kernel",
        "spectral_mix_kernel",
        "dct2_kernel",
        "normal_kernel",
    ),
    "cuda": ("softdiff",),  # the namespace
}
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


def check(backend: str, op: str, *args: Any, **kwargs: Any) -> Any:
    """Calls the public op by a backend's kernels, holds it against the twins in float64 and float32."""
    with sk.use_backend(backend):
        got = getattr(sk, op)(*args, **kwargs)
        for result in got if isinstance(got, tuple) else (got,):
            assert result.device.type == DEVICE.type
        assert_results(got, *twins(op, *args, **kwargs))
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


def _recorded(function: Callable[[], Any]) -> list[str]:
    """The launches of a dry run, by the backend that is chosen."""
    if chosen() == "triton":
        from softdiff_kernels.backends.triton import launch

        with launch.recording() as recorded:
            function()
        return [found.kernel.__name__ for found in recorded]
    from cuda_shim.hooks import Hooks

    hooks = Hooks(import_module("softdiff_kernels._cuda").__file__)
    hooks.forget_launches()
    function()
    return [found.kernel for found in hooks.launches()]


def kernels_of(function: Callable[[], Any]) -> list[str]:
    """The names of the kernels that a call enqueues, our own and others', once it is warm."""
    function()
    if DRY:
        return _recorded(function)
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


def launches_of(backend: str, op: str, shape: Sequence[int]) -> int:
    """The most launches of its own that a backend may take for `call` of an op; scratch is the caller's.

    CUDA: one for square planes of usual sizes up to 128 px and for any up to 24 px; a loss has a second, that
    adds its planes up. Beyond, each of a call's passes along rows or columns is one for
    each chunk of planes: by axis for what is separable, there and back around a mask that is not, and for
    spectral_mix two an input (of two here), the mix, and two back.
    """
    if backend == "triton":
        return 1
    sums = int(op == "soft_score_loss")
    engine, _, _, chunk, _, _ = (0, 0, 0, 1, 0, 0) if op == "normal" else _plan(op, shape)
    if engine != 2:
        return 1 + sums
    passes = {"reverse_step": 3, "momentum_step": 3, "soft_score_loss": 3, "spectral_mix": 7}.get(op, 2)
    return passes * -(-shape[0] * shape[1] // chunk) + sums


def _plan(op: str, shape: Sequence[int]) -> tuple[int, ...]:
    module = import_module("softdiff_kernels._cuda")
    inputs = 2 if op == "spectral_mix" else 1
    return module.plan(op, tuple(shape), inputs, DEVICE.index or 0)


def forget() -> None:
    """Drops the tables that first calls have left. Compiled kernels stay: to load one, the device waits."""
    for cache in caches._caches:
        if not cache.name.endswith("kernels"):
            cache.clear()
    held = sk.cache_info().held.items()
    assert not any(
        size for name, size in held if name.split()[0] in BACKENDS and not name.endswith("kernels")
    )


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
