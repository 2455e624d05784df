# SPDX-License-Identifier: Apache-2.0
"""What a pass over a large data set found, kept beside the data, so that the next run starts at once.

The folder is `photos.npy.softdiff/` beside `photos.npy` (or beside a folder or .zip of that name). Its files
are small .npz archives, named by the identity of the data and what they hold. Data that change have another
identity, so a file is never of other data. The folder can be deleted at any time.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import whole_file

Arrays = Mapping[str, np.ndarray[Any, Any]]
SUFFIX = ".softdiff"
LAYOUT = 1
"""Of the files; another one is not read."""
_ERRORS = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile)


def first_process(variable: str = "RANK") -> bool:
    """Whether this is the process that prints; with LOCAL_RANK, the one of its machine that writes."""
    return os.environ.get(variable, "") in ("", "0")


def place_beside(source: Path) -> Path:
    """The folder in which results about this file or folder are kept."""
    source = Path(os.path.abspath(source))
    return source.with_name(source.name + SUFFIX)


class Kept:
    """Arrays kept under a name, for the data of one identity.

    place: the folder, made when something is kept; None for data that stand in no folder. identity: sixteen
    hex digits. What cannot be read is as if it had never been kept; what cannot be written (a read-only
    disk) is computed again by the next run, which a note on standard error says once.
    """

    def __init__(self, place: Path | None, identity: str) -> None:
        self.place = place
        self.identity = identity
        self._told = False

    def _path(self, name: str) -> Path | None:
        return None if self.place is None else self.place / f"{self.identity}-{name}.npz"

    def load(self, name: str) -> dict[str, np.ndarray[Any, Any]] | None:
        """The arrays kept under this name; None if there are none that can be read."""
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            return arrays if int(arrays.pop("layout")) == LAYOUT else None
        except _ERRORS:
            return None

    def save(self, name: str, arrays: Arrays) -> None:
        """Keeps arrays under a name. One process of a machine writes."""
        path = self._path(name)
        if path is None or self.place is None or not first_process("LOCAL_RANK"):
            return
        # Two runs may start at the same time: each writes its own file, and the last one stays.
        own = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            self.place.mkdir(exist_ok=True)
            with whole_file(own) as file:
                np.savez(file, layout=np.array(LAYOUT), **arrays)  # type: ignore[arg-type]
            os.replace(own, path)
        except (OSError, UserError) as error:
            with suppress(OSError):
                own.unlink(missing_ok=True)
            if not self._told and first_process():
                text = getattr(error, "strerror", None) or error
                why = f"nothing can be kept in {self.place} ({text})"
                print(f"note: {why}; the next run reads all images again", file=sys.stderr, flush=True)
            self._told = True

    def drop_others(self) -> None:
        """Deletes what was kept of other data, such as those that were packed here before."""
        if self.place is None or not self.place.is_dir():
            return
        for path in self.place.iterdir():
            match = re.match(r"([0-9a-f]{16})-.*\.npz", path.name)
            if match is not None and match[1] != self.identity:
                with suppress(OSError):
                    path.unlink()
