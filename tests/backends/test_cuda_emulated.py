# SPDX-License-Identifier: Apache-2.0
"""What is particular to the CUDA kernels, emulated: engines, launches, errors, orders of threads, extremes.

`SOFTDIFF_CUDA_SHIM=1 pytest -k cuda` runs these and the CUDA side of every test of the ops.
"""

from __future__ import annotations

import math

import cuda_sweep
import pytest
import torch
from checks import EMULATED, assert_mean_kept, check, needs_emulation, picture, relative_l2, twins
from cuda_emulated import build

import softdiff_kernels as sk

pytestmark = needs_emulation

if EMULATED:
    from cuda_shim.hooks import Hooks

    from softdiff_kernels import _cuda
    from softdiff_kernels.backends.cuda import launch

    HOOKS = Hooks(_cuda.__file__)


@pytest.fixture(autouse=True)
def backend():
    with sk.use_backend("cuda"):
        yield
    # The least shared memory that a supported GPU has for a block.
    assert all(launch.shared_bytes <= 99 * 1024 for launch in HOOKS.launches())
    HOOKS.set_shared_optin(227 * 1024)


def launched(op, *args, **kwargs):
    """The kernels of a call, by the first word of their names, and their blocks."""
    HOOKS.forget_launches()
    op(*args, **kwargs)
    return [(launch.kernel.split("<")[0].split("::")[-1], launch.grid[0]) for launch in HOOKS.launches()]


@pytest.mark.parametrize(
    ("side", "kernel", "blocks"),
    [
        *((8, "small", 1), (15, "small", 1), (24, "small", 2)),
        *((16, "square", 1), (28, "square", 1), (32, "square", 2), (48, "square", 2), (56, "square", 2)),
        *((64, "square", 3), (96, "square", 6), (128, "square", 6)),
    ],
)
def test_cuda_takes_one_launch_up_to_128_px(side, kernel, blocks):
    # Planes share a block up to 64 px; a line each for a thread, in square planes of the usual sizes.
    x = picture(2, 3, side, side)
    assert launched(sk.corrupt, x, 1.0, 0.1) == [(f"{kernel}_kernel", blocks)]
    assert launched(sk.dct2, x) == [(f"{kernel}_kernel", blocks)]
    # The loss adds up its planes in one more.
    for op, filtered_by in ((sk.soft_score_loss, 1.0), (sk.spectral_loss, torch.ones(side))):
        assert launched(op, x, x, filtered_by) == [(f"{kernel}_kernel", blocks), ("sum_kernel", 1)]


SQUARES = (16, 28, 32, 48, 56, 64, 96, 128)
EXACT = 5e-7  # relative L2 error; the fast DCT's own is 1.7e-7, there and back along both axes


