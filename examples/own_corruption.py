# SPDX-License-Identifier: Apache-2.0
"""A corruption of your own, in twenty lines: fog. Then all that the package does for its own ones.

Trains on the handwritten digits of scikit-learn (8 x 8 pixels) with the trainer of `softdiff train`, draws
images from the weights file, which holds the corruption, and lifts the fog off images. Takes about a quarter
of a minute on one CPU core:

    python examples/own_corruption.py --out fog.png
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import softdiff_kernels as sk
from softdiff_kernels.cli import main as softdiff
from softdiff_kernels.data import load_images
from softdiff_kernels.diffusion import Corruption, register, restore
from softdiff_kernels.images import labelled, tile, to_uint8
from softdiff_kernels.training.weights import load_model


@register("fog")  # the name in files
class Fog(Corruption):
    """An image fades to its mean, the details first: m_t = exp(-depth t f), f the frequency in [0, 1]."""

    def __init__(self, image_size: tuple[int, int], depth: float = 6.0, noise_std: float = 0.05) -> None:
        self.image_size, self.depth, self.noise_std = tuple(image_size), depth, noise_std

    def gain(self, t: float | Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1)
        down, across = (torch.arange(n, dtype=t.dtype, device=t.device) / n for n in self.image_size)
        return torch.exp(-self.depth * t * torch.hypot(down[:, None], across) / math.sqrt(2))

    def noise(self, t: float | Tensor) -> Tensor:
        return torch.full_like(torch.as_tensor(t, dtype=torch.float64), self.noise_std).reshape(-1, 1, 1, 1)

    def config(self) -> dict:
        return {"image_size": list(self.image_size), "depth": self.depth, "noise_std": self.noise_std}


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    arg = parser.add_argument
    arg("--steps", type=int, default=120, help="training steps")
    arg("--sampler-steps", type=int, default=20, help="steps of the sampler")
    arg("--seed", type=int, default=0, help="rules weights, batches and noise")
    arg("--out", type=Path, help="PNG file for the samples (needs Pillow)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # the layers are so small that threads would mostly wait for each other

    with tempfile.TemporaryDirectory() as folder:
        fog, run = Path(folder, "fog.json"), Path(folder, "run")
        Fog((8, 8)).save(fog)
        # The same as on the command line, but for `softdiff` that would not know the class above.
        train = f"train --data digits --corruption {fog} --outdir {run} --loss plain --steps {options.steps}"
        train += " --width 16 --blocks 1 --batch 32 --lr 2e-3 --warmup 0 --ema 0.95 --sample-count 0"
        train += f" --seed {options.seed} --no-progress --device cpu"
        if softdiff(train.split()) != 0:
            raise SystemExit("the training failed")
        model = load_model(str(run), torch.device("cpu"))

    corruption = model.denoiser.corruption  # from the weights file: `Corruption.from_dict`
    digits = load_images("digits").pixels[:12]
    foggy = torch.cat(
        [corruption.corrupt(digits[:1], t, key=sk.NoiseKey(0)) for t in torch.linspace(0, 1, 12)]
    )
    samples = model.generate(range(12), steps=options.sampler_steps)
    # The reverse process can start from an image in the fog, here that of t = 0.3.
    y = corruption.corrupt(digits, 0.3, key=sk.NoiseKey(1))
    power = model.spectrum.variance  # of the training images, as the weights file holds it
    clear = restore(
        model.denoiser, y, corruption.gain(0.3), corruption.noise_std, power=power, key=sk.NoiseKey(2)
    )
    if options.out:
        rows = {"the fog rises": to_uint8(foggy), "samples": samples, "digits": digits}
        rows |= {"digits in the fog": to_uint8(y), "restored": to_uint8(clear)}
        labelled([(name, tile(images, 12)) for name, images in rows.items()]).save(options.out)
        print(f"{', '.join(rows)}: {options.out}")
    result = {"corruption": corruption, "samples": samples, "foggy": foggy}
    return {**result, "digits": digits, "in_fog": y, "restored": clear}


if __name__ == "__main__":
    main()
