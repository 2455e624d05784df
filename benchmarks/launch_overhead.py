# SPDX-License-Identifier: Apache-2.0
"""Host microseconds of one call of the Triton backend, in parts, and of the CUDA backend on a GPU.

    python -m benchmarks.launch_overhead

Without a GPU the launch itself is a stub (`stub_driver.py`): what is timed is all that Python does before it.
The yardstick is one registered operator that does nothing plus one bare Triton launch of a kernel
with as many arguments as users write: what nobody who goes through torch.library and Triton can avoid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, nullcontext
from statistics import median

import torch
import triton
import triton.language as tl

import softdiff_kernels as sk
from softdiff_kernels.backends.triton import ops

from .stub_driver import stubbed

_REPEATS, _CALLS = 15, 300


@triton.jit
def _bare(x, out, std, table, n, scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) * scale + tl.load(std) + tl.load(table), mask=i < n)


def _register_noop() -> Callable[[torch.Tensor], torch.Tensor]:
    torch.library.define("softdiff_bench::noop", "(Tensor x, Tensor std, float floor) -> Tensor")
    torch.library.impl(
        "softdiff_bench::noop", "CompositeExplicitAutograd", lambda x, std, floor: torch.empty_like(x)
    )
    return torch.ops.softdiff_bench.noop.default  # type: ignore[no-any-return]


def _time(forms: dict[str, Callable[[], object]], by_cuda: Container[str] = ()) -> dict[str, float]:
    """Median microseconds of each form, interleaved: of this thread, whatever else keeps the machine busy."""

    # Without a GPU the stub stands in for what is chosen by itself.
    other = "triton" if torch.cuda.is_available() else "auto"

    def chosen(name: str) -> AbstractContextManager[None]:
        return sk.use_backend("cuda" if name in by_cuda else other)

    for name, call in forms.items():
        with chosen(name):
            call()
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(_REPEATS):
        for name, call in forms.items():
            with chosen(name):
                start = time.thread_time()
                for _ in range(_CALLS):
                    call()
                times[name].append((time.thread_time() - start) / _CALLS * 1e6)
    return {name: median(t) for name, t in times.items()}


def measure() -> dict[str, float]:
    """Microseconds by name; "target" is what 1.5 times the yardstick allows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, out = torch.zeros(2, 3, 32, 32, device=device), torch.zeros(2, 3, 32, 32, device=device)
    std, key = torch.ones(2, device=device), sk.NoiseKey(1)
    kw = {"blur_std_t": std, "blur_std_s": std, "noise_std_t": std, "noise_std_s": std, "key": key}
    noop = _register_noop()
    forms: dict[str, Callable[[], object]] = {
        "registered no-op": lambda: noop(x, std, 0.0),
        "bare Triton launch": lambda: _bare[(6,)](x, out, std, std, 6144, 1.0, BLOCK=1024),
        "blur, per-sample": lambda: sk.blur(x, std),
        "blur, number": lambda: sk.blur(x, 1.5),
        "corrupt": lambda: sk.corrupt(x, std, std, key=key),
        "momentum_step": lambda: sk.momentum_step(x, out, **kw),
        "momentum_step, numbers": lambda: sk.momentum_step(
            x, out, blur_std_t=2.0, blur_std_s=1.0, noise_std_t=0.2, noise_std_s=0.1, key=key
        ),
        "soft_score_loss": lambda: sk.soft_score_loss(x, out, std),
        "torch.empty_like": lambda: torch.empty_like(x),
        "blur inside the op": lambda: ops.blur(x, std, None, 0.0),
        "registered op of blur": lambda: torch.ops.softdiff.blur(x, std, None, 0.0),
    }
    called = ("corrupt", "momentum_step", "soft_score_loss")
    usable = sk.backends()["cuda"].usable and device.type == "cuda"
    cuda = {f"{name}, cuda": forms[name] for name in called} if usable else {}
    with nullcontext() if device.type == "cuda" else stubbed():
        result = _time({**forms, **cuda}, cuda)
    result["target"] = 1.5 * (result["registered no-op"] + result["bare Triton launch"])
    return result


def main() -> None:
    for name, microseconds in measure().items():
        print(f"{name:28s} {microseconds:7.2f} us")


if __name__ == "__main__":
    main()
