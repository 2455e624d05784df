# SPDX-License-Identifier: Apache-2.0
"""Facts about this machine and what is installed on it, for `softdiff doctor` and the benchmarks' reports.

Needs the standard library; torch and this package's modules are imported by the functions that ask them.
"""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_SMI = (
    *("name", "driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem", "clocks.sm", "clocks.mem"),
    *("temperature.gpu", "mig.mode.current"),
)


def cpu_model() -> str:
    """The CPU's name, or at least its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def system() -> str:
    """Operating system and architecture."""
    return f"{platform.system()} {platform.machine()}"


def package_version(name: str) -> str | None:
    """The version of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    return {name: version for name in names if (version := package_version(name)) is not None}


def gpus() -> list[dict[str, Any]]:
    """Each CUDA device as torch sees it; none where torch cannot use any."""
    import torch

    if not torch.cuda.is_available():
        return []
    listed = []
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        listed.append(
            {
                "name": p.name,
                "capability": f"{p.major}.{p.minor}",
                "memory_bytes": p.total_memory,
                "memory_gib": round(p.total_memory / 2**30, 1),
                "multiprocessors": p.multi_processor_count,
                "l2_bytes": getattr(p, "L2_cache_size", 0),
                "cuda": torch.version.cuda or f"HIP {torch.version.hip}",
            }
        )
    return listed


def nvidia_smi() -> dict[str, str]:
    """What nvidia-smi reports of the first GPU: driver, power limit, clocks; empty where there is none."""
    line = _output(["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader"])
    return dict(zip(_SMI, (v.strip() for v in line.splitlines()[0].split(",")), strict=False)) if line else {}


def _output(command: list[str]) -> str | None:
    """What a command prints in the root of the sources; None where it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit(*folders: str) -> tuple[str | None, bool]:
    """The commit of the sources, and whether files in `folders` (default: any) differ from it.

    (None, False) where the package is not used from a clone.
    """
    if not (ROOT / ".git").exists():
        return None, False
    changes = _output(["git", "status", "--porcelain", "--", *folders])
    return _output(["git", "rev-parse", "HEAD"]), bool(changes)


def instruction_set() -> dict[str, str | None]:
    """Of the compiled CPU kernels: the instruction set in use, and whose OpenMP counts their threads."""
    import softdiff_kernels as sk

    if not sk.backends()["native"].usable:
        return {"instruction_set": None, "threads_from": None}
    module = importlib.import_module("softdiff_kernels._native")
    return {"instruction_set": module.instruction_set(), "threads_from": module.thread_source()}


def vector_units() -> str:
    """The instruction set that torch uses on the CPU."""
    import torch

    return str(torch.backends.cpu.get_cpu_capability())
