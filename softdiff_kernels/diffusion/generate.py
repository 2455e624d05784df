# SPDX-License-Identifier: Apache-2.0
"""`generate`: images of a trained denoiser, one for each seed, by any sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from .. import functional
from ..images import to_uint8
from ..noise import NoiseKey
from .corruption import Corruption
from .denoiser import Guided, SoftDenoiser
from .priors import Prior
from .samplers import SAMPLERS
from .times import time_steps

SAMPLING_SEED = 0x50F7D1FF
"""Separates the noise of sampled images from that of training images, whose streams also count from 0."""
STEPS = 64
"""Steps of a sampler where no number is given."""
_MOST_KEPT_NOISE = 1.0  # half of the images' range [-1, 1]


@torch.no_grad()
def generate(
    denoiser: SoftDenoiser,
    prior: Prior,
    seeds: Sequence[int],
    *,
    sampler: str | None = None,
    steps: int = STEPS,
    ts: Tensor | None = None,
    batch: int = 64,
    device: torch.device | str | None = None,
    labels: Sequence[int] | None = None,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
    states: list[Tensor] | None = None,
    on_step: Callable[[], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Tensor:
    """One image per seed: uint8 [N, C, H, W] on the CPU. A seed gives the same image at any batch size.

    The noise is that of NoiseKey(SAMPLING_SEED, stream=seed): draw 0 for the prior, draw i for step i.

    Args:
        denoiser: A trained denoiser.
        prior: Where its sampling starts.
        seeds: One for each image.
        sampler: A name in SAMPLERS. None is the best for the corruption and the number of steps,
            `Corruption.best_sampler`.
        steps: Number of even steps.
        ts: The sampler's times instead, as in `time_steps`.
        batch: Images at a time.
        device: None is that of the denoiser's parameters.
        labels: One class per seed, for a class-conditional denoiser.
        guidance: The weight of the classes, as in `Guided`.
        interval: The times at which it is not 1, likewise.
        options: Keyword arguments of the sampler.
        progress: Whether to draw a progress bar per batch.
        states: This list gets x_t before each step of the first batch, then its images, each uint8
            [batch, C, H, W].
        on_step: Called in each step; an exception from it stops the sampling.
        say: Called with a line that says how many kernels were compiled first, if any were (see
            `softdiff_kernels.warm_up`).

    Raises:
        ValueError: If the sampler is unknown.

    Examples:
        >>> denoiser = SoftDenoiser(lambda x_t, t: torch.zeros_like(x_t), BlurCorruption.paper((16, 16)))
        >>> prior = GaussianDCTPrior.fit([torch.rand(32, 1, 16, 16)], denoiser.corruption)
        >>> images = generate(denoiser, prior, seeds=range(4), steps=10)
        >>> images.shape, images.dtype
        (torch.Size([4, 1, 16, 16]), torch.uint8)
        >>> torch.equal(generate(denoiser, prior, seeds=[3], steps=10), images[3:])
        True
    """
    ts = time_steps(steps) if ts is None else ts
    sampler = denoiser.corruption.best_sampler(len(ts) - 1) if sampler is None else sampler
    args.choice("generate", "sampler", sampler, tuple(SAMPLERS))
    weight = next(denoiser.parameters(), torch.empty(0))
    where = weight.device if device is None else torch.device(device)
    if not seeds:  # such as the seeds of one of several processes
        shape = prior.sample(0, key=NoiseKey(SAMPLING_SEED), device=where).shape
        return torch.empty(shape, dtype=torch.uint8)

    def rehearsal() -> None:
        """A full batch and the last one, with a network that computes nothing."""
        seeds_of_both = seeds[: batch + len(seeds) % batch]
        network = SoftDenoiser(functional.echo, denoiser.corruption, weight="uniform")  # type: ignore[arg-type]
        generate(
            network, prior, seeds_of_both, sampler=sampler, ts=ts, batch=batch, device=where, options=options
        )

    warm = functional.rehearse(rehearsal, where)
    if say is not None and warm.compiled:
        say(str(warm))
    images = []
    for start in range(0, len(seeds), batch):
        streams = torch.tensor(seeds[start : start + batch], dtype=torch.int64, device=where)
        key = NoiseKey(SAMPLING_SEED, stream=streams)
        x = prior.sample(len(streams), key=key, device=where, dtype=torch.float32)
        model: Any = denoiser
        if labels is not None:
            classes = torch.tensor(labels[start : start + batch], dtype=torch.int64, device=where)
            model = Guided(denoiser, classes, guidance, interval)
        callback = partial(_report, states if start == 0 else None, on_step)
        x = SAMPLERS[sampler](
            model, x, ts, disable=not progress, key=key, callback=callback, **(options or {})
        )
        images.append(to_uint8(x))
    if states is not None:
        states.append(images[0])
    return torch.cat(images)


@torch.no_grad()
def check_sampler(
    corruption: Corruption,
    channels: int,
    sampler: str | None,
    ts: Tensor,
    options: Mapping[str, Any] | None = None,
) -> str:
    """The name of the sampler, None resolved; ValueError where it makes no sense for the corruption.

    No network is evaluated: all steps are taken once, of one image that is 0. Arguments as in `generate`.

    Examples:
        >>> noise = BlurCorruption.noise_only((16, 16), noise_std_max=20.0)
        >>> check_sampler(noise, 3, None, time_steps(10))
        'multistep'
        >>> check_sampler(noise, 3, "tacos", time_steps(10))
        Traceback (most recent call last):
        ValueError: tacos: expected little noise, for it keeps that of t = 1, got 20; take multistep
    """
    best = corruption.best_sampler(len(ts) - 1)
    sampler = best if sampler is None else sampler
    args.choice("generate", "sampler", sampler, tuple(SAMPLERS))
    most = float(corruption.noise(1.0).max()) / corruption.mean(1.0)
    if sampler == "tacos" and most > _MOST_KEPT_NOISE:
        raise ValueError(
            f"tacos: expected little noise, for it keeps that of t = 1, got {most:.3g}; take {best}"
        )
    network: Any = functional.echo
    denoiser = SoftDenoiser(network, corruption, "sample", weight="uniform")
    x = torch.zeros(1, channels, *corruption.image_size)
    SAMPLERS[sampler](denoiser, x, ts, disable=True, key=NoiseKey(0), **(options or {}))
    return sampler


def _report(states: list[Tensor] | None, on_step: Callable[[], None] | None, step: Mapping[str, Any]) -> None:
    if on_step is not None:
        on_step()
    if states is not None:
        states.append(to_uint8(step["x"]))
