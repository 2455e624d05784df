# SPDX-License-Identifier: Apache-2.0
"""Drives CMake and ninja to build softdiff_kernels._native and ._cuda; everything else is in pyproject.toml.

Whether a module can be built is only known after trying, so every build goes through `BuildModules`: it
builds each, or it leaves it out and says in one sentence what is missing and what that costs. Without either
the package is pure Python. The outcome is written to softdiff_kernels/_build.json, which is where
`sk.backends()` finds its reasons.

    SOFTDIFF_BUILD=auto|native|python   auto: build if possible; native: fail if not; python: never build
    SOFTDIFF_CUDA=auto|0|1              the same for the CUDA kernels, see build_cuda.py
    SOFTDIFF_WERROR=1                   compiler warnings are errors
    SOFTDIFF_LOCAL_VERSION=cu130        makes the version 0.1.0+cu130
    MAX_JOBS=n                          compile n files at once, in place of the bound from cores and memory

Needs neither torch nor numpy.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info
from setuptools.errors import CompileError, SetupError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # a build backend does not put it there

import build_cuda  # noqa: E402
from build_cuda import CannotBuild  # noqa: E402

MODES = ("auto", "native", "python")
COMPILERS = ("c++", "g++", "clang++")
# The largest file took GCC 12 0.4 GiB; the rest is room for other compilers.
BYTES_PER_JOB = 1 << 30
# Variables whose change asks for a fresh build folder.
REMEMBERED = ("CXX", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS", "CUDAHOSTCXX", "CUDAFLAGS", "NVCC_APPEND_FLAGS")
LOST = (
    "Every operation still works, on the slower plain PyTorch reference; to get the fused CPU kernels, mend "
    "that and install again (SOFTDIFF_BUILD=native makes this an error, SOFTDIFF_BUILD=python hides it)."
)


def build_mode() -> str:
    """The value of SOFTDIFF_BUILD, checked."""
    mode = os.environ.get("SOFTDIFF_BUILD") or "auto"
    if mode not in MODES:
        raise SetupError(f"SOFTDIFF_BUILD must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


def flag(name: str) -> bool:
    """An on/off environment variable, checked."""
    value = os.environ.get(name, "").lower()
    if value not in ("", "0", "1", "off", "on", "false", "true"):
        raise SetupError(f"{name} must be 0 or 1, got {value!r}")
    return value in ("1", "on", "true")


def notify(sentence: str) -> None:
    """Print to stderr, and to the terminal if that is another: pip hides what a successful build prints."""
    print(sentence, file=sys.stderr, flush=True)
    if sys.stderr.isatty() or os.name != "posix":
        return
    try:
        terminal = os.open("/dev/tty", os.O_WRONLY | os.O_NOCTTY)
    except OSError:
        return
    try:
        # A background job that writes to its terminal can be stopped for it, and the install would hang.
        if os.tcgetpgrp(terminal) == os.getpgrp():
            os.write(terminal, f"\r\n{sentence}\r\n".encode())
    except OSError:
        pass
    finally:
        os.close(terminal)


def available_memory() -> int | None:
    """Bytes that new processes may use, from the machine and from the control group; None where unknown."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found) if found else None


