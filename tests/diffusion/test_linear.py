# SPDX-License-Identifier: Apache-2.0
"""Corruptions by a function: the ones that files can hold, what a function must be, and gradients through it.
What they share with other corruptions: `test_spectral`; their step as a matrix: `test_general_step`."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import softdiff_kernels as sk
from softdiff_kernels.diffusion import (
    Corruption,
    LinearCorruption,
    SoftDenoiser,
    register,
    sample_momentum,
    time_steps,
)

F64 = torch.float64
KEY = sk.NoiseKey(3, stream=40)


def _seen(c: LinearCorruption, x: Tensor, t: float) -> Tensor:
    out = c.corrupt(x, t, noise=torch.zeros_like(x))
    assert isinstance(out, Tensor)
    return out


def _wave(size: tuple[int, int], down: int, across: int, at: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """A plane wave that fits the image, moved by `at` pixels (down, right)."""
    rows, columns = (torch.arange(n, dtype=F64) for n in size)
    angle = down * (rows[:, None] + at[0]) / size[0] + across * (columns[None, :] + at[1]) / size[1]
    return torch.cos(2 * math.pi * angle)[None, None]


@pytest.mark.parametrize("angle", [0.0, 90.0, 30.0, -45.0, 200.0])
@pytest.mark.parametrize("size", [(12, 16), (7, 9)])
def test_motion_blur_is_the_mean_along_a_line(size: tuple[int, int], angle: float) -> None:
    # Truth: the mean of the moved wave over 4001 points of the line, at an angle from the horizontal, up.
    c = LinearCorruption.motion_blur(size, 5.0, angle)
    for t in (0.3, 1.0):
        places = torch.linspace(-0.5, 0.5, 4001, dtype=F64) * 5.0 * t
        up, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        for down, across in ((0, 0), (1, 0), (0, 2), (2, 1), (1, -2)):
            moved = [_wave(size, down, across, (-p * up, p * right)) for p in places.tolist()[::40]]
            weights = torch.ones(len(moved), dtype=F64)
            weights[0] = weights[-1] = 0.5  # the trapezoidal rule
            mean = (torch.cat(moved) * weights.view(-1, 1, 1, 1)).sum(dim=0) / weights.sum()
            got = _seen(c, _wave(size, down, across), t)
            assert (got[0] - mean).abs().max() < 2e-3, (t, down, across)
    if angle in (30.0, -45.0):  # the mirrored angle is another blur
        other = LinearCorruption.motion_blur(size, 5.0, -angle)
        assert (_seen(c, _wave(size, 2, 1), 1.0) - _seen(other, _wave(size, 2, 1), 1.0)).abs().max() > 0.05
    x = torch.rand(2, 3, *size, dtype=F64)
    torch.testing.assert_close(_seen(c, x, 0.0), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(_seen(c, x, 1.0).mean(dim=(2, 3)), x.mean(dim=(2, 3)), rtol=0, atol=1e-12)


def test_downsampling_is_the_mean_of_blocks() -> None:
    c, x = LinearCorruption.downsampling((8, 16), 4), torch.rand(2, 3, 8, 16, dtype=F64)

    def blocks(side: int) -> Tensor:
        means = x.unflatten(2, (-1, side)).unflatten(4, (-1, side)).mean(dim=(3, 5))
        return means.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)

    for t, expected in (
        (0.0, x),
        (0.5, blocks(2)),
        (1.0, blocks(4)),
        (0.25, (x + blocks(2)) / 2),
        (0.9, 0.2 * blocks(2) + 0.8 * blocks(4)),
    ):
        torch.testing.assert_close(_seen(c, x, t), expected, rtol=0, atol=1e-12)
    # Sides that a block does not divide, and sides that are shorter than a block: constants stay.
    for size in ((7, 5), (1, 3), (3, 20)):
        flat = torch.full((1, 1, *size), 0.7, dtype=F64)
        torch.testing.assert_close(
            _seen(LinearCorruption.downsampling(size, 8), flat, 1.0), flat, rtol=0, atol=1e-12
        )
    for factor in (3, 12):
        with pytest.raises(ValueError, match=f"downsampling: expected factor as a power of 2, got {factor}"):
            LinearCorruption.downsampling((8, 8), factor)
    with pytest.raises(ValueError, match="factor as a whole number of at least 2, got 1"):
        LinearCorruption.downsampling((8, 8), 1)


def test_channel_blur_blurs_each_channel_by_its_own() -> None:
    c, x = LinearCorruption.channel_blur((6, 9), [0.0, 1.0, 3.0]), torch.rand(2, 3, 6, 9, dtype=F64)
    t = torch.tensor([0.3, 1.0], dtype=F64)
    got = c.corrupt(x, t, noise=torch.zeros_like(x))
    for channel, std in enumerate((0.0, 1.0, 3.0)):
        expected = sk.blur(x[:, channel : channel + 1], std * t)
        torch.testing.assert_close(got[:, channel : channel + 1], expected, rtol=0, atol=1e-12)
    for bad in ([], [1.0, -1.0], [1.0, math.nan], 3.0, "ab"):
        with pytest.raises(ValueError, match="channel_blur: expected blur_std "):
            LinearCorruption.channel_blur((6, 9), bad)  # type: ignore[arg-type]


def test_the_soft_loss_is_seen_through_c_t_and_its_gradient_is_the_adjoints() -> None:
    # loss = w ||C_t e||^2, gradient 2 w C_t^T C_t e, with C_t as a matrix.
    c = LinearCorruption.motion_blur((4, 5), 2.0, 30.0)
    units = torch.eye(20, dtype=F64).view(20, 1, 4, 5)
    x0, wrong = torch.rand(2, 2, 1, 4, 5, dtype=F64)
    times = torch.tensor([0.4, 0.9], dtype=F64)
    matrices = [_seen(c, units, float(t)).flatten(1).T for t in times]
    estimate = wrong.clone().requires_grad_()
    denoiser = SoftDenoiser(lambda x, t: estimate, c, prediction="sample")
    losses = denoiser.loss(x0, times, key=KEY)
    errors = [(wrong - x0)[i].flatten() for i in range(2)]
    weights = [1 / c.noise(float(t)).item() ** 2 for t in times]
    truth = [w * (m @ e).square().sum() for w, m, e in zip(weights, matrices, errors, strict=True)]
    torch.testing.assert_close(losses, torch.stack(truth), rtol=1e-10, atol=0)
    losses.sum().backward()
    slopes = [2 * w * m.T @ m @ e for w, m, e in zip(weights, matrices, errors, strict=True)]
    torch.testing.assert_close(estimate.grad.flatten(1), torch.stack(slopes), rtol=1e-9, atol=1e-9)
    plain = SoftDenoiser(lambda x, t: estimate, c, prediction="sample", loss="plain", weight="uniform")
    squares = torch.stack([e.square().sum() for e in errors])
    torch.testing.assert_close(plain.loss(x0, times, key=KEY), squares, rtol=1e-12, atol=0)


def test_t_is_a_tensor_of_the_batch_wherever_apply_is_called() -> None:
    seen: list[tuple[torch.dtype, torch.Size]] = []

    def apply(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == x.shape[:1] and x.dtype in (torch.float32, F64) and t.device == x.device
        seen.append((x.dtype, t.shape))
        return x * (1 - t.to(x.dtype) / 2).view(-1, 1, 1, 1)

    c = LinearCorruption(apply, (4, 4))
    x0 = torch.rand(3, 1, 4, 4)
    for images in (x0, x0.double(), x0.bfloat16(), (x0 * 255).to(torch.uint8)):
        c.corrupt(images, 0.5)
        c.corrupt(images, torch.tensor([0.1, 0.2, 0.3]))
        c.corrupt(images, torch.tensor([0.1]))
    seen.clear()
    denoiser = SoftDenoiser(lambda x, t: x0, c, prediction="sample")
    sample_momentum(denoiser, c.corrupt(x0, 1.0), time_steps(3), disable=True)
    # One application for x_1, two for each step but the last, which returns x0_hat.
    assert len(seen) == 1 + 2 * 2
    seen.clear()
    c.step(x0, x0, 0.5, 0.2, 0.0, 0.1)
    assert len(seen) == 1  # of A = 0, C_t is not needed


@pytest.mark.parametrize(
    ("apply", "sentence"),
    [
        (lambda x, t: x**2, "expected apply to be linear in the images, got one that is off by"),
        (lambda x, t: x + 1, "expected apply to be linear in the images"),
        (lambda x, t: x.abs(), "expected apply to be linear in the images"),
        (lambda x, t: x.clamp(-1, 1), "expected apply to be linear in the images"),
        (lambda x, t: x * torch.nan, "expected apply to be linear in the images"),
        (lambda x, t: x + 0.1 * torch.rand_like(x), "expected apply to be linear in the images"),
        (
            lambda x, t: x[..., ::2],
            r"expected apply to return \[1, 1, 6, 8\], as it got, got .*\[1, 1, 6, 4\]",
        ),
        (lambda x, t: None, r"expected apply to return \[1, 1, 6, 8\], as it got, got NoneType None"),
    ],
)
def test_a_function_that_is_not_linear_is_refused(apply: Any, sentence: str) -> None:
    LinearCorruption(lambda x, t: x.flip(3), (6, 8))
    with pytest.raises(ValueError, match=f"^LinearCorruption: {sentence}"):
        LinearCorruption(apply, (6, 8))


def test_bad_arguments_are_refused() -> None:
    def turn(x: Tensor, t: Tensor) -> Tensor:
        return x.flip(1)

    with pytest.raises(TypeError, match=r"expected apply as a function of \(x, t\), got str 'blur'"):
        LinearCorruption("blur", (6, 8))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected apply as a function or as a method of LinearCorruption"):
        LinearCorruption(None, (6, 8))
    with pytest.raises(ValueError, match=r"expected image_size as \(H, W\), got 6"):
        LinearCorruption(turn, 6)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="noise_std_min <= noise_std_max"):
        LinearCorruption(turn, (6, 8), noise_std_max=0.001)
    c, x = LinearCorruption(turn, (6, 8), channels=3), torch.zeros(2, 3, 6, 8)
    with pytest.raises(ValueError, match=r"for images of 3 channels, got .*\[2, 1, 6, 8\]"):
        c.corrupt(x[:, :1], 0.5)
    for A, B in ((torch.ones(6, 8), 0.0), (0.5, torch.ones(6, 8))):
        with pytest.raises(ValueError, match=r"^LinearCorruption\.step: expected A and B as numbers"):
            c.step(x, x, 0.5, 0.2, A, B)
    with pytest.raises(ValueError, match=r"^LinearCorruption\.loss: expected the mask as a number"):
        c.loss(x, x, torch.tensor([0.5]), mask=torch.ones(6, 8))
    with pytest.raises(ValueError, match=r"expected target of shape \[2, 3, 6, 8\]"):
        c.loss(x, x[:1], torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r'expected a gain of at least 1e-06 .* "noise", got 0'):
        SoftDenoiser(lambda x, t: x, c, prediction="noise")
    with pytest.raises(
        ValueError, match=r"^LinearCorruption: expected a corruption that is diagonal in a basis"
    ):
        c.gain(0.5)
    with pytest.raises(ValueError, match="motion_blur: expected length as a finite number of at least 0"):
        LinearCorruption.motion_blur((6, 8), -1.0)


def test_no_file_holds_a_function() -> None:
    def turn(x: Tensor, t: Tensor) -> Tensor:
        return x.flip(3)

    with pytest.raises(
        ValueError, match=r"^LinearCorruption: expected a class that files can name, got a fun"
    ):
        LinearCorruption(turn, (6, 8)).to_dict()


def test_a_class_of_ones_own_is_in_files() -> None:
    @register("test-mirror")
    class Mirror(LinearCorruption):
        def __init__(self, image_size: tuple[int, int], share: float, **noise: float) -> None:
            super().__init__(None, image_size, **noise)  # type: ignore[arg-type]
            self.share = share

        def apply(self, x: Tensor, t: Tensor) -> Tensor:
            part = self.share * t.to(x.dtype).view(-1, 1, 1, 1)
            return (1 - part) * x + part * x.flip(3)

        def config(self) -> dict[str, Any]:
            return {**super().config(), "share": self.share}

    c = Mirror((6, 8), 0.5, noise_std_max=0.2)
    again = Corruption.from_dict(json.loads(json.dumps(c.to_dict())))
    assert isinstance(again, Mirror) and again.share == 0.5 and again.noise(1.0).item() == pytest.approx(0.2)
    x = torch.rand(2, 1, 6, 8)
    assert torch.equal(again.corrupt(x, 0.7, key=KEY), c.corrupt(x, 0.7, key=KEY))
    torch.testing.assert_close(_seen(c, x, 1.0), (x + x.flip(3)) / 2, rtol=0, atol=1e-6)
