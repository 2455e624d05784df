# SPDX-License-Identifier: Apache-2.0
"""What the GPU tests use of pytest, for machines that do not have it: marks, parameters, skip, raises."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any


class Skipped(Exception):
    """Raised by `skip`."""


@dataclass(frozen=True)
class Mark:
    """A mark by itself, and as a decorator that leaves it on a function."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and callable(args[0]) and not isinstance(args[0], type):
            args[0].pytestmark = [*getattr(args[0], "pytestmark", []), self]
            return args[0]
        return Mark(self.name, args, tuple(kwargs.items()))

    def option(self, name: str, default: Any = None) -> Any:
        return dict(self.kwargs).get(name, default)


class _Marks:
    def __getattr__(self, name: str) -> Mark:
        return Mark(name)


@dataclass(frozen=True)
class Parameters:
    """One `param`."""

    values: tuple[Any, ...]
    marks: tuple[Mark, ...] = ()
    id: str | None = None


def param(*values: Any, marks: Any = (), id: str | None = None) -> Parameters:
    return Parameters(values, tuple(marks) if isinstance(marks, (list, tuple)) else (marks,), id)


def skip(reason: str = "") -> None:
    raise Skipped(reason)


@contextmanager
def raises(expected: type[BaseException], match: str | None = None) -> Iterator[None]:
    try:
        yield
    except expected as error:
        assert match is None or re.search(match, str(error)), f"{error} does not match {match}"
        return
    raise AssertionError(f"{expected.__name__} was not raised")


def _fixture(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("fixtures need pytest itself")


def install() -> None:
    """Makes `import pytest` find this."""
    module = ModuleType("pytest")
    names = {"mark": _Marks(), "param": param, "skip": skip, "raises": raises, "fixture": _fixture}
    for name, value in names.items():
        setattr(module, name, value)
    sys.modules["pytest"] = module


def _reason_to_skip(marks: Sequence[Mark]) -> str | None:
    for mark in marks:
        if mark.name == "skip" or (mark.name == "skipif" and any(mark.args)):
            return str(mark.option("reason", mark.name))
    return None


def _label(value: Any, ids: Any) -> str:
    if callable(ids) and ids(value) is not None:
        return str(ids(value))
    if isinstance(value, (str, int, float, bool)) or value is None:
        return str(value)
    return getattr(value, "__name__", str(value))


def cases(
    function: Callable[..., Any], marks: Sequence[Mark] = ()
) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """(label, arguments, reason to skip) of each case of a test function under its marks and the module's."""
    own = list(getattr(function, "pytestmark", []))
    axes = []
    for mark in [*own, *marks]:
        if mark.name != "parametrize":
            continue
        names = (
            [n.strip() for n in mark.args[0].split(",")]
            if isinstance(mark.args[0], str)
            else list(mark.args[0])
        )
        axis = []
        for entry in mark.args[1]:
            given = (
                entry
                if isinstance(entry, Parameters)
                else Parameters((entry,) if len(names) == 1 else tuple(entry))
            )
            label = given.id or "-".join(_label(v, mark.option("ids")) for v in given.values)
            axis.append((label, dict(zip(names, given.values, strict=True)), given.marks))
        axes.append(axis)
    for combination in itertools.product(*axes):
        label = "-".join(part[0] for part in combination)
        arguments = {name: value for part in combination for name, value in part[1].items()}
        everything = [*marks, *own, *(m for part in combination for m in part[2])]
        name = f"{function.__name__}[{label}]" if label else function.__name__
        yield name, arguments, _reason_to_skip(everything)
