# SPDX-License-Identifier: Apache-2.0
"""Every op on every backend, dtype and kind of size, held to the accuracy contract (see `checks`).

The batch holds several blurs at once, from none to one that leaves the mean alone.
"""

from __future__ import annotations

import pytest
import torch
from checks import (
    BACKENDS,
    assert_accurate,
    assert_mean_kept,
    check,
    needs_native,
    picture,
    poisoned,
    std_range,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (B, C, H, W): single elements and lines, powers of two, odd, prime, twice a prime, neither square nor a
# multiple of any vector, one beyond a power of two; C of 1 to 4 and B of 1 to 3.
SHAPES = [
    (2, 1, 1, 1),
    (3, 2, 1, 7),
    (2, 3, 5, 1),
    (3, 4, 2, 3),
    (3, 3, 8, 8),
    (2, 1, 6, 34),
    (2, 3, 17, 31),
    (3, 1, 28, 28),
    (2, 4, 32, 48),
    (3, 3, 64, 64),
    (2, 2, 97, 33),
    (1, 3, 128, 96),
    (1, 1, 257, 64),
    (1, 1, 2, 1500),
]
CASES = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))


@pytest.fixture(params=BACKENDS)
def backend(request):
    with sk.use_backend(request.param), poisoned():
        yield request.param


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request):
    return request.param


def blurs(batch: int) -> list[torch.Tensor]:
    """Per-sample blurs that cover the range together, whatever the batch."""
    return [std_range(batch), torch.tensor([0.0, 2.5, 1e3])[:batch], torch.tensor([1e-3, 23.0, 0.4])[:batch]]


@CASES
def test_transforms(backend, dtype, shape):
    x = picture(*shape, dtype=dtype)
    check("dct2", x)
    check("idct2", x)


@CASES
def test_inverse_undoes_the_transform(backend, shape):
    # Each direction is right to 1e-6 relative L2 and both keep the norm: together 2e-6.
    x = picture(*shape)
    assert float((sk.idct2(sk.dct2(x)) - x).norm() / x.norm()) < 2e-6


@CASES
def test_blur(backend, dtype, shape):
    x = picture(*shape, dtype=dtype)
    for std in blurs(shape[0]):
        y = check("blur", x, std)
        if dtype == torch.float32:
            assert_mean_kept(y, x)
    check("blur", x, 1.7, floor=0.1)
    check("blur", x, 0.6, floor=0.3, scale=torch.linspace(-0.5, 2.0, shape[0]))
    check("blur", x, 12.0, scale=0.9)


@CASES
def test_corrupt(backend, dtype, shape):
    x, noise = (
        picture(*shape, dtype=dtype),
        torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype),
    )
    sigma = torch.linspace(0.01, 0.5, shape[0])
    key = sk.NoiseKey(3, 2**33, 7)
    for std in blurs(shape[0]):
        check("corrupt", x, std, sigma, key=key, return_residual=True)
    check("corrupt", x, 3.0, 0.1, noise=noise)
    check("corrupt", x, std_range(shape[0]), 0.2, floor=0.05, scale=0.8, key=key, return_residual=True)


@CASES
def test_corrupt_decodes_bytes(backend, shape):
    # uint8 images are x / 127.5 - 1; the result is float32 and keeps the rule of float32.
    x = picture(*shape, dtype=torch.uint8)
    for std in blurs(shape[0]):
        x_t, residual = check("corrupt", x, std, 0.1, key=sk.NoiseKey(1), return_residual=True)
        assert x_t.dtype == residual.dtype == torch.float32


def test_decoded_bytes_are_exact(backend):
    # Without blur or noise every byte gives the reference's float32 number, bit for bit.
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(sk.corrupt(x, 0.0, 0.0), x.float() / 127.5 - 1.0)


@CASES
def test_reverse_step(backend, dtype, shape):
    batch = shape[0]
    x_t, x0_hat = picture(*shape, seed=1, dtype=dtype), picture(*shape, seed=2, dtype=dtype)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    key = sk.NoiseKey(5, 1, 2)
    for std in blurs(batch):
        for a in (0.0, 0.7, 1.0):
            check("reverse_step", x_t, x0_hat, blur_std_t=std, blur_std_s=0.8 * std, a=a, b=0.1, key=key)
    check("reverse_step", x_t, x0_hat, blur_std_t=2.0, blur_std_s=3.0, a=0.4, b=0.1, noise=noise)
    keep, inject = torch.linspace(-0.2, 1.1, batch), torch.linspace(0.0, 0.3, batch)
    check(
        "reverse_step",
        x_t,
        x0_hat,
        blur_std_t=std_range(batch),
        blur_std_s=torch.zeros(batch),
        a=keep,
        b=inject,
        floor=0.15,
        key=key,
    )


@CASES
@pytest.mark.parametrize("variance", ["large", "small"])
def test_momentum_step(backend, dtype, shape, variance):
    batch = shape[0]
    x_t, x0_hat = picture(*shape, seed=1, dtype=dtype), picture(*shape, seed=2, dtype=dtype)
    steps = [
        (3.0, 2.9, 0.1, 0.099),
        (23.0, 0.0, 0.1, 0.0),
        (0.0, 0.0, 0.3, 0.2),
        (5.0, 4.0, 0.1, 0.1),
        (1.0, 0.5, 0.0, 0.0),
        (
            std_range(batch),
            0.99 * std_range(batch),
            torch.full((batch,), 0.1),
            torch.linspace(0.0, 0.1, batch),
        ),
    ]
    for blur_t, blur_s, noise_t, noise_s in steps:
        check(
            "momentum_step",
            x_t,
            x0_hat,
            blur_std_t=blur_t,
            blur_std_s=blur_s,
            noise_std_t=noise_t,
            noise_std_s=noise_s,
            variance=variance,
            key=sk.NoiseKey(9),
        )


