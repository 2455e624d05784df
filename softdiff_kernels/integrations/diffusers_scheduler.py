# SPDX-License-Identifier: Apache-2.0
"""The corruptions and samplers as a scheduler of diffusers.

diffusers numbers times as timesteps k, and trains a network on k = 0 to T - 1. Here

    t = (k + 1) / T,        T = num_train_timesteps,

so that T - 1 is t = 1, and the last step leads to t = 0, the clean image. Timesteps need not be whole.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from .. import _arguments as args
from ..diffusion import (
    SAMPLING_SEED,
    BlurCorruption,
    Corruption,
    SoftDenoiser,
    check_sampler,
    time_steps,
)
from ..diffusion.rules import RULES
from ..diffusion.samplers import heun_step, second_order
from ..noise import NoiseKey

FORMAT_VERSION = 1
"""Of scheduler_config.json. A larger one is of a later version of this module, and is refused."""
AUTO = "auto"
PREDICTION_TYPES = {"residual": "residual", "sample": "sample", "epsilon": "noise", "edm": "edm"}
"""diffusers' names, and the names in PREDICTIONS that they stand for."""

Generators = torch.Generator | Sequence[torch.Generator] | NoiseKey | None
"""Where noise comes from: a generator of torch, one for each image, a key, or torch's default generator."""


def noise_key(generator: Generators, batch: int, device: torch.device | str) -> NoiseKey:
    """The key of a batch of images.

    From a generator of torch it takes one number for each image. So the noise is the same on every device
    and, with one generator for each image, at every batch size. A key is returned as it is.
    """
    if isinstance(generator, NoiseKey):
        return generator
    if isinstance(generator, Sequence) and len(generator) == 1:
        generator = generator[0]
    if isinstance(generator, Sequence):
        if len(generator) != batch:
            raise ValueError(
                f"expected one generator, or one for each of the {batch} images, got {len(generator)}"
            )
        streams = torch.cat([_streams(1, each).cpu() for each in generator])
    else:
        streams = _streams(batch, generator)
    return NoiseKey(SAMPLING_SEED, stream=streams.to(device))


def _streams(count: int, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator, device=device)


def _given(x_t: Tensor, t: Tensor, output: Tensor) -> Tensor:
    """Stands for the network where its output is known already."""
    return output


class Predicted(NamedTuple):
    """A step of several: x_t, x0_hat at t, s, and the x_s that was returned."""

    x_t: Tensor
    x0_hat: Tensor
    t: float
    s: float
    x_s: Tensor


