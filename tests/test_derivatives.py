# SPDX-License-Identifier: Apache-2.0
"""Every op times every way in which a derivative may be asked for, against the eager twin in float64.

The table in docs/derivatives.md is written from the same lists, and is held to them:
`PYTHONPATH=tests python -m test_derivatives` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checks import needs_native
from test_ops_compile import needs_compiler
from ways import COMPILED, OPS, TRAINED, WAYS, all_ops, images, listed, trained

import softdiff_kernels as sk

BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
TABLE = Path(__file__).parent.parent / "docs" / "derivatives.md"


@pytest.fixture(params=BACKENDS)
def backend(request):
    with sk.use_backend(request.param):
        yield request.param


def assert_equal_to_the_truth(got, truth):
    # float32 against float64, through at most two derivatives of an op and a square: a few hundred roundings
    # of 6e-8 each. A derivative that is dropped or doubled is off by its own size.
    assert len(got) == len(truth) > 0
    for one, exact in zip(got, truth, strict=True):
        assert one is not None, "no derivative"
        assert one.shape == exact.shape
        assert float((one.double() - exact).norm()) <= 2e-5 * float(exact.norm()) + 1e-6


def truth_of(way, name):
    op, count = OPS[name]
    way = trained if way in TRAINED else way
    return way(lambda *xs: op(sk.reference, *xs), images(count, torch.float64))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("way", WAYS)
def test_eager(backend, way, name):
    # Right by every way, for the fused kernels and for the eager ones behind the same op.
    op, count = OPS[name]
    got = WAYS[way](lambda *xs: op(sk, *xs), images(count))
    assert_equal_to_the_truth(got, truth_of(WAYS[way], name))


def compiled(way, f, xs, **options):
    torch._dynamo.reset()
    graph = torch.compile(COMPILED[way](f), fullgraph=True, **options)
    if way != "backward":
        return listed(graph(*xs))
    leaves = [x.clone().requires_grad_() for x in xs]
    graph(*leaves).backward()
    return [x.grad for x in leaves]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("way", COMPILED)
def test_compiled(way, name):
    # One graph without a break, traced and cut as inductor does it.
    op, count = OPS[name]
    got = compiled(way, lambda *xs: op(sk, *xs), images(count), backend="aot_eager")
    assert_equal_to_the_truth(got, truth_of(WAYS[way], name))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("way", COMPILED)
@needs_compiler
def test_inductor(way, dynamic):
    # All ops in one graph, compiled for real, with and without sizes that are known.
    f, count = all_ops(sk)
    truth, _ = all_ops(sk.reference)
    got = compiled(way, f, images(count), backend="inductor", dynamic=dynamic)
    assert_equal_to_the_truth(got, WAYS[way](truth, images(count, torch.float64)))
