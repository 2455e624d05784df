# SPDX-License-Identifier: Apache-2.0
"""compute-sanitizer's tools over every op of a backend at small sizes.

PYTHONPATH=. python tests/gpu/sanitizer.py --out JSON [--backend cuda] [--seconds N]
PYTHONPATH=. python tests/gpu/sanitizer.py --watched [--size N ...]      the program that the tools watch

The GPU report runs this.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import softdiff_kernels as sk
from benchmarks.gpu.parts import end_with_commands, find, tail, watch, worst
from softdiff_kernels.files import save_json

# The CUDA kernels name their own barriers and shuffles; Triton's compiler chooses those of its kernels.
SANITIZERS = {"triton": ("memcheck", "racecheck"), "cuda": ("memcheck", "racecheck", "synccheck")}
# px, for each form of either backend's kernels: the sizes of one process under a tool, the most used first.
SIZES = {"triton": ((64, 33), (136, 13)), "cuda": ((64, 33), (128, 13), (136, 24, 260))}
_SHARES = 3  # processes that compile for a size
_LEAST = 15.0  # seconds in which a process under a tool can be expected to end


def calls(device: torch.device, side: int) -> list[Callable[[], object]]:
    """Every op at a size, in float32, and the filter in bfloat16 and from bytes."""
    key = sk.NoiseKey(1, 2, 3)
    # From the host, so that the ops' kernels are nearly all that the device runs.
    images = np.random.default_rng(side).uniform(-1, 1, (2, 2, 2, side, side)).astype(np.float32)
    x, y = torch.from_numpy(images).to(device)
    std, level = torch.tensor([0.7, 3.0]).to(device), torch.tensor([0.2, 0.1]).to(device)
    mask = torch.linspace(1, 0, side * side).view(side, side).to(device)
    steps: dict[str, Any] = {"blur_std_t": std, "blur_std_s": 0.5 * std}
    noises: dict[str, Any] = {"noise_std_t": level, "noise_std_s": 0.5 * level, "key": key}
    rows = x.bfloat16().contiguous(memory_format=torch.channels_last)
    return [
        lambda: sk.corrupt(x, std, level, key=key, return_residual=True),
        lambda: sk.momentum_step(x, y, **steps, **noises, out=x.clone()),
        lambda: sk.soft_score_loss(x.clone().requires_grad_(), y, std, weight=level).backward(),
        lambda: sk.blur(x, std),
        lambda: sk.dct2(x),
        lambda: sk.idct2(x),
        lambda: sk.corrupt(((x + 1) * 100).to(torch.uint8), 1.5, 0.1, noise=y),
        lambda: sk.reverse_step(x, y, **steps, a=0.5, b=0.1, key=key),
        lambda: sk.spectral_mix([x, y], [mask, mask], noise_mask=mask, key=key),
        lambda: sk.normal(x.shape, key, device=device),
        lambda: sk.corrupt(rows, std, level, key=key),
    ]


def watched(backend: str, sizes: Sequence[int], device: str = "cuda", share: int | None = None) -> None:
    """`calls` at some sizes by a backend, or one of `_SHARES` of them; then the word "done"."""
    with sk.use_backend(backend):
        for size in sizes:
            for call in calls(torch.device(device), size)[share :: 1 if share is None else _SHARES]:
                call()
    if device == "cuda":
        torch.cuda.synchronize()
    print("done", flush=True)


def _program(backend: str, *words: str) -> list[str]:
    return [sys.executable, __file__, "--watched", "--backend", backend, *words]


def findings(text: str) -> tuple[int | None, str]:
    """(errors of memcheck or hazards of racecheck, the first lines about one) in compute-sanitizer's output.

    None instead of the number where the summary is missing: it did not finish."""
    counts = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", text)
    lines = re.findall(r"^=========\s*(.*(?:Invalid|Error:|Warning:|hazard|Race|Program hit).*)$", text, re.M)
    lines = [line for line in lines if "SUMMARY" not in line]
    return int(counts[-1]) if counts else None, " / ".join(lines[:3])[:400]


def _sized(sizes: Sequence[int]) -> list[str]:
    return ["--size", *map(str, sizes)]


def check(
    tool: str, path: str, backend: str, sizes: Sequence[int], seconds: float, scratch: Path
) -> dict[str, Any]:
    """Runs every op at some sizes under one of compute-sanitizer's tools."""
    # Without torch's cache each tensor is an allocation of its own, whose ends memcheck knows.
    options = ["--report-api-errors", "no"] if tool == "memcheck" else []
    command = [path, "--tool", tool, *options, *_program(backend, *_sized(sizes))]
    code, text, took = watch(command, seconds, scratch, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    errors, first = findings(text)
    status, said = "failed", f"{errors} errors: {first}" if errors else tail(text, 4)
    if "Device not supported" in text:
        status, said = "absent", "compute-sanitizer does not support this machine's device"
    elif not errors and code is None:
        status = "timeout"
    elif errors == 0 and "\ndone" in f"\n{text}":
        status, said = "ok", "no hazards" if tool == "racecheck" else "no errors"
    return {"status": status, "errors": errors, "seconds": round(took, 1), "said": said}


def summary(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The worst status of the tools, and a few words on each."""
    detail = "; ".join(f"{tool}: {r['status']}, {r['said']}"[:200] for tool, r in results.items())
    return {"status": worst(results), "detail": detail, "tools": dict(results)}


def run(out: Path, backend: str, seconds: float, scratch: Path) -> None:
    """compute-sanitizer's tools over every op of a backend at small sizes."""
    end = time.monotonic() + seconds - 5.0
    path = find("compute-sanitizer")
    if path is None:
        save_json(out, {"status": "absent", "detail": "compute-sanitizer is not on this machine"})
        return
    results: dict[str, dict[str, Any]] = {}
    lock = threading.Lock()

    def plain(job: tuple[int, int]) -> tuple[str, str]:
        words = [*_sized(job[:1]), "--share", str(job[1])]
        code, text, _ = watch(_program(backend, *words), seconds / 2, scratch)
        if code is None:
            return "timeout", f"not compiled within {seconds / 2:.0f} s at {job[0]} px"
        return ("", "") if code == 0 else ("failed", f"fails without a tool at {job[0]} px: {tail(text)}")

    def job(tool: str) -> None:
        for sizes in SIZES[backend]:
            name = f"{tool}, {', '.join(map(str, sizes))} px"
            left = end - time.monotonic()
            if left < _LEAST:
                result: dict[str, Any] = {"status": "timeout", "errors": None, "said": "no time was left"}
            else:
                result = check(tool, path, backend, sizes, left, scratch)
            with lock:
                results[name] = result
                save_json(out, summary(results))

    every = [(size, share) for sizes in SIZES[backend] for size in sizes for share in range(_SHARES)]
    with ThreadPoolExecutor(len(every)) as pool:
        # First without a tool: Triton's kernels are compiled then, by all processes at once, and what fails
        # anyway is told from what a tool finds.
        problems = sorted(filter(any, pool.map(plain, every)))  # "failed" before "timeout"
        if problems:
            save_json(out, dict(zip(("status", "detail"), problems[0], strict=True)))
        else:
            list(pool.map(job, SANITIZERS[backend]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--backend", choices=tuple(SANITIZERS), default="triton")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--watched", action="store_true", help="call the ops, under no tool")
    parser.add_argument("--size", type=int, nargs="+", default=(64, 33))
    parser.add_argument("--share", type=int, choices=range(_SHARES), help="of the calls; default: all")
    args = parser.parse_args()
    if args.watched:
        watched(args.backend, args.size, share=args.share)
        return
    end_with_commands()
    with tempfile.TemporaryDirectory() as folder:
        run(args.out, args.backend, args.seconds, Path(folder))


if __name__ == "__main__":
    main()
