# SPDX-License-Identifier: Apache-2.0
"""The machine and the versions that a report was made with."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .parts import write

ROOT = Path(__file__).resolve().parents[2]
_SMI = (
    "name,driver_version,power.limit,clocks.max.sm,clocks.max.mem,clocks.sm,clocks.mem,temperature.gpu,"
    "mig.mode.current"
)


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> str:
    """The commit of the sources, "with changes" where files differ from it, or "unknown"."""
    if not (ROOT / ".git").exists():
        return "unknown"
    name = _output(["git", "rev-parse", "HEAD"])
    if name is None:
        return "unknown"
    return name + (" with changes" if _output(["git", "status", "--porcelain"]) else "")


def smi() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; empty where there is none."""
    line = _output(["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader"])
    if not line:
        return {}
    return dict(zip(_SMI.split(","), (v.strip() for v in line.splitlines()[0].split(",")), strict=False))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def gpu() -> tuple[dict[str, Any], str]:
    """(the GPU as torch sees it, the reason why there is none)."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {}, f"torch does not import: {error}"
    if not torch.cuda.is_available():
        return {}, "torch finds no GPU"
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": "{}.{}".format(*torch.cuda.get_device_capability(0)),
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", 0),
        "memory_bytes": properties.total_memory,
        "count": torch.cuda.device_count(),
        "cuda": torch.version.cuda or f"HIP {torch.version.hip}",
    }, ""


def describe() -> dict[str, Any]:
    """Everything, in the order of the report."""
    found, reason = gpu()
    try:
        import softdiff_kernels as sk

        backends = {name: backend.reason for name, backend in sk.backends().items()}
        own = sk.__version__
    except ImportError as error:
        backends, own = {}, f"does not import: {error}"
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "gpu": found,
        "reason": reason,
        "smi": smi(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        **{name: _version(name) for name in ("torch", "triton", "numpy", "scipy", "pytest")},
        "softdiff_kernels": own,
        "backends": backends,
        "commit": commit(),
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    found = describe()
    write(args.out, found)
    for name, value in found.items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
