# SPDX-License-Identifier: Apache-2.0
"""Registers and stack of the CUDA kernels, as ptxas reported them in this build, against the table."""

from __future__ import annotations

import json
from pathlib import Path

import cuda_resources
import pytest

LOGS = sorted(Path(__file__).resolve().parents[2].glob("build/cuda-*/ptxas.log"))
RECORD = Path(__file__).resolve().parents[2] / "softdiff_kernels" / "_build.json"

NAME = "_ZN8softdiff4cuda13square_kernelINS0_9CorruptOpELi64EEEvNT_4ArgsE"
LINES = f"""\
ptxas info    : Compiling entry function '{NAME}' for 'sm_90'
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 118 registers, used 1 barriers
"""


def test_cuda_resources_are_read():
    assert cuda_resources.read(LINES) == {"square_kernel<CorruptOp, 64>": {"90": [118, 8]}}


def problems(got, table, archs):
    """What a build's kernels do not keep of the table."""
    found = [f"{name} is not in the table" for name in got if name not in table]
    found += [f"{name} was not compiled" for name in table if name not in got]
    for name, row in got.items():
        found += [f"{name} was not compiled for sm_{arch}" for arch in archs if str(arch) not in row]
        for arch, (registers, stack) in row.items():
            if stack > 0:
                found.append(f"{name} on sm_{arch} has {stack} bytes of stack")
            if registers > table.get(name, {}).get(arch, (255,))[0]:
                found.append(f"{name} on sm_{arch} takes {registers} registers")
    return found


def test_cuda_resources_that_grew_are_found():
    table = {"a": {"90": [64, 0]}, "b": {"90": [64, 0]}}
    assert problems(table, table, [90]) == []
    assert problems({"a": {"90": [64, 8]}, "b": {"90": [65, 0]}}, table, [90]) == [
        "a on sm_90 has 8 bytes of stack",
        "b on sm_90 takes 65 registers",
    ]
    missing = ["b was not compiled", "a was not compiled for sm_90"]
    assert problems({"a": {"80": [64, 0]}}, table, [90]) == missing


def test_cuda_sources_that_changed_are_told_from_those_of_the_table(tmp_path):
    # Any file that kernels are compiled from counts, and its name; the table itself does not.
    folder = tmp_path / "csrc" / "cuda"
    folder.mkdir(parents=True)
    counting = ("csrc/heat.h", "csrc/cuda/dct2.cu", "CMakeLists.txt", "build_cuda.py")
    for path in (*counting, "csrc/cuda/resources.json"):
        (tmp_path / path).write_text(path)
    before = cuda_resources.sources(tmp_path)
    (folder / "resources.json").write_text("another")
    assert cuda_resources.sources(tmp_path) == before
    found = {before}
    for path in counting:
        (tmp_path / path).write_text("changed")
        found.add(cuda_resources.sources(tmp_path))
    (folder / "dct2.cu").rename(folder / "corrupt.cu")
    assert len(found | {cuda_resources.sources(tmp_path)}) == 6


@pytest.mark.skipif(not LOGS, reason="this build compiled no CUDA (SOFTDIFF_CUDA=1)")
def test_cuda_kernels_keep_to_their_resources():
    # No spills, and no more registers than the table says, for every architecture of this build.
    table = json.loads(cuda_resources.TABLE.read_text())
    # Nor does the table allow any.
    assert not [name for name, row in table["kernels"].items() if any(stack for _, stack in row.values())]
    record = json.loads(RECORD.read_text())
    if not record["nvcc"].startswith(table["nvcc"]):
        pytest.skip(f"the table is of nvcc {table['nvcc']}, this build of {record['nvcc']}")
    got = cuda_resources.read(LOGS[0].read_text())
    assert problems(got, table["kernels"], record["cuda_archs"]) == []
