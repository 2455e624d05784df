# SPDX-License-Identifier: Apache-2.0
"""The comparing helper itself: each plausible mistake must fail, the honest result must pass."""

from __future__ import annotations

import checks
import pytest
import torch
from checks import assert_accurate, assert_mean_kept, picture, poisoned, relative_l2, twins

import softdiff_kernels as sk

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def nothing(y, x):
    return torch.zeros_like(y)


def input_copied(y, x):
    return x.clone()


def scaled(y, x):
    return y * 1.01


def one_row(y, x):
    # A row of one plane exchanged for its neighbour: the smallest indexing mistake.
    y = y.clone()
    y[1, 2, 5] = y[1, 2, 6]
    return y


def one_nan(y, x):
    y = y.clone()
    y[0, 0, 3, 3] = float("nan")
    return y


def images_exchanged(y, x):
    return y.flip(0)


def transposed(y, x):
    return y.mT.contiguous()


MISTAKES = [nothing, input_copied, scaled, one_row, one_nan, images_exchanged, transposed]


def blurred(dtype):
    """An image in dtype, and its blur by the eager twins in float64 and float32."""
    x = picture(2, 3, 16, 16, dtype=dtype)
    return x, *twins("blur", x, torch.tensor([0.7, 1.5]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_eager_result_passes(dtype):
    # The float32 twin rounded once to dtype is the best that an op could return: it must pass.
    _, truth, eager = blurred(dtype)
    assert_accurate(truth if dtype == torch.float64 else eager.to(dtype), truth, eager)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_fails(mistake, dtype):
    # 1 % is more than 1.5 roundings of bfloat16 (0.6 %), so every dtype must see every mistake.
    x, truth, eager = blurred(dtype)
    with pytest.raises(AssertionError, match=r"error|bound"):
        assert_accurate(mistake(truth, x.double()).to(dtype), truth, eager)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_roundings_fail(dtype):
    # An element two roundings off, as from a result that was rounded once too often, is not within 1.5.
    _, truth, eager = blurred(dtype)
    got = eager.to(dtype)
    step = 2.0 * checks.ROUNDING[dtype]
    got[0, 0, 0, 0] = truth[0, 0, 0, 0] * (1 + 2 * step)
    with pytest.raises(AssertionError, match="bound"):
        assert_accurate(got, truth, eager)


def test_a_bad_eager_twin_does_not_excuse_everything():
    # The allowance is twice the eager error: three times it must fail.
    _, truth, _ = blurred(torch.float32)
    off = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).double() * 1e-4
    with pytest.raises(AssertionError, match="relative L2"):
        assert_accurate((truth + 3 * off).float(), truth, truth + off)


def test_one_image_of_a_batch_is_not_hidden_by_the_others():
    # Errors count image by image: a small image that is wrong fails beside a large one that is right.
    truth = torch.ones(2, 1, 4, 4, dtype=torch.float64)
    truth[1] *= 1e-9
    got = truth.float()
    got[1] *= 1.1
    with pytest.raises(AssertionError, match="relative L2"):
        assert_accurate(got, truth)


def test_a_truth_of_zero_asks_for_zero():
    # There is no relative error against zero: zero passes, and anything else fails.
    zero = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    assert_accurate(zero.float(), zero)
    with pytest.raises(AssertionError, match="relative L2"):
        assert_accurate(zero.float() + 1e-30, zero)


def test_wrong_shape_and_single_precision_truth_fail():
    # A result that broadcasts is not a result of the right shape, and a float32 truth is none.
    truth = torch.ones(2, 1, 3, 3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="shape"):
        assert_accurate(torch.ones(2, 1, 1, 1), truth)
    with pytest.raises(AssertionError, match="float64"):
        assert_accurate(torch.ones(2, 1, 3, 3), truth.float())


def test_mean_kept_sees_a_shift_of_two_millionths():
    # The contract allows 1e-6: 2e-6 on a single plane fails, and so does NaN.
    x = picture(2, 3, 8, 8).double()
    assert_mean_kept(x, x)
    for bad in (2e-6, float("nan")):
        y = x.clone()
        y[1, 0] += bad
        with pytest.raises(AssertionError, match="mean"):
            assert_mean_kept(y, x)


def test_relative_l2_by_hand():
    # |(3, 4) - (0, 4)| / |(0, 4)| = 3/4.
    error = relative_l2(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 4.0]]))
    assert error.tolist() == [0.75]


def test_check_compares_the_public_op_with_its_twin(monkeypatch):
    # `check` must call the public function: one that returns the input is found out.
    monkeypatch.setattr(sk, "blur", lambda x, blur_std: x.clone())
    with pytest.raises(AssertionError, match="relative L2"):
        checks.check("blur", picture(2, 1, 8, 8), 1.0)


def test_poisoned_memory_is_not_a_number():
    # Inside the block fresh memory reads as NaN, so that an element left out shows.
    with poisoned():
        assert bool(torch.empty(64, 64).isnan().all())
        assert bool(torch.empty_like(torch.zeros(8, 8, dtype=torch.float16)).isnan().all())
