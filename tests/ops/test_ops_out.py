# SPDX-License-Identifier: Apache-2.0
"""`out=`: where it may lie, that it is declared as a mutation, and what is refused before it is written."""

from __future__ import annotations

import pytest
import torch
from checks import BACKENDS, picture, poisoned

import softdiff_kernels as sk

SHAPE = (2, 3, 12, 18)
STEPS = {
    "reverse_step": {"a": 0.6, "b": 0.2},
    "momentum_step": {"noise_std_t": 0.3, "noise_std_s": 0.2, "floor": 0.1},
    "spectral_mix": {"noise_mask": torch.ones(1)},
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    with sk.use_backend(request.param), poisoned():
        yield request.param


@pytest.fixture(params=STEPS)
def step(request):
    def run(x_t, x0_hat, **kwargs):
        if "noise" not in kwargs:
            kwargs["key"] = sk.NoiseKey(4)
        if request.param == "spectral_mix":
            height, width = x_t.shape[2:]
            masks = [torch.linspace(1, 0, width), torch.linspace(0, 1, height).view(height, 1)]
            return sk.spectral_mix([x_t, x0_hat], masks, **STEPS[request.param], **kwargs)
        stds = {"blur_std_t": torch.tensor([2.0, 0.0]), "blur_std_s": torch.tensor([1.5, 0.0])}
        return getattr(sk, request.param)(x_t, x0_hat, **stds, **STEPS[request.param], **kwargs)

    run.op = "spectral_mix_out" if request.param == "spectral_mix" else "step_out"
    return run


def images(dtype=torch.float32):
    return (
        picture(*SHAPE, dtype=dtype),
        picture(*SHAPE, seed=1, dtype=dtype),
        picture(*SHAPE, seed=2, dtype=dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_the_result_lies_in_out(backend, step, dtype):
    # out is returned itself, and holds what the call without it returns, bit for bit.
    x_t, x0_hat, out = images(dtype)
    expected = step(x_t, x0_hat)
    assert step(x_t, x0_hat, out=out) is out
    assert torch.equal(out, expected)


def test_in_place_on_each_image(backend, step):
    # out may be x_t, x0_hat or the noise: the result is that of the call out of place.
    for place in range(3):
        x_t, x0_hat, noise = images()
        expected = step(x_t, x0_hat, noise=noise)
        target = (x_t, x0_hat, noise)[place]
        step(x_t, x0_hat, noise=noise, out=target)
        assert torch.equal(target, expected)


@pytest.mark.parametrize("offset", [1, 18, 12 * 18, -1])
def test_out_that_overlaps_an_image_elsewhere(backend, step, offset):
    # Shifted by an element, a row or a plane within one buffer: still the result of the call out of place.
    size = 2 * 3 * 12 * 18
    for place in range(3):
        buffer = torch.zeros(size + 2 * abs(offset) + 16)
        start = abs(offset) + 8
        base = buffer[start : start + size].view(SHAPE)
        operands = list(images())
        base.copy_(operands[place])
        operands[place] = base
        x_t, x0_hat, noise = operands
        expected = step(x_t, x0_hat, noise=noise)
        out = buffer[start + offset : start + offset + size].view(SHAPE)
        step(x_t, x0_hat, noise=noise, out=out)
        assert torch.equal(out, expected)


def test_out_that_is_an_image_turned_over(backend, step):
    # The same memory in another order: out is the transpose of x0_hat.
    x_t, x0_hat = picture(2, 3, 12, 12), picture(2, 3, 12, 12, seed=1)
    expected = step(x_t, x0_hat)
    step(x_t, x0_hat, out=x0_hat.mT)
    assert torch.equal(x0_hat.mT, expected)


def test_out_in_memory_shared_through_numpy(backend, step):
    # Two tensors made from one array overlap without sharing a torch storage.
    size = 2 * 3 * 12 * 18
    array = torch.zeros(size + 18).numpy()
    x0_hat, out = torch.from_numpy(array[:size]).view(SHAPE), torch.from_numpy(array[18:]).view(SHAPE)
    x_t, values, _ = images()
    x0_hat.copy_(values)
    expected = step(x_t, x0_hat)
    step(x_t, x0_hat, out=out)
    assert torch.equal(out, expected)


def test_out_in_any_layout(backend, step):
    x_t, x0_hat, _ = images()
    expected = step(x_t, x0_hat)
    room = torch.zeros(2, 3, 12, 36)
    for out in (x_t.contiguous(memory_format=torch.channels_last), room[..., ::2]):
        assert torch.equal(step(x_t, x0_hat, out=out), expected)
    assert torch.equal(room[..., 1::2], torch.zeros(2, 3, 12, 18))  # the columns between are not its own


def test_out_that_is_a_mask(backend):
    # A mask of the images' shape may be written over; one that several planes read is read to the end first.
    x, y, noise = images()
    for shape in (SHAPE, (1, 1, 12, 18)):
        for place in range(3):
            masks = [torch.rand(shape, generator=torch.Generator().manual_seed(s)) for s in range(3)]
            room = torch.zeros(SHAPE)
            room[: shape[0], : shape[1]] = masks[place]
            masks[place] = room[: shape[0], : shape[1]]
            expected = sk.spectral_mix([x, y], masks[:2], noise_mask=masks[2], noise=noise)
            sk.spectral_mix([x, y], masks[:2], noise_mask=masks[2], noise=noise, out=room)
            assert torch.equal(room, expected)


def test_out_of_an_empty_batch(backend):
    x = torch.zeros(0, 1, 4, 4)
    assert sk.reverse_step(x, x, blur_std_t=1.0, blur_std_s=0.5, a=0.5, b=0.0, out=x) is x
    assert sk.spectral_mix([x], [torch.ones(4)], out=x) is x


def test_the_mutation_is_declared(backend, step):
    # The schema says Tensor(a!) out, and autograd's version counter of out moves, of the inputs not.
    schema = getattr(torch.ops.softdiff, step.op).default._schema
    assert [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write] == ["out"]
    x_t, x0_hat, out = images()
    step(x_t, x0_hat, out=out)
    assert (x_t._version, x0_hat._version) == (0, 0)
    assert out._version == 1


def test_a_saved_tensor_that_out_overwrites_is_noticed(backend, step):
    # Backward through x * x after `out=x` must fail, as with any other operation in place.
    x_t, x0_hat, _ = images()
    root = picture(*SHAPE).requires_grad_()
    saved = root * 1.0
    y = (saved * saved).sum()
    with torch.no_grad():
        step(x_t, x0_hat, out=saved.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("which", ["x_t", "x0_hat", "noise", "out"])
def test_refused_under_autograd(backend, step, which):
    # out= has no derivative: refused with a sentence, out untouched; under no_grad it works.
    tensors = dict(zip(("x_t", "x0_hat", "noise"), images(), strict=True))
    tensors["out"] = torch.full(SHAPE, 3.0)
    tensors[which].requires_grad_()
    x_t, x0_hat = tensors.pop("x_t"), tensors.pop("x0_hat")
    with pytest.raises(ValueError, match="out= cannot be differentiated"):
        step(x_t, x0_hat, **tensors)
    assert bool((tensors["out"] == 3.0).all())
    with torch.no_grad():
        step(x_t, x0_hat, **tensors)
    assert not bool((tensors["out"] == 3.0).any())


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (
            torch.zeros(2, 3, 12, 17),
            ValueError,
            r"expected out of shape \[2, 3, 12, 18\], got float32 tensor \[2, 3, 12, 17\]",
        ),
        (
            torch.zeros(SHAPE, dtype=torch.float16),
            TypeError,
            r"expected out as torch.float32, got float16 tensor",
        ),
        (torch.zeros(SHAPE, device="meta"), ValueError, "expected out on cpu, got float32 tensor .* on meta"),
        (
            torch.zeros(2, 3, 1, 18).expand(SHAPE),
            ValueError,
            "expected out whose elements do not share memory",
        ),
        (torch.zeros(2, 1, 12, 18).expand(SHAPE), ValueError, r"got strides \(216, 0, 18, 1\)"),
        ([0.0], TypeError, r"expected out as a tensor \[B, C, H, W\], got list"),
    ],
)
def test_an_unfit_out_is_refused_untouched(backend, step, out, error, message):
    x_t, x0_hat, _ = images()
    with pytest.raises(error, match=message):
        step(x_t, x0_hat, out=out)
    if isinstance(out, torch.Tensor) and out.device.type == "cpu":
        assert not bool(out.any())
