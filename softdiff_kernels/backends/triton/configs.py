# SPDX-License-Identifier: Apache-2.0
"""The static table of configurations, and what it says for a call: which form, tile, warps and stages.

`configs.json` has one entry for each architecture, op, precision ("split": all digits of float32; "single":
float16's) and size. `tune.py` regenerates it on a GPU and records which; until then, `aot.py --choose` has
picked, from machine code alone, the entry with no stack and the fewest instructions for a pixel.
SOFTDIFF_TRITON_CONFIGS names another file, a tuner's, say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

TABLE = Path(os.environ.get("SOFTDIFF_TRITON_CONFIGS") or Path(__file__).with_name("configs.json"))
OPS = ("corrupt", "step", "soft_score_loss", "spectral_loss", "dct2", "spectral_mix")
# Planes up to this many pixels a side, padded to powers of two, are one tile. `filter_staged` takes others.
LARGEST_TILE = 64
TILE = 64


@dataclass(frozen=True)
class Config:
    """How one kernel is compiled; bk, a step's depth in `staged.product`, is 0 for a plane in one tile."""

    warps: int
    stages: int
    bk: int = 0


@dataclass(frozen=True)
class Plan:
    """What a call of given size runs: sizes (H, W and both padded) and the kernel's configuration."""

    sizes: tuple[int, int, int, int]
    config: Config

    @property
    def staged(self) -> bool:
        return self.config.bk != 0


@lru_cache(maxsize=64)  # a name for each device
def architecture(device: torch.device) -> str:
    """The table's name for a device: "sm_90" and so on, "amd", or "interpreter"."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return "amd"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def nearest(name: str, names: list[str]) -> str:
    """The table's own name, or the newest NVIDIA architecture in it that is not newer."""
    if name in names:
        return name
    if not name.startswith("sm_"):
        return "sm_80"
    older = [k for k in names if k.startswith("sm_") and int(k[3:]) <= int(name[3:])]
    return max(older, key=lambda k: int(k[3:])) if older else "sm_80"


_override: Config | None = None


@contextmanager
def overridden(config: Config | None) -> Iterator[None]:
    """Inside, every plan has `config`, unless None, instead of the table's."""
    global _override
    before, _override = _override, config if config is not None else _override
    plan.cache_clear()
    try:
        yield
    finally:
        _override = before
        plan.cache_clear()


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return json.loads(TABLE.read_text())["architectures"]


def padded(n: int) -> int:
    """A tile's side for n pixels: a power of two, which tl.dot wants to be at least 16."""
    return max(16, 1 << (n - 1).bit_length())


def sizes_of(height: int, width: int) -> tuple[int, int, int, int]:
    """(H, W, padded H, padded W)."""
    if max(height, width) <= LARGEST_TILE:
        return height, width, padded(height), padded(width)
    return height, width, -(-height // TILE) * TILE, -(-width // TILE) * TILE


def entry_name(op: str, split: bool, sizes: tuple[int, int, int, int]) -> str:
    """The table's key for an op, a precision and sizes."""
    form = str(sizes[2] * sizes[3]) if max(sizes[:2]) <= LARGEST_TILE else "staged"
    return f"{op}/{'split' if split else 'single'}/{form}"


@lru_cache(maxsize=4096)  # seven numbers: some 700 bytes an entry with its key, 3 MiB in all
def plan(op: str, height: int, width: int, arch: str, split: bool) -> Plan:
    """What the table says for an op on images [.., height, width]."""
    sizes = sizes_of(height, width)
    if _override is not None:
        return Plan(sizes, _override)
    entries = _table()[nearest(arch, list(_table()))]
    return Plan(sizes, Config(**entries[entry_name(op, split, sizes)]))
