# SPDX-License-Identifier: Apache-2.0
"""What every prior offers: x_1 of a key, and its own state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from .. import functional
from ..noise import NoiseKey
from . import _images
from ._stream import for_images


class Prior:
    """What every prior offers. `name` says which it is, in a checkpoint and beside samples."""

    name = ""

    def __init__(self, image_size: tuple[int, int], channels: int, noise_std: float) -> None:
        self.image_size = _images.image_size("prior", image_size)
        self.channels: int = args.integer("prior", "channels", channels, least=1)
        self.noise_std: float = args.number("prior", "noise_std", noise_std)

    def sample(
        self,
        images: int | Tensor,
        *,
        key: NoiseKey | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """x_1, [B, C, H, W].

        images: how many, of key's stream on; or their streams, int64 [B] on the device. key: its
        draw is taken as 0; None: a fresh one from torch's generator.
        """
        where = torch.device(device)
        key, batch = for_images(key, images)
        clean = self._mean(key, batch, where, dtype)
        # A blur of 0 px passes the image through exactly and adds the noise in the same pass.
        noisy = functional.corrupt(clean, 0.0, self.noise_std, key=key)
        assert isinstance(noisy, Tensor)
        return noisy

    def describe(self) -> str:
        """One line, to go where samples are reported."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that make it, with `config`, again."""
        return {}

    def config(self) -> dict[str, Any]:
        """The rest of it, for JSON."""
        return {
            "prior": self.name,
            "image_size": list(self.image_size),
            "channels": self.channels,
            "noise_std": self.noise_std,
        }

    def _mean(self, key: NoiseKey, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """x_1 without its noise, [B, C, H, W]."""
        raise NotImplementedError

    @property
    def _elements(self) -> int:
        return self.channels * self.image_size[0] * self.image_size[1]
