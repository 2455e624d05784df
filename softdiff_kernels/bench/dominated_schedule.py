# SPDX-License-Identifier: Apache-2.0
"""A schedule of 256 blur levels over a data set: its distances, and each image at each level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import functional
from ..diffusion import PowerSpectrum, power_spectrum, wasserstein_distances
from ..diffusion.corruption import paper_blur_std_max
from ..errors import UserError, need
from .dominated_rows import absent, compete
from .eager_step import decoded, placed
from .forms import DctForm, FftDct, FourProduct, ScipyDct, TwoProduct
from .pictures import CHANNELS, natural_images
from .turns import agree

LEVELS = 256
_CASE = "schedule of a data set"
_CHUNK = 32  # images of 64 px that the eager forms transform at once: in the caches, a third faster than 512


def levels(size: int, count: int = LEVELS) -> np.ndarray:
    """The candidates of the paper's schedule, in pixels: float64 [count]."""
    return np.linspace(0.01, paper_blur_std_max((size, size)), count)


def eager_spectrum(form: DctForm, pixels: Tensor) -> PowerSpectrum:
    """`power_spectrum` with the transform of a form and the shortest loop around it: sums in float64."""
    total = torch.zeros(pixels.shape[1:], dtype=torch.float64, device=pixels.device)
    squares = torch.zeros_like(total)
    for part in pixels.split(_CHUNK):
        u = form.dct2(decoded(part))
        total += u.sum(dim=0, dtype=torch.float64)
        squares += u.square_().sum(dim=0, dtype=torch.float64)
    count = len(pixels)
    return PowerSpectrum((total / count).cpu(), (squares / count).cpu(), count)


class _Fused(DctForm):
    """This library's transform in the place of a form's."""

    name = "softdiff_kernels"

    def dct2(self, x: Tensor) -> Tensor:
        return functional.dct2(x)


def _no_scipy(device: torch.device) -> str:
    """Why scipy's transform cannot take part; empty where it can."""
    if device.type != "cpu":
        return "scipy transforms images in the CPU's memory only"
    try:
        need("scipy.fft", "scipy's transform")
    except UserError as error:
        return str(error)
    return ""


def _forms(size: int, device: torch.device) -> dict[str, DctForm]:
    kinds: list[type[DctForm]] = [FourProduct, FftDct]
    if not _no_scipy(device):
        kinds.append(ScipyDct)
    found: dict[str, DctForm] = {}
    for kind in kinds:
        form = placed(kind(size, size), device)
        assert isinstance(form, DctForm)
        found[form.name] = form
    return found


def statistics(device: torch.device, size: int, count: int, budget: float) -> list[dict[str, Any]]:
    """The power spectrum of `count` images by one loop with each transform, by the library itself, and with
    the W2 distances of all pairs of levels, there beside the fastest other alone."""
    unique = natural_images(min(count, 500), size)
    pixels = unique.repeat(-(-count // len(unique)), 1, 1, 1)[:count].to(device)
    blur, noise = levels(size), np.zeros(LEVELS)
    forms = _forms(size, device)
    exact = power_spectrum(pixels.split(512))
    for name, form in forms.items():
        agree(f"power spectrum, {name}", exact.power, eager_spectrum(form, pixels).power)

    def ours() -> PowerSpectrum:
        return power_spectrum(pixels.split(512))

    def by(form: DctForm) -> Callable[[], PowerSpectrum]:
        return lambda: eager_spectrum(form, pixels)

    def with_distances(spectrum: Callable[[], PowerSpectrum]) -> Callable[[], object]:
        return lambda: wasserstein_distances(spectrum(), blur, noise)

    same_loop = by(_Fused(size, size))
    others = {name: by(form) for name, form in forms.items()}
    about = {"case": _CASE, "size": size, "batch": count}
    limits: dict[str, Any] = {"budget": budget, "unit": "ms", "least": 3}
    loop = "power spectrum, one loop for all"
    found = compete({**about, "what": loop}, same_loop, others, device, **limits)
    fastest = min(found, key=lambda row: float(row["other"]))["other_name"]
    if why := _no_scipy(device):
        found.append(absent({**about, "what": loop}, ScipyDct.name, "ms", why))
    others = {fastest: others[fastest]}
    found += compete({**about, "what": "power_spectrum"}, ours, others, device, **limits)
    return found + compete(
        {**about, "what": f"power_spectrum and W2 of all pairs of {LEVELS} levels"},
        with_distances(ours),
        {name: with_distances(call) for name, call in others.items()},
        device,
        **limits,
        note="the distances are the same for both",
    )


def sheet(device: torch.device, size: int, images: int, count: int, budget: float) -> list[dict[str, Any]]:
    """Every image at every level, an image at a time."""
    x0 = decoded(natural_images(images, size)).to(device)
    std = torch.from_numpy(levels(size, count)).float().to(device)
    four = placed(FourProduct(size, size), device)
    two = placed(TwoProduct(size, size), device)
    assert isinstance(four, FourProduct) and isinstance(two, TwoProduct)

    def ours() -> Tensor:
        for x in x0:
            last = functional.blur(x.expand(count, CHANNELS, size, size), std)
        return last

    def one_transform() -> Tensor:
        """Each image is transformed once, and back from each level's frequencies."""
        gain = four.gain(std)
        for x in x0:
            last = four.idct2(gain * four.dct2(x[None]))
        return last

    def operators() -> Tensor:
        """An operator for each level, made once for all images; the first product has 3 N columns."""
        a, _ = two.operators(std)
        for x in x0:
            rows = x.reshape(1, CHANNELS * size, size).expand(count, -1, -1)
            y = torch.bmm(rows, a).view(count, CHANNELS, size, size)
            last = torch.matmul(a[:, None], y)
        return last

    others = {"two-product, operators kept": operators, "four-product, one forward DCT": one_transform}
    for name, call in others.items():
        agree(f"corruption sheet, {name}", ours(), call())
    about = {
        "case": _CASE,
        "what": f"corruption sheet: {images} images at {count} levels",
        "size": size,
        "batch": count,
    }
    return compete(about, ours, others, device, budget=budget, unit="ms", least=3)
