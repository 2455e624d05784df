# SPDX-License-Identifier: Apache-2.0
"""Derivatives: once and twice in float64 against differences, and native float32 ones against float64."""

from __future__ import annotations

import pytest
import torch
from checks import BACKENDS, assert_accurate, picture
from torch.autograd import gradcheck, gradgradcheck

import softdiff_kernels as sk

SHAPE = (2, 1, 3, 4)
STD = torch.tensor([0.6, 1.4], dtype=torch.float64)
SCALE = torch.tensor([0.5, 2.0], dtype=torch.float64)
KEY = sk.NoiseKey(3)


def corrupt(x, n):
    return sk.corrupt(x, STD, SCALE, floor=0.1, scale=SCALE, noise=n, return_residual=True)


def reverse_step(x, y, n):
    return sk.reverse_step(x, y, blur_std_t=STD, blur_std_s=0.5, a=0.7, b=SCALE, floor=0.1, noise=n)


def momentum_step(x, y, n, variance="large"):
    noises = {"noise_std_t": SCALE, "noise_std_s": 0.3 * SCALE}
    stds = {"blur_std_t": STD, "blur_std_s": 0.5 * STD}
    return sk.momentum_step(x, y, **stds, variance=variance, floor=0.2, noise=n, **noises)


MASKS = [torch.linspace(0.2, 1, 4), torch.linspace(1, 0, 12).view(3, 4)]


def mix(x, y, **noise):
    return sk.spectral_mix([x, y], MASKS, noise_mask=MASKS[0], **(noise or {"key": KEY}))


def loss(reduction, weight):
    return lambda x, y: sk.soft_score_loss(x, y, STD, weight=weight, floor=0.1, reduction=reduction)


# Every op as a function of its images, and how many it has.
FUNCTIONS = {
    "dct2": (sk.dct2, 1),
    "idct2": (sk.idct2, 1),
    "blur": (lambda x: sk.blur(x, STD, floor=0.2, scale=SCALE), 1),
    "blur by none": (lambda x: sk.blur(x, 0.0), 1),
    "corrupt": (corrupt, 2),
    "corrupt by a key": (lambda x: sk.corrupt(x, STD, 0.1, key=KEY), 1),
    "reverse_step": (reverse_step, 3),
    "momentum_step": (momentum_step, 3),
    "momentum_step small": (lambda *x: momentum_step(*x, variance="small"), 3),
    "spectral_mix": (mix, 2),
    "spectral_mix by noise": (lambda x, y, n: mix(x, y, noise=n), 3),
    "loss none": (loss("none", SCALE), 2),
    "loss mean": (loss("mean", None), 2),
    "loss sum": (loss("sum", 3.0), 2),
    "spectral_loss": (lambda x, y: sk.spectral_loss(x, y, MASKS[1], weight=SCALE), 2),
    "spectral_loss none": (lambda x, y: sk.spectral_loss(x, y, MASKS[1], reduction="none"), 2),
}


def images(count: int) -> list[torch.Tensor]:
    return [picture(*SHAPE, seed=s, dtype=torch.float64).requires_grad_() for s in range(count)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_differences(name):
    # gradcheck's own tolerances: 1e-5 absolute, 1e-3 relative, on differences of 1e-6 in float64.
    function, count = FUNCTIONS[name]
    assert gradcheck(function, images(count))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_gradients_are_those_of_differences(name):
    function, count = FUNCTIONS[name]
    assert gradgradcheck(function, images(count))


def test_third_derivatives_of_a_quadratic_vanish():
    # The loss is quadratic: along any direction its third derivative is zero, to rounding.
    x, y = images(2)
    (first,) = torch.autograd.grad(sk.soft_score_loss(x, y, STD), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), x, create_graph=True)
    again = torch.autograd.grad((third * x.detach()).sum(), x, allow_unused=True)[0]
    assert again is None or float(again.abs().max()) < 1e-14


