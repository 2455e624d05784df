# SPDX-License-Identifier: Apache-2.0
"""The trainer's network: diffusers' U-Net, fitted to the data's channels and size."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Corruption, PowerSpectrum
from ..errors import UserError, need
from ..spectrum import heat_gain
from .config import TrainConfig

TIME_SCALE = 1000.0
SMALLEST = 4
ATTENTION_UP_TO = 16
SCALE_NODES = 257


def default_multipliers(height: int, width: int) -> tuple[int, ...]:
    """1 2 2 2, cut so that the coarsest level keeps at least 4 pixels a side."""
    levels = 1 + int(math.log2(max(1, min(height, width) // SMALLEST)))
    return (1, 2, 2, 2)[: max(1, min(levels, 4))]


# diffusers' names of the down and the up block, without and with attention.
BLOCKS = {
    "ddpm": (("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")),
    "ncsnpp": (("SkipDownBlock2D", "SkipUpBlock2D"), ("AttnSkipDownBlock2D", "AttnSkipUpBlock2D")),
}


class UNet(nn.Module):
    """`f(x, t, class_labels) -> [B, C, H, W]` for images of any size, t in [0, 1].

    The image is padded at its lower and right edge, by repeating the last row and column, to what
    the levels divide, and cut back after. patch x patch pixels go in, and come out, as channels of one. t
    goes in as 1000 t: the sine embedding's wavelengths are made for 0 to 1000, and would hardly tell two t
    in [0, 1] apart.

    What the last layer gives is multiplied by `scale`, float32 [257], linear in t between its nodes:
    the deviation of what is to be predicted. A residual x_0 - x_t grows sixtyfold from t = 0 to 1, and
    without it the network would spend its training on learning that. What goes in is divided by
    `input_scale`, the deviation of x_t. The last layer starts at 0.

    network: "ddpm", or "ncsnpp": the progressive, residual blocks of Song et al. 2021 at 1 / sqrt(2).
    classes: of a conditional network; label `classes`, also where no labels are given, is "any".
    """

    scale: Tensor
    input_scale: Tensor

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        patch: int = 1,
        scale: Tensor | None = None,
        input_scale: Tensor | None = None,
        *,
        network: str = "ddpm",
        dropout: float = 0.0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        unet_class = need("diffusers.models.unets.unet_2d", "the U-Net").UNet2DModel
        size = (-(-size[0] // patch), -(-size[1] // patch))
        multipliers = multipliers or default_multipliers(*size)
        self.patch = patch
        self.stride = patch * 2 ** (len(multipliers) - 1)
        divisor = 32 if network == "ncsnpp" else 4  # NCSN++'s norms have up to 32 groups
        if width % divisor:
            raise UserError(f"--width: expected a multiple of {divisor}, got {width}")
        if network == "ncsnpp" and (channels, patch) != (3, 1):
            got = f"{channels} channels and --patch {patch}"
            raise UserError(
                f"--network ncsnpp: expected 3 channels and no patches, as diffusers' blocks do, got {got}"
            )
        sides = [max(size) / 2**i for i in range(len(multipliers))]
        attends = [i > 0 and side <= ATTENTION_UP_TO for i, side in enumerate(sides)]
        form: dict[str, Any] = {"norm_num_groups": math.gcd(8, width)}
        if network == "ncsnpp":
            # As in Song et al., attention at one size alone; their groups are a quarter of the channels.
            first = next((i for i, attend in enumerate(attends) if attend), None)
            attends = [i == first for i in range(len(attends))]
            form = {"norm_num_groups": None, "norm_eps": 1e-6, "mid_block_scale_factor": math.sqrt(2)}
        kinds = [BLOCKS[network][int(attend)] for attend in attends]
        self.classes = classes
        self.net = unet_class(
            in_channels=channels * patch**2,
            out_channels=channels * patch**2,
            layers_per_block=blocks,
            block_out_channels=tuple(width * m for m in multipliers),
            down_block_types=tuple(down for down, _ in kinds),
            up_block_types=tuple(up for _, up in reversed(kinds)),
            attention_head_dim=None,
            # Added before a norm, as by default, t would vanish where a group has one channel.
            resnet_time_scale_shift="scale_shift",
            dropout=dropout,
            num_class_embeds=classes + 1 if classes else None,
            **form,
        )
        nn.init.zeros_(self.net.conv_out.weight)
        nn.init.zeros_(self.net.conv_out.bias)
        self.register_buffer("scale", torch.ones(SCALE_NODES) if scale is None else scale)
        self.register_buffer("input_scale", torch.ones(SCALE_NODES) if input_scale is None else input_scale)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W]; t: [B]; class_labels: int64 [B], of a conditional network alone."""
        if self.classes and class_labels is None:
            class_labels = torch.full_like(t, self.classes, dtype=torch.int64)
        height, width = x.shape[-2:]
        below, right = -height % self.stride, -width % self.stride
        x = x / _at(self.input_scale, t).to(x.dtype)
        padded = F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x
        patches = F.pixel_unshuffle(padded, self.patch)
        out: Tensor = self.net(patches, t * TIME_SCALE, class_labels=class_labels).sample
        return F.pixel_shuffle(out, self.patch)[..., :height, :width] * _at(self.scale, t).to(out.dtype)


def _at(nodes: Tensor, t: Tensor) -> Tensor:
    """Linear between even nodes over [0, 1]: [B, 1, 1, 1] of t [B]."""
    place = t.float().clamp(0, 1) * (SCALE_NODES - 1)
    left = place.long().clamp(max=SCALE_NODES - 2)
    return torch.lerp(nodes[left], nodes[left + 1], place - left).view(-1, 1, 1, 1)


def scales(spectrum: PowerSpectrum, corruption: Corruption) -> tuple[Tensor, Tensor]:
    """Root mean squares of x_0 - x_t and of x_t over images and elements at 257 even times, float32 [257].

    `mean_k (1 - m_t(k))^2 P_k + noise_std(t)^2` and `mean_k m_t(k)^2 P_k + noise_std(t)^2`, by Parseval.
    """
    t = torch.linspace(0, 1, SCALE_NODES, dtype=torch.float64)
    gain = heat_gain(corruption.blur_std(t), *spectrum.image_size)
    noise = corruption.noise_std(t).square()
    lost = ((1 - gain).square() * spectrum.power).mean(dim=(1, 2, 3))
    left = (gain.square() * spectrum.power).mean(dim=(1, 2, 3))
    return (lost + noise).sqrt().float(), (left + noise).sqrt().float()


def build_model(
    config: TrainConfig,
    shape: tuple[int, int, int],
    scale: Tensor | None = None,
    input_scale: Tensor | None = None,
    classes: int = 0,
) -> UNet:
    """The network for images of shape (C, H, W), with weights drawn from the run's seed alone; torch's
    global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return UNet(
            shape[0],
            shape[1:],
            config.width,
            config.multipliers,
            config.blocks,
            config.patch,
            scale,
            input_scale,
            network=config.network,
            dropout=config.dropout,
            classes=classes,
        )
