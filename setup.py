# SPDX-License-Identifier: Apache-2.0
"""Builds softdiff_kernels._native and ._cuda by build_modules.py; everything else is in pyproject.toml.

Whether a module can be built is only known after trying, so every build goes through `BuildModules`: it
builds each, or it leaves it out and says in one sentence what is missing and what that costs. Without either
the package is pure Python. The outcome is written to softdiff_kernels/_build.json, which is where
`sk.backends()` finds its reasons.

    SOFTDIFF_BUILD=auto|native|python   auto: build if possible; native: fail if not; python: never build
    SOFTDIFF_CUDA=auto|0|1              the same for the CUDA kernels, see build_cuda.py
    SOFTDIFF_LOCAL_VERSION=cu130        makes the version 0.1.0+cu130
    SOFTDIFF_WERROR=1, MAX_JOBS=n       see build_modules.py

Needs neither torch nor numpy.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info
from setuptools.errors import CompileError, SetupError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # a build backend does not put it there

import build_cuda  # noqa: E402
import build_modules  # noqa: E402
from build_cuda import CannotBuild  # noqa: E402

MODES = ("auto", "native", "python")
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
            module, compiler = build_modules.compile_native()
        except ValueError as mistake:
            raise SetupError(str(mistake)) from None
        except CannotBuild as why:
            if mode == "native":
                raise CompileError(f"SOFTDIFF_BUILD=native, but {why}") from None
            self.outcome["reason"] = str(why)
            notify(f"softdiff_kernels: installing without its compiled CPU kernels, because {why}. {LOST}")
            return ""
        self.outcome.update(native=True, reason="", compiler=compiler)
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
            module = build_modules.compile_cuda(toolkit, archs)
        except ValueError as mistake:
            raise SetupError(str(mistake)) from None
        except CannotBuild as why:
            if os.environ.get("SOFTDIFF_CUDA") == "1":
                raise CompileError(f"SOFTDIFF_CUDA=1, but {why}") from None
            self.outcome["cuda_reason"] = str(why)
            say = print if isinstance(why, build_cuda.Absent) else notify
            say(f"softdiff_kernels: its CUDA kernels are left out, because {why}")
            return ""
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
