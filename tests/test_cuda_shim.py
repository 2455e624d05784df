# SPDX-License-Identifier: Apache-2.0
"""The shim that executes CUDA kernels on the CPU: it computes what a GPU would, and catches what it is there to catch.

Kernels: tests/cuda_shim/kernels/. The layouts of fragments are written here once more, from the PTX ISA, by element.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pybind11")
if shutil.which("g++") is None or platform.system() != "Linux":
    pytest.skip("the shim is built with g++ on Linux", allow_module_level=True)

HERE = Path(__file__).parent / "cuda_shim"
sys.path.insert(0, str(HERE))
from hooks import Hooks, Launch  # noqa: E402

from build import BuildError, asan_env, build  # noqa: E402

SOURCES = sorted([*(HERE / "kernels").glob("*.cu"), *(HERE / "kernels").glob("*.cpp")])
ORDERS = ["forward", "reverse", "shuffle:0", "shuffle:1", "shuffle:2", "shuffle:3"]
INVALID_VALUE, INVALID_CONFIGURATION = 1, 9


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build("shim_kernels", SOURCES, tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def k(path):
    spec = importlib.util.spec_from_file_location("shim_kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hooks(k):
    hooks = Hooks(k.__file__)
    hooks.forget_launches()
    yield hooks
    hooks.set_shared_optin(99 << 10)


@pytest.fixture(params=ORDERS)
def order(request, monkeypatch):
    monkeypatch.setenv("SOFTDIFF_SHIM_ORDER", request.param)
    return request.param


def halves(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def address(array):
    return array.ctypes.data


# --- the warp's instructions


def mma(k, a, b, c):
    """a [warps, 16, 16], b [warps, 16, 8] float16, c [warps, 16, 8] float32; fragments as the PTX ISA numbers them."""
    warps = len(a)
    words = np.zeros((warps, 32, 10), np.uint32)
    pairs, floats = words.view(np.float16), words.view(np.float32)
    place = [(lane, i, lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)) for lane in range(32) for i in range(4)]
    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for i in range(8):  # a_i: row groupID for i in 0, 1, 4, 5, else groupID + 8; columns from 8 on for i >= 4
            row, column = group + (0 if i in (0, 1, 4, 5) else 8), thread * 2 + (i & 1) + (8 if i >= 4 else 0)
            pairs[:, lane, i] = a[:, row, column]
        for i in range(4):  # b_i: row in the thread's pair, 8 further for i >= 2; column groupID
            pairs[:, lane, 8 + i] = b[:, thread * 2 + (i & 1) + (8 if i >= 2 else 0), group]
    for lane, i, row, column in place:
        floats[:, lane, 6 + i] = c[:, row, column]
    out = np.full((warps, 32, 4), np.nan, np.float32)
    k.mma(address(words), address(out), 32 * warps)
    d = np.zeros_like(c)
    for lane, i, row, column in place:
        d[:, row, column] = out[:, lane, i]
    return d


def test_mma(k, order):
    a, b = halves(2, 16, 16), halves(2, 16, 8, seed=1)
    c = np.random.default_rng(2).standard_normal((2, 16, 8)).astype(np.float32)
    truth = a.astype(np.float64) @ b.astype(np.float64) + c
    d = mma(k, a, b, c)
    # The sum is exact to float64 and then cut to float32 towards zero: an error of one ulp at most, never outwards.
    assert np.all(np.abs(d) <= np.abs(truth))
    assert np.all(np.abs(d - truth) <= np.spacing(np.abs(d)))


def test_mma_of_subnormals_and_infinities(k):
    # Halves below 2^-14 count in full; infinity times 1 is infinity; infinity times 0 is NaN.
    a, b, c = np.zeros((1, 16, 16), np.float16), np.zeros((1, 16, 8), np.float16), np.zeros((1, 16, 8), np.float32)
    a[0, 3, 5], b[0, 5, :] = 2.0**-24, 2.0**-20
    a[0, 9, 7], b[0, 7, 1] = np.inf, 1.0
    d = mma(k, a, b, c)[0]
    assert np.all(d[3] == 2.0**-44)
    assert d[9, 1] == np.inf and np.isnan(d[9, 0]) and np.all(np.isfinite(np.delete(d, 9, axis=0)))


def test_ldmatrix(k, order):
    # Register m of lane l: elements (l / 4, l % 4 * 2 + {0, 1}) of matrix m, or of its transpose; row r of matrix m lies
    # where lane 8 m + r says.
    matrices = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8) + 1000
    rows = np.random.default_rng(0).permutation(32).astype(np.int32)
    out = np.zeros((32, 2, 4, 2), np.uint16)
    k.ldmatrix(address(matrices), address(rows), address(out))
    chosen = matrices[rows].reshape(4, 8, 8)
    for lane in range(32):
        r, c = lane // 4, lane % 4 * 2
        assert np.array_equal(out[lane, 0], chosen[:, r, c : c + 2])
        assert np.array_equal(out[lane, 1], chosen.transpose(0, 2, 1)[:, r, c : c + 2])


def test_movmatrix(k):
    # Lane l holds elements (l / 4, l % 4 * 2 + {0, 1}), so the lanes' words in order are the matrix, row by row.
    matrix = np.arange(64, dtype=np.uint16).reshape(8, 8) + 7
    out = np.zeros((8, 8), np.uint16)
    k.movmatrix(address(matrix), address(out))
    assert np.array_equal(out, matrix.T)


@pytest.mark.parametrize("width", [32, 16, 8, 1])
def test_shuffles(k, width):
    # A lane whose source lies outside its segment keeps its own value.
    operand = np.random.default_rng(width).integers(0, 32, 32).astype(np.int32)
    out = np.full((32, 4), -1, np.int32)
    k.shuffles(address(operand), width, address(out))
    for lane in range(32):
        first, o = lane // width * width, int(operand[lane])
        up, down, cross = lane - o, lane + o, lane ^ o
        assert list(out[lane]) == [
            first + o % width,
            up if up >= first else lane,
            down if down < first + width else lane,
            cross if cross < first + width else lane,
        ]


@pytest.mark.parametrize("lanes", [[], [0], [31], [3, 40], list(range(64))], ids=str)
def test_votes(k, order, lanes):
    # ballot, any and all see one warp, __syncthreads_or the block.
    votes = np.zeros(64, np.int32)
    votes[lanes] = 2
    out = np.zeros((64, 4), np.uint32)
    k.votes(address(votes), address(out), 64)
    for t in range(64):
        warp = votes[t // 32 * 32 :][:32] != 0
        mask = sum(1 << int(i) for i in np.flatnonzero(warp))
        assert [int(v) for v in out[t, :3]] == [mask, int(warp.any()), int(warp.all())]
        assert out[t, 3] == (2 if lanes else 0)


# --- arithmetic


def test_half_to_float_for_all_halves(k):
    # Exact for all 65536 halves, by F16C and by integers; NaN stays NaN.
    words = np.arange(1 << 16, dtype=np.uint16)
    brain_in = words[: 1 << 15].copy()
    out, portable = np.zeros(1 << 16, np.float32), np.zeros(1 << 16, np.float32)
    brain = np.zeros(1 << 15, np.float32)
    k.from_half(*map(address, (words,)), 1 << 15, *map(address, (out, portable, brain_in, brain)))
    truth = words.view(np.float16).astype(np.float32)
    for got in (out, portable):
        assert np.array_equal(got, truth, equal_nan=True)
        assert np.array_equal(np.signbit(got), np.signbit(truth))
    expected = torch.from_numpy(brain_in.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(brain, expected, equal_nan=True)


def many_floats():
    """Every half, the middle between each and the next, the floats beside all these, and random words."""
    half = np.arange(1 << 15, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = half[np.isfinite(half)]
    middle = np.append((finite[1:] + finite[:-1]) / 2, np.float32(65520))
    near = [np.nextafter(v, np.float32(s)) for v in (finite, middle) for s in (0, np.inf)]
    brain = (np.arange(1 << 16, dtype=np.uint32) << 15).view(np.float32)  # every bfloat16 and every middle
    beside = [(brain.view(np.uint32) + np.uint32(d)).view(np.float32) for d in (1, 0xFFFFFFFF)]
    rng = np.random.default_rng(0)
    words = rng.integers(0, 1 << 32, 1 << 19, dtype=np.uint32).view(np.float32)
    ordinary = rng.standard_normal(1 << 18).astype(np.float32) * np.float32(2.0) ** rng.integers(-26, 17, 1 << 18)
    values = np.concatenate([half, middle, *near, brain, *beside, words, ordinary.astype(np.float32)])
    return np.concatenate([values, -values])


def test_float_to_half_and_bfloat16(k):
    # To the nearest, ties to even: numpy's float16 and torch's bfloat16 bit by bit; overflow to infinity; NaN stays NaN.
    values = many_floats()
    n = len(values)
    pair, portable, brain = np.zeros((n, 2), np.uint16), np.zeros(n, np.uint16), np.zeros(n, np.uint16)
    k.to_half(address(values), n, *map(address, (pair, portable, brain)))
    with np.errstate(over="ignore", invalid="ignore"):
        truth = values.astype(np.float16)
    nan = np.isnan(values)
    assert nan.any() and np.isinf(truth).any()
    # The first argument of __floats2half2_rn is the low half.
    for got, sign in ((pair[:, 0], 0), (portable, 0), (pair[:, 1], 0x8000)):
        assert np.array_equal(got[~nan] ^ np.uint16(sign), truth.view(np.uint16)[~nan])
        assert np.all(np.isnan(got.view(np.float16)[nan]))
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(brain[~nan], expected[~nan])
    assert np.all(brain[nan] & 0x7FFF > 0x7F80)


@pytest.mark.parametrize("a, b, shift", [(0, 5, 0), (0x80000000, 3, 1), (0x12345678, 0x9ABCDEF0, 31), (1, 1, 32)])
def test_bit_functions(k, a, b, shift):
    words, out = np.array([a, b, shift], np.uint32), np.zeros(6, np.uint32)
    k.bits(address(words), address(out))
    joined = ((b << 32 | a) << (shift % 32)) >> 32 & 0xFFFFFFFF
    leading = 32 - a.bit_length()
    assert out.tolist() == [a * b >> 32, leading, bin(a).count("1"), joined, a & 0x7F000000, b & 0x3F000000]


def test_every_thread_of_every_block_runs_once(k, order):
    marks = np.zeros((5, 3, 2, 2, 4, 8), np.int32)  # grid (2, 3, 5), block (8, 4, 2)
    k.visit(address(marks))
    y = 10 * np.arange(3).reshape(1, 3, 1, 1, 1, 1)
    z = np.arange(2).reshape(1, 1, 1, 2, 1, 1)
    assert np.array_equal(marks, np.broadcast_to(1 + y + z, marks.shape))


def test_atomics(k, order):
    f, d = np.zeros(1, np.float32), np.zeros(1, np.float64)
    u, i = np.array([2**32 - 1, 7], np.uint32), np.array([-(2**31), -5000], np.int32)
    k.atomics(*map(address, (f, d, u, i)))
    # 192 threads; integers wrap around.
    assert f[0] == 192 and d[0] == 96
    assert u.tolist() == [2 * 192 - 1, 191] and i.tolist() == [2**31 - 192, 191 - 1000]


def test_speed(k):
    # 8 warps, 4000 products each: seconds would make whole images impossible. Takes 0.1 s on a Xeon at 2 GHz.
    out = np.zeros(256, np.float32)
    start = time.perf_counter()
    k.many(4000, address(out))
    assert time.perf_counter() - start < 5
    assert np.all(out == 16 * 4000)


# --- races: the right kernel is right in every order, each wrong one is wrong in some


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


def test_missing_syncwarp_before_ldmatrix(k, monkeypatch):
    def run(synchronised):
        out = np.zeros((32, 4), np.uint32)
        k.warp_rows(synchronised, address(out))
        lane, matrix = np.arange(32)[:, None], np.arange(4)[None]
        return np.array_equal(out, ((matrix * 8 + lane // 4) ^ 1) * 0x10001)

    assert wrong_orders(lambda: run(True), monkeypatch) == []
    assert wrong_orders(lambda: run(False), monkeypatch) == ORDERS


def test_missing_wait_after_a_copy_or_barrier_before_it(k, monkeypatch):
    def run(stages, early=False, barrier=True):
        source = np.random.default_rng(0).standard_normal((stages, 64, 4)).astype(np.float32)
        out = np.zeros_like(source)
        k.copies(address(source), stages, early, barrier, address(out), 64)
        return np.array_equal(out, source[:, ::-1])

    assert wrong_orders(lambda: run(5), monkeypatch) == []
    for stages in (1, 5):
        assert wrong_orders(lambda n=stages: run(n, early=True), monkeypatch) == ORDERS
    # Nor may a copy start while another thread has yet to read what lies there.
    assert {"forward", "reverse"} <= set(wrong_orders(lambda: run(5, barrier=False), monkeypatch))


def test_unknown_order_is_refused(k, monkeypatch):
    monkeypatch.setenv("SOFTDIFF_SHIM_ORDER", "sideways")
    with pytest.raises(RuntimeError, match="'sideways': expected forward, reverse or shuffle:SEED"):
        k.movmatrix(*[address(np.zeros(32, np.uint32))] * 2)


# --- mistakes: each raises a sentence that names the kernel, block and thread, and both collectives

MISTAKES = {
    "diverged_shuffles": r"__shfl_xor_sync \(errors.cu:\d+\): thread \(\d+, 0, 0\) waits at __shfl_xor_sync \(err",
    "lane_left": r"thread \(3[2-9], 0, 0\).*__any_sync|__any_sync.*thread \(37, 0, 0\) has ended",
    "lane_left_first": r"__any_sync .*thread \(32, 0, 0\) has ended|thread \(32, 0, 0\), at the kernel's end.*__any_sync",
    "barrier_missed": r"thread \(63, 0, 0\), at the kernel's end: .*__syncthreads|thread \(63, 0, 0\) has ended",
    "barrier_missed_by_first": r"thread \(0, 0, 0\), at the kernel's end: .*__sync|thread \(0, 0, 0\) has ended",
    "two_barriers": r"__syncthreads \(errors.cu:\d+\): thread .* waits at __syncthreads \(errors.cu:\d+\)",
    "barrier_and_warp": r"__sync.*thread .* waits at __sync",
    "warp_and_barrier": r"__sync.*thread .* waits at __sync",
    "half_a_mask": r"__syncwarp .*the mask names some lanes only",
    "shared_too_big": r"the arrays take 416 bytes of shared memory, the launch gave dynamicSmemBytes = 400",
    "shared_mismatch": r"array 0 of shared memory has \d+ bytes here and \d+ in another thread",
    "ldmatrix_misaligned": r"ldmatrix_x4 .*not a multiple of 16",
    "ldmatrix_past_the_end": r"ldmatrix_x4_trans .*not inside one array of shared memory",
    "ldmatrix_of_global": r"ldmatrix_x4 .*not inside one array of shared memory",
    "copy_misaligned": r"cp_async16 .*not a multiple of 16",
    "negative_count": r"Arena::take .*a negative count",
    "odd_width": r"__shfl_sync .*width is not a power of 2",
    "copy_past_the_end": r"cp_async16 .*not inside one array of shared memory",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(k, order, name):
    out = np.zeros(1024, np.uint8)
    aligned = address(out) + -address(out) % 16
    for _ in range(3):  # the dropped threads of one launch leave the next one sound
        with pytest.raises(RuntimeError, match=MISTAKES[name]) as error:
            k.mistake(name, aligned)
        head = rf"CUDA shim: kernel \(anonymous namespace\)::{name}, block \([01], [01], 0\), thread \(\d+, 0, 0\), at "
        error.match(head)
        if name in ("two_barriers", "diverged_shuffles"):
            lines = {part.split(")")[0] for part in str(error.value).split("errors.cu:")[1:]}
            assert len(lines) == 2
        test_movmatrix(k)


def test_an_exception_in_a_kernel_comes_out_of_the_launch(k):
    with pytest.raises(RuntimeError, match=r"kernel .*thrown, .*thread \(0, 0, 0\): the kernel threw: a table's end"):
        k.mistake("thrown", 0)


def test_partial_warps_are_refused(k):
    words = np.zeros((2, 32, 10), np.uint32)
    with pytest.raises(RuntimeError, match="mma_kernel was launched with blocks of 48 threads; .*multiples of 32"):
        k.mma(address(words), address(words), 48)


# --- the host's side


@pytest.mark.parametrize(
    "grid, block, shared, allowed, code",
    [
        ((1, 1, 1), (1024, 1, 1), 0, 0, 0),
        ((3, 2, 1), (8, 8, 1), 48 << 10, 48 << 10, 0),
        ((1, 1, 1), (32, 1, 1), 99 << 10, 99 << 10, 0),
        ((1, 1, 1), (1056, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (32, 33, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (1, 1, 96), 0, 0, INVALID_CONFIGURATION),
        ((0, 1, 1), (32, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (32, 0, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 65536, 1), (32, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 65536), (32, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((2**31, 1, 1), (32, 1, 1), 0, 0, INVALID_CONFIGURATION),
        ((1, 1, 1), (32, 1, 1), 1025, 1024, INVALID_VALUE),
        ((1, 1, 1), (32, 1, 1), 0, (99 << 10) + 1, INVALID_VALUE),
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
    words = np.zeros(32, np.uint32)
    hooks.fail_next(719)
    with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure"):
        k.movmatrix(address(words), address(words))
    assert hooks.launches() == []
    k.movmatrix(address(words), address(words))
    assert [launch.kernel for launch in hooks.launches()] == ["(anonymous namespace)::movmatrix_kernel"]
    assert k.attribute(16) == 4 and k.attribute(38) == 1 << 20 and (k.attribute(75), k.attribute(76)) == (9, 0)
    assert k.attribute(97) == 99 << 10 and k.occupancy(256, 0) == 8 and k.occupancy(128, 48 << 10) == 2
    hooks.set_shared_optin(64 << 10)
    assert k.attribute(97) == 64 << 10 and k.occupancy(128, 48 << 10) == 1
    assert k.empty(1, 1, 1, 32, 1, 1, 0, 99 << 10) == INVALID_VALUE


# --- under ASan, in a process of its own

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
    "sound": "offsets(); k.rounds(3, True, a(out), 128); k.copies(a(source), 2, False, True, a(source), 64)",
    "global_read": "offsets(read=1)",
    "global_write": "offsets(write=1)",
    "shared": "offsets(shared=1)",
    "shared_before": "offsets(shared=-1)",
    "misaligned": "k.copies(a(source), 1, False, True, a(out) + 4, 32)",
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
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
        return
    assert done.returncode != 0 and "end" not in done.stdout
    found = "misaligned address" if name == "misaligned" else "heap-buffer-overflow"
    assert found in done.stderr and "races.cu" in done.stderr


# --- the builder


def test_warnings_are_errors_and_shared_variables_do_not_compile(tmp_path):
    for line, why in [("__global__ void f(int unused) {}", "unused parameter"), ("__shared__ int x;", "__shared__")]:
        source = tmp_path / "k.cu"
        source.write_text(f"#include <cuda_runtime.h>\n{line}\n")
        with pytest.raises(BuildError, match=why):
            build("k", [source], tmp_path)


def test_built_once(path, tmp_path):
    start = time.perf_counter()
    again = build("shim_kernels", SOURCES, tmp_path)
    assert time.perf_counter() - start < 3 and again.read_bytes() == path.read_bytes()
