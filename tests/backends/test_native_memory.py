# SPDX-License-Identifier: Apache-2.0
"""Memory of the CPU kernels: tables bounded in bytes, forks while they are made, allocations that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checks import NATIVE, WHY_NOT, assert_mean_kept, check, picture

import softdiff_kernels as sk

pytestmark = pytest.mark.skipif(not NATIVE, reason=WHY_NOT)

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20

if NATIVE:
    from softdiff_kernels import _native


@pytest.fixture(autouse=True)
def on_the_kernels():
    before = _native.cache_limit()
    _native.clear_cache()
    with sk.use_backend("native"):
        yield
    _native.set_cache_limit(before)


def run(code: str) -> list:
    """The JSON that a fresh process prints last."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "SOFTDIFF_BACKEND": "native",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def blur(height: int, width: int = 4) -> None:
    sk.blur(torch.ones(1, 1, height, width), 1.0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory through /proc")
@pytest.mark.parametrize("limit", [None, 32, 4])
def test_resident_memory_over_200_sizes(limit):
    # What stays is at most the limit; 24 MiB are for what malloc keeps of freed tables, and for code first
    # used here. Kept for ever as 8 n^2 bytes, these tables came to 800 MiB.
    code = f"""
import json, re, torch
import softdiff_kernels as sk
from softdiff_kernels import _native

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

torch.set_num_threads(1)
if {limit}:
    sk.set_cache_limit({limit or 0} << 20)
sk.blur(torch.ones(1, 1, 499, 4), 1.0)
before = resident()
for height in range(501, 901, 2):
    sk.blur(torch.ones(1, 1, height, 4), 1.0)
print(json.dumps([resident() - before, _native.cache_bytes(), _native.cache_limit()]))
"""
    grown, held, bound = run(code)
    assert bound == (limit or 128) * MIB
    assert 0 < held <= bound
    assert grown <= bound // MIB + 24


def test_the_least_recently_used_tables_go_first():
    blur(299)
    one = _native.cache_bytes()  # of 299 px and of 4 px, which every call uses
    _native.set_cache_limit(3 * one)
    for height in (301, 299, 303, 299, 305, 299):
        blur(height)
        assert _native.cache_bytes() <= 3 * one
    before = _native.cache_bytes()
    blur(299)
    assert _native.cache_bytes() == before  # still there: it was in use all the time
    blur(301)
    assert _native.cache_bytes() != before or before + one > 3 * one  # 301 had gone


def test_the_limit_can_be_changed_and_the_cache_cleared():
    blur(299)
    assert _native.cache_bytes() > 0
    _native.set_cache_limit(1000)
    assert _native.cache_limit() == 1000
    assert _native.cache_bytes() <= 1000  # at once
    check("blur", picture(1, 1, 299, 5), 2.0)  # larger than the limit: usable, and not kept
    assert _native.cache_bytes() <= 1000
    _native.clear_cache()
    assert _native.cache_bytes() == 0
    with pytest.raises(ValueError, match="at least 0 bytes, got -1"):
        _native.set_cache_limit(-1)


def test_tables_of_long_odd_lengths_are_small():
    # Under 64 numbers a pixel; dense, they would take 8 n^2 bytes: 2 GiB.
    torch.testing.assert_close(sk.blur(torch.ones(1, 1, 16381, 1), 3.0), torch.ones(1, 1, 16381, 1))
    assert 0 < _native.cache_bytes() < 64 * 4 * 16381


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request):
    before = _native.instruction_set()
    if not _native.use_instruction_set(request.param):
        pytest.skip(f"this CPU or this build has no {request.param} kernels")
    yield request.param
    assert _native.use_instruction_set(before)


# Around the last dense length of the DCT-II (700) and of the DCT-IV (350, times two and four), primes beyond.
@pytest.mark.parametrize("size", [699, 701, 698, 702, 706, 1009, 1412, 2818])
def test_long_odd_lengths_keep_the_contract(isa, size):
    for shape in ((1, 1, size, 5), (1, 1, 3, size)):
        x = picture(*shape)
        check("dct2", x)
        check("idct2", x)
        assert_mean_kept(check("blur", x, 0.3), x)
        check("soft_score_loss", x, picture(*shape, seed=1), 0.7, reduction="none")


