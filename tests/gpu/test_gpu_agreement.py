# SPDX-License-Identifier: Apache-2.0
"""The two fused GPU backends and the reference, beside each other on the same calls."""

from __future__ import annotations

import pytest
import torch
from checks import assert_accurate, twins
from on_gpu import DEVICE, DRY, READY, image, marks_of, mask_of, name_of, sizes, spread

import softdiff_kernels as sk
from softdiff_kernels.backends import _PREFERENCE

pytestmark = marks_of("triton", "cuda")

SHAPES = sizes(
    [
        (3, 3, 8, 8),
        (2, 3, 24, 20),
        (4, 3, 32, 32),
        (4, 3, 64, 64),
        (2, 2, 97, 65),
        (2, 3, 128, 128),
        (1, 3, 256, 200),
    ],
    [(2, 1, 8, 8), (1, 1, 30, 34)],
)
KEY = sk.NoiseKey(2**63 + 9, 2**40, 3)


def calls(x, y):
    """(op, arguments, options) of every op with images."""
    std, mask = spread(x.shape[0]), mask_of(x)
    blurs = {"blur_std_t": std, "blur_std_s": 0.7 * std}
    return [
        ("dct2", (x,), {}),
        ("idct2", (x,), {}),
        ("blur", (x, std), {"floor": 0.1}),
        ("corrupt", (x, std, 0.3), {"key": KEY, "return_residual": True}),
        ("reverse_step", (x, y), {**blurs, "a": 0.4, "b": 0.2, "key": KEY}),
        ("momentum_step", (x, y), {**blurs, "noise_std_t": 0.3, "noise_std_s": 0.1, "key": KEY}),
        ("soft_score_loss", (x, y, std), {"reduction": "none"}),
        ("spectral_mix", ([x, y], [mask, mask]), {"noise_mask": mask, "key": KEY}),
    ]


def listed(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_pixels_agree(shape):
    # Each keeps the contract against the specification, and the one against the other as if it were that.
    x, y = image(*shape), image(*shape, seed=1)
    for op, arguments, options in calls(x, y):
        truth, eager = twins(op, *arguments, **options)
        results = {}
        for name in ("triton", "cuda"):
            with sk.use_backend(name):
                results[name] = listed(getattr(sk, op)(*arguments, **options))
                for got, exact, other in zip(results[name], listed(truth), listed(eager), strict=True):
                    assert_accurate(got, exact, other)
        both = zip(results["cuda"], results["triton"], listed(truth), listed(eager), strict=True)
        for one, other, exact, plain in both:
            # The bound is the eager twin's own error, which is of the truth.
            assert_accurate(one, other.double(), (plain.double() - exact + other.double()))


@pytest.mark.parametrize("shape", sizes([(8, 3, 256, 256), (3, 1_000_003)], [(2, 1003)]), ids=name_of)
def test_noise_agrees(shape):
    # 2e-6 from exact arithmetic, and 2e-6 from each other; bfloat16 is one rounding of it.
    exact = sk.reference.normal(shape, KEY, device=DEVICE, dtype=torch.float64)
    found = {}
    for name in ("triton", "cuda"):
        with sk.use_backend(name):
            found[name] = sk.normal(shape, KEY, device=DEVICE).double()
        assert float((found[name] - exact).abs().max()) <= 2e-6
    assert float((found["triton"] - found["cuda"]).abs().max()) <= 2e-6


def test_automatic_choice_takes_fused_kernels():
    # The bits of a backend that is preferred on this device and ready, at each size that both take.
    preferred = [name for name in _PREFERENCE.get(DEVICE.type, ()) if name in READY]
    if DRY or not preferred:
        pytest.skip("no backend of these is preferred here")
    for side in (8, 32, 64, 128, 256):
        x = image(2, 3, side, side)
        automatic = sk.dct2(x)
        each = []
        for name in preferred:
            with sk.use_backend(name):
                each.append(sk.dct2(x))
        assert any(torch.equal(automatic, one) for one in each)
