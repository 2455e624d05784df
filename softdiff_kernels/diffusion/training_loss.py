# SPDX-License-Identifier: Apache-2.0
"""The training loss as a module of its own, for what wraps a module's forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..noise import NoiseKey
from .denoiser import SoftDenoiser


class TrainingLoss(nn.Module):
    """`SoftDenoiser.loss` as a module's forward: what to give to DDP, `fully_shard` or accelerate.

    They act in the forward of the module that they wrap: where the denoiser itself is wrapped, calls of its
    `loss` pass them by. Parameters and buffers are the denoiser's, under `denoiser.`.
    """

    def __init__(self, denoiser: SoftDenoiser) -> None:
        super().__init__()
        if not isinstance(denoiser, SoftDenoiser):
            raise TypeError(
                f"TrainingLoss: expected a SoftDenoiser, got {type(denoiser).__name__}; wrap or compile the "
                "TrainingLoss, or the denoiser's network"
            )
        self.denoiser = denoiser

    def forward(
        self,
        x0: Tensor,
        t: float | Tensor | None = None,
        *,
        key: NoiseKey | None = None,
        noise: Tensor | None = None,
        reduction: str = "none",
        **kw: Any,
    ) -> Tensor:
        """As `SoftDenoiser.loss`. x0 is this process's part of the batch, and key names its images.

        So two processes with parts of 8 images each take `NoiseKey(seed, stream=n + 8 * rank)`: the same key
        in both would be the same noise twice. ValueError for a key under DataParallel, whose replicas would
        share it.
        """
        if key is not None and getattr(self, "_is_replica", False):
            raise ValueError(
                "TrainingLoss: expected no key under DataParallel, whose replicas would all draw the first "
                "images' noise, got one; give t and noise, or use DistributedDataParallel"
            )
        return self.denoiser.loss(x0, t, key=key, noise=noise, reduction=reduction, **kw)
