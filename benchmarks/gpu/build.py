# SPDX-License-Identifier: Apache-2.0
"""Builds the CUDA module for the GPU that is here and puts it into a copy of the package made of links.

`build_modules.py` compiles it, as for an installation. The sources stay as they are: the module lies in
softdiff_kernels/ of a folder, beside links to the package's files, and whoever has that folder first on the
path imports them. Without nvcc, a C++ compiler or the headers of Python or pybind11 the part is absent and
says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import build_cuda
import build_modules
from build_cuda import CannotBuild

from .parts import ROOT, find, tail

PACKAGE = "softdiff_kernels"
_NOT_LINKED = ("_cuda.", "__pycache__")  # compiled: not part of the sources
_PROBE = """
import torch, softdiff_kernels as sk
with sk.use_backend("cuda"):
    x = torch.rand(2, 3, 40, 24, device="cuda")
    error = (sk.dct2(x) - sk.reference.dct2(x)).abs().max()
assert float(error) < 1e-4, f"dct2 is {float(error):.1e} off"
print(sk.backends()["cuda"].reason)
"""


def link_package(folder: Path, root: Path = ROOT) -> Path:
    """Links to the package's files in folder/softdiff_kernels, where a compiled module may be added."""
    place = folder / PACKAGE
    place.mkdir(parents=True, exist_ok=True)
    for entry in sorted((root / PACKAGE).iterdir()):
        if not entry.name.startswith(_NOT_LINKED):
            (place / entry.name).symlink_to(entry)
    return place


def toolkit() -> build_cuda.Toolkit:
    """nvcc as the package's build finds it, or else where CUDA's packages put it."""
    path = find("nvcc")
    folders = [] if path is None else [str(Path(path).parent)]
    path_variable = os.pathsep.join([os.environ.get("PATH", ""), *folders])
    return build_cuda.find_toolkit({**os.environ, "PATH": path_variable})


def architecture() -> int:
    """That of the first GPU, as 90: by nvidia-smi, which answers long before torch is imported."""
    command = ["nvidia-smi", "--id=0", "--query-gpu=compute_cap", "--format=csv,noheader"]
    if "CUDA_VISIBLE_DEVICES" not in os.environ:  # which nvidia-smi does not follow
        with suppress(OSError, subprocess.SubprocessError, ValueError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            return int(done.stdout.strip().replace(".", ""))
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    return 10 * major + minor


def probe(into: Path) -> tuple[int, str]:
    """(exit status, the backend's reason) of a process that uses the module."""
    path = os.pathsep.join((str(into), os.environ.get("PYTHONPATH", "")))
    environ = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", _PROBE]
    try:
        done = subprocess.run(command, cwd=into, env=environ, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return 1, "dct2 did not end within 60 s"
    print(done.stdout + done.stderr, flush=True)
    return done.returncode, tail(done.stdout if done.returncode == 0 else done.stderr, 1)


def place(into: Path, arch: int | None, scratch: Path) -> dict[str, Any]:
    """Puts the module into the linked package; how that ended, for the report.

    arch: compile for this architecture, as 90, and try nothing; None: for the GPU that is here.
    """
    # Line numbers for the sanitizer and the profiler; the machine code is the same.
    os.environ["CUDAFLAGS"] = f"{os.environ.get('CUDAFLAGS', '')} -lineinfo".strip()
    try:
        tools, chosen = toolkit(), architecture() if arch is None else arch
        archs = build_cuda.parse_archs(str(chosen), tools)
        module = build_modules.compile_cuda(tools, archs, scratch / "build")
        shutil.copy2(module, into / PACKAGE / module.name)
    except CannotBuild as why:
        missing = isinstance(why, (build_cuda.Absent, build_modules.ToolMissing))
        return {"status": "absent" if missing else "failed", "detail": str(why)}
    code, message = (0, f"compiled for sm_{chosen}, not tried") if arch else probe(into)
    return {"status": "failed" if code else "ok", "detail": message, "nvcc": tools.release, "arch": chosen}
