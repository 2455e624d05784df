# SPDX-License-Identifier: Apache-2.0
"""Workloads in which the ops, and not a network, take most of the time.

    python -m benchmarks.workloads --out FOLDER [--quick] [--device cpu] [--threads 2]

A schedule over a data set, a data pipeline that blurs, tiny networks, small batches and Cold Diffusion's
loop, each by this library and by the fastest eager forms, whose results are compared with ours before they
are timed. Writes FOLDER/workloads.json and FOLDER/workloads.md. `command.rows` describes a row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softdiff_kernels import functional
from softdiff_kernels.bench import baselines, report
from softdiff_kernels.bench.cases import CHANNELS, synthetic_photographs
from softdiff_kernels.bench.forms import DctForm, FftDct, Form, FourProduct, TwoProduct
from softdiff_kernels.bench.packages import ScipyDct, make
from softdiff_kernels.bench.timing import Call, clock_of, contest
from softdiff_kernels.diffusion import (
    Corruption,
    PowerSpectrum,
    SoftDenoiser,
    power_spectrum,
    time_steps,
    wasserstein_distances,
)
from softdiff_kernels.diffusion.schedule import paper_blur_std_max
from softdiff_kernels.errors import UserError, need

from . import eager
from .command import Step, absent, main, rows
from .eager import TIME_T, EagerDenoiser, agree, decoded

Rows = list[dict[str, Any]]
Op = Callable[..., Any]
LEVELS = 256
_BLOCK = 8  # calls on a GPU between two events: the host runs ahead where it can, as in a loop of steps
_CHUNK = 32  # images of 64 px that eager forms transform at once: in the caches, a third faster than 512
_NDIMAGE = "scipy.ndimage.gaussian_filter, threads"
# gaussian_filter samples the Gaussian and truncates it at 4 standard deviations: from blur_std = 1 px on that
# is within 1e-3 of the operator, a wrong boundary is 1e-1 off.
_SAMPLED_GAUSSIAN = 1e-2
_LEAST_BLUR = 1.0


def compete(
    about: Mapping[str, Any],
    ours: Call,
    others: Mapping[str, Call],
    device: torch.device,
    *,
    unit: str = "ms",
    count: float = 1.0,
    note: str = "",
    **limits: Any,
) -> Rows:
    """Times ours, twice, and the others, interleaved; a row for each of these."""
    block = _BLOCK if device.type == "cuda" else 1
    timings, floors = contest(ours, others, clock_of(device), block=block, **{"most": 100, **limits})
    return rows(about, timings, floors, unit=unit, count=count, note=note)


def checked(what: str, ours: Op, others: Mapping[str, Op], *given: Any, **options: Any) -> None:
    """Compares the others' results with ours on the same arguments. Raises WrongResult."""
    exact = ours(*given)
    for name, call in others.items():
        agree(f"{what}, {name}", exact, call(*given), **options)


def levels(size: int, count: int = LEVELS) -> np.ndarray:
    """The candidates of the paper's schedule, in pixels: float64 [count]."""
    return np.linspace(0.01, paper_blur_std_max((size, size)), count)


def eager_spectrum(dct2: Op, pixels: Tensor) -> PowerSpectrum:
    """`power_spectrum` with any transform and the shortest loop around it: sums in float64."""
    total = torch.zeros(pixels.shape[1:], dtype=torch.float64, device=pixels.device)
    squares = torch.zeros_like(total)
    for part in pixels.split(_CHUNK):
        u = dct2(decoded(part))
        total += u.sum(dim=0, dtype=torch.float64)
        squares += u.square_().sum(dim=0, dtype=torch.float64)
    count = len(pixels)
    return PowerSpectrum((total / count).cpu(), (squares / count).cpu(), count)


