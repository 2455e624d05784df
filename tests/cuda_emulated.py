# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels in this process without a GPU: csrc/cuda compiled for the CPU with tests/cuda_shim.

SOFTDIFF_CUDA_SHIM=1 asks for it; =asan for the build that AddressSanitizer watches, in a Python started with
`cuda_shim.build.asan_env()`. The backend "cuda" then takes CPU tensors, and the tests of the ops run on it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

NAME = "softdiff_kernels._cuda"
SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
FLAGS = ["-DSOFTDIFF_CUDA_ARCHS=90", "-DSOFTDIFF_CUDA_PTX=90"]
ASKED = os.environ.get("SOFTDIFF_CUDA_SHIM", "")


def build(folder: Path, sources: Path = SOURCES, *, asan: bool = False) -> Path:
    """The module's file, compiled again only where something changed."""
    from cuda_shim.build import build as compiled

    files = sorted([*sources.glob("*.cu"), sources / "bindings.cpp"])
    return compiled("_cuda", files, folder, flags=FLAGS + ["-O1"] * asan, asan=asan)


def load(path: Path) -> None:
    """Puts a module where the backend looks for the compiled one."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


def install() -> bool:
    """Whether the kernels are here, emulated: built and loaded where SOFTDIFF_CUDA_SHIM asks for it and there
    is a compiler.
    """
    if not ASKED or shutil.which(os.environ.get("CXX", "g++").split()[0]) is None:
        return False
    if NAME not in sys.modules:
        load(build(SOURCES.parents[1] / "build" / "cuda_emulated" / ASKED, asan=ASKED == "asan"))
    return True