@pytest.mark.parametrize("side", SQUARES)
def test_square_planes_are_exact(side):
    # Five planes of one channel: the last block is not full where planes share one.
    x, y = picture(5, 1, side, side, seed=1), picture(5, 1, side, side, seed=2)
    bright, checkers = x.clone(), torch.ones(side, side)
    bright[:, :, side // 3, side // 2] = 1000.0
    checkers[::2, ::2] = checkers[1::2, 1::2] = -1.0
    key = sk.NoiseKey(3, 1, 2)
    step = {"blur_std_t": 2.0, "blur_std_s": 1.7, "noise_std_t": 0.5, "noise_std_s": 0.4, "key": key}
    for image in (x, bright, torch.full_like(x, 0.3), checkers.expand_as(x).contiguous()):
        for std in (0.03, 2.0, side / 3):
            got = sk.blur(image, std)
            truth = sk.reference.blur(image.double(), std)
            # A checkerboard leaves nothing behind a strong blur: its error is of its own size.
            size = torch.maximum(truth.norm(), 1e-2 * image.double().norm())
            assert float((got - truth).norm() / size) <= EXACT
        assert_mean_kept(sk.blur(x, 2.0), x)
    for got, truth in (
        (sk.corrupt(x, 2.0, 0.1, key=key), sk.reference.corrupt(x.double(), 2.0, 0.1, key=key)),
        (sk.momentum_step(x, y, **step), sk.reference.momentum_step(x.double(), y.double(), **step)),
        (sk.dct2(x), sk.reference.dct2(x.double())),
        (sk.idct2(x), sk.reference.idct2(x.double())),
    ):
        assert float(relative_l2(got, truth).max()) <= EXACT


@pytest.mark.parametrize("side", [16, 28, 48, 56, 64, 96])
def test_every_option_on_square_planes(side):
    # Each of these takes the general kernel, or another plain one: the same image, the same numbers.
    x, y, z = (picture(3, 2, side, side, seed=i) for i in range(3))
    std, few = torch.linspace(0.5, 3.0, 3), torch.linspace(0.3, 0.9, 3)
    key, rows = sk.NoiseKey(3, 1, 2), sk.NoiseKey(torch.tensor([3, 4, 5]), torch.tensor([1, 7, 2]), 2)
    wide = picture(3, 2, side, side + 3, seed=4)[..., 1 : side + 1]
    last = x.contiguous(memory_format=torch.channels_last)
    for image in (x, wide, last, x.bfloat16(), x.half(), picture(3, 2, side, side, dtype=torch.uint8)):
        check("corrupt", image, std, few, key=key)
        check("corrupt", image, std, 0.1, key=rows, return_residual=True)
    check("corrupt", x, std, 0.1, noise=z)
    check("blur", x, std, floor=0.2, scale=-few)
    steps = {"blur_std_t": 1.3 * std, "blur_std_s": std}
    check("reverse_step", x, y, **steps, a=few, b=0.1, key=key)
    check("reverse_step", x, y, **steps, a=few, b=0.1, noise=z, floor=0.1)
    check("momentum_step", wide, y, **steps, noise_std_t=few, noise_std_s=0.5 * few, key=key)
    check("momentum_step", x, y, **steps, noise_std_t=few, noise_std_s=0.5 * few, key=key, floor=0.1)
    check("soft_score_loss", x, wide, std, reduction="none", floor=0.1)
    for image in (x, wide, last):
        check("spectral_loss", image, y, torch.rand(3, 1, side, side), weight=few, reduction="none")
    for dtype in (torch.bfloat16, torch.float16):
        check("spectral_loss", x.to(dtype), y.to(dtype), torch.rand(2, side, 1).to(dtype))
    check("spectral_mix", [x, y, wide], [torch.rand(side, side), torch.rand(side), torch.rand(side, 1)])
    for image in (x, wide):
        assert torch.equal(sk.blur(image, 0.0), image)


@pytest.mark.parametrize("side", [16, 64, 24])
def test_coefficients_that_are_no_numbers_spread(side):
    # A tensor that nobody looks at may hold them. A NaN shows, an infinite blur leaves the mean.
    x = picture(2, 1, side, side)
    std = torch.tensor([math.nan, math.inf])
    out = torch.empty_like(x)
    image = (x.data_ptr(), 1, side * side, side * side, side, 1)
    result = (out.data_ptr(), *image[1:])
    plan = _cuda.plan("corrupt", tuple(x.shape), 1, 0)
    table = launch.plain(side, plan[1], x.device) if plan[1] else None
    address = 0 if table is None else table.data_ptr()
    where = (0, 0, address, address, 0, 0), plan
    coefficient = (std.data_ptr(), 1, 1)
    _cuda.corrupt(
        where, ("blur", tuple(x.shape), image, coefficient, None, None, 0.0, None, None, result, None)
    )
    assert out[0].isnan().all()
    assert float((out[1] - x[1].mean()).abs().max()) <= 1e-6


def test_cuda_leaves_larger_images_to_others():
    assert launched(sk.blur, picture(1, 1, 4, 1025), 1.0) == []


@pytest.mark.parametrize("side", [16, 40, 150])
def test_a_cuda_launch_that_fails_says_which(side):
    # Kernel, shape and CUDA's own word for it; nothing is left behind for the next call.
    x = picture(2, 1, side, side)
    expected = sk.blur(x, 1.0)
    HOOKS.fail_next(2)
    sentence = rf"blur for images \[2, 1, {side}, {side}\]: cudaErrorMemoryAllocation"
    with pytest.raises(RuntimeError, match=sentence):
        sk.blur(x, 1.0)
    assert torch.equal(sk.blur(x, 1.0), expected)


def test_cuda_shared_memory_that_does_not_fit_is_an_error():
    HOOKS.set_shared_optin(60 * 1024)
    with pytest.raises(RuntimeError, match=r"idct2 for images \[1, 1, 128, 128\]: cudaErrorInvalidValue"):
        sk.idct2(picture(1, 1, 128, 128))
    HOOKS.set_shared_optin(99 * 1024)
    check("dct2", picture(1, 1, 128, 128))


def results(shape):
    x, y = picture(*shape, seed=1), picture(*shape, seed=2)
    key = sk.NoiseKey(3, 1, 2)
    step = {"blur_std_t": 2.0, "blur_std_s": 1.7, "noise_std_t": 0.5, "noise_std_s": 0.4}
    prediction = x.clone().requires_grad_()
    loss = sk.soft_score_loss(prediction, y, 1.5)
    loss.backward()
    masks = [torch.ones(shape[2:]), torch.ones(shape[3])]
    other = x.clone().requires_grad_()
    masked = sk.spectral_loss(other, y, torch.linspace(0.1, 1.0, shape[2] * shape[3]).view(shape[2:]))
    masked.backward()
    return [
        sk.dct2(x),
        sk.idct2(x),
        sk.corrupt(x, 1.5, 0.1, key=key),
        sk.momentum_step(x, y, **step, key=key),
        loss.detach(),
        prediction.grad,
        masked.detach(),
        other.grad,
        sk.spectral_mix([x, y], masks, noise_mask=torch.ones(shape[2], 1), key=key),
    ]


@pytest.mark.parametrize("shape", [(3, 3, 12, 9), (3, 3, 28, 28), (1, 3, 64, 64), (1, 1, 96, 96)], ids=str)
def test_cuda_results_do_not_depend_on_the_order_of_threads(shape, monkeypatch):
    # Bit for bit: a missing barrier would show in one of the orders.
    expected = results(shape)
    for order in ("reverse", "shuffle:1", "shuffle:2"):
        monkeypatch.setenv("SOFTDIFF_SHIM_ORDER", order)
        for got, wanted in zip(results(shape), expected, strict=True):
            assert torch.equal(got, wanted), order


@pytest.mark.parametrize("shape", [(1, 1, 20, 20), (1, 1, 64, 64), (1, 1, 130, 64), (1, 1, 20, 258)], ids=str)
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1.0, 1e8, 1e30])
def test_cuda_keeps_its_digits_at_any_size(shape, size):
    check("dct2", size * picture(*shape))
    check("blur", size * picture(*shape), 2.0)
    # A small step's mask is about 1e-5 everywhere.
    small = {"blur_std_t": 1.00001, "blur_std_s": 1.0, "noise_std_t": 1.00001, "noise_std_s": 1.0}
    x, y = torch.zeros(shape), size * picture(*shape)
    got = sk.momentum_step(x, y, **small, noise=x)
    truth, eager = twins("momentum_step", x, y, **small, noise=x)
    assert relative_l2(got, truth) <= 2 * relative_l2(eager, truth) + 1e-6


