# SPDX-License-Identifier: Apache-2.0
"""Restoration by a trained denoiser: deblurring, denoising and inpainting by the reverse process itself.

An observation is `y = V[g * V^T x_0 + sigma n]`, in the basis V of the model's corruption: g is 1 / 0 for
known and hidden pixels, or the gain of a blur (`blur_gain`); sigma is its noise, n white. So it is a state of
the process family, and becomes one of the model's process at a t where the model knows no more of any
coefficient than y does:

    x_t = (m_t / g) y + sqrt(s_t^2 - (m_t / g)^2 sigma^2) n        where m_t sigma <= g s_t.

x_t then has exactly the distribution that the model was trained on (`start_time` finds the first such t), but
where s_t is larger than needed, it knows less than y. `restore` gives this back: while a coefficient's state
is worse than y, its next state is made from y, by DDIM's step from (g, sigma) to (m_s, s_s),

    x_s = A y + (m_s - A g) x0_hat + sqrt(s_s^2 - A^2 sigma^2) n,        A = min(m_s / g, s_s / sigma),

and by the sampler's rule from then on. Each x_s has again the distribution that the model knows, if x0_hat is
x_0. That x0_hat depends on the state of the other coefficients and not on y itself is the approximation.
Kawar et al. 2022 (DDRM) take an observation up frequency by frequency in the same way, for noise alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _arguments as args
from .. import functional, spectrum
from ..images import decode
from ..noise import NoiseKey, fresh_key
from .corruption import Corruption
from .rules import RULES, Rule, RuleFunction
from .samplers import sample
from .shortest_path import PowerSpectrum

_GRID = 256
_HALVINGS = 50
_ROUNDING = 1e-9
# In units of the noise, for a coefficient of size 1. First what rounding explains; then what a process leaves
# everywhere (the floor of Blurring Diffusion, images under the strongest noise).
_HIDDEN = (1e-6, 0.1)
_LEAST_GAIN = 1e-3

ORDERED_RULES: dict[str, tuple[Rule, int]] = {
    name: (rule(), 2 if name == "multistep" else 1) for name, rule in RULES.items() if name != "heun"
}
"""Rule and order of the samplers, by their names in SAMPLERS; not of heun, whose steps look ahead."""


def natural_sampler(corruption: Corruption) -> str:
    """The name of the rule for restorations: "ancestral" for Blurring Diffusion, else "ddim".

    Other than from pure noise, fresh noise in each step only adds to the error; but where x0_hat is unsure at
    the frequencies that are all but gone, as in Blurring Diffusion, few steps of DDIM would take it up.
    """
    return "ancestral" if corruption.family == "blurring" else "ddim"


def blur_gain(image_size: tuple[int, int], blur_std: float | Tensor) -> Tensor:
    """The gain of a Gaussian blur at each DCT frequency: float64 [1, 1, H, W], or [B, 1, H, W] for blur_std
    [B].

    Examples:
        >>> blur_gain((28, 28), 2.0).shape
        torch.Size([1, 1, 28, 28])
    """
    size = args.image_size("blur_gain", image_size)
    if isinstance(blur_std, Tensor):
        return spectrum.heat_gain(blur_std.double().reshape(-1), *size)
    return spectrum.heat_gain(torch.tensor([args.number("blur_gain", "blur_std", blur_std)]).double(), *size)


class _Level(NamedTuple):
    """Gain and noise of the process at a time, float64."""

    gain: Tensor
    noise: Tensor

    @classmethod
    def at(cls, corruption: Corruption, t: float) -> _Level:
        return cls(corruption.gain(t).double().cpu(), corruption.noise(t).double().cpu())


class _Observation(NamedTuple):
    """What is known of y: its gain, float64, and its noise."""

    gain: Tensor
    std: float

    def knows(self, level: _Level) -> Tensor:
        """Where y knows at least as much as a state of this level."""
        enough = level.gain * self.std <= self.gain * level.noise * (1 + _ROUNDING)
        return enough & ((self.gain > 0) | (level.gain == 0))

    def ahead_of(self, level: _Level) -> Tensor:
        """Where y knows more."""
        return level.gain * self.std < self.gain * level.noise * (1 - _ROUNDING)

    def share(self, level: _Level) -> Tensor:
        """A: the most of y that fits into a state of this level."""
        seen = self.gain > 0
        kept = torch.where(seen, level.gain / torch.where(seen, self.gain, 1.0), 0.0)
        return kept.minimum(level.noise / self.std) if self.std > 0 else kept

    def missing(self, share: Tensor, level: _Level) -> Tensor:
        """The noise that a state of this level has beside that of A y."""
        return (level.noise.square() - (share * self.std).square()).clamp(min=0).sqrt()

    def swap(self, level: _Level, where: Tensor, power: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Factors of y, x_t and x0_hat in x0_hat as if the network had seen y in the place of x_t.

        The mean, if both are Gaussian: `x0_hat + [g (y - g x0_hat) - r m (x_t - m x0_hat)] / (g^2 + sigma^2 /
        power)`, r = sigma^2 / s_t^2.
        """
        P = torch.as_tensor(power, dtype=torch.float64, device="cpu")
        whole = self.gain.square() * P + self.std**2
        factor = torch.where(where & (whole > 0), P / torch.where(whole > 0, whole, 1.0), 0.0)
        ratio = torch.where(where, self.std**2 / level.noise.square(), 0.0)
        ours, theirs = factor * self.gain, factor * ratio * level.gain
        return ours, -theirs, 1 - (ours * self.gain - theirs * level.gain)


