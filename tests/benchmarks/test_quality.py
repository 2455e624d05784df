# SPDX-License-Identifier: Apache-2.0
"""The plan of the experiments, and the loss that only they have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")

from benchmarks.quality.increment import STEP, IncrementDenoiser, increment_weight
from benchmarks.quality.measure import grid_name, times_at
from benchmarks.quality.plan import NAMES, PARTS, TRAINED
from softdiff_kernels import NoiseKey, dct2
from softdiff_kernels.diffusion import Corruption, time_steps
from softdiff_kernels.spectrum import heat_gain


@pytest.mark.parametrize("part", PARTS)
def test_every_curve_of_a_part_has_its_own_lines_and_is_of_a_planned_network(part: str) -> None:
    """Rule: lines are found again by name and steps, so no two curves share them; none lacks a label."""
    drawn = [(drawing.name, steps) for drawing in PARTS[part] for steps in drawing.steps]
    assert len(drawn) == len(set(drawn))
    assert all(d.network in TRAINED and d.network in NAMES for d in PARTS[part])


def test_no_two_curves_share_a_picture() -> None:
    """Rule: one file a curve and number of steps, over all parts, unless it is the same curve."""
    curves = {(d.name, d.step, n): grid_name(d, n) for part in PARTS.values() for d in part for n in d.steps}
    assert len(set(curves.values())) == len(curves)


def test_steps_can_be_taken_at_the_blurs_of_another_schedule() -> None:
    """Rule: at the times found, this corruption has the other's blurs; both ways are the way from 1 to 0."""
    one, other = Corruption.paper((16, 16)), Corruption.geometric((16, 16))
    wanted = [other.blur_std(t) for t in time_steps(9).tolist()]
    found = times_at(wanted, one)
    assert found[0] == 1 and found[-1] == 0 and bool((found.diff() < 0).all())
    assert [one.blur_std(t) for t in found.tolist()] == pytest.approx(wanted, rel=1e-9)


def test_the_increment_weight_is_the_gain_of_a_sampler_step() -> None:
    """Rule: (m_s - m_t noise_s^2 / noise_t^2) / (t - s), at 0 too; never negative."""
    corruption = Corruption.paper((12, 9))
    t = torch.tensor([0.004, 0.1, 0.3, 0.9])
    s = (t - STEP).clamp(min=0.0)
    ratio = (corruption.noise_std(s) / corruption.noise_std(t)).square().view(-1, 1, 1, 1)
    gains = [heat_gain(corruption.blur_std(time).double(), 12, 9) for time in (t, s)]
    wanted = (gains[1] - ratio * gains[0]) / (t - s).view(-1, 1, 1, 1)
    torch.testing.assert_close(increment_weight(corruption, t), wanted.float(), rtol=1e-4, atol=1e-6)
    assert float(increment_weight(corruption, torch.linspace(0, 1, 50)).amin()) >= 0


def test_the_increment_loss_is_the_weighted_square_of_the_spectral_error() -> None:
    """Rule: sum over frequencies of weight times squared DCT of the network's answer less the residual."""

    class Zero(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

    corruption, key = Corruption.paper((8, 8)), NoiseKey(1, stream=torch.arange(3))
    x0, t = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.01, 0.3, 0.8])
    found = IncrementDenoiser(Zero(), corruption).loss(x0, t, key=key)
    _, residual = corruption.corrupt(x0, t, key=key, return_residual=True)
    wanted = (increment_weight(corruption, t) * dct2(residual).square()).sum((1, 2, 3))
    assert found.shape == (3,) and torch.equal(found, wanted)
