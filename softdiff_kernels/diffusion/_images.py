# SPDX-License-Identifier: Apache-2.0
"""Streams of image batches, checked and cut into pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args

# Elements of a piece. On a CPU so few that what is made of them stays in the caches: the power spectrum of
# 1,000 images of 64 px then takes half the time.
_CHUNK_ELEMENTS = {"cpu": 2**19}
_CHUNK_ELEMENTS_ELSEWHERE = 2**22


def image_size(op: str, value: Any) -> tuple[int, int]:
    """(H, W) as two ints of at least 1."""
    sides = args.listed(value, args.whole)
    if sides is None or len(sides) != 2:
        raise ValueError(f"{op}: expected image_size as (H, W), got {args.shown(value)}")
    height, width = sides
    if not (1 <= height < 2**31 and 1 <= width < 2**31):
        got = f"{args.shown(height)} x {args.shown(width)}"
        raise ValueError(f"{op}: expected image_size of at least 1 x 1 and sides under 2^31, got {got}")
    return height, width


def check_size(op: str, x: Tensor, size: tuple[int, int]) -> None:
    """Checks that images [B, C, H, W] have the size that a corruption was made for."""
    if tuple(x.shape[-2:]) != tuple(size):
        raise ValueError(
            f"{op}: the corruption is for images of {size[0]} x {size[1]}, got {args.describe(x)}"
        )


def decode(x: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1], as `functional.corrupt` decodes them; others as they are."""
    return x.float() / 127.5 - 1.0 if x.dtype == torch.uint8 else x


def chunks(op: str, batches: Iterable[Any]) -> Iterator[Tensor]:
    """float32 images [b, C, H, W] in [-1, 1], in pieces of bounded size, at least one image each.

    batches: an iterable of uint8 (decoded as `x / 127.5 - 1`) or floating-point batches
    [B, C, H, W]; of a tuple or list, as a DataLoader gives, the first entry is taken. Raises
    ValueError or TypeError where one is something else, or of another size than the first.
    """
    if isinstance(batches, Tensor):
        raise TypeError(f"{op}: expected an iterable of batches [B, C, H, W], got a {args.describe(batches)}")
    shape: tuple[int, ...] | None = None
    for index, batch in enumerate(batches):
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        images = images if isinstance(images, Tensor) else torch.as_tensor(images)
        args.image(op, f"batch {index}", images, uint8=True)
        if shape is None:
            shape = tuple(images.shape[1:])
        elif tuple(images.shape[1:]) != shape:
            raise ValueError(
                f"{op}: expected images of one size, got {list(images.shape[1:])} in batch {index} "
                f"after {list(shape)}"
            )
        most = _CHUNK_ELEMENTS.get(images.device.type, _CHUNK_ELEMENTS_ELSEWHERE)
        size = max(1, most // max(1, images[:1].numel()))
        for piece in images.split(size):
            if piece.shape[0]:
                yield decode(piece).float()
