# SPDX-License-Identifier: Apache-2.0
"""What the sdist and the wheels contain, and what happens where nothing can be compiled.

Every build here runs offline, without build isolation, and with a `torch` on the path that refuses to be
imported: a build that needs torch fails all of these tests.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD_FILES = (
    *("setup.py", "build_cuda.py", "build_modules.py"),
    *("pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "Makefile"),
)
PACKAGED = (*BUILD_FILES, "LICENSE", "README.md")
FOLDERS = ("softdiff_kernels", "csrc", "tests", "docs", "benchmarks", "examples")
COMPILERS = ("c++", "g++", "clang++")
BUILD_TOOLS = ("pip", "setuptools", "pybind11", "cmake", "ninja")
INSTALLED = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
PIP_WHEEL = ("pip", "wheel", "--verbose", "--no-index", "--no-deps", "--no-build-isolation")

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the package's sources are not here"),
    pytest.mark.skipif(
        not INSTALLED.issuperset(BUILD_TOOLS),
        reason=f"building without isolation needs {', '.join(BUILD_TOOLS)} installed",
    ),
]
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler on PATH")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The caller's environment without its build switches, and with a torch that cannot be imported."""
    trap = tmp_path_factory.mktemp("trap")
    (trap / "torch.py").write_text("raise ImportError('the build imported torch')\n")
    switches = ("CXX", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS", "MAX_JOBS", "SOFTDIFF_BUILD", "SOFTDIFF_WERROR")
    kept = {name: value for name, value in os.environ.items() if name not in switches}
    # The CUDA kernels take minutes; tests/packaging/test_cuda_packaging.py has their switches.
    return {**kept, "PYTHONPATH": str(trap), "SOFTDIFF_CUDA": "0"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """The sdist of a clean copy of the sources, made by the build backend as pip would."""
    copy = tmp_path_factory.mktemp("copy") / "sources"
    copy.mkdir()
    for name in PACKAGED:
        shutil.copy2(ROOT / name, copy / name)
    for name in FOLDERS:
        if (ROOT / name).exists():
            ignored = shutil.ignore_patterns("__pycache__", "_build.json")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    out = tmp_path_factory.mktemp("sdist")
    hook = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", hook, str(out)], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (made,) = out.glob("*.tar.gz")
    return made


@pytest.fixture
def sources(sdist: Path, tmp_path: Path) -> Path:
    """A fresh unpacked sdist: what builds from it proves that the sdist is complete."""
    return unpack(sdist, tmp_path)


def unpack(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    (top,) = (path for path in folder.iterdir() if path.is_dir())
    return top


def build_wheel(sources: Path, environment: dict[str, str], **switches: str) -> tuple[Path | None, str]:
    """`pip wheel` on the sources; the wheel, or None where pip failed, and pip's whole output."""
    out = sources.parent / "wheels"
    run = subprocess.run(
        [sys.executable, "-m", *PIP_WHEEL, "--wheel-dir", str(out), str(sources)],
        env={**environment, **switches},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wheels = list(out.glob("*.whl")) if out.exists() else []
    assert (run.returncode == 0) == (len(wheels) == 1), run.stdout
    return (wheels[0] if wheels else None), run.stdout


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def record(wheel: Path) -> dict[str, object]:
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read("softdiff_kernels/_build.json"))


def compiled(names: set[str]) -> list[str]:
    return [name for name in names if name.endswith((".so", ".pyd", ".dylib"))]


def assert_pure(wheel: Path | None, output: str) -> None:
    """Rule: a wheel without the module fits every platform, holds no binary, and still every Python file."""
    assert wheel is not None, output
    assert wheel.name.endswith("-py3-none-any.whl")
    names = contents(wheel)
    assert compiled(names) == []
    assert python_files() <= names
    assert record(wheel)["native"] is False


def python_files() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "softdiff_kernels").rglob("*.py")}


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("softdiff_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bare_path(tmp_path: Path) -> str:
    """A PATH with a shell and nothing else: no compiler, no CMake, no ninja."""
    folder = tmp_path / "bare"
    folder.mkdir()
    shell = shutil.which("sh")
    assert shell is not None
    (folder / "sh").symlink_to(shell)
    return str(folder)


def test_sdist_holds_what_a_build_and_a_reader_need(sdist: Path) -> None:
    """Rule: every source in csrc, the tests and the licence are in the sdist; nothing that was built is."""
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    suffixes = (".cpp", ".h", ".cu", ".cuh")
    native = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.suffix in suffixes}
    assert native and native <= names
    assert python_files() <= names
    assert set(PACKAGED) <= names
    assert "tests/packaging/test_packaging.py" in names
    assert compiled(names) == [] and "softdiff_kernels/_build.json" not in names


@needs_compiler
def test_native_build(sdist: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """One compilation serves five rules, since it is the slow part."""
    sources = unpack(sdist, tmp_path)
    wheel, output = build_wheel(sources, environment, SOFTDIFF_BUILD="native")
    assert wheel is not None, output

    # Rule: a native wheel is tied to its platform and holds one module, the licence, and no C++ source.
    names = contents(wheel)
    assert not wheel.name.endswith("-any.whl")
    assert len(compiled(names)) == 1 and compiled(names)[0].startswith("softdiff_kernels/_native.")
    assert python_files() <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith("csrc") or name.endswith((".cpp", ".h"))]
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "examples", "docs"))]
    assert record(wheel)["native"] is True and record(wheel)["compiler"]

    # Rule: objects with instruction-set flags are linked last, or their copy of a shared inline function
    # would run on CPUs that lack those instructions.
    (ninja,) = (sources / "build").glob("native-*/build.ninja")
    (link,) = re.findall(r"^build out/_native\S*: \S+ (.*?) \|\|", ninja.read_text(), flags=re.MULTILINE)
    ranks = [2 if "_avx512" in part else 1 if "_avx2" in part else 0 for part in link.split()]
    assert ranks == sorted(ranks) and len(ranks) >= 2

    # Rule: the module exports its entry point alone and links no torch, Python or OpenMP library.
    if sys.platform == "linux" and shutil.which("nm") and shutil.which("readelf"):
        with zipfile.ZipFile(wheel) as archive:
            binary = archive.extract(compiled(names)[0], tmp_path)
        symbols = subprocess.check_output(["nm", "-D", "--defined-only", binary], text=True)
        assert [line.split()[-1] for line in symbols.splitlines()] == ["PyInit__native"]
        dynamic = subprocess.check_output(["readelf", "-d", binary], text=True)
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
        assert needed and not [name for name in needed if re.search("torch|c10|python|omp", name)]

    # Rule: an editable install puts the module beside the package; taking it back to pure Python removes it.
    hook = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    for mode, expected in (("native", 1), ("python", 0)):
        run = subprocess.run(
            [sys.executable, "-c", hook, str(tmp_path)],
            cwd=sources,
            env={**environment, "SOFTDIFF_BUILD": mode},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert len(list((sources / "softdiff_kernels").glob("_native*"))) == expected
        written = json.loads((sources / "softdiff_kernels" / "_build.json").read_text())
        assert written["native"] is (mode == "native")


def test_python_switch_never_builds(sources: Path, environment: dict[str, str]) -> None:
    """Rule: SOFTDIFF_BUILD=python makes a pure wheel even where a compiler is at hand, and calls no tool."""
    wheel, output = build_wheel(sources, environment, SOFTDIFF_BUILD="python")
    assert_pure(wheel, output)
    assert wheel is not None and "SOFTDIFF_BUILD=python" in str(record(wheel)["reason"])
    assert not list((sources / "build").glob("native-*"))


def test_auto_without_a_compiler_says_what_is_missing(
    sources: Path, environment: dict[str, str], bare_path: str
) -> None:
    """Rule: nothing to compile with is no failure; one line says what is missing and what that costs."""
    wheel, output = build_wheel(sources, environment, PATH=bare_path)
    assert_pure(wheel, output)
    assert wheel is not None
    (sentence,) = (line for line in output.splitlines() if "softdiff_kernels: installing without" in line)
    assert "no C++ compiler was found" in sentence
    assert "slower plain PyTorch reference" in sentence
    assert str(record(wheel)["reason"]) in sentence


def test_native_without_a_compiler_fails(sources: Path, environment: dict[str, str], bare_path: str) -> None:
    """Rule: who asks for the native build gets it or an error that says what is missing, no pure wheel."""
    wheel, output = build_wheel(sources, environment, PATH=bare_path, SOFTDIFF_BUILD="native")
    assert wheel is None
    assert "SOFTDIFF_BUILD=native, but no C++ compiler was found" in output
    assert "Traceback" not in output


def test_auto_with_a_compiler_that_fails(sources: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Rule: a compiler that cannot compile is treated as none, and its name is in the sentence."""
    broken = tmp_path / "broken-compiler"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    wheel, output = build_wheel(sources, environment, CXX=str(broken))
    assert_pure(wheel, output)
    assert wheel is not None and "broken-compiler" in str(record(wheel)["reason"])


def test_fallback_leaves_no_module_of_an_earlier_build(sources: Path, environment: dict[str, str]) -> None:
    """Rule: a module left in build/ by an earlier build does not slip into a pure wheel."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    wheel, output = build_wheel(sources, environment, SOFTDIFF_BUILD="python")
    assert_pure(wheel, output)
    assert wheel is not None
    wheel.unlink()
    (folder,) = (sources / "build").glob("lib*/softdiff_kernels")
    (folder / f"_native{suffix}").write_bytes(b"stale")
    assert_pure(*build_wheel(sources, environment, SOFTDIFF_BUILD="python"))


def test_an_unknown_mode_is_refused(sources: Path, environment: dict[str, str]) -> None:
    wheel, output = build_wheel(sources, environment, SOFTDIFF_BUILD="fast")
    assert wheel is None
    assert "SOFTDIFF_BUILD must be one of auto, native, python, got 'fast'" in output


def test_setup_imports_no_torch(environment: dict[str, str], sources: Path) -> None:
    """Rule: setup.py answers questions about the package where torch, numpy and pybind11 are missing."""
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'numpy', 'pybind11'], None))\n"
        "sys.argv = ['setup.py', '--quiet', '--version']\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=sources, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    version = re.search(r'__version__ = "(.*)"', (ROOT / "softdiff_kernels" / "_version.py").read_text())
    assert version is not None and run.stdout.split()[-1] == version.group(1)


