# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and the folder of a run: their format, their names, the newest, and those no longer needed.

A checkpoint is one safetensors file with all tensors, and everything else as JSON inside it.

`weights-*.safetensors` contains what sampling needs: averaged weights, options, corruption, prior and image
shape. `state-*.safetensors` contains what resuming needs in addition: raw weights, optimiser moments and
counters. A file gets its name only when it is complete and on the disk; a full disk or a kill before that
leaves the previous file untouched. A digest of the content detects later damage.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, need, user_errors
from ..files import PARTIAL, write_atomically
from ..memory import is_out_of_memory

VERSION = 2
KINDS = {"weights": "weights", "state": "training state", "classifier": "classifier"}
RUNS = Path("runs")
RUN_KINDS = ("weights", "state")
"""The kinds of checkpoint that a run writes, numbers and prunes."""
_WRITTEN = re.compile(
    r"(state|weights)-.*\.safetensors|(samples-\d+|real|corruption)\.png|config\.yaml|schedule\.json|stats\.jsonl"
    r"|wandb-id\.txt"
)


def _digest(meta: str, tensors: Mapping[str, Tensor]) -> str:
    """A digest of the JSON and of the name, dtype, shape and bytes of every tensor."""
    digest = hashlib.blake2b(meta.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class DamagedCheckpoint(UserError):
    """A file that is incomplete or damaged."""


@dataclass
class Checkpoint:
    """The content of one file. kind: one of KINDS; meta: what JSON can store; tensors: by dotted name;
    digest: of the file that it was read from."""

    kind: str
    meta: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    digest: str | None = None

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix.`, without that prefix."""
        start = prefix + "."
        return {name[len(start) :]: t for name, t in self.tensors.items() if name.startswith(start)}

    def put(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Adds tensors, with `prefix.` before their names."""
        self.tensors.update({f"{prefix}.{name}": t for name, t in tensors.items()})

    def save(self, path: Path) -> None:
        """Writes the file completely or not at all."""
        meta = json.dumps(self.meta)
        plain = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
        metadata = {
            "format": f"softdiff-{self.kind}",
            "version": str(VERSION),
            "softdiff": meta,
            "digest": _digest(meta, plain),
        }
        write_atomically(path, need("safetensors.torch", "a checkpoint").save(plain, metadata))


def load_checkpoint(path: Path, kind: str) -> Checkpoint:
    """Reads a checkpoint of this kind. UserError for a file that is missing, truncated or damaged
    (DamagedCheckpoint), of another program, of another kind, or of a later version."""
    return _read(path, kind, whole=True)


def load_meta(path: Path, kind: str) -> dict[str, Any]:
    """The JSON of a checkpoint. Does not read the tensors: fast, but does not detect damage in them."""
    return _read(path, kind, whole=False).meta


def _read(path: Path, kind: str, *, whole: bool) -> Checkpoint:
    wanted = f"a {KINDS[kind]} file of softdiff"
    safetensors = need("safetensors", "a checkpoint")
    if not path.is_file():
        raise UserError(f"{path}: no such file (expected {wanted})")
    with user_errors(), open(path, "rb"):
        pass  # safetensors reports a file without read permission as missing
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            file_format, version = metadata.get("format", ""), metadata.get("version", "")
            if file_format != f"softdiff-{kind}":
                formats = {f"softdiff-{k}": f"a {name} file" for k, name in KINDS.items()}
                other = formats.get(file_format, "a safetensors file of another program")
                raise UserError(f"{path}: expected {wanted}, got {other}")
            if version != str(VERSION):
                raise UserError(f"{path}: expected format version {VERSION}, got {version or 'none'}")
            meta, digest = json.loads(metadata["softdiff"]), metadata["digest"]
            names = file.keys() if whole else ()
            tensors = {name: file.get_tensor(name) for name in names}
            if whole and digest != _digest(metadata["softdiff"], tensors):
                raise DamagedCheckpoint(f"{path}: expected {wanted}, got a damaged one (its digest is wrong)")
    except UserError:
        raise
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        got = f"a truncated file or one of another kind ({error})"
        raise DamagedCheckpoint(f"{path}: expected {wanted}, got {got}") from error
    return Checkpoint(kind, meta, tensors, digest)


@contextmanager
def fitting(path: object, what: str) -> Iterator[None]:
    """Around the use of a checkpoint's parts: UserError where some are missing or have other shapes than
    `what` they are loaded into."""
    try:
        with user_errors(f"{path}: "):
            yield
    except (KeyError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        cause = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise UserError(f"{path}: its parts do not fit {what} ({cause})") from error


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
