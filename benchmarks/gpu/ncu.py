# SPDX-License-Identifier: Apache-2.0
"""What Nsight Compute says of the two kernels that matter most, a line each.

python -m benchmarks.gpu.ncu --out JSON [--seconds N]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .parts import execute, tail, write
from .tools import find, ncu_metrics

CASES = (("corrupt", 64, "corrupt_kernel"), ("momentum_step", 64, "step_kernel"))
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


def profile(path: str, op: str, size: int, kernel: str, seconds: float, scratch: Path) -> dict[str, Any]:
    """Profiles one launch, after one that was not."""
    command = [path, "--csv", "--metrics", ",".join(METRICS), "--kernel-name", f"regex:{kernel}"]
    command += ["--launch-skip", "1", "--launch-count", "1", "--target-processes", "all"]
    program = [sys.executable, "-m", "benchmarks.gpu.few_calls", op, str(size)]
    log = scratch / f"{op}.log"
    code, _ = execute([*command, *program], seconds=seconds, log=log)
    text = log.read_text(errors="replace")
    print(f"---- {op}\n{text}", flush=True)
    found = lines(ncu_metrics(text), kernel)
    if found:
        return {"status": "ok", "metrics": found}
    if "ERR_NVGPUCTRPERM" in text:
        return {"status": "absent", "said": "the driver lets only root read the counters"}
    if code is None:
        return {"status": "timeout", "said": f"killed after {seconds:.0f} s"}
    return {"status": "failed", "said": tail(text, 4)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=40.0)
    args = parser.parse_args(argv)
    path = find("ncu")
    if path is None:
        write(args.out, {"status": "absent", "detail": "ncu is not on this machine"})
        return 0
    deadline = time.monotonic() + args.seconds - 2.0
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (op, size, kernel) in enumerate(CASES):
            left = (deadline - time.monotonic()) / (len(CASES) - i)
            results[f"{op} {size} px"] = profile(path, op, size, kernel, left, Path(folder))
            statuses = [r["status"] for r in results.values()]
            status = next((s for s in ("failed", "timeout", "absent") if s in statuses), "ok")
            detail = "; ".join(
                f"{name}: "
                + r.get("said", ", ".join(f"{k} {v:.0f}" for k, v in r.get("metrics", {}).items()))
                for name, r in results.items()
            )
            write(args.out, {"status": status, "detail": detail, "kernels": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
