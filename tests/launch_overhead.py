# SPDX-License-Identifier: Apache-2.0
"""Host microseconds of one call of the Triton backend, in parts, and of the CUDA backend on a GPU.

    PYTHONPATH=.:tests python tests/launch_overhead.py

Without a GPU the launch itself is a stub (`stub_driver.py`): what is timed is all that Python does before it.
The yardstick is one registered operator that does nothing plus one bare Triton launch of a kernel
with as many arguments as users write: nobody who uses torch.library and Triton can avoid these.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import triton
import triton.language as tl
from stub_driver import stubbed

import softdiff_kernels as sk
from softdiff_kernels.backends.triton import ops
from softdiff_kernels.bench.timing import Call, Clock, interleaved

_ROUNDS, _CALLS = 15, 300


@triton.jit
def _bare(x, out, std, table, n, scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) * scale + tl.load(std) + tl.load(table), mask=i < n)


def _register_noop() -> Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]:
    torch.library.define("softdiff_bench::noop", "(Tensor x, Tensor std, float floor) -> Tensor")
    empty = lambda x, std, floor: torch.empty_like(x)  # noqa: E731
    torch.library.impl("softdiff_bench::noop", "CompositeExplicitAutograd", empty)
    return torch.ops.softdiff_bench.noop.default  # type: ignore[no-any-return]


def measure() -> dict[str, float]:
    """Median microseconds of this thread by name; "target" is what 1.5 times the yardstick allows."""
    gpu = torch.cuda.is_available()
    x, out = torch.zeros(2, 2, 3, 32, 32, device="cuda" if gpu else "cpu")
    std, key = torch.ones(2, device=x.device), sk.NoiseKey(1)
    on_device = {"blur_std_t": std, "blur_std_s": std, "noise_std_t": std, "noise_std_s": std}
    numbers = {"blur_std_t": 2.0, "blur_std_s": 1.0, "noise_std_t": 0.2, "noise_std_s": 0.1}
    noop = _register_noop()
    calls: dict[str, Call] = {
        "registered no-op": lambda: noop(x, std, 0.0),
        "bare Triton launch": lambda: _bare[(6,)](x, out, std, std, 6144, 1.0, BLOCK=1024),
        "blur, per-sample": lambda: sk.blur(x, std),
        "blur, number": lambda: sk.blur(x, 1.5),
        "corrupt": lambda: sk.corrupt(x, std, std, key=key),
        "momentum_step": lambda: sk.momentum_step(x, out, **on_device, key=key),
        "momentum_step, numbers": lambda: sk.momentum_step(x, out, **numbers, key=key),
        "soft_score_loss": lambda: sk.soft_score_loss(x, out, std),
        "torch.empty_like": lambda: torch.empty_like(x),
        "blur inside the op": lambda: ops.blur(x, std, None, 0.0),
        "registered op of blur": lambda: torch.ops.softdiff.blur(x, std, None, 0.0),
    }
    # Without a GPU the stub takes the place of what `auto` chooses.
    within = dict.fromkeys(calls, partial(sk.use_backend, "triton" if gpu else "auto"))
    if gpu and sk.backends()["cuda"].usable:
        for name in ("corrupt", "momentum_step", "soft_score_loss"):
            calls[f"{name}, cuda"] = calls[name]
            within[f"{name}, cuda"] = partial(sk.use_backend, "cuda")
    # The thread's own time, whatever else keeps the machine busy.
    rounds = {"least": _ROUNDS, "most": _ROUNDS, "block": _CALLS, "warmup": 0.0}
    with nullcontext() if gpu else stubbed():
        timings = interleaved(calls, Clock(time.thread_time), within=within, **rounds)
    result = {name: timing.median * 1e6 for name, timing in timings.items()}
    result["target"] = 1.5 * (result["registered no-op"] + result["bare Triton launch"])
    return result


if __name__ == "__main__":
    for name, microseconds in measure().items():
        print(f"{name:28s} {microseconds:7.2f} us")
