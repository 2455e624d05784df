# SPDX-License-Identifier: Apache-2.0
"""The method as diffusers' classes: a scheduler, the networks of `softdiff train`, priors, and a pipeline.

diffusers imports no module that a folder names: import from here before `from_pretrained`. It finds out how
a class is loaded by looking for SchedulerMixin, ModelMixin and DiffusionPipeline in the class's module.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .. import _arguments as args
from ..diffusion import (
    PRIORS,
    SAMPLING_SEED,
    STEPS,
    PowerSpectrum,
    Prior,
    SoftDenoiser,
    prior_from_state,
)
from ..noise import NoiseKey
from ..training.build import UNet
from ..training.config import TrainConfig
from ..training.weights import LoadedModel
from .diffusers_scheduler import (
    AUTO,
    PREDICTION_TYPES,
    RULES,
    Generators,
    SoftDiffusionScheduler,
    SoftDiffusionSchedulerOutput,
    noise_key,
)

__all__ = [
    "PREDICTION_TYPES",
    "RULES",
    "SoftDiffusionPipeline",
    "SoftDiffusionScheduler",
    "SoftDiffusionSchedulerOutput",
    "SoftPrior",
    "SoftUNet2DModel",
    "load_pipeline",
    "noise_key",
    "pipeline_of",
]

PRIOR_FILE = "prior.safetensors"
SPECTRUM, MOMENTS = "spectrum", ("mean", "power")
INDEX = "model_index.json"


class SoftUNet2DModel(ModelMixin, ConfigMixin):
    """A network of `softdiff train` as a model of diffusers, of either kind (DDPM's blocks, or NCSN++).

    Args:
        in_channels: C.
        sample_size: (H, W), any.
        width: Channels at full resolution.
        multipliers: Channels at each level, in units of width. Empty: as in `softdiff train`.
        blocks: Residual blocks per level.
        patch: Side of the squares of pixels that enter as channels.
        network: "ddpm" or "ncsnpp".
        dropout: Of the residual blocks.
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
        spectrum: That of the training images, for a sampler's steps even in W2 and for restoring by Wiener's
            filter.

    Examples:
        >>> scheduler = SoftDiffusionScheduler(image_size=(8, 8))
        >>> prior = SoftPrior.fit([torch.rand(32, 1, 8, 8) * 2 - 1], scheduler)
        >>> prior.sample(2).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, prior: Prior, spectrum: PowerSpectrum | None = None) -> None:
        if not isinstance(prior, Prior):
            raise TypeError(f"SoftPrior: expected a Prior, got {args.describe(prior)}")
        self.prior = prior
        self.spectrum = spectrum

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
        tensors = dict(self.prior.state_dict())
        if self.spectrum is not None:
            metadata["images"] = str(self.spectrum.count)
            tensors |= {f"{SPECTRUM}.{name}": getattr(self.spectrum, name) for name in MOMENTS}
        safetensors.torch.save_file(tensors, folder / PRIOR_FILE, metadata)
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
                metadata = content.metadata() or {}
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            spectrum = None
            if "images" in metadata:
                mean, power = (tensors.pop(f"{SPECTRUM}.{name}") for name in MOMENTS)
                spectrum = PowerSpectrum(mean, power, int(metadata["images"]))
            return cls(prior_from_state(json.loads(metadata.get("prior", "null")), tensors), spectrum)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
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
        num_inference_steps: int | None = None,
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
            num_inference_steps: As in `SoftDiffusionScheduler.set_timesteps`. None is the run's own, or
                64 where the pipeline has no run.
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
        if timesteps is None and num_inference_steps is None:
            run = self.config.run
            num_inference_steps = run["config"]["sample_steps"] if run else STEPS
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
    return SoftDiffusionPipeline(unet.eval(), scheduler, SoftPrior(model.prior, model.spectrum), run)


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
    """A pipeline folder as a model for softdiff's commands; of any network that the pipeline can have."""
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
    model = LoadedModel(denoiser, prior, shape, config, run.get("step", 0), classes, run.get("digest"), path)
    model.spectrum = pipeline.prior.spectrum
    return model
