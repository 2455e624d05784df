# SPDX-License-Identifier: Apache-2.0
"""What counts as a number in a coefficient, and that nobody differentiates by one.

Before a backend is asked: once, whatever the kernels.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from coefficients import COEFFICIENTS, EACH, INF, X, momentum, reverse

import softdiff_kernels as sk
from softdiff_kernels import _arguments as args

FLOORS = [
    ("blur", "floor", lambda c: sk.blur(X, 1.0, floor=c), False),
    ("corrupt", "floor", lambda c: sk.corrupt(X, 1.0, 0.1, floor=c), False),
    ("reverse_step", "floor", lambda c: reverse(floor=c), False),
    ("momentum_step", "floor", lambda c: momentum(floor=c), False),
    ("soft_score_loss", "floor", lambda c: sk.soft_score_loss(X, X, 1.0, floor=c), False),
]
EACH_AND_FLOORS = pytest.mark.parametrize(
    ("op", "name", "call", "any_sign"), COEFFICIENTS + FLOORS, ids=lambda v: v if isinstance(v, str) else ""
)

# One number in every form that is one: each is the same float, exactly.
QUARTERS = [
    np.float64(0.25),
    np.float32(0.25),
    np.float16(0.25),
    np.array(0.25),
    np.array(0.25, dtype=np.float32),
    Fraction(1, 4),
    Decimal("0.25"),
]
# What is no number, though float() would take some of it, and what no float can hold.
NO_NUMBERS = [
    "0.5",
    b"0.5",
    np.str_("0.5"),
    True,
    np.bool_(True),
    np.array(True),
    np.array([0.5]),
    np.zeros((300, 300)),
    0.5 + 0j,
    np.complex64(1),
    [0.5],
    [0.5] * 100_000,
    "x" * 100_000,
    object(),
]
NOT_FINITE = [
    10**400,
    -(10**400),
    10**5000,
    Fraction(10**400),
    Decimal("NaN"),
    Decimal("sNaN"),
    np.float32(INF),
]


@EACH_AND_FLOORS
def test_a_number_of_any_library_is_that_number(op, name, call, any_sign):
    # Rule: the result has the bits that the float gives, noise included.
    torch.manual_seed(0)
    expected = call(0.25)
    for number in QUARTERS:
        torch.manual_seed(0)
        assert torch.equal(call(number), expected), repr(number)


@EACH_AND_FLOORS
def test_what_is_no_number_is_refused_in_one_short_sentence(op, name, call, any_sign):
    # Rule: our own sentence, of a length that does not grow with what was given.
    for wrong in NO_NUMBERS:
        with pytest.raises(TypeError, match=rf"^{op}: expected {name} as a number.*, got ") as refused:
            call(wrong)
        assert len(str(refused.value)) < 250
    for wrong in NOT_FINITE:
        with pytest.raises(
            ValueError, match=rf"^{op}: expected {name} as a finite number.*, got "
        ) as refused:
            call(wrong)
        assert len(str(refused.value)) < 250


def test_a_zero_and_a_one_of_any_library_are_known_as_such():
    # Rule: noise that is multiplied by nothing is not drawn, so torch's generator stands where it stood; a
    # scale of one is none.
    for zero in (0, np.int64(0), np.float32(0), np.array(0), Fraction(0), Decimal(0)):
        before = torch.get_rng_state()
        assert torch.equal(sk.corrupt(X, 1.5, zero), sk.blur(X, 1.5))
        assert torch.equal(torch.get_rng_state(), before)
    for one in (np.int64(1), np.array(1.0), Fraction(1), Decimal(1)):
        assert torch.equal(sk.blur(X, 1.5, scale=one), sk.blur(X, 1.5))
    for no_one in (np.bool_(True), 1 + 0j):
        with pytest.raises(TypeError, match=r"^blur: expected scale as a number or a tensor, got "):
            sk.blur(X, 1.5, scale=no_one)


def test_steps_of_any_librarys_numbers_lead_towards_the_clean_image():
    wanted = r"^momentum_step: expected noise_std_s <= noise_std_t .*, got 0.5 > 0.25$"
    for low, high in ((Fraction(1, 2), 0.25), (np.array(0.5), np.float32(0.25)), (Decimal("0.5"), 0.25)):
        with pytest.raises(ValueError, match=wanted):
            momentum(noise_std_s=low, noise_std_t=high)


@pytest.mark.parametrize("number", [np.float32(1.5), np.float64(1.5), np.array(1.5), np.int64(1)], ids=repr)
def test_numbers_of_numpy_in_a_compiled_function(number):
    # Within the graph they are tensors; a closure's are as well.
    expected = sk.blur(X, float(number))
    for compiled in (lambda x: sk.blur(x, number), lambda x, n=number: sk.blur(x, n)):
        got = torch.compile(compiled, backend="aot_eager", fullgraph=True)(X)
        # The same float64 coefficient: the same to a few roundings of a float32.
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


TWO = torch.tensor([0.25, 0.25])
BY_A_COEFFICIENT = {
    "backward": lambda call: call(TWO.clone().requires_grad_()),
    "backward, no grad": torch.no_grad()(lambda call: call(TWO.clone().requires_grad_())),
    "forward_ad": lambda call: _dual(call),
    "func.grad": lambda call: torch.func.grad(lambda c: call(c).sum())(TWO),
    "func.vjp": lambda call: torch.func.vjp(call, TWO),
    "func.jvp": lambda call: torch.func.jvp(call, (TWO,), (TWO,)),
    "jacrev": lambda call: torch.func.jacrev(call)(TWO),
    "jacfwd": lambda call: torch.func.jacfwd(call)(TWO),
    "hessian": lambda call: torch.func.hessian(lambda c: call(c).sum())(TWO),
    # A level of its own around or below, by which the coefficient is not differentiated.
    "jvp, within grad by another": lambda call: torch.func.jvp(
        lambda c: torch.func.grad(lambda y: (y * call(c)).sum())(call(TWO)), (TWO,), (TWO,)
    ),
    "jvp, within vmap of another": lambda call: torch.func.jvp(
        lambda c: torch.func.vmap(lambda y: y * call(c))(TWO), (TWO,), (TWO,)
    ),
    "vmap of one that requires grad": lambda call: torch.func.vmap(lambda c: call(c.expand(2)))(
        TWO.clone().requires_grad_()
    ),
    "vmap of a jvp": lambda call: torch.func.jvp(
        torch.func.vmap(lambda c: call(c.expand(2))), (TWO,), (TWO,)
    ),
}


def _dual(call):
    with torch.autograd.forward_ad.dual_level():
        call(torch.autograd.forward_ad.make_dual(TWO, torch.ones(2)))


@pytest.mark.parametrize("way", BY_A_COEFFICIENT)
@EACH
def test_no_way_differentiates_by_a_coefficient(op, name, call, any_sign, way):
    # Rule: whoever differentiates by a coefficient, at any level, is told so; no derivative is dropped.
    how = r"(requires grad|carries a tangent)"
    with pytest.raises(ValueError, match=rf"^{op}: {name} {how}, but .*; pass {name}\.detach\(\)$"):
        BY_A_COEFFICIENT[way](call)


@pytest.mark.parametrize("way", ["func.grad", "func.jvp", "jacfwd", "forward_ad"])
def test_a_detached_coefficient_is_none_that_is_differentiated_by(way):
    # The way out that the sentence names.
    BY_A_COEFFICIENT[way](lambda c: sk.blur(X, c.detach()) + c.sum())


def test_masks_are_not_differentiated_by():
    mask = torch.ones(5)
    how = "(requires grad|carries a tangent), but the ops are not differentiable in their masks"
    for call in (
        lambda: sk.spectral_mix([X], [mask.clone().requires_grad_()]),
        lambda: torch.func.jvp(lambda m: sk.spectral_mix([X], [m]), (mask,), (mask,)),
    ):
        with pytest.raises(
            ValueError, match=rf"^spectral_mix: masks\[0\] {how}; pass masks\[0\]\.detach\(\)$"
        ):
            call()


def test_the_twins_take_coefficients_under_vmap():
    # Rule: numbers that cannot be seen are not looked at; the values are those of the loop.
    stds = torch.tensor([0.5, 2.0])
    given = {"blur_std_t": 2.0, "blur_std_s": 0.5, "noise": X[:1]}
    for call in (
        lambda x, c: sk.reference.blur(x[None], c),
        lambda x, c: sk.reference.momentum_step(x[None], x[None], noise_std_t=2 * c, noise_std_s=c, **given),
    ):
        got = torch.func.vmap(call)(X, stds)
        expected = torch.stack([call(x, c) for x, c in zip(X, stds, strict=True)])
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)  # matrix products in another order


def test_numbers_are_seen_in_plain_tensors_of_the_cpu_alone():
    seen = []

    def look(c):
        seen.append(args.readable(c))
        return c * 1

    plain = torch.ones(2)
    look(plain)
    look(torch.nn.Parameter(plain))
    assert seen == [True, True]
    seen.clear()
    torch.func.vmap(look)(plain)
    torch.func.grad(lambda c: look(c).sum())(plain)
    torch.func.jvp(look, (plain,), (plain,))
    torch.func.functionalize(look)(plain)
    torch.jit.trace(look, plain)
    torch.fx.experimental.proxy_tensor.make_fx(look)(plain)
    with torch._subclasses.FakeTensorMode() as mode:
        look(mode.from_tensor(plain))
    look(plain.to("meta"))
    # jit.trace runs the function again, to compare, without tracing it.
    assert [s for i, s in enumerate(seen) if i < 5] == [False] * 5 and seen[-3:] == [False] * 3
