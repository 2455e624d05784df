# SPDX-License-Identifier: Apache-2.0
"""Masking: when each pixel fades, what x_t is, and what is refused. What it shares: `test_spectral`."""

from __future__ import annotations

import math

import pytest
import torch

import softdiff_kernels as sk
from softdiff_kernels.diffusion import BlurCorruption, MaskCorruption, SoftDenoiser, sample_ddim, time_steps

F64 = torch.float64
KEY = sk.NoiseKey(3, stream=40)


def _gains(c: MaskCorruption, times: int = 101) -> torch.Tensor:
    return c.gain(torch.linspace(0, 1, times, dtype=F64))[:, 0]


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 6), (1, 1)])
def test_the_mask_grows_from_the_centre(size: tuple[int, int]) -> None:
    gains = _gains(MaskCorruption(size))
    # All is kept at first, all is gone at the end, and a pixel that fades never comes back.
    assert (gains[0] == 1).all() and (gains[-1] == 0).all() and (gains.diff(dim=0) <= 0).all()
    # A pixel nearer to the centre is never kept more than one farther away.
    down, across = (torch.arange(n, dtype=F64) - (n - 1) / 2 for n in size)
    order = torch.hypot(down[:, None], across[None, :]).flatten().argsort(stable=True)
    assert (gains.flatten(1)[:, order].diff(dim=1) >= -1e-12).all()


def test_a_pixel_fades_in_its_time() -> None:
    # 1 - z^2 (3 - 2 z) with z = (t - start) / softness: 1, 0.84375, 0.5, 0.15625, 0 at the quarters.
    start = torch.tensor([[0.0, 0.25], [0.5, 2.0]], dtype=F64)
    c = MaskCorruption((2, 2), start, softness=0.5)
    fade = [1.0, 0.84375, 0.5, 0.15625, 0.0]
    for (row, column), first in (((0, 0), 0.0), ((0, 1), 0.25), ((1, 0), 0.5)):
        for i, value in enumerate(fade):
            assert c.gain(first + i / 8)[0, 0, row, column].item() == pytest.approx(value, abs=1e-12)
    assert (_gains(c)[:, 1, 1] == 1).all()  # a start over 1 is never


@pytest.mark.parametrize("softness", [0.05, 0.25, 1.0])
def test_the_edge_is_soft(softness: float) -> None:
    # In time: no pixel changes faster than its fading allows, at most 1.5 / softness. A hard mask would jump.
    gains = _gains(MaskCorruption((9, 9), softness=softness), 1001)
    assert gains.diff(dim=0).abs().max() <= 1.5 / softness / 1000 + 1e-12
    # In space: where start changes by d from pixel to pixel, so does the gain by 1.5 d / softness.
    d = (1 - softness) / math.hypot(4, 4)
    for image in gains[::50]:
        for axis in (0, 1):
            assert image.diff(dim=axis).abs().max() <= 1.5 * d / softness + 1e-12


def test_a_region_fades_as_a_whole_and_the_rest_stays() -> None:
    hidden = torch.zeros(6, 8, dtype=torch.bool)
    hidden[2:4, 3:7] = True
    c = MaskCorruption.region(hidden, noise_std_max=0.2)
    gains = _gains(c)
    assert (gains[:, ~hidden] == 1).all() and (gains[-1][hidden] == 0).all() and (gains[0] == 1).all()
    assert (gains[:, hidden] == gains[:, 2:3, 3]).all()  # constant over the region, at every t
    assert c.noise(1.0).item() == pytest.approx(0.2)
    for same in (hidden.float(), hidden.tolist(), hidden.numpy(), 255 * hidden.to(torch.uint8)):
        assert torch.equal(MaskCorruption.region(same).start, c.start)
    with pytest.raises(ValueError, match=r"region: expected hidden as \[H, W\], got"):
        MaskCorruption.region(hidden[None])


