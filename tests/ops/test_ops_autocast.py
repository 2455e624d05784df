# SPDX-License-Identifier: Apache-2.0
"""Under autocast the ops compute in float32 and return their image's dtype: as if it were not there."""

from __future__ import annotations

import pytest
import torch
from checks import BACKENDS, picture

import softdiff_kernels as sk

MASK = torch.linspace(0, 1, 12)
KEY = sk.NoiseKey(1)
OPS = {
    "dct2": lambda x, y: sk.dct2(x),
    "idct2": lambda x, y: sk.idct2(x),
    "blur": lambda x, y: sk.blur(x, 1.5, floor=0.1),
    "corrupt": lambda x, y: sk.corrupt(x, 1.5, 0.1, key=KEY, return_residual=True),
    "reverse_step": lambda x, y: sk.reverse_step(x, y, blur_std_t=2.0, blur_std_s=1.0, a=0.5, b=0.1, key=KEY),
    "momentum_step": lambda x, y: sk.momentum_step(
        x, y, blur_std_t=2.0, blur_std_s=1.0, noise_std_t=0.2, noise_std_s=0.1, floor=0.1, key=KEY
    ),
    "soft_score_loss": lambda x, y: sk.soft_score_loss(x, y, 1.5, reduction="none"),
    "spectral_loss": lambda x, y: sk.spectral_loss(x, y, MASK, reduction="none"),
    "spectral_mix": lambda x, y: sk.spectral_mix([x, y], [MASK, MASK], noise_mask=MASK, key=KEY),
    "spectral_mix by noise": lambda x, y: sk.spectral_mix([x], [MASK], noise_mask=MASK, noise=y),
    "normal": lambda x, y: sk.normal(x.shape, KEY, dtype=x.dtype),
}


def listed(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with sk.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_autocast_changes_no_bit(backend, op, dtype, cast):
    # The dtype is the image's (float32 for a loss), the bits are those of the call outside.
    x, y = picture(2, 3, 10, 12, dtype=dtype), picture(2, 3, 10, 12, seed=1, dtype=dtype)
    expected = OPS[op](x, y)
    with torch.autocast("cpu", dtype=cast):
        got = OPS[op](x, y)
    for one, other in zip(listed(got), listed(expected), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("op", [op for op in OPS if op != "normal"])
def test_gradients_under_autocast_change_no_bit(backend, op):
    # Forward under autocast and backward outside it, as PyTorch recommends, and backward inside as well.
    y = picture(2, 3, 10, 12, seed=1)

    def gradient(forward, backward):
        x = picture(2, 3, 10, 12).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=forward):
            total = sum(result.sum() for result in listed(OPS[op](x, y)))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backward):
            total.backward()
        return x.grad

    expected = gradient(False, False)
    assert torch.equal(gradient(True, False), expected)
    assert torch.equal(gradient(True, True), expected)


def test_a_network_under_autocast_beside_the_ops(backend):
    # The common training step: a bfloat16 prediction against a float32 target, a float32 loss and gradients
    # that reach the network's float32 weights.
    network = torch.nn.Conv2d(3, 3, 3, padding=1)
    x0 = picture(2, 3, 10, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_t, residual = sk.corrupt(x0, 1.5, 0.1, key=KEY, return_residual=True)
        prediction = network(x_t)
        loss = sk.soft_score_loss(prediction, residual, 1.5)
    assert prediction.dtype == torch.bfloat16
    assert x_t.dtype == loss.dtype == torch.float32
    loss.backward()
    assert network.weight.grad.dtype == torch.float32
    assert float(network.weight.grad.abs().max()) > 0
    expected = sk.reference.soft_score_loss(prediction.detach().double(), residual.double(), 1.5)
    assert loss.item() == pytest.approx(float(expected), rel=2e-6)
