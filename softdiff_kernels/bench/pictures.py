# SPDX-License-Identifier: Apache-2.0
"""Synthetic photographs: what data sets and batches are made of where none may be downloaded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CHANNELS = 3
SEED = 20220911


def natural_images(count: int, size: int, seed: int = SEED) -> Tensor:
    """uint8 [count, 3, size, size] with the 1/f amplitudes of photographs, random phases."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1.0 / size
    white = generator.standard_normal((count, CHANNELS, size, size), dtype=np.float32)
    shaped = np.fft.irfft2(np.fft.rfft2(white) / frequency, s=(size, size))
    spread = shaped.std(axis=(1, 2, 3), keepdims=True)
    return torch.from_numpy(np.clip(127.5 + 55.0 * shaped / spread, 0, 255).astype(np.uint8))
