# SPDX-License-Identifier: Apache-2.0
"""Which backend takes a call: by function, by environment variable, and what is said of one that cannot."""

from __future__ import annotations

import importlib

import pytest
import torch
from checks import BACKENDS, NATIVE, picture

import softdiff_kernels as sk
from softdiff_kernels.backends import native

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
    chosen = BACKENDS_MODULE.chosen
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
