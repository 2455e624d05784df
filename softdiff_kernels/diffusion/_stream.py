# SPDX-License-Identifier: Apache-2.0
"""Randomness of an image beyond its noise, from the same key.

An image of d elements uses blocks 0 .. ceil(d / 4) - 1 of its Philox stream for its noise. What else
an image needs (its time, its prior's coefficients) comes from the blocks after them, so one draw
rules everything and no word serves twice.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import _arguments as args
from ..noise import NoiseKey, pack_key, philox4x32

_LOW = 0xFFFFFFFF


def words_after(key: NoiseKey, batch: int, elements: int, count: int, device: torch.device) -> Tensor:
    """`count` words in [0, 2^32) per image, after those of its `elements` normals: int64 [B, count]."""
    ints, rows = pack_key(key, batch, device)
    if rows is None:
        # Filled on the device: copying host numbers there would synchronise.
        seed, stream, draw = (torch.full((1, 1), n, dtype=torch.int64, device=device) for n in ints)
    else:
        seed, stream, draw = (rows[:, j, None] for j in range(3))
    if stream.shape[0] != batch:
        stream = stream + torch.arange(batch, dtype=torch.int64, device=device)[:, None]
    first = -(-elements // 4)
    blocks = torch.arange(first, first + -(-count // 4), dtype=torch.int64, device=device)
    counter = (blocks[None, :] & _LOW, draw & _LOW, stream & _LOW, stream >> 32 & _LOW)
    words = philox4x32(counter, (seed & _LOW, seed >> 32 & _LOW))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)[:, :count]


def uniform_from_words(words: Tensor) -> Tensor:
    """Uniforms in (0, 1), as Box-Muller makes them: ((word >> 8) + 1/2) 2^-24. float32 is exact."""
    return ((words >> 8).double() + 0.5).mul(2.0**-24).float()


def uniforms(key: NoiseKey, batch: int, device: torch.device) -> Tensor:
    """One uniform in (0, 1) an image, of the first word of its draw: float32 [batch]."""
    return uniform_from_words(words_after(key, batch, 0, 1, device)[:, 0])


def fresh_key(stream: int | Tensor = 0) -> NoiseKey:
    """A key from torch's default CPU generator, so that `torch.manual_seed` rules it."""
    return NoiseKey(int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)), stream)


def for_images(key: NoiseKey | None, images: int | Tensor) -> tuple[NoiseKey, int]:
    """A key and a batch size, of a number of images or of their streams (int64 [B]); at draw 0."""
    key = fresh_key() if key is None else key
    if isinstance(images, Tensor):
        if images.dtype != torch.int64 or images.dim() != 1:
            raise TypeError(
                f"sample: expected the images as a number or as streams, an int64 tensor [B], got "
                f"{images.dtype} of shape {list(images.shape)}"
            )
        return replace(key, stream=images, draw=0), images.shape[0]
    count = args.whole(images)
    if count is None or not 0 <= count < 2**31:
        wanted = "an int of at least 0" + (" and under 2^31" if count and count > 0 else "")
        raise ValueError(f"sample: expected the number of images as {wanted}, got {args.shown(images)}")
    return key.at(0), count
