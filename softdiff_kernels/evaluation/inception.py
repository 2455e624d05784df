# SPDX-License-Identifier: Apache-2.0
"""Inception's features, from torch-fidelity's network and the user's weights file. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, need
from ..memory import is_out_of_memory

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
RELEASE = "release v0.2.0 of github.com/toshas/torch-fidelity"
"""Where the published file comes from."""
PUBLISHED = INCEPTION_FILE.removesuffix(".pth").rpartition("-")[2]
"""The published file's SHA-256 starts with this, as its name does."""
LAYER = "2048"
RESIZE = "to 299 x 299 inside the extractor, bilinear as TensorFlow 1 did it"


class Inception:
    """uint8 images to float32 features [N, 2048]. published: whether the weights are those that define FID
    (Heusel et al. 2017), as converted by torch-fidelity. UserError if torch-fidelity or the file cannot be
    used."""

    def __init__(self, path: str | Path, device: torch.device) -> None:
        module: Any = _extractor_module()
        self.path, self.device = Path(path), device
        _check_weights(self.path)
        try:
            network = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", [LAYER], feature_extractor_weights_path=str(path)
            )
        except (RuntimeError, TypeError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: expected {INCEPTION_FILE}, got other tensors ({reason})") from error
        self._network = network.to(device)
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()
        self.published = self.sha256.startswith(PUBLISHED)

    @torch.no_grad()
    def features(self, pixels: Tensor, say: Callable[[str], None], batch: int = 50) -> Tensor:
        """float32 [N, 2048] of uint8 [N, C, H, W]; grey is repeated to RGB. UserError for alpha."""
        check_channels(pixels.shape[1])
        parts = []
        for start in range(0, len(pixels), batch):
            part = pixels[start : start + batch].to(self.device).expand(-1, 3, -1, -1)
            parts.append(self._network(part.contiguous())[0].float().cpu())
            done = start + len(part)
            if done % 1000 == 0:
                say(f"Inception features of {done}/{len(pixels)} images")
        return torch.cat(parts)

    def describe(self) -> str:
        """A description of where the features come from."""
        weights = (
            "" if self.published else ", not the published weights: not comparable with any FID of others"
        )
        return f"torch-fidelity's Inception, {self.path.name} (sha256 {self.sha256[:16]}{weights})"


def check_channels(channels: int) -> None:
    """Raises UserError for images that Inception cannot take."""
    if channels not in (1, 3):
        raise UserError(
            "fid and kid take grey or RGB images; put images with alpha on a background first, got "
            f"{channels} channels; --channels 3 lays them over black"
        )


def _extractor_module() -> Any:
    purpose = "--metric fid or kid"
    try:
        return need("torch_fidelity.feature_extractor_inceptionv3", purpose, extra="fid")
    except RuntimeError as error:  # torchvision raises it if it was built for another torch
        reason = str(error).splitlines()[0]
        raise UserError(f"{purpose} needs torch_fidelity, which fails to import here: {reason}") from error


def _check_weights(path: Path) -> None:
    """torch-fidelity unpickles the file, so this refuses anything that could run code."""
    if not path.is_file():
        raise UserError(f"{path}: no such file (expected {INCEPTION_FILE})")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(
            f"{path}: expected {INCEPTION_FILE}, got a file without tensors ({reason})"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise UserError(f"{path}: expected {INCEPTION_FILE}, got a file of something else")
