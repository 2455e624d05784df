# SPDX-License-Identifier: Apache-2.0
"""Loads a weights file as a model that is ready to sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import load_images
from ..diffusion import PowerSpectrum, Prior, SoftDenoiser, generate
from ..errors import UserError
from .build import build_model, fit_prior, saved_process, saved_spectrum
from .checkpoint import Checkpoint, find, fitting, load_checkpoint, numbered, weights_kind
from .config import TrainConfig


@dataclass
class LoadedModel:
    """The content of a weights file. shape: (C, H, W); classes: the names, for a conditional model; file:
    its path, if it was read from one; spectrum: that of the training images, if the file has it."""

    denoiser: SoftDenoiser
    prior: Prior
    shape: tuple[int, int, int]
    config: TrainConfig
    step: int
    classes: tuple[str, ...] = ()
    digest: str | None = None
    file: str = ""
    spectrum: PowerSpectrum | None = None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.denoiser.parameters()).device

    def fit_prior(self, name: str, data: str) -> Prior:
        """Another prior (a name in PRIORS), fitted to the images that --data names."""
        images = load_images(data, self.config.size)
        if images.shape != self.shape:
            channels = self.shape[0]
            advice = f"; `softdiff dataset --channels {channels}` converts them"
            raise UserError(
                f"--data: expected images of {list(self.shape)}, got {list(images.shape)}"
                f"{advice if images.shape[0] != channels else ''}"
            )
        return fit_prior(name, images, self.denoiser.corruption)

    def generate(self, seeds: Sequence[int], prior: Prior | None = None, **options: Any) -> Tensor:
        """Images, one per seed: uint8 [N, C, H, W]. options: as in `diffusion.generate`, but the run's
        own number of steps where none is given. prior: instead of the one in the file."""
        start = self.prior if prior is None else prior
        options = {"steps": self.config.sample_steps, **options}
        return generate(self.denoiser, start, seeds, **options)


def restore(checkpoint: Checkpoint, part: str, path: object, device: torch.device) -> LoadedModel:
    """The model in a checkpoint, with the weights in `part` (`model` or `ema`)."""
    meta = checkpoint.meta
    with fitting(path, "together"):
        config = TrainConfig.from_dict(meta["config"])
        channels, height, width = meta["shape"]
        corruption, prior = saved_process(checkpoint)
        classes = tuple(meta.get("classes", ()))
        model = build_model(config, (channels, height, width), classes=len(classes))
        model.load_state_dict(checkpoint.part(part))
        step = int(meta["step"])
        denoiser = SoftDenoiser(model, corruption, config.prediction, config.weight, config.loss)
        if "edm" in (config.prediction, config.weight):
            denoiser.data_std = float(meta["data_std"])
    denoiser = denoiser.to(device).eval()
    shape = (channels, height, width)
    model_of = LoadedModel(denoiser, prior, shape, config, step, classes, checkpoint.digest)
    model_of.spectrum = saved_spectrum(checkpoint)
    return model_of


def load_model(path: str, device: torch.device, ema: float | None = None) -> LoadedModel:
    """The averaged model in a weights file, or in the newest weights file of a run folder (with this
    decay)."""
    file = _find(path, ema)
    checkpoint = load_checkpoint(file, "weights")
    if ema not in (None, checkpoint.meta.get("ema")):
        raise UserError(f"--ema: expected {checkpoint.meta.get('ema')}, which {file} contains, got {ema}")
    model = restore(checkpoint, "model", file, device)
    model.file = str(file)
    return model


def _find(path: str, ema: float | None) -> Path:
    """The file itself, or the newest in a folder: that of the first average, or that of another by its
    decay."""
    if ema is not None and numbered(Path(path), weights_kind(ema)):
        return find(path, weights_kind(ema))
    return find(path, "weights")
