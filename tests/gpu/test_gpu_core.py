# SPDX-License-Identifier: Apache-2.0
"""The core pass: the calls that training and sampling are made of, at the sizes and dtypes that are timed.

`rows.CORE` lists them; the GPU report runs this file before anything else, then times the same calls.
"""

from __future__ import annotations

import pytest
import torch
from checks import assert_accurate
from on_gpu import DEVICE, DRY, check, image, marks, name_of, on, spread

import softdiff_kernels as sk
from benchmarks.gpu import rows

pytestmark = marks

CORE = [(op, 8, dtype) for op, size, dtype in rows.CORE if size == 64] if DRY else rows.CORE


@pytest.mark.parametrize("batch", ["few", "full"])
@pytest.mark.parametrize("op, size, dtype", CORE, ids=name_of)
def test_core(backend, op, size, dtype, batch):
    # Few images, which large sizes cut into strips, and as many as fill the GPU, which take the kernels that
    # are timed. The noise is the kernels' own, and the loss comes with its gradient.
    count = rows.FEW if batch == "few" else rows.filling(DEVICE)
    x, y = (image(count, 3, size, size, seed=seed, dtype=dtype) for seed in range(2))
    std, level = spread(count), on(torch.linspace(0.05, 0.4, count))
    if op == "corrupt":
        check(backend, op, x, std, level, key=sk.NoiseKey(2, 9, 4))
    elif op == "momentum_step":
        steps = {"blur_std_t": std, "blur_std_s": 0.9 * std, "noise_std_t": level, "noise_std_s": 0.9 * level}
        check(backend, op, x, y, **steps, key=sk.NoiseKey(3))
    else:
        std = std.clamp(max=4.0)
        check(backend, "soft_score_loss", x, y, std, weight=level, reduction="none")
        with sk.use_backend(backend):
            got = slope(sk, x, y, std, level)
        twins = (slope(sk.reference, x.to(d), y.to(d), std, level) for d in (torch.float64, torch.float32))
        assert_accurate(got, *twins)


def slope(module, x, y, std, weight):
    """The gradient of the mean loss."""
    leaf = x.clone().requires_grad_()
    module.soft_score_loss(leaf, y, std, weight=weight).backward()
    return leaf.grad
