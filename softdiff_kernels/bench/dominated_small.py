# SPDX-License-Identifier: Apache-2.0
"""Where calls, not networks, take the time: a network of two layers, and batches of 1 to 16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..diffusion import Corruption, SoftDenoiser
from ..noise import NoiseKey
from . import baselines, clock, eager_step
from .dominated_rows import absent, compete, rows
from .eager_step import EagerDenoiser, decoded
from .forms import FftDct
from .measure import noise_floor, summary
from .pictures import CHANNELS, natural_images
from .turns import AGAIN, OURS, agree

TIME_T, TIME_S = 0.2, 0.18
_TINY, _LAUNCH = "network of two layers", "small batches"
_NO_GRAPH = "CUDA graphs need a CUDA device"


class TwoLayers(nn.Module):
    """`f(x, t)`: two 3 x 3 convolutions with 16 channels between them; t is left out."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(CHANNELS, hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(hidden, CHANNELS, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: [B, 3, H, W]; t: [B]."""
        out: Tensor = self.net(x)
        return out


def _levels(corruption: Corruption) -> dict[str, Any]:
    t, s = TIME_T, TIME_S
    return {
        "blur_std_t": corruption.blur_std(t),
        "blur_std_s": corruption.blur_std(s),
        "noise_std_t": corruption.noise_std(t),
        "noise_std_s": corruption.noise_std(s),
    }


