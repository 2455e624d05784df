# SPDX-License-Identifier: Apache-2.0
"""`softdiff restore`: deblurs, denoises or fills in images by a trained model, and measures by how much."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import functional
from ..data import SOURCE_LIST, load_images
from ..data.sample_folder import GRID, image_name
from ..diffusion import (
    SAMPLERS,
    BlurCorruption,
    Corruption,
    blur_gain,
    inpaint,
    restore,
    start_time,
    wiener,
)
from ..diffusion.restore import ORDERED_RULES, natural_sampler
from ..errors import UserError, need, user_errors
from ..files import PathText, save_json
from ..images import decode, labelled, save_png, tile, to_uint8
from ..noise import NoiseKey
from ..training.config import SamplerName, summaries
from ..training.distributed import pick_device
from ..training.weights import LoadedModel
from .sample import open_model

RECORD = "restored.json"
SHOWN = 10
HIDDEN_GREY = 128
ROUNDING = 2 / 255 / 12**0.5
"""Standard deviation of the rounding to 8 bits, for images in [-1, 1]."""
SMALLEST_FOR_SSIM = 11
_DEGRADING = 2**31  # a draw that no step of the restoration uses


@dataclass(frozen=True)
class RestoreConfig:
    """Deblur and denoise images, or fill in their hidden pixels, with a trained model."""

    weights: PathText
    """Weights file, run folder (its newest weights), or folder of `softdiff export`."""
    images: PathText = field(metadata={"help": f"Images to restore, of the model's size: {SOURCE_LIST}."})
    blur_std: float = 0.0
    """Standard deviation of the images' Gaussian blur, in pixels; 0 for images that are only noisy."""
    noise_std: float = 0.0
    """Standard deviation of the images' noise where black is -1 and white is 1: 0.02 is 2.55 of 255 levels.
    That of rounding to 8 bits, 0.0023, is the least that is assumed with a blur."""
    mask: PathText | None = None
    """For a model of masks: the known pixels (white) and the hidden ones (black), one mask for all images or
    one for each, as a PNG file or like --images."""
    reference: PathText | None = None
    """The clean images, in the same order: prints PSNR and SSIM (scikit-image)."""
    degrade: bool = False
    """--images are clean: blur them, add the noise, or hide what --mask hides, and take them as the
    reference."""
    num: int | None = None
    """Use only this many images, from the first."""
    sampler: SamplerName | None = field(
        default=None,
        metadata={
            "help": f"Sampler: {summaries({name: SAMPLERS[name] for name in ORDERED_RULES})}. Default: "
            "ddim, and ancestral for a model of blurring."
        },
    )
    steps: int = 8
    """Sampler steps. Each evaluates the network once; about 4 to 8 give the smallest error."""
    project: bool = True
    """Take up the observed image at each step, and not only at the start."""
    data: PathText | None = None
    """The model's training images, for the spectrum that Wiener's filter needs, if the weights have none."""
    outdir: PathText = "restored"
    """Folder for one PNG per image, numbered in the order of --images, the picture grid.png (the first ten:
    input, Wiener's filter, restored, reference) and restored.json."""
    seed: int = 0
    """Seed of the noise. An image's result does not depend on the images beside it."""
    batch: int = 64
    """Images at a time."""
    ema: float | None = None
    """Decay of the averaged weights to use, of those in a run folder. Default: the first."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        """Raises UserError for values outside their range, and for options that contradict each other."""
        for name in ("steps", "batch", "num"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name}: expected at least 1, got {value}")
        for name in ("blur_std", "noise_std"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag}: expected a finite number of at least 0, got {value}")
        if self.sampler not in (None, *ORDERED_RULES):
            raise UserError(f"--sampler: expected one of {', '.join(ORDERED_RULES)}, got {self.sampler}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed: expected in [0, 2^63), got {self.seed}")
        if self.degrade and self.reference is not None:
            raise UserError("--degrade takes --images as the reference: expected no --reference")
        if self.mask is not None and self.blur_std > 0:
            raise UserError("expected --mask or --blur-std, got both: no model undoes both at once")


@dataclass(frozen=True)
class Observed:
    """What was observed: its gain in the model's basis, [1 or N, 1, H, W], and its noise."""

    gain: Tensor
    noise_std: float

    def of(self, part: Tensor) -> Tensor:
        """The gain of some of the images, by their places."""
        return self.gain if len(self.gain) == 1 else self.gain[part]


