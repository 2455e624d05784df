# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in safetensors, each complete in itself: tensors, and all the rest as JSON inside.

`weights-*.safetensors` holds what sampling needs: averaged weights, options, corruption, prior and
image shape. `state-*.safetensors` holds what going on with a run needs besides: raw weights,
optimiser moments and counters. A file appears under its name only when it is whole and on the disk;
a full disk or a kill on the way leaves the one before it untouched. A digest of all that is in it tells
a file that was damaged since.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import UserError, user_errors
from ..files import PARTIAL, write_atomically
from ..memory import is_out_of_memory

VERSION = 2
KINDS = {"weights": "weights", "state": "training state", "classifier": "classifier"}
RUN_KINDS = ("weights", "state")
"""The kinds that a run writes, numbers and prunes."""


def _digest(meta: str, tensors: Mapping[str, Tensor]) -> str:
    """Of the JSON and of every tensor's name, type, shape and bytes."""
    digest = hashlib.blake2b(meta.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class DamagedCheckpoint(UserError):
    """A file that is, or was once, a checkpoint, and cannot be read whole."""


@dataclass
class Checkpoint:
    """One file's content. kind: one of KINDS; tensors by dotted name; meta as JSON takes it; digest: of the
    file that it was read from."""

    kind: str
    meta: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    digest: str | None = None

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix.`, by the rest of their names."""
        start = prefix + "."
        return {name[len(start) :]: t for name, t in self.tensors.items() if name.startswith(start)}

    def put(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Adds tensors under `prefix.`."""
        self.tensors.update({f"{prefix}.{name}": t for name, t in tensors.items()})

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        meta = json.dumps(self.meta)
        plain = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
        metadata = {
            "format": f"softdiff-{self.kind}",
            "version": str(VERSION),
            "softdiff": meta,
            "digest": _digest(meta, plain),
        }
        write_atomically(path, safetensors.torch.save(plain, metadata))


def load_checkpoint(path: Path, kind: str) -> Checkpoint:
    """Reads a checkpoint of the wanted kind. One sentence for a file that is missing, truncated, damaged
    (DamagedCheckpoint), foreign, of the other kind, or of a later version."""
    return _read(path, kind, whole=True)


def load_meta(path: Path, kind: str) -> dict[str, Any]:
    """What a checkpoint says of itself, without its tensors: fast, and blind to damage in those."""
    return _read(path, kind, whole=False).meta


def _read(path: Path, kind: str, *, whole: bool) -> Checkpoint:
    wanted = f"a {KINDS[kind]} file of softdiff"
    if not path.is_file():
        raise UserError(f"{path}: no such file (expected {wanted})")
    with user_errors(), open(path, "rb"):
        pass  # safetensors says of a file without permission that there is none
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found, version = metadata.get("format", ""), metadata.get("version", "")
            if found != f"softdiff-{kind}":
                ours = {f"softdiff-{k}": f"a {name} file" for k, name in KINDS.items()}
                other = ours.get(found, "a safetensors file of something else")
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


def weights_kind(ema: float | None) -> str:
    """What names of weights files begin with: of the first average, or of another by its decay."""
    return "weights" if ema is None else f"weights-ema{ema!r}"


def numbered(folder: Path, kind: str) -> list[Path]:
    """The folder's checkpoints of a kind (or `weights_kind`), oldest first."""
    files = [p for p in folder.glob(f"{kind}-*.safetensors") if p.stem.removeprefix(f"{kind}-").isdigit()]
    return sorted(files, key=lambda p: int(p.stem.removeprefix(f"{kind}-")))


def checkpoint_name(kind: str, step: int) -> str:
    """The file name of a checkpoint: weights-00002000.safetensors, say."""
    return f"{kind}-{step:08d}.safetensors"


def find(path: str, kind: str) -> Path:
    """The file itself, or the newest of its kind in a run folder."""
    where = Path(path)
    if not where.is_dir():
        return where
    files = numbered(where, kind)
    if not files:
        raise UserError(f"{where}: expected a run folder with {kind}-*.safetensors in it, found none")
    return files[-1]


def newest_whole(
    folder: Path, kind: str, warn: Callable[[str], None], check: Callable[[Path, str], Any] = load_checkpoint
) -> Path | None:
    """The newest checkpoint of a kind that `check` reads; None where the folder has no file of it.

    Those that are damaged are passed over, each with a warning. UserError where all of them are.
    """
    files = numbered(folder, kind)
    for path in reversed(files):
        try:
            check(path, kind)
            return path
        except DamagedCheckpoint as error:
            warn(f"warning: {error}; looking for the one before it")
    if files:
        raise UserError(f"{folder}: none of its {len(files)} {kind} files can be read whole")
    return None


def prune(folder: Path, keep: int) -> None:
    """Leaves the newest `keep` checkpoints of each kind (0: all)."""
    for kind in _kinds_in(folder):
        for old in numbered(folder, kind)[:-keep] if keep else ():
            old.unlink(missing_ok=True)


def remove_after(folder: Path, step: int) -> list[Path]:
    """Removes the checkpoints of steps after `step`; those that it removed."""
    there = sorted(p for kind in _kinds_in(folder) for p in numbered(folder, kind))
    later = [path for path in there if int(path.stem.rpartition("-")[2]) > step]
    for path in later:
        path.unlink(missing_ok=True)
    return later


def _kinds_in(folder: Path) -> set[str]:
    return {*RUN_KINDS, *(p.name.rpartition("-")[0] for p in folder.glob("weights-ema*.safetensors"))}


_WRITTEN = re.compile(
    r"(state|weights)-.*\.safetensors|(samples-\d+|real|corruption)\.png|config\.yaml|schedule\.json|stats\.jsonl"
    r"|wandb-id\.txt"
)


def remove_partial(folder: Path) -> None:
    """Clears what a killed run left half written: files by the names that a run writes, and no others."""
    for partial in folder.glob("*" + PARTIAL):
        if _WRITTEN.fullmatch(partial.name.removesuffix(PARTIAL)):
            partial.unlink(missing_ok=True)
