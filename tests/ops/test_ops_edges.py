# SPDX-License-Identifier: Apache-2.0
"""Where the ops must be exact or must not break: nothing to do, no blur, endless blur, odd coefficients."""

from __future__ import annotations

import pytest
import torch
from checks import BACKENDS, assert_accurate, check, needs_native, picture, poisoned

import softdiff_kernels as sk

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = ["dct2", "idct2", "blur", "corrupt", "reverse_step", "momentum_step", "mix", "loss", "spectral_loss"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with sk.use_backend(request.param), poisoned():
        yield request.param


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request):
    return request.param


@pytest.mark.parametrize("op", OPS)
def test_empty_batches(backend, dtype, op):
    # A batch of none is a result of none, with its shape, dtype and a loss of zero images.
    x = torch.zeros(0, 3, 6, 5, dtype=dtype)
    none = torch.zeros(0)
    key = sk.NoiseKey(0)
    results = {
        "dct2": lambda: sk.dct2(x),
        "idct2": lambda: sk.idct2(x),
        "blur": lambda: sk.blur(x, none, scale=none),
        "corrupt": lambda: sk.corrupt(x, 1.0, none, key=key, return_residual=True),
        "reverse_step": lambda: sk.reverse_step(
            x, x, blur_std_t=none, blur_std_s=none, a=1.0, b=0.1, key=key
        ),
        "momentum_step": lambda: sk.momentum_step(
            x, x, blur_std_t=1.0, blur_std_s=none, noise_std_t=0.1, noise_std_s=none
        ),
        "mix": lambda: (
            sk.spectral_mix([x], [torch.ones(6, 5)], noise_mask=torch.ones(1), key=key),
            sk.spectral_mix([x, x], [torch.ones(6, 5), x], noise_mask=x[:, :1], noise=x),
        ),
        "loss": lambda: sk.soft_score_loss(x, x, none, weight=none, reduction="none"),
        "spectral_loss": lambda: sk.spectral_loss(x, x, x[:, :1], weight=none, reduction="none"),
    }
    result = results[op]()
    for y in result if isinstance(result, tuple) else (result,):
        if op in ("loss", "spectral_loss"):
            assert y.shape == (0,)
            assert y.dtype == torch.float32
        else:
            assert y.shape == x.shape
            assert y.dtype == dtype
    assert float(sk.soft_score_loss(x, x, 1.0, reduction="sum")) == 0.0


def test_no_channels(backend):
    x, mask = torch.zeros(2, 0, 4, 4), torch.ones(4, 4)
    assert sk.blur(x, 1.0).shape == sk.spectral_mix([x], [mask], noise_mask=mask, noise=x).shape == x.shape
    assert sk.soft_score_loss(x, x, 1.0, reduction="none").tolist() == [0, 0]
    assert sk.spectral_loss(x, x, mask, reduction="none").tolist() == [0, 0]


def test_no_blur_is_the_input_exactly(backend, dtype):
    # blur_std = 0 returns the input bit for bit, beside blurred neighbours in the batch, with a floor too.
    x = picture(3, 3, 17, 24, dtype=dtype)
    std = torch.tensor([0.0, 2.0, 0.0])
    for floor in (0.0, 0.3):
        y = sk.blur(x, std, floor=floor)
        assert torch.equal(y[::2], x[::2])
        assert not torch.equal(y[1], x[1])
    assert torch.equal(sk.blur(x, 0.0), x)
    assert torch.equal(sk.corrupt(x, 0.0, 0.0), x)
    x_t, residual = sk.corrupt(x, 0.0, 0.0, return_residual=True)
    assert torch.equal(x_t, x)
    assert torch.equal(residual, torch.zeros_like(x))


def test_no_blur_twice_steps_without_a_transform(backend):
    # With C_s = C_t = 1 the step is a x_t + (1 - a) x0_hat: for a = 1/2 exact up to the last rounding.
    x_t, x0_hat = picture(2, 1, 9, 9, seed=1), picture(2, 1, 9, 9, seed=2)
    x_s = sk.reverse_step(x_t, x0_hat, blur_std_t=0.0, blur_std_s=0.0, a=0.5, b=0.0)
    assert torch.equal(x_s, 0.5 * x_t + 0.5 * x0_hat)


def test_very_strong_blur_leaves_the_mean_alone(backend):
    # At blur_std = 1e3, 1e18 and 1e30 the slowest cosine of 64 px keeps exp(-1200) or less: only the mean.
    x = picture(3, 2, 64, 48)
    for std in (1e3, 1e18, 1e30):
        y = sk.blur(x, std)
        mean = x.double().mean(dim=(2, 3), keepdim=True)
        assert (y.double() - mean).abs().max() < 1e-6
    loss = sk.soft_score_loss(x, torch.zeros_like(x), 1e3, reduction="none")
    expected = (x.double().mean(dim=(2, 3)).square() * 64 * 48).sum(dim=1)
    assert_accurate(loss, expected, expected)


def test_one_bad_image_does_not_touch_its_neighbours(backend):
    # Images are independent: NaN and infinity in one leave the others bit for bit as they were.
    x = picture(4, 2, 13, 20)
    clean = sk.blur(x, 1.5)
    x[1, 0, 3, 4], x[2, 1, 0, 0] = float("nan"), float("inf")
    dirty = sk.blur(x, 1.5)
    assert torch.equal(dirty[[0, 3]], clean[[0, 3]])
    assert torch.equal(dirty[1, 1], clean[1, 1])
    assert bool(dirty[1, 0].isnan().any())


