# SPDX-License-Identifier: Apache-2.0
"""One training step, and all the state that carries a run from one step to the next."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from .. import functional
from ..data.image_set import ImageOrder, ImageSet
from ..diffusion import Corruption, SoftDenoiser, TrainingLoss
from ..errors import UserError
from ..memory import is_out_of_memory
from ..noise import NoiseKey, uniforms
from .build import build_model, scales
from .checkpoint import Checkpoint
from .config import TrainConfig
from .device import autocast
from .distributed import Processes
from .options import share

FLIP_DRAW, CLASS_DRAW = 1, 2
"""The corruption and t use draw 0 of an image's stream."""
LR_FLOOR = 0.05


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of the step after `step` others: a function of the step alone, so nothing of it is stored."""
    rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
    if config.decay == "cosine":
        after = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
        rate *= LR_FLOOR + (1 - LR_FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, after)))
    return rate


def ema_decay(decay: float, step: int) -> float:
    """Of averaged weights: rises from 0.1 to its full value, so that the start is forgotten."""
    return min(decay, (1 + step) / (10 + step))


class Advance(NamedTuple):
    """What a step found, on the device: this process's losses [B], each a mean over an image's elements,
    their t [B], and the gradient's norm before clipping (of all processes)."""

    losses: Tensor
    t: Tensor
    norm: Tensor


