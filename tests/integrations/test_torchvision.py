# SPDX-License-Identifier: Apache-2.0
"""Images that the workers of a DataLoader corrupt: the same for any number of workers, batch and order."""

from __future__ import annotations

import doctest
import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

import softdiff_kernels as sk
from softdiff_kernels import diffusion
from softdiff_kernels.diffusion import BlurCorruption
from softdiff_kernels.integrations import torchvision as transforms
from softdiff_kernels.integrations.torchvision import RandomBlurCorrupt

SIZE = (8, 6)
CORRUPTION = BlurCorruption.paper(SIZE)
PIXELS = torch.randint(0, 256, (10, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Images(Dataset):
    def __init__(self, transform: RandomBlurCorrupt) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.transform(PIXELS[index], index, f"label {index}")


def everything(loader: Any) -> list[Any]:
    """x_t, x_0 and t of all batches, and the labels."""
    batches = list(loader)
    tensors = [torch.cat([batch[i] for batch in batches]) for i in range(3)]
    return [*tensors, [label for batch in batches for label in batch[3]]]


def test_workers_batches_and_order_change_nothing() -> None:
    """Rule: an image is a function of (seed, epoch, index): bit for bit the one that `corrupt` gives."""
    transform = RandomBlurCorrupt(CORRUPTION, seed=7)
    x_t, x_0, t, labels = everything(DataLoader(Images(transform), 3))
    assert labels == [f"label {i}" for i in range(10)] and t.dtype == x_t.dtype == torch.float32
    torch.testing.assert_close(x_0, PIXELS / 127.5 - 1)
    assert len(t.unique()) == 10 and t.min() > 0 and t.max() < 1
    wanted = CORRUPTION.corrupt(PIXELS, t, key=sk.NoiseKey(7, stream=0, draw=1))
    assert isinstance(wanted, Tensor)
    torch.testing.assert_close(x_t, wanted)
    backwards = everything(DataLoader(Subset(Images(transform), range(9, -1, -1)), 4))
    assert torch.equal(backwards[0].flip(0), x_t) and torch.equal(backwards[2].flip(0), t)
    other = everything(DataLoader(Images(RandomBlurCorrupt(CORRUPTION, seed=8)), 3))
    assert not (other[2] == t).any() and not (other[0] == x_t).flatten(1).all(1).any()


@pytest.mark.skipif(os.name == "nt", reason="workers are forked")
def test_living_workers_see_the_next_epoch() -> None:
    """Rule: two workers give, epoch by epoch, what none gives, and each epoch other t and noise."""
    transform, alone = RandomBlurCorrupt(CORRUPTION), RandomBlurCorrupt(CORRUPTION)
    several = DataLoader(
        Images(transform), 2, num_workers=2, persistent_workers=True, multiprocessing_context="fork"
    )
    before: list[Any] = []
    for epoch in range(3):
        transform.set_epoch(epoch)
        alone.set_epoch(epoch)
        found, wanted = everything(several), everything(DataLoader(Images(alone), 5))
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[2], wanted[2])
        assert all(not (found[2] == t).any() for t in before)
        before.append(found[2])


def test_it_is_a_transform_among_others() -> None:
    """Rule: as v2.Compose calls its transforms, with all inputs; a subclass of Tensor becomes a Tensor."""

    class Image(Tensor):
        """Stands for torchvision's."""

    inputs: tuple[Any, ...] = (PIXELS[0], 0, "cat")
    for transform in (lambda image, *more: (image.as_subclass(Image), *more), RandomBlurCorrupt(CORRUPTION)):
        inputs = transform(*inputs)
    x_t, x_0, _, label = inputs
    assert type(x_t) is type(x_0) is Tensor and label == "cat"


def test_what_it_refuses() -> None:
    """Rule: floats, whose range nobody knows, other shapes, sizes and indices are named."""
    transform = RandomBlurCorrupt(CORRUPTION)
    for image in (PIXELS[0].float(), PIXELS, PIXELS[0].numpy()):
        with pytest.raises(TypeError, match=r"expected an image as uint8 \[C, H, W\]"):
            transform(image, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the corruption is for images of 8 x 6"):
        transform(PIXELS[0, :, :5], 0)
    for index, error in ((-1, ValueError), (0.5, TypeError)):
        with pytest.raises(error, match="expected index as a whole number"):
            transform(PIXELS[0], index)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected epoch as a whole number of at least 0"):
        transform.set_epoch(-1)
    with pytest.raises(TypeError, match="expected a Corruption, got str"):
        RandomBlurCorrupt("paper")  # type: ignore[arg-type]


def test_the_examples() -> None:
    names = {"sk": sk, "torch": torch, **{n: getattr(diffusion, n) for n in diffusion.__all__}}
    done = doctest.testmod(transforms, extraglobs=names)
    assert done.attempted >= 3 and done.failed == 0