def start_time(corruption: Corruption, gain: float | Tensor, noise_std: float) -> float:
    """The first t at which the process knows no more of any coefficient than the observation does.

    m_t / s_t is at most gain / noise_std there. If the noise is the model's own, that is the time of the same
    blur or mask; if it is lower, up to a little earlier, as noise then hides what the blur does not; if it is
    higher, later. Where no t fulfils this, coefficients under a tenth of the noise at t count as unknown.

    Args:
        corruption: The model's, with a basis.
        gain: g, a number or what broadcasts to [B, C, H, W]: `blur_gain`, or 1 / 0 for known and hidden
            pixels. Of several images the start is the latest that one needs.
        noise_std: sigma, for images in [-1, 1].

    Raises:
        ValueError: If the observation has lost more than the process ever does.

    Examples:
        >>> paper = BlurCorruption.paper((64, 64))
        >>> t = start_time(paper, blur_gain((64, 64), 9.0), noise_std=0.1)
        >>> round(paper.blur_std(t), 2), paper.noise_std(t)
        (9.0, 0.1)
    """
    op = "start_time"
    if not isinstance(corruption, Corruption) or not corruption.basis:
        raise ValueError(f"{op}: expected a Corruption with a basis, got {type(corruption).__name__}")
    observed = _Observation(_gain(op, gain, corruption.image_size), args.number(op, "noise_std", noise_std))

    def left(t: float) -> float:
        """How much a state knows at most that y does not, in units of its noise."""
        level = _Level.at(corruption, t)
        return float(torch.where(observed.knows(level), 0.0, level.gain / level.noise).max())

    found = [left(i / _GRID) for i in range(_GRID + 1)]
    for most in _HIDDEN:
        first = next((i for i, value in enumerate(found) if value <= most), None)
        if first is None:
            continue
        late, early = first / _GRID, max(first - 1, 0) / _GRID
        for _ in range(_HALVINGS if first else 0):
            middle = 0.5 * (early + late)
            early, late = (early, middle) if left(middle) <= most else (middle, late)
        return late
    raise ValueError(
        f"{op}: expected an observation that knows at least as much as the process at some t, got one that "
        f"has lost more, by its gain or by its noise of {observed.std:.4g}"
    )


