# SPDX-License-Identifier: Apache-2.0
"""Seeds as they are written and read."""

from __future__ import annotations

import pytest

from softdiff_kernels.data.choices import format_seeds, parse_numbers, parse_seeds
from softdiff_kernels.data.sample_folder import image_name, named_seeds
from softdiff_kernels.errors import UserError


def test_seeds_are_read_as_they_are_written() -> None:
    """Rule: the shortest form, read back, is the same seeds in rising order."""
    for seeds, text in (([5, 3, 4, 9, 0], "0,3-5,9"), ([7], "7"), ([1, 2], "1-2"), (range(64), "0-63")):
        assert format_seeds(seeds) == text
        assert parse_seeds(text) == sorted(seeds)


def test_a_seed_counts_once() -> None:
    with pytest.raises(UserError, match="each seed once, got '1,0-3'"):
        parse_seeds("1,0-3")
    # Classes may be asked for in any shares.
    assert parse_numbers("1,1,2", "--classes") == [1, 1, 2]


def test_images_are_known_by_their_names() -> None:
    """Rule: an image's name is its seed's, of six digits or more, and no other picture's."""
    names = [image_name(seed) for seed in (3, 63, 1234567)]
    assert names == ["000003.png", "000063.png", "1234567.png"]
    assert named_seeds(["grid.png", "path1.png", "5.jpg", *names]) == [3, 63, 1234567]
