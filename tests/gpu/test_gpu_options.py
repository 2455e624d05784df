# SPDX-License-Identifier: Apache-2.0
"""What the ops can be asked for beside the plain call: coefficients, keys, noise, outputs, layouts."""

from __future__ import annotations

import pytest
import torch
from checks import poisoned
from on_gpu import DEVICE, DTYPES, LARGEST, OPS, call, check, image, marks, name_of, on, sizes, spread

import softdiff_kernels as sk

pytestmark = marks

# One tile or one group of small planes, a larger plane, and lines of one.
SHAPES = sizes(
    [(3, 3, 20, 24), (3, 2, 96, 80), (2, 2, 60, 132)], [(3, 2, 8, 6), (2, 1, 66, 70), (2, 1, 6, 132)]
)
CASES = pytest.mark.parametrize("shape", SHAPES, ids=name_of)
KEY = sk.NoiseKey(7, 11, 2)


def coefficients(value: float, batch: int):
    """The ways to write one coefficient for a whole batch."""
    return {
        "number": value,
        "scalar tensor": on(value),
        "one row": on([value]),
        "a row each": on([value] * batch),
        "float64": on([value] * batch, torch.float64),
        "strided": on([value] * (2 * batch))[::2],
        "expanded": on([value]).expand(batch),
        "bfloat16": on([value] * batch, torch.bfloat16),
    }


KINDS = ["number", "scalar tensor", "one row", "a row each", "float64", "strided", "expanded", "bfloat16"]


@pytest.mark.parametrize("kind", KINDS)
@CASES
def test_coefficients_of_every_kind(backend, shape, kind):
    # 1.5, 0.25 and 0.5 are exact in bfloat16, so that all kinds mean the same numbers.
    batch = shape[0]
    x, y = image(*shape), image(*shape, seed=1)
    std, level, half = (coefficients(v, batch)[kind] for v in (1.5, 0.25, 0.5))
    check(backend, "blur", x, std, floor=0.2, scale=half)
    check(backend, "corrupt", x, std, level, floor=0.2, scale=half, key=KEY, return_residual=True)
    check(backend, "reverse_step", x, y, blur_std_t=std, blur_std_s=half, a=half, b=level, floor=0.2, key=KEY)
    noises = {"noise_std_t": half, "noise_std_s": level}
    check(backend, "momentum_step", x, y, blur_std_t=std, blur_std_s=half, **noises, key=KEY)
    check(backend, "soft_score_loss", x, y, std, weight=half, floor=0.2, reduction="none")


@CASES
def test_coefficients_of_mixed_kinds(backend, shape):
    # A number beside a tensor on the device, in each place.
    x, y = image(*shape), image(*shape, seed=1)
    std, level = spread(shape[0]), on(torch.linspace(0.3, 0.5, shape[0]))
    check(backend, "corrupt", x, std, 0.25, scale=0.5, key=KEY)
    check(backend, "corrupt", x, 1.5, level, key=KEY, return_residual=True)
    check(backend, "reverse_step", x, y, blur_std_t=40.0, blur_std_s=std, a=-0.5, b=level, key=KEY)
    check(backend, "reverse_step", x, y, blur_std_t=std, blur_std_s=0.0, a=level, b=0.0)
    noises = {"noise_std_t": level, "noise_std_s": 0.25}
    blurs = {"blur_std_t": std + 1, "blur_std_s": 1.0}
    check(backend, "momentum_step", x, y, **blurs, **noises, variance="small", key=KEY)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=name_of)
@CASES
def test_noise_that_is_given(backend, shape, dtype):
    x = image(*shape, dtype=dtype)
    floating = torch.float32 if dtype == torch.uint8 else dtype
    y, noise = image(*shape, seed=1, dtype=floating), image(*shape, seed=2, dtype=floating)
    check(backend, "corrupt", x, spread(shape[0]), 0.3, noise=noise, return_residual=True)
    if dtype != torch.uint8:
        blurs = {"blur_std_t": 2.0, "blur_std_s": 1.0}
        check(backend, "reverse_step", x, y, **blurs, a=0.5, b=0.2, noise=noise)
        check(backend, "momentum_step", x, y, **blurs, noise_std_t=0.2, noise_std_s=0.1, noise=noise)


def keys(batch: int):
    """Keys of numbers, of one row on the device, and of a row for each image."""
    row = torch.tensor([4], device=DEVICE)
    rows = torch.arange(batch, device=DEVICE) * (2**33 + 5) - 3
    return {
        "numbers": sk.NoiseKey(2**64 - 5, 2**40, 2**32 - 1),
        "one row": sk.NoiseKey(3, row, row + 1),
        "device seed": sk.NoiseKey(row * -(2**60)),
        "a row each": sk.NoiseKey(3, rows, row[0]),
        "draws": sk.NoiseKey(3, 2**50, torch.arange(batch, device=DEVICE)),
    }


