# SPDX-License-Identifier: Apache-2.0
"""The machine that a result was measured on, and how fast it copies, multiplies and draws noise."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any

import torch

import softdiff_kernels as sk

from .. import _machine
from . import cases
from .timing import Call, Timing, clock_of, interleaved, sample, summary

# What takes part in the timings; where one is absent, so are its rows.
_PACKAGES = (
    *("torch", "triton", "numpy", "scipy", "diffusers"),
    *("cupy-cuda12x", "cupy-cuda13x"),
)
# A change to these changes what is measured; one elsewhere does not.
_MEASURED = ("softdiff_kernels", "csrc", "setup.py")


def description(device: torch.device | str = "cpu") -> dict[str, Any]:
    """CPU, GPU if the device is one, instruction set in use, versions, commit and date."""
    device = torch.device(device)
    commit, changed = _machine.commit(*_MEASURED)
    return {
        "cpu": _machine.cpu_model(),
        "cores": _machine.cores(),
        "system": _machine.system(),
        "gpu": _machine.gpus()[device.index or 0] if device.type == "cuda" else None,
        **_machine.instruction_set(),
        "torch_cpu": _machine.vector_units(),
        "torch_blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "python": platform.python_version(),
        "softdiff_kernels": sk.__version__,
        "versions": _machine.package_versions(_PACKAGES),
        "commit": commit,
        "changed_since_commit": changed,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def limits(seconds: float = 0.3, device: torch.device | str = "cpu") -> dict[str, float]:
    """The best of several runs at the current thread count: what no kernel of this kind can be expected to
    exceed. Each takes `seconds`, but two runs at least.

    copy_gb_s: a copy between two buffers of 128 MiB (1 GiB on a GPU), bytes read plus bytes written.
    gemm_gflop_s: the fastest float32 torch.mm of order 512, 1024 or 2048 (on a GPU also 4096), no TF32.
    normal_ns, randn_ns: one standard normal, by this library and by torch.randn.
    """
    device = torch.device(device)
    gpu = device.type == "cuda"
    source = torch.zeros(2**28 if gpu else 2**25, device=device)
    target = torch.ones_like(source)
    count = 2**26 if gpu else 2**20
    shape, key = (count // 4096, 1, 64, 64), sk.NoiseKey(0)
    calls: dict[str, Call] = {
        "copy": lambda: target.copy_(source),
        "normal": lambda: sk.normal(shape, key, device=device),
        "randn": lambda: torch.randn(shape, device=device),
    }
    orders = (512, 1024, 2048, *((4096,) if gpu else ()))
    for n in orders:
        factors = torch.randn(3, n, n, device=device)
        calls[f"{n}"] = lambda f=factors: torch.mm(f[0], f[1], out=f[2])  # type: ignore[misc]
    seen = sample(calls, clock_of(device), budget=seconds, least=2, most=10**6, warmup=0.0)
    best = {name: min(samples) for name, samples in seen.items()}
    return {
        "copy_gb_s": 2 * source.nbytes / best["copy"] / 1e9,
        "gemm_gflop_s": max(2 * n**3 / best[f"{n}"] for n in orders) / 1e9,
        "normal_ns": best["normal"] * 1e9 / count,
        "randn_ns": best["randn"] * 1e9 / count,
    }


def copy_bandwidth(device: torch.device, size: int, *, rounds: int = 20) -> Timing:
    """Bytes per second, read and written, of torch's copy of `size` bytes: the yardstick of a GPU's ops."""
    source = torch.empty(size // 4, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    calls: dict[str, Call] = {"copy": lambda: target.copy_(source)}
    seconds = sample(calls, clock_of(device), least=rounds, most=rounds)["copy"]
    return summary([2 * source.nbytes / s for s in seconds])


def parts_of_corrupt(size: int, *, budget: float = 0.3) -> dict[str, float]:
    """ns per value on a CPU: `corrupt`, its parts on the same batch and a copy of that, interleaved."""
    case = cases.make("corrupt", size, size, cases.batch_of(size))
    x, std, sigma = case.arguments.values()
    out = torch.empty_like(x)
    key = sk.NoiseKey(cases.SEED)
    calls: dict[str, Call] = {
        "corrupt": lambda: sk.corrupt(x, std, sigma),
        "transform alone": lambda: sk.corrupt(x, std, 0.0),
        "noise alone": lambda: sk.normal(x.shape, key),
        "copy, new memory": lambda: x.clone(),
        "copy, old memory": lambda: out.copy_(x),
        "torch.randn": lambda: torch.randn_like(x),
    }
    timings = interleaved(calls, clock_of(x.device), budget=budget)
    return {name: timing.median * 1e9 / case.values for name, timing in timings.items()}
