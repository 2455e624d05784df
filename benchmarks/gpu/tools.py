# SPDX-License-Identifier: Apache-2.0
"""What nvidia-smi and the benchmark engine say of the machine, and Nsight Compute of two ops' kernels."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import softdiff_kernels as sk
from softdiff_kernels import _machine
from softdiff_kernels.bench import cases, machine
from softdiff_kernels.files import save_json

from . import rows
from .parts import find, watch, worst

# (op, px, Triton's kernel of it); a CUDA kernel of any name is known by its namespace.
PROFILED = (("corrupt", 64, "corrupt_kernel"), ("momentum_step", 64, "step_kernel"))
_OF_CUDA = "softdiff"
METRICS = (
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)


def environment() -> dict[str, Any]:
    """The machine as the benchmark engine describes it, the backends, and the reason if there is no GPU."""
    gpu = torch.cuda.is_available()
    return {
        "reason": "" if gpu else "torch finds no GPU",
        "machine": machine.description("cuda" if gpu else "cpu"),
        "seed": cases.SEED,
        "smi": _machine.nvidia_smi(),
        "backends": {name: backend.reason for name, backend in sk.backends().items()},
    }


def calls(op: str, size: int, backends: Sequence[str], dry: bool) -> None:
    """The program that ncu watches: an op on float32 images that fill the GPU, three times by each backend in
    turn. dry: tiny, on the CPU."""
    device = torch.device("cpu") if dry else torch.device("cuda", torch.cuda.current_device())
    batch = rows.full_batch(size, torch.float32, 2**12 if dry else 2**28)
    case = rows.make(op, size, batch, torch.float32, device)
    for backend in 3 * tuple(backends):
        with sk.use_backend(backend):
            rows.ours(op, case)
    if device.type == "cuda":
        torch.cuda.synchronize()


def profile(
    path: str, op: str, size: int, kernels: Mapping[str, str], seconds: float, scratch: Path
) -> dict[str, Any]:
    """Profiles one launch of each of our kernels, after one that was not; the backends take turns in one
    process. What ncu says of them is kept as it prints it."""
    count = str(len(kernels))
    # ncu would lock the clocks, for the parts behind it too.
    tool = [path, "--clock-control", "none", "--target-processes", "all", "--metrics", ",".join(METRICS)]
    tool += ["--kernel-name-base", "demangled", "--kernel-name", f"regex:{'|'.join(kernels.values())}"]
    tool += ["--launch-skip", count, "--launch-count", count]
    program = [sys.executable, "-m", "benchmarks.gpu.report", "calls", "--op", op, "--size", str(size)]
    code, text, took = watch([*tool, *program, "--backend", *kernels], seconds, scratch)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("==PROF==")]
    if "ERR_NVGPUCTRPERM" in text:
        return {"status": "absent", "said": "the driver lets only root read the counters"}
    found = any(name in text for name in METRICS)
    status = "timeout" if code is None else "ok" if found and code == 0 else "failed"
    return {"status": status, "said": "\n".join(lines)[-4000:] or f"nothing in {took:.0f} s"}


def ncu(out: Path, seconds: float, scratch: Path) -> None:
    """What Nsight Compute says of the two ops that matter most."""
    path = find("ncu")
    if path is None:
        save_json(out, {"status": "absent", "detail": "ncu is not on this machine"})
        return
    usable = [name for name, backend in sk.backends().items() if backend.usable]
    deadline = time.monotonic() + seconds - 2.0
    results: dict[str, dict[str, Any]] = {}
    for i, (op, size, kernel) in enumerate(PROFILED):
        left = (deadline - time.monotonic()) / (len(PROFILED) - i)
        every = {"triton": kernel, "cuda": _OF_CUDA}
        kernels = {backend: name for backend, name in every.items() if backend in usable}
        results[f"{op} {size} px"] = profile(path, op, size, kernels, left, scratch)
        detail = "; ".join(f"{name}: {r['status']}" for name, r in results.items())
        save_json(out, {"status": worst(results), "detail": detail, "kernels": results})
