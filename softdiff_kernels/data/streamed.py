# SPDX-License-Identifier: Apache-2.0
"""Images that stay in their files (a folder, a .zip, a Hugging Face set) and are decoded where they are
indexed, because memory has no room for them all."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .decode import (
    MODES,
    DecodedImages,
    OpenImage,
    ReadRequest,
    Unheld,
    decode,
    decode_image,
    fits,
    planes,
    worker_threads,
)
from .kept import Kept

Stamps = Callable[[int], tuple[int, int]]
"""Two numbers for an image, which change if its file does."""


@dataclass(frozen=True)
class Files:
    """The files of a set: how one is opened, its stamp, and the folder in which what was found out about all
    of them is kept, if any."""

    names: Sequence[str]
    open_image: OpenImage
    stamp: Stamps
    place: Path | None


class DecodedPixels:
    """The images of files, decoded where they are indexed: what a uint8 tensor [N, C, H, W] is to a reader.

    Threads decode the images of one index; no other images are held. UserError, one sentence, for a file
    that has changed since it was looked at, or that can no longer be read.
    """

    def __init__(
        self,
        files: Files,
        places: Sequence[int],
        stamps: np.ndarray[Any, Any],
        shape: tuple[int, int, int],
        size: tuple[int, int] | None,
        kept: Kept,
    ) -> None:
        self.shape = torch.Size((len(places), *shape))
        self.kept = kept
        self._files, self._places, self._stamps = files, np.asarray(places, np.int64), stamps
        self._request, self._mode = ReadRequest(size), MODES[shape[0]]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        places = self._places[index.numpy() if isinstance(index, Tensor) else index]
        out = np.empty((len(places), *self.shape[1:]), np.uint8)

        def put(i: int) -> None:
            out[i] = self._decoded(int(places[i]))

        # Starting the threads costs far less than what they do, and so none is left when a run ends.
        with ThreadPoolExecutor(worker_threads(), "softdiff-decode") as pool:
            for _ in pool.map(put, range(len(places))):
                pass  # an error of a thread is raised here
        return torch.from_numpy(out)

    def _decoded(self, place: int) -> np.ndarray[Any, Any]:
        name = self._files.names[place]
        try:
            source = self._files.open_image(place)
            decoded = decode_image(source, self._mode, self._request)
            same = self._files.stamp(place) == tuple(self._stamps[place].tolist())
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{name}: can no longer be read ({error}); the set has changed") from error
        if isinstance(decoded, str):
            raise UserError(f"{name}: can no longer be read ({decoded}); the set has changed")
        pixels = planes(decoded.image)
        if not same or pixels.shape != self.shape[1:]:
            raise UserError(
                f"{name}: was changed while it was in use; start again, so that it is looked at again"
            )
        return pixels


def decode_or_stream(files: Files, request: ReadRequest, where: str) -> DecodedImages:
    """As `decode`; but images that memory has no room for stay in their files, if `request.stream` says so.

    To know which of them can be read, and as what, takes one pass over all, which is kept beside the data.
    """
    if not request.stream:
        return decode(files.names, files.open_image, request, where)
    stamps = np.array([files.stamp(i) for i in range(len(files.names))], np.int64).reshape(-1, 2)
    identity = hashlib.blake2b(repr((request.size, request.channels)).encode(), digest_size=8)
    identity.update("\0".join(files.names).encode("utf-8", "surrogateescape"))
    identity.update(stamps.data if len(stamps) else b"")
    kept = Kept(files.place, identity.hexdigest())
    result = _known(kept)
    if result is None or fits(len(files.names) * int(np.prod(result.pixels.shape[1:]))):
        result = decode(files.names, files.open_image, request, where)
        if isinstance(result.pixels, Unheld):
            _keep(kept, result)
    if isinstance(result.pixels, Unheld):
        shape = result.pixels.shape[1:]
        result.pixels = DecodedPixels(files, result.kept, stamps, shape, request.size, kept)
    return result


def _keep(kept: Kept, result: DecodedImages) -> None:
    found = {
        **{"sizes": [[*size, n] for size, n in result.sizes.items()], "modes": dict(result.modes)},
        **{"unreadable": result.unreadable, "animated": result.animated, "shape": result.pixels.shape},
    }
    kept.save("scan", {"found": np.array(json.dumps(found)), "places": np.array(result.kept, np.int64)})


def _known(kept: Kept) -> DecodedImages | None:
    arrays = kept.load("scan")
    if arrays is None:
        return None
    found = json.loads(str(arrays["found"]))
    return DecodedImages(
        Unheld(tuple(found["shape"])),
        arrays["places"].tolist(),
        Counter({(w, h): n for w, h, n in found["sizes"]}),
        Counter(found["modes"]),
        found["unreadable"],
        found["animated"],
    )
