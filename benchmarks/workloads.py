# SPDX-License-Identifier: Apache-2.0
"""Workloads in which the ops, and not a network, take most of the time.

    python -m benchmarks.workloads --out FOLDER [--quick] [--device cpu] [--threads 2]

A schedule over a data set, a data pipeline that blurs and Cold Diffusion's loop, each by this library and by
the fastest eager forms. Writes FOLDER/workloads.json and FOLDER/workloads.md; `command.compete` describes a
row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softdiff_kernels import diffusion, functional
from softdiff_kernels.bench import baselines
from softdiff_kernels.bench.cases import synthetic_photographs
from softdiff_kernels.bench.forms import DctForm, FftDct, FourProduct, TwoProduct
from softdiff_kernels.bench.packages import ScipyDct, ScipyNdimageBlur, make
from softdiff_kernels.diffusion.schedule import paper_blur_std_max

from .command import Op, Rows, absent, compete, main
from .steps import FOR_A_BATCH, decoded, shared_product

LEVELS = 256
_CHUNK = 32  # images of 64 px that eager forms transform at once: in the caches, a third faster than 512
# gaussian_filter samples the Gaussian and truncates it at 4 standard deviations: from blur_std = 1 px on that
# is within 1e-3 of the operator, a wrong boundary is 1e-1 off.
_SAMPLED_GAUSSIAN = 1e-2


def eager_spectrum(dct2: Op, pixels: Tensor) -> diffusion.PowerSpectrum:
    """`power_spectrum` with any transform and the shortest loop around it: sums in float64."""
    total = torch.zeros(pixels.shape[1:], dtype=torch.float64, device=pixels.device)
    squares = torch.zeros_like(total)
    for part in pixels.split(_CHUNK):
        u = dct2(decoded(part))
        total += u.sum(dim=0, dtype=torch.float64)
        squares += u.square_().sum(dim=0, dtype=torch.float64)
    count = len(pixels)
    return diffusion.PowerSpectrum((total / count).cpu(), (squares / count).cpu(), count)


def statistics(device: torch.device, size: int, count: int, budget: float) -> Rows:
    """The power spectrum of `count` images, beside a loop with each transform; then the same and the
    distances of all pairs of levels of the paper's schedule, which are computed alike for all."""
    pixels = synthetic_photographs(min(count, 500), size)[torch.arange(count) % 500].to(device)
    scipy, why = make(ScipyDct, size, size, torch.float32, device)
    forms = [FourProduct(size, size).to(device), FftDct(size, size).to(device), *([scipy] if scipy else [])]
    loops = {f.name: partial(eager_spectrum, f.dct2, pixels) for f in forms if isinstance(f, DctForm)}

    def ours() -> diffusion.PowerSpectrum:
        return diffusion.power_spectrum(pixels.split(512))

    def power(spectrum: Op) -> Op:
        return lambda: spectrum().power

    def distances(spectrum: Op) -> Op:
        levels = np.linspace(0.01, paper_blur_std_max((size, size)), LEVELS)
        noise = np.zeros(LEVELS)
        return lambda: torch.from_numpy(diffusion.wasserstein_distances(spectrum(), levels, noise))

    about = {"case": "schedule of a data set", "size": size, "batch": count}
    timed: Rows = []
    for what, result in (("power_spectrum", power), (f"the same and W2 of {LEVELS} levels", distances)):
        others = {name: result(loop) for name, loop in loops.items()}
        timed += compete({**about, "what": what}, result(ours), others, device, budget=budget, least=3)
    return timed if scipy else [*timed, absent({**about, "what": what}, ScipyDct.name, "ms", why)]


class ThreadedNdimage(ScipyNdimageBlur):
    """Image by image on a pool of threads, as data sets that corrupt in `__getitem__` do."""

    name = "scipy.ndimage.gaussian_filter, threads"

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self.pool = ThreadPoolExecutor(torch.get_num_threads())

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        """x: [B, C, H, W]; blur_std: [B]."""
        return torch.cat(list(self.pool.map(super().blur, x.split(1), blur_std.split(1))))


