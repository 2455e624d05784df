# SPDX-License-Identifier: Apache-2.0
"""Samplers: from x_1 back to an image. Each is a choice of (a, b) in one reverse step,

    x_s = a x_t + (C_s - a C_t) x0_hat + b n,        s < t.

They have the signature of k-diffusion's samplers: `sample_*(model, x, ts, extra_args, callback, disable,
key=...)`.

- model: a `SoftDenoiser`, or any callable `model(x, t[B], **extra_args) -> x0_hat` with a `.corruption`.
- x: x_1, [B, C, H, W]; not modified.
- ts: times that fall within 1 to 0, as a list of numbers or a floating-point tensor (see `time_steps`). The
  model is called once for each time except the last.
- callback: called after each call of the model with a dict of x, i, t and denoised. The step uses what the
  callback writes into x or denoised; no other tensor changes.
- disable: True draws no progress bar.
- key: its stream identifies the images; step i uses draw i + 1 (the prior uses draw 0), so image k is the
  same at any batch size. None: a fresh key from torch's generator.

If ts ends in 0, the last step returns x0_hat itself, without the noise that remains at t = 0 (our choice; the
paper does not say).

To add a sampler, write its function here and enter it in SAMPLERS. `generate` draws images by any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from .. import functional
from ..images import to_uint8
from ..noise import NoiseKey, fresh_key
from .corruption import Corruption
from .denoiser import Guided, SoftDenoiser
from .priors import Prior

SAMPLING_SEED = 0x50F7D1FF
"""Separates the noise of sampled images from that of training images, whose streams also count from 0."""

Callback = Callable[[dict[str, Any]], Any]
# x_t, x0_hat, t, s, corruption, key -> x_s
_Step = Callable[[Tensor, Tensor, float, float, Corruption, NoiseKey], Tensor]


def time_steps(n: int) -> Tensor:
    """n + 1 even times from 1 down to 0, for a sampler of n steps: float64 [n + 1] on the CPU.

    Examples:
        >>> time_steps(4)
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    steps = args.whole(n)
    if steps is None or not 1 <= steps < 2**31:
        raise ValueError(
            "time_steps: expected the number of steps as an int under 2^31 and of at least 1, got "
            f"{args.shown(n)}"
        )
    return torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)


