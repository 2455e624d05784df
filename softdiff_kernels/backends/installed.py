# SPDX-License-Identifier: Apache-2.0
"""What is installed: the build's record (softdiff_kernels/_build.json), and why a compiled module is missing.

A module may be missing because it was not built, or because Python was started in the folder of the sources:
it then imports these, in which nothing may be built, instead of the package that is installed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parent.parent
PLACE = PACKAGE / "_build.json"
NONE = "the build left no record"
OLD = "the build was of a version that had none"


@dataclass(frozen=True)
class Record:
    """native, cuda: whether the module was built; reason, cuda_reason: why not, in words.

    Records of versions without CUDA kernels lack those fields, and there may be no record at all: each field
    has a default that says so.
    """

    native: bool = False
    reason: str = ""
    compiler: str = ""
    cuda: bool = False
    cuda_reason: str = NONE
    cuda_archs: tuple[int, ...] = ()
    cuda_ptx: int | None = None
    nvcc: str = ""


def parse(text: str) -> Record:
    """The record in the file's text. What is missing or damaged keeps its default."""
    try:
        content = json.loads(text)
    except ValueError:
        return Record()
    if not isinstance(content, dict):
        return Record()
    values = {field.name: content[field.name] for field in fields(Record) if field.name in content}
    values.setdefault("cuda_reason", OLD)
    values["cuda_archs"] = tuple(values.get("cuda_archs") or ())
    return Record(**values)


def read(place: Path = PLACE) -> Record:
    """The record of this installation."""
    try:
        return parse(place.read_text())
    except OSError:
        return Record(cuda_reason=hidden("_cuda") or NONE)


def refuse_foreign(module: ModuleType) -> None:
    """Raises ImportError for a compiled module of another copy of the package, perhaps of another version.

    The finder of an editable install offers its own module where this copy has none.
    """
    name, _, _ = module.__name__.rpartition(".")
    file = getattr(module, "__file__", None)
    folders = [os.path.realpath(folder) for folder in sys.modules[name].__path__]
    if file and os.path.realpath(os.path.dirname(file)) not in folders:
        raise ImportError(f"{file} belongs to another copy of {name}")


def hidden(module: str, here: Path = PACKAGE) -> str:
    """Why the package `here` lacks a compiled module, where an installed copy has it; else empty."""
    for spec in _specs(here.name):
        other = Path(spec.origin).resolve().parent if spec and spec.origin else here
        if other != here and any((other / f"{module}{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
            return (
                f"the sources in {here} hide the package installed in {other}, which has the compiled "
                "module: run Python from another folder, or build it in place with pip install -e ."
            )
    return ""


def _specs(package: str) -> Iterator[ModuleSpec | None]:
    """All packages of this name that Python could import: those on its path and editable installs."""
    for finder in sys.meta_path:
        if finder is not PathFinder and hasattr(finder, "find_spec"):
            yield finder.find_spec(package, None)
    for entry in sys.path:
        yield PathFinder.find_spec(package, [entry])