FORK = """
import json, os, signal, threading, time, torch
import softdiff_kernels as sk
from softdiff_kernels import _native

torch.set_num_threads(THREADS)
x = torch.rand(8, 1, 64, 64)
expected = sk.blur(x, 1.0)
_native.set_cache_limit(1 << 20)
stop = False

def build():
    height = 501
    while not stop:
        sk.blur(torch.ones(1, 1, height, 2), 1.0)
        height = height + 2 if height < 899 else 501

builders = [threading.Thread(target=build) for _ in range(BUILDERS)]
for thread in builders:
    thread.start()
codes = []
for _ in range(30):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that hangs is killed, and told by its status
        same = torch.equal(sk.blur(x, 1.0), expected)
        sk.blur(torch.ones(1, 1, 503, 2), 1.0)
        os._exit(0 if same else 1)
    codes.append(os.waitpid(child, 0)[1])
    if codes[-1]:
        break
stop = True
for thread in builders:
    thread.join()
print(json.dumps(codes))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("threads", "builders"), [(1, 2), (3, 0)])
def test_a_fork_while_threads_make_tables_or_after_openmp_does_not_hang_the_child(threads, builders):
    # The child finds the cache's lock free, and does not wait for OpenMP's threads, which no fork copies.
    codes = run(FORK.replace("THREADS", str(threads)).replace("BUILDERS", str(builders)))
    assert codes == [0] * 30


class Blurred(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return sk.blur(torch.full((1, 1, 601, 3), float(index)), 2.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_of_a_data_loader_by_fork():
    # After the parent used the pool of threads, as training does.
    sk.blur(torch.rand(8, 3, 64, 64), 1.0)
    loader = torch.utils.data.DataLoader(
        Blurred(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for index, image in enumerate(loader):
        torch.testing.assert_close(image, torch.full((1, 1, 601, 3), float(index)))


CALLS = {
    "blur": "sk.blur(x, 1.0)",
    "corrupt": "sk.corrupt(x, 1.0, 0.1)",
    "reverse_step": "sk.reverse_step(x, x, blur_std_t=2.0, blur_std_s=1.0, a=0.5, b=0.1)",
    "dct2": "sk.dct2(x)",
    "idct2": "sk.idct2(x)",
    "spectral_mix": "sk.spectral_mix([x], [mask])",
    "soft_score_loss": "sk.soft_score_loss(x, x, 1.0)",
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_scratch_that_cannot_be_allocated_is_a_memory_error():
    # Room for the result, of 64 MiB, but not for the scratch, a plane of as much. The loss has no result.
    code = f"""
import json, re, resource, torch
import softdiff_kernels as sk

def limit(room):
    used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
    most = used + room if room else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

torch.set_num_threads(1)
x, mask = torch.ones(1, 1, 4096, 4096), torch.ones(4096)
sk.blur(torch.ones(1, 1, 4096, 1), 1.0)
said = {{}}
for op, call in {CALLS!r}.items():
    limit((40 if op == "soft_score_loss" else 104) << 20)
    try:
        eval(call)
    except MemoryError as error:
        said[op] = str(error)
limit(0)
print(json.dumps([said, float(sk.blur(x, 1.0).mean())]))
"""
    said, mean = run(code)
    assert list(said) == list(CALLS)
    for op, sentence in said.items():
        assert sentence.startswith(f"{op} of images [1, 1, 4096, 4096]: each thread needs ")
        assert "fewer threads" in sentence
    assert mean == pytest.approx(1.0)  # the next call works


def test_a_side_beyond_all_tables_is_refused():
    side = 2**27 + 1
    image = (0, 1, 0, 0, 0, 0)
    with pytest.raises(
        ValueError, match=f"dct2 of images .*: expected sides of at most {2**27} px, got {side}"
    ):
        _native.dct2(1, ((1, 1, side, 1), image, image, False))
