# SPDX-License-Identifier: Apache-2.0
"""Every configuration compiled ahead of time, for GPUs that are not here, and held to a gate.

    python -m softdiff_kernels.backends.triton.aot               all of the table, for all architectures
    python -m softdiff_kernels.backends.triton.aot --subset      the covering subset that the tests take
    python -m softdiff_kernels.backends.triton.aot --choose      rewrites configs.json by machine code alone

The gate: no stack (registers that spill would use it), and no more shared memory than the architecture has.
Other options, odd sizes and layouts, which share an entry of the table, are compiled as well, and may use 128
bytes of stack.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton

from . import configs, ops, resources
from .launch import Launch, recording

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
# One shape for each entry of the table, and more that take other paths through a kernel.
SHAPES = {"256": (16, 16), "512": (16, 32), "1024": (32, 32), "2048": (32, 64), "4096": (64, 64)}
LARGE = (128, 128)
EXTRA_SHAPES = ((8, 8), (28, 28), (30, 34), (33, 63), (96, 160), (256, 256), (512, 512), (100, 70))
# What `--choose` and the tuner try: (warps, stages, bk), by the padded pixels of a plane or "staged".
CHOICES = {
    "256": [(1, 2, 0), (2, 2, 0)],
    "512": [(1, 2, 0), (2, 2, 0)],
    "1024": [(1, 2, 0), (2, 2, 0)],
    "2048": [(2, 2, 0), (4, 2, 0)],
    "4096": [(4, 2, 0), (8, 2, 0)],
    "staged": [(4, 2, 32), (4, 3, 32), (4, 2, 64), (8, 2, 32)],
}


# Ops whose products keep all digits whatever the images are.
ALWAYS_SPLIT = ("soft_score_loss", "dct2", "spectral_mix")


# What an extra case may spill: a few of a thread's 255 registers, in a size or layout that the table does not
# distinguish.
_SMALL_STACK = 128
# What an entry of the table may: nothing, but two registers under Triton 3.6, whose momentum step of large
# planes on sm_80 would otherwise take twice the warps and half as many instructions again.
_TABLE_STACK = 8 if triton.__version__.startswith("3.6.") else 0


@dataclass(frozen=True)
class Case:
    """One kernel to compile: an op with its options at a shape and dtype, for an architecture.

    extra: it is not what an entry of the table was chosen by, but shares it.
    """

    op: str
    height: int
    width: int
    dtype: str
    arch: str
    option: str = ""
    extra: bool = False


def _call(case: Case) -> None:
    """Calls the op as a user would, on a batch that fills a small GPU."""
    dtype = getattr(torch, case.dtype)
    image_dtype = torch.uint8 if case.option == "uint8" else dtype
    x = torch.empty(4, 3, case.height, case.width, dtype=image_dtype)
    z = torch.empty(4, 3, case.height, case.width, dtype=dtype)
    if case.option == "channels_last":
        x, z = (t.contiguous(memory_format=torch.channels_last) for t in (x, z))
    std = torch.ones(4)
    key = [1, 2, 3]
    if case.op == "corrupt":
        residual = case.option == "residual"
        if case.option == "blur":
            ops.blur(x, std, std, 0.1)
        else:
            ops.corrupt(x, std, std, None, 0.0, key, None, None, residual)
    elif case.op == "step":
        rule = case.option or "large"
        ops.step(x, z, std, std, std, std, rule, 0.0, key, None, None)
    elif case.op == "soft_score_loss":
        ops.soft_score_loss(x, z, std, std, 0.0, 1.0, case.option != "forward")
    elif case.op == "dct2":
        ops.dct2(x, case.option == "inverse")
    elif case.op == "spectral_mix":
        mask = torch.empty(case.height, case.width)
        ops.spectral_mix([x, z], [mask, mask], mask, key, None)
    else:
        ops.normal([4, 3, case.height, case.width], key, None, dtype, x.device)


def launches(case: Case) -> list[Launch]:
    """What the case would enqueue on its architecture."""
    with recording() as recorded, _pretending(case.arch):
        _call(case)
    return recorded


class _pretending:
    """Inside, every device is of the given architecture."""

    def __init__(self, arch: str) -> None:
        self.arch = arch

    def __enter__(self) -> None:
        self.before = configs.architecture, ops.FAST
        ops.FAST = self.arch != "amd"
        configs.architecture = lambda device: self.arch  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        configs.architecture, ops.FAST = self.before


@dataclass(frozen=True)
class Row:
    """What came out for one kernel; per_pixel: instructions of one pass over a tile, for a pixel of it."""

    case: Case
    kernel: str
    warps: int
    stages: int
    registers: int
    stack: int
    shared: int
    per_pixel: float
    error: str = ""

    def fault(self) -> str:
        """Why the gate refuses it; empty where it does not."""
        if self.error:
            return self.error
        limit = resources.SHARED_LIMIT[int(self.case.arch[3:])]
        if self.stack > (_SMALL_STACK if self.case.extra else _TABLE_STACK):
            return f"{self.stack} bytes of stack"
        return f"{self.shared} bytes of shared memory, over {limit}" if self.shared > limit else ""


def _pixels(case: Case, launch: Launch) -> int:
    if case.op == "normal":
        return math.prod(ops.NORMALS)
    sizes = configs.sizes_of(case.height, case.width)
    large = max(case.height, case.width) > configs.LARGEST_TILE
    return configs.TILE**2 if large else sizes[2] * sizes[3]


def measure(case: Case, config: configs.Config | None = None) -> list[Row]:
    """Compiles a case, with its configuration in the table or another, and reads the machine code."""
    rows = []
    with configs.overridden(config):
        recorded = launches(case)
    for found in recorded:
        name = found.kernel.__name__
        try:
            compiled = resources.compile_for(
                found.kernel, found.kinds, found.constants, int(case.arch[3:]), found.warps, found.stages
            )
        except Exception as error:  # whatever a compiler throws, the other kernels are still of interest
            rows.append(Row(case, name, found.warps, found.stages, 0, 0, 0, 0.0, f"{error!r}"[-300:]))
            continue
        r = resources.resources(compiled)
        per_pixel = r.instructions * 32 * found.warps / _pixels(case, found)
        rows.append(Row(case, name, found.warps, found.stages, r.registers, r.stack, r.shared, per_pixel))
    return rows


def table_cases(arch: str) -> Iterator[Case]:
    """One case for each entry of the table."""
    for op in configs.OPS:
        for dtype in ("float32", "bfloat16"):
            if op in ALWAYS_SPLIT and dtype == "bfloat16":
                continue  # their products are split whatever the images are
            for height, width in (*SHAPES.values(), LARGE):
                yield Case(op, height, width, dtype, arch)


def extra_cases(arch: str) -> Iterator[Case]:
    """Other paths: odd sizes, options, layouts, dtypes."""
    for case in _extra_cases(arch):
        yield replace(case, extra=True)


def _extra_cases(arch: str) -> Iterator[Case]:
    for height, width in EXTRA_SHAPES:
        yield Case("corrupt", height, width, "float32", arch)
        yield Case("step", height, width, "float32", arch)
    for option in ("residual", "uint8", "channels_last", "blur"):
        for size in (32, 64, 128):
            yield Case("corrupt", size, size, "float32", arch, option)
    for size in (32, 64, 128):
        yield Case("corrupt", size, size, "float16", arch)
        yield Case("step", size, size, "float32", arch, "given")
        yield Case("soft_score_loss", size, size, "float32", arch, "forward")
        yield Case("soft_score_loss", size, size, "bfloat16", arch)
        yield Case("dct2", size, size, "float32", arch, "inverse")
    yield Case("normal", 64, 64, "float32", arch)
    yield Case("normal", 64, 64, "bfloat16", arch)


def subset() -> list[Case]:
    """A few for each architecture, that take every kernel, form and precision between them."""
    cases = []
    for arch in ARCHITECTURES:
        cases += [
            Case("corrupt", 64, 64, "float32", arch),
            Case("step", 32, 32, "float32", arch),
            Case("soft_score_loss", 64, 64, "float32", arch),
            Case("corrupt", 128, 128, "float32", arch),
        ]
    cases += [
        Case("corrupt", 32, 32, "bfloat16", "sm_80"),
        Case("corrupt", 30, 34, "float16", "sm_90"),
        Case("step", 33, 63, "float32", "sm_90"),
        Case("step", 256, 256, "bfloat16", "sm_80"),
        Case("dct2", 64, 64, "float32", "sm_100"),
        Case("dct2", 512, 512, "float32", "sm_80"),
        Case("spectral_mix", 64, 64, "float32", "sm_80"),
        Case("spectral_mix", 128, 128, "float32", "sm_120"),
        Case("soft_score_loss", 96, 160, "float32", "sm_90"),
        Case("corrupt", 64, 64, "float32", "sm_120", "uint8"),
        Case("normal", 64, 64, "float32", "sm_90"),
    ]
    return cases


def compilers(jobs: int) -> ProcessPoolExecutor:
    """Processes of their own: a fork of one that has started OpenMP's threads, or a GPU's, may hang."""
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


def compile_all(cases: list[Case], jobs: int = 2) -> list[Row]:
    """The rows of all cases, in their order."""
    with compilers(jobs) as pool:
        return [row for rows in pool.map(measure, cases, chunksize=2) for row in rows]


def form(case: Case) -> str:
    """The size's name in the table: the padded pixels of a plane that is a tile, or "staged"."""
    return entry(case).rsplit("/", 1)[1]


