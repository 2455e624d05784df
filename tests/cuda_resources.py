# SPDX-License-Identifier: Apache-2.0
"""What ptxas says of each CUDA kernel, and the table that it is held to.

    python tests/cuda_resources.py build/.../ptxas.log     # writes csrc/cuda/resources.json anew
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).resolve().parent.parent / "csrc" / "cuda" / "resources.json"

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\d+)'")
_STACK = re.compile(r"(\d+) bytes stack frame")
_USED = re.compile(r"Used (\d+) registers")


def short(demangled: str) -> str:
    """plane_kernel<FilterOp, 2> of a kernel's whole name."""
    name = re.sub(r"\(anonymous namespace\)::|softdiff::cuda::|softdiff::|\((?:int|bool)\)", "", demangled)
    name = re.sub(r"^void |\(.*$", "", name).replace("> >", ">>")
    return re.sub(r"\bfalse\b", "rows", re.sub(r"\btrue\b", "columns", name))


def read(log: str) -> dict[str, dict[str, list[int]]]:
    """{kernel: {architecture: [registers, bytes of stack]}} of ptxas's report."""
    found: list[tuple[str, str, int, int]] = []
    mangled, arch, stack = "", "", 0
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            mangled, arch = entry.groups()
        elif frame := _STACK.search(line):
            stack = int(frame[1])
        elif used := _USED.search(line):
            found.append((mangled, arch, int(used[1]), stack))
    names = [name for name, *_ in found]
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    result: dict[str, dict[str, list[int]]] = {}
    for name, (_, arch, registers, stack) in zip(plain.stdout.splitlines(), found, strict=True):
        for number, way in enumerate(("filter", "forward", "inverse")):
            name = name.replace(f"(softdiff::cuda::Shift){number}", way)
        result.setdefault(short(name), {})[arch] = [registers, stack]
    return dict(sorted(result.items()))


def main() -> None:
    kernels = read(Path(sys.argv[1]).read_text())
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+)", version)
    assert release is not None
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in kernels.items())
    TABLE.write_text(f'{{"nvcc": "{release[1]}", "kernels": {{\n{rows}\n}}}}\n')


if __name__ == "__main__":
    main()
