# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's tools say: nvidia-smi of the GPU; compute-sanitizer and Nsight Compute of a few calls."""

from __future__ import annotations

import csv
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import softdiff_kernels as sk
from softdiff_kernels import _machine
from softdiff_kernels.bench import cases, machine
from softdiff_kernels.files import save_json

from . import rows
from .parts import execute, find, tail

# The CUDA kernels name their own barriers and shuffles; Triton's compiler chooses those of its kernels.
SANITIZERS = {"triton": ("memcheck", "racecheck"), "cuda": ("memcheck", "racecheck", "synccheck")}
# For each form of either backend's kernels; the CUDA ones change at 8, 16, 24, 32, 64, 128 and 256 px.
SIZES = (8, 13, 24, 33, 64, 128, 136, 260)
# (op, px, the kernel that takes it by each backend)
PROFILED = (
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


def every_op(device: torch.device, sizes: Sequence[int] = SIZES) -> None:
    """Every op once at each size, in float32, and the filter in bfloat16 and from bytes."""
    key = sk.NoiseKey(1, 2, 3)
    for side in sizes:
        # From the host, so that the ops' kernels are nearly all that the device runs.
        images = np.random.default_rng(side).uniform(-1, 1, (2, 2, 2, side, side)).astype(np.float32)
        x, y = torch.from_numpy(images).to(device)
        std, level = torch.tensor([0.7, 3.0]).to(device), torch.tensor([0.2, 0.1]).to(device)
        mask = torch.linspace(1, 0, side * side).view(side, side).to(device)
        sk.dct2(x)
        sk.idct2(x)
        sk.blur(x, std)
        sk.corrupt(x, std, level, key=key, return_residual=True)
        sk.corrupt(((x + 1) * 100).to(torch.uint8), 1.5, 0.1, noise=y)
        steps: dict[str, Any] = {"blur_std_t": std, "blur_std_s": 0.5 * std}
        sk.reverse_step(x, y, **steps, a=0.5, b=0.1, key=key)
        sk.momentum_step(x, y, **steps, noise_std_t=level, noise_std_s=0.5 * level, key=key, out=x.clone())
        sk.soft_score_loss(x.clone().requires_grad_(), y, std, weight=level).backward()
        sk.spectral_mix([x, y], [mask, mask], noise_mask=mask, key=key)
        sk.normal(x.shape, key, device=device)
        sk.corrupt(x.bfloat16().contiguous(memory_format=torch.channels_last), std, level, key=key)


def calls(op: str, size: int | None, backends: Sequence[str], dry: bool) -> None:
    """`every_op`, or one op on float32 images that fill the GPU, three times by each backend in turn; at the
    end the word "done". dry: tiny, on the CPU."""
    device = torch.device("cpu") if dry else torch.device("cuda", torch.cuda.current_device())
    if op == "every":
        call, times = partial(every_op, device, SIZES[:2] if dry else (size,) if size else SIZES), 1
    else:
        side, image_bytes = (8, 2**12) if dry else (size or 64, 2**28)
        batch = rows.full_batch(side, torch.float32, image_bytes)
        call, times = partial(rows.ours, op, rows.make(op, side, batch, torch.float32, device)), 3
    for backend in times * tuple(backends):
        with sk.use_backend(backend):
            call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    print("done", flush=True)


def _watched(
    tool: Sequence[str], words: Iterable[Any], seconds: float, scratch: Path, **variables: str
) -> tuple[int | None, str, float]:
    """(exit status, output, seconds) of `calls` with some words, under a tool."""
    program = [sys.executable, "-m", "benchmarks.gpu.report", "calls", *map(str, words)]
    log = scratch / f"{threading.get_ident()}-{time.monotonic_ns()}.log"
    code, took = execute([*tool, *program], seconds=seconds, log=log, environment={**os.environ, **variables})
    text = log.read_text(errors="replace")
    print(f"---- {' '.join([*tool, *program])}\n{text}", flush=True)
    return code, text, took


def _worst(results: Mapping[str, Mapping[str, Any]]) -> str:
    statuses = [result["status"] for result in results.values()]
    return next((status for status in ("failed", "timeout", "absent") if status in statuses), "ok")


def sanitizer_findings(text: str) -> tuple[int | None, str]:
    """(errors of memcheck or hazards of racecheck, the first lines about one) in compute-sanitizer's output.

    None instead of the number where the summary is missing: it did not finish."""
    counts = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", text)
    lines = re.findall(r"^=========\s*(.*(?:Invalid|Error:|Warning:|hazard|Race|Program hit).*)$", text, re.M)
    lines = [line for line in lines if "SUMMARY" not in line]
    return int(counts[-1]) if counts else None, " / ".join(lines[:3])[:400]


def check(tool: str, path: str, backend: str, seconds: float, scratch: Path) -> dict[str, Any]:
    """Runs every op under one of compute-sanitizer's tools."""
    # Without torch's cache each tensor is an allocation of its own, whose ends memcheck knows.
    options = ["--report-api-errors", "no"] if tool == "memcheck" else []
    words, uncached = ("--backend", backend), {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    code, text, took = _watched([path, "--tool", tool, *options], words, seconds, scratch, **uncached)
    errors, first = sanitizer_findings(text)
    status, said = "failed", f"{errors} errors: {first}" if errors else tail(text, 4)
    if not errors and code is None:
        status = "timeout"
    elif errors == 0 and "\ndone" in f"\n{text}":
        status, said = "ok", "no hazards" if tool == "racecheck" else "no errors"
    return {"status": status, "errors": errors, "seconds": round(took, 1), "said": said}


def sanitizer_summary(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The worst status of the tools, and a few words on each."""
    detail = "; ".join(f"{tool}: {r['status']}, {r['said']}"[:200] for tool, r in results.items())
    return {"status": _worst(results), "detail": detail, "tools": dict(results)}


def sanitizer(out: Path, backend: str, seconds: float, scratch: Path) -> None:
    """compute-sanitizer's tools over every op of a backend at small sizes."""
    end = time.monotonic() + seconds - 5.0
    path = find("compute-sanitizer")
    if path is None:
        save_json(out, {"status": "absent", "detail": "compute-sanitizer is not on this machine"})
        return
    results: dict[str, dict[str, Any]] = {}
    lock = threading.Lock()

    def plain(size: int) -> str:
        code, text, _ = _watched([], ("--size", size, "--backend", backend), seconds / 2, scratch)
        return "" if code == 0 else f"fails without a tool at {size} px: {tail(text)}"

    def job(tool: str) -> None:
        result = check(tool, path, backend, end - time.monotonic(), scratch)
        with lock:
            results[tool] = result
            save_json(out, sanitizer_summary(results))

    with ThreadPoolExecutor(len(SIZES)) as pool:
        # First without a tool: Triton's kernels are compiled then, at all sizes at once, and what fails
        # anyway is told from what a tool finds.
        problem = next(filter(None, list(pool.map(plain, SIZES))), "")
        if problem:
            save_json(out, {"status": "failed", "detail": problem})
        else:
            list(pool.map(job, SANITIZERS[backend]))


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
    tool += ["--metrics", ",".join(METRICS), "--kernel-name", f"regex:{'|'.join(kernels.values())}"]
    tool += ["--launch-skip", count, "--launch-count", count]
    code, text, _ = _watched(tool, ("--op", op, "--size", size, "--backend", *kernels), seconds, scratch)
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
    for i, (op, size, every) in enumerate(PROFILED):
        left = (deadline - time.monotonic()) / (len(PROFILED) - i)
        kernels = {backend: kernel for backend, kernel in every.items() if backend in usable}
        results[f"{op} {size} px"] = profile(path, op, size, kernels, left, scratch)
        detail = "; ".join(f"{name}: {'; '.join(metrics_lines(r))}" for name, r in results.items())
        save_json(out, {"status": _worst(results), "detail": detail, "kernels": results})
