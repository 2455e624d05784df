# SPDX-License-Identifier: Apache-2.0
"""Whether this package lies before an installed one that has what this one lacks.

Python started in the folder of the sources imports them, in which nothing may be built, and not the package
that is installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parent.parent


def refuse_foreign(module: ModuleType) -> None:
    """ImportError for a compiled module of another copy of the package, which may be of another version.

    The finder of an editable install gives its own where this copy has none.
    """
    name, _, _ = module.__name__.rpartition(".")
    file = getattr(module, "__file__", None)
    folders = [os.path.realpath(folder) for folder in sys.modules[name].__path__]
    if file and os.path.realpath(os.path.dirname(file)) not in folders:
        raise ImportError(f"{file} belongs to another copy of {name}")


def reason(module: str, here: Path = PACKAGE) -> str:
    """Why a compiled module of the package `here` is missing, if another copy of it has it; else empty."""
    for spec in _found(here.name):
        other = Path(spec.origin).resolve().parent if spec and spec.origin else here
        if other != here and any((other / f"{module}{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
            return (
                f"the sources in {here} hide the package installed in {other}, which has the compiled "
                "module: run Python from another folder, or build it in place with pip install -e ."
            )
    return ""


def _found(package: str) -> Iterator[ModuleSpec | None]:
    """Every package of this name that Python could import: on its path, and of editable installs."""
    for finder in sys.meta_path:
        if finder is not PathFinder and hasattr(finder, "find_spec"):
            yield finder.find_spec(package, None)
    for entry in sys.path:
        yield PathFinder.find_spec(package, [entry])
