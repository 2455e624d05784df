# SPDX-License-Identifier: Apache-2.0
"""Compiles the CUDA module for the GPU that is here, with nvcc and its host compiler alone.

python -m benchmarks.gpu.build --into FOLDER --out JSON [--seconds N] [--arch 90]

The options are those of csrc/cuda/CMakeLists.txt. pybind11's headers are taken from the package or from
torch, which brings them along; without either, without nvcc or without Python's headers the part is absent
and says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import build_cuda
from build_cuda import CannotBuild

from . import overlay
from .parts import tail, write
from .tools import find

_HOST = ["-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler=-fPIC,-fvisibility=hidden"]
# Lines for the sanitizer and the profiler; the code is the same.
_DEVICE = ["-lineinfo", "--resource-usage"]
_PROBE = """
import torch, softdiff_kernels as sk
with sk.use_backend("cuda"):
    x = torch.rand(2, 3, 40, 24, device="cuda")
    error = (sk.dct2(x) - sk.reference.dct2(x)).abs().max()
assert float(error) < 1e-4, f"dct2 is {float(error):.1e} off"
print(sk.backends()["cuda"].reason)
"""


def headers(scratch: Path) -> Path:
    """A folder with pybind11's headers."""
    found = importlib.util.find_spec("pybind11")
    if found is not None and found.origin is not None:
        folder = Path(found.origin).parent / "include"
        if (folder / "pybind11" / "pybind11.h").exists():
            return folder
    brought = importlib.util.find_spec("torch")
    if brought is not None and brought.origin is not None:
        folder = Path(brought.origin).parent / "include" / "pybind11"
        if (folder / "pybind11.h").exists():
            # Alone, since torch's other headers have no place here.
            (scratch / "include").mkdir(exist_ok=True)
            (scratch / "include" / "pybind11").symlink_to(folder)
            return scratch / "include"
    raise build_cuda.Absent("pybind11's headers are neither installed nor among torch's")


def toolkit() -> build_cuda.Toolkit:
    """nvcc as the package's build finds it, or else where CUDA's packages put it."""
    environ = dict(os.environ)
    known = find("nvcc")
    if known is not None and not shutil.which("nvcc"):
        environ["PATH"] = os.pathsep.join((str(Path(known).parent), environ.get("PATH", "")))
    return build_cuda.find_toolkit(environ)


def commands(
    tools: build_cuda.Toolkit, arch: int, include: Path, scratch: Path, root: Path = overlay.ROOT
) -> tuple[list[list[str]], list[str], Path]:
    """(what compiles each source, what links them, the module)."""
    folder = root / "csrc" / "cuda"
    python = Path(sysconfig.get_path("include"))
    if not (python / "Python.h").exists():
        raise build_cuda.Absent(f"Python's header {python / 'Python.h'} is not here")
    options = [*_HOST, "-I", str(root / "csrc"), "-isystem", str(include), "-isystem", str(python)]
    gpu = [*_DEVICE, f"-gencode=arch=compute_{arch},code=[sm_{arch},compute_{arch}]"]
    gpu += [f"-DSOFTDIFF_CUDA_ARCHS={arch}", f"-DSOFTDIFF_CUDA_PTX={arch}"]
    # The largest first: they take as long as all others together.
    sources = sorted((*folder.glob("*.cu"), *folder.glob("*.cpp")), key=lambda p: -p.stat().st_size)
    objects = [scratch / f"{source.name}.o" for source in sources]
    each = [
        [tools.nvcc, *options, *(gpu if source.suffix == ".cu" else []), "-c", str(source), "-o", str(target)]
        for source, target in zip(sources, objects, strict=True)
    ]
    # Nothing but the entry point: torch has a CUDA runtime of its own under the same names.
    exports = scratch / "exports.map"
    exports.write_text("{ global: PyInit__cuda; local: *; };\n")
    module = scratch / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    link = [tools.nvcc, "-shared", "--cudart=static", f"-Xlinker=--version-script={exports}"]
    return each, [*link, *map(str, objects), "-o", str(module)], module


def compile_all(each: Sequence[Sequence[str]], link: Sequence[str], workers: int) -> None:
    """Runs the compilers, as many at once; CannotBuild with the first error."""

    def one(command: Sequence[str]) -> None:
        start = time.monotonic()
        done = subprocess.run(list(command), capture_output=True, text=True, errors="replace")
        said = done.stdout + done.stderr
        print(f"{command[-1]}: {time.monotonic() - start:.1f} s\n{said}", flush=True)
        if done.returncode:
            wrong = [line for line in said.splitlines() if "error" in line]
            raise CannotBuild(f"the CUDA kernels do not compile: {wrong[0] if wrong else tail(said)}")

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, each))
    one(link)


def architecture() -> int:
    """That of the first GPU, as 90."""
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    return 10 * major + minor


def probe(into: Path) -> tuple[int, str]:
    """(exit status, the backend's reason) of a process that uses the module."""
    path = os.pathsep.join((str(into), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-c", _PROBE]
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=into, env=environ, capture_output=True, text=True)
    print(done.stdout + done.stderr, flush=True)
    return done.returncode, tail(done.stdout if done.returncode == 0 else done.stderr, 1)


def place(into: Path, arch: int | None, workers: int) -> dict[str, Any]:
    """Puts the module into the package's folder of links; how that ended, for the report."""
    ready = overlay.built()
    target = into / overlay.PACKAGE
    if ready is not None:
        shutil.copy2(ready, target / ready.name)
        code, said = probe(into)
        if code == 0:
            return {"status": "ok", "detail": f"built before: {said}", "nvcc": ""}
        (target / ready.name).unlink()
        print(f"{ready.name}, built before, does not work here", flush=True)
    try:
        tools = toolkit()
        chosen = architecture() if arch is None else arch
        build_cuda.parse_archs(str(chosen), tools)
        with tempfile.TemporaryDirectory() as folder:
            each, link, module = commands(tools, chosen, headers(Path(folder)), Path(folder))
            compile_all(each, link, workers)
            shutil.copy2(module, target / module.name)
    except CannotBuild as why:
        return {"status": "absent" if isinstance(why, build_cuda.Absent) else "failed", "detail": str(why)}
    about = {"nvcc": tools.release, "arch": chosen}
    if arch is not None:
        return {"status": "ok", "detail": f"compiled for sm_{chosen}, not tried", **about}
    code, said = probe(into)
    return {"status": "failed" if code else "ok", "detail": said, **about}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, required=True, help="what `overlay.make` made")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=200.0, help="taken for the other parts' sake")
    parser.add_argument("--arch", type=int, help="compile for this one, as 90, and try nothing")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    args = parser.parse_args(argv)
    write(args.out, place(args.into, args.arch, args.workers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
