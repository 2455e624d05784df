# SPDX-License-Identifier: Apache-2.0
"""Lines of the benchmark: an op at a size, batch and dtype by each backend, beside its baselines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from softdiff_kernels.bench.clock import Timing
from torch import Tensor

import softdiff_kernels as sk
from softdiff_kernels.bench import cases, clock
from softdiff_kernels.bench.cases import Case

from . import rivals
from .engines import using
from .rivals import Rival
from .tables import OURS, label

IN_ONE_LAUNCH = "soft_score_loss, op alone"
OPS = ("corrupt", "momentum_step", "soft_score_loss", IN_ONE_LAUNCH, "blur", "dct2", "normal")
# Images that have to be read and written: what no implementation can do without.
IMAGES = {"corrupt": 2, "momentum_step": 3, "soft_score_loss": 3, "blur": 2, "dct2": 2, "normal": 1}
IMAGES[IN_ONE_LAUNCH] = 3
_COMPARED = 4  # samples whose result is held against float64


@dataclass(frozen=True)
class Setup:
    """Where and how thoroughly rows are timed."""

    device: torch.device
    l2_bytes: int
    copy_bytes_s: float
    image_bytes: int = 256 * 2**20
    budget: float = 0.12
    compiler: str = "inductor"
    backends: tuple[str, ...] = ("auto",)  # ours, side by side


@dataclass
class Row:
    """Microseconds of one backend and the others, and what follows from them.

    `kind`: "full" or "small" batches. `others` are all times of the same run, this backend's among them.
    """

    op: str
    backend: str
    size: int
    batch: int
    dtype: str
    kind: str
    us: float
    low: float
    high: float
    gb_s: float
    of_copy: float | None
    fastest: str | None
    fastest_us: float | None
    ratio: float | None
    error: float | None
    fastest_error: float | None
    peak_mib: float | None
    rotations: int
    values: int
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def named(op: str) -> str:
    """The op of `cases` behind a row's op."""
    return "soft_score_loss" if op == IN_ONE_LAUNCH else op


