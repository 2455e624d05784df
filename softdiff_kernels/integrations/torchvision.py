# SPDX-License-Identifier: Apache-2.0
"""Corruption as a transform of a data set, in the workers of a DataLoader.

It is called with an image and its index, as `torchvision.transforms.v2.Compose` passes several inputs from
one transform to the next. torchvision itself is not imported: the transform is a plain callable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from ..diffusion import Corruption
from ..noise import NoiseKey, uniforms


class RandomBlurCorrupt:
    """Corrupts an image at a random t: `(image, index, *rest) -> (x_t, x_0, t, *rest)`.

    t and noise depend on seed, epoch and index alone: an image is the same for any number of workers, any
    batch and any order, and another one in the next epoch.

        transform = v2.Compose([v2.RandomHorizontalFlip(), RandomBlurCorrupt(corruption)])

        class Images(Dataset):
            def __getitem__(self, index):
                return transform(uint8_image(index), index)  # or (..., index, label)

        for epoch in range(epochs):
            transform.transforms[-1].set_epoch(epoch)  # before the loader starts
            for x_t, x_0, t in DataLoader(Images(), 64, num_workers=8):
                ...  # t: float32 [B], uniform in (0, 1)

    What other transforms draw comes from torch's generator, as ever. On a GPU `SoftDenoiser.loss` corrupts
    faster, in the training process; this one is for a loop that takes pairs from its loader.

    Args:
        corruption: Any `Corruption` of the images' size.
        seed: 64-bit number of the run.

    Examples:
        >>> transform = RandomBlurCorrupt(BlurCorruption.paper((16, 16)), seed=3)
        >>> x_t, x_0, t = transform(torch.zeros(3, 16, 16, dtype=torch.uint8), 5)
        >>> x_t.shape, x_0.min(), 0 < t < 1
        (torch.Size([3, 16, 16]), tensor(-1.), tensor(True))
    """

    def __init__(self, corruption: Corruption, seed: int = 0) -> None:
        if not isinstance(corruption, Corruption):
            raise TypeError(f"RandomBlurCorrupt: expected a Corruption, got {type(corruption).__name__}")
        self.corruption = corruption
        self.seed = seed
        NoiseKey(seed)  # a wrong seed is refused now, and not in a worker
        # In shared memory, so that workers that live on (persistent_workers) see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Changes t and noise of all images. Call it before the loader starts the epoch."""
        self._epoch.fill_(args.integer("RandomBlurCorrupt.set_epoch", "epoch", epoch))

    def __call__(self, image: Tensor, index: int, *rest: Any) -> tuple[Any, ...]:
        """(x_t, x_0, t, *rest): float32 [C, H, W] twice, x_0 in [-1, 1], and t, float32 [].

        Args:
            image: uint8 [C, H, W]. Floats are refused, because [0, 1] and [-1, 1] cannot be told apart.
            index: The image's number in the data set.
            *rest: Further inputs, such as a label, returned as they are.
        """
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.dim() != 3:
            raise TypeError(
                "RandomBlurCorrupt: expected an image as uint8 [C, H, W], such as v2.ToImage() gives, got "
                f"{args.describe(image)}; leave the change to floats to it"
            )
        number = args.integer("RandomBlurCorrupt", "index", index)
        key, draw = NoiseKey(self.seed, stream=number), 2 * int(self._epoch)
        t = uniforms(key.at(draw), 1, torch.device("cpu"))
        x0 = image.as_subclass(Tensor)[None]  # not torchvision's Image
        x_t = self.corruption.corrupt(x0, t, key=key.at(draw + 1))
        assert isinstance(x_t, Tensor)
        return x_t[0], x0[0] / 127.5 - 1, t[0], *rest
