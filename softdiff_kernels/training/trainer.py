# SPDX-License-Identifier: Apache-2.0
"""One training step, and all the state that a run keeps from one step to the next."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from .. import functional
from ..data import ImageOrder, ImageSet
from ..data.prefetch import Prefetch
from ..diffusion import (
    SAMPLING_SEED,
    Corruption,
    SoftDenoiser,
    TrainingLoss,
    check_sampler,
    generate,
    time_steps,
    time_warp,
)
from ..errors import user_errors
from ..noise import NoiseKey, uniforms
from .build import build_model, data_std, edm_scales, scales
from .checkpoint import Checkpoint, fitting
from .config import TrainConfig
from .distributed import Processes, autocast

FLIP_DRAW, CLASS_DRAW = 1, 2
"""Draw 0 of an image's stream is for the corruption and t."""
SHOWN_TIMES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SHOWN_IMAGES = 6
LR_FLOOR = 0.05


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of the step that follows `step` steps. It depends on the step only, so it is not
    stored."""
    rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
    if config.decay == "cosine":
        after = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
        rate *= LR_FLOOR + (1 - LR_FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, after)))
    return rate


def ema_decay(decay: float, step: int) -> float:
    """The decay of averaged weights: rises from 0.1 to its full value, so that the initial weights are
    forgotten."""
    return min(decay, (1 + step) / (10 + step))


class StepResult(NamedTuple):
    """The results of a step, on the device: the losses [B] of this process, each a mean over the elements of
    an image, their t [B], and the norm of the gradient (of all processes) before clipping."""

    losses: Tensor
    t: Tensor
    norm: Tensor


class Trainer:
    """The model, its averages, the optimiser and the two counters of a run.

    A step uses positions seen, ..., seen + batch - 1 of the run. Which image is at a position, its t, its
    noise, whether it is mirrored and whether its label is hidden depend on (seed, position) only. So a
    resumed run continues as if it had never stopped, and processes and passes of gradient accumulation each
    take a part of every batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        images: ImageSet,
        corruption: Corruption,
        prior: Any,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        self.config = config
        self.processes = processes or Processes()
        self.each, self.passes = config.batch_split(self.processes.world)
        self.shape = images.shape
        self.prior = prior
        self.device = device
        pixels = images.pixels
        self.pixels = pixels.to(device) if isinstance(pixels, Tensor) else pixels
        self.classes: tuple[str, ...] = ()
        self.labels: Tensor | None = None
        if config.conditional:
            assert images.labels is not None
            self.labels, self.classes = images.labels.to(device), images.classes
        self.data = {
            "name": images.name,
            "count": len(images.pixels),
            "digest": images.digest(labels=config.conditional),
            "started_in": os.getcwd(),  # the folder of a relative --data and --schedule
        }
        self.order = ImageOrder(len(images.pixels), config.seed)
        self.prefetch: Prefetch | None = None
        if not isinstance(pixels, Tensor):
            # A pass over a share of the batch is followed by that of the next pass, or of the next step.
            self.prefetch = Prefetch(pixels, self.order, self.each * self.processes.world, device)
        scale: Tensor | None
        scale, input_scale = scales(images, corruption)
        self.data_std = data_std(images)
        if config.prediction == "edm":
            with user_errors("--prediction: "):
                scale, input_scale = edm_scales(corruption, self.data_std)
        elif config.prediction != "residual":
            scale = None
        self.model = build_model(config, images.shape, scale, input_scale, len(self.classes)).to(device)
        network: Any = torch.compile(self.model) if config.compile else self.model
        self.spectrum = images.spectrum
        time = None
        if config.density != "t":
            with user_errors("--density: "):
                time = time_warp(config.density, corruption, images.spectrum)
        with user_errors("--prediction and --loss: "):
            self.denoiser = self._denoiser(network, corruption, time)
            # What cannot be computed is said now, and not in the first step.
            tried = self._denoiser(functional.echo, corruption)
            tried.loss(torch.zeros(1, *self.shape), 0.5, key=NoiseKey(0))
        self.sampler: str | None = config.sampler
        if config.sample_count:
            with user_errors("--sampler: "):
                ts = time_steps(config.sample_steps)
                self.sampler = check_sampler(corruption, self.shape[0], config.sampler, ts)
        self.loss: Any = TrainingLoss(self.denoiser)
        if self.processes.world > 1:
            gpu = [device.index] if device.type == "cuda" else None
            self.loss = DistributedDataParallel(self.loss, device_ids=gpu)
            # The buffers never change, so they need not be sent before each step. As an argument, torch 2.13
            # warns of it, and earlier ones do not know the argument that is to take its place.
            self.loss.broadcast_buffers = False
        self.averages = [
            AveragedModel(self.model, multi_avg_fn=partial(self._average, decay)) for decay in config.ema
        ]
        self.averaged = self._denoiser(self.averages[0].module, corruption).eval()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, betas=(0.9, config.beta2))
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.step = 0
        self.seen = 0

    def _denoiser(self, network: Any, corruption: Corruption, time: Any = None) -> SoftDenoiser:
        """The denoiser and its loss, by the run's options."""
        config = self.config
        return SoftDenoiser(
            network, corruption, config.prediction, config.weight, config.loss, time, self.data_std
        )

    @torch.no_grad()
    def _average(self, decay: float, averaged: Any, current: Any, _: Any) -> None:
        torch._foreach_lerp_(list(averaged), list(current), 1 - ema_decay(decay, self.step))

    def batch(self, first: int, size: int) -> tuple[Tensor, NoiseKey, dict[str, Any]]:
        """The images at positions first, ... of the run, uint8 [size, C, H, W], their noise key, and further
        arguments of the network."""
        if self.prefetch is None:
            index = self.order(first, size).to(self.device)
            x0 = self.pixels[index]
        else:
            index, x0 = (part.to(self.device, non_blocking=True) for part in self.prefetch(first, size))
        positions = torch.arange(first, first + size, dtype=torch.int64, device=self.device)
        key = NoiseKey(self.config.seed, stream=positions)
        if self.config.flip:
            mirrored = functional.normal((size, 1, 1, 1), key.at(FLIP_DRAW), device=self.device) > 0
            x0 = torch.where(mirrored, x0.flip(-1), x0)
        if self.labels is None:
            return x0, key, {}
        hidden = uniforms(key.at(CLASS_DRAW), size, self.device) < self.config.class_dropout
        return x0, key, {"class_labels": torch.where(hidden, len(self.classes), self.labels[index])}

    def advance(self) -> StepResult:
        """Does one optimiser step."""
        self.loss.train()
        self.optimizer.zero_grad(set_to_none=True)
        passes = [self._accumulate(i) for i in range(self.passes)]
        self.scaler.unscale_(self.optimizer)
        limit = self.config.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for average in self.averages:
            average.update_parameters(self.model)
        self.step += 1
        self.seen += self.config.batch
        return StepResult(
            torch.cat([losses for losses, _ in passes]), torch.cat([t for _, t in passes]), norm
        )

    def _accumulate(self, number: int) -> tuple[Tensor, Tensor]:
        """Adds the gradient of pass `number` over this process's share of the batch; returns its losses and
        t."""
        processes, config = self.processes, self.config
        first = self.seen + (number * processes.world + processes.rank) * self.each
        x0, key, extra = self.batch(first, self.each)
        t = self.denoiser.draw_time(x0, key)
        if config.dropout:
            # Dropout uses torch's generator. Seeding it by the position leaves no state to store.
            torch.manual_seed(_dropout_seed(config.seed, first))
        more = processes.world > 1 and number < self.passes - 1
        with self.loss.no_sync() if more else nullcontext():
            with autocast(self.device, config.precision):
                losses = self.loss(x0, t, key=key, **extra) / math.prod(self.shape)
            # DDP averages gradients over the processes, hence the factor of their number.
            share_of_mean = losses.sum() * (processes.world / config.batch)
            self.scaler.scale(share_of_mean).backward()
        return losses.detach(), t

    def warm_up(self) -> functional.WarmUp:
        """Compiles the kernels that the steps and the grids of this run will need, where any are compiled."""
        config, processes = self.config, self.processes
        denoiser = self._denoiser(functional.echo, self.denoiser.corruption)
        shown = range(processes.rank, config.sample_count, processes.world)

        def rehearsal() -> None:
            x0, key, _ = self.batch(self.seen, self.each)
            denoiser.loss(x0, self.denoiser.draw_time(x0, key), key=key).sum().backward()
            if shown:
                options: dict[str, Any] = {"sampler": self.sampler, "steps": config.sample_steps}
                generate(denoiser, self.prior, shown, batch=self.each, device=self.device, **options)

        return functional.rehearse(rehearsal, self.device)

    def sample(self, seeds: Sequence[int], at_step: Callable[[], None] | None = None) -> Tensor:
        """Images from the first averaged model, one per seed: uint8 [N, C, H, W]. Classes take turns.

        at_step is called at each sampler step; an exception from it ends sampling.
        """
        with autocast(self.device, self.config.precision):
            return generate(
                self.averaged,
                self.prior,
                seeds,
                sampler=self.sampler,
                steps=self.config.sample_steps,
                batch=self.each,
                labels=[seed % len(self.classes) for seed in seeds] if self.classes else None,
                on_step=at_step,
            )

    def close(self) -> None:
        """Ends the thread that reads images ahead, if there is one."""
        if self.prefetch is not None:
            self.prefetch.close()

    def corrupted_examples(self) -> Tensor:
        """A few images, each corrupted at SHOWN_TIMES: [images * times, C, H, W]."""
        some = self.pixels[torch.linspace(0, len(self.pixels) - 1, SHOWN_IMAGES).round().long()].to(
            self.device
        )
        key = NoiseKey(SAMPLING_SEED)
        columns = []
        for t in SHOWN_TIMES:
            x_t = self.denoiser.corruption.corrupt(some, t, key=key)
            assert isinstance(x_t, Tensor)
            columns.append(x_t)
        return torch.stack(columns, dim=1).flatten(0, 1)

    def _checkpoint(self, kind: str) -> Checkpoint:
        meta = {
            "config": self.config.to_dict(),
            "shape": list(self.shape),
            "data": self.data,
            "corruption": self.denoiser.corruption.to_dict(),
            "prior": self.prior.config(),
            "classes": list(self.classes),
            "data_std": self.data_std,
            "step": self.step,
            "seen": self.seen,
        }
        checkpoint = Checkpoint(kind, meta)
        checkpoint.put("prior", self.prior.state_dict())
        spectrum = {"mean": self.spectrum.mean.float(), "power": self.spectrum.power.float()}
        checkpoint.put("spectrum", spectrum)
        return checkpoint

    def weights(self, average: int = 0) -> Checkpoint:
        """What sampling needs. The averaged weights of one decay are its part `model`."""
        checkpoint = self._checkpoint("weights")
        checkpoint.meta["ema"] = self.config.ema[average]
        checkpoint.put("model", self.averages[average].module.state_dict())
        return checkpoint

    def state(self) -> Checkpoint:
        """What resuming needs: raw weights as `model`, averaged weights as `ema`, `ema1`, ..., and
        moments."""
        checkpoint = self._checkpoint("state")
        checkpoint.put("model", self.model.state_dict())
        for name, average in zip(_average_names(), self.averages, strict=False):
            checkpoint.put(name, average.module.state_dict())
        checkpoint.meta["scaler"] = self.scaler.state_dict()
        for index, moments in self.optimizer.state_dict()["state"].items():
            checkpoint.put(f"optimizer.{index}", moments)
        return checkpoint

    def load_state(self, checkpoint: Checkpoint, path: object) -> None:
        """Continues from a state; UserError where it belongs to another network."""
        with fitting(path, "this run"):
            self.model.load_state_dict(checkpoint.part("model"))
            for name, average in zip(_average_names(), self.averages, strict=False):
                average.module.load_state_dict(checkpoint.part(name))
            scaler = checkpoint.meta.get("scaler", {})
            if scaler:  # empty for precisions without a scale
                self.scaler.load_state_dict(scaler)
            moments = checkpoint.part("optimizer")
            indices = sorted({int(name.partition(".")[0]) for name in moments})
            content = self.optimizer.state_dict()
            content["state"] = {i: checkpoint.part(f"optimizer.{i}") for i in indices}
            self.optimizer.load_state_dict(content)
            self.step, self.seen = int(checkpoint.meta["step"]), int(checkpoint.meta["seen"])
            # The run's, should the images be others now; states of before there was one do not use it.
            self.data_std = float(checkpoint.meta.get("data_std", self.data_std))
            self.denoiser.data_std = self.averaged.data_std = self.data_std
        for average in self.averages:
            average.n_averaged.fill_(self.step)


def _dropout_seed(seed: int, position: int) -> int:
    # A hash, so that neighbouring (seed, position) pairs are unrelated.
    return int(np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)[0]) % 2**63


def _average_names() -> Iterator[str]:
    yield "ema"
    for number in itertools.count(1):
        yield f"ema{number}"
