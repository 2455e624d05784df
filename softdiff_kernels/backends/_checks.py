# SPDX-License-Identifier: Apache-2.0
"""The values of coefficients in host memory, which nobody has looked at before a GPU's kernel gets them.

What lies on a device is not looked at: that would wait for it.
"""

from __future__ import annotations

from torch import Tensor

from .. import _arguments as args


def check(op: str, *named: tuple[str, Tensor | None], signed: str = "") -> None:
    """Finite, and not negative but for the one named `signed`."""
    for name, value in named:
        if value is None or not value.is_cpu:
            continue
        if value.numel() == 1:
            args.number(op, name, value.item(), nonnegative=name != signed)
        else:
            args.values(op, name, value, nonnegative=name != signed)


def check_step(std_t: Tensor, std_s: Tensor, first: Tensor, second: Tensor, rule: str) -> None:
    """The coefficients of `step`, by its rule."""
    if rule == "given":
        op, names = "reverse_step", ("a", "b")
    else:
        op, names = "momentum_step", ("noise_std_t", "noise_std_s")
    check(
        op,
        ("blur_std_t", std_t),
        ("blur_std_s", std_s),
        (names[0], first),
        (names[1], second),
        signed="a",
    )
    if rule == "given":
        return
    for low, s, high, t in (
        ("blur_std_s", std_s, "blur_std_t", std_t),
        ("noise_std_s", second, "noise_std_t", first),
    ):
        if s.numel() == t.numel() == 1 and s.is_cpu and t.is_cpu:
            args.ordered_numbers(op, low, s.item(), high, t.item())
        else:
            args.ordered(op, low, s, high, t)