def jobs(cores: int, memory: int | None, requested: str | None, each: int = BYTES_PER_JOB) -> int:
    """How many files to compile at once: what was asked for, else bounded by cores and by memory."""
    if requested:
        if not requested.isdecimal() or int(requested) < 1:
            raise SetupError(f"MAX_JOBS must be a whole number from 1 up, got {requested!r}")
        return int(requested)
    if memory is None:
        return max(1, cores)
    return max(1, min(cores, memory // each))


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    raise CannotBuild(f"no working {name} was found (pip install {name})")


def check_compiler() -> None:
    """Raise CannotBuild if there is no C++ compiler, or no Python header to compile against."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen and not shutil.which(chosen[0]):
        raise CannotBuild(f"the C++ compiler that CXX names was not found ({chosen[0]})")
    if not chosen and not any(map(shutil.which, COMPILERS)):
        tried = ", ".join(COMPILERS)
        raise CannotBuild(f"no C++ compiler was found (looked for {tried}; CXX may name another)")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise CannotBuild(f"Python's header {header} was not found (Debian, Ubuntu: apt install python3-dev)")


def run(command: list[str], what: str) -> None:
    """Run, pass the output on, and raise CannotBuild with the first error line on failure."""
    print(shlex.join(command), flush=True)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    print(done.stdout, flush=True)
    if done.returncode:
        raise CannotBuild(f"{what} failed: {first_error(done.stdout)}")


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


def compile_module(name: str, options: list[str], each: int) -> tuple[Path, Path]:
    """Build a module, with as many bytes for each job; returns the module's file and the build folder."""
    check_compiler()
    cmake, ninja = find_tool("cmake", "CMAKE_BIN_DIR"), find_tool("ninja", "BIN_DIR")
    try:
        pybind11_folder = importlib.import_module("pybind11").get_cmake_dir()
    except ImportError:
        raise CannotBuild("pybind11 was not found (pip install pybind11)") from None

    folder = ROOT / "build" / f"{name[1:]}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
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
    parallel = str(jobs(usable_cores(), available_memory(), os.environ.get("MAX_JOBS"), each))
    command = [cmake, "--build", str(folder), "--target", name, "--parallel", parallel]
    run(command, f"compiling the sources of {name}")

    built = list((folder / "out").glob(f"{name}.*"))
    if len(built) != 1:
        raise CannotBuild(f"the build made {len(built)} modules in {folder / 'out'}, expected one")
    return built[0], folder


class BuildModules(build_ext):
    """Build the compiled modules, or leave out those that cannot be built and say why."""

    def run(self) -> None:
        self.outcome: dict[str, object] = {
            **{"native": False, "reason": "it was installed with SOFTDIFF_BUILD=python", "compiler": ""},
            **{"cuda": False, "cuda_reason": "", "cuda_archs": [], "cuda_ptx": None, "nvcc": ""},
        }
        built = {f"softdiff_kernels.{name}" for name in (self.build_native(), self.build_cuda())}
        # What was left out must not be looked for when packaging.
        self.extensions: list[Extension] = [module for module in self.extensions if module.name in built]
        self.distribution.ext_modules = self.extensions
        if not self.extensions:
            self.get_finalized_command("bdist_wheel").root_is_pure = True
        (self.place("_native").parent / "_build.json").write_text(json.dumps(self.outcome) + "\n")

    def place(self, name: str) -> Path:
        """Where a module goes; beside the package in an editable install."""
        return Path(self.get_ext_fullpath(f"softdiff_kernels.{name}"))

    def clear(self, name: str) -> None:
        """An earlier build's module would be packaged, or imported, in place of what was asked for."""
        self.place(name).parent.mkdir(parents=True, exist_ok=True)
        self.place(name).unlink(missing_ok=True)

    def build_native(self) -> str:
        """The module's name, empty where it was left out."""
        mode = build_mode()
        self.clear("_native")
        if mode == "python":
            return ""
        try:
            module, folder = compile_module("_native", [], BYTES_PER_JOB)
        except CannotBuild as why:
            if mode == "native":
                raise CompileError(f"SOFTDIFF_BUILD=native, but {why}") from None
            self.outcome["reason"] = str(why)
            notify(f"softdiff_kernels: installing without its compiled CPU kernels, because {why}. {LOST}")
            return ""
        self.outcome.update(native=True, reason="", compiler=(folder / "compiler.txt").read_text())
        shutil.copy2(module, self.place("_native"))
        return "_native"

    def build_cuda(self) -> str:
        """The module's name, empty where it was left out."""
        self.clear("_cuda")
        try:
            unwanted = build_cuda.why_not_wanted(os.environ, editable=bool(self.inplace))
            if unwanted:
                raise build_cuda.Absent(unwanted)
            toolkit = build_cuda.find_toolkit(os.environ)
            archs = build_cuda.parse_archs(os.environ.get("SOFTDIFF_CUDA_ARCHS"), toolkit)
            print(f"softdiff_kernels: building its CUDA kernels with nvcc {toolkit.release}", flush=True)
            options = ["-DSOFTDIFF_CUDA=ON", f"-DSOFTDIFF_CUDA_ARCHS={';'.join(map(str, archs))}"]
            options.append(f"-DCMAKE_CUDA_COMPILER={toolkit.nvcc}")
            module, folder = compile_module("_cuda", options, build_cuda.BYTES_PER_JOB)
        except ValueError as mistake:
            raise SetupError(str(mistake)) from None
        except CannotBuild as why:
            if os.environ.get("SOFTDIFF_CUDA") == "1":
                raise CompileError(f"SOFTDIFF_CUDA=1, but {why}") from None
            self.outcome["cuda_reason"] = str(why)
            say = print if isinstance(why, build_cuda.Absent) else notify
            say(f"softdiff_kernels: its CUDA kernels are left out, because {why}")
            return ""
        build_cuda.gather_resources(folder)
        self.outcome.update(cuda=True, cuda_archs=archs, cuda_ptx=archs[-1], nvcc=toolkit.release)
        shutil.copy2(module, self.place("_cuda"))
        return "_cuda"

    def copy_extensions_to_source(self) -> None:
        """Nothing to copy: `run` writes an editable install's modules beside the package at once."""


class LocalVersion(egg_info):
    """Adds SOFTDIFF_LOCAL_VERSION to the version: a wheel with CUDA kernels tells their CUDA in its name."""

    def finalize_options(self) -> None:
        try:
            local = build_cuda.local_version(os.environ.get("SOFTDIFF_LOCAL_VERSION"))
        except ValueError as mistake:
            raise SetupError(str(mistake)) from None
        if local:
            self.tag_build = f"+{local}"
        super().finalize_options()


if __name__ == "__main__":
    modules = [Extension(f"softdiff_kernels.{name}", sources=[]) for name in ("_native", "_cuda")]
    setup(ext_modules=modules, cmdclass={"build_ext": BuildModules, "egg_info": LocalVersion})
