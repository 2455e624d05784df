# SPDX-License-Identifier: Apache-2.0
"""A run's folder: where it is, and the files in it that are not checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError, user_errors
from ..files import write_atomically
from .checkpoint import RUN_KINDS, numbered, remove_partial

RUNS = Path("runs")
STATS = "stats.jsonl"
STATS_BEFORE = "stats.jsonl.old"


def next_run_folder(name: str, runs: Path = RUNS) -> Path:
    """Makes runs/00000-<name>, or the next free number."""
    with user_errors():
        runs.mkdir(parents=True, exist_ok=True)
    clean = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "images"
    taken = [int(m[1]) for p in runs.iterdir() if (m := re.match(r"(\d+)-", p.name))]
    number = max(taken, default=-1) + 1
    while True:
        folder = runs / f"{number:05d}-{clean}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"cannot make the run folder {folder}: {error.strerror}") from error


def fresh_folder(path: str) -> Path:
    """The folder that --outdir names, without the log of a run that left no checkpoint in it.

    UserError where it already holds a run that can be gone on with.
    """
    folder = Path(path)
    if folder.is_dir() and any(numbered(folder, kind) for kind in RUN_KINDS):
        raise UserError(
            f"{folder} already holds a run: go on with it by --resume {folder}, or choose another --outdir"
        )
    with user_errors("--outdir: "):
        folder.mkdir(parents=True, exist_ok=True)
        # Of a run that ended before its first checkpoint: kept, but its steps are not this run's.
        if (folder / STATS).exists():
            (folder / STATS).replace(folder / STATS_BEFORE)
    return folder


def append_stats(folder: Path, line: dict[str, Any]) -> None:
    """Adds one line to stats.jsonl."""
    try:
        with open(folder / STATS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {folder / STATS}: {error.strerror or error}") from error


def drop_stats_after(folder: Path, step: int) -> None:
    """Drops the lines of steps that a resumed run will make again, and a half-written last line."""
    path = folder / STATS
    if path.exists():
        kept = "".join(line + "\n" for line in _up_to(path.read_text(encoding="utf-8").splitlines(), step))
        write_atomically(path, kept.encode())
    remove_partial(folder)


def _up_to(lines: Iterable[str], step: int) -> Iterable[str]:
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                yield line
        except (ValueError, KeyError, TypeError):
            continue
