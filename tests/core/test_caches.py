# SPDX-License-Identifier: Apache-2.0
"""What is kept between calls: within its bound, the least recently used goes, with threads and with forks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import softdiff_kernels as sk
from softdiff_kernels import caches, spectrum
from softdiff_kernels.caches import Cache, Tables
from softdiff_kernels.diffusion import BlurCorruption

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
OVER = caches._OVERHEAD


@pytest.fixture(autouse=True)
def store(monkeypatch):
    """A store of its own for each test, with the default bound."""
    monkeypatch.setattr(caches, "_caches", list(caches._caches))
    monkeypatch.setattr(caches, "_limit", None)
    monkeypatch.setattr(caches, "_native", None)
    monkeypatch.delenv(caches.VARIABLE, raising=False)
    sk.clear_caches()
    yield
    sk.clear_caches()


def texts(name="texts", built=None):
    """A cache of strings, as large as their key says."""

    def build(letter, size):
        if built is not None:
            built.append(letter)
        return letter * size

    return Cache(name, build, len)


def held():
    return sum(sk.cache_info().held.values())


def fresh(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The code in a new interpreter, which sees the same package as this one."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SOFTDIFF_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )


def test_the_least_recently_used_goes_first():
    # Three fit. a is used once more before d comes, so b is the one that was used longest ago.
    built = []
    cache = texts(built=built)
    sk.set_cache_limit(3 * (100 + OVER))
    for letter in "abcad":
        cache(letter, 100)
    assert [key[0] for key in cache._entries] == ["a", "c", "d"]
    assert cache("a", 100) == "a" * 100
    cache("b", 100)  # built anew, in the place of c
    assert built == ["a", "b", "c", "d", "b"]
    assert sorted(key[0] for key in cache._entries) == ["a", "b", "d"]


def test_one_order_and_one_bound_for_all_caches():
    # What another cache keeps counts, and what was used longest ago goes, whichever cache it is in.
    first, second = texts("first"), texts("second")
    sk.set_cache_limit(2 * (100 + OVER))
    first("a", 100)
    second("a", 100)
    second("b", 100)
    assert list(first._entries) == [] and len(second._entries) == 2


def test_an_entry_that_is_used_past_its_cache_counts_as_recent():
    # A launch that is made again marks its entries, without a look into the cache: they go last.
    cache = texts()
    sk.set_cache_limit(2 * (100 + OVER))
    entry, _ = cache.find("a", 100)
    cache("b", 100)
    entry.used = True
    cache("c", 100)
    assert sorted(key[0] for key in cache._entries) == ["a", "c"]
    # The mark is spent: unused since, it is now the oldest.
    cache("d", 100)
    assert sorted(key[0] for key in cache._entries) == ["c", "d"]


def test_the_bound_is_never_exceeded():
    # After each of 500 values of random sizes the sum is within the bound, and what counts is what is there.
    cache, generator = texts(), np.random.default_rng(0)
    sk.set_cache_limit(20_000)
    for i in range(500):
        size = int(generator.integers(1, 6_000))
        assert len(cache(chr(97 + i % 26), size)) == size
        assert held() == caches._held <= 20_000
    assert held() == sum(len(entry.value) + OVER for entry in cache._entries.values())


def test_a_value_larger_than_the_bound_is_used_and_not_kept():
    built = []
    cache = texts(built=built)
    sk.set_cache_limit(2_000 + OVER)
    cache("a", 100)
    for _ in range(2):
        entry, value = cache.find("b", 2_001)
        assert value == "b" * 2_001 and entry.value is None
    # It was built at each use, and nothing else had to go for it.
    assert built == ["a", "b", "b"]
    assert [key[0] for key in cache._entries] == ["a"]


def test_many_small_values_are_bounded_too():
    # A value of no bytes has a key and objects around it, which count.
    cache = texts()
    sk.set_cache_limit(100 * OVER)
    for i in range(1_000):
        cache(f"{i}", 0)
    assert len(cache._entries) == 100


def test_a_bound_of_zero_keeps_nothing():
    sk.set_cache_limit(0)
    x = torch.rand(1, 1, 9, 11)
    assert torch.equal(
        sk.reference.idct2(sk.reference.dct2(x)).isfinite(), torch.ones_like(x, dtype=torch.bool)
    )
    assert held() == 0


def test_setting_clearing_and_info():
    cache = texts()
    for letter in "abcd":
        cache(letter, 1_000)
    info = sk.cache_info()
    assert (info.limit, info.held["texts"], info.pinned) == (caches.DEFAULT_LIMIT, 4 * (1_000 + OVER), 0)
    # A lower bound takes effect at once, on the oldest.
    sk.set_cache_limit(2 * (1_000 + OVER))
    assert [key[0] for key in cache._entries] == ["c", "d"]
    assert sk.cache_info().limit == 2 * (1_000 + OVER)
    sk.clear_caches()
    assert held() == 0 and sk.cache_info().limit == 2 * (1_000 + OVER)


@pytest.mark.parametrize("number", [4096, np.int64(4096), np.uint8(200), torch.tensor(4096)], ids=repr)
def test_whole_numbers_of_any_kind_are_a_bound(number):
    sk.set_cache_limit(number)
    assert sk.cache_info().limit == int(number)


@pytest.mark.parametrize("number", [-1, 2**63, 10**400], ids=["-1", "2^63", "10^400"])
def test_a_bound_out_of_range_is_refused(number):
    with pytest.raises(ValueError, match=r"^set_cache_limit: expected bytes in \[0, 2\^63\), got"):
        sk.set_cache_limit(number)
    assert sk.cache_info().limit == caches.DEFAULT_LIMIT


@pytest.mark.parametrize("number", ["256", 1e6, True, None, [1]], ids=repr)
def test_a_bound_that_is_no_whole_number_is_refused(number):
    with pytest.raises(
        TypeError, match=r"^set_cache_limit: expected bytes as a whole number, got a value of"
    ):
        sk.set_cache_limit(number)
    assert sk.cache_info().limit == caches.DEFAULT_LIMIT


@pytest.mark.parametrize(("text", "bytes"), [("64", 64 << 20), (" 1 ", 1 << 20), ("0", 0), ("", 128 << 20)])
def test_the_environment_sets_the_bound(monkeypatch, text, bytes):
    # MiB; empty is not set.
    monkeypatch.setenv("SOFTDIFF_CACHE_MB", text)
    assert sk.cache_info().limit == bytes


@pytest.mark.parametrize(
    "text", ["many", "-1", "1.5", "1e3", "64MB", "9" * 5000, "0x10"], ids=lambda t: t[:5]
)
def test_a_bad_value_in_the_environment_is_one_sentence(monkeypatch, text):
    monkeypatch.setenv("SOFTDIFF_CACHE_MB", text)
    with pytest.raises(
        ValueError, match=r"^SOFTDIFF_CACHE_MB: expected a whole number of MiB, 0 or more, got"
    ) as e:
        sk.reference.dct2(torch.rand(1, 1, 4, 4))
    assert len(str(e.value)) < 150
    # What is set by hand needs no environment.
    sk.set_cache_limit(1 << 20)
    sk.reference.dct2(torch.rand(1, 1, 4, 4))


def test_a_bad_value_in_the_environment_does_not_break_the_import():
    # The import works anywhere; the first call that needs the bound says what is wrong, whatever the backend.
    code = (
        "import torch, softdiff_kernels as sk\n"
        "try: sk.blur(torch.rand(1, 1, 8, 8), 1.0)\n"
        "except ValueError as error: print(error)"
    )
    done = fresh(code, SOFTDIFF_CACHE_MB="lots")
    assert done.stdout == "SOFTDIFF_CACHE_MB: expected a whole number of MiB, 0 or more, got 'lots'\n"
    # It is no reason to say that another backend runs instead.
    assert done.stderr == ""


class Compiled:
    """Stands for the compiled CPU module, with the four functions of its cache."""

    def __init__(self):
        self.limit, self.bytes = 0, 700

    def cache_bytes(self):
        return self.bytes

    def cache_limit(self):
        return self.limit

    def set_cache_limit(self, bytes):
        self.limit = bytes

    def clear_cache(self):
        self.bytes = 0


def test_the_compiled_cpu_kernels_have_the_same_bound():
    module = Compiled()
    sk.set_cache_limit(5_000)
    caches.attach(module)
    assert module.limit == 5_000
    sk.set_cache_limit(6_000)
    assert module.limit == 6_000
    assert sk.cache_info().held["cpu kernels"] == 700
    sk.clear_caches()
    assert sk.cache_info().held["cpu kernels"] == 0


def test_a_compiled_module_without_a_cache_is_left_alone():
    caches.attach(SimpleNamespace())
    sk.set_cache_limit(1)
    sk.clear_caches()
    assert "cpu kernels" not in sk.cache_info().held


def test_threads_build_different_and_same_keys():
    # Eight threads, twenty keys each in another order, a bound that holds five of them: every value is right,
    # nothing is lost, and the account agrees with what is there.
    cache, wrong = texts(), []
    sk.set_cache_limit(5 * (500 + OVER))

    def work(seed):
        for i in np.random.default_rng(seed).permutation(np.tile(np.arange(20), 20)):
            letter = chr(97 + int(i))
            if cache(letter, 500) != letter * 500:
                wrong.append(letter)

    run_all([threading.Thread(target=work, args=(seed,)) for seed in range(8)])
    assert wrong == []
    assert held() == caches._held == len(cache._entries) * (500 + OVER) <= 5 * (500 + OVER)
    assert len(caches._order) == sum(len(c._entries) for c in caches._caches)


def run_all(threads):
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_a_slow_build_keeps_nobody_waiting():
    # While one thread builds, others read what is there, build other keys and, without waiting, the same one.
    # The first that is done is kept, and what the slow one built is let go.
    started, go, results = threading.Event(), threading.Event(), []

    def build(letter, slow):
        if threading.current_thread() is builder:
            started.set()
            assert go.wait(30)
            return "slow"
        return "quick"

    cache = Cache("slow", build, len)
    builder = threading.Thread(target=lambda: results.append(cache("a", 1)))
    builder.start()
    assert started.wait(30)
    assert (cache("b", 1), cache("a", 1)) == ("quick", "quick")
    assert sk.cache_info().held["slow"] == 2 * (len("quick") + OVER)
    go.set()
    builder.join(30)
    assert results == ["quick"] == [cache("a", 1)]


FORK = """
import os, signal, sys, threading
import softdiff_kernels as sk
from softdiff_kernels import caches
from softdiff_kernels.caches import Cache

