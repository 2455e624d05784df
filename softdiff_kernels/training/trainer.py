# SPDX-License-Identifier: Apache-2.0
"""One training step, and all the state that carries a run from one step to the next."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from .. import functional
from ..diffusion import Corruption, SoftDenoiser, power_spectrum
from ..noise import NoiseKey
from .checkpoint import Checkpoint
from .config import TrainConfig
from .data import ImageOrder, ImageSet
from .errors import UserError
from .model import build_model, scales

FLIP_DRAW = 1
"""The corruption and t use draw 0 of an image's stream."""
LR_FLOOR = 0.05


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of the step after `step` others: a function of the step alone, so nothing of it is stored."""
    rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
    if config.decay == "cosine":
        after = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
        rate *= LR_FLOOR + (1 - LR_FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, after)))
    return rate


def ema_decay(config: TrainConfig, step: int) -> float:
    """Of the averaged weights: rises from 0.1 to its full value, so that the start is forgotten."""
    return min(config.ema, (1 + step) / (10 + step))


class Advance(NamedTuple):
    """What a step found, on the device: each image's loss [B], a mean over its elements, its t [B], and the
    gradient's norm before clipping."""

    losses: Tensor
    t: Tensor
    norm: Tensor


class Trainer:
    """Model, average, optimiser and the two counters of a run.

    A step takes places seen, ..., seen + batch - 1 of the run: which images stand there, their t,
    their noise and whether they are mirrored depend on (seed, place) alone. So a run that is resumed
    goes on as if it had never stopped, and several processes could each take a part of every batch.
    """

    def __init__(
        self, config: TrainConfig, images: ImageSet, corruption: Corruption, prior: Any, device: torch.device
    ) -> None:
        self.config = config
        self.data = {"name": images.name, "count": len(images.pixels), "digest": images.digest()}
        self.shape = images.shape
        self.prior = prior
        self.device = device
        self.pixels = images.pixels.to(device)
        self.order = ImageOrder(len(images.pixels), config.seed)
        scale, input_scale = scales(power_spectrum(images.batches()), corruption)
        residual = config.prediction == "residual"
        self.model = build_model(config, images.shape, scale if residual else None, input_scale).to(device)
        soft = config.loss == "soft"
        self.denoiser = SoftDenoiser(self.model, corruption, config.prediction, soft=soft)
        self.average = AveragedModel(self.model, multi_avg_fn=self._average)
        self.averaged = SoftDenoiser(self.average.module, corruption, config.prediction).eval()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, betas=(0.9, 0.99))
        self.step = 0
        self.seen = 0

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, _: Any) -> None:
        torch._foreach_lerp_(list(averaged), list(current), 1 - ema_decay(self.config, self.step))

    def batch(self, first: int, size: int) -> tuple[Tensor, NoiseKey]:
        """The images at places first, ... of the run, uint8 [size, C, H, W], and their noise key."""
        x0 = self.pixels[self.order(first, size).to(self.device)]
        places = torch.arange(first, first + size, dtype=torch.int64, device=self.device)
        key = NoiseKey(self.config.seed, stream=places)
        if self.config.flip:
            mirrored = functional.normal((size, 1, 1, 1), key.at(FLIP_DRAW), device=self.device) > 0
            x0 = torch.where(mirrored, x0.flip(-1), x0)
        return x0, key

    def advance(self) -> Advance:
        """One optimiser step."""
        self.model.train()
        x0, key = self.batch(self.seen, self.config.batch)
        t = self.denoiser.draw_time(x0, key)
        losses = self.denoiser.loss(x0, t, key=key) / math.prod(self.shape)
        loss = losses.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.config.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.step += 1
        self.seen += self.config.batch
        return Advance(losses.detach(), t, norm)

    def _checkpoint(self, kind: str) -> Checkpoint:
        meta = {
            "config": self.config.to_dict(),
            "shape": list(self.shape),
            "data": self.data,
            "corruption": self.denoiser.corruption.to_dict(),
            "prior": self.prior.config(),
            "step": self.step,
            "seen": self.seen,
        }
        checkpoint = Checkpoint(kind, meta)
        checkpoint.put("prior", self.prior.state_dict())
        return checkpoint

    def weights(self) -> Checkpoint:
        """What sampling needs: the averaged weights, as `model`."""
        checkpoint = self._checkpoint("weights")
        checkpoint.put("model", self.average.module.state_dict())
        return checkpoint

    def state(self) -> Checkpoint:
        """What going on needs: raw weights as `model`, averaged as `ema`, Adam's moments."""
        checkpoint = self._checkpoint("state")
        checkpoint.put("model", self.model.state_dict())
        checkpoint.put("ema", self.average.module.state_dict())
        for index, moments in self.optimizer.state_dict()["state"].items():
            checkpoint.put(f"optimizer.{index}", moments)
        return checkpoint

    def load_state(self, checkpoint: Checkpoint, path: object) -> None:
        """Goes on from a state; UserError where it belongs to other data or another network."""
        found = checkpoint.meta.get("data", {})
        if found.get("digest") != self.data["digest"]:
            raise UserError(
                f"{path}: expected the images that the run was trained on ({found.get('count')} of "
                f"{found.get('name')}), got {self.data['count']} of {self.data['name']} with other pixels"
            )
        try:
            self.model.load_state_dict(checkpoint.part("model"))
            self.average.module.load_state_dict(checkpoint.part("ema"))
            moments = checkpoint.part("optimizer")
            indices = sorted({int(name.partition(".")[0]) for name in moments})
            content = self.optimizer.state_dict()
            content["state"] = {i: dict(_under(moments.items(), f"{i}.")) for i in indices}
            self.optimizer.load_state_dict(content)
            self.step, self.seen = int(checkpoint.meta["step"]), int(checkpoint.meta["seen"])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            what = f"{type(error).__name__}: {reason}"
            raise UserError(f"{path}: its parts do not fit this run ({what})") from error
        self.average.n_averaged.fill_(self.step)


def _under(items: Iterable[tuple[str, Tensor]], prefix: str) -> Iterable[tuple[str, Tensor]]:
    return ((name[len(prefix) :], tensor) for name, tensor in items if name.startswith(prefix))
