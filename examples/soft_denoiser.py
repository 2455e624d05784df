# SPDX-License-Identifier: Apache-2.0
"""`SoftDenoiser`: any network f(x_t, t) with the library's schedule, loss, prior and samplers around it.

Trains on the handwritten digits of scikit-learn (8 x 8 pixels) and draws the same images with every sampler.
Takes about half a minute on one CPU core:

    python examples/soft_denoiser.py --out samplers.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import softdiff_kernels as sk
from softdiff_kernels.diffusion import (
    LOSSES,
    SAMPLERS,
    BlurCorruption,
    GaussianDCTPrior,
    SoftDenoiser,
    power_spectrum,
    shortest_path_schedule,
    time_steps,
)


class AnyNetwork(nn.Module):
    """Stands for your own. Takes x_t [B, 1, 8, 8] and t [B] in [0, 1], returns a tensor of x_t's shape."""

    def __init__(self, pixels: int = 64, width: int = 384, blocks: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, width)
        self.shift = nn.ModuleList(
            nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, width)) for _ in range(blocks)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.last = nn.Linear(width, pixels)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h = self.first(x_t.flatten(1))
        for block, shift in zip(self.blocks, self.shift, strict=True):
            h = h + block(h + shift(4 * t[:, None] - 2))
        return self.last(h).view_as(x_t)


def train(denoiser: SoftDenoiser, images: Tensor, steps: int, batch: int, seed: int) -> list[float]:
    """Trains on uint8 images [N, 1, 8, 8]; the loss of each step, per pixel."""
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    losses = []
    for step in range(steps):
        x0 = images[torch.randint(len(images), (batch,))]
        # The key gives each image of the run a t and noise of its own, on any device and at any batch size.
        loss = denoiser.loss(x0, key=sk.NoiseKey(seed, stream=step * batch), reduction="mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item() / x0[0].numel())
    return losses


def nearest(samples: Tensor, real: Tensor) -> float:
    """Root mean square distance per pixel from a sample to the real image that is nearest to it."""
    distances = torch.cdist(samples.flatten(1), real.flatten(1)).amin(dim=1)
    return (distances.square().mean() / samples[0].numel()).sqrt().item()


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
    arg(
        "--loss",
        choices=tuple(LOSSES),
        default="plain",
        help="soft is the paper's, plain needs less training",
    )
    arg("--sampler-steps", type=int, default=50, help="steps of each sampler")
    arg("--seed", type=int, default=0, help="rules weights, batches and noise")
    arg("--out", type=Path, help="PNG file for the samples (needs Pillow)")
    options = parser.parse_args(argv)

    torch.set_num_threads(1)  # the layers are so small that threads would mostly wait for each other
    torch.manual_seed(options.seed)
    digits = torch.from_numpy(np.round(load_digits().images * (255 / 16)).astype(np.uint8))[:, None]
    held_out, images = digits[:200], digits[200:]

    # The schedule of the paper, computed from the data. 0.1, its strongest noise, is much on so few pixels.
    schedule = shortest_path_schedule(power_spectrum([images]), noise_std_max=0.03)
    denoiser = SoftDenoiser(AnyNetwork(), BlurCorruption.from_schedule(schedule), loss=options.loss)
    losses = train(denoiser, images, options.steps, options.batch, options.seed)
    tenth = max(1, len(losses) // 10)
    print(
        f"loss per pixel: {np.mean(losses[:tenth]):.3f} at first, {np.mean(losses[-tenth:]):.3f} at the end"
    )

    key = sk.NoiseKey(options.seed)
    x_1 = GaussianDCTPrior.fit([images], denoiser.corruption).sample(20, key=key)
    samples = {}
    for name, sampler in SAMPLERS.items():
        samples[name] = sampler(
            denoiser.eval(), x_1, time_steps(options.sampler_steps), disable=True, key=key
        )
        print(
            f"{name:10} distance to the nearest real digit: {nearest(samples[name], images / 127.5 - 1):.3f}"
        )
    if options.out:
        picture([held_out[:20] / 127.5 - 1, *samples.values()], options.out)
        print(f"real digits, and one row for each of {', '.join(samples)}: {options.out}")
    return {"losses": losses, "samples": samples}


if __name__ == "__main__":
    main()
