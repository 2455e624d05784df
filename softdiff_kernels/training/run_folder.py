# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: its name, and which of its checkpoints is the newest or is no longer needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError, user_errors
from ..files import PARTIAL
from .checkpoint import DamagedCheckpoint, load_checkpoint

RUNS = Path("runs")
RUN_KINDS = ("weights", "state")
"""The kinds of checkpoint that a run writes, numbers and prunes."""
_WRITTEN = re.compile(
    r"(state|weights)-.*\.safetensors|(samples-\d+|real|corruption)\.png|config\.yaml|schedule\.json|stats\.jsonl"
    r"|wandb-id\.txt"
)


def next_run_folder(name: str, runs: Path = RUNS) -> Path:
    """Creates runs/00000-<name>, or the next free number."""
    with user_errors():
        runs.mkdir(parents=True, exist_ok=True)
    clean = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "images"
    numbers = [int(m[1]) for p in runs.iterdir() if (m := re.match(r"(\d+)-", p.name))]
    number = max(numbers, default=-1) + 1
    while True:
        folder = runs / f"{number:05d}-{clean}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"cannot make the run folder {folder}: {error.strerror}") from error


def new_folder(path: str) -> Path:
    """Creates the folder that --outdir names. UserError where it already contains a run that can be
    resumed."""
    folder = Path(path)
    if folder.is_dir() and any(numbered(folder, kind) for kind in RUN_KINDS):
        raise UserError(
            f"{folder} already contains a run: resume it with --resume {folder}, or choose another --outdir"
        )
    with user_errors("--outdir: "):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def weights_kind(ema: float | None) -> str:
    """How names of weights files begin: those of the first average, or those of another, by its decay."""
    return "weights" if ema is None else f"weights-ema{ema!r}"


def checkpoint_name(kind: str, step: int) -> str:
    """The file name of a checkpoint, such as weights-00002000.safetensors."""
    return f"{kind}-{step:08d}.safetensors"


def numbered(folder: Path, kind: str) -> list[Path]:
    """The checkpoints of a kind (or `weights_kind`) in a folder, oldest first."""
    files = [p for p in folder.glob(f"{kind}-*.safetensors") if p.stem.removeprefix(f"{kind}-").isdigit()]
    return sorted(files, key=lambda p: int(p.stem.removeprefix(f"{kind}-")))


def find(path: str, kind: str) -> Path:
    """The file itself, or the newest checkpoint of this kind in a run folder."""
    where = Path(path)
    if not where.is_dir():
        return where
    files = numbered(where, kind)
    if not files:
        raise UserError(f"{where}: expected a run folder with {kind}-*.safetensors in it, found none")
    return files[-1]


def newest_readable(
    folder: Path, kind: str, warn: Callable[[str], None], read: Callable[[Path, str], Any] = load_checkpoint
) -> Path | None:
    """The newest checkpoint of a kind that `read` can read; None where the folder has no checkpoint of this
    kind.

    Damaged files are skipped, each with a warning. UserError where all are damaged.
    """
    files = numbered(folder, kind)
    for path in reversed(files):
        try:
            read(path, kind)
            return path
        except DamagedCheckpoint as error:
            warn(f"warning: {error}; trying the previous one")
    if files:
        raise UserError(f"{folder}: none of its {len(files)} {kind} files can be read")
    return None


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints of each kind; 0 keeps all."""
    for kind in _kinds_in(folder):
        for old in numbered(folder, kind)[:-keep] if keep else ():
            old.unlink(missing_ok=True)


def remove_after(folder: Path, step: int) -> list[Path]:
    """Removes the checkpoints of steps after `step`, and returns their paths."""
    files = sorted(p for kind in _kinds_in(folder) for p in numbered(folder, kind))
    later = [path for path in files if int(path.stem.rpartition("-")[2]) > step]
    for path in later:
        path.unlink(missing_ok=True)
    return later


def _kinds_in(folder: Path) -> set[str]:
    return {*RUN_KINDS, *(p.name.rpartition("-")[0] for p in folder.glob("weights-ema*.safetensors"))}


def remove_partial(folder: Path) -> None:
    """Removes the incomplete files of a killed run: temporary files of the names that a run writes, no
    others."""
    for partial in folder.glob("*" + PARTIAL):
        if _WRITTEN.fullmatch(partial.name.removesuffix(PARTIAL)):
            partial.unlink(missing_ok=True)
