# SPDX-License-Identifier: Apache-2.0
"""`softdiff doctor`: what works on this machine, and why the rest does not.

Needs the standard library and torch; every probe is guarded, so that the report that tells what is
broken is not broken by it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .. import _machine
from ..errors import UserError, install

EXTRAS = ("diffusers", "tyro", "tqdm", "safetensors", "PIL", "numpy", "scipy", "sklearn", "matplotlib")
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}


def _package() -> str:
    return _machine.package_version("softdiff_kernels") or "not installed (run from its sources)"


def _python() -> str:
    return f"{platform.python_version()} on {_machine.system()}, {sys.executable}"


def _torch() -> str:
    import torch

    return f"{torch.__version__} (float32 products: {torch.get_float32_matmul_precision()})"


def _gpu() -> str:
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return "none: this torch is built for the CPU alone"
    names = [
        f"{gpu['name']} (sm_{gpu['capability'].replace('.', '')}, {gpu['memory_gib']:.0f} GiB)"
        for gpu in _machine.gpus()
    ]
    if not names:
        return f"none usable (torch built for CUDA {torch.version.cuda})"
    return f"{', '.join(names)}; CUDA {torch.version.cuda}"


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed"
    return str(importlib.import_module("triton").__version__)


def _compiler() -> str:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++", "cl"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    tools = [f"{name} {'found' if shutil.which(name) else 'missing'}" for name in ("cmake", "ninja", "nvcc")]
    return f"{found or 'none (looked for ' + ', '.join(names) + ')'}; {', '.join(tools)}"


def _compiled_modules() -> str:
    import softdiff_kernels
    from softdiff_kernels.backends import installed

    folder = os.path.dirname(softdiff_kernels.__file__)
    names = sorted(f for f in os.listdir(folder) if f.endswith((".so", ".pyd")))
    absent = installed.hidden("_native") or "this installation is pure Python"
    return ", ".join(names) if names else f"absent: {absent}"


def _cuda_module() -> str:
    from softdiff_kernels.backends import installed
    from softdiff_kernels.backends.cuda import diagnosis

    module, error = diagnosis.load()
    if module is None:
        return f"absent: {diagnosis.absent(installed.read(), error)}"
    driver = module.driver_version()
    return (
        f"{diagnosis.listed(module.architectures())}, PTX of sm_{module.ptx_architecture()}; "
        f"CUDA {diagnosis.version(module.runtime_version())} linked in; "
        + (f"driver for CUDA {diagnosis.version(driver)}" if driver else "no driver")
        + ("; emulated on the CPU" if module.emulated() else "")
    )


def _threads() -> str:
    import torch

    return f"torch uses {torch.get_num_threads()} of {_machine.cores()} usable cores"


def _openmp() -> str:
    import torch

    variables = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "KMP_AFFINITY") if name in os.environ}
    built = "torch has it" if torch.backends.openmp.is_available() else "torch is built without it"
    return built + "".join(f"; {name}={value}" for name, value in variables.items())


def _extras() -> str:
    present, absent = [], []
    for module in EXTRAS:
        name = DISTRIBUTIONS.get(module, module)
        if importlib.util.find_spec(module) is None:
            absent.append(name)
        else:
            present.append(f"{name} {_machine.package_version(name) or 'of unknown version'}")
    return ", ".join(present) + (f"; missing: {', '.join(absent)} ({install()})" if absent else "")


PROBES: tuple[tuple[str, Callable[[], str]], ...] = (
    ("softdiff_kernels", _package),
    ("Python", _python),
    ("torch", _torch),
    ("GPU", _gpu),
    ("Triton", _triton),
    ("compiler", _compiler),
    ("compiled modules", _compiled_modules),
    ("CUDA module", _cuda_module),
    ("vector units", _machine.vector_units),
    ("threads", _threads),
    ("OpenMP", _openmp),
    ("trainer's packages", _extras),
)


def _guarded(probe: Callable[[], str]) -> str:
    try:
        return probe()
    except Exception as error:
        return f"unknown ({_one_line(error)})"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def backend_rows() -> list[tuple[str, str, str]]:
    """(name, yes or no, reason) of every backend of the ops."""
    import softdiff_kernels

    listing: Any = softdiff_kernels.backends
    found = listing() if callable(listing) else listing.backends()
    return [(name, "yes" if b.usable else "no", str(b.reason or "")) for name, b in found.items()]


def _table(rows: Iterable[tuple[str, ...]], indent: str = "") -> list[str]:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        indent + "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def run(argv: Sequence[str]) -> int:
    """Prints the report."""
    if argv:
        raise UserError(f"doctor takes no options, got {' '.join(argv)}")
    print(report())
    return 0


def report() -> str:
    """The whole report. Never raises."""
    lines = _table([(name, _guarded(probe)) for name, probe in PROBES])
    lines += ["", "backends of the ops"]
    try:
        rows = backend_rows()
        lines += _table([("name", "usable", "why"), *rows], indent="  ")
    except Exception as error:
        lines.append(f"  unknown ({_one_line(error)})")
    return "\n".join(lines)
