# SPDX-License-Identifier: Apache-2.0
"""A data pipeline that blurs: uint8 images in memory to corrupted float32 batches, in images per second."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import functional
from ..diffusion.corruption import paper_blur_std_max
from ..errors import UserError, need
from . import baselines
from .dominated_rows import absent, compete
from .eager_step import FORMS_OF_A_BATCH, decoded, forms
from .forms import FftDct
from .pictures import natural_images
from .turns import agree

_CASE = "data pipeline that blurs"
_SCIPY = "scipy.ndimage.gaussian_filter, threads"
# gaussian_filter samples the Gaussian and cuts it off at 4 standard deviations: from blur_std = 1 px on that
# is within 1e-3 of the operator, a wrong boundary is 1e-1 off.
_SAMPLED_GAUSSIAN = 1e-2
_LEAST_BLUR = 1.0

Step = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def gaussian_filter_step(pool: ThreadPoolExecutor) -> Step:
    """Image by image on a pool of threads, as data sets that corrupt in `__getitem__` do; noise by numpy."""
    scipy = need("scipy.ndimage", "the data pipeline's Gaussian filter")

    def step(x0: Tensor, blur_std: Tensor, noise_std: Tensor, noise: Tensor | None = None) -> Tensor:
        clean = decoded(x0).numpy()
        out = np.empty_like(clean)

        def one(index: int) -> None:
            std = float(blur_std[index])
            scipy.gaussian_filter(clean[index], (0, std, std), mode="reflect", output=out[index])

        list(pool.map(one, range(len(out))))
        drawn = baselines.numpy_noise(x0.float()) if noise is None else noise
        return torch.from_numpy(out).addcmul_(noise_std.view(-1, 1, 1, 1), drawn)

    return step


def _epoch(pixels: Tensor, std: Tensor, sigma: Tensor, order: Tensor, batch: int, step: Step) -> None:
    for index in order.split(batch):
        step(pixels[index], std[index], sigma[index], None)


def pipeline(device: torch.device, size: int, count: int, batch: int, budget: float) -> list[dict[str, Any]]:
    """`count` images in a random order, each with a blur from 1 px to the paper's strongest."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return _pipeline(device, pool, size, count, batch, budget)


def _pipeline(
    device: torch.device, pool: ThreadPoolExecutor, size: int, count: int, batch: int, budget: float
) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(count)
    pixels = natural_images(count, size).to(device)
    order = torch.randperm(count, generator=generator).to(device)
    part = torch.rand(count, generator=generator)
    std = (_LEAST_BLUR + (paper_blur_std_max((size, size)) - _LEAST_BLUR) * part).to(device)
    sigma = torch.full_like(std, 0.1)

    def ours(x0: Tensor, std: Tensor, sigma: Tensor, noise: Tensor | None) -> Tensor:
        x_t = functional.corrupt(x0, std, sigma, noise=noise)
        assert isinstance(x_t, Tensor)
        return x_t

    def by(form: Any) -> Step:
        eager = baselines.corrupt(form)
        return lambda x0, std, sigma, noise: eager(decoded(x0), std, sigma, noise)

    made = forms(FORMS_OF_A_BATCH, size, device)
    steps: dict[str, Step] = {f"decode, {name}": by(made[name]) for name in made if name != FftDct.name}
    bounds = {}
    missing = "" if device.type == "cpu" else "scipy filters images in the CPU's memory only"
    if not missing:
        try:
            steps[_SCIPY] = gaussian_filter_step(pool)
            bounds[_SCIPY] = _SAMPLED_GAUSSIAN
        except UserError as error:
            missing = str(error)
    first = slice(0, min(batch, 8))
    noise = torch.randn(pixels[first].shape, generator=generator).to(device)
    given = (pixels[first], std[first], sigma[first], noise)
    for name, step in steps.items():
        agree(
            f"pipeline, {name}",
            ours(*given),
            step(*given),
            **({"bound": bounds[name]} if name in bounds else {}),
        )

    def epoch(step: Step) -> Callable[[], object]:
        return lambda: _epoch(pixels, std, sigma, order, batch, step)

    about = {"case": _CASE, "what": "uint8 to x_t, shuffled", "size": size, "batch": batch}
    found = compete(
        about,
        epoch(ours),
        {name: epoch(step) for name, step in steps.items()},
        device,
        budget=budget,
        unit="images/s",
        count=count,
        least=3,
    )
    if missing:
        found.append(absent(about, _SCIPY, "images/s", missing))
    return found
