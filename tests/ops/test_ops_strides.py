# SPDX-License-Identifier: Apache-2.0
"""Memory layout: any strides go in, the values are the same, and the result keeps the layout that it had.

Outputs are poisoned with NaN before the call, so that an element left unwritten shows.
"""

from __future__ import annotations

import pytest
import torch
from checks import BACKENDS, picture, poisoned

import softdiff_kernels as sk

SHAPE = (2, 3, 10, 14)
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def transposed(x):
    return x.mT.contiguous().mT


def sliced(x):
    """A window of a larger image whose surroundings are NaN: a read outside shows."""
    batch, channels, height, width = x.shape
    room = torch.full((batch * 2, channels + 2, height * 3 + 2, width * 2 + 3), float("nan"), dtype=x.dtype)
    window = room[::2, 1:-1, 1:-1:3, 2:-1:2]
    window.copy_(x)
    return window


def batch_inside(x):
    """[C, H, W, B] in memory: the images' elements lie B apart."""
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


LAYOUTS = [channels_last, transposed, sliced, batch_inside]


def call(op: str, x: torch.Tensor, y: torch.Tensor):
    key, std = sk.NoiseKey(1), torch.tensor([0.8, 3.0])
    if op in ("dct2", "idct2"):
        return getattr(sk, op)(x)
    if op == "blur":
        return sk.blur(x, std)
    if op == "corrupt":
        return torch.stack(sk.corrupt(x, std, 0.1, noise=y, return_residual=True))
    if op == "corrupt with a key":
        return sk.corrupt(x, std, 0.1, key=key)
    if op == "reverse_step":
        return sk.reverse_step(x, y, blur_std_t=std, blur_std_s=0.5 * std, a=0.5, b=0.1, noise=y)
    if op == "momentum_step":
        noises = {"noise_std_t": 0.2, "noise_std_s": 0.1, "floor": 0.1}
        return sk.momentum_step(x, y, blur_std_t=std, blur_std_s=0.5 * std, key=key, **noises)
    if op == "soft_score_loss":
        return sk.soft_score_loss(x, y, std, reduction="none")
    mask = torch.linspace(0, 1, 10 * 14).view(10, 14)
    if op == "spectral_loss":
        return sk.spectral_loss(x, y, mask.flip(0).mT.contiguous().mT, reduction="none")
    if op == "spectral_mix by noise":
        return sk.spectral_mix([x], [mask], noise_mask=mask.flip(1), noise=y)
    return sk.spectral_mix([x, y], [mask, mask.flip(0).mT.contiguous().mT], noise_mask=mask, key=key)


OPS = [
    "dct2",
    "idct2",
    "blur",
    "corrupt",
    "corrupt with a key",
    "reverse_step",
    "momentum_step",
    "soft_score_loss",
    "spectral_loss",
    "spectral_mix",
    "spectral_mix by noise",
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with sk.use_backend(request.param), poisoned():
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_values_do_not_depend_on_the_layout(backend, op, layout, dtype):
    # The fused kernels do the same arithmetic on the same numbers: bit for bit. The eager twin's products may
    # order their sums by layout: four roundings of float32, and one of bfloat16 where that tips over.
    x, y = picture(*SHAPE, dtype=dtype), picture(*SHAPE, seed=1, dtype=dtype)
    expected = call(op, x, y)
    for laid_x, laid_y in ((layout(x), layout(y)), (x, layout(y)), (layout(x), y)):
        got = call(op, laid_x, laid_y)
        assert not bool(got.isnan().any())
        if backend == "native" and dtype != torch.float64:
            assert torch.equal(got, expected)
        else:
            rounding = {torch.float64: 4e-15, torch.float32: 2.0**-21, torch.bfloat16: 2.0**-7}[dtype]
            if got.dtype == torch.float32:
                rounding = 2.0**-20
            assert (got - expected).abs().max() <= rounding * expected.abs().max()


@pytest.mark.parametrize("op", [o for o in OPS if o not in ("corrupt", "soft_score_loss", "spectral_loss")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_keeps_the_layout_of_its_image(backend, op, layout):
    # The rule of torch.empty_like: dense images keep their strides, others get contiguous-like ones.
    x, y = layout(picture(*SHAPE)), picture(*SHAPE, seed=1)
    result = call(op, x, y)
    assert result.stride() == torch.empty_like(x).stride()
    if layout is channels_last:
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("op", OPS)
def test_expanded_images(backend, op):
    # One image for the whole batch, one plane for all channels, one row for all rows: strides of zero.
    one = picture(1, 1, 1, 14)
    x, y = one.expand(SHAPE), picture(1, 3, 10, 14, seed=1).expand(SHAPE)
    expected = call(op, x.contiguous(), y.contiguous())
    got = call(op, x, y)
    assert (got - expected).abs().max() <= 2.0**-20 * expected.abs().max()


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_bytes_in_any_layout(backend_name):
    x = picture(*SHAPE, dtype=torch.uint8)
    room = torch.zeros(2, 3, 20, 28, dtype=torch.uint8)
    room[..., ::2, ::2] = x
    with sk.use_backend(backend_name), poisoned():
        expected = sk.corrupt(x, 1.0, 0.1, key=sk.NoiseKey(1))
        last = sk.corrupt(channels_last(x), 1.0, 0.1, key=sk.NoiseKey(1))
        window = sk.corrupt(room[..., ::2, ::2], 1.0, 0.1, key=sk.NoiseKey(1))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert (last - expected).abs().max() < 1e-6  # both right to 1e-6 of values under 1
    assert (window - expected).abs().max() < 1e-6


@pytest.mark.parametrize("op", ["blur", "corrupt", "reverse_step", "soft_score_loss", *OPS[-3:]])
def test_lazily_negated_tensors(backend, op):
    # torch keeps the sign of a conjugate's imaginary part as a flag beside the memory; it must be resolved.
    pair = torch.complex(picture(*SHAPE), picture(*SHAPE, seed=1))
    x, y = pair.conj().imag, picture(*SHAPE, seed=2)
    assert x.is_neg()
    expected = call(op, x.resolve_neg().contiguous(), y)
    assert (call(op, x, y) - expected).abs().max() <= 2.0**-20 * expected.abs().max()


@pytest.mark.parametrize("op", OPS)
def test_inputs_are_left_as_they_were(backend, op):
    # No op writes to what it reads.
    x, y = picture(*SHAPE), picture(*SHAPE, seed=1)
    before = x.clone(), y.clone()
    call(op, x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert x._version == y._version == 0