class Trainer:
    """Model, averages, optimiser and the two counters of a run.

    A step takes places seen, ..., seen + batch - 1 of the run: which images stand there, their t, their
    noise, whether they are mirrored and whether their label is hidden depend on (seed, place) alone. So a
    run that is resumed goes on as if it had never stopped, and processes and rounds of accumulation each
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
        self.each, self.rounds = share(config, self.processes.world)
        self.shape = images.shape
        self.prior = prior
        self.device = device
        self.pixels = images.pixels.to(device)
        self.classes: tuple[str, ...] = ()
        self.labels: Tensor | None = None
        if config.conditional:
            assert images.labels is not None
            self.labels, self.classes = images.labels.to(device), images.classes
        self.data = {
            "name": images.name,
            "count": len(images.pixels),
            "digest": images.digest(labels=config.conditional),
            "started_in": os.getcwd(),  # which a relative --data and --schedule are relative to
        }
        self.order = ImageOrder(len(images.pixels), config.seed)
        residual = config.prediction == "residual"
        scale, input_scale = scales(images.spectrum, corruption)
        self.model = build_model(
            config, images.shape, scale if residual else None, input_scale, len(self.classes)
        ).to(device)
        called: Any = torch.compile(self.model) if config.compile else self.model
        self.denoiser = SoftDenoiser(called, corruption, config.prediction, loss=config.loss)
        self.loss: Any = TrainingLoss(self.denoiser)
        if self.processes.world > 1:
            on = [device.index] if device.type == "cuda" else None
            # The buffers never change, so they need not be sent before each step.
            self.loss = DistributedDataParallel(self.loss, device_ids=on, broadcast_buffers=False)
        self.averages = [
            AveragedModel(self.model, multi_avg_fn=partial(self._average, decay)) for decay in config.ema
        ]
        self.averaged = SoftDenoiser(self.averages[0].module, corruption, config.prediction).eval()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, betas=(0.9, config.beta2))
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.step = 0
        self.seen = 0

    @torch.no_grad()
    def _average(self, decay: float, averaged: Any, current: Any, _: Any) -> None:
        torch._foreach_lerp_(list(averaged), list(current), 1 - ema_decay(decay, self.step))

    def batch(self, first: int, size: int) -> tuple[Tensor, NoiseKey, dict[str, Any]]:
        """The images at places first, ... of the run, uint8 [size, C, H, W], their noise key, and what else
        the network is told of them."""
        index = self.order(first, size).to(self.device)
        x0 = self.pixels[index]
        places = torch.arange(first, first + size, dtype=torch.int64, device=self.device)
        key = NoiseKey(self.config.seed, stream=places)
        if self.config.flip:
            mirrored = functional.normal((size, 1, 1, 1), key.at(FLIP_DRAW), device=self.device) > 0
            x0 = torch.where(mirrored, x0.flip(-1), x0)
        if self.labels is None:
            return x0, key, {}
        hidden = uniforms(key.at(CLASS_DRAW), size, self.device) < self.config.class_dropout
        return x0, key, {"class_labels": torch.where(hidden, len(self.classes), self.labels[index])}

    def advance(self) -> Advance:
        """One optimiser step."""
        self.loss.train()
        self.optimizer.zero_grad(set_to_none=True)
        found = [self._round(i) for i in range(self.rounds)]
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
        return Advance(torch.cat([losses for losses, _ in found]), torch.cat([t for _, t in found]), norm)

    def _round(self, number: int) -> tuple[Tensor, Tensor]:
        """Adds the gradient of one part of this process's share of the batch; its losses and t."""
        processes, config = self.processes, self.config
        first = self.seen + (number * processes.world + processes.rank) * self.each
        x0, key, told = self.batch(first, self.each)
        t = self.denoiser.draw_time(x0, key)
        if config.dropout:
            # Dropout draws from torch's generator: begun anew from the place, it needs no state either.
            torch.manual_seed(_dropout_seed(config.seed, first))
        waits = processes.world > 1 and number < self.rounds - 1
        with self.loss.no_sync() if waits else nullcontext():
            with autocast(self.device, config.precision):
                losses = self.loss(x0, t, key=key, **told) / math.prod(self.shape)
            # Gradients are averaged over the processes, hence times their number.
            share_of_mean = losses.sum() * (processes.world / config.batch)
            self.scaler.scale(share_of_mean).backward()
        return losses.detach(), t

    def _checkpoint(self, kind: str) -> Checkpoint:
        meta = {
            "config": self.config.to_dict(),
            "shape": list(self.shape),
            "data": self.data,
            "corruption": self.denoiser.corruption.to_dict(),
            "prior": self.prior.config(),
            "classes": list(self.classes),
            "step": self.step,
            "seen": self.seen,
        }
        checkpoint = Checkpoint(kind, meta)
        checkpoint.put("prior", self.prior.state_dict())
        return checkpoint

    def weights(self, average: int = 0) -> Checkpoint:
        """What sampling needs: the averaged weights of one length, as `model`."""
        checkpoint = self._checkpoint("weights")
        checkpoint.meta["ema"] = self.config.ema[average]
        checkpoint.put("model", self.averages[average].module.state_dict())
        return checkpoint

    def state(self) -> Checkpoint:
        """What going on needs: raw weights as `model`, averaged ones as `ema`, `ema1`, ..., moments."""
        checkpoint = self._checkpoint("state")
        checkpoint.put("model", self.model.state_dict())
        for name, average in zip(_average_names(), self.averages, strict=False):
            checkpoint.put(name, average.module.state_dict())
        checkpoint.meta["scaler"] = self.scaler.state_dict()
        for index, moments in self.optimizer.state_dict()["state"].items():
            checkpoint.put(f"optimizer.{index}", moments)
        return checkpoint

    def load_state(self, checkpoint: Checkpoint, path: object) -> None:
        """Goes on from a state; UserError where it belongs to other data or another network."""
        found = checkpoint.meta.get("data", {})
        if found.get("digest") != self.data["digest"] and not self.config.allow_changes:
            raise UserError(
                f"{path}: expected the images that the run was trained on ({found.get('count')} of "
                f"{found.get('name')}), got {self.data['count']} of {self.data['name']} with other pixels or "
                "labels; --allow-changes goes on all the same"
            )
        try:
            self.model.load_state_dict(checkpoint.part("model"))
            for name, average in zip(_average_names(), self.averages, strict=False):
                average.module.load_state_dict(checkpoint.part(name))
            scaler = checkpoint.meta.get("scaler", {})
            if scaler:  # empty where the run's precision needed none
                self.scaler.load_state_dict(scaler)
            moments = checkpoint.part("optimizer")
            indices = sorted({int(name.partition(".")[0]) for name in moments})
            content = self.optimizer.state_dict()
            content["state"] = {i: dict(_under(moments.items(), f"{i}.")) for i in indices}
            self.optimizer.load_state_dict(content)
            self.step, self.seen = int(checkpoint.meta["step"]), int(checkpoint.meta["seen"])
        except (KeyError, RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            what = f"{type(error).__name__}: {reason}"
            raise UserError(f"{path}: its parts do not fit this run ({what})") from error
        for average in self.averages:
            average.n_averaged.fill_(self.step)


def _dropout_seed(seed: int, place: int) -> int:
    # Hashed, so that neighbouring (seed, place) pairs share nothing.
    return int(np.random.SeedSequence((seed, place)).generate_state(1, np.uint64)[0]) % 2**63


def _average_names() -> Iterator[str]:
    yield "ema"
    for number in itertools.count(1):
        yield f"ema{number}"


def _under(items: Iterable[tuple[str, Tensor]], prefix: str) -> Iterable[tuple[str, Tensor]]:
    return ((name[len(prefix) :], tensor) for name, tensor in items if name.startswith(prefix))