started, go = threading.Event(), threading.Event()

def build(letter):
    if threading.current_thread() is threading.main_thread():
        return letter
    {inside}
    return letter

cache = Cache("letters", build, len)
cache("before")

def work():
    {work}

thread = threading.Thread(target=work)
thread.start()
started.wait(30)
{release}
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends a child that hangs, with a signal
    right = cache("a") == "a" and cache("b") == "b" and cache("before") == "before"
    sk.set_cache_limit(10_000)
    sk.clear_caches()
    os._exit(0 if right and caches._held == 0 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
go.set()
thread.join(30)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_a_thread_builds():
    # The child has no such thread: whoever waited for it, or for a lock that it holds, would wait for ever.
    code = FORK.format(inside="started.set(); go.wait(30)", work="cache('a')", release="")
    done = fresh(code)
    assert done.stdout == "0\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_a_thread_has_the_lock():
    # The fork waits for the few steps under the lock; the child's lock is free.
    work = "caches._lock.acquire(); started.set(); go.wait(30); caches._lock.release()"
    code = FORK.format(inside="pass", work=work, release="threading.Timer(0.2, go.set).start()")
    done = fresh(code)
    assert done.stdout == "0\n", done.stderr


RESIDENT = """
import json, re, torch
import softdiff_kernels as sk

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

def call(side):
    sk.reference.blur(torch.ones(1, 1, 8, side), 1.0)

for side in range(290, 300):
    call(side)
before = resident()
for side in range(300, 500):
    call(side)
print(json.dumps([resident() - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory through /proc")
def test_two_hundred_sizes_leave_resident_memory_within_the_bound():
    # Their tables are 4 n^2 bytes each, 123 MiB together, rounded from float64 of twice the size. With a
    # bound of 32 MiB no more may stay than these and a slack of 48 MiB: what the allocator keeps of a build's
    # temporary arrays, 8 n^2 = 2 MiB each, and the gaps between tables of different sizes.
    done = fresh(RESIDENT, SOFTDIFF_CACHE_MB="32")
    assert done.returncode == 0, done.stderr
    (added,) = json.loads(done.stdout)
    assert added < 32 + 48, f"{added} MiB"


def test_the_tables_of_a_large_prime_side_are_not_kept_beyond_the_bound():
    # 8 n^2 bytes of a dense float64 table: 8 MiB at 1021 px.
    sk.set_cache_limit(4 << 20)
    x = torch.rand(1, 1, 2, 1021, dtype=torch.float64)
    assert torch.allclose(sk.reference.idct2(sk.reference.dct2(x)), x)
    assert sk.cache_info().held["reference"] < 1 << 20


def test_the_reference_keeps_one_table_for_a_side_and_a_dtype():
    # float32: 4 n^2 bytes, and no float64 copy beside it.
    sk.reference.dct2(torch.rand(1, 1, 64, 64))
    assert sk.cache_info().held["reference"] == 4 * 64 * 64 + OVER
    assert spectrum.dct_basis(64, dtype=torch.float32) is spectrum.dct_basis(64, dtype=torch.float32)


def test_the_tables_of_corruptions_are_bounded():
    # Two hundred corruptions that are thrown away leave no more than the bound, their own nodes counted.
    sk.set_cache_limit(1 << 20)
    t = torch.tensor([0.25, 0.5])
    for i in range(200):
        corruption = BlurCorruption.paper((8, 8), blur_std_max=5.0 + i)
        assert torch.allclose(
            corruption.blur_std(t), torch.tensor([corruption.blur_std(v) for v in (0.25, 0.5)])
        )
    assert 0 < sk.cache_info().held["corruption"] <= 1 << 20


def under_inference_mode(f, x):
    with torch.inference_mode():
        f(x)


def under_fake_tensors(f, x):
    with FakeTensorMode():
        f(torch.empty(x.shape))


def under_grad(f, x):
    torch.func.grad(lambda y: f(y).sum())(x)


def under_vmap(f, x):
    torch.func.vmap(f)(x[None].expand(2, *x.shape))


def under_trace(f, x):
    torch.jit.trace(f, x)


@pytest.mark.parametrize(
    "way", [under_inference_mode, under_fake_tensors, under_grad, under_vmap, under_trace]
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_table_does_not_depend_on_who_asked_first(way):
    # The first call of a size is made in some mode or transform; what is kept must serve training afterwards.
    f = lambda y: sk.reference.blur(y, 1.0)  # noqa: E731
    x = torch.rand(1, 1, 12, 13)
    way(f, x)
    y = x.clone().requires_grad_()
    f(y).sum().backward()
    # A blur keeps the mean, and is its own transpose: the gradient of the sum is one everywhere.
    assert torch.allclose(y.grad, torch.ones_like(x), atol=1e-5)
    for table in (entry.value for entry in spectrum._bases._entries.values()):
        assert type(table) is torch.Tensor and not table.is_inference()
        assert not torch._C._functorch.is_functorch_wrapped_tensor(table)


@pytest.mark.parametrize(
    "way", [under_inference_mode, under_fake_tensors, under_grad, under_vmap, under_trace]
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_table_that_is_kept_serves_every_way(way):
    x = torch.rand(1, 1, 14, 15)
    sk.reference.blur(x, 1.0)
    way(lambda y: sk.reference.blur(y, 1.0), x)


def test_the_table_of_a_corruption_serves_training_after_sampling():
    corruption, t = BlurCorruption.paper((8, 8)), torch.tensor([0.5])
    with torch.inference_mode():
        corruption.noise_std(t)
    weight = torch.ones(1, requires_grad=True)
    (corruption.noise_std(t) * weight).sum().backward()
    assert weight.grad.item() == pytest.approx(corruption.noise_std(0.5), rel=1e-5)


class Table:
    """Stands for a tensor on a GPU, and notes the streams that it is recorded on."""

    def __init__(self, size=100):
        self.size, self.recorded = size, []

    def untyped_storage(self):
        return SimpleNamespace(nbytes=lambda: self.size)

    def record_stream(self, stream):
        self.recorded.append(stream.stream_id)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU as `Tables` sees one. stream_id: the current stream; capturing: whether a graph is captured."""
    state = SimpleNamespace(stream_id=0, capturing=False)
    monkeypatch.setattr(caches, "_capturing", lambda gpu: state.capturing)
    monkeypatch.setattr(caches, "_current_stream", lambda gpu: state.stream_id)
    stream = lambda device: SimpleNamespace(stream_id=state.stream_id, cuda_stream=state.stream_id)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(caches, "_pinned", [])
    monkeypatch.setattr(Tables, "_build_aside", lambda self, key, device: self._table(*key))
    return state


def test_a_table_is_recorded_on_each_stream_that_reads_it(gpu):
    # Dropped, its memory must not be given away before those streams are past it. Once a stream is enough.
    tables = Tables("gpu", lambda n, device: Table())
    table = tables(8, GPU)
    for gpu.stream_id in (3, 0, 3, 5):
        assert tables(8, GPU) is table
    assert table.recorded == [0, 3, 5]
    # So is one that is too large to be kept.
    sk.set_cache_limit(50)
    assert tables(9, GPU).recorded == [5]


def test_a_table_that_a_graph_reads_stays(gpu):
    # The graph has its address, and reads it at every replay, whatever the bound.
    tables = Tables("gpu", lambda n, device: Table())
    table = tables(8, GPU)
    other = tables(9, GPU)
    gpu.capturing = True
    assert tables(8, GPU) is table
    gpu.capturing = False
    assert sk.cache_info().pinned == sk.cache_info().held["gpu"] == 100 + OVER
    sk.set_cache_limit(0)
    sk.clear_caches()
    assert tables(8, GPU) is table
    assert tables(9, GPU) is not other
    assert (sk.cache_info().pinned, held()) == (100 + OVER, 0)


def test_a_table_that_is_built_in_a_capture_is_the_graphs(gpu):
    tables = Tables("gpu", lambda n, device: Table())
    gpu.capturing = True
    assert tables(8, GPU) is not tables(8, GPU)
    assert (sk.cache_info().pinned, held()) == (0, 0)


def test_a_table_that_is_copied_cannot_be_made_in_a_capture(gpu):
    # One sentence, before CUDA's error breaks the capture.
    tables = Tables("gpu", lambda n, device: Table(), copied=True)
    gpu.capturing = True
    with pytest.raises(RuntimeError, match=r"not on cuda:0 yet.*make the same call once before the capture$"):
        tables(8, GPU)
    gpu.capturing = False
    table = tables(8, GPU)
    gpu.capturing = True
    assert tables(8, GPU) is table


def test_a_table_read_on_a_stream_of_another_library_stays(gpu):
    # Such a stream, which has an even number, may be gone when the table is dropped, and torch would record
    # an event on it.
    tables = Tables("gpu", lambda n, device: Table())
    gpu.stream_id = 0x7F00
    table = tables(8, GPU)
    sk.clear_caches()
    assert tables(8, GPU) is table and table.recorded == []
    # One that is larger than the bound, too, but once, not at each call.
    sk.set_cache_limit(50)
    table = tables(9, GPU)
    assert tables(9, GPU) is table
    assert sk.cache_info().pinned == 2 * (100 + OVER)


def test_a_build_that_fails_says_why():
    # On a GPU the table is built by another thread; its error, out of memory say, is the caller's.
    def build(n, device):
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        Tables("failing", build)._build_aside((8, CPU), CPU)


def test_another_thread_that_finds_a_new_table_is_recorded_too(gpu, monkeypatch):
    # One thread has built a table and not yet noted its own stream; another finds it, on another stream.
    tables = Tables("gpu", lambda n, device: Table())
    read_on = Tables._read_on

    def late(self, stream, entry, table):
        if stream.stream_id == 0:
            gpu.stream_id = 3
            assert tables(8, GPU) is table
            gpu.stream_id = 0
        read_on(self, stream, entry, table)

    monkeypatch.setattr(Tables, "_read_on", late)
    assert tables(8, GPU).recorded == [3, 0]
