# SPDX-License-Identifier: Apache-2.0
"""The noise stream on the GPU: normals within 2e-6 of exact arithmetic, and each image's own in any batch."""

from __future__ import annotations

import pytest
import torch
from on_gpu import DEVICE, marks, name_of, sizes

import softdiff_kernels as sk

pytestmark = marks

BOUND = 2e-6


@pytest.mark.parametrize(
    "shape", sizes([(40, 3, 512, 512), (3, 1_000_003), (7, 2, 3, 5)], [(2, 3, 8, 8), (3, 1003)]), ids=name_of
)
def test_normals_are_those_of_the_cpu(backend, shape):
    # Within 2e-6 of the twin in float64, on the CPU for a part and on the device for all: 3.1e7 normals.
    key = sk.NoiseKey(2**63 + 9, 2**40 - 1, 3)
    with sk.use_backend(backend):
        got = sk.normal(shape, key, device=DEVICE)
    for b in range(shape[0]):
        own = sk.NoiseKey(key.seed, key.stream + b, key.draw)
        exact = sk.reference.normal((1, *shape[1:]), own, device=DEVICE, dtype=torch.float64)
        assert float((got[b].double() - exact[0]).abs().max()) <= BOUND
        if b == shape[0] - 1:
            on_cpu = sk.reference.normal((1, *shape[1:]), own, dtype=torch.float64)
            assert float((got[b].cpu().double() - on_cpu[0]).abs().max()) <= BOUND


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
def test_halves_are_the_rounded_normals(backend, dtype):
    # One rounding of the float32 normals; they may be 2e-6 off, which can tip a rounding.
    shape, key = (4, 3, 33, 31), sk.NoiseKey(1)
    with sk.use_backend(backend):
        wide, half = (sk.normal(shape, key, device=DEVICE, dtype=d) for d in (torch.float32, dtype))
    ulp = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    assert bool(((half.double() - wide.double()).abs() <= ulp * wide.abs() + BOUND).all())


@pytest.mark.parametrize(
    "shape",
    sizes([(5, 3, 64, 64), (5, 3, 28, 30), (5, 1, 7, 9), (9, 3, 128, 128)], [(3, 2, 8, 8), (3, 1, 5, 6)]),
    ids=name_of,
)
def test_an_image_has_its_noise_in_any_batch(backend, shape):
    # The same image alone, in a part of the batch and in the whole: the noise is bit for bit its own.
    zeros = torch.zeros(shape, device=DEVICE)
    with sk.use_backend(backend):
        whole = sk.corrupt(zeros, 0.0, 1.0, key=sk.NoiseKey(8, 100))
        part = sk.corrupt(zeros[2:], 0.0, 1.0, key=sk.NoiseKey(8, 102))
        named = sk.normal(shape, sk.NoiseKey(8, 100), device=DEVICE)
    assert torch.equal(whole[2:], part)
    assert torch.equal(whole, named)


def test_normals_of_nearly_all_radii(backend):
    # There are 2^24 radii. 2^27 pairs leave exp(-8), 0.03 % of them, out; their angles are spread evenly.
    count, images = sizes([(2**24, 16)], [(2**10, 2)])[0]
    for stream in range(images):
        key = sk.NoiseKey(17, stream)
        with sk.use_backend(backend):
            got = sk.normal((1, count), key, device=DEVICE)
        exact = sk.reference.normal((1, count), key, device=DEVICE, dtype=torch.float64)
        assert bool(((got.double() - exact).abs() <= BOUND).all())
