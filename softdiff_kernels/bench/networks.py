# SPDX-License-Identifier: Apache-2.0
"""The networks of the end-to-end timings: the trainer's U-Net in three sizes, inside a `Trainer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..diffusion import Corruption
from ..errors import need
from .pictures import SEED, natural_images

if TYPE_CHECKING:
    from ..training.trainer import Trainer

# The deviation of the last layer's weights, that of a layer some way into training. The trainer starts it at
# 0, and all gradients before it would be zeros, which some machines multiply faster than other numbers.
_LAST_STD = 0.01


@dataclass(frozen=True)
class Network:
    """A U-Net of the trainer's class by its options.

    origin: what of it is the paper's, and what is this library's choice.
    """

    name: str
    width: int
    blocks: int
    multipliers: tuple[int, ...]
    origin: str


NETWORKS = {
    network.name: network
    for network in (
        Network("small", 32, 1, (), "ours: a U-Net for a few cores, half the width and depth of the default"),
        Network("medium", 64, 2, (), "ours: the trainer's default"),
        Network(
            "paper",
            128,
            4,
            (1, 2, 2, 2),
            "the paper's (NCSN++): width, multipliers, 4 residual blocks a level, attention at 16 px; ours: "
            "diffusers' blocks, attention below 16 px too, plain down- and upsampling",
        ),
    )
}

# Images a step. On a CPU so few that a step of the largest takes seconds; on a GPU so many that it is busy.
_BATCHES = {
    "cpu": {
        "small": {32: 8, 64: 4, 128: 2},
        "medium": {32: 4, 64: 2, 128: 1},
        "paper": {32: 1, 64: 1, 128: 1},
    },
    "cuda": {
        "small": {32: 128, 64: 128, 128: 32},
        "medium": {32: 128, 64: 64, 128: 16},
        "paper": {32: 128, 64: 32, 128: 8},
    },
}


def batch_of(network: str, size: int, device: torch.device) -> int:
    """Images a step for a network at a size: the table's for the nearest size that it has."""
    table = _BATCHES["cuda" if device.type == "cuda" else "cpu"][network]
    return table[min(table, key=lambda known: abs(known - size))]


def make_trainer(network: Network, size: int, batch: int, device: torch.device) -> Trainer:
    """A trainer of the network on synthetic images, with the paper's ranges of blur and noise.

    Raises UserError where a package that training needs is missing.
    """
    for package in ("diffusers", "safetensors"):
        need(package, "timing whole steps")
    from ..data.image_set import ImageSet
    from ..training.config import TrainConfig
    from ..training.trainer import Trainer

    config = TrainConfig(
        data="synthetic",
        batch=batch,
        width=network.width,
        blocks=network.blocks,
        multipliers=network.multipliers,
        schedule="paper",
    )
    images = ImageSet(natural_images(max(2 * batch, 16), size), "synthetic")
    trainer = Trainer(config, images, Corruption.paper((size, size)), None, device)
    generator = torch.Generator(device).manual_seed(SEED)
    unets: tuple[Any, ...] = (trainer.model, trainer.averages[0].module)
    for unet in unets:
        nn.init.normal_(unet.net.conv_out.weight, std=_LAST_STD, generator=generator)
    return trainer


def parameters(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(p.numel() for p in model.parameters())
