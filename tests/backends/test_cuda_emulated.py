# SPDX-License-Identifier: Apache-2.0
"""What is particular to the CUDA kernels, emulated: engines, launches, errors, orders of threads, extremes.

`SOFTDIFF_CUDA_SHIM=1 pytest -k cuda` runs these and the CUDA side of every test of the ops.
"""

from __future__ import annotations

import cuda_sweep
import pytest
import torch
from checks import EMULATED, check, needs_emulation, picture, relative_l2, twins
from cuda_emulated import build

import softdiff_kernels as sk

pytestmark = needs_emulation

if EMULATED:
    from cuda_shim.hooks import Hooks

    from softdiff_kernels import _cuda

    HOOKS = Hooks(_cuda.__file__)


@pytest.fixture(autouse=True)
def backend():
    with sk.use_backend("cuda"):
        yield
    # What has no clusters may have no more shared memory than this.
    assert all(launch.shared_bytes <= 99 * 1024 for launch in HOOKS.launches() if launch.cluster == 1)
    HOOKS.set_shared_optin(227 * 1024)
    HOOKS.set_clusters(True)


def launched(op, *args, **kwargs):
    """The kernels of a call, by the first word of their names, and their blocks."""
    HOOKS.forget_launches()
    op(*args, **kwargs)
    return [(launch.kernel.split("<")[0].split("::")[-1], launch.grid[0]) for launch in HOOKS.launches()]


@pytest.mark.parametrize(
    ("side", "kernel", "blocks"),
    [(8, "small_kernel", 1), (24, "small_kernel", 2), (25, "plane_kernel", 6), (128, "plane_kernel", 6)],
)
def test_cuda_takes_one_launch_up_to_128_px(side, kernel, blocks):
    # Several small planes share a block (128 threads, a line each); otherwise a plane has one.
    x = picture(2, 3, side, side)
    assert launched(sk.corrupt, x, 1.0, 0.1) == [(kernel, blocks)]
    assert launched(sk.dct2, x) == [(kernel, blocks)]
    # The loss adds up its planes in one more.
    assert launched(sk.soft_score_loss, x, x, 1.0) == [(kernel, blocks), ("sum_kernel", 1)]


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
    with pytest.raises(RuntimeError, match=r"idct2 for images \[1, 1, 30, 1024\]: cudaErrorInvalidValue"):
        sk.idct2(picture(1, 1, 30, 1024))
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
    return [
        sk.dct2(x),
        sk.idct2(x),
        sk.corrupt(x, 1.5, 0.1, key=key),
        sk.momentum_step(x, y, **step, key=key),
        loss.detach(),
        prediction.grad,
        sk.spectral_mix([x, y], masks, noise_mask=torch.ones(shape[2], 1), key=key),
    ]


@pytest.mark.parametrize(
    "shape", [(3, 3, 12, 9), (1, 2, 31, 64), (1, 1, 96, 128), (1, 2, 140, 33), (1, 1, 20, 257)], ids=str
)
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
    # float16 parts reach from 6e-8 to 65504: planes are scaled, and so is what a mask leaves of them.
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
    assert sk.soft_score_loss(zero, zero, 1.0) == 0


def test_cuda_under_address_sanitizer(tmp_path):
    # No access out of bounds or misaligned, in shared or in global memory, in any engine.
    from cuda_shim.build import asan_env

    module = build(tmp_path, asan=True)
    shapes = "3x2x7x5 2x3x24x24 3x1x28x30 1x2x33x64 1x1x128x65 1x1x129x40 1x1x40x260"
    done = cuda_sweep.run(module, shapes, env=asan_env())
    assert done.returncode == 0 and done.stdout == "right\n", done.stdout + done.stderr[-4000:]
