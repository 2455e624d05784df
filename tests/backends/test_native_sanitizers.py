# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, and proof that these see mistakes.

Compiled without Python and torch (tests/native_sweep), so that every image ends where its memory ends.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
CSRC = TESTS.parent / "csrc"
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
# Of UBSan what integers, conversions and vectors can get wrong: its checks of every pointer, of which ASan
# sees the harm, take five times as long to compile.
CHECKS = "address,signed-integer-overflow,shift,integer-divide-by-zero,float-cast-overflow,alignment"
SANITIZERS = [f"-fsanitize={CHECKS}", "-fno-sanitize-recover=all"]
FLAGS = ["-std=c++17", "-O1", "-g1", "-fno-omit-frame-pointer", "-ffp-contract=fast", *SANITIZERS]
X86 = platform.machine() == "x86_64"
ISA_FLAGS = {
    "kernels_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
}


def usable() -> bool:
    """Whether a program with the sanitizers can be compiled and run here."""
    if shutil.which(COMPILER[0]) is None:
        return False
    command = [*COMPILER, *SANITIZERS, "-x", "c++", "-", "-o", "/dev/null"]
    return subprocess.run(command, input="int main() {}", capture_output=True, text=True).returncode == 0


pytestmark = pytest.mark.skipif(not usable(), reason=f"{COMPILER[0]} with AddressSanitizer is needed")


def compile_one(source: Path, csrc: Path, target: Path) -> None:
    command = [
        *COMPILER,
        *FLAGS,
        *ISA_FLAGS.get(source.stem, []),
        f"-I{csrc}",
        "-c",
        str(source),
        "-o",
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def sources(csrc: Path) -> list[Path]:
    kernels = sorted((csrc / "cpu").glob("*.cpp"), key=lambda s: "avx" not in s.name)  # the longest first
    return [s for s in kernels if X86 or s.stem not in ISA_FLAGS] + [TESTS / "native_sweep" / "sweep.cpp"]


def swept(objects: list[Path], program: Path, *sides: str) -> subprocess.CompletedProcess[str]:
    subprocess.run(
        [*COMPILER, *SANITIZERS, *map(str, objects), "-o", str(program), "-ldl", "-lpthread"], check=True
    )
    return subprocess.run([str(program), *sides], capture_output=True, text=True)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("objects")
    found = {s.stem: folder / f"{s.stem}.o" for s in sources(CSRC)}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda s: compile_one(s, CSRC, found[s.stem]), sources(CSRC)))
    return found


def test_the_sanitizers_find_nothing(objects, tmp_path):
    # Every op, dtype and layout on awkward sides, on each instruction set that this CPU has; the sweep also
    # holds them to one another.
    done = swept(list(objects.values()), tmp_path / "sweep")
    assert done.returncode == 0 and done.stdout == "right\n", done.stdout + done.stderr[-4000:]


# (source to compile, file, what is right, what is written in its place, sides, what then shows)
MISTAKES = {
    "scratch that is too short": (
        "driver",
        "driver.cpp",
        "size_ = (bytes + 4095) / 4096 * 4096;",
        "size_ = bytes / 128 * 64;",
        "33",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "a chirp's strips forgotten": (
        "plan",
        "plan.cpp",
        "5 * length)",
        "0 * length)",
        "1009",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "misaligned vectors": (
        "driver",
        "driver.cpp",
        "    return memory_;",
        "    return static_cast<char*>(memory_) + 4;",
        "5",
        "misaligned address",
    ),
    "columns beyond the image": (
        "kernels_portable",
        "passes.h",
        "if (j + VL <= p.w) {",
        "if (j >= 0) {",
        "5",
        "AddressSanitizer: heap-buffer-overflow",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_cpu_kernel_is_found(mistake, objects, tmp_path):
    # The sweep can fail: each of these single wrong lines is caught.
    compiled, name, right, wrong, sides, shows = MISTAKES[mistake]
    shutil.copytree(CSRC, tmp_path / "csrc")
    broken = tmp_path / "csrc" / "cpu" / name
    text = broken.read_text()
    assert text.count(right) == 1
    broken.write_text(text.replace(right, wrong))
    changed = tmp_path / f"{compiled}.o"
    compile_one(tmp_path / "csrc" / "cpu" / f"{compiled}.cpp", tmp_path / "csrc", changed)
    done = swept(
        [changed if stem == compiled else o for stem, o in objects.items()], tmp_path / "sweep", sides
    )
    assert done.returncode != 0
    assert shows in done.stderr, done.stdout + done.stderr[-2000:]
