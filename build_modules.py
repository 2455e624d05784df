# SPDX-License-Identifier: Apache-2.0
"""Compiles softdiff_kernels._native and ._cuda, for setup.py and for the GPU report.

CMake and ninja drive both builds. Where CMake, ninja or pybind11 is missing, nvcc alone compiles the CUDA
module (`compile_by_nvcc`), with the options of csrc/cuda/CMakeLists.txt.

    SOFTDIFF_WERROR=1    compiler warnings are errors
    MAX_JOBS=n           compile n files at once, in place of the bound from cores and memory

Needs the standard library alone: no setuptools, torch or numpy.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build_cuda
from build_cuda import CannotBuild, Toolkit

ROOT = Path(__file__).resolve().parent
COMPILERS = ("c++", "g++", "clang++")
# The largest file took GCC 12 0.4 GiB; the rest is room for other compilers.
BYTES_PER_JOB = 1 << 30
# Variables whose change asks for a fresh build folder.
REMEMBERED = ("CXX", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS", "CUDAHOSTCXX", "CUDAFLAGS", "NVCC_APPEND_FLAGS")


class ToolMissing(CannotBuild):
    """Something that the build needs is not installed here."""


def flag(name: str) -> bool:
    """An on/off environment variable; ValueError for any other value."""
    value = os.environ.get(name, "").lower()
    if value not in ("", "0", "1", "off", "on", "false", "true"):
        raise ValueError(f"{name} must be 0 or 1, got {value!r}")
    return value in ("1", "on", "true")


def available_memory() -> int | None:
    """Bytes that new processes may use, from the machine and from the control group; None where unknown."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(limits) if limits else None


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs(cores: int, memory: int | None, requested: str | None, each: int = BYTES_PER_JOB) -> int:
    """How many files to compile at once: what was asked for, else bounded by cores and by memory.

    Raises ValueError if `requested` (MAX_JOBS) is no whole number from 1 up.
    """
    if requested:
        if not requested.isdecimal() or int(requested) < 1:
            raise ValueError(f"MAX_JOBS must be a whole number from 1 up, got {requested!r}")
        return int(requested)
    if memory is None:
        return max(1, cores)
    return max(1, min(cores, memory // each))


def jobs_here(each: int) -> int:
    """`jobs` on this machine."""
    return jobs(usable_cores(), available_memory(), os.environ.get("MAX_JOBS"), each)


def find_tool(name: str, folder_attribute: str) -> str:
    """Path of cmake or ninja that runs: from its Python package if installed, else from PATH."""
    candidates = []
    with contextlib.suppress(ImportError, AttributeError):
        # The package's own binary: a launcher script on PATH may belong to an environment hidden here.
        candidates.append(shutil.which(name, path=getattr(importlib.import_module(name), folder_attribute)))
    candidates.append(shutil.which(name))
    for path in filter(None, candidates):
        try:
            subprocess.run([path, "--version"], check=True, capture_output=True)
            return path
        except (OSError, subprocess.CalledProcessError):
            continue
    raise ToolMissing(f"no working {name} was found (pip install {name})")


def check_compiler() -> None:
    """Raises ToolMissing if there is no C++ compiler, or no Python header to compile against."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen and not shutil.which(chosen[0]):
        raise ToolMissing(f"the C++ compiler that CXX names was not found ({chosen[0]})")
    if not chosen and not any(map(shutil.which, COMPILERS)):
        tried = ", ".join(COMPILERS)
        raise ToolMissing(f"no C++ compiler was found (looked for {tried}; CXX may name another)")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise ToolMissing(f"Python's header {header} was not found (Debian, Ubuntu: apt install python3-dev)")


def run(command: Sequence[str], what: str) -> None:
    """Runs a command and passes its output on line by line; CannotBuild with the first error on failure."""
    print(shlex.join(command), flush=True)
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise CannotBuild(f"{what} failed: {first_error(''.join(lines))}")


def first_error(output: str) -> str:
    """The first message in a build's output that tells what went wrong."""

    def belongs(line: str) -> bool:
        return not line.startswith(("--", "CMake", "Call Stack"))

    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if line.startswith("CMake Error"):
            # The message is wrapped over the lines after the one that gives its place.
            message = list(itertools.takewhile(belongs, lines[number + 1 :]))
            return " ".join(message[:3]).rstrip(".") or line
        if "error:" in line:
            return line
    return lines[-1] if lines else "no output"


def build_folder(name: str) -> Path:
    """Where a module of this Python is compiled, so that a second build compiles what changed."""
    return ROOT / "build" / f"{name[1:]}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"


def compile_by_cmake(name: str, options: Sequence[str], each: int, folder: Path) -> Path:
    """Builds a module in a folder, with `each` bytes of memory for a job; returns the module's file."""
    check_compiler()
    cmake, ninja = find_tool("cmake", "CMAKE_BIN_DIR"), find_tool("ninja", "BIN_DIR")
    try:
        pybind11_folder = importlib.import_module("pybind11").get_cmake_dir()
    except ImportError:
        raise ToolMissing("pybind11 was not found (pip install pybind11)") from None

    values = [os.environ.get(variable) for variable in REMEMBERED]
    settings = json.dumps([str(ROOT), sys.executable, *options, *values])
    stamp = folder / "settings.json"
    # CMake would keep the old compiler and flags from its cache.
    if folder.exists() and not (stamp.exists() and stamp.read_text() == settings):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(settings)

    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11_folder}"]
    configure += ["-DPYBIND11_FINDPYTHON=ON", f"-DSOFTDIFF_WERROR={int(flag('SOFTDIFF_WERROR'))}"]
    configure += ["-DCMAKE_BUILD_TYPE=Release", *options, *shlex.split(os.environ.get("CMAKE_ARGS", ""))]
    run(configure, f"configuring the build of {name}")
    command = [cmake, "--build", str(folder), "--target", name, "--parallel", str(jobs_here(each))]
    run(command, f"compiling the sources of {name}")

    built = list((folder / "out").glob(f"{name}.*"))
    if len(built) != 1:
        raise CannotBuild(f"the build made {len(built)} modules in {folder / 'out'}, expected one")
    return built[0]


def compile_native() -> tuple[Path, str]:
    """Builds _native: (the module's file, the compiler's name and version)."""
    folder = build_folder("_native")
    module = compile_by_cmake("_native", [], BYTES_PER_JOB, folder)
    return module, (folder / "compiler.txt").read_text()


def compile_cuda(toolkit: Toolkit, archs: Sequence[int], folder: Path | None = None) -> Path:
    """Builds _cuda for some architectures (90 stands for sm_90, oldest first) and writes ptxas.log beside it.

    Returns the module's file. Raises ToolMissing if a tool is missing that both ways need, CannotBuild if the
    kernels do not compile, ValueError for a bad switch.
    """
    folder = build_folder("_cuda") if folder is None else folder
    check_compiler()
    options = ["-DSOFTDIFF_CUDA=ON", f"-DSOFTDIFF_CUDA_ARCHS={';'.join(map(str, archs))}"]
    options.append(f"-DCMAKE_CUDA_COMPILER={toolkit.nvcc}")
    try:
        module = compile_by_cmake("_cuda", options, build_cuda.BYTES_PER_JOB, folder)
    except ToolMissing as missing:
        print(f"softdiff_kernels: nvcc alone compiles the CUDA kernels, because {missing}", flush=True)
        module = compile_by_nvcc(toolkit, archs, folder)
    build_cuda.gather_resources(folder)
    return module


def compile_by_nvcc(toolkit: Toolkit, archs: Sequence[int], folder: Path) -> Path:
    """Builds _cuda by nvcc and its host compiler alone; returns the module's file."""
    folder.mkdir(parents=True, exist_ok=True)
    each, link, module = nvcc_commands(toolkit, archs, pybind11_headers(folder), folder)

    def compile_one(command: Sequence[str]) -> None:
        run(command, f"compiling {Path(command[-3]).name}")

    with ThreadPoolExecutor(jobs_here(build_cuda.BYTES_PER_JOB)) as pool:
        list(pool.map(compile_one, each))
    run(link, "linking _cuda")
    return module


def pybind11_headers(folder: Path) -> Path:
    """A folder with pybind11's headers: the package's own, else torch's copy, linked from `folder`."""
    for name in ("pybind11", "torch"):
        package = importlib.util.find_spec(name)
        if package is None or package.origin is None:
            continue
        include = Path(package.origin).parent / "include"
        if not (include / "pybind11" / "pybind11.h").exists():
            continue
        if name == "pybind11":
            return include
        # Linked alone, since torch's other headers must not be found.
        alone = folder / "include"
        alone.mkdir(exist_ok=True)
        if not (alone / "pybind11").exists():
            (alone / "pybind11").symlink_to(include / "pybind11")
        return alone
    raise ToolMissing("pybind11's headers were not found, neither its own nor torch's (pip install pybind11)")


def nvcc_commands(
    toolkit: Toolkit, archs: Sequence[int], include: Path, folder: Path
) -> tuple[list[list[str]], list[str], Path]:
    """(a command for each source, the command that links, the module's file), all within `folder`.

    A source's command ends in `-c SOURCE -o OBJECT`, so that the source is the last word but two.
    """
    sources = ROOT / "csrc" / "cuda"
    options = ["-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
    options += ["-I", str(ROOT / "csrc"), "-isystem", str(include), "-isystem", sysconfig.get_path("include")]
    if os.environ.get("CUDAHOSTCXX"):
        options += ["-ccbin", os.environ["CUDAHOSTCXX"]]
    if flag("SOFTDIFF_WERROR"):
        options.append("-Werror=all-warnings")
    gpu = ["--resource-usage", *shlex.split(os.environ.get("CUDAFLAGS", ""))]
    gpu += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    gpu.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    if toolkit.version >= (13, 0):
        gpu.append("--compress-mode=size")
    # nvcc takes a plain comma for the end of the definition.
    gpu += ["-DSOFTDIFF_CUDA_ARCHS=" + "\\,".join(map(str, archs)), f"-DSOFTDIFF_CUDA_PTX={archs[-1]}"]
    launcher = [sys.executable, str(sources / "ptxas_log.py")]

    # The largest first: they take as long as all others together.
    files = sorted((*sources.glob("*.cu"), *sources.glob("*.cpp")), key=lambda file: -file.stat().st_size)
    each, objects = [], []
    for file in files:
        target = str(folder / f"{file.name}.o")
        words = (
            [*launcher, toolkit.nvcc, *options, *gpu] if file.suffix == ".cu" else [toolkit.nvcc, *options]
        )
        each.append([*words, "-c", str(file), "-o", target])
        objects.append(target)
    # Nothing but the entry point is exported: torch has a CUDA runtime of its own under the same names.
    exports = folder / "exports.map"
    exports.write_text("{ global: PyInit__cuda; local: *; };\n")
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    link = [toolkit.nvcc, "-shared", "--cudart=static", "-Xlinker=--strip-all"]
    link.append(f"-Xlinker=--version-script={exports}")
    return each, [*link, *objects, "-o", str(module)], module
