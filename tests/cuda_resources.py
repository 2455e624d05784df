# SPDX-License-Identifier: Apache-2.0
"""What ptxas says of each CUDA kernel, and the table that it is held to.

python tests/cuda_resources.py build/.../ptxas.log     # writes csrc/cuda/resources.json anew
python tests/cuda_resources.py --current               # exit status 0: the table is of these sources
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "csrc" / "cuda" / "resources.json"

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\d+)'")
_STACK = re.compile(r"(\d+) bytes stack frame")
_USED = re.compile(r"Used (\d+) registers")


def sources(root: Path = ROOT) -> str:
    """A digest of all that the compiled kernels depend on, but for nvcc."""
    files = [*(root / "csrc").glob("*.h"), *(root / "csrc" / "cuda").iterdir()]
    files += [root / "CMakeLists.txt", root / "build_cuda.py"]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.name != TABLE.name and file.is_file()):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def short(demangled: str) -> str:
    """square_kernel<CorruptOp, 64> of a kernel's whole name."""
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
    if sys.argv[1:] == ["--current"]:
        sys.exit(json.loads(TABLE.read_text()).get("sources") != sources())
    kernels = read(Path(sys.argv[1]).read_text())
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+)", version)
    assert release is not None
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in kernels.items())
    begin = f'"nvcc": "{release[1]}", "sources": "{sources()}"'
    TABLE.write_text(f'{{{begin}, "kernels": {{\n{rows}\n}}}}\n')


if __name__ == "__main__":
    main()
