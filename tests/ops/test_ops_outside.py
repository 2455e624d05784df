# SPDX-License-Identifier: Apache-2.0
"""Against what others wrote: scipy's transforms and Gaussian filter, and a blur that must differ."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from checks import BACKENDS, picture

import softdiff_kernels as sk
from softdiff_kernels.bench.cases import relative_error
from softdiff_kernels.bench.packages import ScipyDct

SHAPES = [(2, 3, 8, 8), (1, 2, 17, 31), (1, 1, 1, 9), (1, 1, 64, 48), (1, 1, 97, 5)]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with sk.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transforms_are_scipys(backend, shape):
    # Float32 arithmetic against scipy's float64: relative L2 under 1e-6; float64 images to 1e-13.
    # The benchmark's scipy baseline is the reference, so that what is timed there is what is tested here.
    scipys = ScipyDct(*shape[2:], torch.float64)
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        x = picture(*shape, dtype=dtype)
        for ours, theirs in ((sk.dct2, scipys.dct2), (sk.idct2, scipys.idct2)):
            assert relative_error(ours(x), theirs(x.double())) < bound


@pytest.mark.parametrize("std", [2.0, 3.0, 7.5])
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 2, 17, 31), (1, 1, 64, 48)], ids=str)
def test_blur_is_scipys_gaussian_filter(backend, shape, std):
    # scipy samples the Gaussian in space and cuts it: beyond 12 deviations lies 4e-33. Sampling folds its
    # spectrum, which adds most at the highest frequency, exp(-pi^2 std^2 / 2) < 3e-9 for std >= 2. "reflect"
    # is scipy's name for half-sample symmetric boundaries. Images are under 1: 1e-6 is float32's share.
    x = picture(*shape)
    expected = scipy.ndimage.gaussian_filter(
        x.double().numpy(), sigma=(0, 0, std, std), mode="reflect", truncate=12.0
    )
    assert np.abs(sk.blur(x, std).double().numpy() - expected).max() < 1e-6
    in_double = sk.blur(x.double(), std).numpy()
    assert np.abs(in_double - expected).max() < 1e-8


def reflect_padded_blur(x: torch.Tensor, std: float) -> torch.Tensor:
    """What torchvision-like code does: torch's "reflect" padding, which leaves the edge pixel out."""
    radius = x.shape[-1] - 1
    tap = torch.exp(-torch.arange(-radius, radius + 1, dtype=x.dtype).square() / (2 * std * std))
    tap = tap / tap.sum()
    padded = torch.nn.functional.pad(x, (radius,) * 4, mode="reflect")
    kernel = tap[:, None] * tap[None, :]
    weight = kernel.expand(x.shape[1], 1, *kernel.shape)
    return torch.nn.functional.conv2d(padded, weight, groups=x.shape[1])


def test_blur_is_not_torchs_reflect_padded_blur(backend):
    # torch's "reflect" is whole-sample symmetric: another operator at the edge. It must differ by far more
    # than rounding there, and agree in the middle, where the edge is 16 deviations of 1 px away.
    x = picture(1, 3, 33, 33, dtype=torch.float64)
    other, ours = reflect_padded_blur(x, 1.0), sk.blur(x, 1.0)
    difference = (ours - other).abs()
    assert float(difference[..., 0, :].max()) > 1e-2
    # The sampled Gaussian's transform is folded at std 1: 2 exp(-pi^2 / 2) = 1.4 % at the highest frequency.
    assert float(difference[..., 16, 16].max()) < 1e-2
    # It does not keep the mean, either; ours does.
    assert float((other.mean(dim=(2, 3)) - x.mean(dim=(2, 3))).abs().max()) > 1e-4
    assert float((ours.mean(dim=(2, 3)) - x.mean(dim=(2, 3))).abs().max()) < 1e-12


def test_blur_of_a_point_is_the_gaussian(backend):
    # Far from any edge, the blur of a unit impulse is the Gaussian density itself, for std 3: its samples and
    # its band-limited form differ by exp(-pi^2 9 / 2) < 1e-19. Within 1e-6 of its peak, 1 / 18 pi: a GPU's
    # two exponentials may be off by 5e-7, the products by as much.
    x = torch.zeros(1, 1, 65, 65)
    x[..., 32, 32] = 1.0
    r2 = (torch.arange(65.0, dtype=torch.float64) - 32).square()
    expected = torch.exp(-(r2[:, None] + r2[None, :]) / 18) / (18 * math.pi)
    error = sk.blur(x, 3.0)[0, 0].double() - expected
    assert float(error.abs().max()) < 1e-6 / (18 * math.pi)


def test_a_cosine_is_only_scaled(backend):
    # An eigenfunction by hand: cos(pi k (2 i + 1) / 2 H) comes back times exp(-(pi k / H)^2 std^2 / 2).
    i = torch.arange(24, dtype=torch.float64)
    x = torch.cos(math.pi * 3 * (2 * i + 1) / 48).view(1, 1, 24, 1).expand(1, 1, 24, 10).float()
    gain = math.exp(-((math.pi * 3 / 24) ** 2) * 2.0**2 / 2)
    assert float((sk.blur(x, 2.0) - gain * x).abs().max()) < 1e-6
