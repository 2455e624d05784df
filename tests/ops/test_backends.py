# SPDX-License-Identifier: Apache-2.0
"""Which backend takes a call: by function, by environment variable, and what is said of one that cannot."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import os
import shutil
import subprocess
import sys
import threading
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from checks import BACKENDS, NATIVE, picture

import softdiff_kernels as sk
from softdiff_kernels.backends import chosen, installed, native, protocol

X = picture(2, 3, 4, 5)
# The package's own name `backends` is the function.
BACKENDS_MODULE = importlib.import_module("softdiff_kernels.backends")


def test_an_unknown_backend_by_function():
    names = "reference, native, triton, cuda or auto"
    with (
        pytest.raises(ValueError, match=rf"^use_backend: expected one of {names}, got 'rocket'$"),
        sk.use_backend("rocket"),
    ):
        pass


def test_an_unknown_backend_by_environment(monkeypatch):
    monkeypatch.setenv("SOFTDIFF_BACKEND", "rocket")
    names = "reference, native, triton, cuda or auto"
    with pytest.raises(ValueError, match=rf"^SOFTDIFF_BACKEND: expected one of {names}, got 'rocket'$"):
        sk.blur(X, 1.0)


def test_the_environment_chooses_and_the_function_overrules(monkeypatch):
    # The eager twin's bits tell which backend ran.
    monkeypatch.setenv("SOFTDIFF_BACKEND", "reference")
    x = picture(2, 3, 31, 47)
    assert torch.equal(sk.blur(x, 2.0), sk.reference.blur(x, 2.0))
    if NATIVE:
        with sk.use_backend("native"):
            assert not torch.equal(sk.blur(x, 2.0), sk.reference.blur(x, 2.0))
        monkeypatch.setenv("SOFTDIFF_BACKEND", "")  # empty is not set
        assert not torch.equal(sk.blur(x, 2.0), sk.reference.blur(x, 2.0))


def test_a_backend_that_does_not_work_here_says_why(monkeypatch):
    monkeypatch.setattr(native, "_load", lambda: (None, "the compiled module is missing"))
    assert not sk.backends()["native"].usable
    pattern = "^use_backend: backend 'native' does not work here: the compiled module is missing$"
    with pytest.raises(RuntimeError, match=pattern), sk.use_backend("native"):
        pass


@pytest.mark.parametrize("backend", BACKENDS)
def test_use_backend_restores_what_was_before(backend):
    with sk.use_backend(backend):
        with sk.use_backend("reference"):
            with pytest.raises(RuntimeError, match="inside"), sk.use_backend("auto"):
                assert chosen() == "auto"
                raise RuntimeError("inside")
            assert chosen() == "reference"
        assert chosen() == backend


def test_every_backend_has_a_reason_in_words():
    # One sentence a backend, usable or not; the reference is always usable.
    found = sk.backends()
    assert set(found) == {"reference", "native", "triton", "cuda"}
    assert found["reference"].usable
    for name, backend in found.items():
        assert backend.name == name
        assert len(backend.reason.split()) >= 3


@pytest.fixture
def unchosen(monkeypatch):
    monkeypatch.delenv("SOFTDIFF_BACKEND", raising=False)
    assert chosen() == "auto"
    yield
    # Rule: whatever a test of blocks did, nothing is left behind.
    assert chosen() == "auto"


def test_overlapping_blocks_of_two_threads_leave_nothing_behind(unchosen):
    # The first thread's block ends while the second's is open, which ends after it: the process was left with
    # the first one's choice.
    entered, left, seen = threading.Barrier(2), threading.Barrier(2), {}

    def run(name, first):
        with sk.use_backend(name):
            entered.wait(10)
            seen[name] = chosen()
            if not first:
                left.wait(10)
                seen["after the other's end"] = chosen()
        if first:
            left.wait(10)
        seen[f"after {name}"] = chosen()

    threads = [threading.Thread(target=run, args=args) for args in (("reference", True), ("auto", False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == {
        "reference": "reference",
        "auto": "auto",
        "after the other's end": "auto",
        "after reference": "auto",
        "after auto": "auto",
    }


def test_what_a_blocks_threads_and_tasks_see(unchosen):
    # As the docstring of use_backend says.
    async def inner():
        with sk.use_backend("auto"):
            await asyncio.sleep(0)
            return chosen()

    async def outer():
        async def plain():
            await asyncio.sleep(0)
            return chosen()

        return await asyncio.gather(plain(), inner(), plain(), asyncio.to_thread(chosen))

    with sk.use_backend("reference"):
        if not getattr(sys.flags, "thread_inherit_context", 0):
            found = []
            thread = threading.Thread(target=lambda: found.append(chosen()))
            thread.start()
            thread.join(10)
            with ThreadPoolExecutor(1) as pool:
                assert found == [pool.submit(chosen).result(10)] == ["auto"]
        context = contextvars.copy_context()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(context.run, chosen).result(10) == "reference"
        assert asyncio.run(outer()) == ["reference", "auto", "reference", "reference"]


def test_blocks_of_two_generators_may_end_in_any_order(unchosen):
    def block(name):
        with sk.use_backend(name):
            yield chosen()

    first, second = block("reference"), block("auto")
    assert (next(first), next(second)) == ("reference", "auto")
    first.close()
    assert chosen() == "auto"
    third = block("reference")
    assert next(third) == "reference"
    second.close()
    assert chosen() == "reference"
    third.close()


SEEN = []


class _Seen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        SEEN.append(chosen())
        return g


def test_backward_takes_the_backend_of_the_block_it_is_called_in(unchosen):
    SEEN.clear()
    x = torch.ones(2, requires_grad=True)
    with sk.use_backend("reference"):
        inside, after = _Seen.apply(x).sum(), _Seen.apply(x).sum()
        inside.backward()
    after.backward()
    assert SEEN == ["reference", "auto"]


def test_a_compiled_function_takes_the_backend_of_each_call(unchosen, monkeypatch):
    # Rule: the op asks when it runs, so one graph serves every block.
    taken = []
    implementation = BACKENDS_MODULE._implementation

    def ask(*args):
        taken.append(chosen())
        return implementation(*args)

    monkeypatch.setattr(BACKENDS_MODULE, "_implementation", ask)
    compiled = torch.compile(lambda x: sk.blur(x, 1.5), backend="aot_eager", fullgraph=True)
    compiled(X)
    taken.clear()
    compiled(X)
    with sk.use_backend("reference"):
        compiled(X)
    assert taken == ["auto", "reference"]


class _Chosen(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        return chosen()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_has_the_choice_of_where_it_was_started(unchosen):
    loader = torch.utils.data.DataLoader(_Chosen(), num_workers=1, multiprocessing_context="fork")
    with sk.use_backend("reference"):
        assert list(loader) == [["reference"]]
    assert list(loader) == [["auto"]]


@pytest.fixture
def without_kernels(unchosen, monkeypatch):
    monkeypatch.setattr(native, "_load", lambda: (None, "the compiled module is missing"))
    monkeypatch.setattr(protocol, "_warned", set())


def test_the_fall_back_to_plain_pytorch_is_told_once(without_kernels):
    # Rule: at the first op on a CPU, with the reason and how to ask for it without the warning; then never.
    told = (
        r"^softdiff_kernels: the CPU's kernels are missing, .*: the compiled module is missing .*=reference"
    )
    with pytest.warns(RuntimeWarning, match=told) as seen:
        expected = sk.blur(X, 1.5)
        sk.blur(X, 1.5)
        sk.normal((2, 3), sk.NoiseKey(0))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(sk.dct2, X).result(10)
    assert len(seen) == 1
    assert torch.equal(expected, sk.reference.blur(X, 1.5))


def test_who_asked_for_the_reference_is_told_nothing(without_kernels, monkeypatch):
    # Nor who passes float64, which the kernels never take.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sk.blur(X.double(), 1.5)
        sk.normal((2, 3), sk.NoiseKey(0), dtype=torch.float64)
        with sk.use_backend("reference"):
            sk.blur(X, 1.5)
        monkeypatch.setenv("SOFTDIFF_BACKEND", "reference")
        sk.blur(X, 1.5)
        sk.backends()
    monkeypatch.delenv("SOFTDIFF_BACKEND")


def _package(folder: Path, built: bool) -> Path:
    """A copy of the package's Python files, with an empty file for the compiled module or none."""
    package = folder / "softdiff_kernels"
    shutil.copytree(
        Path(sk.__file__).parent,
        package,
        ignore=shutil.ignore_patterns("__pycache__", *EXTENSION_SUFFIXES, "*.so"),
    )
    if built:
        (package / f"_native{EXTENSION_SUFFIXES[0]}").touch()
    return package


