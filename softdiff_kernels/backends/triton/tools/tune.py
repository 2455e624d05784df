# SPDX-License-Identifier: Apache-2.0
"""Measures the configurations on this machine's GPU and writes the table of its architecture anew.

    python -m softdiff_kernels.backends.triton.tools.tune --out FILE [--seconds N]

FILE is a whole `configs.json`: what was measured for this GPU's architecture, by its name, and the committed
table for all others. SOFTDIFF_TRITON_CONFIGS=FILE uses it; copying it over configs.json keeps it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median

import torch
import triton

from .. import configs
from .aot import compilers, measure
from .cases import ARCHITECTURES, Case, call, choices, entry, table_cases

_FILL = 192 * 2**20  # bytes of each image: more than any L2, so that every pass comes from memory
_ROUNDS = 7


def _milliseconds(case: Case, operands: tuple[torch.Tensor, ...]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call(case, *operands)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _compile(job: tuple[Case, configs.Config]) -> None:
    measure(*job)


def _compile_ahead(arch: str) -> None:
    """Fills Triton's cache on all cores; a compiler of its own for each, which never sees the GPU."""
    jobs = [(case, config) for case in table_cases(arch) for config in choices(case)]
    workers = max(1, min(len(jobs), (os.cpu_count() or 2) - 1))
    with compilers(workers) as pool:
        list(pool.map(_compile, jobs, chunksize=2))


def tune(seconds: float, out: Path) -> None:
    """Writes to `out`, after every entry, the table with what was measured of this architecture so far."""
    device = torch.device("cuda", torch.cuda.current_device())
    arch = configs.architecture(device)
    table = json.loads(configs.TABLE.read_text())
    entries = dict(table["architectures"][configs.nearest(arch, list(table["architectures"]))])
    timings: dict[str, dict[str, float]] = {}
    deadline = time.monotonic() + seconds
    if arch in ARCHITECTURES:
        _compile_ahead(arch)
    for case in table_cases(arch):
        dtype = getattr(torch, case.dtype)
        batch = max(1, _FILL // (3 * case.height * case.width * dtype.itemsize))
        shape = (batch, 3, case.height, case.width)
        images = torch.rand(shape, device=device).to(dtype), torch.rand(shape, device=device).to(dtype)
        std = torch.linspace(0.1, 4.0, batch, device=device)
        mask = torch.ones(shape[2:], device=device)
        seen = _measure(case, (*images, std, mask), deadline)
        if seen:
            best = min(seen, key=lambda config: seen[config])
            entries[entry(case)] = asdict(best)
            timings[entry(case)] = {json.dumps(asdict(c)): t for c, t in seen.items()}
            print(f"{entry(case):32s} {asdict(best)} {seen[best]:.3f} ms", file=sys.stderr, flush=True)
        table["architectures"][arch] = entries
        table["measured"] = {
            **table.get("measured", {}),
            arch: {
                "gpu": torch.cuda.get_device_name(device),
                "torch": torch.__version__,
                "triton": triton.__version__,
                "date": date.today().isoformat(),
                "milliseconds": timings,
            },
        }
        out.write_text(json.dumps(table, indent=1) + "\n")
        if time.monotonic() > deadline:
            print(f"out of time after {entry(case)}", file=sys.stderr)
            return


def _measure(case: Case, operands: tuple[torch.Tensor, ...], deadline: float) -> dict[configs.Config, float]:
    """Median milliseconds of each configuration that runs, interleaved."""
    candidates = choices(case)
    times: dict[configs.Config, list[float]] = {}
    for round_ in range(_ROUNDS + 1):
        if time.monotonic() > deadline:
            break
        for config in list(candidates):
            try:
                with configs.overridden(config):
                    spent = _milliseconds(case, operands)
            except Exception as error:  # it does not fit this GPU: out of shared memory, or of registers
                candidates.remove(config)
                print(f"{entry(case)} {config}: {error}", file=sys.stderr)
                continue
            if round_:  # the first compiles
                times.setdefault(config, []).append(spent)
    return {config: median(t) for config, t in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m softdiff_kernels.backends.triton.tools.tune", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--seconds", type=float, default=300.0, help="stop after this long")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("tune: torch finds no GPU, and nothing can be measured without one", file=sys.stderr)
        return 2
    tune(options.seconds, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
