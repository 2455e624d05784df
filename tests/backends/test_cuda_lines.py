# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' passes over lines, emulated: every way to take a line, every op, and their exactness.

`SOFTDIFF_CUDA_SHIM=1 pytest -k cuda_lines`. Lengths: of a codelet (64), of one times 2, 4 and 8 (160, 320,
512, 1024), and dense (odd, prime, short).
"""

from __future__ import annotations

import cuda_sweep
import pytest
import torch
from checks import EMULATED, assert_mean_kept, check, needs_emulation, picture, relative_l2
from cuda_emulated import build

import softdiff_kernels as sk
from softdiff_kernels import _arguments

pytestmark = needs_emulation

if EMULATED:
    from cuda_shim.hooks import Hooks

    from softdiff_kernels import _cuda

    HOOKS = Hooks(_cuda.__file__)

EXACT = 5e-7  # relative L2 error up to 512 px: the fast DCT's own is 2e-7 for an axis there and back


@pytest.fixture(autouse=True)
def backend():
    with sk.use_backend("cuda"):
        yield
    # As much shared memory as the smallest supported GPUs have.
    assert all(launch.shared_bytes <= 99 * 1024 for launch in HOOKS.launches())


def launched(op, *args, **kwargs):
    """The kernels of a call, by the first word of their names, and their blocks."""
    HOOKS.forget_launches()
    op(*args, **kwargs)
    return [(launch.kernel.split("<")[0].split("::")[-1], launch.grid[0]) for launch in HOOKS.launches()]


def test_cuda_passes_over_larger_planes_in_chunks_of_the_cache():
    # 8 planes of 160 x 130 px in chunks whose scratch is a third of the L2 cache (1 MiB here): 4 planes.
    # Columns of 160 px are fast, 32 a block, rows of 130 px dense, 8 a block.
    x = picture(8, 1, 160, 130)
    columns, rows = ("fast_lines_kernel", 20), ("dense_lines_kernel", 80)
    assert launched(sk.blur, x, 2.0) == [columns, rows] * 2
    step = {"blur_std_t": 2.0, "blur_std_s": 1.0, "a": 0.5, "b": 0.1}
    assert launched(sk.reverse_step, x, x, **step) == [rows, columns, rows] * 2
    # A loss adds up its planes. A mask in memory is a kernel of its own, of as many blocks as the columns.
    assert launched(sk.soft_score_loss, x, x, 1.0) == [rows, columns] * 2 + [("sum_kernel", 1)]
    masked = [rows, columns, ("mask_kernel", columns[1])]
    assert launched(sk.spectral_loss, x, x, torch.ones(130)) == masked * 2 + [("sum_kernel", 1)]
    assert launched(sk.dct2, x[:5])[2:] == [("fast_lines_kernel", 5), ("dense_lines_kernel", 20)]


def errors(x, blur_std):
    """Relative L2 errors of the ops that transform there and back, or one way."""
    wide = x.double()
    results = [
        (sk.blur(x, blur_std), sk.reference.blur(wide, blur_std)),
        (sk.blur(x, blur_std, floor=0.1), sk.reference.blur(wide, blur_std, floor=0.1)),
        (sk.dct2(x), sk.reference.dct2(wide)),
        (sk.idct2(x), sk.reference.idct2(wide)),
    ]
    return [float(relative_l2(got, truth).max()) for got, truth in results]


@pytest.mark.parametrize(
    "shape",
    [
        *[(1, 1, 160, 160), (1, 1, 192, 64), (1, 1, 64, 200), (1, 1, 256, 256), (1, 1, 320, 112)],
        *[(1, 1, 96, 384), (1, 1, 512, 37), (1, 1, 24, 512), (2, 1, 37, 100), (1, 2, 1, 509)],
        *[(1, 1, 131, 127), (1, 1, 509, 3)],
    ],
    ids=str,
)
def test_cuda_lines_are_exact(shape):
    # At any blur, from one that changes nothing to one that leaves a few waves.
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    for blur_std in (0.03, 2.0, max(shape) / 3):
        worst = max(errors(noise, blur_std))
        assert worst <= EXACT, f"{worst:.2e} at blur_std {blur_std}"


@pytest.mark.parametrize("shape", [(1, 1, 256, 160), (1, 1, 200, 130)], ids=str)
def test_cuda_lines_are_exact_for_images_that_concentrate(shape):
    # A bright pixel, a constant, a checkerboard: one place or frequency holds nearly all of the image.
    bright = picture(*shape)
    bright[..., 50, 70] = 1000.0
    constant = torch.full(shape, 0.7)
    checkers = (torch.arange(shape[2]).view(-1, 1) + torch.arange(shape[3])) % 2 * 2.0 - 1.0
    for x in (bright, constant, checkers.expand(shape).contiguous()):
        assert float(relative_l2(sk.blur(x, 0.5), sk.reference.blur(x.double(), 0.5))) <= EXACT
        assert float(relative_l2(sk.dct2(x), sk.reference.dct2(x.double()))) <= EXACT
    assert_mean_kept(sk.blur(constant, 5.0), constant)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1024, 5), (1, 1, 3, 1024), (1, 1, 1021, 2), (1, 1, 2, 640)], ids=str
)
def test_cuda_lines_up_to_1024_px(shape):
    # 1024 and 640 px: eight parts a line. 1021 is prime.
    x = picture(*shape)
    check("dct2", x)
    check("blur", x, 30.0)
    check("blur", x, 2.0, floor=0.1)
    check("soft_score_loss", x, picture(*shape, seed=1), 0.7)
    check("spectral_loss", x, picture(*shape, seed=1), torch.rand(shape))


@pytest.mark.parametrize("shape", [(2, 2, 64, 37), (2, 1, 96, 128), (1, 3, 5, 7)], ids=str)
def test_cuda_lines_serve_every_op(shape):
    # Per-sample coefficients, floor, scale, noise, residual, two terms, gradient, several masks, slices.
    cuda_sweep.sweep([shape], cuda_sweep.OPS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize("shape", [(2, 3, 64, 160), (2, 3, 33, 70)], ids=str)
def test_cuda_lines_take_any_image(shape, dtype):
    # Other dtypes, as they lie, channels_last, with strides, and one image for the batch.
    x = picture(*shape, dtype=dtype)
    key = sk.NoiseKey(1, 2, 3)
    check("corrupt", x, 1.5, 0.3, key=key)
    check("corrupt", x.contiguous(memory_format=torch.channels_last), 1.5, 0.0)
    check("corrupt", x[..., ::2, ::2], 1.5, 0.0)
    check("corrupt", x[:1].expand(shape), torch.tensor([0.5, 3.0]), 0.0)


@pytest.mark.parametrize("shape", [(1, 1, 64, 160), (1, 1, 33, 70)], ids=str)
def test_cuda_lines_return_what_is_not_blurred(shape):
    # blur_std = 0 returns its input, bit by bit, and a loss without blur is the sum of squares.
    x, y = picture(*shape), picture(*shape, seed=1)
    assert torch.equal(sk.blur(x, 0.0), x)
    assert torch.equal(sk.blur(x, 0.0, scale=0.5), 0.5 * x)
    check("soft_score_loss", x, y, 0.0)


@pytest.mark.parametrize("blur_std", [float("inf"), float("nan")])
def test_cuda_lines_spread_what_is_no_number(blur_std, monkeypatch):
    # Nobody looks at coefficients on the device: an infinite blur leaves the mean, a NaN spreads.
    monkeypatch.setattr(_arguments, "seen", lambda value: None)
    x = picture(2, 1, 64, 70)
    got = sk.blur(x, torch.tensor([1.0, blur_std]))
    assert float(relative_l2(got[:1], sk.reference.blur(x[:1].double(), 1.0))) <= EXACT
    if blur_std == float("inf"):
        assert torch.allclose(got[1], x[1].mean().expand_as(got[1]), atol=1e-6)
    else:
        assert bool(got[1].isnan().all())


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
    mixed = sk.spectral_mix([x, y], masks, noise_mask=torch.ones(shape[2], 1), key=key)
    return [
        sk.dct2(x),
        sk.idct2(x),
        sk.momentum_step(x, y, **step, key=key),
        loss.detach(),
        prediction.grad,
        masked.detach(),
        other.grad,
        mixed,
    ]


@pytest.mark.parametrize("shape", [(1, 2, 64, 160), (1, 1, 37, 320), (1, 1, 640, 5)], ids=str)
def test_cuda_lines_do_not_depend_on_the_order_of_threads(shape, monkeypatch):
    # A missing barrier shows as other numbers in some order.
    monkeypatch.setenv("SOFTDIFF_SHIM_ORDER", "forward")
    expected = results(shape)
    for order in ("reverse", "shuffle:1"):
        monkeypatch.setenv("SOFTDIFF_SHIM_ORDER", order)
        for got, wanted in zip(results(shape), expected, strict=True):
            assert torch.equal(got, wanted), order


def test_cuda_lines_under_address_sanitizer(tmp_path):
    # No access out of bounds or misaligned, in shared or in global memory, fast or dense.
    from cuda_shim.build import asan_env

    module = build(tmp_path, asan=True)
    done = cuda_sweep.run(module, "2x2x5x7 1x1x160x33 1x1x3x256 1x1x320x2 1x1x640x3", env=asan_env())
    assert done.returncode == 0 and done.stdout == "right\n", done.stdout + done.stderr[-4000:]
