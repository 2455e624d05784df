# SPDX-License-Identifier: Apache-2.0
"""The switches of the CUDA build, its record, and a sentence for every way in which kernels cannot run."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from softdiff_kernels.backends import installed, protocol
from softdiff_kernels.backends.cuda import diagnosis
from softdiff_kernels.backends.cuda.diagnosis import Facts, diagnose
from softdiff_kernels.backends.installed import Record
from softdiff_kernels.commands import doctor

ROOT = Path(__file__).resolve().parents[2]
needs_sources = pytest.mark.skipif(
    not (ROOT / "build_cuda.py").exists(), reason="the package's sources are not here"
)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT))
    import build_cuda

    yield build_cuda
    sys.modules.pop("build_cuda")


def fake_nvcc(
    folder: Path, release: str = "13.0", gpus: str = "sm_80 sm_86 sm_89 sm_90 sm_100 sm_120"
) -> Path:
    """A toolkit folder whose nvcc only answers questions."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        '#!/bin/sh\ncase "$1" in\n'
        f'--version) echo "Cuda compilation tools, release {release}, V{release}.1";;\n'
        f"--list-gpu-code) echo {gpus};;\nesac\n"
    )
    nvcc.chmod(0o755)
    return folder


@needs_sources
class TestSwitches:
    """build_cuda.py: whether to build, with what, for what."""

    def test_auto_builds_except_where_it_would_surprise(self, build: ModuleType) -> None:
        assert build.why_not_wanted({}, editable=False) == ""
        assert build.why_not_wanted({"SOFTDIFF_CUDA": ""}, editable=False) == ""
        assert "SOFTDIFF_CUDA=1" in build.why_not_wanted({}, editable=True)
        assert "SOFTDIFF_BUILD=python" in build.why_not_wanted({"SOFTDIFF_BUILD": "python"}, editable=False)

    def test_one_and_zero_overrule_auto(self, build: ModuleType) -> None:
        assert build.why_not_wanted({"SOFTDIFF_CUDA": "1"}, editable=True) == ""
        assert "SOFTDIFF_CUDA=0" in build.why_not_wanted({"SOFTDIFF_CUDA": "0"}, editable=False)

    def test_other_values_and_contradictions_are_refused(self, build: ModuleType) -> None:
        with pytest.raises(ValueError, match="SOFTDIFF_CUDA must be one of auto, 0, 1, got 'yes'"):
            build.why_not_wanted({"SOFTDIFF_CUDA": "yes"}, editable=False)
        with pytest.raises(ValueError, match="SOFTDIFF_CUDA=1 asks for a compiled module"):
            build.why_not_wanted({"SOFTDIFF_CUDA": "1", "SOFTDIFF_BUILD": "python"}, editable=False)

    def test_cuda_home_goes_before_cuda_path_before_path(self, build: ModuleType, tmp_path: Path) -> None:
        home, path, last = (fake_nvcc(tmp_path / name) for name in ("home", "path", "last"))
        everything = {"CUDA_HOME": str(home), "CUDA_PATH": str(path), "PATH": str(last / "bin")}
        for expected, variable in ((home, "CUDA_HOME"), (path, "CUDA_PATH"), (last, "PATH")):
            assert build.find_nvcc(everything) == str(expected / "bin" / "nvcc")
            del everything[variable]

    def test_no_nvcc_is_no_news_but_a_wrong_cuda_home_is(self, build: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(build.Absent, match="no nvcc was found on PATH"):
            build.find_toolkit({"PATH": str(tmp_path)})
        good = fake_nvcc(tmp_path / "good")
        with pytest.raises(build.CannotBuild, match="CUDA_HOME is /nowhere, where no bin/nvcc") as caught:
            build.find_toolkit({"CUDA_HOME": "/nowhere", "PATH": str(good / "bin")})
        assert not isinstance(caught.value, build.Absent)

    def test_an_old_nvcc_has_its_sentence(self, build: ModuleType, tmp_path: Path) -> None:
        old = fake_nvcc(tmp_path / "old", release="12.6")
        with pytest.raises(build.CannotBuild, match=r"is of CUDA 12.6, but the kernels need 12.8 or later"):
            build.find_toolkit({"CUDA_HOME": str(old)})
        # As numbers: 12.10 would come before 12.8 as text.
        build.check_version("nvcc", (12, 10))

    def test_an_nvcc_that_fails_is_named(self, build: ModuleType, tmp_path: Path) -> None:
        broken = fake_nvcc(tmp_path / "broken")
        (broken / "bin" / "nvcc").write_text("#!/bin/sh\nexit 3\n")
        with pytest.raises(build.CannotBuild, match="nvcc --version failed"):
            build.find_toolkit({"CUDA_HOME": str(broken)})

    def test_architectures(self, build: ModuleType, tmp_path: Path) -> None:
        """Rule: oldest first, each once, all known to nvcc; the default is what the wheels have."""
        toolkit = build.find_toolkit({"CUDA_HOME": str(fake_nvcc(tmp_path / "cuda"))})
        assert toolkit.tag == "cu130" and toolkit.release == "13.0"
        assert build.parse_archs(None, toolkit) == build.parse_archs("", toolkit) == (80, 90, 100, 120)
        assert build.parse_archs("120;90, 90", toolkit) == (90, 120)
        with pytest.raises(build.CannotBuild, match=r"compiles for 80, .*, 120, but not for 70 as asked"):
            build.parse_archs("70;80", toolkit)
        with pytest.raises(ValueError, match="SOFTDIFF_CUDA_ARCHS must be numbers like 80;90, got 'sm_80'"):
            build.parse_archs("sm_80", toolkit)

    def test_local_version(self, build: ModuleType) -> None:
        assert build.local_version(None) == "" and build.local_version("cu130") == "cu130"
        for wrong in ("+cu130", "cu 130", "CU130", "cu130-1"):
            with pytest.raises(ValueError, match="SOFTDIFF_LOCAL_VERSION must be letters and digits"):
                build.local_version(wrong)

    def test_resources_are_gathered_from_objects_that_are_there(
        self, build: ModuleType, tmp_path: Path
    ) -> None:
        for name in ("a", "b", "gone"):
            (tmp_path / f"{name}.cu.o.ptxas").write_text(f"kernel of {name}\n")
            if name != "gone":
                (tmp_path / f"{name}.cu.o").touch()
        build.gather_resources(tmp_path)
        text = (tmp_path / "ptxas.log").read_text()
        assert text == "a.cu.o\nkernel of a\nb.cu.o\nkernel of b\n"


def test_records_of_all_ages_are_read(tmp_path: Path) -> None:
    """Rule: an old record says that it knows nothing of CUDA, a lost or damaged one that there is none."""
    old = {"native": True, "reason": "", "compiler": "GNU 12"}
    assert installed.parse(json.dumps(old)) == Record(True, "", "GNU 12", cuda_reason=installed.OLD)
    new = {**old, "cuda": True, "cuda_reason": "", "cuda_archs": [80, 120], "cuda_ptx": 120, "nvcc": "13.0"}
    expected = Record(True, "", "GNU 12", True, "", (80, 120), 120, "13.0")
    assert installed.parse(json.dumps({**new, "of a later version": 1})) == expected
    for damaged in ("", "{", "[]", "null"):
        assert installed.parse(damaged) == Record()
    assert installed.read(tmp_path / "none.json") == Record()
    assert "record" in Record().cuda_reason


BUILT = Record(native=True, cuda=True, cuda_reason="", cuda_archs=(80, 86, 90, 120), cuda_ptx=120)
HOPPER = Facts(
    record=BUILT,
    torch_version="2.13.0",
    torch_cuda="13.0",
    torch_sees_gpu=True,
    devices=((9, 0),),
    architectures=(80, 86, 90, 120),
    ptx=120,
    runtime=13000,
    driver=13000,
)
# (what differs from a Hopper on which all is well, whether the kernels work, what the sentence must say)
CASES = {
    "works": ({}, True, "fused CUDA kernels (sm_80, sm_86, sm_90, sm_120; CUDA 13.0)"),
    "a later minor version runs the code of an earlier": ({"devices": ((8, 9),)}, True, "fused CUDA kernels"),
    "old record": (
        {"import_error": "No module", "record": installed.parse('{"native": true}')},
        False,
        "installed without the CUDA kernels: the build was of a version that had none",
    ),
    "left out": (
        {"import_error": "No module", "record": Record(cuda_reason="no nvcc was found on PATH")},
        False,
        "installed without the CUDA kernels: no nvcc was found on PATH; see docs/building.md",
    ),
    "left out without a reason": (
        {"import_error": "No module named x", "record": Record(cuda_reason="")},
        False,
        "No module named x, and the build gave no reason",
    ),
    "does not import": (
        {"import_error": "undefined symbol"},
        False,
        "the CUDA kernels were built, but do not import: undefined symbol",
    ),
    "emulated": ({"emulated": True, "torch_cuda": None, "devices": ()}, True, "emulated on the CPU"),
    "ROCm": ({"torch_hip": "6.4", "torch_cuda": None}, False, "torch is built for ROCm"),
    "CPU torch": (
        {"torch_cuda": None, "torch_sees_gpu": False, "driver": 0},
        False,
        "torch 2.13.0 is built for the CPU alone",
    ),
    "CPU torch beside a driver": (
        {"torch_cuda": None, "torch_sees_gpu": False},
        False,
        "though an NVIDIA driver for CUDA 13.0 is here: install a CUDA build of torch",
    ),
    "no GPU": (
        {"torch_sees_gpu": False, "driver": 0, "devices": ()},
        False,
        "torch finds no GPU; no NVIDIA driver is loaded",
    ),
    "GPU hidden": (
        {"torch_sees_gpu": False, "driver": 12040, "devices": ()},
        False,
        "torch finds no GPU, though an NVIDIA driver for CUDA 12.4 is here and torch is built for CUDA 13.0",
    ),
    "no device": ({"devices": ()}, False, "finds no GPU"),
    "old driver": (
        {"driver": 12080, "torch_cuda": "12.8"},
        False,
        "driver knows CUDA up to 12.8, but the CUDA kernels are of 13.0: driver 580 or later is needed",
    ),
    "old driver, CUDA 12": ({"driver": 11080, "runtime": 12080}, False, "driver 525 or later is needed"),
    "old driver, CUDA 14": ({"runtime": 14000}, False, "a driver for CUDA 14 is needed"),
    "older minor version of the driver": ({"runtime": 13020}, True, "fused CUDA kernels"),
    "old GPU": (
        {"devices": ((7, 0),)},
        False,
        "the GPU is sm_70, and the CUDA kernels are compiled for sm_80, sm_86, sm_90, sm_120: it is too old",
    ),
    "GPU of a generation left out": ({"devices": ((10, 0),)}, False, "a GPU of that generation does not run"),
    "GPU newer than all": (
        {"devices": ((13, 0),)},
        True,
        "compiled by the driver for sm_130 at first use",
    ),
    "GPU newer than all, driver older than the PTX": (
        {"devices": ((13, 0),), "runtime": 13020},
        False,
        "a driver for CUDA 13.2 or later could compile them for it, but the one here knows CUDA up to 13.0",
    ),
    "GPU newer than all, no PTX": ({"devices": ((13, 0),), "ptx": None}, False, "does not run"),
    "one GPU of two": ({"devices": ((7, 5), (9, 0))}, True, "not on every GPU here: the GPU is sm_75"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_its_sentence(case: str) -> None:
    changes, usable, said = CASES[case]
    found, sentence = diagnose(replace(HOPPER, **changes))
    assert found is usable, sentence
    assert said in sentence
    # Rule: words that fit behind "does not work here:", never an unknown or an empty place in the sentence.
    assert "unknown" not in sentence and "  " not in sentence and ": ;" not in sentence
    assert not sentence.endswith((".", ":", ",", ", "))


def test_a_warning_is_given_once_for_each_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_warned", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for reason in ("first", "second", "first", "first"):
            protocol.warn_once(reason)
    assert [str(w.message) for w in caught] == ["softdiff_kernels: first", "softdiff_kernels: second"]
    assert all(w.category is RuntimeWarning and w.filename == __file__ for w in caught)


def test_a_missing_module_is_told_by_doctor_and_by_the_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: both give the build record's reason, and asking for the facts never raises."""
    monkeypatch.setitem(sys.modules, "softdiff_kernels._cuda", None)
    monkeypatch.setattr(installed, "read", lambda: Record(cuda_reason="no nvcc was found on PATH"))
    usable, sentence = diagnose(diagnosis.gather())
    assert not usable and "no nvcc was found on PATH" in sentence
    assert doctor._cuda_module() == f"absent: {sentence}"


def test_doctor_tells_what_the_module_is(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("softdiff_kernels._cuda")
    answers = {"architectures": (80, 120), "ptx_architecture": 120, "runtime_version": 13000}
    for name, value in {**answers, "driver_version": 0, "emulated": False}.items():
        setattr(module, name, lambda value=value: value)
    monkeypatch.setitem(sys.modules, "softdiff_kernels._cuda", module)
    assert doctor._cuda_module() == "sm_80, sm_120, PTX of sm_120; CUDA 13.0 linked in; no driver"
    module.driver_version = lambda: 13010  # type: ignore[attr-defined]
    assert doctor._cuda_module().endswith("; driver for CUDA 13.1")
