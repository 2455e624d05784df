# SPDX-License-Identifier: Apache-2.0
"""Every op at every kind of size and dtype, held to the accuracy contract on the GPU (see `checks`)."""

from __future__ import annotations

import pytest
import torch
from checks import assert_accurate, assert_mean_kept
from on_gpu import DEVICE, DTYPES, check, image, marks, mask_of, name_of, on, sizes, spread

import softdiff_kernels as sk

pytestmark = marks

# (B, C, H, W): C of 1 to 4; powers of two to 512, odd, prime, just beyond a tile, wide, tall, single lines;
# and batches both too small and large enough to occupy a GPU, which take other Triton kernels above 64 px.
# The CUDA kernels change at 24 px and at 128; test_gpu_cuda.py goes on to 1024 px.
SHAPES = sizes(
    [
        (2, 1, 8, 8),
        (3, 3, 16, 16),
        (2, 4, 13, 29),
        (5, 3, 24, 24),
        (2, 3, 25, 7),
        (1, 2, 1, 40),
        (2, 3, 28, 28),
        (3, 3, 32, 32),
        (2, 2, 33, 64),
        (3, 3, 64, 64),
        (2, 3, 65, 70),
        (2, 2, 97, 33),
        (2, 3, 128, 128),
        (50, 3, 128, 96),
        (1, 2, 129, 40),
        (1, 1, 127, 509),
        (2, 3, 256, 256),
        (140, 1, 256, 250),
        (1, 2, 512, 512),
        (1, 1, 3, 512),
    ],
    [(2, 1, 8, 8), (1, 3, 5, 9), (1, 1, 66, 70), (1, 2, 66, 70)],
)
CASES = pytest.mark.parametrize("shape", SHAPES, ids=name_of)
TYPES = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


@TYPES
@CASES
def test_transforms(backend, shape, dtype):
    x = image(*shape, dtype=dtype)
    check(backend, "dct2", x)
    check(backend, "idct2", x)


@TYPES
@CASES
def test_blur(backend, shape, dtype):
    # The mean of a plane is kept within 1e-6, for blurs from none to one that leaves nothing else.
    x = image(*shape, dtype=dtype)
    for std in (spread(shape[0]), on([0.0, 2.5, 1e3])[torch.arange(shape[0], device=DEVICE) % 3]):
        y = check(backend, "blur", x, std)
        if dtype == torch.float32:
            assert_mean_kept(y, x)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=name_of)
@CASES
def test_corrupt(backend, shape, dtype):
    # With noise from a key, and the residual from the same pass: the noise is the reference's own.
    x = image(*shape, dtype=dtype)
    level = on(torch.linspace(0.01, 0.5, shape[0]))
    check(backend, "corrupt", x, spread(shape[0]), level, key=sk.NoiseKey(2, 9, 4), return_residual=True)


@TYPES
@CASES
def test_reverse_step(backend, shape, dtype):
    x, y = image(*shape, dtype=dtype), image(*shape, seed=1, dtype=dtype)
    std = spread(shape[0])
    weights = {"a": on(torch.linspace(0.2, 1.1, shape[0])), "b": on(torch.linspace(0.3, 0.0, shape[0]))}
    check(backend, "reverse_step", x, y, blur_std_t=std, blur_std_s=0.7 * std, **weights, key=sk.NoiseKey(3))


@pytest.mark.parametrize("variance", ["large", "small"])
@TYPES
@CASES
def test_momentum_step(backend, shape, dtype, variance):
    # Steps that are large and steps so small that the masks nearly cancel.
    x, y = image(*shape, dtype=dtype), image(*shape, seed=1, dtype=dtype)
    std, level = spread(shape[0]), on(torch.linspace(0.05, 0.4, shape[0]))
    for ratio in (0.5, 0.999):
        noises = {"noise_std_t": level, "noise_std_s": ratio * level}
        check(
            backend,
            "momentum_step",
            x,
            y,
            blur_std_t=std,
            blur_std_s=ratio * std,
            **noises,
            variance=variance,
            key=sk.NoiseKey(3),
        )


@TYPES
@CASES
def test_loss_and_gradient(backend, shape, dtype):
    # The loss of each image, and its gradient in one call against the float64 twin's autograd.
    x, y = image(*shape, dtype=dtype), image(*shape, seed=1, dtype=dtype)
    std, weight = spread(shape[0], high=4.0), on(torch.linspace(0.5, 3.0, shape[0]))
    check(backend, "soft_score_loss", x, y, std, weight=weight, reduction="none")
    with sk.use_backend(backend):
        leaf = x.clone().requires_grad_()
        sk.soft_score_loss(leaf, y, std, weight=weight).backward()
        assert_accurate(
            leaf.grad, *(_slope(x.to(d), y.to(d), std, weight) for d in (torch.float64, torch.float32))
        )


def _slope(x, y, std, weight):
    """The gradient of the eager twin's mean loss."""
    leaf = x.clone().requires_grad_()
    sk.reference.soft_score_loss(leaf, y, std, weight=weight).backward()
    return leaf.grad


@TYPES
@CASES
def test_spectral_mix(backend, shape, dtype):
    images = [image(*shape, seed=s, dtype=dtype) for s in range(4)]
    mask = mask_of(images[0])
    each = mask.expand(shape[0], 1, *shape[2:]) * on(torch.linspace(0.1, 1, shape[0])).view(-1, 1, 1, 1)
    check(backend, "spectral_mix", images[:1], [mask])
    check(backend, "spectral_mix", images[:2], [each, mask], noise_mask=0.2 * each, key=sk.NoiseKey(5, 1))
    four = [mask, each, mask.square(), 0.5 * each]
    check(backend, "spectral_mix", images, four, noise_mask=mask, key=sk.NoiseKey(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name_of)
@CASES
def test_masks_that_take_the_mean_away(backend, shape, dtype):
    # What is left is small beside what went in, and is held to the same rule: of its own size.
    x, y = image(*shape, dtype=dtype), image(*shape, seed=1, dtype=dtype)
    rising = 1 - mask_of(x)
    check(backend, "spectral_mix", [x, y], [rising, rising.square()])