def statistics(device: torch.device, size: int, count: int, budget: float) -> Rows:
    """The power spectrum of `count` images by one loop with each transform, by the library itself, and with
    the W2 distances of all pairs of levels; the latter two beside the fastest other only."""
    unique = synthetic_photographs(min(count, 500), size)
    pixels = unique.repeat(-(-count // len(unique)), 1, 1, 1)[:count].to(device)
    scipy, why = make(ScipyDct, size, size, torch.float32, device)
    forms = [FourProduct(size, size).to(device), FftDct(size, size).to(device), *([scipy] if scipy else [])]
    transforms: dict[str, Op] = {form.name: form.dct2 for form in forms if isinstance(form, DctForm)}

    def with_distances(spectrum: Call) -> Call:
        return lambda: wasserstein_distances(spectrum(), levels(size), np.zeros(LEVELS))  # type: ignore

    def ours() -> PowerSpectrum:
        return power_spectrum(pixels.split(512))

    loops = {name: partial(eager_spectrum, dct2, pixels) for name, dct2 in transforms.items()}
    for name, loop in loops.items():
        agree(f"power spectrum, {name}", ours().power, loop().power)  # type: ignore
    about = {"case": "schedule of a data set", "size": size, "batch": count}
    limits: dict[str, Any] = {"budget": budget, "least": 3}
    first = {**about, "what": "power spectrum, one loop for all"}
    timed = compete(first, partial(eager_spectrum, functional.dct2, pixels), loops, device, **limits)
    fastest = min(timed, key=lambda row: float(row["other"]))["other_name"]
    timed += [] if scipy else [absent(first, ScipyDct.name, "ms", why)]
    one = {fastest: loops[fastest]}
    timed += compete({**about, "what": "power_spectrum"}, ours, one, device, **limits)
    what = f"power_spectrum and W2 of all pairs of {LEVELS} levels"
    both = {name: with_distances(call) for name, call in one.items()}
    note = "the distances are the same for both"
    return timed + compete({**about, "what": what}, with_distances(ours), both, device, note=note, **limits)


def sheet(device: torch.device, size: int, images: int, count: int, budget: float) -> Rows:
    """Every image at every level of the schedule, an image at a time."""
    x0 = decoded(synthetic_photographs(images, size)).to(device)
    std = torch.from_numpy(levels(size, count)).float().to(device)
    four, two = FourProduct(size, size).to(device), TwoProduct(size, size).to(device)

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
        """An operator for each level, computed once for all images; the first product has 3 N columns."""
        a, _ = two.operators(std)
        for x in x0:
            stacked = x.reshape(1, CHANNELS * size, size).expand(count, -1, -1)
            last = torch.matmul(a[:, None], torch.bmm(stacked, a).view(count, CHANNELS, size, size))
        return last

    others = {"two-product, operators kept": operators, "four-product, one forward DCT": one_transform}
    checked("corruption sheet", ours, others)
    what = f"corruption sheet: {images} images at {count} levels"
    about = {"case": "schedule of a data set", "what": what, "size": size, "batch": count}
    return compete(about, ours, others, device, budget=budget, least=3)


def _by_ndimage(pool: ThreadPoolExecutor) -> Op:
    """Image by image on a pool of threads, as data sets that corrupt in `__getitem__` do; noise by numpy."""
    ndimage = need("scipy.ndimage", "the data pipeline's Gaussian filter")

    def step(x0: Tensor, blur_std: Tensor, noise_std: Tensor, noise: Tensor | None = None) -> Tensor:
        clean = decoded(x0).numpy()
        out = np.empty_like(clean)

        def one(index: int) -> None:
            std = float(blur_std[index])
            ndimage.gaussian_filter(clean[index], (0, std, std), mode="reflect", output=out[index])

        list(pool.map(one, range(len(out))))
        drawn = baselines.numpy_noise(x0.float()) if noise is None else noise
        return torch.from_numpy(out).addcmul_(noise_std.view(-1, 1, 1, 1), drawn)

    return step


def pipeline(device: torch.device, size: int, count: int, batch: int, budget: float) -> Rows:
    """A data pipeline that blurs: `count` uint8 images in memory, in a random order, to corrupted float32
    batches; each with a blur from 1 px to the paper's strongest."""
    generator = torch.Generator().manual_seed(count)
    pixels = synthetic_photographs(count, size).to(device)
    order = torch.randperm(count, generator=generator).to(device)
    part = torch.rand(count, generator=generator)
    std = (_LEAST_BLUR + (paper_blur_std_max((size, size)) - _LEAST_BLUR) * part).to(device)
    sigma = torch.full_like(std, 0.1)

    def ours(x0: Tensor, std: Tensor, sigma: Tensor, noise: Tensor | None = None) -> Any:
        return functional.corrupt(x0, std, sigma, noise=noise)

    def by(form: Form) -> Op:
        corrupt = baselines.corrupt(form)
        return lambda x0, *given: corrupt(decoded(x0), *given)

    def epoch(step: Op) -> Call:
        def run() -> None:
            for index in order.split(batch):
                step(pixels[index], std[index], sigma[index])

        return run

    first = slice(0, min(batch, 8))
    noise = torch.randn(pixels[first].shape, generator=generator).to(device)
    given = (pixels[first], std[first], sigma[first], noise)
    made = eager.forms(eager.FOR_A_BATCH, size, device)
    steps = {f"decode, {name}": by(form) for name, form in made.items() if name != FftDct.name}
    checked("pipeline", ours, steps, *given)
    about = {
        "case": "data pipeline that blurs",
        "what": "uint8 to x_t, shuffled",
        "size": size,
        "batch": batch,
    }
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        missing = "" if device.type == "cpu" else "scipy filters images in the CPU's memory only, not CUDA's"
        try:
            if not missing:
                steps[_NDIMAGE] = _by_ndimage(pool)
                checked("pipeline", ours, {_NDIMAGE: steps[_NDIMAGE]}, *given, bound=_SAMPLED_GAUSSIAN)
        except UserError as error:
            missing = str(error)
        epochs = {name: epoch(step) for name, step in steps.items()}
        limits: dict[str, Any] = {"unit": "images/s", "count": count, "budget": budget, "least": 3}
        timed = compete(about, epoch(ours), epochs, device, **limits)
    return [*timed, absent(about, _NDIMAGE, "images/s", missing)] if missing else timed


class TwoLayers(nn.Module):
    """`f(x, t)`: two 3 x 3 convolutions with 16 channels between them; t is left out."""

    def __init__(self) -> None:
        super().__init__()
        first, last = nn.Conv2d(CHANNELS, 16, 3, padding=1), nn.Conv2d(16, CHANNELS, 3, padding=1)
        self.net = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: [B, 3, H, W]; t: [B]."""
        out: Tensor = self.net(x)
        return out


def tiny_network(device: torch.device, size: int, batch: int, budget: float) -> Rows:
    """Whole training and sampling steps with a network that costs next to nothing."""
    fused = SoftDenoiser(TwoLayers().to(device), Corruption.paper((size, size)))
    x0 = synthetic_photographs(batch, size).to(device)
    made = eager.forms(eager.FOR_A_BATCH, size, device)
    others = {name: EagerDenoiser(fused, form) for name, form in made.items()}
    noise, t = torch.randn(x0.shape, device=device), torch.linspace(0.05, 0.95, batch, device=device)

    def loss_and_gradients(denoiser: SoftDenoiser) -> tuple[Tensor, ...]:
        denoiser.zero_grad()
        loss = denoiser.loss(x0, t, noise=noise)
        loss.mean().backward()
        return (loss.detach(), *(p.grad.clone() for p in denoiser.parameters() if p.grad is not None))

    exact = loss_and_gradients(fused)
    for name, denoiser in others.items():
        agree(f"training step, {name}", exact, loss_and_gradients(denoiser))
    optimiser = torch.optim.Adam(fused.parameters(), lr=1e-5)

    def training(denoiser: SoftDenoiser) -> Call:
        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            denoiser.loss(x0).mean().backward()
            optimiser.step()

        return step

    about = {"case": "network of two layers", "size": size, "batch": batch}
    steps = {name: training(denoiser) for name, denoiser in others.items()}
    timed = compete({**about, "what": "training step"}, training(fused), steps, device, budget=budget)
    with torch.no_grad():
        estimate = lambda x: fused(x, TIME_T)  # noqa: E731
        what = {**about, "what": "sampling step"}
        return timed + _momentum(what, estimate, decoded(x0), eager.FOR_ONE_TIME, budget=budget)


def _momentum(
    about: Mapping[str, Any], estimate: Op, x_t: Tensor, kinds: Sequence[type[Form]], **limits: Any
) -> Rows:
    """A step of the Momentum Sampler, its levels as numbers, with any estimate of x_0."""
    device = x_t.device
    given = eager.sampler_levels(Corruption.paper((x_t.shape[-1], x_t.shape[-1])))
    made = eager.forms(kinds, x_t.shape[-1], device)
    printed = {name: eager.momentum(form, device) for name, form in made.items()}

    def ours(noise: Tensor | None = None) -> Tensor:
        return functional.momentum_step(x_t, estimate(x_t), **given, noise=noise)

    def by(step: Op) -> Op:
        return lambda noise=None: step(x_t, estimate(x_t), *given.values(), noise=noise)

    others = {name: by(step) for name, step in printed.items()}
    checked(str(about["what"]), ours, others, torch.randn_like(x_t))
    return compete(about, ours, others, device, **limits)


@torch.no_grad()
def small_batches(device: torch.device, size: int, batch: int, budget: float) -> Rows:
    """Microseconds of a call of corrupt and of momentum_step on a batch of 1 to 16."""
    x0 = decoded(synthetic_photographs(batch, size)).to(device)
    corruption = Corruption.paper((size, size))
    t = torch.linspace(0.2, 0.9, batch, device=device)
    given = (x0, corruption.blur_std(t), corruption.noise_std(t))

    def ours(*values: Tensor, noise: Tensor | None = None) -> Any:
        return functional.corrupt(*values[:3], noise=noise if len(values) < 4 else values[3])

    made = eager.forms(eager.FOR_A_BATCH, size, device)
    others = {name: baselines.corrupt(form) for name, form in made.items() if name != FftDct.name}
    checked("corrupt", ours, others, *given, torch.randn_like(x0))
    about = {"case": "small batches", "size": size, "batch": batch}
    limits: dict[str, Any] = {"unit": "us", "budget": budget, "most": 400}
    what = {**about, "what": "corrupt"}
    timed = compete(
        what,
        partial(ours, *given),
        {name: partial(call, *given) for name, call in others.items()},
        device,
        **limits,
    )
    what = {**about, "what": "momentum_step"}
    return timed + _momentum(what, lambda x: 0.9 * x, x0, eager.FOR_ONE_TIME, **limits)


@torch.no_grad()
def cold_loop(device: torch.device, size: int, batch: int, steps: int, budget: float) -> Rows:
    """Cold Diffusion's loop, `x_s = x_t + (C_s - C_t) x0_hat`, from t = 1 to 0 with next to no network.

    Bansal et al. 2022, Algorithm 2. What an eager loop can compute before it starts is computed before it is
    timed: operators or masks for all times.
    """
    corruption = Corruption.paper((size, size))
    stds = [corruption.blur_std(float(t)) for t in time_steps(steps)]
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
        return x - eager.shared_product(a_t, x0_hat, a_t) + eager.shared_product(a_s, x0_hat, a_s)

    def one_mask(form: DctForm) -> Op:
        """`idct2((m_s - m_t) dct2(x0_hat))`: the two blurs share their transforms."""
        return lambda x, x0_hat, m_t, m_s: x + form.idct2((m_s - m_t) * form.dct2(x0_hat))

    others = {
        "two blurs, operators kept": loop(two_blurs, operators),
        "one mask, four-product": loop(one_mask(four), gains),
        "one mask, FFT-DCT": loop(one_mask(fft), gains),
    }
    checked("Cold Diffusion's loop", loop(fused, stds), others)
    about = {"case": "Cold Diffusion's loop", "what": f"a step, of {steps}", "size": size, "batch": batch}
    return compete(about, loop(fused, stds), others, device, budget=budget, count=steps, least=3)


def plan(device: torch.device, quick: bool) -> Iterator[Step]:
    """Every workload by name; quick: fewer and smaller ones, each for a shorter time."""
    if quick:
        yield "schedule, 32 px", partial(statistics, device, 32, count=200, budget=0.1)
        yield "corruption sheet, 32 px", partial(sheet, device, 32, images=2, count=64, budget=0.1)
        yield "data pipeline, 32 px", partial(pipeline, device, 32, count=32, batch=16, budget=0.1)
        yield "network of two layers, 32 px", partial(tiny_network, device, 32, batch=8, budget=0.05)
        yield "batches of 4", partial(small_batches, device, 64, batch=4, budget=0.05)
        yield "Cold Diffusion, 32 px", partial(cold_loop, device, 32, batch=8, steps=10, budget=0.1)
        return
    yield "schedule, 64 px", partial(statistics, device, 64, count=2000, budget=1.0)
    yield "corruption sheet, 64 px", partial(sheet, device, 64, images=4, count=LEVELS, budget=0.8)
    yield "data pipeline, 64 px", partial(pipeline, device, 64, count=256, batch=64, budget=0.8)
    for size in (32, 64):
        yield f"network of two layers, {size} px", partial(tiny_network, device, size, batch=16, budget=0.3)
    for batch in (1, 4, 16):
        yield f"batches of {batch}", partial(small_batches, device, 64, batch=batch, budget=0.15)
    for size, batch in ((64, 16), (128, 4)):
        loop = partial(cold_loop, device, size, batch=batch, steps=20, budget=0.6)
        yield f"Cold Diffusion, {size} px", loop


_LEGEND = (
    "ratio: how many times as long the other takes, medians of interleaved calls; none: the difference is "
    "below the noise of the run, in which ours was timed twice. Each result was compared with ours before."
)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


_COLUMNS: list[report.Column] = [
    ("case", lambda row: row["case"]),
    ("what", lambda row: row["what"]),
    ("px", lambda row: str(row["size"])),
    ("batch", lambda row: str(row["batch"])),
    ("ours", lambda row: _number(row["ours"])),
    ("other", lambda row: row["other_name"]),
    ("", lambda row: _number(row["other"])),
    ("unit", lambda row: row["unit"]),
    ("ratio", lambda row: "" if row["ours"] is None else report.shown(row["ratio"]) or "none"),
    ("noise", lambda row: report.shown(row["noise"], "{:.0%}")),
    ("note", lambda row: row["note"]),
]


def table(timed: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table, and a legend."""
    return f"{report.table(_COLUMNS, timed)}\n\n{_LEGEND}"


if __name__ == "__main__":
    sys.exit(main("workloads", plan, table, sys.argv[1:]))
