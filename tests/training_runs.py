# SPDX-License-Identifier: Apache-2.0
"""Runs of seconds for the trainer's tests, and what they left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from softdiff_kernels.data import load_images
from softdiff_kernels.diffusion import BlurCorruption, GaussianDCTPrior
from softdiff_kernels.training.checkpoint import load_checkpoint
from softdiff_kernels.training.config import TrainConfig
from softdiff_kernels.training.trainer import Trainer

CPU = torch.device("cpu")


def small(data: Path, outdir: Path, **changes: Any) -> TrainConfig:
    """A run of seconds: a network of width 8, a few steps, no grids."""
    fields: dict[str, Any] = {
        **{"width": 8, "blocks": 1, "batch": 6, "steps": 6, "warmup": 2, "lr": 1e-3, "nodes": 8},
        **{"save_every": 3, "log_every": 1, "sample_count": 0, "schedule": "paper", "flip": True},
    }
    return TrainConfig(data=str(data), outdir=str(outdir), progress=False, **{**fields, **changes})


def tensors(folder: Path, step: int, kind: str = "state") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / f"{kind}-{step:08d}.safetensors", kind).tensors


def losses(folder: Path, name: str = "stats.jsonl") -> list[tuple[int, float]]:
    lines = (folder / name).read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def make_trainer(data: Path, **changes: Any) -> Trainer:
    config = small(data, Path("unused"), **changes)
    images = load_images(str(data))
    corruption = BlurCorruption.paper((8, 8))
    return Trainer(config, images, corruption, GaussianDCTPrior.fit(images.batches(), corruption), CPU)
