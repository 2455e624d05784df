# SPDX-License-Identifier: Apache-2.0
"""How many digits, and who decides: torch.set_float32_matmul_precision, and no other flag."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from checks import SLACK, relative_l2, twins
from on_gpu import OPS, call, image, marks, mask_of, name_of, on, sizes, spread

import softdiff_kernels as sk

pytestmark = marks

SHAPES = sizes(
    [(3, 3, 32, 32), (3, 3, 64, 64), (2, 2, 40, 60), (60, 3, 128, 128), (2, 1, 200, 256)],
    [(2, 1, 8, 8), (1, 1, 66, 70)],
)
CASES = pytest.mark.parametrize("shape", SHAPES, ids=name_of)
KEY = sk.NoiseKey(3)


@contextmanager
def precision(level):
    """The setting inside the block; what it was after it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def results(x, y):
    """(op, its arguments and options) of every op with products."""
    std, mask = spread(x.shape[0], high=4.0), mask_of(x)
    steps = {"blur_std_t": std, "blur_std_s": 0.7 * std}
    return [
        ("dct2", (x,), {}),
        ("idct2", (x,), {}),
        ("blur", (x, std), {}),
        ("corrupt", (x, std, 0.1), {"key": KEY, "return_residual": True}),
        ("reverse_step", (x, y), {**steps, "a": 0.5, "b": 0.1, "key": KEY}),
        ("momentum_step", (x, y), {**steps, "noise_std_t": 0.2, "noise_std_s": 0.1, "key": KEY}),
        ("soft_score_loss", (x, y, std), {"reduction": "none"}),
        ("spectral_mix", ([x, y], [mask, mask]), {"noise_mask": mask, "key": KEY}),
    ]


@pytest.mark.parametrize("level", ["highest", "high", "medium"])
@CASES
def test_what_each_level_allows(backend, shape, level):
    # "highest": twice the float32 twin's own error plus 1e-6; "high": 2e-5; "medium": 1e-3. The twin is asked
    # at "highest", whatever the op is asked at.
    x, y = image(*shape), image(*shape, seed=1)
    for op, arguments, options in results(x, y):
        with sk.use_backend(backend), precision(level):
            got = getattr(sk, op)(*arguments, **options)
            assert torch.get_float32_matmul_precision() == level
        with precision("highest"):
            truth, eager = twins(op, *arguments, **options)
        triples = zip(*(r if isinstance(r, tuple) else (r,) for r in (got, truth, eager)), strict=True)
        for result, exact, other in triples:
            own = 2 * relative_l2(other, exact) + SLACK
            bound = {"highest": own, "high": own.clamp(min=2e-5), "medium": own.clamp(min=1e-3)}[level]
            assert bool((relative_l2(result, exact) <= bound).all()), f"{op}: {relative_l2(result, exact)}"


@pytest.mark.parametrize("op", OPS)
@CASES
def test_other_flags_change_nothing(backend, shape, op):
    # TF32 for products and convolutions, and reduced sums in half precision: the same bits.
    x, y = image(*shape), image(*shape, seed=1)
    std = on(torch.linspace(0.5, 3.0, shape[0]))
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    flags = [(convolutions, "allow_tf32"), (products, "allow_fp16_reduced_precision_reduction")]
    before = [getattr(*flag) for flag in flags]
    with sk.use_backend(backend):
        expected = call(op, x, y, key=KEY, std=std)
        try:
            for flag, value in zip(flags, before, strict=True):
                setattr(*flag, not value)
                assert torch.equal(call(op, x, y, key=KEY, std=std), expected)
        finally:
            for flag, value in zip(flags, before, strict=True):
                setattr(*flag, value)


@CASES
def test_tf32_for_products_stays_within_its_level(backend, shape):
    # torch keeps one setting under two names: allow_tf32 reads as "high", which may cost digits up to 2e-5.
    x = image(*shape)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with sk.use_backend(backend):
            got = sk.blur(x, 1.5)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert float(relative_l2(got, sk.reference.blur(x.double(), 1.5)).max()) <= 2e-5
