# SPDX-License-Identifier: Apache-2.0
"""torch.compile(fullgraph=True) by inductor, forward and backward, and autocast: the eager results."""

from __future__ import annotations

import pytest
import torch
from on_gpu import DEVICE, DRY, DTYPES, OPS, call, image, marks, mask_of, name_of, on, sizes

import softdiff_kernels as sk

pytestmark = marks

BACKEND = "aot_eager" if DRY else "inductor"
SHAPE = sizes([(3, 3, 48, 64)], [(2, 2, 8, 6)])[0]
KEY = sk.NoiseKey(3, 5, 1)


def training_step(x, y, std, level):
    x_t, residual = sk.corrupt(x, std, level, key=KEY, return_residual=True)
    return sk.soft_score_loss(x_t * (1.5 - x_t), residual * y, std, weight=1 / level**2)


def sampler_step(x, y, std, level):
    noises = {"noise_std_t": level, "noise_std_s": 0.5 * level}
    x_s = sk.momentum_step(x, y * y, blur_std_t=std, blur_std_s=0.5 * std, **noises, key=KEY)
    return sk.reverse_step(x_s, y, blur_std_t=0.5 * std, blur_std_s=0.2 * std, a=0.4, b=0.1, key=KEY.at(2))


def transforms(x, y, std, level):
    mask = mask_of(x)
    mixed = sk.spectral_mix([x + y, y], [mask, mask.square()], noise_mask=mask, key=KEY)
    return sk.idct2(sk.dct2(mixed) * mask) + sk.blur(x, std, floor=0.1, scale=level) * sk.normal(
        x.shape, KEY, device=x.device
    )


def numbers(x, y, std, level):
    noises = {"noise_std_t": 0.25, "noise_std_s": 0.1}
    x_s = sk.momentum_step(x, y, blur_std_t=2.0, blur_std_s=1.0, **noises, key=KEY)
    return sk.soft_score_loss(sk.corrupt(x_s, 1.5, 0.25, noise=y), y, 1.5, reduction="none")


@pytest.mark.parametrize(
    "function", [training_step, sampler_step, transforms, numbers], ids=lambda f: f.__name__
)
def test_compiled_is_eager(backend, function):
    # One graph. Our ops are calls in it and give the same bits; pointwise code around them may be contracted
    # to fused multiply-adds, a rounding of 2^-24 each, which a loss and its gradient pass on.
    torch._dynamo.reset()
    std, level = on(torch.linspace(0.5, 2, SHAPE[0])), on(torch.linspace(0.2, 0.4, SHAPE[0]))

    def run(f):
        x, y = image(*SHAPE).requires_grad_(), image(*SHAPE, seed=1).requires_grad_()
        out = f(x, y, std, level)
        out.sum().backward()
        return out.detach(), x.grad, y.grad

    with sk.use_backend(backend):
        expected = run(function)
        got = run(torch.compile(function, backend=BACKEND, fullgraph=True))
        with torch.no_grad():
            forward = torch.compile(function, backend=BACKEND, fullgraph=True)(
                image(*SHAPE), image(*SHAPE, seed=1), std, level
            )
    torch._dynamo.reset()
    for one, other in zip((*got, forward), (*expected, expected[0]), strict=True):
        assert one.stride() == other.stride()
        assert float((one - other).norm()) <= 2e-6 * float(other.norm())


def test_a_graph_without_a_key_draws_anew(backend):
    torch._dynamo.reset()
    x = image(*SHAPE)
    with sk.use_backend(backend):
        compiled = torch.compile(lambda x: sk.corrupt(x, 1.5, 0.3), backend=BACKEND, fullgraph=True)
        first, second = compiled(x), compiled(x)
    torch._dynamo.reset()
    assert not torch.equal(first, second)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16], ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("op", OPS)
def test_autocast_changes_nothing(backend, op, dtype, amp):
    # Under autocast an op computes in float32 and returns the image's dtype: the same bits as outside.
    x, y = image(*SHAPE, dtype=dtype), image(*SHAPE, seed=1, dtype=dtype)
    std = on(torch.linspace(0.5, 2, SHAPE[0]))
    if DRY and amp == torch.float16:
        pytest.skip("CPU autocast in float16 is not the same on every torch")
    with sk.use_backend(backend):
        expected = call(op, x, y, key=KEY, std=std)
        with torch.autocast(DEVICE.type, dtype=amp):
            got = call(op, x, y, key=KEY, std=std)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)