def pipeline(device: torch.device, size: int, count: int, batch: int, budget: float) -> Rows:
    """A data pipeline that blurs: `count` uint8 images in memory, in a random order, to corrupted float32
    batches; each with a blur from 1 px to the paper's strongest."""
    generator = torch.Generator().manual_seed(count)
    pixels = synthetic_photographs(count, size).to(device)
    order = torch.randperm(count, generator=generator).to(device)
    part = torch.rand(count, generator=generator)
    std = (1.0 + (paper_blur_std_max((size, size)) - 1.0) * part).to(device)
    sigma = torch.full_like(std, 0.1)

    def ours(x0: Tensor, std: Tensor, sigma: Tensor, noise: Tensor | None = None) -> Any:
        return functional.corrupt(x0, std, sigma, noise=noise)

    def by(corrupt: Op) -> Op:
        return lambda x0, *given: corrupt(decoded(x0), *given)

    def epoch(step: Op) -> Op:
        def run(noise: Tensor | None = None) -> Any:
            for index in order.split(batch):
                given = None if noise is None else noise[index]
                last = step(pixels[index], std[index], sigma[index], given)
            return last

        return run

    others = {
        f"decode, {kind.name}": epoch(by(baselines.corrupt(kind(size, size).to(device))))
        for kind in FOR_A_BATCH
    }
    ndimage, why = make(ThreadedNdimage, size, size, torch.float32, device)
    if ndimage:
        others[ndimage.name] = epoch(by(baselines.corrupt(ndimage, baselines.numpy_noise)))
    what = "uint8 to x_t, shuffled"
    about = {"case": "data pipeline that blurs", "what": what, "size": size, "batch": batch}
    limits: dict[str, Any] = {"unit": "images/s", "count": count, "budget": budget, "least": 3}
    limits["check"] = (torch.randn(pixels.shape, generator=generator).to(device),)
    limits["bounds"] = {ThreadedNdimage.name: _SAMPLED_GAUSSIAN}
    timed = compete(about, epoch(ours), others, device, **limits)
    return timed if ndimage else [*timed, absent(about, ThreadedNdimage.name, "images/s", why)]


@torch.no_grad()
def cold_loop(device: torch.device, size: int, batch: int, steps: int, budget: float) -> Rows:
    """Cold Diffusion's loop, `x_s = x_t + (C_s - C_t) x0_hat`, from t = 1 to 0 with next to no network.

    Bansal et al. 2022, Algorithm 2. What an eager loop can compute before it starts is computed before it is
    timed: operators or masks for all times.
    """
    corruption = diffusion.BlurCorruption.paper((size, size))
    stds = [corruption.blur_std(float(t)) for t in diffusion.time_steps(steps)]
    std = torch.tensor(stds, device=device)
    start = functional.blur(decoded(synthetic_photographs(batch, size)).to(device), stds[0])
    four, fft = FourProduct(size, size).to(device), FftDct(size, size).to(device)
    operators = list(TwoProduct(size, size).to(device).operators(std)[0])
    gains = list(four.gain(std)[:, None])

    def loop(step: Op, tables: Sequence[Any]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            x = start
            for at_t, at_s in pairwise(tables):
                x = step(x, x.clamp(-1.0, 1.0), at_t, at_s)  # in the network's place
            return x

        return run

    def fused(x: Tensor, x0_hat: Tensor, t: float, s: float) -> Tensor:
        return functional.reverse_step(x, x0_hat, blur_std_t=t, blur_std_s=s, a=1.0, b=0.0)

    def two_blurs(x: Tensor, x0_hat: Tensor, a_t: Tensor, a_s: Tensor) -> Tensor:
        return x - shared_product(a_t, x0_hat, a_t) + shared_product(a_s, x0_hat, a_s)

    def one_mask(form: DctForm) -> Op:
        """`idct2((m_s - m_t) dct2(x0_hat))`: the two blurs share their transforms."""
        return lambda x, x0_hat, m_t, m_s: x + form.idct2((m_s - m_t) * form.dct2(x0_hat))

    others = {
        "two blurs, operators kept": loop(two_blurs, operators),
        "one mask, four-product": loop(one_mask(four), gains),
        "one mask, FFT-DCT": loop(one_mask(fft), gains),
    }
    about = {"case": "Cold Diffusion's loop", "what": f"a step, of {steps}", "size": size, "batch": batch}
    return compete(about, loop(fused, stds), others, device, budget=budget, count=steps, least=3)


FULL = [
    partial(statistics, size=64, count=2000, budget=1.0),
    partial(pipeline, size=64, count=256, batch=64, budget=0.8),
    partial(cold_loop, size=64, batch=16, steps=20, budget=0.6),
    partial(cold_loop, size=128, batch=4, steps=20, budget=0.6),
]
QUICK = [
    partial(statistics, size=32, count=200, budget=0.1),
    partial(pipeline, size=32, count=32, batch=16, budget=0.1),
    partial(cold_loop, size=32, batch=8, steps=10, budget=0.1),
]

if __name__ == "__main__":
    sys.exit(main("workloads", FULL, QUICK, sys.argv[1:]))
