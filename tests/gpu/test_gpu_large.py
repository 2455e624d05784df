# SPDX-License-Identifier: Apache-2.0
"""Addresses beyond 32 bits: more than 2^31 elements, and strides that reach as far."""

from __future__ import annotations

import pytest
import torch
from checks import assert_accurate, twins
from on_gpu import DEVICE, DRY, image, marks, needs_memory

import softdiff_kernels as sk

pytestmark = marks

FAR = 2**12 if DRY else 2**31 + 2**20


def tiled(shape, dtype, seed):
    """A batch whose images are few and whose elements are many: sample b is picture b % 4."""
    few = image(4, *shape[1:], seed=seed, dtype=dtype)
    room = torch.empty(shape, dtype=dtype, device=DEVICE)
    whole = shape[0] // 4 * 4
    room[:whole].view(-1, 4, *shape[1:]).copy_(few)
    room[whole:] = few[: shape[0] - whole]
    return room


def picked(batch):
    """Samples at both ends, in the middle, and beside the 2^31st element where that is."""
    return sorted({0, 1, batch // 2, batch - 2, batch - 1})


# The CUDA kernels change at 24 px and beyond 128, where planes pass through scratch in chunks.
@pytest.mark.parametrize("side", [16, 64, 128, 160])
@pytest.mark.parametrize("op", ["corrupt", "momentum_step", "soft_score_loss", "dct2", "spectral_mix"])
def test_more_than_two_to_the_31_elements(backend, op, side):
    # The samples at the far end are right, and the ones before them: an offset that wrapped would read and
    # write others. bfloat16, so that three such batches fit beside each other.
    shape = (-(-FAR // (3 * side * side)) + 3, 3, side, side) if not DRY else (6, 1, 8, 8)
    needs_memory(20)
    x = tiled(shape, torch.bfloat16, 0)
    y = x if op in ("dct2", "corrupt") else tiled(shape, torch.bfloat16, 4)
    std = torch.linspace(0.2, 3.0, shape[0], device=DEVICE)
    mask = torch.linspace(1, 0, shape[2] * shape[3], device=DEVICE).view(shape[2:])

    def run(rows, module):
        """The op on some samples, named by their place in the batch."""
        a, b, s = x[rows], y[rows], std[rows]
        key = sk.NoiseKey(3, torch.arange(shape[0], device=DEVICE)[rows])
        if op == "corrupt":
            return module.corrupt, (a, s, 0.2), {"key": key}
        if op == "momentum_step":
            blurs = {"blur_std_t": s, "blur_std_s": 0.5 * s}
            return module.momentum_step, (a, b), {**blurs, "noise_std_t": 0.3, "noise_std_s": 0.1, "key": key}
        if op == "soft_score_loss":
            return module.soft_score_loss, (a, b, s), {"reduction": "none"}
        if op == "dct2":
            return module.dct2, (a,), {}
        return module.spectral_mix, ([a, b], [mask, mask]), {"noise_mask": mask, "key": key}

    with sk.use_backend(backend):
        function, arguments, options = run(slice(None), sk)
        result = function(*arguments, **options)
        rows = torch.tensor(picked(shape[0]), device=DEVICE)
        _, arguments, options = run(rows, sk)
        truth, eager = twins(op, *arguments, **options)
        assert_accurate(result[rows], truth, eager)
        # Every other sample, against the one that it repeats.
        if op == "dct2":
            few = result[:4]
            whole = shape[0] // 4 * 4
            for part in result[:whole].view(-1, 4, *shape[1:]).split(4096):
                assert bool((part == few).all())


def test_the_gradient_of_more_than_two_to_the_31_elements(backend):
    shape = (-(-FAR // (3 * 64 * 64)) + 3, 3, 64, 64) if not DRY else (6, 1, 8, 8)
    needs_memory(35)
    x, y = tiled(shape, torch.bfloat16, 0).requires_grad_(), tiled(shape, torch.bfloat16, 4)
    with sk.use_backend(backend):
        sk.soft_score_loss(x, y, 1.5, reduction="sum").backward()
        rows = torch.tensor(picked(shape[0]), device=DEVICE)
        slopes = []
        for dtype in (torch.float64, torch.float32):
            leaf = x.detach()[rows].to(dtype).requires_grad_()
            sk.reference.soft_score_loss(leaf, y[rows].to(dtype), 1.5, reduction="sum").backward()
            slopes.append(leaf.grad)
        assert_accurate(x.grad[rows], *slopes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16], ids=str)
def test_rows_far_apart(backend, dtype):
    # A plane whose rows lie 2^26 elements apart, so that its last pixels are beyond the 2^31st element.
    apart, height, width = (2**8, 12, 10) if DRY else (2**26, 48, 40)
    needs_memory(8 if dtype == torch.uint8 else 12)
    room = torch.empty(apart * (height - 1) + width, dtype=dtype, device=DEVICE)
    x = room.as_strided((1, 1, height, width), (0, 0, apart, 1))
    near = image(1, 1, height, width, dtype=dtype)
    x.copy_(near)
    with sk.use_backend(backend):
        got, expected = (sk.corrupt(v, 1.5, 0.1, key=sk.NoiseKey(1)) for v in (x, near))
    assert float((got - expected).abs().max()) <= (1e-6 if dtype == torch.uint8 else 2.0**-7)


def test_normals_beyond_two_to_the_31(backend):
    # Many samples, and (for a sample that long) more than 2^31 elements of one.
    for shape in ((-(-FAR // 4096), 4096), (1, FAR)):
        needs_memory(6)
        with sk.use_backend(backend):
            z = sk.normal(shape, sk.NoiseKey(5), device=DEVICE, dtype=torch.bfloat16)
        if shape[0] > 1:
            last = sk.NoiseKey(5, shape[0] - 1)
            exact = sk.reference.normal((1, shape[1]), last, device=DEVICE, dtype=torch.float64)
            assert float((z[-1].double() - exact[0]).abs().max()) <= 5.9 * 2.0**-8
        else:
            tail = 4 * (FAR // 4 // 1000)
            halves = z[0, -tail:].float()
            assert abs(float(halves.mean())) < 5 / tail**0.5
            assert abs(float(halves.var()) - 1) < 8 / tail**0.5
        del z
