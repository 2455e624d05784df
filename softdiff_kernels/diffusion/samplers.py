# SPDX-License-Identifier: Apache-2.0
"""Samplers: from x_1 back to an image. Each is a choice of (A, B) in one step, its rule (see `rules`),

    x_s = A x_t + (C_s - A C_t) x0_hat + B n,        s < t.

They have the signature of k-diffusion's samplers: `sample_*(model, x, ts, extra_args, callback, disable,
key=...)`.

- model: a `SoftDenoiser`, or any callable `model(x, t[B], **extra_args) -> x0_hat` with a `.corruption`.
- x: x_1, [B, C, H, W]; not modified.
- ts: times that fall within 1 to 0, as a list of numbers or a floating-point tensor (see `time_steps`). The
  model is called once for each time except the last; by `sample_heun` twice, except for a step to 0.
- callback: called in each step, after the first call of the model, with a dict of x, i, t and denoised. The
  step uses what the callback writes into x or denoised; no other tensor changes.
- disable: True draws no progress bar.
- key: its stream identifies the images; step i uses draw i + 1 (the prior uses draw 0), so image k is the
  same at any batch size. None: a fresh key from torch's generator.

If ts ends in 0, the last step returns x0_hat itself, without the noise that remains at t = 0 (our choice; the
paper does not say).

To add a sampler, write its rule in `rules`, its function here, and enter it in SAMPLERS. `sample` takes any
rule, and `generate` draws images by any sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import _arguments as args
from ..noise import NoiseKey, fresh_key
from .corruption import Corruption, is_zero
from .rules import DDIM, IHDM, Ancestral, Langevin, Momentum, Naive, Rule, RuleFunction, TACoS

Callback = Callable[[dict[str, Any]], Any]


@torch.no_grad()
def sample(
    model: Any,
    x: Tensor,
    ts: Tensor,
    rule: RuleFunction,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = False,
    *,
    order: int = 1,
    key: NoiseKey | None = None,
) -> Tensor:
    """Any sampler of the family, by its rule. Other arguments and result: see the module.

    Args:
        rule: A `Rule`, or a function (corruption, t, s) -> (A, B).
        order: 2 puts x0_hat at the middle of each step, extrapolated from the last two, in place of x0_hat.
            The error of a deterministic rule then falls with the square of the step (Adams & Bashforth's
            method), for no more evaluations.

    Raises:
        TypeError: If the model has no corruption.
        ValueError: If order is 2 and the rule adds noise.

    Examples:
        >>> x0 = torch.zeros(2, 3, 16, 16)
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, BlurCorruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample(denoiser, x_1, time_steps(10), lambda c, t, s: (1.0, 0.0), disable=True)
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """
    return _sample("sample", rule, model, x, ts, extra_args, callback, disable, key, order)


def _sample(
    name: str,
    rule: RuleFunction,
    model: Any,
    x: Tensor,
    ts: Tensor,
    extra_args: Mapping[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    key: NoiseKey | None,
    order: int = 1,
    heun: bool = False,
) -> Tensor:
    corruption = getattr(model, "corruption", None)
    if not isinstance(corruption, Corruption):
        raise TypeError(
            f"{name}: expected a model with a Corruption as its .corruption, got {type(model).__name__}"
        )
    if order not in (1, 2):
        raise ValueError(f"{name}: expected order as 1 or 2, got {args.shown(order)}")
    args.image(name, "x", x)
    corruption.check_size(name, x)
    times = _times(name, ts)
    x = x.clone()  # the model, the callback and the caller may write into the tensors that they get
    key = fresh_key() if key is None else key
    extra = dict(extra_args or {})
    last: tuple[float, Tensor] | None = None

    def estimate(x: Tensor, t: float) -> Tensor:
        out: Tensor = model(x, torch.full((x.shape[0],), t, dtype=torch.float32, device=x.device), **extra)
        return out

    for i in _progress(range(len(times) - 1), disable):
        t, s = times[i], times[i + 1]
        # A copy for the same reason: a network may return a tensor that it keeps, or x itself.
        x0_hat = estimate(x, t).to(x.dtype, copy=callback is not None or s == 0.0 or order == 2 or heun)
        if callback is not None:
            callback({"x": x, "i": i, "t": t, "denoised": x0_hat})
        if s == 0.0:
            x = x0_hat
        elif heun:
            x = heun_step(corruption, estimate, x, x0_hat, t, s)
        elif order == 2:
            x, last = second_order(name, rule, corruption, x, x0_hat, t, s, last), (t, x0_hat)
        elif isinstance(rule, Rule):
            x = rule.step(corruption, x, x0_hat, t, s, key.at(i + 1))
        else:
            x = corruption.step(x, x0_hat, t, s, *rule(corruption, t, s), key=key.at(i + 1))
    return x


def second_order(
    name: str,
    rule: RuleFunction,
    corruption: Corruption,
    x: Tensor,
    x0_hat: Tensor,
    t: float,
    s: float,
    last: tuple[float, Tensor] | None,
) -> Tensor:
    """A step with x0_hat as it is half-way from t to s, on the line through the last two."""
    A, B = rule(corruption, t, s)
    if not is_zero(B):
        raise ValueError(
            f"{name}: expected a rule without noise for order 2, such as DDIM() or TACoS(), got one that "
            f"adds noise at t = {s:.4g}"
        )
    if last is not None:
        before, estimate = last
        x0_hat = torch.lerp(estimate, x0_hat, 1.0 + 0.5 * (t - s) / (before - t))
    return corruption.step(x, x0_hat, t, s, A, B)


def heun_step(
    corruption: Corruption,
    estimate: Callable[[Tensor, float], Tensor],
    x: Tensor,
    x0_hat: Tensor,
    t: float,
    s: float,
) -> Tensor:
    """DDIM's step, made again with the estimate at its end taken into account.

    Heun's mean of the slopes (x - x0_hat) / sigma at both ends, sigma the noise over the mean, is DDIM's step
    from x0_hat + w (x0_hat' - x0_hat), w = sigma_t / (2 sigma_s). For any corruption w is 1/2 up to the size
    of the step, which is what second order needs; where the noise is constant it is 1/2.
    """
    A, _ = DDIM()(corruption, t, s)
    predicted = corruption.step(x, x0_hat, t, s, A, 0.0)
    ratio = A * (corruption.mean(t) / corruption.mean(s))
    if is_zero(ratio):  # no noise is left at s, and EDM does not correct
        return predicted
    again = estimate(predicted, s).to(x.dtype)
    if isinstance(ratio, Tensor):
        share = torch.where(ratio == 0, 0.0, 0.5 / torch.where(ratio == 0, 1.0, ratio))
        x0_hat = corruption.mix([x0_hat, again], [1.0 - share, share])
    else:
        x0_hat = torch.lerp(x0_hat, again, 0.5 / ratio)
    return corruption.step(x, x0_hat, t, s, A, 0.0)


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
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, BlurCorruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample_naive(denoiser, x_1, time_steps(10), disable=True)
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """
    return _sample("sample_naive", Naive(), model, x, ts, extra_args, callback, disable, key)


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
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, BlurCorruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample_momentum(denoiser, x_1, time_steps(10), disable=True, key=sk.NoiseKey(0))
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """
    return _sample("sample_momentum", Momentum(variance), model, x, ts, extra_args, callback, disable, key)


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
            every step. 0 is deterministic, the first-order probability-flow step. Prefer eta: where the noise
            is constant over t, nu > 0 is a Langevin step at the wrong temperature, (1 + a) / 2, which drifts
            to the modes.
        eta: In [0, 1]. Instead of nu, a fraction of the exact posterior's standard deviation in each step; 1
            is `sample_momentum` with variance "small".

    Examples:
        >>> x0 = torch.zeros(2, 3, 16, 16)
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, BlurCorruption.paper((16, 16)), prediction="sample")
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
    return _sample("sample_ddim", DDIM(nu, eta), model, x, ts, extra_args, callback, disable, key)


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
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, BlurCorruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample_tacos(denoiser, x_1, time_steps(10), disable=True)
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """
    return _sample("sample_tacos", TACoS(), model, x, ts, extra_args, callback, disable, key)


@torch.no_grad()
def sample_ancestral(
    model: Any,
    x: Tensor,
    ts: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = False,
    *,
    key: NoiseKey | None = None,
) -> Tensor:
    """Ancestral sampling of Blurring Diffusion: the exact posterior, frequency by frequency.

    Its fresh noise is coloured. Hoogeboom & Salimans 2022. Arguments and result: see the module.

    Examples:
        >>> x0 = torch.zeros(2, 3, 16, 16)
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, BlurCorruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample_ancestral(denoiser, x_1, time_steps(10), disable=True)
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """
    return _sample("sample_ancestral", Ancestral(), model, x, ts, extra_args, callback, disable, key)


@torch.no_grad()
def sample_ihdm(
    model: Any,
    x: Tensor,
    ts: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = False,
    *,
    key: NoiseKey | None = None,
    delta: float | None = None,
) -> Tensor:
    """The sampler of Inverse Heat Dissipation: naive, with noise of its own size.

    A = 0, B = delta. Rissanen et al. 2022. Other arguments and result: see the module.

    Args:
        delta: Standard deviation of each step's noise, in units of the image. None is 1.25 times
            noise_std(s), the paper's best ratio.

    Examples:
        >>> x0 = torch.zeros(2, 3, 16, 16)
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, BlurCorruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample_ihdm(denoiser, x_1, time_steps(10), disable=True)
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """
    return _sample("sample_ihdm", IHDM(delta), model, x, ts, extra_args, callback, disable, key)


@torch.no_grad()
def sample_langevin(
    model: Any,
    x: Tensor,
    ts: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = False,
    *,
    key: NoiseKey | None = None,
) -> Tensor:
    """Langevin dynamics at temperature 1, for comparison: naive runs at half of it.

    A = 1/2, B = noise_std(s). At constant noise each step is Langevin's, without bias to the modes; as the
    noise is made anew at every step, so are the network's errors. Arguments and result: see the module.

    Examples:
        >>> x0 = torch.zeros(2, 3, 16, 16)
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, BlurCorruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample_langevin(denoiser, x_1, time_steps(10), disable=True)
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """
    return _sample("sample_langevin", Langevin(), model, x, ts, extra_args, callback, disable, key)


@torch.no_grad()
def sample_multistep(
    model: Any,
    x: Tensor,
    ts: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = False,
    *,
    key: NoiseKey | None = None,
) -> Tensor:
    """DDIM of second order: deterministic, for few steps.

    x0_hat is extrapolated to the middle of each step from the last two (Adams & Bashforth), which costs no
    evaluation: `sample(..., DDIM(), order=2)`. Arguments and result: see the module.

    Examples:
        >>> x0 = torch.zeros(2, 3, 16, 16)
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, BlurCorruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample_multistep(denoiser, x_1, time_steps(10), disable=True)
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """
    return _sample("sample_multistep", DDIM(), model, x, ts, extra_args, callback, disable, key, order=2)


@torch.no_grad()
def sample_heun(
    model: Any,
    x: Tensor,
    ts: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = False,
    *,
    key: NoiseKey | None = None,
) -> Tensor:
    """EDM's deterministic sampler, of second order: two evaluations a step.

    Each step is DDIM's, corrected by the estimate at its end (Heun); the last one, to t = 0, is not, as in
    the paper: n steps take 2 n - 1 evaluations. For noise alone it is Algorithm 1 of Karras et al. 2022
    without churn, whose steps are `time_steps(n, "karras", corruption=...)`; for other corruptions it is
    ours. Arguments and result: see the module.

    Examples:
        >>> x0 = torch.zeros(2, 3, 16, 16)
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, BlurCorruption.paper((16, 16)), prediction="sample")
        >>> x_1 = denoiser.corruption.corrupt(x0, 1.0)
        >>> x = sample_heun(denoiser, x_1, time_steps(10), disable=True)
        >>> torch.equal(x, x0)  # this network knows the answer
        True
    """
    return _sample("sample_heun", DDIM(), model, x, ts, extra_args, callback, disable, key, heun=True)


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "naive": sample_naive,
    "momentum": sample_momentum,
    "ddim": sample_ddim,
    "tacos": sample_tacos,
    "ancestral": sample_ancestral,
    "ihdm": sample_ihdm,
    "langevin": sample_langevin,
    "multistep": sample_multistep,
    "heun": sample_heun,
}
"""The samplers by name. Command options, help texts (a docstring's first line) and tests derive from this."""
