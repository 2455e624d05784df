# SPDX-License-Identifier: Apache-2.0
"""The emulation of the CUDA kernels can fail: kernels broken on purpose are found out, one wrong line each.

Runs with SOFTDIFF_CUDA_SHIM=1, as the emulated kernels' other tests do.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import cuda_sweep
import pytest
from checks import needs_emulation
from cuda_emulated import FLAGS
from cuda_shim.build import asan_env, build

pytestmark = needs_emulation
TESTS = Path(__file__).resolve().parents[1]

NUMBERS = "relative L2 error"
# (file, what is right, what is written in its place, the order of threads or ASan's build, what then shows)
MISTAKES = {
    "a column's stride": ("square.h", "column[i * kStride] = at", "column[i * N] = at", "forward", NUMBERS),
    "a barrier left out": (
        "square.h",
        "  __syncthreads();\n\n  if constexpr (kFilter) {\n    // A warp",
        "  if constexpr (kFilter) {\n    // A warp",
        "reverse",
        NUMBERS,
    ),
    "a place outside shared memory": (
        "small.h",
        "table_w[i] = tables.w[i]",
        "table_w[i + 1] = tables.w[i]",
        "asan",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "a pixel outside global memory": (
        "pixels.h",
        "out[i] = first <= i && i < last ?",
        "out[i] = first <= last ?",
        "asan",
        "AddressSanitizer: heap-buffer-overflow",
    ),
}
SHAPES = "2x1x11x9 1x1x64x64"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_cuda_kernel_is_found(mistake, tmp_path):
    # The emulation can fail: each of these single wrong lines is caught on a machine without a GPU.
    name, right, wrong, how, shows = MISTAKES[mistake]
    shutil.copytree(TESTS.parent / "csrc", tmp_path / "csrc")
    broken = tmp_path / "csrc" / "cuda" / name
    text = broken.read_text()
    assert text.count(right) == 1
    broken.write_text(text.replace(right, wrong))
    folder = tmp_path / "csrc" / "cuda"
    sources = [folder / "corrupt.cu", folder / "device.cu", folder / "bindings.cpp"]
    stub = tmp_path / "csrc" / "cuda" / "corrupt_alone.cpp"
    alone = (TESTS / "cuda_mistakes" / "corrupt_alone.cpp").read_text()
    stub.write_text(alone.replace("../../csrc/cuda/", ""))
    module = build("_cuda", [*sources, stub], tmp_path, flags=[*FLAGS, "-O1"], asan=how == "asan")
    env = asan_env() if how == "asan" else {**os.environ, "SOFTDIFF_SHIM_ORDER": how}
    done = cuda_sweep.run(module, SHAPES, "blur", "corrupt", env=env)
    assert done.returncode != 0
    assert re.search(shows, done.stdout + done.stderr), done.stderr[-2000:]