@pytest.mark.parametrize("kind", ["numbers", "one row", "device seed", "a row each", "draws"])
@CASES
def test_keys_of_every_kind(backend, shape, kind):
    x, y, key = image(*shape), image(*shape, seed=1), keys(shape[0])[kind]
    check(backend, "corrupt", x, 1.5, 0.5, key=key)
    steps = {"blur_std_t": 2.0, "blur_std_s": 1.0, "noise_std_t": 0.5, "noise_std_s": 0.1}
    check(backend, "momentum_step", x, y, **steps, key=key)
    with sk.use_backend(backend):
        got = sk.normal(shape, key, device=DEVICE)
    assert (got - sk.reference.normal(shape, key, device=DEVICE)).abs().max() < 2e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@CASES
def test_no_blur_is_the_input_exactly(backend, shape, dtype):
    # blur_std = 0 returns the input bit for bit, beside a blurred neighbour, with a floor too.
    x = image(*shape, dtype=dtype)
    std = torch.zeros(shape[0], device=DEVICE)
    std[1] = 2.0
    with sk.use_backend(backend):
        for floor in (0.0, 0.3):
            y = sk.blur(x, std, floor=floor)
            assert torch.equal(y[::2], x[::2])
            assert not torch.equal(y[1], x[1])
        assert torch.equal(sk.blur(x, 0.0), x)
        assert torch.equal(sk.corrupt(x, 0.0, 0.0), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@CASES
def test_out(backend, shape, dtype):
    # `out=` gives the same bits: into other memory, over each input, and where they overlap in part.
    x, y = image(*shape, dtype=dtype), image(*shape, seed=1, dtype=dtype)
    blurs = {"blur_std_t": 2.0, "blur_std_s": 1.0}

    def step(a, b, out=None):
        return sk.momentum_step(a, b, **blurs, noise_std_t=0.5, noise_std_s=0.1, key=KEY, out=out)

    with sk.use_backend(backend):
        expected = step(x, y)
        out = torch.full_like(x, float("nan"))
        assert step(x, y, out) is out
        assert torch.equal(out, expected)
        for place in (0, 1):
            both = [x.clone(), y.clone()]
            step(*both, both[place])
            assert torch.equal(both[place], expected)
        room = torch.empty(shape[0] + 1, *shape[1:], dtype=dtype, device=DEVICE)
        room[:-1] = x
        step(room[:-1], y, room[1:])
        assert torch.equal(room[1:], expected)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def transposed(x):
    return x.mT.contiguous().mT


def sliced(x):
    """A window of a larger image whose surroundings are NaN: a read outside shows."""
    batch, channels, height, width = x.shape
    room = x.new_full((batch * 2, channels + 2, height * 3 + 2, width * 2 + 3), float("nan"))
    window = room[::2, 1:-1, 1:-1:3, 2:-1:2]
    window.copy_(x)
    return window


def unaligned(x):
    """One element off every alignment."""
    room = x.new_empty(x.numel() + 1)[1:].view(x.shape)
    return room.copy_(x)


@pytest.mark.parametrize("layout", [channels_last, transposed, sliced, unaligned])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("op", [o for o in OPS if o != "normal"])
@CASES
def test_layouts(backend, shape, op, dtype, layout):
    # The same arithmetic on the same numbers, whatever the strides: the float32 results differ by no more
    # than the order of their sums, the bfloat16 ones by what that tips over a rounding. Memory that an op
    # fails to write is NaN.
    x, y = image(*shape, dtype=dtype), image(*shape, seed=1, dtype=dtype)
    with sk.use_backend(backend), poisoned():
        expected = call(op, x, y, key=KEY)
        got = call(op, layout(x), layout(y), key=KEY)
    bound = 2.0**-19 if got.dtype == torch.float32 else 2.0**-7
    assert not bool(got.isnan().any())
    assert float((got - expected).abs().max()) <= bound * float(expected.abs().max())
    if op != "soft_score_loss":
        assert got.stride() == torch.empty_like(layout(x)).stride()


@pytest.mark.parametrize("op", [o for o in OPS if o != "normal"])
@CASES
def test_expanded_images(backend, shape, op):
    # One image for the batch and one plane for all channels: strides of zero.
    x, y = image(1, 1, *shape[2:]).expand(shape), image(1, shape[1], *shape[2:], seed=1).expand(shape)
    with sk.use_backend(backend):
        expected, got = call(op, x.contiguous(), y.contiguous(), key=KEY), call(op, x, y, key=KEY)
    assert float((got - expected).abs().max()) <= 2.0**-19 * float(expected.abs().max())


def test_what_is_not_covered_takes_the_reference(backend):
    # float64 images, and sides beyond the largest.
    wide = image(1, 1, 2, LARGEST[backend] + 8)
    with sk.use_backend(backend):
        assert torch.equal(sk.dct2(wide), sk.reference.dct2(wide))
        assert torch.equal(sk.blur(wide.double(), 1.5), sk.reference.blur(wide.double(), 1.5))
