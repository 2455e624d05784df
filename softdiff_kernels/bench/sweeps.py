# SPDX-License-Identifier: Apache-2.0
"""What a call costs as one thing is varied: the blur, the batch, nothing but the call; and its memory.

    python -m softdiff_kernels.bench.sweeps SIZE THREADS

prints {op: MiB} as JSON. A process is measured once: working space that it keeps would be missed by a second
reading.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import softdiff_kernels as sk

from . import cases
from .baselines import TwoProductBmm, of
from .rows import Conditions
from .timing import AGAIN, OURS, Call, HostClock, Timing, interleaved, noise_floor, summary

OTHER = TwoProductBmm.name
# The image of a call that has next to nothing to compute.
TINY = 8
HOST_ROUNDS = 9
_MEMORY_OPS = ("momentum_step", "corrupt", "soft_score_loss")


def _ours_and_other(case: cases.Case, conditions: Conditions) -> tuple[Call, Call]:
    """Ours and the eager two-product form on one case, which draw their own noise."""
    bare = replace(case, noise=None)
    call = of(case.op, TwoProductBmm(case.height, case.width).to(conditions.device))
    assert call is not None
    values = tuple(bare.arguments.values())
    return lambda: cases.ours(bare), lambda: call(*values)


def _entry(case: cases.Case, conditions: Conditions, unit: float) -> dict[str, Any]:
    """Both on one case, times in `unit` of a second."""
    ours, other = _ours_and_other(case, conditions)
    samples = conditions.sample({OURS: ours, OTHER: other, AGAIN: ours})
    timings: dict[str, Timing] = {name: summary(seconds) for name, seconds in samples.items()}
    own, theirs = timings[OURS], timings[OTHER]
    return {
        "ours": own.median * unit,
        "low": own.low * unit,
        "high": own.high * unit,
        "other": theirs.median * unit,
        "other_name": OTHER,
        "ratio": theirs.median / own.median,
        "noise": noise_floor(own, timings[AGAIN], theirs),
    }


def by_blur(size: int, conditions: Conditions, stds: Sequence[float] = ()) -> list[dict[str, Any]]:
    """`corrupt` at one blur_std for the whole batch, ns per value, from none to a third of the side."""
    stds = stds or (0.0, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, size / 4, size / 3)
    entries = []
    for std in sorted({s for s in stds if s <= size / 3}):
        case = cases.make("corrupt", size, size, cases.batch_of(size), device=conditions.device)
        case.arguments["blur_std"].fill_(std)
        entry = _entry(case, conditions, 1e9 / case.values)
        entries.append({"px": size, "threads": torch.get_num_threads(), "blur_std": std, **entry})
    return entries


def by_batch(op: str, size: int, conditions: Conditions, batches: Sequence[int]) -> list[dict[str, Any]]:
    """One op, microseconds for each image, at several batch sizes."""
    entries = []
    for batch in batches:
        case = cases.make(op, size, size, batch, device=conditions.device)
        entry = _entry(case, conditions, 1e6 / batch)
        entries.append({"op": op, "px": size, "threads": torch.get_num_threads(), "batch": batch, **entry})
    return entries


def host_time(op: str, conditions: Conditions, calls: int = 400) -> list[dict[str, Any]]:
    """Microseconds that the host spends on a call, ours and the two-product form's.

    On a GPU: until the call returns. On a CPU: of a call on one image of 8 x 8, whose arithmetic is under a
    microsecond; with the noise's key drawn, and given.
    """
    case = cases.make(op, TINY, TINY, 1, device=conditions.device)
    ours, other = _ours_and_other(case, conditions)
    ways: dict[str, Call] = {"ours": ours, "other": other, "again": ours}
    if op != "soft_score_loss":
        key, function = sk.NoiseKey(cases.SEED), getattr(sk, op)
        ways["key_given"] = lambda: function(**case.arguments, key=key)
    rounds = {"least": HOST_ROUNDS, "most": HOST_ROUNDS, "block": max(calls // HOST_ROUNDS, 1)}
    with conditions.forced():
        timings = interleaved(ways, HostClock(conditions.device), **rounds)
    return [{"op": op, **{name: t.median * 1e6 for name, t in timings.items()}, "other_name": OTHER}]


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def _memory_here(size: int, threads: int) -> dict[str, float]:
    """MiB that each op takes beyond inputs and outputs in this process, by the resident set (Linux)."""
    torch.set_num_threads(threads)
    made = {op: cases.make(op, size, size, cases.batch_of(size)) for op in _MEMORY_OPS}
    for op in made:  # loads code and starts threads, at a size that needs next to no working space
        cases.ours(cases.make(op, 16, 16, 8 * threads))
    gc.collect()
    # The C library returns its free memory to the system, or an op could be served from it unseen.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    before = _status("VmRSS")
    out = {}
    for op, case in made.items():
        Path("/proc/self/clear_refs").write_text("5")
        cases.ours(case)
        # Each returns one image of the inputs' size: the result or the gradient.
        out[op] = max(0.0, (_status("VmHWM") - before - 4 * case.values) / 2**20)
    return out


def memory(size: int, threads: int) -> dict[str, float] | None:
    """MiB beyond inputs and outputs at a size, in a new process; None where the system does not report it."""
    # Large blocks return to the system when freed, so that an output of one op is not counted for the next.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "softdiff_kernels.bench.sweeps", str(size), str(threads)]
    folder = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=True, timeout=120
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return json.loads(done.stdout)


if __name__ == "__main__":
    print(json.dumps(_memory_here(int(sys.argv[1]), int(sys.argv[2]))))
