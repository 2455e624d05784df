# SPDX-License-Identifier: Apache-2.0
"""What a kernel needs of a GPU, read from its machine code: no GPU takes part."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from .launch import options, source

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
    found = source(kernel, kinds, constants)
    return triton.compile(found, target=target, options=options(warps, stages, target))


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
    found = (_INSTRUCTION.match(line) for line in code.splitlines())
    count = sum(1 for m in found if m and m[1] != "NOP")
    return Resources(registers, stack, compiled.metadata.shared, count)


def compile_for_amd(launch: Any, architecture: str) -> Any:
    """A launch recorded for "amd" compiled for one of its GPUs ("gfx942")."""
    target = GPUTarget("hip", architecture, 64)
    found = source(launch.kernel, launch.kinds, launch.constants)
    return triton.compile(found, target=target, options=options(launch.warps, launch.stages, target))