def test_sources_that_hide_the_installed_package_are_named(tmp_path, monkeypatch):
    here, other = tmp_path / "clone" / "softdiff_kernels", tmp_path / "site" / "softdiff_kernels"
    for folder in (here, other):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "Editable" not in str(f)])
    monkeypatch.setattr(
        sys, "path", [str(tmp_path / "clone"), str(tmp_path / "none"), str(tmp_path / "site")]
    )
    # Rule: only another copy that has the module is the reason.
    assert installed.hidden("_native", here) == ""
    (here / f"_native{EXTENSION_SUFFIXES[0]}").touch()
    assert installed.hidden("_native", here) == ""
    (here / f"_native{EXTENSION_SUFFIXES[0]}").unlink()
    (other / f"_native{EXTENSION_SUFFIXES[0]}").touch()
    said = installed.hidden("_native", here)
    assert f"the sources in {here} hide the package installed in {other}" in said
    assert "run Python from another folder, or build it in place with pip install -e ." in said


def test_a_compiled_module_of_another_copy_is_not_taken(tmp_path):
    # Rule: kernels of another version, which the finder of an editable install would give, are no kernels.
    sk_native = types.ModuleType("softdiff_kernels._native")
    sk_native.__file__ = str(tmp_path / "_native.so")
    with pytest.raises(ImportError, match=r"_native\.so belongs to another copy of softdiff_kernels$"):
        installed.refuse_foreign(sk_native)
    sk_native.__file__ = str(Path(sk.__file__).parent / "_native.so")
    installed.refuse_foreign(sk_native)


def test_an_op_run_among_the_sources_says_so(tmp_path):
    # As Python in the clone's folder finds it: the sources first, then the installed package.
    clone = _package(tmp_path / "clone", built=False)
    _package(tmp_path / "site", built=True)
    code = "import torch, softdiff_kernels as sk; [sk.blur(torch.zeros(1, 1, 4, 4), 1.0) for _ in range(3)]"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "clone",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "SOFTDIFF_BACKEND": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # Named is the copy in tmp_path, or one that is installed editable, whose module is not taken either.
    said = f"plain PyTorch runs instead, many times slower: the sources in {clone} hide the package "
    assert run.stderr.count("RuntimeWarning") == run.stderr.count(said) == 1
