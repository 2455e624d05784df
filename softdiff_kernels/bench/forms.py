# SPDX-License-Identifier: Apache-2.0
"""The ways to blur by the heat operator, or to take a 2-D DCT, that people write in PyTorch.

A form is made once for an image size. It may keep the DCT basis, the eigenvalues and twiddle factors; what
depends on blur_std is computed at each call. Images are float32 or float64 [B, C, H, W], blur_std is [B].
The forms that other packages provide are in `packages.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..spectrum import dct_basis, eigenvalues

if TYPE_CHECKING:
    from typing_extensions import Self


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(part, device) for key, part in value.items()}
    return tuple(_moved(part, device) for part in value) if isinstance(value, tuple) else value


class Form:
    """The tables that all forms keep, and the separable gain of the blur.

    name, source, group, same, difference: see `baselines.Baseline`. autograd: whether PyTorch can
    differentiate through it.
    """

    name = ""
    group = "main"
    source = ""
    same = True
    difference = ""
    autograd = True

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        self.height, self.width, self.dtype = height, width, dtype
        self.basis_h, self.basis_w = dct_basis(height, dtype=dtype), dct_basis(width, dtype=dtype)
        self.eigenvalues_h = eigenvalues(height, dtype=dtype)
        self.eigenvalues_w = eigenvalues(width, dtype=dtype)

    def to(self, device: torch.device | str) -> Self:
        """Moves every table of the form, in place, as `torch.nn.Module.to` does; returns the form."""
        for name, value in vars(self).items():
            setattr(self, name, _moved(value, device))
        return self

    def gains(self, blur_std: Tensor) -> tuple[Tensor, Tensor]:
        """exp(-lambda blur_std^2 / 2) along each axis: [B, H] and [B, W]."""
        tau = blur_std.square()[:, None] * -0.5
        return torch.exp(tau * self.eigenvalues_h), torch.exp(tau * self.eigenvalues_w)

    def gain(self, blur_std: Tensor) -> Tensor:
        """The gain at each frequency, [B, 1, H, W]: an outer product, of H + W exponentials."""
        along_h, along_w = self.gains(blur_std)
        return (along_h[:, :, None] * along_w[:, None, :])[:, None]

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        raise NotImplementedError


class TwoProduct(Form):
    """`A x A` with A = D^T diag(e) D made for each sample, by broadcasting matmul."""

    name = "two-product"
    source = "the separable form of the heat operator, softdiff_kernels.spectrum"

    def operators(self, blur_std: Tensor) -> tuple[Tensor, Tensor]:
        """A_H [B, H, H] and A_W [B, W, W], one for both where the image is square."""
        along_h, along_w = self.gains(blur_std)
        a_h = self.basis_h.T @ (along_h[:, :, None] * self.basis_h)
        if self.height == self.width:
            return a_h, a_h
        return a_h, self.basis_w.T @ (along_w[:, :, None] * self.basis_w)

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        a_h, a_w = self.operators(blur_std)
        return a_h[:, None] @ x @ a_w[:, None]


class TwoProductBmm(TwoProduct):
    """The same by torch.bmm, the channels stacked as rows for one product and A repeated for the other."""

    name = "two-product bmm"
    source = "as above; broadcasting matmul copies both operands, this copies A alone"

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        a_h, a_w = self.operators(blur_std)
        batch, channels, height, width = x.shape
        y = torch.bmm(x.reshape(batch, channels * height, width), a_w).view(batch * channels, height, width)
        return torch.bmm(a_h.repeat_interleave(channels, 0), y).view(x.shape)


class FoldedTwoProduct(Form):
    """`A x A` by halves: A is centrosymmetric, so that even and odd parts do not mix.

    Along an axis the sum and the difference of the two ends are multiplied by matrices of half the size. That
    is half the operations of the products, and a quarter of those that make A.
    """

    name = "folded two-product"
    source = "centrosymmetric matrices, Cantoni & Butler 1976; torch.bmm on even and odd parts"

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self.parts_h, self.parts_w = self._parts(self.basis_h), self._parts(self.basis_w)

    @staticmethod
    def _parts(basis: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """For even and odd frequencies: the basis over the first half, out, and in.

        The middle sample of an odd size is its own mirror image, and its sum counts it twice.
        """
        size = basis.shape[1]
        out = basis[:, : (size + 1) // 2]
        into = out.clone()
        if size % 2:
            into[:, -1] *= 0.5
        return tuple((out[i::2].T.contiguous(), into[i::2].contiguous()) for i in (0, 1))

    @staticmethod
    def _operators(parts: tuple[tuple[Tensor, Tensor], ...], gains: Tensor) -> list[Tensor]:
        return [out @ (gains[:, i::2, None] * into) for i, (out, into) in enumerate(parts)]

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        along_h, along_w = self.gains(blur_std)
        over_h = self._operators(self.parts_h, along_h)
        over_w = over_h if self.height == self.width else self._operators(self.parts_w, along_w)
        batch, channels, height, width = x.shape
        half_h, half_w = (height + 1) // 2, (width + 1) // 2
        head, tail = x[..., :half_w], x[..., width // 2 :].flip(-1)
        rows = (batch, channels * height, half_w)
        even = torch.bmm((head + tail).view(rows), over_w[0].mT)
        odd = torch.bmm((head - tail).view(rows), over_w[1].mT)
        # Both parts side by side, as they are, through the other axis.
        y = torch.cat([even, odd], dim=-1).view(batch * channels, height, 2 * half_w)
        head, tail = y[:, :half_h], y[:, height // 2 :].flip(1)
        even = torch.bmm(over_h[0].repeat_interleave(channels, 0), head + tail)
        odd = torch.bmm(over_h[1].repeat_interleave(channels, 0), head - tail)
        y = torch.cat([even + odd, (even - odd)[:, : height // 2].flip(1)], dim=1)
        even, odd = y[..., :half_w], y[..., half_w:]
        return torch.cat([even + odd, (even - odd)[..., : width // 2].flip(-1)], dim=-1).view(x.shape)


class DctForm(Form):
    """A form that has the transform itself; the blur is `idct2(gain * dct2(x))`."""

    def dct2(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def idct2(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        return self.idct2(self.gain(blur_std) * self.dct2(x))


class FourProduct(DctForm):
    """`D^T (m * (D x D^T)) D`: the DCT by matrix products."""

    name = "four-product"
    source = "the DCT-II as a matrix, Ahmed, Natarajan & Rao 1974; the first thing that one writes in PyTorch"

    def dct2(self, x: Tensor) -> Tensor:
        return self.basis_h @ x @ self.basis_w.T

    def idct2(self, u: Tensor) -> Tensor:
        return self.basis_h.T @ u @ self.basis_w


class AxisDct(DctForm):
    """A transform along the last axis, then along the other one."""

    def _dct(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _idct(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def dct2(self, x: Tensor) -> Tensor:
        return self._dct(self._dct(x).transpose(-1, -2)).transpose(-1, -2)

    def idct2(self, u: Tensor) -> Tensor:
        return self._idct(self._idct(u).transpose(-1, -2)).transpose(-1, -2)


class FftDct(AxisDct):
    """The DCT by a complex FFT of the reordered signal and a twiddle, with the same passes as torch-dct."""

    name = "FFT-DCT"
    group = "fft"
    source = "Makhoul 1980, the way of the torch-dct package, which IHDM's code uses"

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self.twiddles = {n: self._twiddle(n) for n in (height, width)}

    def _twiddle(self, n: int) -> tuple[Tensor, Tensor]:
        angle = torch.arange(n, dtype=torch.float64) * (math.pi / (2 * n))
        return torch.cos(angle).to(self.dtype), torch.sin(angle).to(self.dtype)

    def _dct(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        cos, sin = self.twiddles[n]
        rows = x.reshape(-1, n)
        spectrum = torch.view_as_real(torch.fft.fft(torch.cat([rows[:, ::2], rows[:, 1::2].flip(1)], dim=1)))
        out = spectrum[..., 0] * cos + spectrum[..., 1] * sin
        out[:, :1] *= math.sqrt(0.25 / n)
        out[:, 1:] *= math.sqrt(0.5 / n)
        return (2 * out).view(x.shape)

    def _idct(self, u: Tensor) -> Tensor:
        n = u.shape[-1]
        half = (n + 1) // 2
        cos, sin = self.twiddles[n]
        real = u.reshape(-1, n) / 2
        real[:, :1] *= math.sqrt(4.0 * n)
        real[:, 1:] *= math.sqrt(2.0 * n)
        imaginary = torch.cat([torch.zeros_like(real[:, :1]), -real.flip(1)[:, :-1]], dim=1)
        parts = (real * cos - imaginary * sin, real * sin + imaginary * cos)
        v = torch.fft.irfft(torch.view_as_complex(torch.stack(parts, dim=-1)), n=n)
        x = torch.zeros_like(v)
        x[:, ::2] += v[:, :half]
        x[:, 1::2] += v[:, half:].flip(1)
        return x.view(u.shape)


class RealFftDct(AxisDct):
    """The DCT by a real FFT, half the work of `FftDct`: X[k] and X[n - k] are two parts of one number."""

    name = "real-FFT DCT"
    group = "extra"
    source = "Makhoul 1980, section IV"

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
        self.forward_twiddle, self.inverse_twiddle = {}, {}
        for n in {height, width}:
            k = torch.arange(n // 2 + 1, dtype=torch.float64)
            size = torch.full_like(k, math.sqrt(2.0 / n))
            size[0] = math.sqrt(1.0 / n)
            twiddle = torch.polar(size, -k * (math.pi / (2 * n)))
            self.forward_twiddle[n] = twiddle.to(complex_dtype)
            self.inverse_twiddle[n] = (1.0 / twiddle).to(complex_dtype)

    def _dct(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        z = torch.fft.rfft(torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)) * self.forward_twiddle[n]
        return torch.cat([z.real, -z.imag[..., 1 : (n + 1) // 2].flip(-1)], dim=-1)

    def _idct(self, u: Tensor) -> Tensor:
        n = u.shape[-1]
        mirrored = torch.nn.functional.pad(-u[..., n - n // 2 :].flip(-1), (1, 0))
        v = torch.fft.irfft(torch.complex(u[..., : n // 2 + 1], mirrored) * self.inverse_twiddle[n], n=n)
        half = (n + 1) // 2
        x = torch.empty_like(v)
        x[..., ::2] = v[..., :half]
        x[..., 1::2] = v[..., half:].flip(-1)
        return x


FORMS = (TwoProduct, TwoProductBmm, FoldedTwoProduct, FourProduct, FftDct, RealFftDct)
"""All of them, for any device."""
