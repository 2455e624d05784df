# SPDX-License-Identifier: Apache-2.0
"""How the GPU report builds the CUDA module: which commands, where to, and what it says where it cannot."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import build_cuda
from benchmarks.gpu import build, overlay

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "csrc" / "cuda").exists(), reason="needs the sources")
TOOLS = build_cuda.Toolkit("nvcc", (13, 0), (80, 90))


def test_every_source_is_compiled_and_linked(tmp_path):
    # As csrc/cuda/CMakeLists.txt: C++17, machine code and PTX of one GPU, the runtime linked in and hidden.
    each, link, module = build.commands(TOOLS, 90, tmp_path / "include", tmp_path)
    folder = ROOT / "csrc" / "cuda"
    sources = {str(p) for p in (*folder.glob("*.cu"), *folder.glob("*.cpp"))}
    assert {command[command.index("-c") + 1] for command in each} == sources
    assert all(command[-1] in link for command in each) and link[-1] == str(module)
    for command in each:
        assert "-std=c++17" in command and "-O3" in command and str(ROOT / "csrc") in command
        gpu = "-gencode=arch=compute_90,code=[sm_90,compute_90]"
        assert (gpu in command) == any(word.endswith(".cu") for word in command)
    assert "--cudart=static" in link
    assert (tmp_path / "exports.map").read_text() == "{ global: PyInit__cuda; local: *; };\n"


def test_a_failing_compiler_is_a_sentence(tmp_path):
    program = "import sys; print('x.cu(3): error: no such thing', file=sys.stderr); sys.exit(2)"
    with pytest.raises(build_cuda.CannotBuild, match=r"do not compile: .*no such thing"):
        build.compile_all([[sys.executable, "-c", program]], ["true"], 1)


def test_pybind11_is_taken_from_torch_or_missed(tmp_path, monkeypatch):
    # torch brings the headers; without both, a sentence.
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "pybind11" else real(n))
    found = build.headers(tmp_path)
    assert (found / "pybind11" / "pybind11.h").exists() and not (found / "torch").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None)
    with pytest.raises(build_cuda.Absent, match="pybind11"):
        build.headers(tmp_path)


def test_without_nvcc_the_part_is_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "find", lambda name: None)
    monkeypatch.setattr(overlay, "built", lambda: None)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    overlay.make(tmp_path / "o")
    done = build.place(tmp_path / "o", 90, 1)
    assert done["status"] == "absent" and "no nvcc was found" in done["detail"]


def test_the_overlay_is_imported_and_the_sources_stay_as_they_are(tmp_path):
    before = sorted(p.name for p in (ROOT / "softdiff_kernels").iterdir())
    place = overlay.make(tmp_path / "o")
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


def test_a_module_older_than_the_sources_is_not_taken(tmp_path):
    for name in ("softdiff_kernels/_cuda.x.so", "csrc/cuda/a.cu"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    module, source = tmp_path / "softdiff_kernels/_cuda.x.so", tmp_path / "csrc/cuda/a.cu"
    os.utime(source, (100, 100))
    os.utime(module, (200, 200))
    assert overlay.built(tmp_path) == module
    os.utime(source, (300, 300))
    assert overlay.built(tmp_path) is None
