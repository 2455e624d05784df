# SPDX-License-Identifier: Apache-2.0
"""The format of a checkpoint: one safetensors file with all tensors, and everything else as JSON inside it.

`weights-*.safetensors` contains what sampling needs: averaged weights, options, corruption, prior and image
shape. `state-*.safetensors` contains what resuming needs in addition: raw weights, optimiser moments and
counters. A file gets its name only when it is complete and on the disk; a full disk or a kill before that
leaves the previous file untouched. A digest of the content detects later damage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, need, user_errors
from ..files import write_atomically
from ..memory import is_out_of_memory

VERSION = 2
KINDS = {"weights": "weights", "state": "training state", "classifier": "classifier"}


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