def test_x_t_is_the_masked_image_plus_the_noise_of_every_corruption() -> None:
    # The same key gives the same noise as for blur, so paths of different corruptions can be compared.
    c, x0, t = MaskCorruption((6, 8)), torch.rand(3, 2, 6, 8) * 2 - 1, torch.tensor([0.1, 0.5, 1.0])
    n = sk.normal(x0.shape, KEY)
    assert torch.equal(c.white(x0, KEY), n)
    expected = c.gain(t) * x0 + c.noise(t) * n
    torch.testing.assert_close(c.corrupt(x0, t, key=KEY), expected, rtol=0, atol=1e-6)
    blur = BlurCorruption.from_tables((6, 8), [0, 1], [0, 0], [0.1, 0.1])
    same = MaskCorruption((6, 8), noise_std_min=0.1).corrupt(x0, 0.0, key=KEY)
    torch.testing.assert_close(same, blur.corrupt(x0, 0.0, key=KEY), rtol=0, atol=1e-6)
    # No transform is in it: a pixel depends on itself alone.
    one = torch.zeros(1, 1, 6, 8)
    one[0, 0, 0, 0] = 1.0
    moved = c.corrupt(one, 0.4, noise=torch.zeros_like(one))
    assert (moved != 0).sum() == 1


def test_what_is_hidden_is_not_punished() -> None:
    # Soft Score Matching through the mask: the loss is blind where the mask hides, and plain is not.
    c, x0 = MaskCorruption((8, 8)), torch.zeros(1, 1, 8, 8)
    wrong = torch.zeros(1, 1, 8, 8)
    wrong[..., 3:5, 3:5] = 1.0
    hidden, soft = torch.tensor([0.5]), SoftDenoiser(lambda x, t: wrong, c, prediction="sample")
    assert (c.gain(hidden)[..., 3:5, 3:5] == 0).all()
    assert soft.loss(x0, hidden, key=KEY) == 0
    plain = SoftDenoiser(lambda x, t: wrong, c, prediction="sample", loss="plain", weight="uniform")
    assert plain.loss(x0, hidden, key=KEY).item() == pytest.approx(4.0)
    assert soft.loss(x0, torch.tensor([0.0]), key=KEY).item() == pytest.approx(4.0 / 0.01**2)


def test_inpainting_keeps_what_was_not_hidden() -> None:
    # Deterministic DDIM with an estimate of x_0: a pixel that is kept only loses its noise.
    hidden = torch.zeros(6, 8, dtype=torch.bool)
    hidden[:, :3] = True
    c = MaskCorruption.region(hidden)
    x0 = torch.rand(2, 1, 6, 8, dtype=F64)
    guess = torch.where(hidden, 0.25, x0)
    model = SoftDenoiser(lambda x, t: guess.to(x.dtype), c, prediction="sample")
    start = c.corrupt(x0, 1.0, key=KEY)
    stop = 0.01
    got = sample_ddim(model, start, [*time_steps(5)[:-1].tolist(), stop], disable=True)
    noise = (got - c.gain(stop) * guess)[..., ~hidden]
    before = (start - c.gain(1.0) * x0)[..., ~hidden]
    torch.testing.assert_close(noise, before * (c.noise(stop) / c.noise(1.0)).item(), rtol=0, atol=1e-12)
    assert ((got - 0.25)[..., hidden].abs() < 0.1).all() and (start[..., hidden].abs() < 0.5).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"start": "outside-in"}, "expected start as one of 'centre-out', got 'outside-in'"),
        (
            {"start": torch.zeros(8, 6)},
            r'expected start as finite numbers of at least 0, \[6, 8\], or "centre',
        ),
        ({"start": torch.full((6, 8), -0.1)}, "expected start as finite numbers of at least 0"),
        ({"start": torch.full((6, 8), math.nan)}, "expected start as finite numbers of at least 0"),
        ({"start": [["a"]]}, "expected start as finite numbers of at least 0"),
        ({"softness": 0.0}, "expected softness over 0, without which a mask has no schedule, got 0"),
        ({"softness": 1.5}, "expected softness as a finite number of at least 0 and at most 1, got 1.5"),
        ({"image_size": (0, 8)}, "expected image_size of at least 1 x 1"),
    ],
)
def test_bad_masks_are_refused(change: dict, sentence: str) -> None:
    good = {"image_size": (6, 8), "start": "centre-out", "softness": 0.25}
    MaskCorruption(**good)
    with pytest.raises(ValueError, match=f"^MaskCorruption: {sentence}"):
        MaskCorruption(**{**good, **change})
    with pytest.raises(ValueError, match="noise_full_at in"):
        MaskCorruption((6, 8), noise_full_at=0.0)
