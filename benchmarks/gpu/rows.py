# SPDX-License-Identifier: Apache-2.0
"""One op by each of our GPU backends beside its baselines: checked, then timed in one interleaved run.

The benchmark engine (softdiff_kernels/bench) has the cases, the baselines and the timer. This file adds what
a GPU needs: several backends of ours in one run, the loss without autograd around it, CUDA graphs, bandwidth
and peak memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import softdiff_kernels as sk
from softdiff_kernels.bench import baselines, cases, timing
from softdiff_kernels.bench import rows as engine
from softdiff_kernels.bench.baselines import Baseline
from softdiff_kernels.bench.cases import Case
from softdiff_kernels.bench.timing import AGAIN, OURS

ALONE = "soft_score_loss, op alone"
OPS = ("corrupt", "momentum_step", "soft_score_loss", ALONE, "blur", "dct2", "normal")
# The core pass, tested before anything else and then timed: (op, px, dtype), the most wanted first.
CORE = [
    (op, size, dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for size in (64, 32, 128, 256)
    for op in ("corrupt", "momentum_step", ALONE)
]
FEW = 2  # images that do not fill a GPU: large ones are cut into strips by other kernels
_BLOCK = 20  # calls that are timed as one, of small batches


@dataclass(frozen=True)
class Setup:
    """Where and how thoroughly rows are timed. image_bytes: of one image tensor of a full batch; budget and
    least: seconds of each call, and how often at least; compiler: torch.compile's; backends: in one run."""

    device: torch.device
    l2_bytes: int
    copy_bytes_s: float
    image_bytes: int = 256 * 2**20
    budget: float = 0.12
    least: int = 7
    compiler: str = "inductor"
    batches: tuple[int, ...] = (1, 4, 16)  # the small ones
    backends: tuple[str, ...] = ("auto",)


@dataclass
class Row(engine.Row):
    """The engine's row of one of our backends, and the ratio to the fastest baseline of any group.

    kind: "full" batches, "small" ones in blocks of calls, or these as a CUDA "graph". gb_s: of the images
    that must be read and written.
    """

    kind: str = "full"
    values: int = 0
    gb_s: float = 0.0
    of_copy: float | None = None
    peak_mib: float | None = None


def label(backend: str) -> str:
    """Our name among the baselines."""
    return OURS if backend == "auto" else f"{OURS} {backend}"


def filling(device: torch.device) -> int:
    """Images of three channels that give each multiprocessor a plane, and so take the kernels of any larger
    batch."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count // 3 + 1


def full_batch(size: int, dtype: torch.dtype, image_bytes: int) -> int:
    """How many images of three channels make up `image_bytes`."""
    return max(1, image_bytes // (cases.CHANNELS * size * size * dtype.itemsize))


def make(op: str, size: int, batch: int, dtype: torch.dtype, device: torch.device) -> Case:
    """The engine's case, with float32 coefficients whatever the dtype of the images."""
    case = cases.make(_case(op), size, size, batch, device=device)
    arguments = {k: v.to(dtype) if v.dim() == 4 else v for k, v in case.arguments.items()}
    return replace(case, arguments=arguments, noise=None if case.noise is None else case.noise.to(dtype))


def _case(op: str) -> str:
    return "soft_score_loss" if op == ALONE else op


def ours(op: str, case: Case, noise: Tensor | None = None) -> Any:
    """The library's op as a user calls it; `ALONE` is the loss's one launch without autograd around it."""
    if op != ALONE:
        return cases.ours(case, noise=noise)
    return torch.ops.softdiff.soft_score_loss_and_gradient(*case.arguments.values(), 0.0, "mean")


def eager(op: str, size: int, dtype: torch.dtype, device: torch.device) -> list[Baseline]:
    """The engine's eager baselines that compute an op of square images."""
    # A package's nearest function may loop over the batch: seconds a call on batches that fill a GPU.
    return [b for b in baselines.baselines(_case(op), size, size, dtype, device) if b.same]


def compiled(op: str, size: int, dtype: torch.dtype, device: torch.device, backend: str) -> list[Baseline]:
    """The same under torch.compile, compiled at their first call."""
    return baselines.compiled(_case(op), size, size, dtype, device, backend)


