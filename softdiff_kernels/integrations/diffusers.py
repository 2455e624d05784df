# SPDX-License-Identifier: Apache-2.0
"""The method as diffusers' classes: a scheduler, the networks of `softdiff train`, priors, and a pipeline.

diffusers numbers times as timesteps k, and trains a network on k = 0 to T - 1. Here

    t = (k + 1) / T,        T = num_train_timesteps,

so that T - 1 is t = 1, and the last step leads to t = 0, the clean image. Timesteps need not be whole.

diffusers imports no module that a folder names: import from here before `from_pretrained`. It finds out how
a class is loaded by looking for SchedulerMixin, ModelMixin and DiffusionPipeline in the class's module.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from .. import _arguments as args
from ..diffusion import (
    DDIM,
    IHDM,
    PRIORS,
    SAMPLING_SEED,
    STEPS,
    Ancestral,
    BlurCorruption,
    Corruption,
    Langevin,
    Momentum,
    Naive,
    Prior,
    Rule,
    SoftDenoiser,
    TACoS,
    check_sampler,
    prior_from_state,
    time_steps,
)
from ..diffusion.samplers import heun_step, second_order
from ..noise import NoiseKey
from ..training.build import UNet
from ..training.config import TrainConfig
from ..training.weights import LoadedModel

FORMAT_VERSION = 1
"""Of scheduler_config.json. A larger one is of a later version of this module, and is refused."""
RULES: dict[str, type[Rule]] = {
    "naive": Naive,
    "momentum": Momentum,
    "ddim": DDIM,
    "tacos": TACoS,
    "ancestral": Ancestral,
    "ihdm": IHDM,
    "langevin": Langevin,
    "multistep": DDIM,
    "heun": DDIM,
}
"""The rule of each step of the samplers in SAMPLERS."""
AUTO = "auto"
PREDICTION_TYPES = {"residual": "residual", "sample": "sample", "epsilon": "noise", "edm": "edm"}
"""diffusers' names, and the names in PREDICTIONS that they stand for."""
PRIOR_FILE = "prior.safetensors"
INDEX = "model_index.json"

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
        whole = number.is_integer() and (numbers == np.round(numbers)).all()
        if abs(numbers[nearest] - number) < 1 and not whole:
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


class SoftUNet2DModel(ModelMixin, ConfigMixin):
    """A network of `softdiff train` as a model of diffusers, of either kind (DDPM's blocks, or NCSN++).

    Args:
        in_channels: C.
        sample_size: (H, W), any.
        width: As in `softdiff train`, and so are the next five.
        multipliers: See above.
        blocks: See above.
        patch: See above.
        network: See above.
        dropout: See above.
        classes: Number of classes, 0 for none. Without labels a conditional network means any class.
        num_train_timesteps: The scheduler's.

    Examples:
        >>> unet = SoftUNet2DModel(in_channels=1, sample_size=(8, 8), width=8, blocks=1)
        >>> unet(torch.zeros(2, 1, 8, 8), 999).sample.shape
        torch.Size([2, 1, 8, 8])
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        sample_size: Sequence[int],
        width: int = 64,
        multipliers: Sequence[int] = (),
        blocks: int = 2,
        patch: int = 1,
        network: str = "ddpm",
        dropout: float = 0.0,
        classes: int = 0,
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()
        size = args.image_size(type(self).__name__, sample_size)
        self.register_to_config(sample_size=list(size), multipliers=list(multipliers))
        self.inner_model = UNet(
            in_channels,
            size,
            width,
            tuple(multipliers),
            blocks,
            patch,
            network=network,
            dropout=dropout,
            classes=classes,
        )

    def forward(
        self,
        sample: Tensor,
        timestep: float | Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """sample: x_t [B, C, H, W]; timestep: a number, or a tensor of one or B; class_labels: int64 [B]."""
        number = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device)
        t = (number.reshape(-1).expand(len(sample)) + 1) / self.config.num_train_timesteps
        out: Tensor = self.inner_model(sample, t, class_labels)
        return UNet2DOutput(out) if return_dict else (out,)


class SoftPrior(SchedulerMixin):
    """A prior as a part of a pipeline: where sampling starts.

    As it is no network, a pipeline's `.to` does not cast it. It draws on any device.

    Args:
        prior: A prior of `softdiff_kernels.diffusion`.

    Examples:
        >>> scheduler = SoftDiffusionScheduler(image_size=(8, 8))
        >>> prior = SoftPrior.fit([torch.rand(32, 1, 8, 8) * 2 - 1], scheduler)
        >>> prior.sample(2).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, prior: Prior) -> None:
        if not isinstance(prior, Prior):
            raise TypeError(f"SoftPrior: expected a Prior, got {args.describe(prior)}")
        self.prior = prior

    @classmethod
    def fit(
        cls, batches: Iterable[Any], scheduler: SoftDiffusionScheduler, name: str = "gaussian"
    ) -> SoftPrior:
        """Fitted to batches of images [B, C, H, W] in [-1, 1]; of a dictionary, its "images" or "input".

        Args:
            batches: Such as a DataLoader.
            scheduler: Its corruption makes x_1 of the images.
            name: A name in PRIORS.
        """
        args.choice("SoftPrior.fit", "name", name, tuple(PRIORS))
        return cls(PRIORS[name].fit((_images_of(batch) for batch in batches), scheduler.corruption))

    def sample(self, images: int, generator: Generators = None, device: torch.device | str = "cpu") -> Tensor:
        """x_1, float32 [images, C, H, W]; of a key at draw 0."""
        return self.prior.sample(images, key=noise_key(generator, images, device), device=device)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes the folder. push_to_hub and kwargs: as in diffusers."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"format": "softdiff-prior", "prior": json.dumps(self.prior.config())}
        safetensors.torch.save_file(self.prior.state_dict(), folder / PRIOR_FILE, metadata)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, subfolder: str | None = None, **_: Any
    ) -> SoftPrior:
        """From a folder of `save_pretrained`. ValueError if it has no whole prior."""
        file = Path(pretrained_model_name_or_path, subfolder or "", PRIOR_FILE)
        if not file.is_file():
            raise ValueError(
                f"{file}: no such file; expected the prior, from which sampling starts. Save the pipeline "
                "with its prior, or fit one with SoftPrior.fit: from_pretrained(..., prior=prior)"
            )
        try:
            with safetensors.safe_open(file, framework="pt") as content:
                config = json.loads((content.metadata() or {}).get("prior", "null"))
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            return cls(prior_from_state(config, tensors))
        except (safetensors.SafetensorError, ValueError) as error:
            raise ValueError(f"{file}: expected a whole prior, got another file ({error})") from None


