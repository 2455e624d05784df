# SPDX-License-Identifier: Apache-2.0
"""How the CUDA module is compiled by nvcc alone, and where the GPU report puts it, or says that it cannot."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import build_cuda
import build_modules
from benchmarks.gpu import build

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "csrc" / "cuda").exists(), reason="needs the sources")
TOOLS = build_cuda.Toolkit("nvcc", (13, 0), (80, 90))


def test_every_source_is_compiled_and_linked(tmp_path, monkeypatch):
    # As csrc/cuda/CMakeLists.txt: C++17, machine code of each GPU, PTX of the last, the runtime linked in and
    # hidden, and ptxas's report kept by the same launcher.
    monkeypatch.setenv("CUDAFLAGS", "-lineinfo")
    each, link, module = build_modules.nvcc_commands(TOOLS, (80, 90), tmp_path / "include", tmp_path)
    folder = ROOT / "csrc" / "cuda"
    sources = {str(p) for p in (*folder.glob("*.cu"), *folder.glob("*.cpp"))}
    assert {command[-3] for command in each} == sources
    assert all(command[-4] == "-c" and command[-1] in link for command in each)
    assert link[-1] == str(module)
    gpu = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"]
    gpu += ["-gencode=arch=compute_90,code=compute_90", "-lineinfo", str(folder / "ptxas_log.py")]
    gpu += ["-DSOFTDIFF_CUDA_ARCHS=80\\,90", "-DSOFTDIFF_CUDA_PTX=90"]
    for command in each:
        assert "-std=c++17" in command and "-O3" in command and str(ROOT / "csrc") in command
        for word in gpu:
            assert (word in command) == command[-3].endswith(".cu")
    assert "--cudart=static" in link
    assert (tmp_path / "exports.map").read_text() == "{ global: PyInit__cuda; local: *; };\n"


def test_a_failing_compiler_is_a_sentence(capsys):
    program = "import sys; print('x.cu(3): error: no such thing', file=sys.stderr); sys.exit(2)"
    with pytest.raises(build_cuda.CannotBuild, match=r"compiling x.cu failed: .*no such thing"):
        build_modules.run([sys.executable, "-c", program], "compiling x.cu")
    assert "x.cu(3)" in capsys.readouterr().out


def test_pybind11_is_taken_from_torch_or_missed(tmp_path, monkeypatch):
    # torch brings the headers; without both, a sentence.
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "pybind11" else real(n))
    folder = build_modules.pybind11_headers(tmp_path)
    assert (folder / "pybind11" / "pybind11.h").exists() and not (folder / "torch").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None)
    with pytest.raises(build_modules.ToolMissing, match="pybind11"):
        build_modules.pybind11_headers(tmp_path)


@pytest.mark.parametrize("missing", ["cmake", "pybind11"])
def test_nvcc_alone_compiles_where_cmake_cannot(tmp_path, monkeypatch, missing):
    # The same module from either; what both need is asked for first.
    def by_cmake(name, options, each, folder):
        raise build_modules.ToolMissing(f"no working {missing} was found")

    def by_nvcc(toolkit, archs, folder):
        made.append((toolkit, archs))
        return folder / "_cuda.so"

    made: list[object] = []
    monkeypatch.setattr(build_modules, "compile_by_cmake", by_cmake)
    monkeypatch.setattr(build_modules, "compile_by_nvcc", by_nvcc)
    assert build_modules.compile_cuda(TOOLS, (90,), tmp_path) == tmp_path / "_cuda.so"
    assert made == [(TOOLS, (90,))]

    def no_compiler():
        raise build_modules.ToolMissing("no C++ compiler was found")

    monkeypatch.setattr(build_modules, "check_compiler", no_compiler)
    with pytest.raises(build_cuda.CannotBuild, match=r"no C\+\+ compiler"):
        build_modules.compile_cuda(TOOLS, (90,), tmp_path)


@pytest.mark.parametrize("why", ["no nvcc", "no header"])
def test_without_a_tool_the_part_is_absent(tmp_path, monkeypatch, why):
    def compiled(*_):
        raise build_modules.ToolMissing("Python's header was not found")

    monkeypatch.setattr(build_modules, "compile_cuda", compiled)
    if why == "no nvcc":
        monkeypatch.setattr(build, "find", lambda name: None)
        for variable in ("CUDA_HOME", "CUDA_PATH"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setattr(build, "toolkit", lambda: TOOLS)
    build.link_package(tmp_path / "o")
    done = build.place(tmp_path / "o", 90, tmp_path)
    said = {"no nvcc": "no nvcc was found", "no header": "header was not found"}[why]
    assert done["status"] == "absent" and said in done["detail"]


def test_kernels_that_do_not_compile_are_a_failure(tmp_path, monkeypatch):
    def compiled(*_):
        raise build_cuda.CannotBuild("compiling x.cu failed: error")

    monkeypatch.setattr(build, "toolkit", lambda: TOOLS)
    monkeypatch.setattr(build_modules, "compile_cuda", compiled)
    build.link_package(tmp_path / "o")
    assert build.place(tmp_path / "o", 90, tmp_path)["status"] == "failed"


def test_the_linked_package_is_imported_and_the_sources_stay_as_they_are(tmp_path):
    before = sorted(p.name for p in (ROOT / "softdiff_kernels").iterdir())
    place = build.link_package(tmp_path / "o")
    (place / "_cuda.py").write_text("made = 1\n")
    command = [
        sys.executable,
        "-c",
        "import softdiff_kernels as s, softdiff_kernels._cuda as c; print(s.__file__, c.made)",
    ]
    path = os.pathsep.join((str(tmp_path / "o"), str(ROOT)))
    done = subprocess.run(
        command, cwd=tmp_path / "o", env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(place / "__init__.py"), "1"], done.stderr
    assert {"__pycache__", *before} >= {p.name for p in (ROOT / "softdiff_kernels").iterdir()}


def test_the_architecture_is_that_of_the_gpu_in_use(tmp_path, monkeypatch):
    # nvidia-smi answers before torch is imported; where it does not, or means another GPU, torch does.
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 9.0\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (12, 0))
    assert build.architecture() == 90
    tool.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert build.architecture() == 120
    tool.write_text("#!/bin/sh\necho 9.0\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert build.architecture() == 120
