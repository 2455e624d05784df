# SPDX-License-Identifier: Apache-2.0
"""The trainer's network: diffusers' U-Net, fitted to the data's channels and size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Corruption, PowerSpectrum
from ..spectrum import heat_gain
from .config import TrainConfig
from .errors import UserError, need

TIME_SCALE = 1000.0
SMALLEST = 4
ATTENTION_UP_TO = 16
SCALE_NODES = 257


def default_multipliers(height: int, width: int) -> tuple[int, ...]:
    """1 2 2 2, cut so that the coarsest level keeps at least 4 pixels a side."""
    levels = 1 + int(math.log2(max(1, min(height, width) // SMALLEST)))
    return (1, 2, 2, 2)[: max(1, min(levels, 4))]


class UNet(nn.Module):
    """`f(x, t) -> [B, C, H, W]` for images of any size, t in [0, 1].

    The image is padded at its lower and right edge, by repeating the last row and column, to what
    the levels divide, and cut back after. t goes in as 1000 t: the sine embedding's wavelengths are
    made for 0 to 1000, and would hardly tell two t in [0, 1] apart.

    What the last layer gives is multiplied by `scale`, float32 [257], linear in t between its nodes:
    the deviation of what is to be predicted. A residual x_0 - x_t grows sixtyfold from t = 0 to 1, and
    without it the network would spend its training on learning that. The last layer starts at 0.
    """

    scale: Tensor

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        unet_class = need("diffusers", "the U-Net").UNet2DModel
        multipliers = multipliers or default_multipliers(*size)
        self.stride = 2 ** (len(multipliers) - 1)
        if width % 4:
            raise UserError(f"--width: expected a multiple of 4, got {width}")
        side = max(size)
        attends = [i > 0 and side / 2**i <= ATTENTION_UP_TO for i in range(len(multipliers))]
        self.net = unet_class(
            in_channels=channels,
            out_channels=channels,
            layers_per_block=blocks,
            block_out_channels=tuple(width * m for m in multipliers),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            norm_num_groups=math.gcd(8, width),
            attention_head_dim=None,
            # Added before a norm, as by default, t would vanish where a group has one channel.
            resnet_time_scale_shift="scale_shift",
        )
        nn.init.zeros_(self.net.conv_out.weight)
        nn.init.zeros_(self.net.conv_out.bias)
        self.register_buffer("scale", torch.ones(SCALE_NODES) if scale is None else scale)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: [B, C, H, W]; t: [B]."""
        height, width = x.shape[-2:]
        below, right = -height % self.stride, -width % self.stride
        padded = F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x
        out: Tensor = self.net(padded, t * TIME_SCALE).sample
        return out[..., :height, :width] * self._scale(t).view(-1, 1, 1, 1).to(out.dtype)

    def _scale(self, t: Tensor) -> Tensor:
        place = t.float().clamp(0, 1) * (SCALE_NODES - 1)
        left = place.long().clamp(max=SCALE_NODES - 2)
        return torch.lerp(self.scale[left], self.scale[left + 1], place - left)


def residual_scale(spectrum: PowerSpectrum, corruption: Corruption) -> Tensor:
    """Root mean square of x_0 - x_t over images and elements at 257 even times, float32 [257].

    `mean_k (1 - m_t(k))^2 P_k + noise_std(t)^2`, by Parseval.
    """
    t = torch.linspace(0, 1, SCALE_NODES, dtype=torch.float64)
    height, width = spectrum.image_size
    gain = heat_gain(corruption.blur_std(t), height, width)
    lost = ((1 - gain).square() * spectrum.power).mean(dim=(1, 2, 3))
    return (lost + corruption.noise_std(t).square()).sqrt().float()


def build_model(config: TrainConfig, shape: tuple[int, int, int], scale: Tensor | None = None) -> UNet:
    """The network for images of shape (C, H, W), with weights drawn from the run's seed alone; torch's
    global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return UNet(shape[0], shape[1:], config.width, config.multipliers, config.blocks, scale)
