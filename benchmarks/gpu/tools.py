# SPDX-License-Identifier: Apache-2.0
"""What nvidia-smi and the benchmark engine say of the machine, and Nsight Compute of two ops' kernels."""

from __future__ import annotations

import csv
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
from .parts import find, tail, watch, worst

# (op, px, Triton's kernel of it); a CUDA kernel of any name is known by its namespace.
PROFILED = (("corrupt", 64, "corrupt_kernel"), ("momentum_step", 64, "step_kernel"))
_OF_CUDA = "softdiff"
METRICS = {
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm %",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue slots %",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy %",
    "launch__registers_per_thread": "registers",
}


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


def ncu_metrics(text: str) -> dict[str, dict[str, float]]:
    """kernel -> metric -> value, of `ncu --csv`. Lines around the table are the program's own output."""
    _, head, table = text.partition('"ID"')
    metrics: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(line for line in (head + table).splitlines() if line.startswith('"')):
        try:
            value = float(str(row["Metric Value"]).replace(",", ""))
        except (KeyError, ValueError):
            continue
        metrics.setdefault(str(row.get("Kernel Name")), {})[str(row.get("Metric Name"))] = value
    return metrics


def metrics_of(metrics: Mapping[str, Mapping[str, float]], kernel: str) -> dict[str, float]:
    """The metrics of a kernel by their short names; a metric that this GPU lacks is left out."""
    own = next((values for name, values in metrics.items() if kernel in name), {})
    return {short: own[name] for name, short in METRICS.items() if name in own}


def profile(
    path: str, op: str, size: int, kernels: Mapping[str, str], seconds: float, scratch: Path
) -> dict[str, Any]:
    """Profiles one launch by each backend, after one that was not; they take turns in one process."""
    count = str(len(kernels))
    # ncu would lock the clocks, for the parts behind it too.
    tool = [path, "--csv", "--clock-control", "none", "--target-processes", "all"]
    tool += ["--metrics", ",".join(METRICS), "--launch-skip", count, "--launch-count", count]
    tool += ["--kernel-name-base", "demangled", "--kernel-name", f"regex:{'|'.join(kernels.values())}"]
    program = [sys.executable, "-m", "benchmarks.gpu.report", "calls", "--op", op, "--size", str(size)]
    code, text, _ = watch([*tool, *program, "--backend", *kernels], seconds, scratch)
    every = ncu_metrics(text)
    metrics = {backend: own for backend, kernel in kernels.items() if (own := metrics_of(every, kernel))}
    missing = ", ".join(backend for backend in kernels if backend not in metrics)
    if metrics:
        said = {"said": f"no metric of {missing}"} if missing else {}
        return {"status": "failed" if missing else "ok", "metrics": metrics, **said}
    if "ERR_NVGPUCTRPERM" in text:
        return {"status": "absent", "said": "the driver lets only root read the counters"}
    if code is None:
        return {"status": "timeout", "said": f"killed after {seconds:.0f} s"}
    return {"status": "failed", "said": tail(text, 4)}


def metrics_lines(result: Mapping[str, Any]) -> list[str]:
    """A result of `profile`: a line for each backend, and what went wrong."""
    each = result.get("metrics", {}).items()
    lines = [f"{backend} " + ", ".join(f"{k} {v:.0f}" for k, v in values.items()) for backend, values in each]
    return [*lines, *([result["said"]] if "said" in result else [])]


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
        detail = "; ".join(f"{name}: {'; '.join(metrics_lines(r))}" for name, r in results.items())
        save_json(out, {"status": worst(results), "detail": detail, "kernels": results})
