# SPDX-License-Identifier: Apache-2.0
"""What a result was measured on, and how fast that machine copies, multiplies and draws noise."""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import softdiff_kernels as sk

from . import clock

_ROOT = Path(__file__).resolve().parents[2]
# What takes part in the timings; where one is absent, so are its rows.
_PACKAGES = (
    *("torch", "triton", "numpy", "scipy", "diffusers"),
    *("torch-dct", "dctorch", "kornia", "torchvision", "deepinv"),
)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*words: str) -> str | None:
    """What git says of a clone that this package is run from; None where it is installed."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _native() -> dict[str, Any]:
    if not sk.backends()["native"].usable:
        return {"instruction_set": None, "threads_from": None}
    module = importlib.import_module("softdiff_kernels._native")
    return {"instruction_set": module.instruction_set(), "threads_from": module.thread_source()}


def _gpu(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_gib": round(found.total_memory / 2**30, 1),
        "multiprocessors": found.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def description(device: torch.device | str = "cpu") -> dict[str, Any]:
    """CPU, GPU if the device is one, instruction set in use, versions, commit and date."""
    # A change to these folders changes what is measured; one elsewhere does not.
    changed = _git("status", "--porcelain", "--", "softdiff_kernels", "csrc", "setup.py")
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu(torch.device(device)),
        **_native(),
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "torch_blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "python": platform.python_version(),
        "softdiff_kernels": sk.__version__,
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "commit": _git("rev-parse", "HEAD"),
        "changed_since_commit": bool(changed),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _best(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    """The shortest of the calls that begin within `seconds` of the first one's end; of two, if none does."""
    call()
    clock.synchronize(device)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        clock.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def limits(seconds: float = 0.3, device: torch.device | str = "cpu") -> dict[str, float]:
    """The best of some runs at the current thread count: what no kernel of this kind could be expected to
    pass.

    copy_gb_s: a copy between two buffers of 128 MiB (1 GiB on a GPU), bytes read plus bytes written.
    gemm_gflop_s: the fastest float32 torch.mm of order 512, 1024 or 2048 (on a GPU also 4096), no TF32.
    normal_ns, randn_ns: one standard normal, by this library and by torch.randn.
    """
    device = torch.device(device)
    gpu = device.type == "cuda"
    source = torch.zeros(2**28 if gpu else 2**25, device=device)
    target = torch.ones_like(source)
    copy = 2 * source.nbytes / _best(lambda: target.copy_(source), seconds, device)
    rates = []
    for n in (512, 1024, 2048, *((4096,) if gpu else ())):
        a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
        out = torch.empty_like(a)
        rates.append(2 * n**3 / _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), seconds, device))  # type: ignore[misc]
    count = 2**26 if gpu else 2**20
    shape, key = (count // 4096, 1, 64, 64), sk.NoiseKey(0)
    own = _best(lambda: sk.normal(shape, key, device=device), seconds, device)
    torchs = _best(lambda: torch.randn(shape, device=device), seconds, device)
    return {
        "copy_gb_s": copy / 1e9,
        "gemm_gflop_s": max(rates) / 1e9,
        "normal_ns": own * 1e9 / count,
        "randn_ns": torchs * 1e9 / count,
    }
