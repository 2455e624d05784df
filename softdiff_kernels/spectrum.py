# SPDX-License-Identifier: Apache-2.0
"""The orthonormal DCT-II and the gains of the heat operator along it.

Every op of the library is diagonal in the 2-D DCT-II. This file has the mathematics that they share: the
basis, the eigenvalues of the Laplacian under half-sample symmetric boundaries, and the gains computed from
them. Tables are computed in float64 and rounded once to the requested dtype.

Notation: an image is [B, C, H, W]; frequency (k, l) runs over k = 0..H-1 and l = 0..W-1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .caches import Tables


def _basis64(n: int) -> np.ndarray:
    k = np.arange(n, dtype=np.int64)[:, None]
    i = np.arange(n, dtype=np.int64)[None, :]
    # The angle is reduced in integers, so that large n loses no digits in the cosine's argument.
    angle = (k * (2 * i + 1)) % (4 * n)
    basis = np.sqrt(2.0 / n) * np.cos(angle * (np.pi / (2 * n)))
    basis[0] = np.sqrt(1.0 / n)
    return basis


def dct_basis(n: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """Matrix D of the orthonormal DCT-II of length n: `u = D x`, `x = D^T u`.

    D[k, i] = sqrt(2/n) cos(pi k (2 i + 1) / (2 n)), row 0 divided by sqrt(2). Shape [n, n].
    The matrix is cached (see `caches`): do not write into it.
    """
    if n < 1:
        raise ValueError(f"dct_basis: expected n >= 1, got {n}")
    if torch.compiler.is_compiling():
        return torch.from_numpy(_basis64(n)).to(device=device, dtype=dtype)
    place = torch.device(device)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", torch.cuda.current_device())
    return _bases(int(n), dtype, place)  # in a trace n is a tensor


def _basis_on(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(_basis64(n)).to(device=device, dtype=dtype)


# A side of n pixels needs n^2 numbers: the dense form, for clarity and for every device.
_bases = Tables("reference", _basis_on, copied=True)


def eigenvalues(n: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """(pi k / n)^2 for k = 0..n-1, in 1/pixel^2. Shape [n]. Rissanen et al. 2022 (IHDM), eq. 8."""
    return (torch.arange(n, dtype=torch.float64, device=device) * (np.pi / n)).square().to(dtype)


def eigenvalues_2d(
    height: int, width: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """lambda[k, l] = (pi k / H)^2 + (pi l / W)^2, in 1/pixel^2. Shape [H, W]."""
    along_h = eigenvalues(height, dtype=dtype, device=device)
    along_w = eigenvalues(width, dtype=dtype, device=device)
    return along_h[:, None] + along_w[None, :]


def _bounded(tau: Tensor) -> Tensor:
    """`tau` made finite, so that the mean's exponent 0 * tau is 0 for a blur whose square overflows."""
    most = torch.finfo(tau.dtype).max
    return tau.clamp(-most, most)


def heat_gain(
    blur_std: Tensor, height: int, width: int, *, floor: float = 0.0, scale: Tensor | float = 1.0
) -> Tensor:
    """Gain of C: `m = scale * ((1 - floor) exp(-lambda blur_std^2 / 2) + floor)`.

    blur_std: [R] in pixels; scale: number or [R]. Returns [R, 1, H, W] in blur_std's dtype.
    Hoogeboom & Salimans 2022 (Blurring Diffusion), eq. 26-27; floor = 0 is the Gaussian blur.
    """
    lam = eigenvalues_2d(height, width, dtype=blur_std.dtype, device=blur_std.device)
    tau = _bounded(blur_std.square().div(2)).view(-1, 1, 1, 1)
    gain = torch.exp(-lam * tau)
    if floor != 0.0:
        gain = (1.0 - floor) * gain + floor
    if isinstance(scale, Tensor):
        return gain * scale.view(-1, 1, 1, 1)
    return gain if scale == 1.0 else gain * scale


def reverse_gain(
    blur_std_t: Tensor,
    blur_std_s: Tensor,
    one_minus_a: Tensor,
    height: int,
    width: int,
    *,
    floor: float = 0.0,
) -> Tensor:
    """Gain of `C_s - a C_t`, without the cancellation of the direct difference.

    With q = exp(-lambda |tau_t - tau_s|), tau = blur_std^2 / 2 and m the larger of the two gains:
    `m_s - a m_t = m ((1 - q) + (1 - a) q)` for blur_std_s <= blur_std_t, and
    `m (-(1 - q) + (1 - a))` otherwise, with 1 - q from expm1. For small steps the direct
    float32 difference is off by up to 2e-4 of the gain, this form by less than 1e-5.

    blur_std_t, blur_std_s, one_minus_a: [R]. Returns [R, 1, H, W] in blur_std_t's dtype.
    """
    lam = eigenvalues_2d(height, width, dtype=blur_std_t.dtype, device=blur_std_t.device)
    step = _bounded((blur_std_t - blur_std_s) * (blur_std_t / 2 + blur_std_s / 2)).view(-1, 1, 1, 1)
    weaker = _bounded(torch.minimum(blur_std_t, blur_std_s).square().div(2)).view(-1, 1, 1, 1)
    remainder = one_minus_a.view(-1, 1, 1, 1)
    exponent = -lam * step.abs()
    lost = -torch.expm1(exponent)
    inner = torch.where(step >= 0, lost + remainder * torch.exp(exponent), remainder - lost)
    gain = torch.exp(-lam * weaker) * inner
    return gain if floor == 0.0 else floor * remainder + (1.0 - floor) * gain
