# SPDX-License-Identifier: Apache-2.0
"""`--classes`: numbers and names, and what could be both."""

from __future__ import annotations

import pytest

from softdiff_kernels.data.choices import choose_classes
from softdiff_kernels.errors import UserError

TEXT_ORDER = ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")
"""Twelve classes as they were numbered when folders were sorted as text."""
MONTHS = tuple(map(str, range(1, 13)))


@pytest.mark.parametrize(
    ("text", "classes", "expected"),
    [
        ("2", tuple(map(str, range(12))), [2]),
        ("0-11", tuple(map(str, range(12))), list(range(12))),
        ("dog,cat", ("cat", "dog"), [1, 0]),
        ("dog, 0 ,1-2", ("cat", "dog", "owl"), [1, 0, 1, 2]),
        ("1,0,0", ("cat", "dog"), [1, 0, 0]),
        # No class has the number 12, and all from 1 to 12 are names.
        ("12", MONTHS, [11]),
        ("1-12", MONTHS, list(range(12))),
        ("0", MONTHS, [0]),
        ("0", TEXT_ORDER, [0]),
        ("name:2", TEXT_ORDER, [4]),
        ("number:2,name:10", TEXT_ORDER, [2, 2]),
        ("number:2-3", TEXT_ORDER, [2, 3]),
        ("10-19", ("0-9", "10-19"), [1]),
        ("Smith, John", ("Smith, John", "Doe"), [0]),
        ("name:a,b", ("a", "b", "a,b"), [2]),
        ("name:a,name:b", ("a", "b", "a,b"), [0, 1]),
        ("name:x", ("x", "name:x"), [1]),
        # An accent as one letter and as two, and spaces that a folder's name ends with.
        ("cafe\u0301", ("caf\u00e9", "tea"), [0]),
        ("caf\u00e9", ("cafe\u0301", "tea"), [0]),
        ("tea,cat", ("cat ", " tea"), [1, 0]),
    ],
)
def test_what_can_mean_one_thing_alone(text: str, classes: tuple[str, ...], expected: list[int]) -> None:
    assert choose_classes(text, classes) == expected


@pytest.mark.parametrize(
    ("text", "classes", "parts"),
    [
        ("2", TEXT_ORDER, ('2 "10"', '4 "2"', "name:", "number:")),
        ("0-3", TEXT_ORDER, ("0-3", "name:")),
        ("0,2", TEXT_ORDER, ('2 "10"', '4 "2"')),
        ("1", MONTHS, ('0 "1"', '1 "2"')),
        ("01", tuple(f"{i:02}" for i in range(1, 13)), ('0 "01"', '1 "02"')),
        # A part of a range is enough.
        ("1-2", ("0", "2", "5"), ('1 "2"', '2 "5"')),
        ("0-1", ("a", "b", "0-1"), ('2 "0-1"', '0 "a", 1 "b"')),
        ("a,b", ("a", "b", "a,b"), ("name:a,b",)),
        ("x", ("x", "y", "x"), ('0 "x"', '2 "x"')),
    ],
)
def test_what_can_mean_two_things_is_refused(
    text: str, classes: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    """Rule: the sentence names both meanings, and how to say which."""
    with pytest.raises(UserError, match="--classes: ") as caught:
        choose_classes(text, classes)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize(
    "text", ["", "dgo", "-1", "2", "0-2", "1-0", "1-", "9" * 5000, "0,,1", "name:1", "٠"]
)
def test_what_is_no_class_is_refused_with_the_classes(text: str) -> None:
    with pytest.raises(UserError, match="expected numbers under 2 or names of classes, got ") as caught:
        choose_classes(text, ("cat", "dog"))
    assert 'the model\'s classes are 0 "cat", 1 "dog"' in str(caught.value) and len(str(caught.value)) < 300
    assert ("did you mean dog" in str(caught.value)) == (text == "dgo")
    many = tuple(f"kind{i}" for i in range(1000))
    with pytest.raises(UserError, match="and 995 more"):
        choose_classes("none", many)