@CASES
def test_soft_score_loss(backend, dtype, shape):
    # The loss of each image is a float32 number whatever the images' dtype, and keeps the rule of float32.
    batch = shape[0]
    prediction, target = picture(*shape, seed=3, dtype=dtype), picture(*shape, seed=4, dtype=dtype)
    for std in blurs(batch):
        assert check("soft_score_loss", prediction, target, std, reduction="none").dtype == torch.float32
    weight = torch.linspace(0.0, 4.0, batch)
    for reduction in ("none", "mean", "sum"):
        check("soft_score_loss", prediction, target, 0.9, weight=weight, floor=0.1, reduction=reduction)
    check("soft_score_loss", prediction, target, std_range(batch), weight=2.5)


@CASES
def test_gradient_of_the_loss(backend, dtype, shape):
    # The gradient 2 w C^2 (prediction - target) comes from the same pass, in the images' dtype.
    batch = shape[0]
    prediction, target = picture(*shape, seed=3, dtype=dtype), picture(*shape, seed=4, dtype=dtype)
    std, weight = std_range(batch, 0.1, 8.0), torch.linspace(0.5, 4.0, batch)
    (got,) = torch.autograd.grad(
        sk.soft_score_loss(prediction.requires_grad_(), target, std, weight=weight, floor=0.1), prediction
    )
    slopes = []
    for wide in (torch.float64, torch.float32):
        images = prediction.detach().to(wide).requires_grad_(), target.to(wide)
        loss = sk.reference.soft_score_loss(*images, std, weight=weight, floor=0.1)
        slopes += torch.autograd.grad(loss, images[0])
    assert got.dtype == dtype
    assert_accurate(got, *slopes)


@CASES
def test_spectral_mix(backend, dtype, shape):
    _, channels, height, width = shape
    x, y = picture(*shape, seed=1, dtype=dtype), picture(*shape, seed=2, dtype=dtype)
    generator = torch.Generator().manual_seed(3)

    def mask(*size):
        return torch.rand(size, generator=generator)

    check("spectral_mix", [x], [mask(height, width)])
    check(
        "spectral_mix",
        [x, y],
        [mask(*shape), mask(channels, 1, 1)],
        noise_mask=mask(1, width),
        key=sk.NoiseKey(2),
    )
    check("spectral_mix", (x, y, x), (mask(1), mask(shape[0], 1, height, 1), mask(*shape).mT.contiguous().mT))


@pytest.mark.parametrize(
    "op", ["dct2", "idct2", "blur", "corrupt", "reverse_step", "momentum_step", "mix", "loss"]
)
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
        "mix": lambda: sk.spectral_mix([x], [torch.ones(6, 5)], noise_mask=torch.ones(1), key=key),
        "loss": lambda: sk.soft_score_loss(x, x, none, weight=none, reduction="none"),
    }
    result = results[op]()
    for y in result if isinstance(result, tuple) else (result,):
        if op == "loss":
            assert y.shape == (0,)
            assert y.dtype == torch.float32
        else:
            assert y.shape == x.shape
            assert y.dtype == dtype
    assert float(sk.soft_score_loss(x, x, 1.0, reduction="sum")) == 0.0


def test_no_channels(backend):
    assert sk.blur(torch.zeros(2, 0, 4, 4), 1.0).shape == (2, 0, 4, 4)
    assert sk.soft_score_loss(
        torch.zeros(2, 0, 4, 4), torch.zeros(2, 0, 4, 4), 1.0, reduction="none"
    ).tolist() == [0, 0]


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
    check("spectral_mix", [x_t, x0_hat], [torch.ones(8, 8), torch.ones(8, 8)])
    check("corrupt", x0_hat, 1.0, 0.5, noise=x_t)


def test_float64_images_are_the_truth(backend):
    # float64 takes the reference on every backend: not a bit apart.
    x, y = picture(2, 2, 9, 14, dtype=torch.float64), picture(2, 2, 9, 14, seed=1, dtype=torch.float64)
    key, std = sk.NoiseKey(3), torch.tensor([0.5, 4.0])
    step = {"blur_std_t": std, "blur_std_s": 0.5 * std, "noise_std_t": 0.2, "noise_std_s": 0.1, "key": key}
    cases = [
        ("dct2", (x,), {}),
        ("idct2", (x,), {}),
        ("blur", (x, std), {"floor": 0.1, "scale": std}),
        ("corrupt", (x, std, 0.1), {"key": key}),
        ("momentum_step", (x, y), step),
        ("soft_score_loss", (x, y, std), {"weight": std, "reduction": "none"}),
        (
            "spectral_mix",
            ([x, y], [torch.rand(9, 14), torch.rand(9, 14)]),
            {"noise_mask": torch.ones(1), "key": key},
        ),
        ("normal", ((2, 5), key), {"dtype": torch.float64}),
    ]
    for op, args, kwargs in cases:
        got = getattr(sk, op)(*args, **kwargs)
        assert got.dtype == torch.float64
        assert torch.equal(got, getattr(sk.reference, op)(*args, **kwargs))


def test_a_loss_that_nearly_vanishes_keeps_its_digits(backend):
    # The blur takes all of a fine pattern but a mean 5000 times smaller than the residual r. Rounding leaves up
    # to 2^-24 |r| beside C r, and the loss is the square of what is left: 2 * 2^-24 |r| / |C r| relative.
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