def test_one_bad_plane_does_not_touch_those_that_share_its_mask(backend):
    # The same of what sums up inputs and noise, and of a loss: a NaN in one plane, on the way in by each.
    mask, noise_mask = torch.rand(13, 20, generator=torch.Generator().manual_seed(0)), torch.ones(1)
    clean = [picture(3, 2, 13, 20, seed=s) for s in range(3)]

    def both(x, y, n):
        mixed = sk.spectral_mix([x, y], [mask, mask.flip(0)], noise_mask=noise_mask, noise=n)
        return mixed, sk.spectral_loss(x, y, mask, reduction="none")

    expected = both(*clean)
    for place in range(3):
        dirty = [x.clone() for x in clean]
        dirty[place][1, 0, 3, 4] = float("nan")
        mixed, loss = both(*dirty)
        assert bool(mixed[1, 0].isnan().any())
        assert torch.equal(mixed[[0, 2]], expected[0][[0, 2]])
        assert torch.equal(mixed[1, 1], expected[0][1, 1])
        assert loss.isnan().tolist() == [False, place < 2, False]
        assert torch.equal(loss[[0, 2]], expected[1][[0, 2]])


def test_coefficients_of_every_kind_agree(backend):
    # A number, a tensor [], [1] or [B], float32, float64 or strided, mean the same.
    x = picture(3, 2, 12, 10)
    expected = sk.corrupt(x, 1.5, 0.25, scale=0.5, key=sk.NoiseKey(1))
    same = [
        torch.tensor(1.0),
        torch.ones(1),
        torch.ones(3),
        torch.ones(3, dtype=torch.float64),
        torch.ones(6)[::2],
        torch.ones(1).expand(3),
        torch.ones(3, dtype=torch.bfloat16),
    ]
    for one in same:
        got = sk.corrupt(x, 1.5 * one, 0.25 * one, scale=0.5 * one, key=sk.NoiseKey(1))
        assert torch.equal(got, expected)


def test_mixed_image_dtypes(backend):
    # The result has the first image's dtype; the other is read as it is.
    x_t, x0_hat = picture(2, 1, 8, 8, dtype=torch.bfloat16), picture(2, 1, 8, 8, seed=1)
    step = {"blur_std_t": 2.0, "blur_std_s": 1.0, "a": 0.5, "b": 0.1, "key": sk.NoiseKey(1)}
    assert check("reverse_step", x_t, x0_hat, **step).dtype == torch.bfloat16
    assert check("reverse_step", x0_hat, x_t, **step).dtype == torch.float32
    check("soft_score_loss", x_t, x0_hat, 1.0, reduction="none")
    check("spectral_loss", x_t, x0_hat, torch.ones(8, 8), reduction="none")
    check("spectral_mix", [x_t, x0_hat], [torch.ones(8, 8), torch.ones(8, 8)])
    check("spectral_mix", [x0_hat], [torch.ones(8, 8)], noise_mask=torch.ones(8, 8), noise=x_t)
    check("corrupt", x0_hat, 1.0, 0.5, noise=x_t)


def test_float64_images_are_the_truth(backend):
    # float64 takes the reference on every backend: not a bit apart.
    x, y = picture(2, 2, 9, 14, dtype=torch.float64), picture(2, 2, 9, 14, seed=1, dtype=torch.float64)
    key, std = sk.NoiseKey(3), torch.tensor([0.5, 4.0])
    step = {"blur_std_t": std, "blur_std_s": 0.5 * std, "noise_std_t": 0.2, "noise_std_s": 0.1, "key": key}
    mask = torch.rand(9, 14)
    cases = [
        ("dct2", (x,), {}),
        ("idct2", (x,), {}),
        ("blur", (x, std), {"floor": 0.1, "scale": std}),
        ("corrupt", (x, std, 0.1), {"key": key}),
        ("momentum_step", (x, y), step),
        ("momentum_step", (x, y), {**step, "floor": 0.1}),
        ("soft_score_loss", (x, y, std), {"weight": std, "reduction": "none"}),
        ("spectral_loss", (x, y, mask), {"weight": std, "reduction": "none"}),
        ("spectral_mix", ([x, y], [mask, mask.flip(0)]), {"noise_mask": torch.ones(1), "key": key}),
        ("spectral_mix", ([x], [mask]), {"noise_mask": torch.ones(1), "noise": y}),
        ("normal", ((2, 5), key), {"dtype": torch.float64}),
    ]
    for op, args, kwargs in cases:
        got = getattr(sk, op)(*args, **kwargs)
        assert got.dtype == torch.float64
        assert torch.equal(got, getattr(sk.reference, op)(*args, **kwargs))


def test_a_loss_that_nearly_vanishes_keeps_its_digits(backend):
    # The blur takes all of a fine pattern but a mean 5000 times smaller than the residual r. Rounding leaves
    # up to 2^-24 |r| beside C r, and the loss is the square of what is left: 2 * 2^-24 |r| / |C r| relative.
    spectrum = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum[..., :32, :] = spectrum[..., :32] = 0.0
    spectrum[..., 0, 0] = 64e-4
    residual = sk.reference.idct2(spectrum).float()
    truth = float(sk.reference.soft_score_loss(residual.double(), torch.zeros_like(residual).double(), 6.0))
    size = float(residual.double().norm())
    assert truth == pytest.approx(64e-4**2, rel=1e-3)
    got = float(sk.soft_score_loss(residual, torch.zeros_like(residual), 6.0))
    assert abs(got / truth - 1) < 2 * 2.0**-24 * size / truth**0.5 < 1e-3


@needs_native
def test_native_is_what_runs():
    # The name "native" must reach the fused kernels: their last bits differ from the eager twin's.
    x = picture(2, 3, 31, 47)
    with sk.use_backend("native"):
        native = sk.blur(x, 2.0)
    with sk.use_backend("reference"):
        eager = sk.blur(x, 2.0)
    assert torch.equal(eager, sk.reference.blur(x, 2.0))
    assert not torch.equal(native, eager)
