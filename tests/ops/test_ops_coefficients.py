# SPDX-License-Identifier: Apache-2.0
"""Bad coefficients, each refused with what was got and what was expected: in a number and in a tensor."""

from __future__ import annotations

import pytest
import torch
from checks import BACKENDS
from coefficients import EACH, INF, NAN, X, momentum, reverse

import softdiff_kernels as sk


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with sk.use_backend(request.param):
        yield request.param


@EACH
def test_coefficients_of_the_wrong_length(op, name, call, any_sign):
    for shape in ((3,), (0,), (2, 1), (1, 1, 1, 1)):
        got = rf"float32 tensor \[{', '.join(map(str, shape))}\] on cpu"
        with pytest.raises(
            ValueError, match=rf"^{op}: expected {name} as a number or a tensor \[2\], got {got}$"
        ):
            call(torch.ones(shape))


@EACH
def test_coefficients_of_the_wrong_kind(op, name, call, any_sign):
    with pytest.raises(
        TypeError, match=rf"^{op}: expected {name} as a floating-point tensor, got int64 tensor"
    ):
        call(torch.ones(2, dtype=torch.int64))
    for wrong in ("1.0", [1.0, 2.0], True, 1j):
        kind = type(wrong).__name__
        with pytest.raises(TypeError, match=rf"^{op}: expected {name} as a number or a tensor, got {kind} "):
            call(wrong)


@EACH
def test_coefficients_elsewhere(op, name, call, any_sign):
    with pytest.raises(
        ValueError, match=rf"^{op}: expected {name} on cpu, got float32 tensor \[2\] on meta$"
    ):
        call(torch.ones(2, device="meta"))


@EACH
@pytest.mark.parametrize("value", [-0.5, NAN, INF, -INF])
def test_bad_numbers(op, name, call, any_sign, value):
    # As a Python number.
    if any_sign and value == -0.5:
        call(value)
        return
    wanted = "a finite number" + ("" if any_sign else " of at least 0")
    with pytest.raises(ValueError, match=rf"^{op}: expected {name} as {wanted}, got {value!r}$"):
        call(value)


@EACH
@pytest.mark.parametrize("value", [-0.5, NAN, INF])
def test_bad_numbers_inside_tensors(op, name, call, any_sign, value):
    # As the second sample's value: the message says which sample has it.
    if any_sign and value == -0.5:
        call(torch.tensor([0.5, value]))
        return
    wanted = "finite numbers" + ("" if any_sign else " of at least 0")
    pattern = f"^{op}: expected {name} as {wanted}, got {value!r} for sample 1$"
    for dtype in (torch.float32, torch.float64):
        good = 3.0 if name.endswith("_t") else 0.05
        with pytest.raises(ValueError, match=pattern):
            call(torch.tensor([good, value], dtype=dtype))


@pytest.mark.parametrize("op", ["blur", "corrupt", "reverse_step", "momentum_step", "soft_score_loss"])
@pytest.mark.parametrize("floor", [-0.1, 1.1, NAN, INF])
def test_a_floor_outside_0_to_1(op, floor):
    calls = {
        "blur": lambda: sk.blur(X, 1.0, floor=floor),
        "corrupt": lambda: sk.corrupt(X, 1.0, 0.1, floor=floor),
        "reverse_step": lambda: reverse(floor=floor),
        "momentum_step": lambda: momentum(floor=floor),
        "soft_score_loss": lambda: sk.soft_score_loss(X, X, 1.0, floor=floor),
    }
    pattern = f"^{op}: expected floor as a finite number of at least 0 and at most 1, got {floor!r}$"
    with pytest.raises(ValueError, match=pattern):
        calls[op]()


@pytest.mark.parametrize("kind", ["blur_std", "noise_std"])
def test_a_momentum_step_away_from_the_clean_image(kind):
    # blur_std_s > blur_std_t and noise_std_s > noise_std_t, as numbers, tensors and mixed.
    low, high = f"{kind}_s", f"{kind}_t"
    wanted = rf"^momentum_step: expected {low} <= {high} \(a step towards the clean image\), got 0.75 > 0.5"
    with pytest.raises(ValueError, match=wanted + "$"):
        momentum(**{low: 0.75, high: 0.5})
    for s, t in (
        (torch.tensor([0.5, 0.75]), torch.tensor([0.5, 0.5])),
        (torch.tensor([0.25, 0.75]), 0.5),
        (0.75, torch.tensor([1.0, 0.5])),
    ):
        with pytest.raises(ValueError, match=wanted + " for sample 1$"):
            momentum(**{low: s, high: t})
    momentum(**{low: 0.5, high: 0.5})  # equal is a step of its own