def full_batch(size: int, dtype: torch.dtype, image_bytes: int) -> int:
    """Images of three channels that make up `image_bytes`."""
    return max(1, image_bytes // (cases.CHANNELS * size * size * dtype.itemsize))


def make(op: str, size: int, batch: int, dtype: torch.dtype, device: torch.device) -> Case:
    """A case on the device; its coefficients are float32 whatever the images are."""
    case = cases.make(named(op), size, size, batch, device=device)
    if dtype == torch.float32:
        return case
    arguments = {k: v.to(dtype) if v.dim() == 4 else v for k, v in case.arguments.items()}
    return replace(case, arguments=arguments, noise=None if case.noise is None else case.noise.to(dtype))


def head(case: Case, count: int) -> Case:
    """The case's first samples."""
    arguments = {k: v[:count] for k, v in case.arguments.items()}
    return replace(case, arguments=arguments, noise=None if case.noise is None else case.noise[:count])


def copies(case: Case, count: int) -> list[Case]:
    """The case and others like it in other memory, without the noise that only the comparison needs."""
    bare = replace(case, noise=None)
    more = [
        replace(bare, arguments={k: v.clone() for k, v in bare.arguments.items()}) for _ in range(count - 1)
    ]
    return [bare, *more]


def ours(op: str, case: Case, noise: Tensor | None = None) -> Any:
    """The library's op as a user calls it; alone, the loss's one launch without autograd around it."""
    if op != IN_ONE_LAUNCH:
        return cases.ours(case, noise=noise)
    a = case.arguments
    return torch.ops.softdiff.soft_score_loss_and_gradient(
        a["prediction"], a["target"], a["blur_std"], a["weight"], 0.0, "mean"
    )


def _attempt(call: Callable[[], Any]) -> str | None:
    """Runs a call once; what went wrong in a line, else None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except Exception as error:  # a baseline that does not work here is a line in the report
        if isinstance(error, torch.cuda.OutOfMemoryError):
            torch.cuda.empty_cache()
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return None


def _errors(op: str, case: Case, candidates: Sequence[Rival], backends: Sequence[str]) -> dict[str, float]:
    few = head(case, _COMPARED)
    exact = cases.truth(few)
    out = {}
    for backend in backends:
        with using(backend):
            out[label(backend)] = cases.relative_error(ours(op, few, few.noise), exact)
    given = {} if few.noise is None else {"noise": few.noise}
    if case.op != "normal":
        for rival in candidates:
            result = rival.call(*few.arguments.values(), **given)
            out[rival.name] = cases.relative_error(result, exact)
    return out


def compare(
    op: str,
    size: int,
    batch: int,
    dtype: torch.dtype,
    setup: Setup,
    candidates: Sequence[Rival],
    *,
    kind: str,
) -> list[Row]:
    """Times ours and the candidates on rotating buffers (kind "full") or in blocks of calls ("small").

    All in one interleaved run, of which each of our backends gets a row.
    """
    device = setup.device
    case = make(op, size, batch, dtype, device)
    moved = IMAGES[op] * case.values * dtype.itemsize
    count = clock.rotations(moved, setup.l2_bytes) if kind == "full" else 1
    working, failures, backends = [], {}, []
    for backend in setup.backends:
        with using(backend):
            problem = _attempt(lambda: ours(op, case))
        if problem is None:
            backends.append(backend)
        else:
            failures[label(backend)] = problem
    if not backends:
        raise RuntimeError("; ".join(f"{name}: {why}" for name, why in failures.items()))
    for rival in candidates:
        problem = _attempt(lambda r=rival: r.call(*case.arguments.values()))
        if problem is None:
            working.append(rival)
        else:
            failures[rival.name] = problem
    errors = _errors(op, case, [r for r in working if not r.name.endswith("compiled")], backends)
    sets = copies(case, count)
    values = [tuple(c.arguments.values()) for c in sets]
    within: dict[str, clock.Within] = {label(b): partial(using, b) for b in backends}
    calls: dict[str, clock.Call] = dict.fromkeys(within, lambda i: ours(op, sets[i % count]))
    for rival in working:
        calls[rival.name] = lambda i, r=rival: r.call(*values[i % count])
    if kind == "small":
        _add_graphs(calls, op, sets[0], working, backends, device, failures)
    block = 1 if kind == "full" else 20
    timings = clock.interleaved(calls, device, budget=setup.budget, block=block, within=within)
    found = []
    for backend in backends:
        with using(backend):
            peak = clock.peak_bytes(calls[label(backend)], device)
        found.append(
            _row(op, backend, case, dtype, kind, setup, timings, working, errors, failures, peak, count)
        )
    return found


def _add_graphs(
    calls: dict[str, clock.Call],
    op: str,
    case: Case,
    working: Sequence[Rival],
    backends: Sequence[str],
    device: torch.device,
    failures: dict[str, str],
) -> None:
    """The eager calls as graphs, ours too: what is left when the host has nothing to do."""
    values = tuple(case.arguments.values())

    def by(backend: str) -> None:
        with using(backend):
            ours(op, case)

    eager = {label(b): partial(by, b) for b in backends}
    eager |= {r.name: (lambda r=r: r.call(*values)) for r in working if not r.name.endswith("compiled")}
    for name, call in eager.items():
        replays: list[clock.Call] = []
        problem = _attempt(lambda c=call, found=replays: found.append(rivals.graphed(c, device)))
        if problem is None:
            calls[f"{name}, graph"] = replays[0]
        else:
            failures[f"{name}, graph"] = problem


def _row(
    op: str,
    backend: str,
    case: Case,
    dtype: torch.dtype,
    kind: str,
    setup: Setup,
    timings: dict[str, Timing],
    working: Sequence[Rival],
    errors: dict[str, float],
    failures: dict[str, str],
    peak: int | None,
    count: int,
) -> Row:
    own = timings[label(backend)]
    unfair = {r.name for r in working if not r.fair}

    def fair(name: str) -> bool:
        return not name.startswith(OURS) and name.removesuffix(", graph") not in unfair

    def error_of(name: str) -> float | None:
        return errors.get(name.removesuffix(", graph").removesuffix(", compiled"))

    # A graph has no host in it, and is beside ours as a graph only: see `tables.small`.
    others = [n for n in timings if fair(n) and not n.endswith(", graph")]
    fastest = min(others, key=lambda n: timings[n].median, default=None)
    gb_s = IMAGES[op] * case.values * dtype.itemsize / own.median / 1e9
    return Row(
        op=op,
        backend=backend,
        size=case.width,
        batch=case.batch,
        dtype=str(dtype).removeprefix("torch."),
        kind=kind,
        us=own.median * 1e6,
        low=own.low * 1e6,
        high=own.high * 1e6,
        gb_s=gb_s,
        of_copy=gb_s * 1e9 / setup.copy_bytes_s if kind == "full" else None,
        fastest=fastest,
        fastest_us=None if fastest is None else timings[fastest].median * 1e6,
        ratio=None if fastest is None else timings[fastest].median / own.median,
        error=errors.get(label(backend)),
        fastest_error=None if fastest is None else error_of(fastest),
        peak_mib=None if peak is None else peak / 2**20,
        rotations=count,
        values=case.values,
        others={
            name: {
                **{k: v * 1e6 if k != "rounds" else v for k, v in asdict(timing).items()},
                "error": error_of(name),
                "fair": fair(name),
            }
            for name, timing in timings.items()
        },
        failures=failures,
    )


def merged(eager: Row, late: Row) -> Row:
    """A backend's row with the baselines of a second run, which relate to its time in that run.

    The ratio is the smaller of the two runs', each taken beside our own time in that run.
    """
    others = {**eager.others, **{n: t for n, t in late.others.items() if not n.startswith(OURS)}}
    failures = {**eager.failures, **late.failures}
    if late.ratio is not None and (eager.ratio is None or late.ratio < eager.ratio):
        return replace(
            eager,
            fastest=late.fastest,
            fastest_us=late.fastest_us,
            ratio=late.ratio,
            fastest_error=late.fastest_error or eager.others.get(str(late.fastest), {}).get("error"),
            others=others,
            failures=failures,
        )
    return replace(eager, others=others, failures=failures)


def host_microseconds(op: str, device: torch.device, backend: str) -> dict[str, float]:
    """Of a call on a tiny batch, with the op's coefficients on the device and with a key of numbers."""
    case = make(op, 32, 2, torch.float32, device)
    with sk.use_backend(backend):
        found = {"key drawn": clock.host_seconds(lambda i: ours(op, case), device) * 1e6}
        if op == "corrupt":
            a, key = case.arguments, sk.NoiseKey(1)
            keyed = clock.host_seconds(lambda i: sk.corrupt(**a, key=key), device)
            found["key given"] = keyed * 1e6
    return found
