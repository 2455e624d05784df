# SPDX-License-Identifier: Apache-2.0
"""The next batches of images on the disk, gathered by a background thread while the last one computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ..images import Pixels

AHEAD = 2
"""Batches that wait, or are being gathered. One is enough if gathering is never slower than a step."""


class Prefetch:
    """`prefetch(first, size)`: the images at positions first, ..., first + size - 1 of a run.

    What it returns does not depend on what is prefetched: `order` alone says which image is at a position.
    Only the time that it takes does.

    Args:
        pixels: The images.
        order: Gives the indices int64 [size] at positions first, ... (an `ImageOrder`).
        stride: The positions from the first of a call to the first of the next one.
        device: Where the images go. For a CUDA device they are gathered into pinned memory, so that the copy
            runs beside what computes.

    An error of the thread is raised by the call that asks for its images. `close` ends the thread.
    """

    def __init__(
        self,
        pixels: Pixels,
        order: Callable[[int, int], Tensor],
        stride: int,
        device: torch.device,
        ahead: int = AHEAD,
    ) -> None:
        self._pixels, self._order, self._stride = pixels, order, stride
        self._device, self._ahead = device, ahead
        self._waiting: deque[tuple[int, int, Tensor, Future[Tensor]]] = deque()
        self._pool = ThreadPoolExecutor(1, "softdiff-prefetch")

    def __call__(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Indices int64 [size] on the CPU, and images uint8 [size, C, H, W], pinned for a CUDA device."""
        if not self._waiting or self._waiting[0][:2] != (first, size):
            self._drop()
            self._submit(first, size)
        while len(self._waiting) <= self._ahead:
            self._submit(self._waiting[-1][0] + self._stride, size)
        _, _, index, future = self._waiting.popleft()
        return index, future.result()

    def _submit(self, first: int, size: int) -> None:
        index = self._order(first, size)  # here, so that the order is asked for rising positions
        self._waiting.append((first, size, index, self._pool.submit(self._gather, index)))

    def _gather(self, index: Tensor) -> Tensor:
        images = self._pixels[index]
        if self._device.type != "cuda":
            return images
        with torch.cuda.device(self._device):  # pinning would make a context on the first GPU
            return images.pin_memory()

    def _drop(self) -> None:
        for *_, future in self._waiting:
            future.cancel()
        self._waiting.clear()

    def close(self) -> None:
        """Ends the thread, after the batch that it is at."""
        self._drop()
        self._pool.shutdown()