def _loss_and_slopes(denoiser: SoftDenoiser, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    denoiser.zero_grad()
    loss = denoiser.loss(x0, t, noise=noise)
    loss.mean().backward()
    return (loss.detach(), *(p.grad.clone() for p in denoiser.parameters() if p.grad is not None))


def tiny_network(device: torch.device, size: int, batch: int, budget: float) -> list[dict[str, Any]]:
    """Whole training and sampling steps with a network that costs next to nothing."""
    corruption = Corruption.paper((size, size))
    fused = SoftDenoiser(TwoLayers().to(device), corruption)
    x0 = natural_images(batch, size).to(device)
    made = eager_step.forms(eager_step.FORMS_OF_A_BATCH, size, device)
    twins = {name: EagerDenoiser(fused, form) for name, form in made.items()}
    noise = torch.randn(x0.shape, device=device)
    t = torch.linspace(0.05, 0.95, batch, device=device)
    exact = _loss_and_slopes(fused, x0, t, noise)
    for name, twin in twins.items():
        agree(f"training step, {name}", exact, _loss_and_slopes(twin, x0, t, noise))
    optimiser = torch.optim.Adam(fused.parameters(), lr=1e-5)

    def training(denoiser: SoftDenoiser) -> Callable[[], object]:
        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            denoiser.loss(x0).mean().backward()
            optimiser.step()

        return step

    about = {"case": _TINY, "size": size, "batch": batch}
    found = compete(
        {**about, "what": "training step"},
        training(fused),
        {name: training(twin) for name, twin in twins.items()},
        device,
        budget=budget,
        unit="ms",
    )
    return found + _tiny_sampling(about, fused, decoded(x0), device, budget)


@torch.no_grad()
def _tiny_sampling(
    about: dict[str, Any], denoiser: SoftDenoiser, x_t: Tensor, device: torch.device, budget: float
) -> list[dict[str, Any]]:
    given = _levels(denoiser.corruption)
    made = eager_step.forms(eager_step.FORMS_OF_ONE_TIME, x_t.shape[-1], device)
    steps = {name: eager_step.momentum(form, device) for name, form in made.items()}
    noise = torch.randn_like(x_t)
    exact = functional.momentum_step(x_t, denoiser(x_t, TIME_T), **given, noise=noise)
    for name, step in steps.items():
        result = step(x_t, denoiser(x_t, TIME_T), *given.values(), noise=noise)
        agree(f"sampling step, {name}", exact, result)

    def by(step: Any) -> Callable[[], object]:
        return lambda: step(x_t, denoiser(x_t, TIME_T), *given.values())

    return compete(
        {**about, "what": "sampling step"},
        lambda: functional.momentum_step(x_t, denoiser(x_t, TIME_T), **given),
        {name: by(step) for name, step in steps.items()},
        device,
        budget=budget,
        unit="ms",
    )


def _host(
    about: dict[str, Any], calls: dict[str, Callable[[], object]], device: torch.device, count: int
) -> list[dict[str, Any]]:
    """Microseconds that the host takes to enqueue a call, each timed over three turns."""
    taken: dict[str, list[float]] = {name: [] for name in (OURS, AGAIN, *calls)}
    for _ in range(3):
        for name in taken:
            call = calls[OURS if name == AGAIN else name]
            taken[name].append(clock.host_seconds(lambda i, call=call: call(), device, calls=count))  # type: ignore[misc]
    timings = {name: summary(samples) for name, samples in taken.items()}
    floors = {n: noise_floor(timings[OURS], timings[AGAIN], timings[n]) for n in calls if n != OURS}
    return rows(about, timings, floors, unit="us", note="host alone")


def _launches(
    what: str,
    ours: Callable[[], object],
    graphable: Callable[[], object],
    others: dict[str, Callable[[], object]],
    device: torch.device,
    shape: tuple[int, int],
    budget: float,
) -> list[dict[str, Any]]:
    size, batch = shape
    about = {"case": _LAUNCH, "what": what, "size": size, "batch": batch}
    in_graph = {**about, "what": f"{what}, CUDA graph"}
    found = compete(about, ours, others, device, budget=budget, unit="us", most=400)
    if device.type != "cuda":
        return [*found, absent(in_graph, "eager in a graph", "us", _NO_GRAPH)]
    found += _host({**about, "what": f"{what}, host"}, {OURS: ours, **others}, device, 300)
    replays = {name: clock.graphed(call) for name, call in others.items()}
    return found + compete(in_graph, clock.graphed(graphable), replays, device, budget=budget, unit="us")


@torch.no_grad()
def launches(device: torch.device, size: int, batch: int, budget: float) -> list[dict[str, Any]]:
    """Microseconds of a call of corrupt and of momentum_step on a batch of 1 to 16, and as a CUDA graph."""
    x0 = decoded(natural_images(batch, size)).to(device)
    corruption = Corruption.paper((size, size))
    t = torch.linspace(0.2, 0.9, batch, device=device)
    std, sigma = corruption.blur_std(t), corruption.noise_std(t)
    noise = torch.randn_like(x0)
    draw = torch.zeros((), dtype=torch.int64, device=device)

    def by_form(form: Any) -> Callable[..., Tensor]:
        return baselines.corrupt(form)

    def fresh() -> NoiseKey:
        """Counts on the device, so that each replay of a graph draws anew."""
        return NoiseKey(0, draw=draw.add_(1))

    made = eager_step.forms(eager_step.FORMS_OF_A_BATCH, size, device)
    made.pop(FftDct.name)
    ways = {name: by_form(form) for name, form in made.items()}
    for name, way in ways.items():
        agree(f"corrupt, {name}", functional.corrupt(x0, std, sigma, noise=noise), way(x0, std, sigma, noise))
    found = _launches(
        "corrupt",
        lambda: functional.corrupt(x0, std, sigma),
        lambda: functional.corrupt(x0, std, sigma, key=fresh()),
        {name: (lambda way=way: way(x0, std, sigma)) for name, way in ways.items()},  # type: ignore[misc]
        device,
        (size, batch),
        budget,
    )
    given, x0_hat = _levels(corruption), 0.9 * x0
    one_time = eager_step.forms(eager_step.FORMS_OF_ONE_TIME, size, device)
    one_time.pop(FftDct.name)

    def by_step(step: Any) -> Callable[[], object]:
        return lambda: step(x0, x0_hat, *given.values())

    steps = {name: eager_step.momentum(form, device) for name, form in one_time.items()}
    exact = functional.momentum_step(x0, x0_hat, **given, noise=noise)
    for name, step in steps.items():
        agree(f"momentum_step, {name}", exact, step(x0, x0_hat, *given.values(), noise=noise))
    return found + _launches(
        "momentum_step",
        lambda: functional.momentum_step(x0, x0_hat, **given),
        lambda: functional.momentum_step(x0, x0_hat, **given, key=fresh()),
        {name: by_step(step) for name, step in steps.items()},
        device,
        (size, batch),
        budget,
    )
