# SPDX-License-Identifier: Apache-2.0
"""Precision is the op's own: flags set elsewhere for matrix products change nothing."""

from __future__ import annotations

import pytest
import torch
from checks import BACKENDS, check, picture, std_range

import softdiff_kernels as sk


@pytest.fixture
def precision():
    """Restores torch's flags, whatever a test sets."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), *(f.allow_tf32 for f in flags)
    yield
    torch.set_float32_matmul_precision(before[0])
    for flag, value in zip(flags, before[1:], strict=True):
        flag.allow_tf32 = value


def results(x, y):
    std, key = std_range(2), sk.NoiseKey(3)
    mask = torch.linspace(0, 1, 96)
    yield sk.dct2(x)
    yield sk.idct2(x)
    yield sk.blur(x, std)
    yield from sk.corrupt(x, std, 0.1, key=key, return_residual=True)
    yield sk.reverse_step(x, y, blur_std_t=std, blur_std_s=0.5 * std, a=0.5, b=0.1, key=key)
    noises = {"noise_std_t": 0.2, "noise_std_s": 0.1, "floor": 0.1}
    yield sk.momentum_step(x, y, blur_std_t=std, blur_std_s=0.5 * std, key=key, **noises)
    yield sk.soft_score_loss(x, y, std, reduction="none")
    yield sk.spectral_loss(x, y, mask, reduction="none")
    yield sk.spectral_mix([x, y], [mask, mask], noise_mask=mask, key=key)
    yield sk.spectral_mix([x], [mask], noise_mask=mask, noise=y)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", ["high", "medium"])
def test_relaxed_matrix_products_change_nothing(backend, level, precision):
    # The contract would allow 2e-5 for "high" and 1e-3 for "medium". On the CPU the kernels ignore the flag,
    # bit for bit, and the eager twin computes in float64 instead: the strict rule holds.
    x, y = picture(2, 3, 64, 96), picture(2, 3, 64, 96, seed=1)
    torch.set_float32_matmul_precision("highest")
    strict = list(results(x, y))
    torch.set_float32_matmul_precision(level)
    relaxed = list(results(x, y))
    assert torch.get_float32_matmul_precision() == level  # the ops leave the flag as it is
    with sk.use_backend(backend):
        check("dct2", x)
        check("blur", x, std_range(2))
        check("corrupt", x, std_range(2), 0.1, key=sk.NoiseKey(1), return_residual=True)
        check("soft_score_loss", x, y, std_range(2), reduction="none")
        check("spectral_loss", x, y, torch.linspace(0, 1, 96), reduction="none")
        check("spectral_mix", [x], [torch.linspace(0, 1, 96)], noise_mask=torch.ones(1), noise=y)
    for one, other in zip(strict, relaxed, strict=True):
        assert float((one - other).norm() / one.norm()) < 2e-6
        if sk.backends()["native"].usable:
            assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tf32_flags_change_nothing(backend, precision):
    x, y = picture(2, 3, 32, 96), picture(2, 3, 32, 96, seed=1)
    with sk.use_backend(backend):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        before = list(results(x, y))
        torch.backends.cudnn.allow_tf32 = True
        for one, other in zip(before, results(x, y), strict=True):
            assert torch.equal(one, other)
        torch.backends.cuda.matmul.allow_tf32 = True
        for one, other in zip(before, results(x, y), strict=True):
            assert float((one - other).norm() / one.norm()) < 2e-6


def test_the_eager_twin_takes_float64_under_a_relaxed_flag(precision):
    # Under a relaxed flag the eager transform is that of float64, rounded once, and not the float32 product.
    x = picture(1, 1, 64, 64)
    torch.set_float32_matmul_precision("medium")
    relaxed = sk.reference.dct2(x)
    assert torch.equal(relaxed, sk.reference.dct2(x.double()).float())
    torch.set_float32_matmul_precision("highest")
    assert not torch.equal(relaxed, sk.reference.dct2(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(backend, default):
    # torch.set_default_dtype rules what new tensors are; the ops name their dtypes.
    x = picture(2, 3, 32, 96)
    with sk.use_backend(backend):
        torch.set_default_dtype(default)
        try:
            std = torch.logspace(-2, 1, 2, dtype=torch.float32)
            changed = sk.blur(x, std), sk.blur(x, 1.5)
        finally:
            torch.set_default_dtype(torch.float32)
        assert changed[0].dtype == torch.float32
        assert torch.equal(changed[0], sk.blur(x, std))
        assert torch.equal(changed[1], sk.blur(x, 1.5))
