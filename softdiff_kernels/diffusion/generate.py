# SPDX-License-Identifier: Apache-2.0
"""Images from a denoiser: seed k gives the same image at any batch size and among any others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..images import to_uint8
from ..noise import NoiseKey
from . import SAMPLERS, Guided, SoftDenoiser, time_steps

SAMPLING_SEED = 0x50F7D1FF
"""Keeps the noise of sampled images apart from the noise of the training images, whose streams
also count from 0."""


@torch.no_grad()
def generate(
    denoiser: SoftDenoiser,
    prior: Any,
    seeds: Sequence[int],
    *,
    sampler: str = "momentum",
    steps: int = 64,
    ts: Tensor | None = None,
    batch: int = 64,
    device: torch.device,
    labels: Sequence[int] | None = None,
    guidance: float = 1.0,
    options: Mapping[str, Any] | None = None,
    bar: bool = False,
    path: list[Tensor] | None = None,
    each: Callable[[], None] | None = None,
) -> Tensor:
    """uint8 [N, C, H, W]: one image a seed.

    Image noise comes from NoiseKey(SAMPLING_SEED, stream=seed): draw 0 for the prior, draw i for step i.
    ts: the sampler's times, in place of `steps` even ones. labels: a class each, of a conditional denoiser;
    guidance: how much it counts. options: of the sampler. bar: draw a progress bar for each batch. path: gets
    x_t before each step, of the first batch, and at last the images: uint8 [batch, C, H, W] each.
    each: called at each step; what it raises ends the drawing.
    """
    ts = time_steps(steps) if ts is None else ts
    made = []
    if not seeds:  # as of a process that is left without any
        shape = prior.sample(0, key=NoiseKey(SAMPLING_SEED), device=device).shape
        return torch.empty(shape, dtype=torch.uint8)
    for start in range(0, len(seeds), batch):
        streams = torch.tensor(seeds[start : start + batch], dtype=torch.int64, device=device)
        key = NoiseKey(SAMPLING_SEED, stream=streams)
        x = prior.sample(len(streams), key=key, device=device, dtype=torch.float32)
        model: Any = denoiser
        if labels is not None:
            chosen = torch.tensor(labels[start : start + batch], dtype=torch.int64, device=device)
            model = Guided(denoiser, chosen, guidance)
        callback = partial(_note, path if start == 0 else None, each)
        x = SAMPLERS[sampler](model, x, ts, disable=not bar, key=key, callback=callback, **(options or {}))
        made.append(to_uint8(x))
    if path is not None:
        path.append(made[0])
    return torch.cat(made)


def _note(path: list[Tensor] | None, each: Callable[[], None] | None, at: Mapping[str, Any]) -> None:
    if each is not None:
        each()
    if path is not None:
        path.append(to_uint8(at["x"]))
