# SPDX-License-Identifier: Apache-2.0
"""The shim that executes CUDA kernels on the CPU finds races and mistakes, and refuses what CUDA refuses."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from cuda_shim.build import BuildError, asan_env, build
from cuda_shim.hooks import Hooks, Launch
from cuda_shim.loaded import ORDERS, SOURCES, address, k, order, path

__all__ = ["k", "order", "path"]  # fixtures

INVALID_VALUE, INVALID_CONFIGURATION = 1, 9


@pytest.fixture
def hooks(k):
    hooks = Hooks(k.__file__)
    hooks.forget_launches()
    yield hooks
    hooks.set_shared_optin(227 << 10)


def wrong_orders(run, monkeypatch):
    wrong = []
    for name in ORDERS:
        monkeypatch.setenv("SOFTDIFF_SHIM_ORDER", name)
        if not run():
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("step", [1, -1, 32, -32, 3])
def test_missing_barrier_after_a_write(k, monkeypatch, step):
    def run(synchronised):
        out = np.full(256, -1, np.int32)
        k.neighbour(step, synchronised, address(out), 256)
        other = np.arange(256) + step
        return np.array_equal(out, np.where((other >= 0) & (other < 256), other, 0))

    assert wrong_orders(lambda: run(True), monkeypatch) == []
    assert ("forward" if step > 0 else "reverse") in wrong_orders(lambda: run(False), monkeypatch)


def test_missing_barrier_before_the_next_write(k, monkeypatch):
    def run(synchronised):
        out = np.full(128, -1, np.int32)
        k.rounds(5, synchronised, address(out), 128)
        return np.all(out == 10 * 127 * 128 // 2)

    assert wrong_orders(lambda: run(True), monkeypatch) == []
    assert {"forward", "reverse"} <= set(wrong_orders(lambda: run(False), monkeypatch))


def test_unknown_order_is_refused(k, monkeypatch):
    monkeypatch.setenv("SOFTDIFF_SHIM_ORDER", "sideways")
    with pytest.raises(RuntimeError, match="'sideways': expected forward, reverse or shuffle:SEED"):
        k.shuffle(1, address(np.zeros(64, np.int32)))


MISTAKES = {
    "diverged_shuffles": r"__shfl_xor_sync \(errors.cu:\d+\): thread \(\d+, 0, 0\) waits at __shfl_xor_sync",
    "lane_left": r"thread \(3[2-9], 0, 0\).*__any_sync|__any_sync.*thread \(37, 0, 0\) has ended",
    "lane_left_first": r"__any_sync.*\(32, 0, 0\) has ended|\(32, 0, 0\), at the kernel's end.*__any_sync",
    "barrier_missed": r"\(63, 0, 0\), at the kernel's end: .*__sync|\(63, 0, 0\) has ended",
    "barrier_missed_by_first": r"\(0, 0, 0\), at the kernel's end: .*__sync|\(0, 0, 0\) has ended",
    "two_barriers": r"__syncthreads \(errors.cu:\d+\): thread .* waits at __syncthreads \(errors.cu:\d+\)",
    "barrier_and_warp": r"(__sync|__any).*thread .* waits at __(any|sync)",
    "warp_and_barrier": r"(__sync|__any).*thread .* waits at __(any|sync)",
    "half_a_mask": r"__any_sync .*the mask names some lanes only",
    "shared_too_big": r"the arrays take 416 bytes of shared memory, the launch gave dynamicSmemBytes = 400",
    "shared_mismatch": r"array 0 of shared memory has \d+ bytes here and \d+ in another thread",
    "negative_count": r"Arena::take .*a negative count",
    "beyond_the_warp": r"__shfl_xor_sync .*the lanes' distance is not within 0 to 31",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(k, order, name):
    out = np.zeros(64, np.int32)
    for _ in range(3):  # the dropped threads of one launch leave the next one sound
        with pytest.raises(RuntimeError, match=MISTAKES[name]) as error:
            k.mistake(name, address(out))
        kernel = rf"CUDA shim: kernel \(anonymous namespace\)::{name}, "
        error.match(kernel + r"block \([01], [01], 0\), thread \(\d+, 0, 0\), at ")
        if name in ("two_barriers", "diverged_shuffles"):
            lines = {part.split(")")[0] for part in str(error.value).split("errors.cu:")[1:]}
            assert len(lines) == 2
        marks = np.zeros((5, 3, 2, 64), np.int32)
        k.visit(address(marks))
        assert marks.all()


def test_an_exception_in_a_kernel_comes_out_of_the_launch(k):
    sentence = r"kernel .*thrown, .*thread \(0, 0, 0\): the kernel threw: a table's end"
    with pytest.raises(RuntimeError, match=sentence):
        k.mistake("thrown", 0)


def test_partial_warps_are_refused(k):
    words = np.zeros(64, np.int32)
    sentence = r"vote_kernel was launched with blocks of 48 threads; .*multiples of 32"
    with pytest.raises(RuntimeError, match=sentence):
        k.votes(address(words), address(words), 48)


@pytest.mark.parametrize(
    "grid, block, shared, allowed, code",
    [
        ((1, 1, 1), (1024, 1, 1), 0, 0, 0),
        ((3, 2, 1), (8, 8, 1), 48 << 10, 48 << 10, 0),
        ((1, 1, 1), (32, 1, 1), 227 << 10, 227 << 10, 0),
        ((1, 1, 1), (1056, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (32, 33, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (1, 1, 96), 0, 0, INVALID_CONFIGURATION),
        ((0, 1, 1), (32, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (32, 0, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 65536, 1), (32, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 65536), (32, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((2**31, 1, 1), (32, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (32, 1, 1), 1025, 1024, INVALID_VALUE),
        ((1, 1, 1), (32, 1, 1), 0, (227 << 10) + 1, INVALID_VALUE),
    ],
)
def test_launch_limits(k, hooks, grid, block, shared, allowed, code):
    assert k.empty(*grid, *block, shared, allowed) == code
    ran = [] if code else [Launch("(anonymous namespace)::empty_kernel", grid, block, shared)]
    assert hooks.launches() == ran


def test_shared_memory_above_48_kib_must_be_allowed_first(k):
    assert k.never_allowed(48 << 10) == 0
    assert k.never_allowed((48 << 10) + 1) == INVALID_VALUE


def test_hooks(k, hooks):
    words = np.zeros(64, np.int32)
    hooks.fail_next(719)
    with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure"):
        k.shuffle(1, address(words))
    assert hooks.launches() == []
    k.shuffle(1, address(words))
    assert [launch.kernel for launch in hooks.launches()] == ["(anonymous namespace)::shuffle_kernel"]
    assert [k.attribute(which) for which in (16, 38, 75, 76)] == [4, 1 << 20, 9, 0]
    assert k.attribute(97) == 227 << 10
    hooks.set_shared_optin(64 << 10)
    assert k.attribute(97) == 64 << 10
    assert k.empty(1, 1, 1, 32, 1, 1, 0, 99 << 10) == INVALID_VALUE


SOUND = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("shim_kernels", sys.argv[1])
k = importlib.util.module_from_spec(spec)
spec.loader.exec_module(k)
a = lambda array: array.ctypes.data
source, out = np.arange(512, dtype=np.float32), np.zeros(512, np.float32)
def offsets(read=0, write=0, shared=0):
    k.offsets(a(source) + 4 * (512 - 32), read, a(out) + 4 * (512 - 32), write, shared)
"""
UNDER_ASAN = {
    "sound": "offsets(); k.rounds(3, True, a(out), 128)",
    "global_read": "offsets(read=1)",
    "global_write": "offsets(write=1)",
    "shared": "offsets(shared=1)",
    "shared_before": "offsets(shared=-1)",
    "misaligned": "k.offsets(a(source) + 2, 0, a(out), 0, 0)",
    "after_errors": """
for name in ("diverged_shuffles", "barrier_missed", "shared_too_big", "two_barriers") * 3:
    try:
        k.mistake(name, a(out))
    except RuntimeError as error:
        assert name in str(error)
    else:
        raise AssertionError(name)
    k.rounds(3, True, a(out), 128)
""",
}


