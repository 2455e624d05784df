# SPDX-License-Identifier: Apache-2.0
"""Every op on every backend, dtype and kind of size, held to the accuracy contract (see `checks`).

The batch holds several blurs at once, from none to one that leaves the mean alone.
"""

from __future__ import annotations

import pytest
import torch
from checks import (
    BACKENDS,
    INTERPRETED,
    assert_accurate,
    assert_mean_kept,
    check,
    picture,
    poisoned,
    std_range,
)

import softdiff_kernels as sk

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
    """Per-sample blurs that cover the range together; the first of them where kernels are interpreted."""
    sets = [std_range(batch), torch.tensor([0.0, 2.5, 1e3])[:batch], torch.tensor([1e-3, 23.0, 0.4])[:batch]]
    return sets[:1] if INTERPRETED else sets


def thinned(cases: list, shape: tuple[int, ...]) -> list:
    """All cases; where kernels are interpreted, which takes seconds a call, every third of them, from another
    one on for each shape, so that the shapes together take all.
    """
    return cases[SHAPES.index(shape) % 3 :: 3] if INTERPRETED else cases


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
    drawn = {"key": sk.NoiseKey(3, 2**33, 7)}
    if backend == "triton" and x[0].numel() == 1:
        # Normals agree to 2e-6 absolute; of a residual that is one small normal alone that is too much.
        drawn = {"noise": noise}
    for std in blurs(shape[0]):
        check("corrupt", x, std, sigma, return_residual=True, **drawn)
    check("corrupt", x, 3.0, 0.1, noise=noise)
    check("corrupt", x, std_range(shape[0]), 0.2, floor=0.05, scale=0.8, return_residual=True, **drawn)


@CASES
def test_corrupt_decodes_bytes(backend, shape):
    # uint8 images are x / 127.5 - 1; the result is float32 and keeps the rule of float32.
    # (Given noise: the stream's own 2e-6 would be more than float32's rule where a pixel is next to zero.)
    x, noise = picture(*shape, dtype=torch.uint8), picture(*shape, seed=3)
    for std in blurs(shape[0]):
        x_t, residual = check("corrupt", x, std, 0.1, noise=noise, return_residual=True)
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
        for a in thinned([0.7, 1.0, 0.0], shape):
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
    for floor, (blur_t, blur_s, noise_t, noise_s) in zip((0.2, 0.0) * 3, thinned(steps, shape), strict=False):
        check(
            "momentum_step",
            x_t,
            x0_hat,
            blur_std_t=blur_t,
            blur_std_s=blur_s,
            noise_std_t=noise_t,
            noise_std_s=noise_s,
            variance=variance,
            floor=floor,
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


def mask_shapes(batch, channels, height, width):
    """Masks of the image, of each image, of each channel, of a row, of a column, and of everything."""
    yield from ((height, width), (batch, 1, height, width), (channels, 1, 1), (1, width), (height, 1))
    yield batch, channels, height, width


@CASES
def test_spectral_loss(backend, dtype, shape):
    # The loss keeps float32's rule; the gradient 2 w m^2 DCT2(prediction - target), of the same pass, that of
    # the images' dtype. A mask is signed, may be any broadcast shape, and float64.
    generator = torch.Generator().manual_seed(3)
    images = picture(*shape, seed=3, dtype=dtype), picture(*shape, seed=4, dtype=dtype)
    weight = torch.linspace(0.5, 4.0, shape[0])
    for size in thinned(list(mask_shapes(*shape)), shape):
        mask = torch.randn(size, generator=generator).double()
        check("spectral_loss", *images, mask, weight=weight, reduction="none")
        mask = mask.to(torch.float32)
        results = []
        for module, wide in (
            (sk, dtype),
            (sk.reference, torch.float64),
            (sk.reference, torch.float32),
        ):
            leaf = images[0].to(wide).requires_grad_()
            loss = module.spectral_loss(leaf, images[1].to(wide), mask, weight=weight)
            results += torch.autograd.grad(loss, leaf)
        assert results[0].dtype == dtype
        assert_accurate(*results)


@CASES
def test_spectral_mix_of_given_noise(backend, dtype, shape):
    # `noise` is what the noise mask multiplies, and `out` gets the same numbers, bit for bit.
    x, noise = picture(*shape, seed=1, dtype=dtype), picture(*shape, seed=2, dtype=dtype)
    mask, generator = torch.linspace(0, 1, shape[3]), torch.Generator().manual_seed(3)
    for size in thinned(list(mask_shapes(*shape)), shape):
        noise_mask = torch.rand(size, generator=generator)
        expected = check("spectral_mix", [x], [mask], noise_mask=noise_mask, noise=noise)
        out = torch.full_like(x, float("nan"))
        assert sk.spectral_mix([x], [mask], noise_mask=noise_mask, noise=noise, out=out) is out
        assert torch.equal(out, expected)


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
