# SPDX-License-Identifier: Apache-2.0
"""The shim executes clusters of blocks, and finds what is wrong between them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from cuda_shim.build import asan_env, build
from cuda_shim.hooks import Hooks
from cuda_shim.loaded import ORDERS, SOURCES, address, k, order, path

__all__ = ["k", "order", "path"]  # fixtures

INVALID_VALUE, INVALID_CLUSTER_SIZE = 1, 912


@pytest.fixture
def hooks(k):
    hooks = Hooks(k.__file__)
    hooks.forget_launches()
    yield hooks
    hooks.set_clusters(True)


def exchanged(k, blocks, threads, **barriers):
    """Whether every thread of every block got what its partner in the other block wrote."""
    out = np.full((blocks, threads), -7, np.int32)
    wanted = {"begun": True, "written": True, "read": True, "past": 0, **barriers}
    k.exchange(*wanted.values(), address(out), blocks, threads)
    other, partner = np.arange(blocks)[:, None] ^ 1, threads - 1 - np.arange(threads)
    return np.array_equal(out, 1000 * other + partner)


@pytest.mark.parametrize("threads", [32, 128, 512])
def test_blocks_of_a_cluster_read_each_other(k, order, threads):
    assert exchanged(k, 6, threads)


def test_a_missing_cluster_barrier_before_reading_gives_wrong_numbers(k, monkeypatch):
    # The block that is ahead reads what the other has not written yet, in any order.
    for name in ORDERS:
        monkeypatch.setenv("SOFTDIFF_SHIM_ORDER", name)
        assert not exchanged(k, 2, 64, written=False), name


def test_a_missing_cluster_barrier_at_the_end_gives_wrong_numbers(k, monkeypatch):
    # A block's shared memory ends with it: where one block runs ahead, the other reads NaN's bits.
    wrong = []
    for name in ORDERS:
        monkeypatch.setenv("SOFTDIFF_SHIM_ORDER", name)
        if not exchanged(k, 2, 64, read=False):
            wrong.append(name)
    assert {"forward", "reverse"} <= set(wrong)


def test_a_block_that_has_not_begun_has_no_memory(k, order):
    with pytest.raises(
        RuntimeError, match=r"exchange_kernel.*in_block \(cluster.cu:\d+\): the other block has not begun"
    ):
        exchanged(k, 2, 64, begun=False)


def test_halves_of_a_cluster_barrier(k, order):
    # Arriving does not wait, and a thread that has ended is not waited for.
    out = np.zeros((4, 64), np.int32)
    k.cluster_halves(address(out))
    assert np.array_equal(out, [[0] * 32 + [1] * 32, [1] * 64] * 2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("arrives_twice", r"cluster_arrive \(cluster.cu:\d+\): arrives again before it has waited"),
        ("waits_alone", r"cluster_wait \(cluster.cu:\d+\): waits without having arrived"),
        ("third_block", r"in_block \(cluster.cu:\d+\): block 2 of a cluster of 2"),
        ("not_shared", r"in_block \(cluster.cu:\d+\): the address is not in this block's shared memory"),
        (
            "one_block_stays_away",
            r"__syncthreads \(cluster.cu:\d+\).*\(0, 0, 0\) has ended|the kernel's end: .*__syncthreads",
        ),
    ],
)
def test_cluster_mistakes_are_told(k, order, name, sentence):
    out = np.zeros(128, np.int32)
    with pytest.raises(RuntimeError, match=rf"{name}, block \([01], 0, 0\), thread .*{sentence}"):
        k.cluster_mistake(name, address(out))
    assert exchanged(k, 2, 64)  # nothing is left of it


def test_launches_of_clusters(k, hooks):
    assert (
        k.empty_clusters(6, 2, 64) == 0
        and k.empty_clusters(8, 8, 32) == 0
        and k.empty_clusters(3, 1, 32) == 0
    )
    assert [(launch.grid, launch.cluster) for launch in hooks.launches()] == [
        ((6, 1, 1), 2),
        ((8, 1, 1), 8),
        ((3, 1, 1), 1),
    ]
    # Grids of whole clusters, up to 8 blocks, where the device has them.
    assert k.empty_clusters(5, 2, 64) == k.empty_clusters(16, 16, 32) == INVALID_CLUSTER_SIZE
    assert k.empty_clusters(2, 0, 64) == INVALID_VALUE
    with pytest.raises(RuntimeError, match="clusters of more than 1024 threads"):
        k.empty_clusters(2, 2, 1024)
    assert k.attribute(120) == 1
    hooks.set_clusters(False)
    assert k.attribute(120) == 0 and k.empty_clusters(2, 2, 64) == INVALID_CLUSTER_SIZE
    assert k.empty_clusters(2, 1, 64) == 0


PROGRAM = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("shim_kernels", sys.argv[1])
k = importlib.util.module_from_spec(spec)
spec.loader.exec_module(k)
out = np.zeros(128, np.int32)
k.exchange(True, True, {read}, {past}, out.ctypes.data, 2, 64)
print("end")
"""


@pytest.mark.parametrize(
    ("read", "past", "found"),
    [(True, 0, None), (True, 1, "heap-buffer-overflow"), (False, 0, "heap-use-after-free")],
    ids=["sound", "outside", "ended"],
)
def test_clusters_under_asan(tmp_path_factory, read, past, found):
    module = build("shim_kernels", SOURCES, tmp_path_factory.mktemp("asan"), asan=True, flags=["-O1"])
    program = PROGRAM.format(read=read, past=past)
    done = subprocess.run(
        [sys.executable, "-c", program, str(module)], env=asan_env(), capture_output=True, text=True
    )
    if found is None:
        assert (done.returncode, done.stdout) == (0, "end\n") and "ERROR" not in done.stderr
        return
    assert done.returncode != 0 and "end" not in done.stdout
    assert found in done.stderr and "cluster.cu" in done.stderr
