# SPDX-License-Identifier: Apache-2.0
"""What counts as a number in an argument, and how anything is shown in a message.

A number is a Python int or float, one of numpy (a scalar or an array without axes), a Fraction, a Decimal, or
a symbolic one of torch. A bool, a string, a complex number, a time span and an array with axes are not.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from decimal import Decimal
from reprlib import Repr
from typing import Any

import numpy as np
import torch
from torch import Tensor

Real = float | torch.SymFloat | torch.SymInt

# These are numbers for Python's `numbers`, but not here: numpy counts a time span as an integer.
_EXCLUDED = (bool, np.timedelta64)

_MOST_SHOWN = 100
_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = _MOST_SHOWN


def plain(value: object) -> Any:
    """A number as a float, correctly rounded, and infinite if it is too large; None for anything else.

    A symbolic number stays as it is.
    """
    if type(value) is float:
        return value
    if isinstance(value, (torch.SymFloat, torch.SymInt)) or (
        torch.compiler.is_compiling() and isinstance(value, (int, float)) and not isinstance(value, bool)
    ):
        return value
    if isinstance(value, np.ndarray):
        return float(value) if value.ndim == 0 and value.dtype.kind in "iuf" else None
    if isinstance(value, _EXCLUDED) or not isinstance(value, (numbers.Real, Decimal)):
        return None
    try:
        return float(value)
    except OverflowError:
        return -math.inf if value < 0 else math.inf
    except ValueError:  # a signalling NaN of decimal
        return math.nan


def whole(value: object) -> Any:
    """A whole number as an int (a symbolic one as it is); None for anything else, such as 2.0."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if isinstance(value, np.ndarray):
        return int(value) if value.ndim == 0 and value.dtype.kind in "iu" else None
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, _EXCLUDED) else None


def listed(values: object, read: Callable[[object], Any] = plain) -> list[Any] | None:
    """The numbers in a list, an array or a tensor of one axis, by `plain` or `whole`; None if not all are."""
    if isinstance(values, (str, bytes)) or not isinstance(values, (Iterable, Tensor)):
        return None
    if isinstance(values, (Tensor, np.ndarray)):
        values = values.tolist()
    # A list of tensors without axes, as reading a tensor one by one gives it.
    items = [v.item() if isinstance(v, Tensor) and v.dim() == 0 else v for v in values]
    read_items = [read(v) for v in items]
    return None if any(v is None for v in read_items) else read_items


def shown(value: object) -> str:
    """repr of any value, shortened, for an error message."""
    if isinstance(value, Tensor):
        kind, where = str(value.dtype).removeprefix("torch."), f"on {value.device}"
        if value.is_nested:
            return f"nested {kind} tensor {where}"  # its sizes are no numbers
        layout = (
            ""
            if value.layout is torch.strided
            else f"{str(value.layout).removeprefix('torch.').lstrip('_')} "
        )
        return f"{layout}{kind} tensor {list(value.shape)} {where}"
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.dtype} array {list(value.shape)}"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"{'-' if value < 0 else ''}10^{int(value.bit_length() * math.log10(2))} or so"
    try:
        text = repr(value) if isinstance(value, (int, float)) else _BRIEF.repr(value)
    except Exception:  # of a class of the caller's, or of a number of more digits than Python writes
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
