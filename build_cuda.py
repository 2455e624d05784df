# SPDX-License-Identifier: Apache-2.0
"""Which CUDA toolkit setup.py builds with, for which GPUs, or why there is none: plain facts, no build.

    SOFTDIFF_CUDA=auto|0|1        auto: build if a fitting nvcc is found, except in editable installs, since
                                  it takes minutes; 0: never; 1: fail if it cannot be built
    SOFTDIFF_CUDA_ARCHS=80;90     GPU architectures, in place of ARCHS

Whether the building machine has a GPU plays no part.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MODES = ("auto", "0", "1")
# Machine code runs on GPUs of the same major version and an equal or later minor one: these are Ampere and
# Ada (8.0, 8.6, 8.9), Hopper and Blackwell (B200, then GeForce). PTX of the last serves later ones.
ARCHS = (80, 90, 100, 120)
OLDEST_NVCC = (12, 8)  # the first that compiles for sm_120
# The largest file took nvcc 13.0 0.23 GiB, one process at a time; the rest is room for other versions.
BYTES_PER_JOB = 1 << 30


class CannotBuild(Exception):
    """Says in words why a compiled module cannot be built here."""


class Absent(CannotBuild):
    """Nothing here asks for the module, so that its absence is no news to whoever installs."""


@dataclass(frozen=True)
class Toolkit:
    nvcc: str
    version: tuple[int, int]
    supported: tuple[int, ...]

    @property
    def release(self) -> str:
        return ".".join(map(str, self.version))

    @property
    def tag(self) -> str:
        """What a wheel's local version is made of, like cu130."""
        return f"cu{self.version[0]}{self.version[1]}"


def why_not_wanted(environ: Mapping[str, str], editable: bool) -> str:
    """The reason not to look for a toolkit at all, empty where one is wanted; ValueError for bad switches."""
    mode = environ.get("SOFTDIFF_CUDA") or "auto"
    if mode not in MODES:
        raise ValueError(f"SOFTDIFF_CUDA must be one of {', '.join(MODES)}, got {mode!r}")
    pure = environ.get("SOFTDIFF_BUILD") == "python"
    if mode == "1":
        if pure:
            raise ValueError("SOFTDIFF_CUDA=1 asks for a compiled module, SOFTDIFF_BUILD=python for none")
        return ""
    if mode == "0":
        return "the package was installed with SOFTDIFF_CUDA=0"
    if pure:
        return "the package was installed with SOFTDIFF_BUILD=python"
    if editable:
        return "the package was installed in editable form, which builds them with SOFTDIFF_CUDA=1 alone"
    return ""


def find_nvcc(environ: Mapping[str, str]) -> str:
    """Path of nvcc: CUDA_HOME's, else CUDA_PATH's, else PATH's. A variable that leads nowhere is an error."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if folder := environ.get(variable):
            found = shutil.which("nvcc", path=os.path.join(folder, "bin"))
            if not found:
                raise CannotBuild(f"{variable} is {folder}, where no bin/nvcc was found")
            return found
    found = shutil.which("nvcc", path=environ.get("PATH"))
    if not found:
        raise Absent("no nvcc was found on PATH, and neither CUDA_HOME nor CUDA_PATH names a toolkit")
    return found


def parse_version(output: str) -> tuple[int, int]:
    """The release in what `nvcc --version` prints."""
    found = re.search(r"release (\d+)\.(\d+)", output)
    if not found:
        raise CannotBuild("nvcc --version names no release")
    return int(found[1]), int(found[2])


def find_toolkit(environ: Mapping[str, str]) -> Toolkit:
    """The toolkit to build with; CannotBuild with the reason where there is none that fits."""
    nvcc = find_nvcc(environ)

    def ask(option: str) -> str:
        try:
            return subprocess.run([nvcc, option], check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise CannotBuild(f"{nvcc} {option} failed: {error}") from None

    version = parse_version(ask("--version"))
    check_version(nvcc, version)
    listed = tuple(int(number) for number in re.findall(r"sm_(\d+)\b", ask("--list-gpu-code")))
    return Toolkit(nvcc, version, listed)


def check_version(nvcc: str, version: tuple[int, int]) -> None:
    if version < OLDEST_NVCC:
        found, wanted = (".".join(map(str, v)) for v in (version, OLDEST_NVCC))
        raise CannotBuild(f"{nvcc} is of CUDA {found}, but the kernels need {wanted} or later, for sm_120")


def parse_archs(text: str | None, toolkit: Toolkit) -> tuple[int, ...]:
    """The architectures asked for, in order, checked against what nvcc compiles for."""
    parts = [part for part in re.split(r"[;, ]+", text or "") if part]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"SOFTDIFF_CUDA_ARCHS must be numbers like 80;90, got {text!r}")
    wanted = tuple(sorted({int(part) for part in parts})) or ARCHS
    if unknown := [arch for arch in wanted if arch not in toolkit.supported]:
        known = ", ".join(map(str, sorted(toolkit.supported)))
        raise CannotBuild(f"nvcc {toolkit.release} compiles for {known}, but not for {unknown[0]} as asked")
    return wanted


def local_version(text: str | None) -> str:
    """SOFTDIFF_LOCAL_VERSION, checked: what stands behind the + in a wheel's version."""
    if text and not re.fullmatch(r"[a-z0-9]+(\.[a-z0-9]+)*", text):
        raise ValueError(f"SOFTDIFF_LOCAL_VERSION must be letters and digits like cu130, got {text!r}")
    return text or ""


def gather_resources(folder: Path) -> None:
    """Write ptxas.log: registers, stack and spills of every kernel, from the logs beside the objects."""
    logs = [log for log in sorted(folder.rglob("*.o.ptxas")) if log.with_suffix("").exists()]
    (folder / "ptxas.log").write_text("".join(f"{log.stem}\n{log.read_text()}" for log in logs))
