# SPDX-License-Identifier: Apache-2.0
"""The noise stream: standard normals as a pure function of a key, equal on every backend.

Philox4x32-10 (Salmon et al. 2011) under counter (block, draw, stream_low, stream_high) and the
64-bit seed, then Box-Muller. Element e of an image, in C, H, W order, is word e % 4 of block e // 4.
So an image's noise depends neither on its batch nor on the device.

This is the reference in plain PyTorch, written for clarity: integers in int64, normals in float64. It also
makes the random numbers that an image needs beside its noise, from the words after those of its noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import _arguments as args

_MUL0, _MUL1 = 0xD2511F53, 0xCD9E8D57
_WEYL0, _WEYL1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_LIMITS = {"seed": (-(2**63), 2**64), "stream": (-(2**63), 2**64), "draw": (0, 2**32)}


@dataclass(frozen=True)
class NoiseKey:
    """Identifies one use of noise: the same key gives the same noise on every backend and device.

    Each is a whole number of Python or numpy, or an int64 tensor of shape [], [1] or [B]. In a CUDA graph use
    tensors on the device: a replay reads their values at that time. Numbers out of range raise ValueError,
    and so do draws out of range in a CPU tensor. On a device draws are not checked, and only their lowest
    32 bits are used.

    Attributes:
        seed: 64-bit number of the whole run.
        stream: 64-bit number of the image. Sample b of a batch uses `stream + b` for a number (or a
            tensor with one element), and `stream[b]` for a tensor [B].
        draw: 32-bit number of the use of that image's noise, such as a sampler's step.

    Examples:
        >>> key = sk.NoiseKey(seed=7, stream=100)  # images 100, 101, ... of run 7
        >>> key.at(3)
        NoiseKey(seed=7, stream=100, draw=3)
    """

    seed: int | Tensor
    stream: int | Tensor = 0
    draw: int | Tensor = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, Tensor):
                if value.dtype != torch.int64 or value.dim() > 1:
                    raise TypeError(
                        f"NoiseKey: expected {name} as an int or an int64 tensor of shape [] or [B], "
                        f"got {value.dtype} of shape {list(value.shape)}"
                    )
                if name == "draw":
                    _check_draws("NoiseKey: expected draw", value)
                continue
            number = args.whole(value)
            if number is None:
                raise TypeError(
                    f"NoiseKey: expected {name} as an int or an int64 tensor, got {args.describe(value)}"
                )
            if isinstance(number, int) and not low <= number < high:
                raise ValueError(f"NoiseKey: expected {name} in [{low}, {high}), got {args.shown(number)}")
            if number is not value:
                object.__setattr__(self, name, number)

    def at(self, draw: int | Tensor) -> NoiseKey:
        """The same key at another draw."""
        return replace(self, draw=draw)


def _check_draws(expected: str, draw: Tensor) -> None:
    """Refuses draws of more than 32 bits, which the generator would truncate, where values can be read."""
    values = args.seen(draw)
    if values is not None and values.numel():
        low, high = (values.item(),) * 2 if values.numel() == 1 else (end.item() for end in values.aminmax())
        if low < 0 or high > _LOW:
            raise ValueError(f"{expected} in [0, {_LIMITS['draw'][1]}), got {low if low < 0 else high}")


def signed64(value: int) -> int:
    """The int64 with the same 64 bits as `value`."""
    return value - 2**64 if value >= 2**63 else value


def pack_key(key: NoiseKey | None, batch: int, device: torch.device) -> tuple[list[int], Tensor | None]:
    """A key in the form that the ops take: three host integers, or an int64 tensor [1, 3] or [B, 3].

    With one row, sample b uses the row's stream + b. `None` draws a fresh key from torch's default generator,
    on the device, without synchronising.
    """
    if key is None:
        return [], torch.randint(-(2**63), 2**63 - 1, (1, 3), dtype=torch.int64, device=device)
    parts = (key.seed, key.stream, key.draw)
    if not any(isinstance(p, Tensor) for p in parts):
        return [signed64(p) if isinstance(p, int) else p for p in parts], None  # type: ignore[misc]
    columns = []
    for name, part in zip(("seed", "stream", "draw"), parts, strict=True):
        if not isinstance(part, Tensor):
            part = torch.full((1,), signed64(part), dtype=torch.int64, device=device)
        elif name == "draw":  # again: the tensor may have changed since the key was made
            _check_draws("key.draw: expected numbers", part)
        if part.device != device:
            raise ValueError(f"key.{name}: expected a tensor on {device}, got one on {part.device}")
        part = part if part.dim() else part.unsqueeze(0)
        if not args.one_or(batch, part.shape[0]):
            raise ValueError(f"key.{name}: expected shape [], [1] or [{batch}], got {list(part.shape)}")
        columns.append(part)
    rows = batch if any(c.shape[0] != 1 for c in columns) else 1
    if rows != 1 and columns[1].shape[0] == 1:
        columns[1] = columns[1] + torch.arange(batch, dtype=torch.int64, device=device)
    return [], torch.stack([c.expand(rows) for c in columns], dim=1)


def key_rows(ints: Sequence[int], rows: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """The int64 [B, 3] table of (seed, stream, draw) of a packed key."""
    if rows is None:
        rows = torch.tensor([list(ints)], dtype=torch.int64, device=device)
    if rows.shape[0] == 1 and batch != 1:
        offset = torch.arange(batch, dtype=torch.int64, device=device)
        zero = torch.zeros_like(offset)
        rows = rows + torch.stack([zero, offset, zero], dim=1)
    return rows


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32: four counter words and two key words, int64 tensors in [0, 2^32).

    Returns the four output words, broadcast over the inputs' shapes. Salmon et al. 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A product of two 32-bit words wraps in int64, but keeps its 64 bits.
        p0, p1 = c0 * _MUL0, c2 * _MUL1
        c0, c1, c2, c3 = (p1 >> 32 & _LOW) ^ c1 ^ k0, p1 & _LOW, (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL0) & _LOW, (k1 + _WEYL1) & _LOW
    return c0, c1, c2, c3


def philox_words(rows: Tensor, count: int) -> Tensor:
    """The first `count` words of each image's stream: int64 [B, count], for key rows [B, 3]."""
    seed, stream, draw = (rows[:, j, None] for j in range(3))
    return _words(seed, stream, draw, 0, count)


