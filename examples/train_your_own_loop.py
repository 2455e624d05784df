# SPDX-License-Identifier: Apache-2.0
"""Soft Diffusion in a plain PyTorch loop: the ops, an optimiser and a small network, nothing else.

Trains on the handwritten digits of scikit-learn (8 x 8 pixels), then draws new ones with the momentum
sampler. Takes about half a minute on one CPU core:

    python examples/train_your_own_loop.py --out digits.png
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import softdiff_kernels as sk


def blur_std(t: Tensor) -> Tensor:
    """Blur at time t in pixels, linear: from nearly none at t = 0 to nearly everything removed at t = 1."""
    return 0.01 + t * 2.9


def noise_std(t: Tensor) -> Tensor:
    """Noise at time t, geometric up to t = 1/4 and constant after, as in the paper."""
    return 0.01 * 3.0 ** (4 * t).clamp(max=1)


class Network(nn.Module):
    """Predicts the residual x_0 - x_t from x_t and t: linear layers, to each of which t is given anew."""

    def __init__(self, pixels: int = 64, width: int = 384, blocks: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, width)
        self.times = nn.ModuleList(nn.Linear(16, width) for _ in range(blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.last = nn.Linear(width, pixels)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * math.pi * 2.0 ** torch.arange(8)
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)
        h = self.first(x_t.flatten(1))
        for block, time in zip(self.blocks, self.times, strict=True):
            h = h + block(h + time(waves))
        return self.last(h).view_as(x_t)


def train(network: nn.Module, images: Tensor, steps: int, batch: int) -> list[float]:
    """Trains on uint8 images [N, 1, 8, 8]; the loss of each step, per pixel."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=max(steps, 2))
    losses = []
    for _ in range(steps):
        x0 = images[torch.randint(len(images), (batch,))]
        t = torch.rand(batch)
        x_t, residual = sk.corrupt(x0, blur_std(t), noise_std(t), return_residual=True)
        loss = sk.soft_score_loss(network(x_t, t), residual, blur_std(t), weight=1 / noise_std(t) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item() / x0[0].numel())
    return losses


@torch.no_grad()
def sample(network: nn.Module, x: Tensor, steps: int, seed: int) -> Tensor:
    """Goes from x_1 [B, 1, 8, 8] to images, t from 1 to 0. Image k depends on the seed and on k alone."""
    times = torch.linspace(1, 0, steps + 1)
    for i, (t, s) in enumerate(pairwise(times)):
        x0_hat = x + network(x, t.expand(len(x)))
        x = sk.momentum_step(
            x,
            x0_hat,
            blur_std_t=blur_std(t).item(),
            blur_std_s=blur_std(s).item(),
            noise_std_t=noise_std(t).item(),
            noise_std_s=noise_std(s).item(),
            key=sk.NoiseKey(seed, draw=i + 1),
        )
    return x


def picture(rows: list[Tensor], path: Path) -> None:
    """Writes one row of images [B, 1, 8, 8] in [-1, 1] for each tensor, enlarged six times."""
    from PIL import Image

    framed = [nn.functional.pad(row[:, 0], (1, 1, 1, 1), value=-1) for row in rows]
    grid = torch.cat([torch.cat(list(row), dim=1) for row in framed])
    pixels = ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    Image.fromarray(pixels.repeat(6, axis=0).repeat(6, axis=1)).save(path)


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    arg = parser.add_argument
    arg("--steps", type=int, default=1500, help="training steps")
    arg("--batch", type=int, default=64, help="images in a training step")
    arg("--sampler-steps", type=int, default=50, help="steps of the sampler")
    arg("--seed", type=int, default=0, help="rules weights, batches and noise")
    arg("--out", type=Path, help="PNG file for the samples (needs Pillow)")
    options = parser.parse_args(argv)

    torch.set_num_threads(1)  # the layers are so small that threads would mostly wait for each other
    torch.manual_seed(options.seed)
    digits = torch.from_numpy(np.round(load_digits().images * (255 / 16)).astype(np.uint8))[:, None]
    held_out, training_set = digits[:20], digits[20:]
    network = Network()
    losses = train(network, training_set, options.steps, options.batch)
    tenth = max(1, len(losses) // 10)
    print(
        f"loss per pixel: {np.mean(losses[:tenth]):.3f} at first, {np.mean(losses[-tenth:]):.3f} at the end"
    )

    # Sampling starts from blurred images, as at t = 1. The network has not seen these.
    one = torch.ones(())
    x_1 = sk.corrupt(held_out, blur_std(one).item(), noise_std(one).item(), key=sk.NoiseKey(options.seed))
    samples = sample(network.eval(), x_1, options.sampler_steps, options.seed)
    if options.out:
        picture([held_out / 127.5 - 1, x_1, samples], options.out)
        print(f"held-out digits, the same blurred, and samples that start there: {options.out}")
    return {"losses": losses, "samples": samples}


if __name__ == "__main__":
    main()
