# SPDX-License-Identifier: Apache-2.0
"""The plan of the experiments."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from benchmarks.quality.measure import grid_name, times_at
from benchmarks.quality.plan import PARTS, TRAINED
from softdiff_kernels.diffusion import BlurCorruption, time_steps


@pytest.mark.parametrize("part", PARTS)
def test_every_curve_of_a_part_has_its_own_lines_and_is_of_a_planned_network(part: str) -> None:
    """Rule: lines are found again by name and steps, so no two curves share them; each has a label."""
    drawn = [(drawing.name, steps) for drawing in PARTS[part] for steps in drawing.steps]
    assert len(drawn) == len(set(drawn))
    assert all(d.network in TRAINED for d in PARTS[part])


def test_no_two_curves_share_a_picture() -> None:
    """Rule: one file a curve and number of steps, over all parts, unless it is the same curve."""
    curves = {(d.name, d.step, n): grid_name(d, n) for part in PARTS.values() for d in part for n in d.steps}
    assert len(set(curves.values())) == len(curves)


def test_steps_can_be_taken_at_the_blurs_of_another_schedule() -> None:
    """Rule: at the times found, this corruption has the other's blurs; both ways are the way from 1 to 0."""
    one, other = BlurCorruption.paper((16, 16)), BlurCorruption.geometric((16, 16))
    wanted = [other.blur_std(t) for t in time_steps(9).tolist()]
    found = times_at(wanted, one)
    assert found[0] == 1 and found[-1] == 0 and bool((found.diff() < 0).all())
    assert [one.blur_std(t) for t in found.tolist()] == pytest.approx(wanted, rel=1e-9)
