# SPDX-License-Identifier: Apache-2.0
"""The NCSN++ of Song et al. 2021, in the form that they train on variance-exploding noise.

The form is that of score_sde's `configs/ve/cifar10_ncsnpp_continuous.py`: Fourier embedding of scale 16,
BigGAN's residual blocks, resampling with the filter [1, 3, 3, 1], sums divided by sqrt(2), the image added to
each coarser level by a strided convolution (`progressive_input="residual"`), and one output, at full size
(`progressive="none"`). It is put together from diffusers' layers, because the whole networks of diffusers
have neither that input nor, with these blocks, that output.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import need

FOURIER_SCALE = 16.0
# Of score_sde's CIFAR-10 configurations.
SIGMA_MIN, SIGMA_MAX = 0.01, 50.0
EPS = 1e-6
ROOT_2 = math.sqrt(2)


class NCSNpp(nn.Module):
    """`f(x, t, class_labels) -> [B, C, H, W]`, H and W multiples of 2^(levels - 1), t float [B] in [0, 1].

    width, multipliers: channels of each level are width * multiplier, multiples of 4. blocks: residual blocks
    a level, one more on the way up. attention: the level that has it, after each block on the way down and
    after the last on the way up; None: only between the two.

    As in score_sde, the last layer starts at 0, and so does the last of each residual block and attention.

    Ours: t stands for the noise level. score_sde embeds log sigma, which is `log 0.01 + t log 5000` in its
    process; this is embedded here whatever the corruption is, because noise that is constant for t > 1/4
    would not tell the blurs there apart. Steps of 1 / 280 differ clearly in it. Also ours: class labels, and
    what `UNet` does to input and output; score_sde divides the output by sigma instead.
    """

    frequencies: Tensor
    down: Any  # a ModuleList of ModuleLists, as up is
    up: Any

    def __init__(
        self,
        channels: int,
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: int | None = None,
        *,
        dropout: float = 0.0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        fir_down = need("diffusers.models.downsampling", "the U-Net").FirDownsample2D
        embedding = need("diffusers.models.embeddings", "the U-Net").TimestepEmbedding
        widths = [width * multiplier for multiplier in multipliers]
        levels = range(len(widths))
        shared: dict[str, Any] = {"embedded": 4 * width, "dropout": dropout}
        # Rounded, so that a network that is cast to bfloat16 or float16 keeps the phases that it learned.
        frequencies = (FOURIER_SCALE * torch.randn(width)).bfloat16().float()
        self.register_buffer("frequencies", frequencies)
        self.embedding = embedding(2 * width, 4 * width)
        self.class_embedding = nn.Embedding(classes, 4 * width) if classes else None
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)

        self.down, self.shrink, self.pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        kept, inside, image = [width], width, channels
        for level in levels:
            row = nn.ModuleList()
            for _ in range(blocks):
                row.append(Block(inside, widths[level], attend=level == attention, **shared))
                inside = widths[level]
                kept.append(inside)
            self.down.append(row)
            if level < levels[-1]:
                self.shrink.append(Block(inside, inside, down=True, **shared))
                self.pyramid.append(fir_down(image, inside, use_conv=True))
                image = inside
                kept.append(inside)

        self.middle = nn.ModuleList(Block(inside, inside, attend=first, **shared) for first in (True, False))
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level in reversed(levels):
            row = nn.ModuleList()
            for i in range(blocks + 1):
                attend = level == attention and i == blocks
                row.append(Block(inside + kept.pop(), widths[level], attend=attend, **shared))
                inside = widths[level]
            self.up.append(row)
            if level:
                self.grow.append(Block(inside, inside, up=True, **shared))
        self.norm_out = nn.GroupNorm(groups(inside), inside, EPS)
        self.conv_out = nn.Conv2d(inside, channels, 3, padding=1)
        self._initialise()
        self.register_load_state_dict_pre_hook(_refuse_the_form_before)

    def _initialise(self) -> None:
        """score_sde's: uniform, of variance 2 / (inputs + outputs), a tenth for queries, keys and values."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.conv_out.weight)
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.zeros_(module.resnet.conv2.weight)
                if module.attention is not None:
                    nn.init.zeros_(module.attention.to_out[0].weight)
                    for name in ("to_q", "to_k", "to_v"):
                        nn.init.xavier_uniform_(getattr(module.attention, name).weight, math.sqrt(0.1))

    def fourier(self, t: Tensor) -> Tensor:
        """Sines and cosines of 2 pi frequency (log 0.01 + t log 5000): [B, 2 width]."""
        log_sigma = math.log(SIGMA_MIN) + t.float() * math.log(SIGMA_MAX / SIGMA_MIN)
        phase = 2 * math.pi * log_sigma[:, None] * self.frequencies.float()
        return torch.cat([phase.sin(), phase.cos()], dim=1)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """class_labels: int64 [B], needed with classes."""
        time = self.embedding(self.fourier(t).to(x.dtype))
        if self.class_embedding is not None:
            time = time + self.class_embedding(class_labels)
        h, image = self.conv_in(x), x
        kept = [h]
        for level, row in enumerate(self.down):
            for block in row:
                h = block(h, time)
                kept.append(h)
            if level < len(self.shrink):
                h = image = (self.pyramid[level](image) + self.shrink[level](h, time)) / ROOT_2
                kept.append(h)
        for block in self.middle:
            h = block(h, time)
        for level, row in enumerate(self.up):
            for block in row:
                h = block(torch.cat([h, kept.pop()], dim=1), time)
            if level < len(self.grow):
                h = self.grow[level](h, time)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class Block(nn.Module):
    """BigGAN's residual block, which also resamples if asked to, and attention after it."""

    def __init__(
        self,
        inside: int,
        outside: int,
        *,
        embedded: int,
        dropout: float,
        attend: bool = False,
        **resample: bool,
    ) -> None:
        super().__init__()
        self.resnet = need("diffusers.models.resnet", "the U-Net").ResnetBlock2D(
            in_channels=inside,
            out_channels=outside,
            temb_channels=embedded,
            groups=groups(inside),
            groups_out=groups(outside),
            eps=EPS,
            dropout=dropout,
            output_scale_factor=ROOT_2,
            kernel="fir",
            use_in_shortcut=inside != outside or any(resample.values()),
            **resample,
        )
        self.attention: Any = None
        if attend:
            self.attention = need("diffusers.models.attention_processor", "the U-Net").Attention(
                outside,
                heads=1,
                dim_head=outside,
                bias=True,
                norm_num_groups=groups(outside),
                eps=EPS,
                rescale_output_factor=ROOT_2,
                residual_connection=True,
            )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """time: [B, embedded]."""
        out: Tensor = self.resnet(x, time)
        return out if self.attention is None else self.attention(out)


def groups(channels: int) -> int:
    """Of a norm: score_sde's min(channels / 4, 32), or fewer where that does not divide channels."""
    count = min(channels // 4, 32)
    return count if channels % count == 0 else math.gcd(count, channels)


def _refuse_the_form_before(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    if any(name.startswith(f"{prefix}down_blocks.") for name in state):
        raise ValueError(
            "expected weights of --network ncsnpp in its present form, with a Fourier embedding of t, got "
            "those of the form before it, with sines of t and an output at each level; train anew, or sample "
            "with the version that trained them"
        )
