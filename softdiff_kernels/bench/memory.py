# SPDX-License-Identifier: Apache-2.0
"""How much memory the ops take beyond inputs and outputs, by the resident set's high water mark (Linux).

    python -m softdiff_kernels.bench.memory SIZE THREADS

prints {op: MiB} as JSON. A process is measured once: working space that it keeps would hide in a second
reading.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_OPS = ("momentum_step", "corrupt", "soft_score_loss")


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def _give_back() -> None:
    """Returns the C library's free memory to the system, lest an op be served from it unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _measure(size: int, threads: int) -> dict[str, float]:
    import torch

    from . import cases

    torch.set_num_threads(threads)
    made = {op: cases.make(op, size, size, cases.batch_of(size)) for op in _OPS}
    for op in _OPS:  # loads code and starts threads, at a size that needs next to no working space
        cases.ours(cases.make(op, 16, 16, 8 * threads))
    gc.collect()
    _give_back()
    before = _status("VmRSS")
    out = {}
    for op, case in made.items():
        Path("/proc/self/clear_refs").write_text("5")
        cases.ours(case)
        # Each returns one image of the inputs' size: the result or the gradient.
        out[op] = max(0.0, (_status("VmHWM") - before - 4 * case.values) / 2**20)
    return out


def extra(size: int, threads: int) -> dict[str, float] | None:
    """MiB beyond inputs and outputs at a size, in a fresh process; None where the system does not tell."""
    # Large blocks go back to the system when freed, so that an output of one op is not counted for the next.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", __spec__.name, str(size), str(threads)]
    try:
        done = subprocess.run(
            command, env=environment, cwd=_ROOT, capture_output=True, text=True, check=True, timeout=120
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return json.loads(done.stdout)


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]), int(sys.argv[2]))))
