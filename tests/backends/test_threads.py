# SPDX-License-Identifier: Apache-2.0
"""Threads of the CPU kernels: the same bits at any number, torch's number, and little memory each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from checks import NATIVE, WHY_NOT, picture, std_range

import softdiff_kernels as sk
from softdiff_kernels.backends import native
from softdiff_kernels.bench.timing import threads

pytestmark = pytest.mark.skipif(not NATIVE, reason=WHY_NOT)

ROOT = Path(__file__).resolve().parents[2]
KEY = sk.NoiseKey(5, 6, 7)
# Large enough for the kernels to take a second thread: from 16384 elements.
X, Y = picture(5, 3, 48, 52), picture(5, 3, 48, 52, seed=1)
STD, MASK = std_range(5), torch.linspace(0, 1, 52)
OPS = {
    "dct2": lambda: sk.dct2(X),
    "idct2": lambda: sk.idct2(X),
    "blur": lambda: sk.blur(X, STD, floor=0.1),
    "corrupt": lambda: torch.stack(sk.corrupt(X, STD, 0.1, key=KEY, return_residual=True)),
    "reverse_step": lambda: sk.reverse_step(
        X, Y, blur_std_t=STD, blur_std_s=0.5 * STD, a=0.5, b=0.1, key=KEY
    ),
    "momentum_step": lambda: sk.momentum_step(
        X, Y, blur_std_t=STD, blur_std_s=0.5 * STD, noise_std_t=0.2, noise_std_s=0.1, key=KEY
    ),
    "soft_score_loss": lambda: sk.soft_score_loss(X, Y, STD, reduction="none"),
    "spectral_loss": lambda: sk.spectral_loss(X, Y, MASK, reduction="none"),
    "spectral_mix": lambda: sk.spectral_mix([X, Y], [MASK, X[:, :1]], noise_mask=MASK, key=KEY),
    "spectral_mix by noise": lambda: sk.spectral_mix([X], [MASK], noise_mask=MASK, noise=Y),
    "normal": lambda: sk.normal(X.shape, KEY),
}


@pytest.fixture(autouse=True)
def on_the_kernels():
    with sk.use_backend("native"):
        yield


@pytest.mark.parametrize("op", OPS)
def test_results_do_not_depend_on_the_number_of_threads(op):
    # A plane is one thread's work from beginning to end, so no sum depends on who did it: bit for bit.
    with threads(1):
        expected = OPS[op]()
    for count in (2, 3, 8):
        with threads(count):
            for _ in range(3):  # which thread takes which plane differs from run to run
                assert torch.equal(OPS[op](), expected)


class Recorder:
    """Stands for the compiled module and notes the thread count that each call was given."""

    def __init__(self, module):
        self.module, self.counts = module, []

    def __getattr__(self, name):
        function = getattr(self.module, name)

        def call(*args):
            self.counts.append(args[0])
            return function(*args)

        return call


@pytest.mark.parametrize("op", OPS)
def test_the_thread_count_is_torchs_at_the_time_of_the_call(op, monkeypatch):
    module, reason = native._load()
    recorder = Recorder(module)
    monkeypatch.setattr(native, "_load", lambda: (recorder, reason))
    for count in (1, 2, 5):
        with threads(count):
            OPS[op]()
    assert recorder.counts == [1, 2, 5]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads through /proc")
def test_no_threads_beyond_those_asked_for():
    # One thread asked for: the call starts none. Three: at most two beside the caller, in torch's own pool.
    code = """
import json, os, torch
import softdiff_kernels as sk
count = lambda: len(os.listdir("/proc/self/task"))
x = torch.rand(8, 3, 64, 64)
torch.set_num_threads(1)
seen = [count()]
sk.blur(x, 1.0); seen.append(count())
torch.set_num_threads(3)
sk.blur(x, 1.0); seen.append(count())
sk.blur(x, 1.0); seen.append(count())
torch.rand(1 << 20).exp_(); seen.append(count())
print(json.dumps(seen))
"""
    before, one, three, again, torchs = run(code, "OMP_NUM_THREADS")
    assert one == before
    assert three <= before + 2
    assert again == three
    assert torchs <= three + (0 if sk_shares_torchs_pool() else 2)


def sk_shares_torchs_pool() -> bool:
    return native._load()[0].thread_source() == "openmp"


def run(code: str, *unset: str) -> list:
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory through /proc")
@pytest.mark.parametrize(("count", "size"), [(1, 256), (2, 256), (2, 64)])
def test_scratch_memory_is_under_a_mebibyte_a_thread(count, size):
    # The peak of resident memory over the calls, beyond what was resident before with all images touched: the
    # kernels' scratch (about one plane, 256 KiB at 256 px), tables and stacks. Ballast first brings what is
    # resident up to the peak of importing. One temporary copy of the batch would be 6 MiB.
    code = f"""
import json, re, torch
import softdiff_kernels as sk
torch.set_num_threads({count})

def kib(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

def calls(x, y, out):
    stds, key = dict(blur_std_t=2.0, blur_std_s=1.0), sk.NoiseKey(1)
    with torch.no_grad():
        for _ in range(3):
            sk.momentum_step(x, y, noise_std_t=0.2, noise_std_s=0.1, key=key, out=out, **stds)
            sk.reverse_step(x, y, a=0.5, b=0.1, floor=0.1, key=key, out=out, **stds)
            sk.soft_score_loss(x, y, 1.0, reduction="none")

calls(*(torch.rand(8, 3, 16, 16) for _ in range(3)))
shape = (8 * 256 * 256 // {size * size}, 3, {size}, {size})
x, y, out = (torch.rand(shape) for _ in range(3))
torch.rand(1 << 18).exp_()
ballast = []
while kib("VmRSS") < kib("VmHWM"):
    ballast.append(torch.ones(1 << 18))
before = kib("VmHWM")
calls(x, y, out)
print(json.dumps([kib("VmHWM") - before]))
"""
    (added,) = run(code, "OMP_NUM_THREADS")
    assert added < count * 1024, f"{added} KiB for {count} thread(s) at {size} px"


def test_calls_from_many_python_threads_at_once():
    # The kernels release the interpreter and share read-only tables alone: six callers get what one gets.
    expected = [OPS[op]() for op in OPS]
    wrong: list[str] = []

    def caller():
        for _ in range(3):
            for op, result in zip(OPS, expected, strict=True):
                if not torch.equal(OPS[op](), result):
                    wrong.append(op)

    callers = [threading.Thread(target=caller) for _ in range(6)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert wrong == []


def test_new_sizes_from_many_python_threads_at_once():
    # Tables of a length are built on first use, under a lock: sizes that nobody used yet, all at once.
    sizes = range(301, 331, 2)
    results: dict[tuple[int, int], torch.Tensor] = {}

    def caller(number):
        for size in sizes:
            results[number, size] = sk.dct2(torch.ones(1, 1, 2, size))

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    for (_, size), u in results.items():
        # The transform of ones is sqrt(2 size) at frequency zero and nothing else.
        assert float(u[0, 0, 0, 0]) == pytest.approx((2 * size) ** 0.5, rel=1e-6)
        assert float(u.flatten()[1:].abs().max()) < 1e-5
    assert len(results) == 4 * len(sizes)