@torch.no_grad()
def restore(
    model: Any,
    y: Tensor,
    gain: float | Tensor,
    noise_std: float,
    *,
    rule: RuleFunction | None = None,
    steps: int = 8,
    ts: Tensor | None = None,
    order: int = 1,
    project: bool = True,
    power: float | Tensor | None = None,
    key: NoiseKey | None = None,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
) -> Tensor:
    """x_0 from an observation y of it, [B, C, H, W] in y's dtype; see the module.

    One step gives the network's estimate from y and the added noise; a few more let it see what y knows
    better. What is exact: a network that knows x_0 returns it; and for Gaussian data whose coefficients are
    independent, with their denoiser, one step with their `power` is Wiener's filter, many steps of DDIM the
    map of y's distribution to the data's, of the ancestral rule a draw of x_0 given y.

    Args:
        model: A `SoftDenoiser`, or any callable `model(x, t[B], **extra_args) -> x0_hat` with a `.corruption`
            that has a basis.
        y: Images [B, C, H, W] in [-1, 1], or uint8. Pixels whose gain is 0 may have any value, NaN too.
        gain: g, as in `start_time`.
        noise_std: sigma, likewise. Over 0 for gains under 0.001, which would amplify rounding; that of 8 bits
            is 0.0023.
        rule: A `Rule` or function (corruption, t, s) -> (A, B), for what y has no say in. None is the natural
            one, `natural_sampler`.
        steps: Number of steps, even in t from `start_time` to 0.
        ts: Falling times instead, from `start_time` or later.
        order: As in `sample`.
        project: Whether to take up y at each step; otherwise only x_t at the start is made from it.
        power: Variance of the clean images' coefficients, such as `power_spectrum(...).variance`: a number,
            or what broadcasts to [B, C, H, W]. Where y knows more of a coefficient than x_t, x0_hat's is then
            corrected by the difference, as far as both are Gaussian. None corrects none.
        key: Of the noise; step i uses draw i + 1, the start draw 0. None: a fresh key.
        extra_args: Further arguments of the model.
        callback: As in `sample`.

    Raises:
        TypeError: If the model has no corruption.
        ValueError: If y has lost more than the process does, or is of another size.

    Examples:
        >>> x0 = torch.rand(2, 1, 16, 16) * 2 - 1
        >>> y = sk.corrupt(x0, 1.0, 0.02)
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, BlurCorruption.paper((16, 16)), prediction="sample")
        >>> x = restore(denoiser, y, blur_gain((16, 16), 1.0), 0.02)
        >>> torch.allclose(x, x0, atol=1e-5)  # this network knows the answer
        True
    """
    op = "restore"
    corruption = getattr(model, "corruption", None)
    if not isinstance(corruption, Corruption):
        raise TypeError(
            f"{op}: expected a model with a Corruption as its .corruption, got {type(model).__name__}"
        )
    if order not in (1, 2):
        raise ValueError(f"{op}: expected order as 1 or 2, got {args.shown(order)}")
    args.image(op, "y", y, uint8=True)
    corruption.check_size(op, y)
    clean = decode(y)
    seen, std = _gain(op, gain, y.shape), args.number(op, "noise_std", noise_std)
    if std == 0 and bool(((seen > 0) & (seen < _LEAST_GAIN)).any()):
        raise ValueError(
            f"{op}: expected noise_std over 0 for gains under {_LEAST_GAIN}, got 0; that of 8 bits is 0.0023"
        )
    times = _times(op, start_time(corruption, seen, std), steps, ts)
    chosen = ORDERED_RULES[natural_sampler(corruption)][0] if rule is None else rule
    key = fresh_key() if key is None else key
    work = clean.to(torch.float64 if y.dtype == torch.float64 else torch.float32)
    if corruption.basis == "pixels":
        work = work.masked_fill((seen == 0).to(y.device), 0.0)  # hidden pixels may be anything, NaN too
    observed, level = _Observation(seen, std), _Level.at(corruption, times[0])
    share = torch.where(observed.knows(level), observed.share(level), 0.0)
    x = corruption.mix([work], [share], noise_mask=observed.missing(share, level), key=key.at(0))
    if not project:
        path = torch.tensor(times, dtype=torch.float64)
        x = sample(model, x, path, chosen, extra_args, callback, True, order=order, key=key)
        return x.to(clean.dtype)
    last: tuple[float, Tensor] | None = None
    for i, (t, s) in enumerate(pairwise(times)):
        now = torch.full((y.shape[0],), t, dtype=torch.float32, device=y.device)
        # A copy: a network may return a tensor that it keeps.
        x0_hat = model(x, now, **dict(extra_args or {})).to(work.dtype, copy=True)
        if callback is not None:
            callback({"x": x, "i": i, "t": t, "denoised": x0_hat})
        level = _Level.at(corruption, t)
        behind = observed.ahead_of(level)
        if power is not None:
            x0_hat = corruption.mix([work, x, x0_hat], observed.swap(level, behind, power))
        if s == 0.0:
            x = x0_hat
            break
        A, B = (torch.as_tensor(factor, dtype=torch.float64) for factor in chosen(corruption, t, s))
        if order == 2:
            if bool(B.any()):
                raise ValueError(f"{op}: expected a rule without noise for order 2, got one that adds noise")
            before, last = last, (t, x0_hat)
            if before is not None:
                x0_hat = torch.lerp(before[1], x0_hat, 1.0 + 0.5 * (t - s) / (before[0] - t))
        after = _Level.at(corruption, s)
        kept = torch.where(behind, 0.0, A)
        share = torch.where(behind, observed.share(after), 0.0)
        fresh = torch.where(behind, observed.missing(share, after), B)
        moved = after.gain - kept * level.gain - share * seen
        noise = fresh if bool(fresh.any()) else None
        x = corruption.mix([x, work, x0_hat], [kept, share, moved], noise_mask=noise, key=key.at(i + 1))
    return x.to(clean.dtype)


