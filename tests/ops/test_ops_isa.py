# SPDX-License-Identifier: Apache-2.0
"""Each instruction set that this CPU has, chosen at run time, keeps the contract of every op."""

from __future__ import annotations

import pytest
import torch
from checks import NATIVE, WHY_NOT, check, picture, std_range

import softdiff_kernels as sk

if not NATIVE:
    pytest.skip(WHY_NOT, allow_module_level=True)

from softdiff_kernels import _native

# Sizes around a vector's width (4, 8 and 16 lanes) and its multiples.
SHAPES = [(2, 1, 3, 4), (2, 2, 7, 9), (1, 3, 15, 17), (2, 1, 16, 31), (1, 2, 33, 64), (1, 1, 61, 128)]
CASES = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request):
    before = _native.instruction_set()
    if not _native.use_instruction_set(request.param):
        pytest.skip(f"this CPU or this build has no {request.param} kernels")
    assert _native.instruction_set() == request.param
    try:
        with sk.use_backend("native"):
            yield request.param
    finally:
        assert _native.use_instruction_set(before)


@CASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_corrupt(isa, shape, dtype):
    x = picture(*shape, dtype=dtype)
    for floor in (0.0, 0.2):
        for std in (std_range(shape[0]), 0.0, 20.0):
            check("corrupt", x, std, 0.1, floor=floor, key=sk.NoiseKey(6, 2**40), return_residual=True)


@CASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_steps_loss_and_transforms(isa, shape, dtype):
    x, y = picture(*shape, dtype=dtype), picture(*shape, seed=1, dtype=dtype)
    std, key = std_range(shape[0]), sk.NoiseKey(2)
    noises = {"noise_std_t": 0.2, "noise_std_s": 0.15}
    check("momentum_step", x, y, blur_std_t=std, blur_std_s=0.9 * std, key=key, **noises)
    check("reverse_step", x, y, blur_std_t=0.5 * std, blur_std_s=std, a=0.7, b=0.1, floor=0.1, key=key)
    check("soft_score_loss", x, y, std, weight=std, reduction="none")
    check("soft_score_loss", x, y, std, floor=0.1, reduction="none")
    check("dct2", x)
    check("idct2", x)
    mask = torch.rand(shape[2:], generator=torch.Generator().manual_seed(0))
    check("spectral_mix", [x, y], [mask, mask.square()], noise_mask=mask, key=key)
    check("spectral_mix", [x], [mask[0]], noise_mask=mask[:, :1], noise=y)
    check("spectral_loss", x, y, mask, weight=std, reduction="none")
    check("spectral_loss", x, y, mask[:, :1].double(), reduction="none")


def test_noise(isa):
    # Normals agree to 2e-6 with the float64 twin, at every alignment of the count to blocks and vectors.
    for count in (*range(1, 70), 1023, 1025, 16385):
        key = sk.NoiseKey(2**63 + 1, 2**64 - 2, 3)
        truth = sk.reference.normal((3, count), key, dtype=torch.float64)
        assert (sk.normal((3, count), key).double() - truth).abs().max() < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversion_rounds_to_nearest_even(isa, dtype):
    # float32 numbers of all magnitudes, halfway cases and subnormals among them, go through the kernel as the
    # noise of a step; torch's own conversion says what is right, bit for bit.
    halfway = torch.arange(2**15, dtype=torch.int32).view(1, 1, 128, 256)
    steps = halfway.to(torch.int16).view(dtype).double()
    middle = ((steps + steps.roll(-1)) / 2).float()
    near = torch.where(middle.isfinite(), middle, torch.zeros(()))
    for noise in (near, -near, torch.nextafter(near, torch.ones(())), near * 1.001):
        got = sk.reverse_step(
            torch.zeros(noise.shape, dtype=dtype),
            torch.zeros(noise.shape),
            blur_std_t=0.0,
            blur_std_s=0.0,
            a=1.0,
            b=1.0,
            noise=noise,
        )
        # + 0.0: the kernel adds to zero, which turns -0 into 0.
        assert torch.equal(got.view(torch.int16), (noise + 0.0).to(dtype).view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversion_reads_every_number(isa, dtype):
    # All 65536 bit patterns, as they lie and through a stride, become the float32 numbers that torch reads.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for x in (bits.view(1, 1, 256, 256), bits.view(1, 1, 256, 256).mT):
        got = sk.reverse_step(torch.zeros(1, 1, 256, 256), x, blur_std_t=0.0, blur_std_s=0.0, a=0.0, b=0.0)
        assert torch.equal(got.nan_to_num(nan=7.0), (x.float() + 0.0).nan_to_num(nan=7.0))


def test_an_unknown_instruction_set_changes_nothing():
    before = _native.instruction_set()
    assert not _native.use_instruction_set("mmx")
    assert _native.instruction_set() == before
