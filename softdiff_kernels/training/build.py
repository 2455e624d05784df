# SPDX-License-Identifier: Apache-2.0
"""What a run is built from, made from its options: the images, the corruption, the prior and the network.

The network is a U-Net of diffusers' blocks, fitted to the channels and the size of the images.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import ImageSet, find_source, load_images
from ..diffusion import (
    CORRUPTIONS,
    PRIORS,
    SCHEDULES,
    BlurCorruption,
    Corruption,
    PowerSpectrum,
    Prior,
    Schedule,
    prior_from_state,
)
from ..diffusion.denoiser import check_noise_alone, preconditioning
from ..errors import UserError, need, user_errors
from ..images import decode
from .checkpoint import Checkpoint
from .config import TrainConfig, is_schedule_file
from .ncsnpp import NCSNpp

TIME_SCALE = 1000.0
SMALLEST = 4
ATTENTION_UP_TO = 16
SCALE_NODES = 257
SCALE_IMAGES = 128
SCALE_NUMBERS = 2**22


def load_data(config: TrainConfig) -> ImageSet:
    """The images of a run; UserError where they lack the labels or channels that the options ask for."""
    images = load_images(config.data, config.size, need_labels=config.conditional, stream=True)
    channels = images.shape[0]
    if config.channels not in (None, channels):
        preset = f" (preset {config.preset})" if config.preset else ""
        raise UserError(
            f"{config.data}: expected images of {config.channels} channels{preset}, got {channels}; convert "
            f"them with `softdiff dataset --channels {config.channels}`, or give --channels {channels}"
        )
    return images


def check_data_exists(data: str, started_in: str | None) -> None:
    """Raises UserError where the images of a resumed run are missing, with the folder that it was started
    in."""
    if find_source(data) is not None or Path(data).exists():
        return
    elsewhere = started_in not in (None, os.getcwd())
    where = f" here, nor in {started_in}, where the run was started" if elsewhere else ""
    raise UserError(f"{data}: no such file or folder{where}; give the path of the run's images as --data")


def make_corruption(config: TrainConfig, images: ImageSet) -> tuple[Corruption, Schedule | None]:
    """The corruption that --corruption names, for these images; and its schedule, if it has one."""
    soft = config.corruption == "soft"
    if config.corruption not in CORRUPTIONS:
        if not Path(config.corruption).is_file():
            wanted = f"{', '.join(CORRUPTIONS)} or a file of `Corruption.save`"
            raise UserError(f"--corruption: expected {wanted}, got {config.corruption!r}")
        with user_errors("--corruption: "):
            return Corruption.load(config.corruption, images.shape), None
    if not soft or config.schedule in SCHEDULES:
        if soft and config.schedule == "wasserstein":
            need("scipy.sparse", "the Wasserstein schedule")
        named = f"--schedule {config.schedule}" if soft else f"--corruption {config.corruption}"
        with user_errors(f"{named}: "):
            return CORRUPTIONS[config.corruption].make(images, config.corruption_options())
    if not is_schedule_file(config.schedule):
        wanted = f"{', '.join(SCHEDULES)} or a schedule file"
        raise UserError(f"--schedule: expected {wanted}, got {config.schedule!r}")
    with user_errors():
        schedule = Schedule.load(config.schedule, image_size=images.shape[1:])
    return BlurCorruption.from_schedule(schedule), schedule


def fit_prior(name: str, images: ImageSet, corruption: Corruption) -> Prior:
    """The prior of this name (in PRIORS), fitted to images. For images on the disk it is kept beside them."""
    kept, kind = images.kept, PRIORS[name]
    if kept is None:
        return kind.fit(images.batches(), corruption)
    described = json.dumps([name, corruption.to_dict()], sort_keys=True).encode()
    key = f"prior-{hashlib.blake2b(described, digest_size=8).hexdigest()}"
    if (known := kept.load(key)) is not None:
        config = json.loads(str(known.pop("config")))
        return prior_from_state(config, {part: torch.from_numpy(array) for part, array in known.items()})
    prior = images.fit(lambda batches: kind.fit(batches, corruption))
    state = {part: tensor.numpy() for part, tensor in prior.state_dict().items()}
    kept.save(key, {"config": np.array(json.dumps(prior.config())), **state})
    return prior


def saved_spectrum(checkpoint: Checkpoint) -> PowerSpectrum | None:
    """The spectrum of the training images in a checkpoint; None where it is too old to have it."""
    part, count = checkpoint.part("spectrum"), checkpoint.meta.get("data", {}).get("count")
    if "mean" not in part or count is None:
        return None
    return PowerSpectrum(part["mean"].double(), part["power"].double(), int(count))


def saved_process(checkpoint: Checkpoint) -> tuple[Corruption, Prior]:
    """The corruption and the prior in a checkpoint."""
    corruption = Corruption.from_dict(checkpoint.meta.get("corruption", {}))
    return corruption, prior_from_state(checkpoint.meta.get("prior", {}), checkpoint.part("prior"))


def default_multipliers(height: int, width: int) -> tuple[int, ...]:
    """1 2 2 2, or fewer levels, so that the coarsest level has at least 4 pixels a side."""
    levels = 1 + int(math.log2(max(1, min(height, width) // SMALLEST)))
    return (1, 2, 2, 2)[: max(1, min(levels, 4))]


class UNet(nn.Module):
    """`f(x, t, class_labels) -> [B, C, H, W]` for images of any size, t in [0, 1].

    The image is padded at its lower and right edge, by repeating the last row and column, to a size that the
    levels divide; the output is cropped back. Patches of patch x patch pixels enter and leave as channels.

    The output of the last layer is multiplied by `scale`, float32 [257], linear in t between its nodes: the
    standard deviation of what is predicted. A residual x_0 - x_t grows sixtyfold from t = 0 to 1, and without
    the scale the network would spend its training on learning that. The input is divided by `input_scale`,
    the standard deviation of x_t. Both scales are ours. The last layer starts at 0, so the output does.

    network: "ddpm": diffusers' `UNet2DModel`, which gets 1000 t: the wavelengths of its sine embedding are
    made for 0 to 1000 and hardly distinguish two t in [0, 1]. "ncsnpp": `NCSNpp`, which gets t.
    classes: their number, for a conditional network; the label `classes`, which is also used where no labels
    are given, means any class.
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
        size = (-(-size[0] // patch), -(-size[1] // patch))
        multipliers = multipliers or default_multipliers(*size)
        self.patch = patch
        self.stride = patch * 2 ** (len(multipliers) - 1)
        self.classes = classes
        self.network = network
        if width % 4:
            raise UserError(f"--width: expected a multiple of 4, got {width}")
        sides = [max(size) / 2**i for i in range(len(multipliers))]
        attends = [i > 0 and side <= ATTENTION_UP_TO for i, side in enumerate(sides)]
        inputs, labels = channels * patch**2, classes + 1 if classes else 0
        self.net: Any
        if network == "ncsnpp":
            # As in Song et al., attention at one size only.
            level = attends.index(True) if any(attends) else None
            self.net = NCSNpp(inputs, width, multipliers, blocks, level, dropout=dropout, classes=labels)
        else:
            self.net = need("diffusers.models.unets.unet_2d", "the U-Net").UNet2DModel(
                in_channels=inputs,
                out_channels=inputs,
                layers_per_block=blocks,
                block_out_channels=tuple(width * m for m in multipliers),
                down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
                up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in attends[::-1]),
                attention_head_dim=None,
                # By default t is added before a norm, where it vanishes if a group has one channel.
                resnet_time_scale_shift="scale_shift",
                dropout=dropout,
                num_class_embeds=labels or None,
                norm_num_groups=math.gcd(8, width),
            )
            nn.init.zeros_(self.net.conv_out.weight)
            nn.init.zeros_(self.net.conv_out.bias)
        self.register_buffer("scale", torch.ones(SCALE_NODES) if scale is None else scale)
        self.register_buffer("input_scale", torch.ones(SCALE_NODES) if input_scale is None else input_scale)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W]; t: [B]; class_labels: int64 [B], for a conditional network only."""
        if self.classes and class_labels is None:
            class_labels = torch.full_like(t, self.classes, dtype=torch.int64)
        height, width = x.shape[-2:]
        below, right = -height % self.stride, -width % self.stride
        x = x / _interpolated(self.input_scale, t).to(x.dtype)
        padded = F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x
        patches = F.pixel_unshuffle(padded, self.patch)
        if self.network == "ncsnpp":
            out: Tensor = self.net(patches, t, class_labels)
        else:
            out = self.net(patches, t * TIME_SCALE, class_labels=class_labels).sample
        return F.pixel_shuffle(out, self.patch)[..., :height, :width] * _interpolated(self.scale, t).to(
            out.dtype
        )


def _interpolated(nodes: Tensor, t: Tensor) -> Tensor:
    """The values at t [B], linear between evenly spaced nodes over [0, 1]: [B, 1, 1, 1]."""
    place = t.float().clamp(0, 1) * (SCALE_NODES - 1)
    left = place.long().clamp(max=SCALE_NODES - 2)
    nodes = nodes.float()  # of a network that was cast to 16 bits, too
    return torch.lerp(nodes[left], nodes[left + 1], place - left).view(-1, 1, 1, 1)


def data_std(images: ImageSet) -> float:
    """The standard deviation of the images' elements about the mean of them all: EDM's sigma_data."""
    spectrum = images.spectrum
    mean = spectrum.mean[:, 0, 0].mean().item() / math.sqrt(math.prod(images.shape[1:]))
    return math.sqrt(max(spectrum.power.mean().item() - mean**2, 0.0))


def edm_scales(corruption: Corruption, data_std: float) -> tuple[Tensor, Tensor]:
    """EDM's c_out and 1 / c_in at 257 evenly spaced t: float32 [257]. ValueError for other processes than
    white noise alone."""
    check_noise_alone(corruption)
    t = torch.linspace(0, 1, SCALE_NODES, dtype=torch.float64)
    factors = preconditioning(corruption, t, data_std)
    return factors.c_out.float().reshape(-1), (1 / factors.c_in).float().reshape(-1)


def scales(images: ImageSet, corruption: Corruption) -> tuple[Tensor, Tensor]:
    """Root mean squares of x_0 - x_t and of x_t, over images and elements, at 257 evenly spaced t: float32
    [257].

    Over DCT frequencies `mean_k (1 - m_t(k))^2 P_k + mean_k s_t(k)^2` and `mean_k m_t(k)^2 P_k + mean_k
    s_t(k)^2`, by Parseval, with the images' spectrum; in another basis from up to 128 images themselves.
    """
    t = torch.linspace(0, 1, SCALE_NODES, dtype=torch.float64)
    shape = (1, *images.shape)
    noise = torch.stack([corruption.noise(float(at)).square().expand(shape).mean() for at in t])
    if corruption.basis == "dct":
        power, parts = images.spectrum.power, []
        # All t at once would take 2 GiB at 256 px.
        for some_t in t.split(max(1, SCALE_NUMBERS // power.numel())):
            gain = corruption.gain(some_t)
            pair = ((1 - gain).square() * power, gain.square() * power)
            parts.append(torch.stack([numbers.mean(dim=(1, 2, 3)) for numbers in pair]))
        lost, left = torch.cat(parts, dim=1)
    else:
        count = min(len(images.pixels), SCALE_IMAGES)
        some = decode(images.pixels[torch.linspace(0, len(images.pixels) - 1, count).round().long()])
        nothing = torch.zeros_like(some)
        pairs = []
        for at in t:
            x_t, residual = corruption.corrupt(some, float(at), noise=nothing, return_residual=True)
            pairs.append(torch.stack([residual.double().square().mean(), x_t.double().square().mean()]))
        lost, left = torch.stack(pairs).unbind(1)
    return (lost + noise).sqrt().float(), (left + noise).sqrt().float()


def build_model(
    config: TrainConfig,
    shape: tuple[int, int, int],
    scale: Tensor | None = None,
    input_scale: Tensor | None = None,
    classes: int = 0,
) -> UNet:
    """The network for images of shape (C, H, W). Its weights depend only on the seed of the run; torch's
    global generator is not changed."""
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
