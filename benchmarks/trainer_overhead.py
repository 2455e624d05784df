# SPDX-License-Identifier: Apache-2.0
"""How much of a training step is not the network and its optimiser: `python -m benchmarks.trainer_overhead`.

Two halves of the same step take turns: the network forward and backward on inputs that lie ready, with Adam;
and all the rest (images, t, corruption, loss with its gradient, clipping, averages, statistics) around a
network that costs nothing. Whole steps stand beside their sum, to show that nothing is missing from it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from softdiff_kernels.data.image_set import ImageSet, load_images
from softdiff_kernels.diffusion import Corruption
from softdiff_kernels.training.config import TrainConfig
from softdiff_kernels.training.meter import Meter
from softdiff_kernels.training.presets import preset
from softdiff_kernels.training.trainer import Trainer


def timed(call: Callable[[], object]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3


def main() -> None:
    """Prints the medians, and what the trainer adds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="images of 28 x 28; default: as many bytes at random")
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args()
    settings = {name: setting.value for name, setting in preset("mnist").items()}
    config = TrainConfig(data=options.data or "random", preset="mnist", **settings)
    if options.data:
        images = load_images(options.data, config.size)
    else:
        pixels = torch.randint(0, 256, (60_000, 1, 28, 28), dtype=torch.uint8)
        images = ImageSet(pixels, "random")
    trainer = Trainer(config, images, Corruption.paper((28, 28)), None, torch.device("cpu"))
    meter = Meter(trainer.device)
    network, real_step = trainer.model, trainer.optimizer.step
    x0, key, _ = trainer.batch(0, config.batch)
    t = trainer.denoiser.draw_time(x0, key)
    x_t = trainer.denoiser.corruption.corrupt(x0, t, key=key)
    assert isinstance(x_t, torch.Tensor)
    upstream = torch.randn_like(x_t)
    free = Free(x_t.shape)

    def whole() -> None:
        meter.add(trainer.step + 1, trainer.advance())

    def needed() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        network(x_t, t).backward(upstream)
        real_step()

    def rest() -> None:
        """A step around `free`; the network's gradients are there, to be clipped and averaged as ever."""
        trainer.denoiser.inner_model = trainer.network = free
        trainer.optimizer.zero_grad = trainer.optimizer.step = lambda *_, **__: None  # type: ignore
        try:
            whole()
        finally:
            trainer.denoiser.inner_model = trainer.network = network
            del trainer.optimizer.zero_grad, trainer.optimizer.step

    for call in (whole, needed, rest):
        call()
    turns = [(timed(whole), timed(needed), timed(rest)) for _ in range(options.turns)]
    whole_ms, needed_ms, rest_ms = (statistics.median(column) for column in zip(*turns, strict=True))
    shares = sorted(c / (b + c) for _, b, c in turns)
    low, high = shares[len(shares) // 5], shares[-1 - len(shares) // 5]
    print(
        f"{config.batch} images of 28 x 28, {torch.get_num_threads()} threads, torch {torch.__version__}: "
        f"network and Adam {needed_ms:.1f} ms, the rest {rest_ms:.2f} ms, a whole step {whole_ms:.1f} ms; "
        f"the trainer is {statistics.median(shares):.1%} of a step (20/80 quantiles {low:.1%} to {high:.1%}, "
        f"{options.turns} turns)"
    )


class Free(torch.nn.Module):
    """A network that costs nothing."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.out = torch.nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.out


if __name__ == "__main__":
    main()
