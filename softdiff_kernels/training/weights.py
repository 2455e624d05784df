# SPDX-License-Identifier: Apache-2.0
"""A weights file as a model that is ready to sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..diffusion import Corruption, SoftDenoiser, prior_from_state
from ..errors import UserError, user_errors
from ..memory import is_out_of_memory
from .build import build_model
from .checkpoint import Checkpoint, find, load_checkpoint, numbered, weights_kind
from .config import TrainConfig


@dataclass
class LoadedModel:
    """What a weights file holds, ready to sample: shape is (C, H, W); classes, of a conditional model."""

    denoiser: SoftDenoiser
    prior: Any
    shape: tuple[int, int, int]
    config: TrainConfig
    step: int
    classes: tuple[str, ...] = ()
    digest: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device


def restore(checkpoint: Checkpoint, part: str, path: object, device: torch.device) -> LoadedModel:
    """The model in a checkpoint, with the weights under `part` (`model` or `ema`)."""
    meta = checkpoint.meta
    try:
        with user_errors(f"{path}: "):
            config = TrainConfig.from_dict(meta["config"])
            channels, height, width = meta["shape"]
            corruption = Corruption.from_dict(meta["corruption"])
            prior = prior_from_state(meta["prior"], checkpoint.part("prior"))
            classes = tuple(meta.get("classes", ()))
            model = build_model(config, (channels, height, width), classes=len(classes))
            model.load_state_dict(checkpoint.part(part))
            step = int(meta["step"])
    except (KeyError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        what = f"{type(error).__name__}: {reason}"
        raise UserError(f"{path}: its parts do not fit together ({what})") from error
    denoiser = SoftDenoiser(model, corruption, config.prediction).to(device).eval()
    return LoadedModel(denoiser, prior, (channels, height, width), config, step, classes, checkpoint.digest)


def load_model(path: str, device: torch.device, ema: float | None = None) -> LoadedModel:
    """The averaged model in a weights file, or in the newest one of a run folder (of this decay)."""
    file = _find(path, ema)
    checkpoint = load_checkpoint(file, "weights")
    if ema not in (None, checkpoint.meta.get("ema")):
        raise UserError(f"--ema: expected {checkpoint.meta.get('ema')}, which {file} holds, got {ema}")
    return restore(checkpoint, "model", file, device)


def _find(path: str, ema: float | None) -> Path:
    """The file itself, or the newest in a folder: the first average's, or another's by its decay."""
    if ema is not None and numbered(Path(path), weights_kind(ema)):
        return find(path, weights_kind(ema))
    return find(path, "weights")