def _run(
    name: str,
    step: _Step,
    model: Any,
    x: Tensor,
    ts: Tensor,
    extra_args: Mapping[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    key: NoiseKey | None,
) -> Tensor:
    corruption = getattr(model, "corruption", None)
    if not isinstance(corruption, Corruption):
        raise TypeError(
            f"{name}: expected a model with a Corruption as its .corruption, got {type(model).__name__}"
        )
    args.image(name, "x", x)
    corruption.check_size(name, x)
    times = _times(name, ts)
    x = x.clone()  # the model, the callback and the caller may write into the tensors that they get
    key = fresh_key() if key is None else key
    extra = dict(extra_args or {})
    for i in _progress(range(len(times) - 1), disable):
        t, s = times[i], times[i + 1]
        x0_hat = model(x, torch.full((x.shape[0],), t, dtype=torch.float32, device=x.device), **extra)
        # A copy for the same reason: a network may return a tensor that it keeps, or x itself.
        x0_hat = x0_hat.to(x.dtype, copy=callback is not None or s == 0.0)
        if callback is not None:
            callback({"x": x, "i": i, "t": t, "denoised": x0_hat})
        x = x0_hat if s == 0.0 else step(x, x0_hat, t, s, corruption, key.at(i + 1))
    return x


def _times(name: str, ts: Tensor) -> list[float]:
    if isinstance(ts, Tensor) and not ts.dtype.is_floating_point:
        raise TypeError(
            f"{name}: expected ts as a list of numbers or a floating-point tensor, got {args.describe(ts)}"
        )
    values = args.numbers(name, "ts", ts, "times")
    if len(values) < 2:
        raise ValueError(f"{name}: expected ts as at least 2 times, got {len(values)}")
    falling = all(a > b for a, b in pairwise(values))
    if not falling or not 0.0 <= values[-1] <= values[0] <= 1.0:
        raise ValueError(f"{name}: expected ts as falling times in [0, 1], got {values[:4]} ... {values[-1]}")
    return values


def _progress(steps: Iterable[int], disable: bool | None) -> Iterable[int]:
    if disable:
        return steps
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return steps
    return tqdm(steps, disable=disable)


@torch.no_grad()
def sample_naive(
    model: Any,
    x: Tensor,
    ts: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = False,
    *,
    key: NoiseKey | None = None,
) -> Tensor:
    """The paper's Naive Sampler (Algorithm 1), for comparison: its samples lack detail.

    It corrupts the estimate again: a = 0, b = noise_std(s). Daras et al. 2022. Arguments and result: see the
    module.

    Examples:
        >>> x0 = torch.zeros(2, 3, 16, 16)
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, Corruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample_naive(denoiser, x_1, time_steps(10), disable=True)
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """

    def step(x_t: Tensor, x0_hat: Tensor, t: float, s: float, c: Corruption, k: NoiseKey) -> Tensor:
        return functional.reverse_step(
            x_t, x0_hat, blur_std_t=c.blur_std(t), blur_std_s=c.blur_std(s), a=0.0, b=c.noise_std(s), key=k
        )

    return _run("sample_naive", step, model, x, ts, extra_args, callback, disable, key)


@torch.no_grad()
def sample_momentum(
    model: Any,
    x: Tensor,
    ts: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = False,
    *,
    key: NoiseKey | None = None,
    variance: str = "large",
) -> Tensor:
    """The paper's Momentum Sampler (Algorithm 2).

    a = r = noise_std(s)^2 / noise_std(t)^2. Daras et al. 2022.

    Where the noise is constant over t the step is deterministic and equals TACoS. Other arguments and result:
    see the module.

    Args:
        variance: "large" adds noise of the paper's standard deviation sqrt(noise_std(t)^2 - noise_std(s)^2),
            "small" of sqrt(r) times that, which is the exact posterior's under independent increments.

    Examples:
        >>> x0 = torch.zeros(2, 3, 16, 16)
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, Corruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample_momentum(denoiser, x_1, time_steps(10), disable=True, key=sk.NoiseKey(0))
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """
    args.choice("sample_momentum", "variance", variance, ("large", "small"))

    def step(x_t: Tensor, x0_hat: Tensor, t: float, s: float, c: Corruption, k: NoiseKey) -> Tensor:
        return functional.momentum_step(
            x_t,
            x0_hat,
            blur_std_t=c.blur_std(t),
            blur_std_s=c.blur_std(s),
            noise_std_t=c.noise_std(t),
            noise_std_s=c.noise_std(s),
            variance=variance,
            key=k,
        )

    return _run("sample_momentum", step, model, x, ts, extra_args, callback, disable, key)


@torch.no_grad()
def sample_ddim(
    model: Any,
    x: Tensor,
    ts: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = False,
    *,
    key: NoiseKey | None = None,
    nu: float = 0.0,
    eta: float | None = None,
) -> Tensor:
    """DDIM applied to blur: deterministic unless fresh noise is asked for.

    It keeps the direction of the noise: a = sqrt(noise_std(s)^2 - nu^2) / noise_std(t), b = nu. Song, Meng &
    Ermon 2021, eq. 12, applied to blur (ours, not the paper's). Other arguments and result: see the module.

    Args:
        nu: Standard deviation of each step's fresh noise, in units of the image, at most noise_std(s) in
            every step. 0 is deterministic, the first-order probability-flow step.
        eta: In [0, 1]. Instead of nu, a fraction of the exact posterior's standard deviation in each step; 1
            is `sample_momentum` with variance "small".

    Examples:
        >>> x0 = torch.zeros(2, 3, 16, 16)
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, Corruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample_ddim(denoiser, x_1, time_steps(10), disable=True, eta=0.5)
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """
    nu = args.number("sample_ddim", "nu", nu)
    if eta is not None:
        eta = args.number("sample_ddim", "eta", eta, most=1.0)
        if nu != 0.0:
            raise ValueError(f"sample_ddim: expected nu or eta, got both ({nu!r} and {eta!r})")

    def step(x_t: Tensor, x0_hat: Tensor, t: float, s: float, c: Corruption, k: NoiseKey) -> Tensor:
        a, b = ddim_coefficients(c.noise_std(t), c.noise_std(s), nu, eta)
        return functional.reverse_step(
            x_t, x0_hat, blur_std_t=c.blur_std(t), blur_std_s=c.blur_std(s), a=a, b=b, key=k
        )

    return _run("sample_ddim", step, model, x, ts, extra_args, callback, disable, key)


def ddim_coefficients(
    noise_std_t: float, noise_std_s: float, nu: float = 0.0, eta: float | None = None
) -> tuple[float, float]:
    """(a, b) of a DDIM step; nu and eta as in `sample_ddim`. For noise_std_t = 0: (1, 0)."""
    if noise_std_t == 0.0:
        return 1.0, 0.0
    if eta is not None:
        gap = (noise_std_t - noise_std_s) * (noise_std_t + noise_std_s)
        nu = eta * noise_std_s * math.sqrt(max(gap, 0.0)) / noise_std_t
    if nu > noise_std_s:
        raise ValueError(f"sample_ddim: expected nu of at most noise_std(s) = {noise_std_s:.6g}, got {nu!r}")
    return math.sqrt((noise_std_s - nu) * (noise_std_s + nu)) / noise_std_t, nu


@torch.no_grad()
def sample_tacos(
    model: Any,
    x: Tensor,
    ts: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = False,
    *,
    key: NoiseKey | None = None,
) -> Tensor:
    """TACoS, Algorithm 2 of Cold Diffusion: deterministic.

    `x_s = x_t + (C_s - C_t) x0_hat`, a = 1 and b = 0; the noise of x_1 remains until the last step. Bansal et
    al. 2022. Arguments and result: see the module.

    Examples:
        >>> x0 = torch.zeros(2, 3, 16, 16)
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, Corruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample_tacos(denoiser, x_1, time_steps(10), disable=True)
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """

    def step(x_t: Tensor, x0_hat: Tensor, t: float, s: float, c: Corruption, k: NoiseKey) -> Tensor:
        return functional.reverse_step(
            x_t, x0_hat, blur_std_t=c.blur_std(t), blur_std_s=c.blur_std(s), a=1.0, b=0.0, key=k
        )

    return _run("sample_tacos", step, model, x, ts, extra_args, callback, disable, key)


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "naive": sample_naive,
    "momentum": sample_momentum,
    "ddim": sample_ddim,
    "tacos": sample_tacos,
}
"""The samplers by name. Command options, help texts (a docstring's first line) and tests derive from this."""