@torch.no_grad()
def inpaint(model: Any, y: Tensor, known: Tensor, noise_std: float = 0.0, **options: Any) -> Tensor:
    """Fills in the hidden pixels of y [B, C, H, W]; the known ones stay, exactly where they have no noise.

    Starts at the first t whose mask hides all that is hidden in y.

    Args:
        model: As in `restore`, of a corruption over pixels.
        y: Images [B, C, H, W]. Hidden pixels may have any value.
        known: bool, True for the pixels that are known; broadcasts to [B, C, H, W].
        noise_std: Of the known pixels.
        **options: As in `restore`.

    Raises:
        ValueError: As in `restore`, and if the corruption is not one over pixels.

    Examples:
        >>> class Fade(Corruption):  # stands for a corruption by masks
        ...     basis = "pixels"
        ...     image_size = (16, 16)
        ...     def gain(self, t):
        ...         rows = torch.arange(16)[:, None].expand(16, 16)
        ...         return (16 - 16 * torch.as_tensor(t).reshape(-1, 1, 1, 1) - rows).clamp(0, 1).double()
        ...     def noise(self, t):
        ...         return torch.full((torch.as_tensor(t).numel(), 1, 1, 1), 0.1)
        ...     def config(self):
        ...         return {}
        >>> x0 = torch.rand(2, 1, 16, 16) * 2 - 1
        >>> known = torch.arange(16)[:, None] < 12  # the first rows
        >>> denoiser = SoftDenoiser(lambda x_t, t: x0, Fade(), prediction="sample", weight="uniform")
        >>> torch.equal(inpaint(denoiser, x0, known), x0)  # this network knows the answer
        True
    """
    op = "inpaint"
    corruption = getattr(model, "corruption", None)
    if isinstance(corruption, Corruption) and corruption.basis != "pixels":
        raise ValueError(
            f"{op}: expected a model of a corruption over pixels, got one of {type(corruption).__name__}"
        )
    if not isinstance(known, Tensor) or known.dtype != torch.bool:
        raise TypeError(f"{op}: expected known as a bool tensor, got {args.shown(known)}")
    options.setdefault("power", 1.0)  # the most that pixels in [-1, 1] have
    return restore(model, y, known, noise_std, **options)


