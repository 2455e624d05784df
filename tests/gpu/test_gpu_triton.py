# SPDX-License-Identifier: Apache-2.0
"""The device functions of Triton's noise stream, alone: integers bit for bit, normals within 2e-6."""

from __future__ import annotations

import pytest
import torch
from on_gpu import DEVICE, DRY, marks_of, name_of

from softdiff_kernels.noise import normals_from_words, philox4x32

pytestmark = marks_of("triton")

BOUND = 2e-6
_CHUNK = 2**12 if DRY else 2**22


def signed(words: torch.Tensor) -> torch.Tensor:
    """int64 words in [0, 2^32) as int32 of the same bits."""
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def fast() -> bool:
    from softdiff_kernels.backends.triton.launch import FAST

    return bool(FAST)


def worst(r: torch.Tensor, q: torch.Tensor) -> float:
    """The largest error of the kernel's normals for words r, q (int64), against float64."""
    from noise_kernels import BLOCK, box_muller_kernel

    z0, z1 = (torch.full((r.numel(),), float("nan"), device=DEVICE) for _ in range(2))
    grid = (-(-r.numel() // BLOCK),)
    box_muller_kernel[grid](signed(r), signed(q), z0, z1, r.numel(), fast(), BLOCK)
    exact = normals_from_words(torch.stack((r, q), dim=-1))
    error = (torch.stack((z0, z1), dim=-1).double() - exact).abs().amax()
    assert not bool(error.isnan())
    return float(error)


def chunks(count: int, step: int):
    """0..count in runs of at most _CHUNK, every `step`-th number."""
    for start in range(0, count, _CHUNK * step):
        yield torch.arange(start, min(start + _CHUNK * step, count), step, dtype=torch.int64, device=DEVICE)


def test_every_radius():
    # u has 24 bits, so there are 2^24 radii: all of them, with the low byte of the word all zeros and all
    # ones, at angles that are spread over the circle by a multiplication.
    stride = 2**9 if DRY else 1
    for whole in chunks(2**24, stride):
        for low in (0, 255):
            angle = (whole * 2654435761 + low) % 2**32
            assert worst(whole * 256 + low, angle) <= BOUND


@pytest.mark.parametrize(
    "angle", [0, 1, 2**30 - 1, 2**30, 2**30 + 1, 2**31 - 1, 2**31, 2**31 + 1, 3 * 2**30, 2**32 - 1]
)
def test_every_radius_at_the_quarters(angle):
    # Where the sine or the cosine is 0 or 1, and where the signed angle wraps.
    for whole in chunks(2**24, 2**12 if DRY else 1):
        assert worst(whole * 256, torch.full_like(whole, angle)) <= BOUND


@pytest.mark.parametrize("word", [0, 2**8, 2**31, 2**32 - 1], ids=name_of)
def test_every_angle(word):
    # At the largest radius (5.9), the next, a middling and the smallest: every 13th of 2^32 angles.
    for angle in chunks(2**32, 2**18 if DRY else 13):
        assert worst(torch.full_like(angle, word), angle) <= BOUND


def test_words_are_those_of_the_reference():
    # Known answers of Philox4x32-10 (all zeros, all ones), then counters with every extreme and random words.
    from noise_kernels import BLOCK, philox_kernel

    generator = torch.Generator().manual_seed(5)
    count = 2**10 if DRY else 2**20
    counters = torch.randint(0, 2**32, (4, count), generator=generator, dtype=torch.int64)
    extremes = torch.tensor([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
    counters[:, : 6**4] = torch.cartesian_prod(*[extremes] * 4).T[:, :count]
    counters[:, 0], counters[:, 1] = 0, 2**32 - 1
    counters = counters.to(DEVICE)
    for key in ((0, 0), (2**32 - 1, 2**32 - 1), (0x12345678, 0x9ABCDEF0)):
        out = torch.zeros(4, count, dtype=torch.int32, device=DEVICE)
        philox_kernel[(-(-count // BLOCK),)](signed(counters), out, count, *key, fast(), BLOCK)
        expected = philox4x32(tuple(counters), tuple(torch.tensor(k, device=DEVICE) for k in key))
        assert torch.equal(out, signed(torch.stack(expected)))
        if key == (0, 0):
            assert (
                out[:, 0].tolist()
                == signed(torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8])).tolist()
            )
        if key[0] == 2**32 - 1:
            assert (
                out[:, 1].tolist()
                == signed(torch.tensor([0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD])).tolist()
            )