def _errors(op: str, case: Case, working: Sequence[Baseline], backends: Sequence[str]) -> dict[str, float]:
    """Relative L2 errors by the engine's rule, of as many samples as take the kernels that are timed; ours by
    the backends' labels."""
    count = filling(next(iter(case.arguments.values())).device)
    noise = None if case.noise is None else case.noise[:count]
    few = replace(case, arguments={k: v[:count] for k, v in case.arguments.items()}, noise=noise)
    errors = engine.errors(few, [b for b in working if not b.compiled])
    exact = cases.truth(few)
    for backend in backends:
        with sk.use_backend(backend):
            errors[label(backend)] = cases.relative_error(ours(op, few, few.noise), exact)
    return errors


def measure(
    op: str,
    size: int,
    batch: int,
    dtype: torch.dtype,
    setup: Setup,
    candidates: Sequence[Baseline],
    kind: str = "full",
) -> list[Row]:
    """A row of each of our backends, from one interleaved run of all of them and the candidates.

    kind: see `Row`. Raises RuntimeError if no backend works.
    """
    device, case = setup.device, make(op, size, batch, dtype, setup.device)
    failures: dict[str, str] = {}

    def works(name: str, call: timing.Call) -> bool:
        why = engine.problem(call)
        failures.update({} if why is None else {name: why})
        return why is None

    def by(backend: str) -> None:
        with sk.use_backend(backend):
            ours(op, case)

    backends = [b for b in setup.backends if works(label(b), partial(by, b))]
    if not backends:
        raise RuntimeError("; ".join(f"{name}: {why}" for name, why in failures.items()))
    inputs = tuple(case.arguments.values())
    working = {b.name: b for b in candidates if works(b.name, partial(b.call, *inputs))}
    errors = _errors(op, case, list(working.values()), backends)

    following = engine.in_rotation(case, setup.l2_bytes if kind == "full" else 0)
    own = {label(b) + again: b for b in backends for again in ("", ", again")}
    within: dict[str, timing.Context] = {
        name: partial(sk.use_backend, backend) for name, backend in own.items()
    }
    calls: dict[str, timing.Call] = dict.fromkeys(own, lambda: ours(op, following()))
    for name, baseline in working.items():
        calls[name] = lambda b=baseline: b.call(*following().arguments.values())  # type: ignore[misc]
    if kind == "graph" and device.type == "cuda":
        replays: dict[str, timing.Call] = {}
        for name, call in calls.items():
            with within.get(name, nullcontext)():
                works(name, lambda n=name, c=call: replays.update({n: timing.graphed(c)}))  # type: ignore[misc]
        calls, working = replays, {n: b for n, b in working.items() if n in replays}
        backends = [b for b in backends if f"{label(b)}, again" in replays]

    limits: dict[str, Any] = {"budget": setup.budget, "least": setup.least, "most": 60}
    limits["block"] = 1 if kind == "full" or setup.least == 1 else _BLOCK
    samples = timing.sample(calls, timing.clock_of(device), within=within, **limits)
    rows = []
    for backend in backends:
        me = label(backend)
        times = {n: s for n, s in samples.items() if n != me and not n.endswith(", again")}
        times |= {OURS: samples[me], AGAIN: samples[f"{me}, again"]}
        known = (torch.get_num_threads(), working, {**errors, OURS: errors[me]}, failures, times)
        measured = engine.Measurement(case, engine.Conditions(device, dtype, backend), *known)
        with sk.use_backend(backend):
            peak = timing.peak_bytes(lambda: ours(op, following())) / 2**20 if device.type == "cuda" else None
        about = {**vars(measured.row()), "op": op, "kind": kind, "values": case.values, "peak_mib": peak}
        gb_s = cases.bytes_of(case.op) * dtype.itemsize / 4 / about["ours"]
        of_copy = gb_s * 1e9 / setup.copy_bytes_s if kind == "full" else None
        rows.append(_with_fastest(Row(**about, gb_s=gb_s, of_copy=of_copy)))
    return rows


def _with_fastest(row: Row) -> Row:
    """The row with the ratio to the fastest of all baselines."""
    timings = row.timings
    same = [name for name, t in timings.items() if t["same"] and t["group"] != "ours"]
    name = min(same, key=lambda n: timings[n]["ratio"])
    about = {key: timings[name][key] for key in ("ratio", "noise")}
    error = timings.get(name.removesuffix(" compiled"), {}).get("error")
    return replace(row, fastest=name, fastest_ns=timings[name]["median"], fastest_error=error, **about)


def merged(first: Row, later: Row) -> Row:
    """A backend's row with the baselines of a later run, whose ratios are to our time in that run."""
    others = {name: t for name, t in later.timings.items() if t["group"] != "ours"}
    failures = {**first.failures, **later.failures}
    return _with_fastest(replace(first, timings={**first.timings, **others}, failures=failures))