def run(config: RestoreConfig, argv: Sequence[str]) -> int:
    """Restores the images."""
    for module in ("safetensors", "PIL", "diffusers"):
        need(module, "softdiff restore")
    restore_images(config)
    return 0


def restore_images(config: RestoreConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Writes the restored images, a picture and restored.json; returns what restored.json holds."""
    if config.reference is not None or config.degrade:
        need("skimage.metrics", "measuring PSNR and SSIM", "restore")
    model = open_model(config.weights, pick_device(config.device), config.ema)
    corruption = model.denoiser.corruption
    config = replace(config, sampler=config.sampler or natural_sampler(corruption))
    given = _load("--images", config.images, model.shape)[: config.num]
    clean = given if config.degrade else None
    if config.reference is not None:
        clean = _load("--reference", config.reference, model.shape)[: config.num]
        if len(clean) != len(given):
            raise UserError(
                f"--reference: expected {len(given)} images, as many as --images, got {len(clean)}"
            )
    observed = _observed(config, corruption, len(given))
    times = _start_times(corruption, observed)
    spectrum = model.spectrum
    if config.data is not None:
        spectrum = load_images(config.data, model.config.size, stream=True).spectrum
        if tuple(spectrum.power.shape) != model.shape:
            raise UserError(f"--data: expected images of {list(model.shape)} (C, H, W), got other ones")
    folder = _new_folder(config.outdir)
    y = _degraded(given, observed, corruption, config.seed) if config.degrade else given
    say(_described(config, corruption, observed, times, len(y), model.step))
    rows = {"input": y}
    if corruption.basis == "dct" and spectrum is not None:
        rows["Wiener"] = to_uint8(wiener(y, observed.gain, observed.noise_std, spectrum))
    elif corruption.basis == "dct":
        say("Wiener's filter is left out: the weights hold no spectrum; --data names the training images")
    power = None if spectrum is None else spectrum.variance
    rows["restored"] = _restored(config, model, y, observed, times, power)
    results = {} if clean is None else {name: measured(images, clean) for name, images in rows.items()}
    for line in table(results):
        say(line)
    for i, image in enumerate(rows["restored"]):
        save_png(folder / image_name(i), image)
    if clean is not None:
        rows["reference"] = clean
    titles = {name: f"{name}: {_figures(results[name])}" if name in results else name for name in rows}
    columns = min(SHOWN, len(y))
    save_png(folder / GRID, labelled([(titles[n], tile(x[:SHOWN], columns)) for n, x in rows.items()]))
    record = _record(config, model, observed, times, len(y), results)
    save_json(folder / RECORD, record)
    say(f"{len(y)} images, {GRID} and {RECORD} in {folder}")
    return record


def _load(flag: str, source: str, shape: tuple[int, int, int]) -> Tensor:
    """Images uint8 [N, C, H, W] of the model's shape."""
    images = load_images(source)
    if images.shape != shape:
        expected, got = (" x ".join(map(str, s)) for s in (shape, images.shape))
        raise UserError(
            f"{flag}: expected images of {expected} (channels, height, width), as the model's, got {got} in "
            f"{source}; `softdiff dataset` converts them"
        )
    return images.tensor


def _observed(config: RestoreConfig, corruption: Corruption, count: int) -> Observed:
    """The gain and noise of the images; UserError where the model is not one for them."""
    kind = type(corruption).__name__
    if corruption.basis == "pixels":
        if config.mask is None:
            hint = "not --blur-std" if config.blur_std > 0 else "which pixels are hidden"
            raise UserError(f"expected --mask for a model of masks ({kind}), {hint}")
        return Observed(_masks(config.mask, corruption.image_size, count, config.num), config.noise_std)
    if corruption.basis != "dct":
        raise UserError(f"expected a model of blur, noise or masks, got one of {kind}")
    if config.mask is not None:
        raise UserError(f"--mask: expected a model of masks, got one of {kind}; give --blur-std")
    if config.blur_std == 0 and config.noise_std == 0:
        raise UserError("expected --blur-std or --noise-std over 0, what is to be undone, got neither")
    return Observed(blur_gain(corruption.image_size, config.blur_std), max(config.noise_std, ROUNDING))


def _masks(source: str, size: tuple[int, int], count: int, num: int | None) -> Tensor:
    """1 for known and 0 for hidden pixels, float64 [1 or N, 1, H, W]."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".png":
        pil = need("PIL.Image", "reading images")
        with user_errors("--mask: "), pil.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("L")))[None, None]
    else:
        pixels = load_images(source, channels=1).tensor
    if tuple(pixels.shape[2:]) != tuple(size):
        expected, got = (f"{height} x {width}" for height, width in (size, pixels.shape[2:]))
        raise UserError(f"--mask: expected masks of {expected}, as the model's images, got {got}")
    pixels = pixels[:num]
    if len(pixels) not in (1, count):
        raise UserError(f"--mask: expected 1 mask or {count}, as many as --images, got {len(pixels)}")
    if bool(((pixels > 0) & (pixels < 255)).any()):
        raise UserError("--mask: expected black (hidden) and white (known) pixels only, got grey ones")
    return (pixels == 255).double()


def _start_times(corruption: Corruption, observed: Observed) -> Tensor:
    """Where the restoration of each image starts, float64 [1 or N]."""
    gains, places = observed.gain.unique(dim=0, return_inverse=True)
    try:
        times = [start_time(corruption, gain, observed.noise_std) for gain in gains]
        return torch.tensor(times, dtype=torch.float64)[places]
    except ValueError:
        grid = torch.linspace(0, 1, 257, dtype=torch.float64)
        most = max(float(corruption.noise(t).max()) / corruption.mean(t) for t in grid.tolist())
        if observed.noise_std > most:
            raise UserError(
                f"--noise-std: expected at most {most:.4g}, the strongest noise that the model knows, got "
                f"{observed.noise_std:.4g}"
            ) from None
        if corruption.basis == "pixels":
            raise UserError(
                "--mask: expected pixels that the model has learned to fill in, got a mask that hides others"
            ) from None
        known = f" of {corruption.blur_std(1.0):.4g} px" if isinstance(corruption, BlurCorruption) else ""
        raise UserError(
            f"--blur-std: expected a blur under the strongest that the model knows{known} (with noise "
            f"{most:.4g}), got a stronger one"
        ) from None


def _new_folder(name: str) -> Path:
    folder = Path(name)
    with user_errors("--outdir: "):
        folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.png")):
        raise UserError(f"--outdir: {folder} already holds images; choose another folder, or remove them")
    return folder


def _degraded(clean: Tensor, observed: Observed, corruption: Corruption, seed: int) -> Tensor:
    """Clean images as they would be observed and stored, uint8."""
    key = NoiseKey(seed, draw=_DEGRADING)
    x = decode(clean)
    if corruption.basis == "dct":
        y = corruption.mix([x], [observed.gain])
        return to_uint8(functional.corrupt(y, 0.0, observed.noise_std, key=key))  # type: ignore[arg-type]
    y = to_uint8(functional.corrupt(x, 0.0, observed.noise_std, key=key))  # type: ignore[arg-type]
    return torch.where(observed.gain > 0, y, torch.tensor(HIDDEN_GREY, dtype=torch.uint8))


def _restored(
    config: RestoreConfig,
    model: LoadedModel,
    y: Tensor,
    observed: Observed,
    times: Tensor,
    power: Tensor | None,
) -> Tensor:
    """uint8 [N, C, H, W]. Images that start at the same t together, so that none depends on the others."""
    rule, order = ORDERED_RULES[config.sampler or ""]
    options: dict[str, Any] = {"rule": rule, "order": order, "steps": config.steps}
    out = torch.empty_like(y)
    starts = times.expand(len(y))
    for t in starts.unique():
        for part in (starts == t).nonzero()[:, 0].split(config.batch):
            key = NoiseKey(config.seed, stream=part.to(model.device))
            images, gain = y[part].to(model.device), observed.of(part)
            with user_errors("--sampler: "):
                if model.denoiser.corruption.basis == "pixels":
                    x = inpaint(
                        *(model.denoiser, decode(images), gain > 0, observed.noise_std),
                        **options,
                        project=config.project,
                        key=key,
                    )
                else:
                    x = restore(
                        *(model.denoiser, decode(images), gain, observed.noise_std),
                        **options,
                        project=config.project,
                        power=power,
                        key=key,
                    )
            out[part] = to_uint8(x)
    return out


def measured(images: Tensor, clean: Tensor) -> dict[str, float | None]:
    """Means of PSNR (dB) and SSIM over uint8 images [N, C, H, W].

    SSIM as Wang et al. 2004: a Gaussian window of 1.5 px over 11 px; None for smaller images.
    """
    metrics = need("skimage.metrics", "measuring PSNR and SSIM", "restore")
    pairs = [[x.permute(1, 2, 0).numpy() for x in pair] for pair in zip(clean, images, strict=True)]
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    with np.errstate(divide="ignore"):  # of equal images PSNR is infinite
        psnr = [metrics.peak_signal_noise_ratio(a, b, data_range=255) for a, b in pairs]
    ssim = None
    if min(clean.shape[2:]) >= SMALLEST_FOR_SSIM:
        ssim = float(
            np.mean([metrics.structural_similarity(a, b, data_range=255, **window) for a, b in pairs])
        )
    return {"psnr": float(np.mean(psnr)), "ssim": ssim}


def _figures(result: dict[str, float | None]) -> str:
    ssim = "" if result["ssim"] is None else f", SSIM {result['ssim']:.3f}"
    return f"PSNR {result['psnr']:.2f} dB{ssim}"


def table(results: dict[str, dict[str, float | None]]) -> list[str]:
    """A line for each kind of image."""
    return [f"{name:9} {_figures(result)}" for name, result in results.items()]


def _described(
    config: RestoreConfig, corruption: Corruption, observed: Observed, times: Tensor, count: int, step: int
) -> str:
    what = f"blur {config.blur_std:g} px"
    if corruption.basis == "pixels":
        what = f"{100 * (1 - float(observed.gain.mean())):.1f} % of the pixels hidden"
    start = " to ".join(f"{t:.4f}" for t in sorted({float(times.min()), float(times.max())}))
    return (
        f"{count} images with {what} and noise {observed.noise_std:.4g}: from t = {start} by the "
        f"{config.sampler} sampler in {config.steps} steps, with the weights of step {step}"
    )


def _record(
    config: RestoreConfig,
    model: LoadedModel,
    observed: Observed,
    times: Tensor,
    count: int,
    results: dict[str, dict[str, float | None]],
) -> dict[str, Any]:
    return {
        "weights": os.path.abspath(config.weights),
        "weights_digest": model.digest,
        "step": model.step,
        "images": os.path.abspath(config.images),
        "count": count,
        "degraded_here": config.degrade,
        "blur_std": config.blur_std,
        "mask": config.mask,
        "noise_std": observed.noise_std,
        "start_time": times.tolist() if len(times) > 1 else times.item(),
        "sampler": config.sampler,
        "steps": config.steps,
        "project": config.project,
        "seed": config.seed,
        "results": results,
    }