@pytest.mark.parametrize(
    ("cores", "gibibytes", "requested", "expected"),
    [(8, 64, None, 8), (64, 5, None, 5), (4, 0.2, None, 1), (4, None, None, 4), (2, 1, "7", 7)],
)
def test_jobs(cores: int, gibibytes: float | None, requested: str | None, expected: int) -> None:
    """Rule: as many compilers as cores, each with a GiB to itself, at least one; MAX_JOBS overrules both."""
    memory = None if gibibytes is None else int(gibibytes * 2**30)
    assert load_setup().build_modules.jobs(cores, memory, requested) == expected


@pytest.mark.parametrize("requested", ["0", "-1", "two", "1.5"])
def test_jobs_refuses_what_is_no_count(requested: str) -> None:
    with pytest.raises(Exception, match="MAX_JOBS must be a whole number from 1 up, got"):
        load_setup().build_modules.jobs(2, None, requested)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("-- ok\nCMake Error at a.cmake:3 (message):\n  needs\n  Clang.\n\n-- stop\n", "needs Clang"),
        ("note\na.cpp:3:1: error: no such thing\nninja: stopped\n", "a.cpp:3:1: error: no such thing"),
        ("killed\n", "killed"),
        ("", "no output"),
    ],
)
def test_first_error_finds_the_message(output: str, expected: str) -> None:
    assert load_setup().build_modules.first_error(output) == expected
