# SPDX-License-Identifier: Apache-2.0
"""The order in which a run sees its images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class ImageOrder:
    """Which image comes at each place of a run, as a function of the seed and the place alone.

    Every image comes once an epoch, in an order drawn from (seed, epoch), so that a resumed run, or
    one of several processes that takes only its share of each batch, needs no other state than the
    number of images seen.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            # Hashed, so that neighbouring (seed, epoch) pairs share nothing.
            mixed = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(mixed) % 2**63)
            self._order = torch.randperm(self.count, generator=generator)
            self._epoch = epoch
        return self._order

    def __call__(self, first: int, size: int) -> Tensor:
        """Indices int64 [size] of the images at places first, ..., first + size - 1."""
        parts = []
        while size > 0:
            epoch, at = divmod(first, self.count)
            part = self._epoch_order(epoch)[at : at + size]
            parts.append(part)
            first, size = first + len(part), size - len(part)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
