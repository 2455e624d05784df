# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels that give a plane to two blocks of a cluster, emulated: which planes, and right results.

Runs with SOFTDIFF_CUDA_SHIM=1, as the emulated kernels' other tests do.
"""

from __future__ import annotations

import pytest
import torch
from checks import EMULATED, assert_accurate, check, needs_emulation, picture

import softdiff_kernels as sk

pytestmark = needs_emulation

if EMULATED:
    from cuda_shim.hooks import Hooks

    from softdiff_kernels import _cuda
    from softdiff_kernels.backends.cuda import launch

    HOOKS = Hooks(_cuda.__file__)

PLANE, LINES, CLUSTER = 1, 2, 3
STEP = {"blur_std_t": 3.0, "blur_std_s": 2.0, "a": 0.6, "b": 0.1}
# One beyond plane.h; odd; the longest sides, square, wide, high; quadrants of one tile, and of an odd number.
SHAPES = [
    (1, 2, 129, 130),
    (1, 1, 200, 256),
    (1, 1, 256, 129),
    (1, 1, 256, 256),
    (2, 1, 256, 40),
    (2, 1, 3, 255),
]
SIZES = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))


@pytest.fixture(autouse=True)
def backend():
    HOOKS.forget_launches()
    with sk.use_backend("cuda"):
        yield
    HOOKS.set_shared_optin(227 * 1024)
    HOOKS.set_clusters(True)


def engine(op, *sides, clusters=True):
    return _cuda.plan(op, (2, 3, *sides), 2 if op == "spectral_mix" else 1, 0, clusters)[0]


def in_clusters(shape, sums=0):
    """Whether all launches since the last call were clusters of two blocks a plane, then `sums` of losses."""
    launches = HOOKS.launches()
    HOOKS.forget_launches()
    own, rest = launches[: len(launches) - sums], launches[len(launches) - sums :]
    blocks = 2 * shape[0] * shape[1]
    right = all("cluster_kernel" in x.kernel and (x.grid[0], x.cluster) == (blocks, 2) for x in own)
    return right and len(own) > 0 and all("sum_kernel" in x.kernel for x in rest)


def test_which_planes_clusters_take():
    # From 129 to 256 px on the longer side, in one launch without scratch, but for spectral_mix.
    for op in ("corrupt", "step", "soft_score_loss", "dct2"):
        assert engine(op, 128, 128) == PLANE and engine(op, 257, 20) == LINES
        assert engine(op, 129, 1) == engine(op, 7, 256) == engine(op, 256, 256) == CLUSTER
    assert engine("spectral_mix", 129, 129) == LINES
    plan = _cuda.plan("soft_score_loss", (2, 3, 200, 200), 1, 0, True)
    assert plan[4] == 0 and plan[5] == 2 * 3  # scratch; a sum of each block
    # Not without being asked, without clusters, or without the shared memory of two quadrants.
    assert engine("corrupt", 256, 256, clusters=False) == LINES
    HOOKS.set_shared_optin(99 * 1024)
    assert engine("corrupt", 256, 256) == LINES and engine("corrupt", 192, 192) == CLUSTER
    HOOKS.set_clusters(False)
    assert engine("corrupt", 192, 192) == LINES


@SIZES
def test_transforms_in_clusters(shape):
    x = picture(*shape)
    check("dct2", x)
    check("idct2", x)
    assert in_clusters(shape)


@SIZES
def test_filters_in_clusters(shape):
    # Weak blurs and strong ones, which leave out frequencies; a mask that is not separable.
    x, y = picture(*shape), picture(*shape, seed=1)
    check("blur", x, torch.tensor([1.5, 12.0])[: shape[0]])
    check("reverse_step", x, y, **STEP, key=sk.NoiseKey(1))
    assert in_clusters(shape)


@SIZES
def test_losses_in_clusters(shape):
    # The floor makes a mask without zeros, in which rows that only pad a quadrant must not count.
    x, y = picture(*shape), picture(*shape, seed=1)
    check("soft_score_loss", x, y, 1.5, floor=0.1, reduction="none")
    assert in_clusters(shape, sums=1)
    slopes = []
    for loss, dtype in (
        (sk.soft_score_loss, torch.float32),
        (sk.reference.soft_score_loss, torch.float64),
        (sk.reference.soft_score_loss, torch.float32),
    ):
        prediction = x.to(dtype, copy=True).requires_grad_()
        loss(prediction, y.to(dtype), 2.0).backward()
        slopes.append(prediction.grad)
    assert_accurate(*slopes)
    assert in_clusters(shape, sums=1)


def test_images_of_any_kind_in_clusters():
    # Every dtype; rows that begin anywhere, channels_last, one plane for several channels; extreme blurs.
    for dtype in (torch.bfloat16, torch.float16, torch.uint8):
        check(
            "corrupt", picture(1, 1, 131, 47, dtype=dtype), 2.0, 0.1, key=sk.NoiseKey(2), return_residual=True
        )
    wide = picture(1, 2, 133, 50)
    for x in (
        wide[..., 1:38],
        wide.contiguous(memory_format=torch.channels_last),
        wide[:, :1].expand(1, 2, 133, 50),
    ):
        check("blur", x, 2.0, scale=0.7)
    check("blur", wide, 40.0)
    check("blur", wide, 0.0)
    assert all("cluster_kernel" in launch.kernel for launch in HOOKS.launches())


def test_the_switch_takes_the_passes(monkeypatch):
    x = picture(1, 1, 140, 33)
    blurred = sk.blur(x, 2.0)
    assert in_clusters(x.shape)
    with launch.clusters(False):
        passed = sk.blur(x, 2.0)
        check("blur", x, 2.0)
    assert {launch.kernel.split("<")[0].split("::")[-1] for launch in HOOKS.launches()} == {"lines_kernel"}
    # Two ways to the same image, to what the contract allows each of them.
    assert (blurred - passed).norm() <= 4e-6 * passed.norm()
