# SPDX-License-Identifier: Apache-2.0
"""Builds CUDA C++ sources with the host compiler into a Python module whose kernels run on the CPU.

    path = build("_cuda", ["csrc/cuda/blur.cu", "csrc/cuda/bindings.cpp"], folder)    # or: python build.py -h

Objects are kept under build/cuda_shim/, each under the hash of its source, of all headers and of the flags.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / "build" / "cuda_shim"
JOBS = 2

FLAGS = ["-x", "c++", "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-DSOFTDIFF_CUDA_SHIM"]
# Kernels look at words as halves, as nvcc lets them; #pragma unroll is nvcc's. Multiplies and adds fuse where
# the source says so only: the same results on every machine.
FLAGS += ["-fno-strict-aliasing", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# -g1: lines in ASan's report. GCC suspects sanitized code of uninitialised reads; the plain build warns.
ASAN = ["-fsanitize=address", "-fno-omit-frame-pointer", "-g1", "-Wno-maybe-uninitialized"]
# A load wider than its address allows faults on a GPU. In kernels alone: bindings would take twice as long.
ASAN_KERNELS = ["-fsanitize=alignment", "-fno-sanitize-recover=alignment"]


class BuildError(RuntimeError):
    """The compiler's words."""


def build(
    name: str,
    sources: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    include: Iterable[str | os.PathLike[str]] = (),
    flags: Iterable[str] = (),
    asan: bool = False,
) -> Path:
    """Compiles `sources` (one of which has PYBIND11_MODULE(name, m)) with the shim into folder/name.<abi>.so.

    `include` adds folders for headers. An `asan` build is imported by a Python that runs with `asan_env()`.
    """
    own = sorted(HERE.glob("*.cpp"))
    theirs = [Path(s).resolve() for s in sources]
    includes = [HERE / "include", *(Path(i).resolve() for i in include)]
    compiler = os.environ.get("CXX", "g++").split()
    # The shim's own headers are no system headers: they answer to -Wall too.
    options = [*FLAGS, *_f16c(), *(ASAN if asan else []), *flags, *_pybind11()]
    options += [word for i in includes for word in ("-I", str(i))]
    headers = _headers([HERE, *includes, ROOT / "csrc", *(s.parent for s in theirs)])
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True).stdout
    common = _hash(version, compiler, options, *((h, h.read_bytes()) for h in headers))

    CACHE.mkdir(parents=True, exist_ok=True)
    with _lock(CACHE / "lock"):
        # Bindings take longest, so they go first.
        order = sorted(theirs, key=lambda s: s.suffix == ".cu") + own
        objects = [CACHE / f"{s.stem}-{_hash(common, s, s.read_bytes())}.o" for s in order]
        todo = [(s, o) for s, o in zip(order, objects, strict=True) if not o.exists()]

        def compile_one(source: Path, target: Path) -> None:
            extra = ASAN_KERNELS if asan and source.suffix == ".cu" else []
            _output([*compiler, *options, *extra, "-c", str(source)], target)

        with ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(compile_one, *zip(*todo, strict=True)) if todo else ())
        module = CACHE / f"{name}-{_hash(*objects)}.so"
        if not module.exists():
            sanitizers = [*ASAN, *ASAN_KERNELS] if asan else []
            link = [*compiler, "-shared", *sanitizers, *map(str, objects), "-ldl"]
            _output(link, module)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    target = Path(folder) / f"{name}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}")
    shutil.copyfile(module, part)
    part.replace(target)
    return target


def asan_env() -> dict[str, str]:
    """The environment in which Python can import an `asan` build: ASan must be loaded before all else.

    The C++ library comes with it: ASan looks for __cxa_throw at the start, and without it stops at the first
    exception.
    """
    compiler = os.environ.get("CXX", "g++").split()
    found = [
        subprocess.run([*compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True)
        for name in ("libasan.so", "libstdc++.so")
    ]
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    asan = {"LD_PRELOAD": " ".join(f.stdout.strip() for f in found), "ASAN_OPTIONS": options}
    return {**os.environ, **asan, "UBSAN_OPTIONS": "print_stacktrace=1"}


def _f16c() -> list[str]:
    cpu = Path("/proc/cpuinfo")
    known = platform.machine() == "x86_64" and cpu.exists() and " f16c" in cpu.read_text()
    return ["-mf16c"] if known else []


def _pybind11() -> list[str]:
    import pybind11

    folders = [pybind11.get_include(), sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
    return [word for folder in dict.fromkeys(folders) for word in ("-isystem", folder)]


def _headers(folders: Iterable[Path]) -> list[Path]:
    found = {h for f in folders for h in f.rglob("*") if h.suffix in (".h", ".cuh", ".hpp")}
    return sorted(found)


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _output(command: list[str], target: Path) -> None:
    """Writes beside the target first: a build that was cut off leaves nothing that looks complete."""
    part = target.with_suffix(".part")
    done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    part.replace(target)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("name")
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--folder", default=str(CACHE))
    parser.add_argument("--include", action="append", default=[])
    parser.add_argument("--asan", action="store_true")
    args = parser.parse_args()
    print(build(args.name, args.sources, args.folder, include=args.include, asan=args.asan))


if __name__ == "__main__":
    main()
