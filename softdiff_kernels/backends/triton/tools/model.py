# SPDX-License-Identifier: Apache-2.0
"""Predicted speed of the Triton and CUDA kernels, from their machine code alone. Nothing runs on a GPU.

    python -m softdiff_kernels.backends.triton.tools.model            print the table
    python -m softdiff_kernels.backends.triton.tools.model --write    keep it: predicted.json, docs
    python -m softdiff_kernels.backends.triton.tools.model --check    is what is kept of these sources?

For each op, size, dtype and architecture: what a pixel takes of each limit of the GPU, and the percent of a
device copy's bandwidth that the limit allows. The CUDA kernels' code is that of a build (`--objects`, by
default the build folder of this checkout, `SOFTDIFF_CUDA=1 pip install -e .`). docs/speed-model.md says how
instructions are counted and what is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton

from . import cases, sass
from .aot import compile_for, compilers
from .cubins import Cubin, CudaModule, Recorded, cuda_module

ROOT = Path(__file__).resolve().parents[4]
PACKAGE = ROOT / "softdiff_kernels"
PAGE = ROOT / "docs" / "speed-model.md"
PREDICTED = PACKAGE / "backends" / "predicted.json"


@dataclass(frozen=True)
class Gpu:
    """A GPU's rates. copy, l2: bytes a second; all others of one multiprocessor and clock: fma, imad, alu,
    xu, fp64 in lanes, mma and wgmma in multiply-adds of float16 (products of a warp, and of a group of four).
    shared: bytes of shared memory a multiprocessor; warps, blocks: at most resident.
    """

    arch: str
    multiprocessors: int
    hertz: float
    copy: float
    l2: float
    fma: int
    imad: int
    fp64: int
    mma: float
    wgmma: float
    shared: int
    warps: int
    blocks: int
    alu: int = 64
    xu: int = 16


# Copy: 4.3 TB/s was observed on an H200; for the others 90 % of the memory's bandwidth by data sheet (H100
# SXM 3.35, A100-80 SXM 2.039, RTX 4090 1.008, B200 8.0, RTX 5090 1.792 TB/s). Clocks: boost, by data sheet.
# Lanes: CUDA C++ Programming Guide, "Arithmetic Instructions". Products: the data sheets' dense float16 rate
# with float32 sums, divided by clock and multiprocessors; Hopper's mma.sync is said to reach 62 % of it
# (arXiv 2402.13499), and B200's is taken to be the same. L2: about 28.5 bytes a clock and multiprocessor, as
# reported for an H100 PCIe (5.7 TB/s), also for A100 and B200; for GeForces about what is reported of a 4090.
# This project has measured none of these.
_L2 = 28.5
GPUS = {
    "H200": Gpu("sm_90", 132, 1.9e9, 4.3e12, _L2 * 132 * 1.9e9, 128, 64, 64, 1270, 2048, 233_472, 64, 32),
    "H100": Gpu(
        "sm_90", 132, 1.83e9, 0.9 * 3.35e12, _L2 * 132 * 1.83e9, 128, 64, 64, 1270, 2048, 233_472, 64, 32
    ),
    "A100": Gpu(
        "sm_80", 108, 1.41e9, 0.9 * 2.039e12, _L2 * 108 * 1.41e9, 64, 64, 32, 1024, 1024, 167_936, 64, 32
    ),
    "RTX 4090": Gpu("sm_89", 128, 2.52e9, 0.9 * 1.008e12, 5.0e12, 128, 64, 2, 256, 256, 102_400, 48, 24),
    "B200": Gpu(
        "sm_100", 148, 1.85e9, 0.9 * 8.0e12, _L2 * 148 * 1.85e9, 128, 64, 64, 1270, 4096, 233_472, 64, 32
    ),
    "RTX 5090": Gpu("sm_120", 170, 2.41e9, 0.9 * 1.792e12, 6.0e12, 128, 64, 2, 256, 256, 102_400, 48, 24),
}  # fmt: skip
OF_ARCH = {gpu.arch: name for name, gpu in reversed(GPUS.items())}  # the first of each architecture
_REGISTERS = 65536  # a multiprocessor
_SLOTS = 4  # instructions issued in a clock, at most

# Of these four slots, what a kernel is expected to fill. Straight-line code has independent work by the
# dozen; products wait for one another; where operands come from L2, all wait. Estimates, none was measured.
ISSUED = {"straight": 3.0, "products": 1.9, "products through L2": 1.0}

OPS = ("corrupt", "step", "soft_score_loss")
SIZES = (32, 64, 128, 256)
DTYPES = ("float32", "bfloat16")
BACKENDS = ("triton", "cuda")
BATCH, CHANNELS = 352, 3  # 1056 planes: whole blocks at 1 to 32 planes a block
_IMAGES_READ = {"corrupt": 1, "dct2": 1, "normal": 0}  # of others 2


@dataclass(frozen=True)
class Kernel:
    """One launch's resources: registers and bytes of stack a thread, shared bytes and warps a block."""

    name: str
    registers: int
    stack: int
    shared: int
    warps: int