def _words(seed: Tensor, stream: Tensor, draw: Tensor, first_block: int, count: int) -> Tensor:
    """`count` words from block `first_block` on: int64 [B, count]. seed, stream, draw: [B, 1] or [1, 1]."""
    last_block = first_block + (count + 3) // 4
    blocks = torch.arange(first_block, last_block, dtype=torch.int64, device=stream.device)
    counter = (blocks[None, :] & _LOW, draw & _LOW, stream & _LOW, stream >> 32 & _LOW)
    words = philox4x32(counter, (seed & _LOW, seed >> 32 & _LOW))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)[:, :count]


def _uniform64(words: Tensor) -> Tensor:
    return ((words >> 8).double() + 0.5) * 2.0**-24


def normals_from_words(words: Tensor) -> Tensor:
    """Box-Muller over pairs of neighbouring words: int64 [..., 2 n] to float64 [..., 2 n].

    u = ((r >> 8) + 1/2) 2^-24, theta = int32(q) 2 pi / 2^32, z = sqrt(-2 ln u) (cos, sin)(theta).
    """
    r, q = words[..., 0::2], words[..., 1::2]
    u = _uniform64(r)
    theta = torch.where(q >= 2**31, q - 2**32, q).double() * (2 * math.pi / 2**32)
    radius = torch.sqrt(-2 * torch.log(u))
    return torch.stack((radius * torch.cos(theta), radius * torch.sin(theta)), dim=-1).flatten(-2)


def philox_normal(shape: Sequence[int], rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard normals of `shape` = [B, ...] for key rows [B, 3], computed in float64."""
    batch, count = shape[0], math.prod(shape[1:])
    words = philox_words(rows, -(-count // 4) * 4)
    return normals_from_words(words)[:, :count].reshape(batch, *shape[1:]).to(dtype)


# What an image needs beside its noise (its t, its prior's coefficients) comes from the same draw, so that one
# key determines all of it. An image of d elements uses blocks 0 .. ceil(d / 4) - 1 for its noise; everything
# else uses the blocks after them, so that no word is used twice.


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
    return _words(seed, stream, draw, -(-elements // 4), count)


def uniform_from_words(words: Tensor) -> Tensor:
    """Uniforms in (0, 1), as Box-Muller makes them: ((word >> 8) + 1/2) 2^-24. float32 holds them exactly."""
    return _uniform64(words).float()


def uniforms(key: NoiseKey, batch: int, device: torch.device) -> Tensor:
    """One uniform in (0, 1) per image, from the first word of its draw: float32 [batch]."""
    return uniform_from_words(words_after(key, batch, 0, 1, device)[:, 0])


def fresh_key() -> NoiseKey:
    """A key from torch's default CPU generator, so that `torch.manual_seed` determines it."""
    return NoiseKey(int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)))
