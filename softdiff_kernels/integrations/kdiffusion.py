# SPDX-License-Identifier: Apache-2.0
"""Noise-only models with k-diffusion's samplers, and k-diffusion's models with ours.

k-diffusion indexes a process by sigma: its models are `model(x, sigma [B], **kw) -> x_0`, with

    x = x_0 + sigma n.

Ours are indexed by t, x_t = a_t x_0 + s_t n. So x = x_t / a_t and sigma = s_t / a_t, which has to grow with
t; then t is the inverse of the corruption's table at sigma. One Euler step of k-diffusion from sigma to
sigma' is

    x + (x - x_0) (sigma' - sigma) / sigma = r x + (1 - r) x_0,        r = sigma' / sigma,

which is our step of `DDIM()`; its Heun step is that of `sample_heun`. A corruption that blurs has no such
form: C_t x_0 is not a multiple of x_0, so no sigma describes x_t, and it is refused.

Nothing of k-diffusion is imported: its models and samplers are only called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _arguments as args
from ..diffusion import BlurCorruption, Corruption, SoftDenoiser

_NODES = 2049
_AT_ONCE = 64  # gains of so many times are in memory at once


class NoiseLevels:
    """sigma(t) = s_t / a_t of a corruption that is noise alone, and its inverse.

    Both are exact for the tables of a `BlurCorruption`. Other corruptions are tabulated at 2049 times, and
    are linear in between.

    Args:
        op: The caller, for messages.
        corruption: Its gain has to be one number at every t, its noise white, and s_t / a_t has to grow with
            t. Otherwise ValueError.

    Attributes:
        least: sigma at t = 0.
        most: sigma at t = 1.
    """

    def __init__(self, op: str, corruption: Corruption) -> None:
        if not isinstance(corruption, Corruption):
            raise TypeError(f"{op}: expected a Corruption, got {type(corruption).__name__}")
        t = torch.linspace(0.0, 1.0, _NODES, dtype=torch.float64, device="cpu")
        if isinstance(corruption, BlurCorruption):
            t = torch.tensor(corruption.t, dtype=torch.float64, device="cpu")
        levels = [_levels(op, corruption, some) for some in t.split(_AT_ONCE)]
        mean, noise = (torch.cat(parts) for parts in zip(*levels, strict=True))
        sigma = noise / mean
        still = (sigma.diff() <= 0).nonzero()
        if len(still):
            raise ValueError(
                f"{op}: expected noise over mean that grows with t, so that a sigma has one t, got noise "
                f"that does not at t = {t[still[0, 0]].item():.4g}"
            )
        self.op = op
        self.least, self.most = sigma[0].item(), sigma[-1].item()
        # A copy for each device, 66 kB at most for a table of ours: a later one could not be captured in a
        # graph.
        self._nodes = {t.device: torch.stack([t, mean, noise, sigma])}

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._nodes:
            self._nodes[device] = self._nodes[torch.device("cpu")].to(device)
        return self._nodes[device]

    def mean_and_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and sigma at t [B] in [0, 1], in t's dtype and on its device."""
        nodes, mean, noise, _ = self._on(t.device)
        exact = t.double()
        piece = _piece(nodes, exact)
        share = (exact - nodes[piece]) / (nodes[piece + 1] - nodes[piece])
        a, s = (torch.lerp(values[piece], values[piece + 1], share) for values in (mean, noise))
        return a.to(t.dtype), (s / a).to(t.dtype)

    def t(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """t at sigma [B], float64 and on its device, and which of the sigmas the corruption has, bool [B].

        ValueError for one that it has not, on the CPU; on a device t is that of the nearest end, because
        reading sigma would synchronise.
        """
        # Sigmas that were rounded to their dtype on the way are those of the ends.
        slack = 4 * torch.finfo(sigma.dtype).eps
        exact = sigma.double()
        known = (exact >= self.least * (1 - slack)) & (exact <= self.most * (1 + slack))
        if args.readable(sigma) and not bool(known.all()):
            row = int((~known).nonzero()[0])
            raise ValueError(
                f"{self.op}: expected sigma from {self.least:.6g} to {self.most:.6g}, the noise of the "
                f"corruption, got {exact[row].item():.6g} for sample {row}; give the sampler sigmas in that "
                "range (and 0 at the end), and no churn at its upper end"
            )
        t, mean, noise, sigmas = self._on(sigma.device)
        piece = _piece(sigmas, exact)
        # Mean and noise are linear in a piece: sigma = (s + u ds) / (a + u da), solved for u.
        a, s = mean[piece], noise[piece]
        da, ds = mean[piece + 1] - a, noise[piece + 1] - s
        share = ((exact * a - s) / (ds - exact * da)).clamp(0.0, 1.0)
        return torch.lerp(t[piece], t[piece + 1], share), known


def _piece(nodes: Tensor, values: Tensor) -> Tensor:
    """The number of the piece between two rising nodes that each value is in, or nearest to."""
    return torch.searchsorted(nodes, values.contiguous(), right=True).sub_(1).clamp(0, len(nodes) - 2)


def _levels(op: str, corruption: Corruption, t: Tensor) -> tuple[Tensor, Tensor]:
    """a_t and s_t at the times t [B]. ValueError for a corruption that is not noise alone."""
    if corruption.basis:
        gain, noise = corruption.gain(t).flatten(1), corruption.noise(t)
        low, high = gain.amin(dim=1), gain.amax(dim=1)
        one_gain = bool((low > 0).all()) and bool((high - low <= 1e-9 * high).all())
        if one_gain and noise.shape[1:].numel() == 1:
            return high.expand(len(t)), noise.reshape(-1).expand(len(t))
    raise ValueError(
        f"{op}: expected white noise alone, such as BlurCorruption.noise_only, got a "
        f"{type(corruption).__name__} ({corruption.name}) that does more, such as blur: models and samplers "
        "of k-diffusion know x_0 + sigma n only; use the samplers of softdiff_kernels.diffusion"
    )


class SigmaDenoiser:
    """One of our models as one of k-diffusion: `model(x, sigma, **kw) -> x_0` for its `sample_*` functions.

    Start from noise of standard deviation `sigma_max`, or from x_1 / a_1 of a prior. Another call than at the
    corruption's own times is fine: sigma may be anything between the ends.

    Args:
        model: A `SoftDenoiser`, `Guided`, or any `model(x_t, t [B], **kw) -> x0_hat` with a `.corruption`,
            which must be noise alone, and grow with t.

    Attributes:
        sigma_min: Noise over mean at t = 0.
        sigma_max: At t = 1.

    Raises:
        TypeError: If the model has no corruption.
        ValueError: If the corruption blurs, colours its noise, or has a sigma twice.

    Examples:
        >>> corruption = BlurCorruption.noise_only((16, 16), noise_std_max=50.0)
        >>> denoiser = SoftDenoiser(lambda x_t, t: torch.zeros_like(x_t), corruption, prediction="sample")
        >>> model = SigmaDenoiser(denoiser)
        >>> sigmas = model.sigmas(time_steps(4))  # for k_diffusion.sampling.sample_heun(model, x, sigmas)
        >>> [round(s, 2) for s in sigmas.tolist()]
        [50.0, 5.95, 0.71, 0.08, 0.0]
        >>> model(50.0 * torch.ones(2, 1, 16, 16), sigmas[:1].expand(2)).abs().max()
        tensor(0.)
    """

    def __init__(self, model: Callable[..., Tensor]) -> None:
        corruption = getattr(model, "corruption", None)
        if not isinstance(corruption, Corruption):
            raise TypeError(
                "SigmaDenoiser: expected a model with a Corruption as its .corruption, got "
                f"{type(model).__name__}"
            )
        self.model = model
        self.corruption = corruption
        self._levels = NoiseLevels("SigmaDenoiser", corruption)
        self.sigma_min, self.sigma_max = self._levels.least, self._levels.most

    def sigmas(self, ts: Tensor) -> Tensor:
        """The sigmas at times ts [n], as a sampler of k-diffusion takes them: float32 [n].

        0 for t = 0, where both libraries end with x_0 itself.
        """
        times = torch.tensor(args.numbers("SigmaDenoiser.sigmas", "ts", ts, "times"), dtype=torch.float64)
        args.values("SigmaDenoiser.sigmas", "ts", times, most=1.0)
        sigma = self._levels.mean_and_sigma(times)[1]
        return torch.where(times == 0, 0.0, sigma).float()

    def __call__(self, x: Tensor, sigma: Tensor, **kw: Any) -> Tensor:
        """x0_hat [B, C, H, W], in x's dtype.

        Args:
            x: x_0 + sigma n, [B, C, H, W].
            sigma: Floating point, [B] or [1], on x's device, from sigma_min to sigma_max.
            **kw: Arguments of the model.

        Raises:
            ValueError: If a sigma is outside. On a device, where it is not read, the image is NaN instead.
        """
        args.image("SigmaDenoiser", "x", x)
        if not isinstance(sigma, Tensor) or not sigma.dtype.is_floating_point or sigma.device != x.device:
            raise TypeError(
                f"SigmaDenoiser: expected sigma as a floating-point tensor on {x.device}, got "
                f"{args.describe(sigma)}"
            )
        if sigma.dim() > 1 or not args.one_or(len(x), sigma.numel()):
            raise ValueError(f"SigmaDenoiser: expected sigma of shape [{len(x)}], got {args.describe(sigma)}")
        t, known = self._levels.t(sigma.detach().reshape(-1).expand(len(x)))
        time = t.float()  # as our samplers give it to the model
        mean, _ = self._levels.mean_and_sigma(t)
        x0_hat = self.model(x * mean.to(x.dtype).view(-1, 1, 1, 1), time, **kw)
        return torch.where(known.view(-1, 1, 1, 1), x0_hat, torch.nan)


class _TimeNetwork(nn.Module):
    """A model of k-diffusion as a network f(x_t, t) that predicts x_0."""

    def __init__(self, model: Callable[..., Tensor], levels: NoiseLevels) -> None:
        super().__init__()
        self.model = model
        self.levels = levels

    def forward(self, x: Tensor, t: Tensor, **kw: Any) -> Tensor:
        mean, sigma = self.levels.mean_and_sigma(t)
        x0_hat: Tensor = self.model(x / mean.to(x.dtype).view(-1, 1, 1, 1), sigma.to(x.dtype), **kw)
        return x0_hat


def from_k_diffusion(model: Callable[..., Tensor], corruption: Corruption, **options: Any) -> SoftDenoiser:
    """A model of k-diffusion, such as its `Denoiser`, as one of ours: for our samplers, priors and losses.

    Args:
        model: `model(x, sigma [B], **kw) -> x_0` for x = x_0 + sigma n. A module's parameters are those of
            the result, under `inner_model.model`.
        corruption: Noise alone, with sigmas that the model was trained on, such as
            `BlurCorruption.noise_only((64, 64), noise_std_min=0.01, noise_std_max=80.0)`.
        **options: Further arguments of `SoftDenoiser`, such as loss and weight.

    Raises:
        ValueError: If the corruption blurs, colours its noise, or has a sigma twice.

    Examples:
        >>> def model(x, sigma):  # the best x_0 where images are white noise of variance 1 / 4
        ...     return x * 0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2)
        >>> corruption = BlurCorruption.noise_only((16, 16), noise_std_max=50.0)
        >>> denoiser = from_k_diffusion(model, corruption)
        >>> x_1 = 50.0 * sk.normal((2, 1, 16, 16), sk.NoiseKey(0))
        >>> x = sample_heun(denoiser, x_1, time_steps(20, "karras", corruption=corruption), disable=True)
        >>> round(x.std().item(), 1)
        0.5
    """
    network = _TimeNetwork(model, NoiseLevels("from_k_diffusion", corruption))
    return SoftDenoiser(network, corruption, prediction="sample", **options)