@pytest.fixture(scope="module")
def asan_path(tmp_path_factory):
    return build("shim_kernels", SOURCES, tmp_path_factory.mktemp("shim_asan"), asan=True, flags=["-O1"])


@pytest.mark.parametrize("name", UNDER_ASAN)
def test_under_asan(asan_path, name):
    program = SOUND + UNDER_ASAN[name] + "\nprint('end')"
    command = [sys.executable, "-c", program, str(asan_path)]
    done = subprocess.run(command, env=asan_env(), capture_output=True, text=True, timeout=120)
    if name in ("sound", "after_errors"):
        # Without x86-64's own switch, ASan warns once of swapcontext.
        assert (done.returncode, done.stdout) == (0, "end\n") and "ERROR" not in done.stderr
        return
    assert done.returncode != 0 and "end" not in done.stdout
    found = "misaligned address" if name == "misaligned" else "heap-buffer-overflow"
    assert found in done.stderr and "races.cu" in done.stderr


def test_warnings_are_errors_and_shared_variables_do_not_compile(tmp_path):
    lines = {"__global__ void f(int unused) {}": "unused parameter", "__shared__ int x;": "__shared__"}
    for line, why in lines.items():
        source = tmp_path / "k.cu"
        source.write_text(f"#include <cuda_runtime.h>\n{line}\n")
        with pytest.raises(BuildError, match=why):
            build("k", [source], tmp_path)


def test_built_once(path, tmp_path):
    start = time.perf_counter()
    again = build("shim_kernels", SOURCES, tmp_path)
    assert time.perf_counter() - start < 3 and again.read_bytes() == path.read_bytes()