def entry(case: Case) -> str:
    """The case's key in the table."""
    split = case.dtype == "float32"
    return configs.entry_name(case.op, split, configs.sizes_of(case.height, case.width))


def choices(case: Case) -> list[configs.Config]:
    """What is tried for a case."""
    found = [configs.Config(*choice) for choice in CHOICES[form(case)]]
    if case.op == "spectral_mix" and form(case) == "4096":
        found.append(configs.Config(4, 2, 32))  # staged: two spectra of 64 x 64 overfill sm_80's registers
    return found


def _choose_one(case: Case) -> dict[str, int]:
    found = []
    for config in choices(case):
        rows = measure(case, config)
        if not any(r.fault() for r in rows):
            # More warps than the work needs repeat operands; the count of instructions shows that.
            found.append((sum(r.per_pixel for r in rows), config.warps, config))
    if not found:
        raise SystemExit(f"no configuration passes the gate: {case}")
    return asdict(min(found, key=lambda f: f[:2])[2])


def choose(jobs: int = 2) -> dict[str, Any]:
    """The table by machine code: for each entry, what passes the gate with fewest instructions a pixel."""
    work = [case for arch in ARCHITECTURES for case in table_cases(arch)]
    table: dict[str, dict[str, Any]] = {arch: {} for arch in ARCHITECTURES}
    with compilers(jobs) as pool:
        for case, config in zip(work, pool.map(_choose_one, work), strict=True):
            table[case.arch][entry(case)] = config
            print(case.arch, entry(case), config, flush=True)
    for entries in table.values():
        for name in [n for n in entries if n.split("/")[0] in ALWAYS_SPLIT and "/split/" in n]:
            entries[name.replace("split", "single")] = entries[name]
    # An AMD GPU has wavefronts of 64: the same tiles with half the waves.
    table["amd"] = {
        name: {**config, "warps": max(1, config["warps"] // 2)} for name, config in table["sm_80"].items()
    }
    origin = f"machine code of Triton {triton.__version__}, not measured"
    return {"chosen_by": origin, "architectures": table}


def markdown(rows: list[Row]) -> str:
    """The table of what was compiled."""
    lines = [
        "| architecture | op | px | dtype | kernel | warps | registers | stack | shared | a pixel |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        c = r.case
        op = f"{c.op} ({c.option})" if c.option else c.op
        lines.append(
            f"| {c.arch} | {op} | {c.height} x {c.width} | {c.dtype} | {r.kernel} | {r.warps} "
            f"| {r.registers} | {r.stack} | {r.shared} | {r.per_pixel:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m softdiff_kernels.backends.triton.aot", description=__doc__
    )
    parser.add_argument("--subset", action="store_true", help="the covering subset alone")
    parser.add_argument("--choose", action="store_true", help="rewrite configs.json")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument("--out", type=Path, help="a folder for the table as JSON and Markdown")
    options = parser.parse_args()
    if options.choose:
        configs.TABLE.write_text(json.dumps(choose(options.jobs), indent=1) + "\n")
        return 0
    cases = (
        subset() if options.subset else [c for a in ARCHITECTURES for c in (*table_cases(a), *extra_cases(a))]
    )
    rows = compile_all(cases, options.jobs)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        name = f"triton-{triton.__version__}"
        head = (
            f"Triton {triton.__version__}; compiled ahead of time, not run on a GPU. Shared memory in bytes; "
            "the last column counts SASS instructions of one pass over a tile, for one of its pixels.\n\n"
        )
        (options.out / f"{name}.md").write_text(head + markdown(rows))
        (options.out / f"{name}.json").write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    else:
        print(markdown(rows))
    faults = [(r, r.fault()) for r in rows if r.fault()]
    for row, fault in faults:
        print(f"refused: {row.case}: {fault}", file=sys.stderr)
    print(f"{len(rows)} kernels, {len(faults)} refused", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