def _images_of(batch: Any) -> Any:
    if not isinstance(batch, Mapping):
        return batch
    name = next((name for name in ("images", "input") if name in batch), None)
    if name is None:
        raise ValueError(
            f'SoftPrior.fit: expected batches with "images" or "input", got {", ".join(map(str, batch))}'
        )
    return batch[name]


class SoftDiffusionPipeline(DiffusionPipeline):
    """Images from a network, a scheduler and a prior.

    Args:
        unet: A `SoftUNet2DModel`, or any network of diffusers that takes (x_t, timestep), such as
            `UNet2DModel`.
        scheduler: The corruption and the sampler.
        prior: Where sampling starts. A `Prior`, too.
        run: How the network was trained, for `softdiff sample`; `softdiff export` writes it.

    Raises:
        ValueError: If the parts are for images of different sizes.

    Examples:
        >>> unet = SoftUNet2DModel(in_channels=1, sample_size=(8, 8), width=8, blocks=1)
        >>> scheduler = SoftDiffusionScheduler(image_size=(8, 8))
        >>> prior = SoftPrior.fit([torch.rand(32, 1, 8, 8) * 2 - 1], scheduler)
        >>> pipe = SoftDiffusionPipeline(unet, scheduler, prior)
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe(batch_size=2, num_inference_steps=4, output_type="np").images.shape
        (2, 8, 8, 1)
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SoftDiffusionScheduler,
        prior: SoftPrior,
        run: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(scheduler, SoftDiffusionScheduler):
            raise TypeError(
                f"SoftDiffusionPipeline: expected a SoftDiffusionScheduler, got {type(scheduler).__name__}"
            )
        prior = SoftPrior(prior) if isinstance(prior, Prior) else prior
        if not isinstance(prior, SoftPrior):
            raise TypeError(
                "SoftDiffusionPipeline: expected a prior, from which sampling starts, got "
                f"{type(prior).__name__}; SoftPrior.fit makes one of the training images"
            )
        _check_parts(unet, scheduler, prior.prior)
        self.register_modules(unet=unet, scheduler=scheduler, prior=prior)
        self.register_to_config(run=run)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> SoftDiffusionPipeline:
        """As in diffusers. ValueError for a folder without its prior."""
        index = Path(pretrained_model_name_or_path, INDEX)
        if index.is_file() and "prior" not in kwargs:
            entry = json.loads(index.read_text(encoding="utf-8")).get("prior")
            if not entry or entry[0] is None or not (index.parent / "prior").is_dir():
                raise ValueError(
                    f"{index.parent}: expected a pipeline with its prior, from which sampling starts, in "
                    "prior/, found none. Save the pipeline again with it, or fit one with SoftPrior.fit and "
                    "pass it on: from_pretrained(..., prior=prior)"
                )
        pipeline: SoftDiffusionPipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        return pipeline

    @property
    def guidance_scale(self) -> float:
        """Of the call that runs."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Evaluations of the network, but for guidance, in the call that runs."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback set `_interrupt`; the steps that are left are not taken."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        num_inference_steps: int = STEPS,
        generator: Generators = None,
        output_type: str = "pil",
        class_labels: int | Sequence[int] | Tensor | None = None,
        guidance_scale: float = 1.0,
        callback_on_step_end: Callable[..., Mapping[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
        *,
        seeds: Sequence[int] | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws images.

        Args:
            batch_size: Their number. None is 1, or that of the seeds.
            num_inference_steps: As in `SoftDiffusionScheduler.set_timesteps`.
            generator: See `noise_key`. A list has one for each image.
            output_type: "pil", "np" (float32 [B, H, W, C] in [0, 1]) or "pt" ([B, C, H, W] in [0, 1]).
            class_labels: A class for all images, or one for each. None means any class.
            guidance_scale: w in `any + w (class - any)`, as `Guided`; 1 is the class alone.
            callback_on_step_end: Called as (pipeline, i, timestep, {"latents": x_s}) after each step; x_s are
                images here. Of what it returns, "latents" takes the place of x_s.
            callback_on_step_end_tensor_inputs: ("latents",) or ().
            return_dict: False returns (images,).
            seeds: Those of `softdiff sample`, one for each image, in place of a generator: the same images.
            timesteps: In place of num_inference_steps, as in `SoftDiffusionScheduler.set_timesteps`.
        """
        args.choice("SoftDiffusionPipeline", "output_type", output_type, ("pil", "np", "pt"))
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"SoftDiffusionPipeline: expected callback_on_step_end_tensor_inputs among "
                f"{list(self._callback_tensor_inputs)}, got {sorted(unknown)}"
            )
        count, device = _count(batch_size, generator, seeds), self._execution_device
        if device.type == "cpu":
            device = torch.device("cpu")  # cpu:0, as accelerate's hooks call it, is another to torch
        labels = self._labels(class_labels, guidance_scale, count, device)
        if seeds is not None:
            streams = torch.tensor(list(seeds), dtype=torch.int64, device=device)
            generator = NoiseKey(SAMPLING_SEED, stream=streams)
        self._guidance_scale, self._interrupt = guidance_scale, False
        if timesteps is None:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            self.scheduler.set_timesteps(device=device, timesteps=timesteps)
        self._num_timesteps = len(self.scheduler.timesteps)
        x = self.prior.sample(count, generator, device)
        # As numbers, so that no step waits for the device.
        numbers = self.scheduler.timesteps.tolist()
        with self.progress_bar(total=len(numbers)) as bar:
            for i, number in enumerate(numbers):
                if self.interrupt:
                    continue
                timestep = self.scheduler.timesteps[i]
                out = self._predict(x, timestep, labels, guidance_scale)
                x = self.scheduler.step(out, number, x, generator=generator, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = {name: x for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, i, timestep, tensors)
                    x = (changed or {}).get("latents", x)
                bar.update()
        images: Any = (x.float() / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
            if output_type == "pil":
                images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(self, x: Tensor, timestep: Tensor, labels: Tensor | None, scale: float) -> Tensor:
        """The network's output, in float32. x0_hat is affine in it, so guidance may mix outputs."""
        inputs = self.scheduler.scale_model_input(x, timestep).to(self.unet.dtype)
        extra = {} if labels is None else {"class_labels": labels}
        out: Tensor = self.unet(inputs, timestep, **extra).sample.float()
        if scale == 1.0:
            return out
        return torch.lerp(self.unet(inputs, timestep).sample.float(), out, scale)

    def _labels(
        self, labels: int | Sequence[int] | Tensor | None, scale: float, count: int, device: torch.device
    ) -> Tensor | None:
        op, config = "SoftDiffusionPipeline", self.unet.config
        own = isinstance(self.unet, SoftUNet2DModel)
        classes = config.classes if own else config.get("num_class_embeds") or 0
        if scale != 1.0 and (labels is None or not own):
            needed = "class_labels" if own else "a SoftUNet2DModel, which knows what no class is,"
            raise ValueError(f"{op}: expected {needed} for guidance_scale {scale:g}, got none")
        if labels is None:
            return None
        if not classes:
            raise ValueError(f"{op}: expected no class_labels, for the network has no classes, got some")
        numbers = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
        if numbers.numel() not in (1, count) or not ((numbers >= 0) & (numbers < classes)).all():
            raise ValueError(
                f"{op}: expected class_labels as one number in [0, {classes}), or one for each of the "
                f"{count} images, got {args.shown(numbers.tolist())}"
            )
        return numbers.expand(count).to(device)


def _count(batch_size: int | None, generator: Generators, seeds: Sequence[int] | None) -> int:
    """The number of images."""
    op = "SoftDiffusionPipeline"
    if seeds is None:
        count: int = args.integer(op, "batch_size", 1 if batch_size is None else batch_size, least=1)
        return count
    if generator is not None or batch_size not in (None, len(seeds)) or not len(seeds):
        raise ValueError(
            f"{op}: expected seeds, one for each image, without a generator and another batch_size, got "
            f"{len(seeds)} seeds, batch_size {batch_size} and generator {type(generator).__name__}"
        )
    return len(seeds)


def _check_parts(unet: Any, scheduler: SoftDiffusionScheduler, prior: Prior) -> None:
    """Raises ValueError where the parts of a pipeline do not fit together."""
    size = list(scheduler.image_size)
    sides = unet.config.get("sample_size")
    sides = [sides, sides] if isinstance(sides, int) else sides
    sizes = {
        "scheduler": size,
        "prior": list(prior.image_size),
        "unet": size if sides is None else list(sides),
    }
    if any(other != size for other in sizes.values()):
        raise ValueError(
            "SoftDiffusionPipeline: expected a unet, a scheduler and a prior for images of one size, got "
            + ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
        )
    channels = unet.config.get("in_channels", prior.channels)
    if channels != prior.channels:
        raise ValueError(
            f"SoftDiffusionPipeline: expected a prior of {channels} channels, as the unet has, got "
            f"{prior.channels}"
        )
    timesteps = unet.config.get("num_train_timesteps")
    if isinstance(unet, SoftUNet2DModel) and timesteps != len(scheduler):
        raise ValueError(
            f"SoftDiffusionPipeline: expected a scheduler of {timesteps} timesteps, as the unet, got "
            f"{len(scheduler)}"
        )


def pipeline_of(model: LoadedModel, rule: str | None = AUTO, data: str = "") -> SoftDiffusionPipeline:
    """A trained model of `softdiff train` as a pipeline.

    Args:
        model: The content of a weights file.
        rule: As in `SoftDiffusionScheduler`. "auto" takes the sampler that `softdiff sample` takes.
        data: The name of the training images.
    """
    config, denoiser = model.config, model.denoiser
    options = ("width", "multipliers", "blocks", "patch", "network", "dropout")
    unet = SoftUNet2DModel(
        model.shape[0],
        model.shape[1:],
        classes=len(model.classes),
        **{name: getattr(config, name) for name in options},
    )
    unet.inner_model.load_state_dict(denoiser.inner_model.state_dict())
    names = {ours: theirs for theirs, ours in PREDICTION_TYPES.items()}
    scheduler = SoftDiffusionScheduler(
        corruption=denoiser.corruption,
        rule=rule,
        prediction_type=names[denoiser.prediction],
        data_std=denoiser.data_std,
    )
    # Paths of this machine mean nothing on another.
    portable = dataclasses.replace(config, data=data, outdir=None, resume=None, config=None)
    run = {
        "config": json.loads(json.dumps(portable.to_dict())),
        "step": model.step,
        "classes": list(model.classes),
        "digest": model.digest,
    }
    return SoftDiffusionPipeline(unet.eval(), scheduler, SoftPrior(model.prior), run)


class _InTimes(nn.Module):
    """A network of timesteps as one of t."""

    def __init__(self, unet: nn.Module, timesteps: int) -> None:
        super().__init__()
        self.unet = unet
        self.timesteps = timesteps

    def forward(self, x: Tensor, t: Tensor, **extra: Any) -> Tensor:
        out: Tensor = self.unet(x, t * self.timesteps - 1, **extra).sample
        return out


def load_pipeline(path: str, device: torch.device) -> LoadedModel:
    """A pipeline folder as a model for `softdiff sample`; of any network that the pipeline can have."""
    pipeline = SoftDiffusionPipeline.from_pretrained(path)
    unet, scheduler, prior = pipeline.unet, pipeline.scheduler, pipeline.prior.prior
    own = isinstance(unet, SoftUNet2DModel)
    network = unet.inner_model if own else _InTimes(unet, len(scheduler))
    prediction = PREDICTION_TYPES[scheduler.config.prediction_type]
    denoiser = SoftDenoiser(network, scheduler.corruption, prediction, "uniform")
    denoiser.data_std = scheduler.config.data_std
    run = pipeline.config.run or {}
    config = TrainConfig.from_dict(run["config"]) if run else TrainConfig(data="")
    count = unet.config.classes if own else 0
    classes = tuple(run.get("classes") or (str(i) for i in range(count)))
    shape = (prior.channels, *scheduler.image_size)
    denoiser = denoiser.to(device).eval()
    return LoadedModel(
        denoiser, prior, shape, config, run.get("step", 0), classes, run.get("digest"), file=path
    )