def gradients(module, name, dtype, create_graph=False):
    """Gradients of a fixed linear functional of an op for its images, as (float) tensors."""
    shape = (2, 3, 17, 20)
    count = FUNCTIONS[name][1]
    x = [picture(*shape, seed=s, dtype=torch.float32).to(dtype).requires_grad_() for s in range(count)]
    std, scale = STD.float() * 3, SCALE.float()
    mask = torch.linspace(0.2, 1, 20)
    calls = {
        "dct2": lambda: module.dct2(*x),
        "blur": lambda: module.blur(*x, std, floor=0.2, scale=scale),
        "corrupt": lambda: module.corrupt(x[0], std, scale, noise=x[1], return_residual=True),
        "reverse_step": lambda: module.reverse_step(
            *x[:2], blur_std_t=std, blur_std_s=0.5 * std, a=0.7, b=scale, floor=0.1, noise=x[2]
        ),
        "momentum_step": lambda: module.momentum_step(
            *x[:2],
            **{"blur_std_t": std, "blur_std_s": 0.5, "noise_std_t": scale, "noise_std_s": 0.5 * scale},
            **{"floor": 0.1, "noise": x[2]},
        ),
        "spectral_mix": lambda: module.spectral_mix(x, [mask, mask.flip(0)]),
        "spectral_mix by noise": lambda: module.spectral_mix(
            x[:2], [mask, mask.flip(0)], noise_mask=mask.square(), noise=x[2]
        ),
        "loss none": lambda: module.soft_score_loss(*x, std, weight=scale, floor=0.1, reduction="none"),
        "loss mean": lambda: module.soft_score_loss(*x, std),
        "loss sum": lambda: module.soft_score_loss(*x, std, weight=scale, reduction="sum"),
        "spectral_loss": lambda: module.spectral_loss(*x, mask, weight=scale),
        "spectral_loss none": lambda: module.spectral_loss(*x, mask, weight=scale, reduction="none"),
    }
    result = calls[name]()
    results = result if isinstance(result, tuple) else (result,)
    total = sum(
        (i + 1) * (r * torch.linspace(0.5, 1, r.shape[-1] if r.dim() else 1, dtype=r.dtype)).sum()
        for i, r in enumerate(results)
    )
    first = torch.autograd.grad(total, x, create_graph=create_graph)
    if not create_graph:
        return first
    return torch.autograd.grad(sum(g.square().sum() for g in first), x)


PLAIN = [
    "dct2",
    "blur",
    "corrupt",
    "reverse_step",
    "momentum_step",
    "spectral_mix",
    "spectral_mix by noise",
    *(name for name in FUNCTIONS if "loss" in name),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PLAIN)
def test_float32_gradients_keep_the_contract(backend, name):
    # The gradient is again an op: the rule of float32, with the eager twin's own gradient to compare.
    with sk.use_backend(backend):
        got = gradients(sk, name, torch.float32)
    truth, eager = (gradients(sk.reference, name, d) for d in (torch.float64, torch.float32))
    for one in zip(got, truth, eager, strict=True):
        assert one[0].dtype == torch.float32
        assert_accurate(*one)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name in PLAIN if "loss" in name])
