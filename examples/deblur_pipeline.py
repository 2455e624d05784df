# SPDX-License-Identifier: Apache-2.0
"""A data pipeline that blurs on the CPU, in DataLoader workers: pairs (blurred, sharp) to train deblurring.

An image's blur and noise are a function of the seed, the epoch and the image's index. So the pairs are the
same for any number of workers and any batch size. Takes a folder of images; without one, it takes the two
photographs of scikit-learn:

    python examples/deblur_pipeline.py --data photos/ --size 128 --workers 2 --out pairs.png
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import softdiff_kernels as sk

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Crops(Dataset):
    """Square crops of photographs. Item i is (i, uint8 [3, size, size]); its place follows from i."""

    def __init__(self, photographs: list[np.ndarray], size: int, length: int) -> None:
        self.photographs = [p for p in photographs if min(p.shape[:2]) >= size]
        if not self.photographs:
            raise SystemExit(f"expected a photograph of at least {size} x {size} pixels, got none")
        self.size, self.length = size, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        photograph = self.photographs[index % len(self.photographs)]
        place = np.random.default_rng(index)
        top, left = (place.integers(n - self.size + 1) for n in photograph.shape[:2])
        crop = photograph[top : top + self.size, left : left + self.size]
        return index, torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))


def degrade(
    seed: int, epoch: int, blur_std_max: float, noise_std: float
) -> Callable[[list], tuple[Tensor, Tensor]]:
    """A `collate_fn`, run by the workers: items of `Crops` become (blurred, sharp), float32 [B, 3, H, W]."""

    def collate(items: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
        stream = torch.tensor([index for index, _ in items])  # names each image in its noise keys
        sharp = torch.stack([crop for _, crop in items])
        # The normal's distribution function makes a standard normal uniform in [0, 1].
        strength = sk.normal([len(items), 1], sk.NoiseKey(seed, stream, draw=2 * epoch))[:, 0]
        blur_std = blur_std_max * torch.special.ndtr(strength)
        blurred = sk.corrupt(sharp, blur_std, noise_std, key=sk.NoiseKey(seed, stream, draw=2 * epoch + 1))
        return blurred, sharp / 127.5 - 1

    return collate


def read(folder: Path | None) -> list[np.ndarray]:
    """uint8 [H, W, 3] arrays: of all images under the folder, or scikit-learn's two photographs."""
    if folder is None:
        from sklearn.datasets import load_sample_images

        return list(load_sample_images().images)
    from PIL import Image

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return [np.asarray(Image.open(p).convert("RGB")) for p in paths]


def picture(blurred: Tensor, sharp: Tensor, path: Path) -> None:
    """Writes the pairs as two rows, blurred above sharp."""
    from PIL import Image

    grid = torch.cat([torch.cat(list(row), dim=2) for row in (blurred, sharp)], dim=1)
    pixels = ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(path)


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    arg = parser.add_argument
    arg("--data", type=Path, help="folder of images; without one, two photographs of scikit-learn")
    arg("--size", type=int, default=128, help="side of a crop in pixels")
    arg("--blur-std-max", type=float, default=5.0, help="strongest blur in pixels")
    arg("--noise-std", type=float, default=0.02, help="noise, for images in [-1, 1]")
    arg("--steps", type=int, default=60, help="batches in an epoch")
    arg("--batch", type=int, default=32, help="images in a batch")
    arg("--workers", type=int, default=2, help="processes that load and blur")
    arg("--epochs", type=int, default=2, help="passes; each has blurs and noise of its own")
    arg("--seed", type=int, default=0, help="rules blurs and noise")
    arg("--out", type=Path, help="PNG file for the first pairs (needs Pillow)")
    options = parser.parse_args(argv)

    crops = Crops(read(options.data), options.size, options.steps * options.batch)
    checksums, first = [], None
    for epoch in range(options.epochs):
        collate = degrade(options.seed, epoch, options.blur_std_max, options.noise_std)
        loader = DataLoader(crops, options.batch, num_workers=options.workers, collate_fn=collate)
        total, begun = torch.zeros((), dtype=torch.float64), time.perf_counter()
        for blurred, sharp in loader:  # here a network would be trained to give sharp from blurred
            first = first or (blurred[:6], sharp[:6])
            total += blurred.double().square().sum()
        rate = len(crops) / (time.perf_counter() - begun)
        checksums.append(total.item())
        print(f"epoch {epoch}: {len(crops)} pairs, {rate:.0f} images/s, checksum {total.item():.6g}")
    if options.out and first:
        picture(*first, options.out)
        print(f"blurred above sharp: {options.out}")
    return {"checksums": checksums}


if __name__ == "__main__":
    main()
