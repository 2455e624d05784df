# SPDX-License-Identifier: Apache-2.0
"""What a result was measured on, and how fast that machine copies and multiplies."""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch

import softdiff_kernels as sk

_ROOT = Path(__file__).resolve().parents[1]


def native() -> Any:
    """The compiled module. Raises RuntimeError, with the reason, where there is none to measure."""
    entry = sk.backends()["native"]
    if not entry.usable:
        raise RuntimeError(f"nothing to measure: {entry.reason}")
    return importlib.import_module("softdiff_kernels._native")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def description() -> dict[str, Any]:
    """Machine, instruction set in use, versions, commit and date."""
    # A change to these folders changes what is measured; one elsewhere does not.
    changed = _git("status", "--porcelain", "--", "softdiff_kernels", "csrc", "benchmarks/*.py", "setup.py")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "instruction_set": native().instruction_set(),
        "threads_from": native().thread_source(),
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "torch_blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "softdiff_kernels": sk.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "changed_since_commit": bool(changed),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _best(call: Any, seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def limits(seconds: float = 0.3) -> dict[str, float]:
    """The best of some runs at the current thread count: what no kernel of this kind could be expected to
    pass.

    copy_gb_s: a copy between two buffers of 128 MiB, bytes read plus bytes written.
    gemm_gflop_s: the fastest float32 torch.mm of order 512, 1024 or 2048.
    """
    source = torch.zeros(2**25)
    target = torch.ones_like(source)
    copy = 2 * source.nbytes / _best(lambda: target.copy_(source), seconds)
    rates = []
    for n in (512, 1024, 2048):
        a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
        rates.append(2 * n**3 / _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), seconds))
    return {"copy_gb_s": copy / 1e9, "gemm_gflop_s": max(rates) / 1e9}
