# SPDX-License-Identifier: Apache-2.0
"""A result on disk: bench.json, what reads it, and where it goes."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..errors import UserError, user_errors
from ..files import save_json
from .rows import Row

FORMAT = "softdiff bench 1"
JSON, MARKDOWN = "bench.json", "bench.md"


def new_folder(out: str | None, device: str) -> Path:
    """The folder for a new result; UserError where it holds one already."""
    if out is None:
        now = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
        out = f"benchmark-results/{now}-{device}"
    folder = Path(out)
    if (folder / JSON).exists():
        raise UserError(f"--out: {folder} already holds a result; choose another folder or remove it")
    with user_errors("--out: "):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _rounded(value: Any) -> Any:
    """Six digits, which is more than any clock has, and no infinities, which JSON lacks."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return value


def save(folder: Path, result: dict[str, Any], rows: list[Row]) -> Path:
    """Writes bench.json, whole or not at all."""
    path = folder / JSON
    save_json(path, _rounded({"format": FORMAT, **result, "rows": [asdict(row) for row in rows]}))
    return path


def load(path: str) -> tuple[dict[str, Any], list[Row]]:
    """A result from its file or folder. UserError where it is none, or has another format."""
    file = Path(path) / JSON if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file (expected {JSON} of a run of `softdiff bench`, or its folder)")
    with user_errors(f"{file}: "):
        text = file.read_text(encoding="utf-8")
    try:
        result = json.loads(text)
        if not isinstance(result, dict) or result.get("format") != FORMAT:
            found = result.get("format") if isinstance(result, dict) else type(result).__name__
            raise UserError(f"{file}: expected a result of `softdiff bench` ({FORMAT!r}), got {found!r}")
        known = {f.name for f in fields(Row)}
        rows = [Row(**{k: v for k, v in row.items() if k in known}) for row in result.pop("rows")]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: not a whole result ({type(error).__name__}: {error})") from error
    return result, rows
