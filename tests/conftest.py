# SPDX-License-Identifier: Apache-2.0
"""Data that several files of tests train on, and what is set up before any of them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import chip_arithmetic
import numpy as np
import pytest
from quick_interpreter import quicken

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
    quicken()
    chip_arithmetic.install()


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty smooth 8 x 8 pictures, so that batches of 6 straddle epochs."""
    noise = np.random.default_rng(0).normal(size=(20, 8, 8))
    smooth = np.cumsum(np.cumsum(noise, axis=1), axis=2)
    scaled = (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, images=scaled.astype(np.uint8))
    return path