@dataclass
class Count:
    """All launches of a call, for a pixel: instructions of each pipe and bytes (`sass.cost`, times 32 lanes).

    open: branches that nothing decided, so that the count is a bound; assumed: decided as for generic images.
    """

    per_pixel: dict[str, float]
    kernels: list[Kernel]
    open: int = 0
    assumed: int = 0


@dataclass(frozen=True)
class Row:
    """A line of the table. limits: percent of a copy that each allows; percent: the least of them and of
    100, limit its name; expected: percent with the slots of `ISSUED`; warps, blocks: resident on a
    multiprocessor.
    """

    op: str
    px: int
    dtype: str
    backend: str
    arch: str
    kernel: str
    instructions: float
    pipes: Mapping[str, float]
    registers: int
    stack: int
    shared: int
    warps: int
    blocks: int
    hbm_bytes: float
    l2_bytes: float
    limits: Mapping[str, int]
    limit: str
    percent: int
    expected: int
    open: int = 0
    assumed: int = 0


# --- From code to counts ----------------------------------------------------------------------------------


def count(recorded: Iterable[Recorded], pixels: int) -> Count:
    """Sums up the launches of one call on `pixels` pixels; of each, the first block is walked."""
    total: Counter[str] = Counter()
    result = Count({}, [])
    weights = []
    for r in recorded:
        code, blocks = r.cubin.code(r.name), r.launch.grid[0] * r.launch.grid[1] * r.launch.grid[2]
        walked = sass.walk(code, r.launch)
        for pipe, much in walked.costs.items():
            total[pipe] += much * blocks
        result.open += len(walked.open)
        result.assumed += len(walked.assumed)
        usage = r.cubin.usage[r.name]
        shared = usage.shared + r.launch.shared
        result.kernels.append(
            Kernel(_short(r.name), usage.registers, usage.stack, shared, -(-r.launch.threads // sass.LANES))
        )
        weights.append(walked.costs["issue"] * blocks)
    order = sorted(range(len(weights)), key=lambda n: -weights[n])
    result.kernels = [result.kernels[n] for n in order]
    result.per_pixel = {
        pipe: much * (1 if pipe in ("global", "stored") else sass.LANES) / pixels
        for pipe, much in total.items()
    }
    return result


def _short(mangled: str) -> str:
    """square_kernel of a whole mangled name."""
    found = re.search(r"\d+([a-z][a-z0-9_]*_kernel)", mangled)
    return found[1] if found else mangled


def _call(case: cases.Case, backend: Any = cases.ops) -> None:
    """Calls a backend on images that nobody touches."""
    shape = BATCH, CHANNELS, case.height, case.width
    x = torch.empty(shape, dtype=torch.uint8 if case.option == "uint8" else getattr(torch, case.dtype))
    z = torch.empty(shape, dtype=getattr(torch, case.dtype))
    cases.call(case, x, z, torch.ones(BATCH), torch.empty(case.height, case.width), backend)


def _packed(kinds: Sequence[str], values: Sequence[Any]) -> bytes:
    """A Triton kernel's parameters as it reads them: naturally aligned, then two pointers of Triton's own."""
    out = b""
    for kind, value in zip(kinds, values, strict=True):
        if kind != "none":
            piece = struct.pack("<f", value) if kind == "fp32" else struct.pack("<Q", value & (1 << 64) - 1)
            out += bytes(-len(out) % len(piece)) + piece
    return out + bytes(-len(out) % 8 + 16)


def triton_count(case: cases.Case) -> Count:
    """Compiles what the Triton backend would launch for the case, and counts."""
    launching = sys.modules[cases.recording.__module__]
    heard: list[tuple[Any, ...]] = []

    def hear(kernel: Any, grid: Any, arguments: Any, constants: Any, warps: int, stages: int = 2) -> None:
        heard.append((kernel, grid, *launching.describe(arguments), constants, warps, stages))

    # As many multiprocessors as half of the planes: a program then has one plane.
    planes = patch.object(launching, "multiprocessors", lambda device: BATCH * CHANNELS // 2)
    launches = patch.object(launching, "launch", hear)
    with planes, launches, cases.recording(), cases._pretending(case.arch):
        _call(case)
    arch = int(case.arch[3:])
    recorded = []
    with tempfile.TemporaryDirectory() as folder:
        for n, (kernel, grid, kinds, values, constants, warps, stages) in enumerate(heard):
            built = compile_for(kernel, kinds, constants, arch, warps, stages)
            path = Path(folder) / f"{n}.cubin"
            path.write_bytes(built.asm["cubin"])
            cubin, name = Cubin(path), built.metadata.name
            launch = sass.Launch(
                (*grid, 1), 32 * warps, _packed(kinds, values), cubin.bases[name], built.metadata.shared
            )
            # cuobjdump counts Triton's shared memory as none: it is given at the launch.
            recorded.append(Recorded(name, cubin, launch))
        return count(recorded, BATCH * CHANNELS * case.height * case.width)


def cuda_count(module: CudaModule, case: cases.Case) -> Count:
    """Counts what the CUDA backend would launch for the case."""
    recorded = module.launches(lambda backend: _call(case, backend))
    return count(recorded, BATCH * CHANNELS * case.height * case.width)


# --- From counts to percent of a copy ---------------------------------------------------------------------


def resident(kernel: Kernel, gpu: Gpu) -> int:
    """Blocks of a kernel on a multiprocessor: registers are given to warps by 256, shared memory with 1 KiB
    more a block."""
    of_warp = -(-kernel.registers // 8) * 8 * sass.LANES
    by_registers = _REGISTERS // of_warp // kernel.warps
    by_shared = gpu.shared // (kernel.shared + 1024)
    return max(0, min(by_registers, by_shared, gpu.warps // kernel.warps, gpu.blocks))


def image_bytes(op: str, dtype: str, option: str = "") -> tuple[float, float]:
    """Bytes a pixel that must be read, and written, as for a device copy."""
    size = 2.0 if dtype in ("bfloat16", "float16") else 4.0
    read = 1.0 if option == "uint8" else size * _IMAGES_READ.get(op, 2)
    return read, 0.0 if option == "forward" else size


def limits(found: Count, hbm_bytes: float, written: float, gpu: Gpu) -> tuple[dict[str, float], float, str]:
    """(percent of a copy by limit, bytes a pixel from L2, which of `ISSUED`)."""
    p = Counter(found.per_pixel)
    # Who stores much more than the result has a scratch. All that it loads is then taken to come from L2.
    through_l2 = p["stored"] > 1.5 * written + 0.5
    l2_bytes = p["global"] if through_l2 else hbm_bytes
    products = p["mma"] + p["wgmma"] + p["other mma"]
    kind = "straight" if not products else "products through L2" if through_l2 else "products"
    clocks = {
        "issue": p["issue"] / sass.LANES / _SLOTS,
        "fma": max((p["fma"] + p["imad"]) / gpu.fma, p["imad"] / gpu.imad),
        "alu": p["alu"] / gpu.alu,
        "mufu": p["xu"] / gpu.xu,
        "fp64": p["fp64"] / gpu.fp64,
        "mma": p["mma"] / gpu.mma + p["wgmma"] / gpu.wgmma,
        # Shared memory and L1 are one memory, 128 bytes a clock.
        "shared": (p["shared"] / sass.LANES * 128 + p["global"]) / 128,
    }
    copy = hbm_bytes / gpu.copy
    rate = gpu.multiprocessors * gpu.hertz
    percent = {name: 100 * copy * rate / c for name, c in clocks.items() if c > 0}
    percent["L2"] = 100 * copy * gpu.l2 / l2_bytes
    return percent, l2_bytes, kind


def row(case: cases.Case, backend: str, found: Count, gpu: Gpu) -> Row:
    read, written = image_bytes(case.op, case.dtype, case.option)
    hbm_bytes = read + written
    percent, l2_bytes, kind = limits(found, hbm_bytes, written, gpu)
    least = min(percent, key=lambda name: percent[name])
    expected = {**percent, "issue": percent["issue"] * ISSUED[kind] / _SLOTS}
    kernel = found.kernels[0]
    blocks = resident(kernel, gpu)
    return Row(
        op=_named(case),
        px=case.height,
        dtype=case.dtype,
        backend=backend,
        arch=case.arch,
        kernel=kernel.name,
        instructions=round(found.per_pixel["issue"], 1),
        pipes={name: round(much, 2) for name, much in sorted(found.per_pixel.items()) if name != "issue"},
        registers=kernel.registers,
        stack=max(k.stack for k in found.kernels),
        shared=kernel.shared,
        warps=blocks * kernel.warps,
        blocks=blocks,
        hbm_bytes=hbm_bytes,
        l2_bytes=round(l2_bytes, 1),
        limits={name: round(value) for name, value in sorted(percent.items())},
        limit=least if percent[least] < 100 else "HBM",
        percent=round(min(100.0, percent[least])),
        expected=round(min(100.0, *expected.values())),
        open=found.open,
        assumed=found.assumed,
    )


def _named(case: cases.Case) -> str:
    """The op as the benchmark names it."""
    if case.option == "blur":
        return "blur"
    name = {"step": "momentum_step"}.get(case.op, case.op)
    return f"{name} ({case.option})" if case.option else name


# --- The table --------------------------------------------------------------------------------------------


def _case(spec: tuple[str, int, str, str]) -> cases.Case:
    op, px, dtype, arch = spec
    name, _, option = op.partition(":")
    return cases.Case(name, px, px, dtype, arch, option)


def table(
    work: Sequence[cases.Case],
    backends: Sequence[str],
    objects: Path | None,
    jobs: int,
    gpu: str | None = None,
) -> list[Row]:
    """The rows of all cases, for the first GPU of each architecture or the named one."""
    rows = []

    def add(case: cases.Case, backend: str, found: Count) -> None:
        rows.append(row(case, backend, found, GPUS[gpu or OF_ARCH[case.arch]]))
        print(line(rows[-1]), flush=True)

    if "triton" in backends:
        with compilers(jobs) as pool:
            for case, found in zip(work, pool.map(triton_count, work), strict=True):
                add(case, "triton", found)
    if "cuda" in backends:
        for arch in dict.fromkeys(case.arch for case in work):
            with cuda_module(objects or built_objects(), arch) as module:
                for case in work:
                    if case.arch == arch:
                        add(case, "cuda", cuda_count(module, case))
    return rows


def built_objects() -> Path:
    """The objects of this checkout's own build; they must be newer than the sources."""
    found = sorted(ROOT.glob("build/cuda-*/csrc/cuda"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise SystemExit(
            "no build of the CUDA kernels: make one (docs/building.md), or give --objects FOLDER"
        )
    objects = list(found[-1].rglob("*.o"))
    sources = [file for file in _cuda_sources() if file.suffix in (".cu", ".h")]
    newest = max(sources, key=lambda p: p.stat().st_mtime)
    if min(p.stat().st_mtime for p in objects if p.name.endswith(".cu.o")) < newest.stat().st_mtime:
        print(f"model: {found[-1]} has objects older than {newest}: build anew first", file=sys.stderr)
    return found[-1]


HEAD = (
    "op", "px", "dtype", "backend", "arch", "instructions", "fma", "alu", "mufu", "mma", "shared", "global B",
    "registers", "warps", "blocks", "HBM B", "L2 B", "limit", "percent", "expected",
)  # fmt: skip


def _cells(r: Row) -> list[str]:
    p = Counter(r.pipes)
    numbers = [p["fma"] + p["imad"], p["alu"], p["xu"], p["mma"] + p["wgmma"], p["shared"], p["global"]]
    return [
        r.op, str(r.px), r.dtype, r.backend, r.arch, f"{r.instructions:.1f}{'?' if r.open else ''}",
        *(f"{n:.0f}" if n >= 10 else f"{n:.1f}" for n in numbers),
        f"{r.registers}{' +stack' if r.stack else ''}", str(r.warps), str(r.blocks), f"{r.hbm_bytes:g}",
        f"{r.l2_bytes:g}", r.limit, str(r.percent), str(r.expected),
    ]  # fmt: skip


def line(r: Row) -> str:
    return "| " + " | ".join(_cells(r)) + " |"


def markdown(rows: Iterable[Row]) -> str:
    return "\n".join(["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|", *map(line, rows)]) + "\n"


def _cuda_sources() -> list[Path]:
    """What the CUDA kernels are compiled from, as tests/cuda_resources.py has it."""
    files = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc" / "cuda").glob("*")]
    return sorted(f for f in files if f.is_file() and f.name != "resources.json")


def _triton_sources() -> list[Path]:
    folder = PACKAGE / "backends" / "triton"
    return sorted([*folder.glob("*.py"), *(folder / "kernels").glob("*.py"), folder / "configs.json"])


def digests() -> dict[str, str]:
    """Of the sources of each backend's kernels; without csrc, as in an installed package, Triton's alone."""
    found = {"triton": _triton_sources(), "cuda": _cuda_sources()}
    return {
        name: hashlib.sha256(
            b"".join(f.relative_to(ROOT).as_posix().encode() + b"\n" + f.read_bytes() for f in files)
        ).hexdigest()[:16]
        for name, files in found.items()
        if files
    }


def check() -> list[str]:
    """Why predicted.json is not of the present sources; empty where it is."""
    kept = json.loads(PREDICTED.read_text())
    return [
        f"predicted.json is of other sources of the {name} kernels: run this command with --write"
        for name, digest in digests().items()
        if kept["sources"].get(name) != digest
    ]


_MARKS = "<!-- the table of predicted.json -->", "<!-- end of the table -->"


def write(rows: Sequence[Row], page: Path = PAGE) -> None:
    """predicted.json, and the table between its marks in the documentation's page, where that is here.

    What the file has of other cases stays there, if the sources of that backend's kernels are the same.
    """
    merged = {(r.op, r.px, r.dtype, r.backend, r.arch): r for r in rows}
    if PREDICTED.is_file():
        kept, present = json.loads(PREDICTED.read_text()), digests()
        for fields in kept["rows"]:
            old = Row(**fields)
            if kept["sources"].get(old.backend) == present.get(old.backend):
                merged.setdefault((old.op, old.px, old.dtype, old.backend, old.arch), old)
    everything = [merged[key] for key in sorted(merged, key=_place)]
    head = {
        "by": f"machine code of Triton {triton.__version__} and nvcc, not measured",
        "gpus": {arch: name for arch, name in OF_ARCH.items() if any(r.arch == arch for r in everything)},
        "sources": digests(),
    }
    lines = ",\n".join("  " + json.dumps(asdict(r)) for r in everything)
    PREDICTED.write_text(json.dumps(head)[:-1] + ',\n "rows": [\n' + lines + "\n ]}\n")
    if page.is_file():
        before, _, rest = page.read_text().partition(_MARKS[0])
        after = rest.partition(_MARKS[1])[2]
        page.write_text(f"{before}{_MARKS[0]}\n\n{markdown(everything)}\n{_MARKS[1]}{after}")


def _place(key: tuple[str, int, str, str, str]) -> tuple[Any, ...]:
    """A row's place: by architecture, op, size, dtype, with float32 and Triton first."""
    op, px, dtype, backend, arch = key
    return int(arch[3:]), op, px, dtype != "float32", dtype, backend != "triton"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m softdiff_kernels.backends.triton.tools.model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ops", nargs="+", default=OPS, help="corrupt:blur, corrupt:uint8 and so on, too")
    parser.add_argument("--px", nargs="+", type=int, default=SIZES)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--archs", nargs="+", default=["sm_90"], choices=list(OF_ARCH))
    parser.add_argument("--gpu", choices=list(GPUS), help="in place of the architecture's first")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--objects", type=Path, help="a folder with the objects of csrc/cuda")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument("--write", action="store_true", help="predicted.json and the documentation's table")
    parser.add_argument("--check", action="store_true", help="is predicted.json of these sources?")
    chosen = parser.parse_args()
    if chosen.check:
        problems = check()
        print("\n".join(problems) or "predicted.json is of these sources")
        return 1 if problems else 0
    work = [
        _case((op, px, dtype, arch))
        for arch in chosen.archs
        for op in chosen.ops
        for px in chosen.px
        for dtype in chosen.dtypes
    ]
    print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|", flush=True)
    rows = table(work, chosen.backends, chosen.objects, chosen.jobs, chosen.gpu)
    if chosen.write:
        write(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
