# SPDX-License-Identifier: Apache-2.0
"""Paths of the CPU kernels that only some shapes take, on each instruction set, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from checks import NATIVE, WHY_NOT, check, picture

import softdiff_kernels as sk

if not NATIVE:
    pytest.skip(WHY_NOT, allow_module_level=True)

from softdiff_kernels import _native


@pytest.fixture(params=["avx512", "avx2", "portable"], autouse=True)
def isa(request):
    before = _native.instruction_set()
    if not _native.use_instruction_set(request.param):
        pytest.skip(f"this CPU or this build has no {request.param} kernels")
    try:
        with sk.use_backend("native"):
            yield request.param
    finally:
        assert _native.use_instruction_set(before)


@pytest.mark.parametrize("height", [32, 48, 61])
def test_every_number_of_kept_rows(height):
    # Rows of the spectrum under exp(-20) are dropped, from k = sqrt(40) H / (pi blur_std) on: a sample for
    # each k. What the first pass writes of dropped rows must not reach the last one, in any channel: the
    # second takes over what the first has set up.
    std = torch.tensor([math.sqrt(40) * height / (math.pi * (k + 0.5)) for k in range(height + 1)])
    x, y = picture(height + 1, 2, height, 32), picture(height + 1, 2, height, 32, seed=1)
    check("blur", x, std)
    check("soft_score_loss", x, y, std, reduction="none")


# Every stage that the recursion of plan.h can begin with, and odd rests of it, along each axis.
@pytest.mark.parametrize(
    "size", [1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 56, 64, 72, 80, 112, 128, 192, 256, 512]
)
def test_every_kind_of_length(size):
    for shape in ((1, 1, size, 16), (1, 1, 5, size)):
        check("dct2", picture(*shape))
        check("idct2", picture(*shape))
        check("blur", picture(*shape), 0.3)


# Widths of whole blocks of noise are finished strip by strip, eight or four rows of noise at once; the last
# strip and the last group of rows may be cut.
@pytest.mark.parametrize("height", [1, 3, 4, 6, 8, 12, 33])
@pytest.mark.parametrize("width", [4, 16, 20, 28, 48])
def test_noise_and_other_images_in_strips(height, width):
    shape = (2, 3, height, width)
    x, y, key = picture(*shape), picture(*shape, seed=1), sk.NoiseKey(4, 2**33, 5)
    std = torch.tensor([0.4, 3.0])
    check("corrupt", x, std, 0.1, key=key)
    check("corrupt", x, std, 0.1, key=key, return_residual=True)
    check("corrupt", x, std, 0.0, return_residual=True)
    noises = {"noise_std_t": 0.2, "noise_std_s": 0.15}
    check("momentum_step", x, y, blur_std_t=std, blur_std_s=0.9 * std, key=key, **noises)
    check("reverse_step", x, y, blur_std_t=std, blur_std_s=0.9 * std, a=0.5, b=0.0)
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(0))
    check("spectral_mix", [x, y], [mask, mask.flip(0)], noise_mask=mask.flip(1), key=key)


@pytest.mark.parametrize("width", [28, 48])
def test_the_noise_of_a_strip_is_that_of_the_stream(width):
    # With nothing but noise to see, it is `normal`'s, bit for bit.
    key, zeros = sk.NoiseKey(11, 3, 2), torch.zeros(2, 3, 37, width)
    assert torch.equal(sk.corrupt(zeros, 1.5, 1.0, key=key), sk.normal(zeros.shape, key))


# Beyond 256 px a side, two inputs' masks and planes are more than a second-level cache holds: none is kept.
@pytest.mark.parametrize("shape", [(3, 2, 20, 33), (2, 2, 270, 260)], ids=str)
def test_masks_that_planes_share_and_masks_of_their_own(shape):
    # A mask that the plane before had is taken over, any other is not: each plane alone gives the same bits.
    x, y = picture(*shape), picture(*shape, seed=1)
    height, width = shape[2:]
    generator = torch.Generator().manual_seed(0)
    for own in ((1, 1), (1, 2), (shape[0], 1), (shape[0], 2)):
        mask = torch.rand(*own, height, width, generator=generator)
        masks = [mask, torch.rand(height, width, generator=generator)]
        mixed = sk.spectral_mix([x, y], masks, noise_mask=mask, noise=y)
        loss = sk.spectral_loss(x, y, mask, reduction="none")
        whole = mask.expand(shape)
        total = torch.zeros(shape[0])
        for b in range(shape[0]):
            for c in range(2):
                one = (slice(b, b + 1), slice(c, c + 1))
                alone = [whole[one], masks[1]]
                expected = sk.spectral_mix([x[one], y[one]], alone, noise_mask=whole[one], noise=y[one])
                assert torch.equal(mixed[one], expected)
                total[b] += sk.spectral_loss(x[one], y[one], whole[one], reduction="sum")
        torch.testing.assert_close(loss, total, rtol=1e-6, atol=0)


def test_channels_of_a_sample_share_gains_and_samples_do_not():
    # Each sample alone gives what it gives in a batch, whatever came before it on the same thread.
    x, std = picture(7, 3, 16, 16), torch.tensor([5.0, 0.0, 0.3, 0.3, 2.0, 0.0, 40.0])
    together = sk.blur(x, std)
    for b in range(7):
        assert torch.equal(together[b : b + 1], sk.blur(x[b : b + 1], std[b : b + 1]))
        for c in range(3):
            assert torch.equal(
                together[b : b + 1, c : c + 1], sk.blur(x[b : b + 1, c : c + 1], std[b : b + 1])
            )
