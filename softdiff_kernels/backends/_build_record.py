# SPDX-License-Identifier: Apache-2.0
"""What the build wrote down about the compiled modules: softdiff_kernels/_build.json.

Records of versions without CUDA kernels lack those fields, and there may be none at all: each field has a
default that says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from . import _shadow

PLACE = Path(__file__).parent.parent / "_build.json"
NONE = "the build left no record"
OLD = "the build was of a version that had none"


@dataclass(frozen=True)
class Record:
    """native, cuda: whether the module was built; the reasons: in words, where it was not."""

    native: bool = False
    reason: str = ""
    compiler: str = ""
    cuda: bool = False
    cuda_reason: str = NONE
    cuda_archs: tuple[int, ...] = ()
    cuda_ptx: int | None = None
    nvcc: str = ""


def parse(text: str) -> Record:
    """The record in the file's text; what is damaged or unknown is left at its default."""
    try:
        found = json.loads(text)
    except ValueError:
        return Record()
    if not isinstance(found, dict):
        return Record()
    known = {field.name: found[field.name] for field in fields(Record) if field.name in found}
    known.setdefault("cuda_reason", OLD)
    known["cuda_archs"] = tuple(known.get("cuda_archs") or ())
    return Record(**known)


def read(place: Path = PLACE) -> Record:
    try:
        return parse(place.read_text())
    except OSError:
        return Record(cuda_reason=_shadow.reason("_cuda") or NONE)
