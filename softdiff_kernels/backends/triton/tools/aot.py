# SPDX-License-Identifier: Apache-2.0
"""Every configuration compiled ahead of time, for GPUs that are not here, and held to a gate.

    python -m softdiff_kernels.backends.triton.tools.aot             all of the table, all architectures
    python -m softdiff_kernels.backends.triton.tools.aot --subset    the covering subset that the tests take
    python -m softdiff_kernels.backends.triton.tools.aot --choose    rewrite configs.json by machine code

The gate: no stack (registers that spill would use it), and no more shared memory than the architecture has.
Other options, odd sizes and layouts, which share an entry of the table, are compiled as well, and may use 128
bytes of stack.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from .. import configs
from ..launch import options, source
from .cases import ARCHITECTURES, Case, choices, entry, extra_cases, launches, pixels, subset, table_cases

# Bytes of shared memory that one block may use (CUDA C++ Programming Guide, compute capabilities).
SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}

_INSTRUCTION = re.compile(r"^\s+(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P[T0-9]+ )?([A-Z][A-Z0-9_.]*).*;")


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel: registers a thread, stack bytes (spills), shared bytes, SASS instructions."""

    registers: int
    stack: int
    shared: int
    instructions: int


def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def compile_for(
    kernel: Any, kinds: Sequence[str], constants: Sequence[Any], capability: int, warps: int, stages: int = 2
) -> Any:
    """The kernel compiled for an NVIDIA GPU of a compute capability (90 for sm_90)."""
    target = GPUTarget("cuda", capability, 32)
    program = source(kernel, kinds, constants)
    return triton.compile(program, target=target, options=options(warps, stages, target))


def resources(compiled: Any) -> Resources:
    """Reads the machine code with the tools of Triton's own package."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([_tool(t), *flags, file.name], capture_output=True, text=True, check=True).stdout
            for t, flags in (("cuobjdump", ["--dump-resource-usage"]), ("nvdisasm", ["-c"]))
        )
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK"))  # type: ignore[index]
    matches = (_INSTRUCTION.match(line) for line in code.splitlines())
    count = sum(1 for m in matches if m and m[1] != "NOP")
    return Resources(registers, stack, compiled.metadata.shared, count)


def compile_for_amd(launch: Any, architecture: str) -> Any:
    """A launch recorded for "amd" compiled for one of its GPUs ("gfx942")."""
    target = GPUTarget("hip", architecture, 64)
    program = source(launch.kernel, launch.kinds, launch.constants)
    return triton.compile(program, target=target, options=options(launch.warps, launch.stages, target))


# What an extra case may spill: a few of a thread's 255 registers, in a size or layout that the table does not
# distinguish.
_SMALL_STACK = 128
# What an entry of the table may: nothing, but two registers under Triton 3.6, whose momentum step of large
# planes on sm_80 would otherwise take twice the warps and half as many instructions again.
_TABLE_STACK = 8 if triton.__version__.startswith("3.6.") else 0


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
        limit = SHARED_LIMIT[int(self.case.arch[3:])]
        if self.stack > (_SMALL_STACK if self.case.extra else _TABLE_STACK):
            return f"{self.stack} bytes of stack"
        return f"{self.shared} bytes of shared memory, over {limit}" if self.shared > limit else ""


def measure(case: Case, config: configs.Config | None = None) -> list[Row]:
    """Compiles a case, with its configuration in the table or another, and reads the machine code."""
    rows = []
    with configs.overridden(config):
        recorded = launches(case)
    for launch in recorded:
        name = launch.kernel.__name__
        try:
            compiled = compile_for(
                launch.kernel, launch.kinds, launch.constants, int(case.arch[3:]), launch.warps, launch.stages
            )
        except Exception as error:  # whatever a compiler throws, the other kernels are still of interest
            rows.append(Row(case, name, launch.warps, launch.stages, 0, 0, 0, 0.0, f"{error!r}"[-300:]))
            continue
        r = resources(compiled)
        per_pixel = r.instructions * 32 * launch.warps / pixels(case)
        rows.append(Row(case, name, launch.warps, launch.stages, r.registers, r.stack, r.shared, per_pixel))
    return rows


def compilers(jobs: int) -> ProcessPoolExecutor:
    """Processes of their own: a fork of one that has started OpenMP's threads, or a GPU's, may hang."""
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


def compile_all(cases: list[Case], jobs: int = 2) -> list[Row]:
    """The rows of all cases, in their order."""
    with compilers(jobs) as pool:
        return [row for rows in pool.map(measure, cases, chunksize=2) for row in rows]


def _choose_one(case: Case) -> dict[str, int]:
    passing = []
    for config in choices(case):
        rows = measure(case, config)
        if not any(r.fault() for r in rows):
            # More warps than the work needs repeat operands; the count of instructions shows that.
            passing.append((sum(r.per_pixel for r in rows), config.warps, config))
    if not passing:
        raise SystemExit(f"no configuration passes the gate: {case}")
    return asdict(min(passing, key=lambda f: f[:2])[2])


def choose(jobs: int = 2) -> dict[str, Any]:
    """The table by machine code: for each entry, what passes the gate with fewest instructions a pixel."""
    work = [case for arch in ARCHITECTURES for case in table_cases(arch)]
    table: dict[str, dict[str, Any]] = {arch: {} for arch in ARCHITECTURES}
    with compilers(jobs) as pool:
        for case, config in zip(work, pool.map(_choose_one, work), strict=True):
            table[case.arch][entry(case)] = config
            print(case.arch, entry(case), config, flush=True)
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
        prog="python -m softdiff_kernels.backends.triton.tools.aot", description=__doc__
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