@torch.no_grad()
def wiener(y: Tensor, gain: float | Tensor, noise_std: float, spectrum: PowerSpectrum) -> Tensor:
    """Wiener's filter, the best linear restoration: [B, C, H, W] in y's dtype.

    `mean + g P / (g^2 P + sigma^2) (y - g mean)` at each DCT frequency, P the variance.

    Args:
        y: Images [B, C, H, W] in [-1, 1], or uint8.
        gain: g at each DCT frequency, as in `restore`.
        noise_std: sigma, likewise.
        spectrum: The clean images', by `power_spectrum`.

    Examples:
        >>> images = torch.rand(32, 1, 16, 16) * 2 - 1
        >>> y = sk.corrupt(images, 1.0, 0.02)
        >>> wiener(y, blur_gain((16, 16), 1.0), 0.02, power_spectrum([images])).shape
        torch.Size([32, 1, 16, 16])
    """
    op = "wiener"
    args.image(op, "y", y, uint8=True)
    if tuple(y.shape[1:]) != tuple(spectrum.power.shape):
        raise ValueError(
            f"{op}: expected images [B, C, H, W] of the spectrum's size {list(spectrum.power.shape)}, got "
            f"{args.describe(y)}"
        )
    seen, std = _gain(op, gain, y.shape), args.number(op, "noise_std", noise_std)
    clean = decode(y)
    work = clean.to(torch.float64 if y.dtype == torch.float64 else torch.float32)
    power, whole = spectrum.variance, seen.square() * spectrum.variance + std**2
    factor = torch.where(whole > 0, seen * power / torch.where(whole > 0, whole, 1.0), 0.0)
    rest = spectrum.mean * (1 - factor * seen)
    out = functional.dct2(work) * factor.to(work) + rest.to(work)
    return functional.idct2(out).to(clean.dtype)


def _gain(op: str, gain: float | Tensor, shape: Sequence[int]) -> Tensor:
    """The gain as float64 on the CPU, with four dimensions."""
    seen = torch.as_tensor(gain).detach().to(device="cpu", dtype=torch.float64)
    seen = seen.reshape((1,) * (4 - seen.dim()) + tuple(seen.shape))
    fits = seen.dim() == 4 and all(n in (1, m) for n, m in zip(seen.shape[::-1], shape[::-1], strict=False))
    if not fits:
        raise ValueError(
            f"{op}: expected a gain that broadcasts to {list(shape)}, got the shape "
            f"{list(torch.as_tensor(gain).shape)}"
        )
    if not bool(torch.isfinite(seen).all()) or bool((seen < 0).any()):
        raise ValueError(f"{op}: expected a finite gain of at least 0, got other values")
    return seen


def _times(op: str, begin: float, steps: int, ts: Tensor | None) -> list[float]:
    """The times of the steps."""
    if ts is None:
        count = args.integer(op, "steps", steps, least=1)
        begin = max(begin, _ROUNDING)  # also where y knows as much as the process at 0, there is one step
        return [begin * (1 - i / count) for i in range(count)] + [0.0]
    times = args.numbers(op, "ts", ts, "times")
    falling = len(times) > 1 and all(a > b for a, b in pairwise(times))
    if not falling or not times[-1] >= 0.0 or not begin - _ROUNDING <= times[0] <= 1.0:
        raise ValueError(
            f"{op}: expected ts as at least 2 falling times from {begin:.6g} (start_time) or later to 0 or "
            f"later, got {args.shown(ts)}"
        )
    return times
