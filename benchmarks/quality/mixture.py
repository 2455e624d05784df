# SPDX-License-Identifier: Apache-2.0
"""A Gaussian mixture fitted to images, and its exact denoiser: what a sampler does where no network errs.

The components are clusters of images, each with a mean c_i and, frequency by frequency, a variance v_i. Given
x_t, with the gain m of C_t and the noise s over DCT frequencies,

    x_t | i ~ N(m c_i, m^2 v_i + s^2),
    E[x_0 | x_t, i] = c_i + m v_i / (m^2 v_i + s^2) (x_t - m c_i),

and x0_hat is the mean of the second, weighted by the share of the component times the density of the first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softdiff_kernels import NoiseKey, dct2, idct2, normal
from softdiff_kernels.diffusion import Corruption
from softdiff_kernels.images import decode, to_uint8
from softdiff_kernels.noise import uniforms

COMPONENTS = 200
_FITTED = 20_000
_ROUNDS = 10
_LEAST_VARIANCE = 1e-4
_STARTS, _REFERENCE, _FLOOR = 1, 2, 3


class Mixture(nn.Module):
    """The exact denoiser, as the network of a `SoftDenoiser` that predicts "sample"; and exact samples.

    images: uint8 [N, C, H, W]; the first 20,000 are clustered. The corruption is over DCT frequencies.
    """

    def __init__(self, images: Tensor, corruption: Corruption) -> None:
        super().__init__()
        if corruption.basis != "dct":
            raise ValueError(f"Mixture: expected a corruption over DCT frequencies, got {corruption.basis}")
        self.corruption = corruption
        self.shape = images.shape[1:]
        points = dct2(decode(images[:_FITTED])).flatten(1)
        cluster = _clusters(points)
        shares = torch.nn.functional.one_hot(cluster, COMPONENTS).float()
        counts = shares.sum(0)
        self.share = counts / counts.sum()
        self.means = shares.T @ points / counts[:, None]
        spread = shares.T @ points.square() / counts[:, None] - self.means.square()
        self.variances = spread.clamp(min=_LEAST_VARIANCE)

    def forward(self, x_t: Tensor, t: Tensor, **kw: Any) -> Tensor:
        """x0_hat of x_t [B, C, H, W]; all of the batch are at the first t."""
        gain = self.corruption.gain(t[:1]).double().expand(1, *self.shape).flatten(1)
        noise = self.corruption.noise(t[:1]).double().expand(1, *self.shape).flatten(1)
        seen, means = dct2(x_t.double()).flatten(1), gain * self.means
        precision = (gain.square() * self.variances + noise.square()).reciprocal()
        scaled = means * precision
        constant = ((means * scaled).sum(1) - precision.log().sum(1)) / 2
        weight = (seen @ scaled.T - seen.square() @ precision.T / 2 - constant + self.share.log()).softmax(1)
        ratio = gain * self.variances * precision
        x0_hat = weight @ (self.means - ratio * means) + (weight @ ratio) * seen
        return idct2(x0_hat.reshape(x_t.shape)).to(x_t.dtype)

    def draw(self, use: int, streams: Tensor) -> Tensor:
        """Exact samples of the mixture, [B, C, H, W], one for each stream [B] of a use."""
        key = NoiseKey(use, stream=streams)
        chosen = torch.searchsorted(self.share.cumsum(0), uniforms(key.at(1), len(streams), streams.device))
        chosen = chosen.clamp(max=COMPONENTS - 1)
        white = normal((len(streams), *self.shape), key).flatten(1)
        return idct2((self.means[chosen] + self.variances[chosen].sqrt() * white).unflatten(1, self.shape))

    def exact(self, streams: Tensor) -> Tensor:
        """Exact samples as images: uint8."""
        return to_uint8(self.draw(_FLOOR, streams))

    def reference(self, images: int) -> Tensor:
        """Others, to compare with: uint8."""
        return to_uint8(self.draw(_REFERENCE, torch.arange(images)))

    def sample(self, images: int, *, key: NoiseKey, **kw: Any) -> Tensor:
        """As a prior: exact x_1 for the streams of the key, so that nothing but the sampler errs."""
        assert isinstance(key.stream, Tensor)
        x_1 = self.corruption.corrupt(self.draw(_STARTS, key.stream), 1.0, key=key)
        assert isinstance(x_1, Tensor)
        return x_1

    def describe(self) -> str:
        """For the record of samples."""
        return f"exact x_1 of a mixture of {COMPONENTS} Gaussians"


def _clusters(points: Tensor) -> Tensor:
    """The cluster of each point [N], by k-means from evenly spaced points (Lloyd's algorithm)."""
    centres = points[torch.linspace(0, len(points) - 1, COMPONENTS).round().long()]
    for _ in range(_ROUNDS):
        cluster = (points @ centres.T - centres.square().sum(1) / 2).argmax(1)
        counts = torch.bincount(cluster, minlength=COMPONENTS).clamp(min=1)
        centres = torch.zeros_like(centres).index_add_(0, cluster, points) / counts[:, None]
    return (points @ centres.T - centres.square().sum(1) / 2).argmax(1)
