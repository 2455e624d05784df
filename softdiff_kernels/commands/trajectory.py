# SPDX-License-Identifier: Apache-2.0
"""How images come about: x_t from the prior to the sample, as a strip or as an animation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..files import write_atomically
from ..images import save_png, tile

COLUMNS = 10
FRAMES = 48
FRAME_MS, LAST_MS = 60, 2000


def save_trajectory(path: Path, states: Sequence[Tensor]) -> None:
    """Writes uint8 states [B, C, H, W], from the prior's to the last: .png, an image a row and ten even times
    as columns; .gif, at most 48 frames, the last one held for two seconds."""
    shown = COLUMNS if path.suffix == ".png" else FRAMES
    places = torch.linspace(0, len(states) - 1, min(shown, len(states))).round().long().tolist()
    chosen = [states[i] for i in places]
    if path.suffix == ".png":
        save_png(path, tile(torch.stack(chosen, dim=1).flatten(0, 1), len(chosen)))
        return
    frames = [tile(state) for state in chosen]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    buffer = io.BytesIO()
    rest = frames[1:]
    frames[0].save(buffer, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    write_atomically(path, buffer.getvalue(), sync=False)
