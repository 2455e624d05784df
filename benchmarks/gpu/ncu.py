# SPDX-License-Identifier: Apache-2.0
"""What Nsight Compute says of the two ops that matter most, a line for each backend's kernel.

python -m benchmarks.gpu.ncu --out JSON [--seconds N]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import softdiff_kernels as sk

from .parts import execute, tail, write
from .tools import find, ncu_metrics

# (op, px, the kernel that takes it by each backend)
CASES = (
    ("corrupt", 64, {"triton": "corrupt_kernel", "cuda": "plane_kernel"}),
    ("momentum_step", 64, {"triton": "step_kernel", "cuda": "plane_kernel"}),
)
METRICS = {
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm %",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue slots %",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
    "launch__registers_per_thread": "registers",
}


def lines(metrics: dict[str, dict[str, float]], kernel: str) -> dict[str, float]:
    """The metrics of a kernel by their short names; a metric that this GPU lacks is left out."""
    own = next((values for name, values in metrics.items() if kernel in name), {})
    return {short: own[name] for name, short in METRICS.items() if name in own}


def profile(
    path: str, op: str, size: int, kernels: Mapping[str, str], seconds: float, scratch: Path
) -> dict[str, Any]:
    """Profiles one launch by each backend, after one that was not; they take turns in one process."""
    pattern, count = "|".join(kernels.values()), str(len(kernels))
    command = [path, "--csv", "--metrics", ",".join(METRICS), "--kernel-name", f"regex:{pattern}"]
    command += ["--launch-skip", count, "--launch-count", count, "--target-processes", "all"]
    program = [sys.executable, "-m", "benchmarks.gpu.few_calls", op, str(size), "--backend", *kernels]
    log = scratch / f"{op}.log"
    code, _ = execute([*command, *program], seconds=seconds, log=log)
    text = log.read_text(errors="replace")
    print(f"---- {op}\n{text}", flush=True)
    metrics = ncu_metrics(text)
    found = {backend: lines(metrics, kernel) for backend, kernel in kernels.items()}
    found = {backend: values for backend, values in found.items() if values}
    if found:
        missing = [backend for backend in kernels if backend not in found]
        said = {"said": f"no metric of {', '.join(missing)}"} if missing else {}
        return {"status": "failed" if missing else "ok", "metrics": found, **said}
    if "ERR_NVGPUCTRPERM" in text:
        return {"status": "absent", "said": "the driver lets only root read the counters"}
    if code is None:
        return {"status": "timeout", "said": f"killed after {seconds:.0f} s"}
    return {"status": "failed", "said": tail(text, 4)}


def said(result: Mapping[str, Any]) -> str:
    """A result in a line."""
    each = [
        f"{backend} " + ", ".join(f"{k} {v:.0f}" for k, v in values.items())
        for backend, values in result.get("metrics", {}).items()
    ]
    return "; ".join([*each, *([result["said"]] if "said" in result else [])])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=40.0)
    args = parser.parse_args(argv)
    path = find("ncu")
    if path is None:
        write(args.out, {"status": "absent", "detail": "ncu is not on this machine"})
        return 0
    usable = [name for name, found in sk.backends().items() if found.usable]
    deadline = time.monotonic() + args.seconds - 2.0
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (op, size, every) in enumerate(CASES):
            left = (deadline - time.monotonic()) / (len(CASES) - i)
            kernels = {backend: kernel for backend, kernel in every.items() if backend in usable}
            results[f"{op} {size} px"] = profile(path, op, size, kernels, left, Path(folder))
            statuses = [r["status"] for r in results.values()]
            status = next((s for s in ("failed", "timeout", "absent") if s in statuses), "ok")
            detail = "; ".join(f"{name}: {said(result)}" for name, result in results.items())
            write(args.out, {"status": status, "detail": detail, "kernels": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