@torch.no_grad()
def generate(
    denoiser: SoftDenoiser,
    prior: Prior,
    seeds: Sequence[int],
    *,
    sampler: str = "momentum",
    steps: int = 64,
    ts: Tensor | None = None,
    batch: int = 64,
    device: torch.device | str | None = None,
    labels: Sequence[int] | None = None,
    guidance: float = 1.0,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
    states: list[Tensor] | None = None,
    on_step: Callable[[], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Tensor:
    """One image per seed: uint8 [N, C, H, W] on the CPU. A seed gives the same image at any batch size.

    The noise is that of NoiseKey(SAMPLING_SEED, stream=seed): draw 0 for the prior, draw i for step i.

    Args:
        denoiser: A trained denoiser.
        prior: Where its sampling starts.
        seeds: One for each image.
        sampler: A name in SAMPLERS.
        steps: Number of even steps.
        ts: The sampler's times instead, as in `time_steps`.
        batch: Images at a time.
        device: None is that of the denoiser's parameters.
        labels: One class per seed, for a class-conditional denoiser.
        guidance: The weight of the classes, as in `Guided`.
        options: Keyword arguments of the sampler.
        progress: Whether to draw a progress bar per batch.
        states: This list gets x_t before each step of the first batch, then its images, each uint8
            [batch, C, H, W].
        on_step: Called in each step; an exception from it stops the sampling.
        say: Called with a line that says how many kernels were compiled first, if any were (see
            `softdiff_kernels.warm_up`).

    Raises:
        ValueError: If the sampler is unknown.

    Examples:
        >>> denoiser = SoftDenoiser(lambda x_t, t: torch.zeros_like(x_t), Corruption.paper((16, 16)))
        >>> prior = GaussianDCTPrior.fit([torch.rand(32, 1, 16, 16)], denoiser.corruption)
        >>> images = generate(denoiser, prior, seeds=range(4), steps=10)
        >>> images.shape, images.dtype
        (torch.Size([4, 1, 16, 16]), torch.uint8)
        >>> torch.equal(generate(denoiser, prior, seeds=[3], steps=10), images[3:])
        True
    """
    args.choice("generate", "sampler", sampler, tuple(SAMPLERS))
    ts = time_steps(steps) if ts is None else ts
    weight = next(denoiser.parameters(), torch.empty(0))
    where = weight.device if device is None else torch.device(device)
    if not seeds:  # such as the seeds of one of several processes
        shape = prior.sample(0, key=NoiseKey(SAMPLING_SEED), device=where).shape
        return torch.empty(shape, dtype=torch.uint8)

    def rehearsal() -> None:
        """A full batch and the last one, with a network that computes nothing."""
        seeds_of_both = seeds[: batch + len(seeds) % batch]
        network = SoftDenoiser(functional.echo, denoiser.corruption, weight="uniform")  # type: ignore[arg-type]
        generate(
            network, prior, seeds_of_both, sampler=sampler, ts=ts, batch=batch, device=where, options=options
        )

    warm = functional.rehearse(rehearsal, where)
    if say is not None and warm.compiled:
        say(str(warm))
    images = []
    for start in range(0, len(seeds), batch):
        streams = torch.tensor(seeds[start : start + batch], dtype=torch.int64, device=where)
        key = NoiseKey(SAMPLING_SEED, stream=streams)
        x = prior.sample(len(streams), key=key, device=where, dtype=torch.float32)
        model: Any = denoiser
        if labels is not None:
            classes = torch.tensor(labels[start : start + batch], dtype=torch.int64, device=where)
            model = Guided(denoiser, classes, guidance)
        callback = partial(_report, states if start == 0 else None, on_step)
        x = SAMPLERS[sampler](
            model, x, ts, disable=not progress, key=key, callback=callback, **(options or {})
        )
        images.append(to_uint8(x))
    if states is not None:
        states.append(images[0])
    return torch.cat(images)


def _report(states: list[Tensor] | None, on_step: Callable[[], None] | None, step: Mapping[str, Any]) -> None:
    if on_step is not None:
        on_step()
    if states is not None:
        states.append(to_uint8(step["x"]))