@pytest.mark.parametrize("shape", [(1, 1, 20, 20), (1, 1, 64, 64), (1, 1, 130, 64), (1, 1, 20, 258)], ids=str)
def test_cuda_zeros_stay_zeros(shape):
    zero = torch.zeros(shape)
    assert torch.equal(sk.dct2(zero), zero) and torch.equal(sk.blur(zero, 2.0), zero)
    assert sk.soft_score_loss(zero, zero, 1.0) == 0 and sk.spectral_loss(zero, zero, zero[0]) == 0


def mixed(images, n):
    """spectral_mix of (mask, noise, x, y), into a copy of the n-th of them, or into fresh memory."""
    own = [image.clone() for image in images]
    mask, noise, x, y = own
    masks, out = [mask, torch.ones(mask.shape[3])], None if n is None else own[n]
    got = sk.spectral_mix([x, y], masks, noise_mask=torch.ones(mask.shape[2], 1), noise=noise, out=out)
    assert out is None or got is out
    return got


@pytest.mark.parametrize("shape", [(3, 2, 9, 12), (3, 2, 32, 32), (3, 2, 40, 130)], ids=str)
def test_cuda_mixes_into_an_input(shape):
    # A plane is read before it is written, its noise and its mask included, so that any of them may be `out`:
    # the result is that of fresh memory, bit for bit.
    for dtype in (torch.float32, torch.float16):
        images = [picture(*shape, seed=i, dtype=dtype) for i in range(4)]
        fresh, *into = (mixed(images, n) for n in (None, 0, 1, 2, 3))
        assert all(torch.equal(got, fresh) for got in into)


def test_cuda_under_address_sanitizer(tmp_path):
    # No access out of bounds or misaligned, in shared or in global memory, in any engine.
    from cuda_shim.build import asan_env

    module = build(tmp_path, asan=True)
    shapes = "3x2x7x5 2x3x24x24 3x1x16x16 3x1x28x28 1x1x64x64 1x1x96x96"
    done = cuda_sweep.run(module, shapes, env=asan_env())
    assert done.returncode == 0 and done.stdout == "right\n", done.stdout + done.stderr[-4000:]
