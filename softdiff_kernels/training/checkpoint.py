# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and the folder of a run: their format, their names, the newest, and those no longer needed.

A checkpoint is one safetensors file with all tensors, and everything else as JSON inside it.

`weights-*.safetensors` contains what sampling needs: averaged weights, options, corruption, prior and image
shape. `state-*.safetensors` contains what resuming needs in addition: raw weights, optimiser moments and
counters. A file gets its name only when it is complete and on the disk; a full disk or a kill before that
leaves the previous file untouched. A digest of the content detects later damage.

`Saver` writes them from a thread while the training goes on.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
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
    r"(state|weights)-.*\.safetensors|(samples-\d+|real|corruption|samplers)\.png|config\.yaml|schedule\.json"
    r"|stats\.jsonl|wandb-id\.txt|report\.html"
)


def _digest(meta: str, tensors: Mapping[str, Tensor]) -> str:
    """A digest of the JSON and of the name, dtype, shape and bytes of every tensor."""
    digest = hashlib.blake2b(meta.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The elements of a contiguous tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


_DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}


def _safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The content of a safetensors file in pieces: the length of the header, the header, each tensor.

    `safetensors.torch.save` makes one copy of it all, and lets no other thread run meanwhile: 2.9 s for 0.7
    GB on a busy machine. Wide elements come first and the header is padded, so that all are aligned.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in names:
        yield _bytes(tensors[name])


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
        write_atomically(path, _safetensors(plain, metadata))

    def copied(self, copies: dict[Any, Tensor]) -> Checkpoint:
        """The same content, with tensors on the CPU that nothing else writes into.

        copies: those made already, by their place in memory. The averaged weights of a state and of its
        weights file are the same tensors, and are copied once.
        """
        tensors = {}
        for name, tensor in self.tensors.items():
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
            if place not in copies:
                plain = tensor.detach()
                copies[place] = plain.to("cpu", copy=True, memory_format=torch.contiguous_format)
            tensors[name] = copies[place]
        return Checkpoint(self.kind, json.loads(json.dumps(self.meta)), tensors)


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


class Saver:
    """Writes the checkpoints of a run from a thread, in order, one at a time; for a `with` statement.

    Training waits only for the copies in memory, not for the digests and the disk. What the thread raises,
    such as a full disk, is raised again by the next call. At the end of the `with` statement, however it
    ends, the last checkpoint is complete or its error is raised.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, files: Mapping[Path, Checkpoint]) -> None:
        """Begins to write the files, in this order; then all but the newest `keep` checkpoints are
        removed. Waits for the files before."""
        self.wait()
        copies: dict[Any, Tensor] = {}
        pending = [(path, checkpoint.copied(copies)) for path, checkpoint in files.items()]
        # A daemon, so that a third Ctrl-C ends the program even if the disk does not answer.
        self._thread = threading.Thread(target=self._write, args=(pending,), name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self, pending: list[tuple[Path, Checkpoint]]) -> None:
        try:
            for path, checkpoint in pending:
                checkpoint.save(path)
            prune(self.folder, self.keep)
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raises the error of the thread if it has failed. Does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits until the last files are written. Raises the error of the thread."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()


def _kinds_in(folder: Path) -> set[str]:
    return {*RUN_KINDS, *(p.name.rpartition("-")[0] for p in folder.glob("weights-ema*.safetensors"))}


def remove_partial(folder: Path) -> None:
    """Removes the incomplete files of a killed run: temporary files of the names that a run writes, no
    others."""
    for partial in folder.glob("*" + PARTIAL):
        if _WRITTEN.fullmatch(partial.name.removesuffix(PARTIAL)):
            partial.unlink(missing_ok=True)