def test_float32_second_gradients_keep_the_contract(backend, name):
    # The gradient of |gradient|^2: four blurs deep, so twice the slack of one op.
    with sk.use_backend(backend):
        got = gradients(sk, name, torch.float32, create_graph=True)
    truth = gradients(sk.reference, name, torch.float64, create_graph=True)
    for one, exact in zip(got, truth, strict=True):
        assert float((one - exact).norm() / exact.norm()) < 4e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_have_their_images_dtype(backend, dtype):
    # A mixed pair of dtypes gives each image a gradient of its own dtype, to two of its roundings (the result
    # of the op and its gradient are both rounded) of the float64 gradient.
    x = picture(2, 1, 8, 8, dtype=dtype).requires_grad_()
    y = picture(2, 1, 8, 8, seed=1).requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    step, mask = {"blur_std_t": 2.0, "blur_std_s": 1.0, "a": 0.5, "b": 0.0}, torch.linspace(0.2, 1, 8)
    with sk.use_backend(backend):
        calls = [
            (sk.soft_score_loss(x, y, 1.0), sk.soft_score_loss(*wide, 1.0)),
            (sk.spectral_loss(x, y, mask), sk.spectral_loss(*wide, mask)),
            (sk.reverse_step(x, y, **step).sum(), sk.reverse_step(*wide, **step).sum()),
        ]
        for narrow_result, wide_result in calls:
            got = torch.autograd.grad(narrow_result, (x, y))
            truth = torch.autograd.grad(wide_result, wide)
            assert [g.dtype for g in got] == [dtype, torch.float32]
            for one, exact in zip(got, truth, strict=True):
                assert float((one.double() - exact).abs().max()) < 2.0**-7 * float(exact.abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("op", ["soft_score_loss", "spectral_loss"])
def test_the_upstream_gradient_reaches_the_loss(backend, op, reduction):
    # d(c L)/dx = c dL/dx, whatever path c takes: a factor on the loss, or `backward(c)`.
    x, y = picture(3, 2, 9, 9).requires_grad_(), picture(3, 2, 9, 9, seed=1)
    with sk.use_backend(backend):
        seen = 1.0 if op == "soft_score_loss" else torch.linspace(0, 1, 9)
        plain = getattr(sk, op)(x, y, seen, reduction=reduction)
        one = torch.ones_like(plain)
        (base,) = torch.autograd.grad(plain, x, one, retain_graph=True)
        (scaled,) = torch.autograd.grad(plain, x, -0.25 * one, retain_graph=True)
        (multiplied,) = torch.autograd.grad((plain * -0.25).sum(), x)
    assert torch.equal(scaled, -0.25 * base)  # a power of two scales exactly
    assert torch.equal(multiplied, scaled)


@pytest.mark.parametrize("backend", BACKENDS)
def test_accumulation_of_two_losses(backend):
    # x.grad after two backwards is the sum of both gradients, and the first is not overwritten by the second.
    x, y = picture(2, 1, 6, 6).requires_grad_(), picture(2, 1, 6, 6, seed=1)
    with sk.use_backend(backend):
        parts = [torch.autograd.grad(sk.soft_score_loss(x, y, s), x)[0] for s in (0.5, 2.0)]
        for s in (0.5, 2.0):
            sk.soft_score_loss(x, y, s).backward()
    assert torch.equal(x.grad, parts[0] + parts[1])


def test_only_the_gradients_asked_for_are_made():
    # An image that needs no gradient gets none; noise passed as data needs none either.
    x, y = picture(1, 1, 4, 4), picture(1, 1, 4, 4, seed=1).requires_grad_()
    sk.soft_score_loss(x, y, 1.0).backward()
    assert x.grad is None
    assert y.grad is not None
    assert not sk.blur(x, 1.0).requires_grad
    with torch.no_grad():
        assert not sk.blur(y, 1.0).requires_grad


COEFFICIENTS = {
    "blur": [("blur_std", lambda c, x: sk.blur(x, c)), ("scale", lambda c, x: sk.blur(x, 1.0, scale=c))],
    "corrupt": [
        ("blur_std", lambda c, x: sk.corrupt(x, c, 0.1)),
        ("noise_std", lambda c, x: sk.corrupt(x, 1.0, c)),
        ("scale", lambda c, x: sk.corrupt(x, 1.0, 0.1, scale=c)),
    ],
    "reverse_step": [
        (
            n,
            lambda c, x, n=n: sk.reverse_step(
                x, x, **{"blur_std_t": 2.0, "blur_std_s": 1.0, "a": 1.0, "b": 0.0, n: c}
            ),
        )
        for n in ("blur_std_t", "blur_std_s", "a", "b")
    ],
    "momentum_step": [
        (
            n,
            lambda c, x, n=n: sk.momentum_step(
                x, x, **{"blur_std_t": 2.0, "blur_std_s": 0.0, "noise_std_t": 2.0, "noise_std_s": 0.0, n: c}
            ),
        )
        for n in ("blur_std_t", "blur_std_s", "noise_std_t", "noise_std_s")
    ],
    "soft_score_loss": [
        ("blur_std", lambda c, x: sk.soft_score_loss(x, x, c)),
        ("weight", lambda c, x: sk.soft_score_loss(x, x, 1.0, weight=c)),
    ],
    "spectral_loss": [
        ("mask", lambda c, x: sk.spectral_loss(x, x, c)),
        ("weight", lambda c, x: sk.spectral_loss(x, x, torch.ones(1), weight=c)),
    ],
    "spectral_mix": [
        ("masks[0]", lambda c, x: sk.spectral_mix([x], [c])),
        ("noise_mask", lambda c, x: sk.spectral_mix([x], [torch.ones(1)], noise_mask=c)),
    ],
}


@pytest.mark.parametrize(
    ("op", "name", "call"),
    [(op, name, call) for op, calls in COEFFICIENTS.items() for name, call in calls],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_coefficients_that_require_grad_are_refused(op, name, call):
    # The ops have no derivative in their coefficients; a silent zero gradient would be wrong.
    with pytest.raises(ValueError) as caught:
        call(torch.ones(1, requires_grad=True), picture(2, 1, 4, 4))
    message = str(caught.value)
    assert message.startswith(f"{op}: {name} requires grad")
    assert f"pass {name}.detach()" in message