@dataclasses.dataclass
class SoftDiffusionSchedulerOutput(BaseOutput):
    """prev_sample: x_s [B, C, H, W], the network's next input; pred_original_sample: x0_hat, likewise."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class SoftDiffusionScheduler(SchedulerMixin, ConfigMixin):
    """Any corruption and sampler of `softdiff_kernels.diffusion` as a scheduler of diffusers.

    Alone, `SoftDiffusionScheduler(image_size=(32, 32))` is the paper's blur and its Momentum Sampler.

    Args:
        image_size: (H, W), or one side. Not needed with a corruption, which has one.
        corruption: A Corruption that `to_dict` can store, or that dictionary. None is
            `BlurCorruption.paper`.
        rule: A name in SAMPLERS; None for the corruption's best with many steps, and "auto" for its best with
            the steps that `set_timesteps` gets.
        rule_options: The sampler's options, such as {"variance": "small"} for "momentum".
        num_train_timesteps: T, see the module.
        prediction_type: What the network predicts: "residual", x_0 - x_t (the paper's); "sample", x_0;
            "epsilon", the white noise, where no frequency of x_0 is lost in it; "edm", for noise alone.
        spacing: What the steps are even in, a name in SPACINGS but "w2".
        data_std: EDM's sigma_data, for "edm".
        format_version: Of the configuration.

    Attributes:
        corruption: The Corruption.
        rule: The sampler that is in use, a name in SAMPLERS.
        timesteps: Those of the steps, float32, falling. "heun" has each but the first twice.
        init_noise_sigma: The noise at t = 1. Where an image is left at t = 1, as with blur, noise alone is no
            place to start from: draw x_1 from a prior, as `SoftDiffusionPipeline` does.
        order: Evaluations of the network per step: 2 for "heun", else 1.

    Raises:
        ValueError: If the configuration is for another image size, of a later version, or not possible for
            the corruption.

    Examples:
        >>> scheduler = SoftDiffusionScheduler(image_size=(32, 32))
        >>> scheduler.rule, len(scheduler)
        ('momentum', 1000)
        >>> scheduler.set_timesteps(4)
        >>> scheduler.timesteps
        tensor([999., 749., 499., 249.])
        >>> x0, noise = torch.zeros(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
        >>> x = scheduler.add_noise(x0, noise, scheduler.timesteps[:1])  # stands for a prior's
        >>> out = scheduler.step(torch.zeros_like(x), scheduler.timesteps[0], x)
        >>> out.prev_sample.shape
        torch.Size([2, 3, 32, 32])
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        image_size: int | Sequence[int] | None = None,
        corruption: Corruption | Mapping[str, Any] | None = None,
        rule: str | None = None,
        rule_options: Mapping[str, Any] | None = None,
        num_train_timesteps: int = 1000,
        prediction_type: str = "residual",
        spacing: str = "t",
        data_std: float = 0.5,
        format_version: int = FORMAT_VERSION,
    ) -> None:
        op = type(self).__name__
        if format_version > FORMAT_VERSION:
            raise ValueError(
                f"{op}: expected a configuration of format version {FORMAT_VERSION} or before, got "
                f"{format_version}, of a later softdiff_kernels; upgrade softdiff_kernels"
            )
        args.choice(op, "prediction_type", prediction_type, tuple(PREDICTION_TYPES))
        args.integer(op, "num_train_timesteps", num_train_timesteps, least=1)
        if isinstance(image_size, int):
            image_size = (image_size, image_size)
        size = None if image_size is None else args.image_size(op, image_size)
        self.corruption = _corruption(op, size, corruption)
        rule = self.corruption.best_sampler() if rule is None else rule
        args.choice(op, "rule", rule, (*RULES, AUTO))
        # Without this a step of few would be the first to fail; and tacos does not fail, but drifts.
        if rule != AUTO:
            channels = self.corruption.channels or 1
            few = time_steps(2, spacing, corruption=self.corruption)
            try:
                check_sampler(self.corruption, channels, rule, few, rule_options)
                self._rule = RULES[rule](**(rule_options or {}))
            except TypeError as error:
                raise ValueError(f"{op}: expected rule_options of {rule!r}, got others: {error}") from None
        elif rule_options:
            raise ValueError(f"{op}: expected no rule_options for the rule {AUTO!r}, got {rule_options!r}")
        # The weight belongs to the loss alone.
        self._denoiser = self._as_denoiser("uniform", "soft", prediction_type, data_std)
        self.init_noise_sigma = float(self.corruption.noise(1.0).square().mean().sqrt())
        stored = None if corruption is None else json.loads(json.dumps(self.corruption.to_dict()))
        self.register_to_config(
            image_size=None if size is None else list(size),
            corruption=stored,
            rule=rule,
            rule_options=None if rule_options is None else dict(rule_options),
        )
        self.num_inference_steps: int | None = None
        even = torch.linspace(1.0, 0.0, num_train_timesteps + 1, dtype=torch.float64)
        self._begin(even.tolist(), None)

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        """This class alone: the mixin would look its name up in diffusers, and find nothing."""
        return [cls]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.corruption.image_size

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as it is."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Begins a new trajectory.

        Args:
            num_inference_steps: Number of steps, at most T.
            device: Of `timesteps`.
            timesteps: Falling numbers over -1, from T - 1 at most, instead: where the steps begin. The last
                one ends at t = 0.
        """
        op, most = "set_timesteps", len(self)
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(f"{op}: expected either num_inference_steps or timesteps, got both or neither")
        if timesteps is None:
            steps: int = args.integer(op, "num_inference_steps", num_inference_steps, least=1)
            if steps > most:
                raise ValueError(
                    f"{op}: expected at most num_train_timesteps = {most} steps, got {num_inference_steps}"
                )
            nodes = time_steps(steps, self.config.spacing, corruption=self.corruption).tolist()
        else:
            values = args.numbers(op, "timesteps", timesteps, "timesteps")
            falling = all(a > b for a, b in pairwise(values))
            if not values or not falling or not -1 < values[-1] <= values[0] <= most - 1:
                raise ValueError(
                    f"{op}: expected timesteps as falling numbers from {most - 1} at most to over -1, got "
                    f"{args.shown(values)}"
                )
            nodes = [(k + 1) / most for k in values] + [0.0]
        self.num_inference_steps = len(nodes) - 1
        self._begin(nodes, device)

    def _begin(self, nodes: list[float], device: torch.device | str | None) -> None:
        """nodes: the times of the steps, falling to 0."""
        self._nodes = nodes
        self._last: Predicted | None = None
        steps = len(nodes) - 1
        self.rule = self.config.rule
        if self.rule == AUTO:
            self.rule = self.corruption.best_sampler(steps)
            self._rule = RULES[self.rule]()
        self.order = 2 if self.rule == "heun" else 1
        evaluated = [t for i, t in enumerate(nodes[:-1]) for _ in range(self.order if i else 1)]
        numbers = torch.tensor(evaluated, dtype=torch.float64) * len(self) - 1
        self.timesteps = numbers.to(device=device, dtype=torch.float32)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SoftDiffusionSchedulerOutput | tuple[Tensor, Tensor]:
        """One step, from x_t to the next time s.

        s is the largest of the times that `set_timesteps` set which is smaller than t. Only "multistep" and
        "heun" depend on the calls before. "multistep" makes a step of first order where the sample is not the
        one that the last step returned, with a warning if the time fits; "heun" refuses another one in the
        middle of a step.

        Args:
            model_output: The network's output, [B, C, H, W].
            timestep: One of `timesteps`, or a number that is not within 1 of any, in (-1, T - 1].
            sample: x_t, [B, C, H, W].
            generator: See `noise_key`. Of a key, the step to the i-th time has draw i, as in
                `diffusion.sample`.
            return_dict: False returns (prev_sample, pred_original_sample).
        """
        t, place = self._place(timestep)
        s = self._nodes[place]
        if t == 1.0:
            self._warn_of_start(sample)
        x0_hat: Tensor = self._denoiser(sample, t, output=model_output)
        if self.config.prediction_type == "sample":
            x0_hat = x0_hat.clone()  # the network may write into its output
        if self.rule == "heun":
            prev = self._half_of_heun(sample, x0_hat, t, s)
        elif s == 0.0:
            prev = x0_hat.clone()
        elif self.rule == "multistep":
            before = self._before(sample, t)
            prev = second_order("step", self._rule, self.corruption, sample, x0_hat, t, s, before)
            self._last = Predicted(sample, x0_hat, t, s, prev)
        else:
            key = noise_key(generator, len(sample), sample.device).at(place)
            prev = self._rule.step(self.corruption, sample, x0_hat, t, s, key)
        if s == 0.0:
            self._last = None
        return SoftDiffusionSchedulerOutput(prev, x0_hat) if return_dict else (prev, x0_hat)

    def _place(self, timestep: float | Tensor) -> tuple[float, int]:
        """t, and the place in the nodes of the next time."""
        if isinstance(timestep, Tensor) and (timestep.numel() != 1 or timestep.dtype.itemsize < 4):
            raise ValueError(
                "step: expected timestep as one number, or as a tensor with one, of at least 32 bits, got "
                f"{args.describe(timestep)}"
            )
        number, most = float(timestep), len(self)
        numbers = np.array(self._nodes[:-1]) * most - 1
        nearest = int(np.abs(numbers - number).argmin())
        if abs(numbers[nearest] - number) < 1e-6 * most:  # in float32 it was rounded by less
            return self._nodes[nearest], nearest + 1
        if not -1 < number <= most - 1:
            raise ValueError(f"step: expected a timestep over -1, and of at most {most - 1}, got {number:g}")
        if abs(numbers[nearest] - number) < 1:
            # As if from rounding: the next time would be the one that was meant, and the last step missing.
            raise ValueError(
                f"step: expected one of `timesteps` as it is, got {number:g}, which is near "
                f"{numbers[nearest]:g}; pass it on without rounding"
            )
        t = (number + 1) / most
        return t, next(i for i, node in enumerate(self._nodes) if node < t)

    def _warn_of_start(self, x: Tensor) -> None:
        """Warns where x_1 cannot be an image of the corruption, such as the white noise of DDPMPipeline."""
        corruption = self.corruption
        corruption.check_size("step", x)
        if corruption.basis not in ("dct", "pixels"):
            return
        with torch.no_grad():
            square = corruption.to_basis(x.float()).square().mean(dim=0).double().cpu()
        noise = corruption.noise(1.0)[0].square().expand_as(square)
        # There nothing but the noise is left. Of few elements the mean square varies by a fifth.
        lost = (corruption.gain(1.0)[0].abs() < 1e-3).expand_as(square)
        if square.mean() < noise.mean() / 4 or (lost.any() and square[lost].mean() > 4 * noise[lost].mean()):
            warnings.warn(
                "step: expected x_1 with the noise of the corruption at t = 1, of deviation "
                f"{self.init_noise_sigma:.3g}, got other images, such as DDPMPipeline begins with; draw "
                "x_1 from a prior, as SoftDiffusionPipeline does",
                stacklevel=3,
            )

    def _before(self, sample: Tensor, t: float) -> tuple[float, Tensor] | None:
        """(time, x0_hat) of the step that ended in this sample."""
        last = self._last
        if last is None or last.s != t:
            return None
        if sample is not last.x_s:
            warnings.warn(
                "multistep: this sample is not the one that the last step returned, so the step is of first "
                'order; take the rule "ddim" where samples are changed between steps',
                stacklevel=3,
            )
            return None
        return last.t, last.x0_hat

    def _half_of_heun(self, sample: Tensor, x0_hat: Tensor, t: float, s: float) -> Tensor:
        """DDIM's step, or, at its end, the corrected step."""
        last, self._last = self._last, None
        if last is None and s == 0.0:
            return x0_hat.clone()
        if last is None:
            A, _ = self._rule(self.corruption, t, s)
            predicted = self.corruption.step(sample, x0_hat, t, s, A, 0.0)
            self._last = Predicted(sample, x0_hat, t, s, predicted)
            return predicted
        if last.s != t or sample is not last.x_s:
            raise ValueError(
                "heun: expected, in the middle of a step of two evaluations, the sample that the last call "
                f"returned, at timestep {last.s * len(self) - 1:g}, got another; call set_timesteps before "
                "another trajectory"
            )
        return heun_step(self.corruption, lambda *_: x0_hat, last.x_t, last.x0_hat, last.t, last.s)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = C_t x_0 + s_t n, for images x_0 and noise n [B, C, H, W], and timesteps [B] or [1].

        C_t acts along the last two axes: what is not an image, such as the latents of an autoencoder, is
        blurred all the same.
        """
        t = self._times(timesteps, original_samples)
        x_t = self.corruption.corrupt(original_samples, t, noise=noise.to(original_samples))
        assert isinstance(x_t, Tensor)
        return x_t

    def loss(
        self,
        model_output: Tensor,
        original_samples: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        *,
        loss: str | Callable[..., Any] = "soft",
        weight: str | Callable[..., Any] | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """The training loss of the network's output for `add_noise(original_samples, noise, timesteps)`.

        A mean over an image's elements: float32. The corruption is computed again, which costs little beside
        a network.

        Args:
            model_output: [B, C, H, W].
            original_samples: x_0, likewise.
            noise: n, likewise.
            timesteps: [B].
            loss: A name in LOSSES, or a function, as in `SoftDenoiser`.
            weight: A name in WEIGHTS, or a function, as in `SoftDenoiser`.
            reduction: "mean" over the batch, "sum", or "none" for [B].

        Raises:
            ValueError: If the loss or weight is not possible for the corruption.
        """
        denoiser = self._as_denoiser(weight, loss, self.config.prediction_type, self.config.data_std)
        t = self._times(timesteps, original_samples).expand(len(original_samples))
        total: Tensor = denoiser.loss(
            original_samples, t, noise=noise.to(original_samples), reduction=reduction, output=model_output
        )
        return total / original_samples[0].numel()

    def _as_denoiser(
        self,
        weight: str | Callable[..., Any] | None,
        loss: str | Callable[..., Any],
        prediction_type: str,
        data_std: float,
    ) -> SoftDenoiser:
        prediction = PREDICTION_TYPES[prediction_type]
        network: Any = _given
        return SoftDenoiser(network, self.corruption, prediction, weight, loss, data_std=data_std)

    def _times(self, timesteps: Tensor, images: Tensor) -> Tensor:
        """t [B] of timesteps, float32 on the images' device. Values on a device are not read."""
        numbers = torch.as_tensor(timesteps).reshape(-1)
        most = len(self)
        if numbers.device.type == "cpu" and not ((numbers > -1) & (numbers <= most - 1)).all():
            raise ValueError(
                f"expected timesteps over -1, and of at most {most - 1}, got {args.shown(numbers.tolist())}"
            )
        return (numbers.to(images.device, torch.float32) + 1) / most


def _corruption(
    op: str, size: tuple[int, int] | None, corruption: Corruption | Mapping[str, Any] | None
) -> Corruption:
    if corruption is None:
        if size is None:
            raise ValueError(f"{op}: expected image_size as (H, W), or a corruption, got neither")
        return BlurCorruption.paper(size)
    if not isinstance(corruption, Corruption):
        corruption = Corruption.from_dict(corruption)
    if size not in (None, tuple(corruption.image_size)):
        raise ValueError(
            f"{op}: expected image_size as that of the corruption, {list(corruption.image_size)}, got "
            f"{list(size or ())}"
        )
    return corruption
