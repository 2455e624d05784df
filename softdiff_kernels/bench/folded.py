# SPDX-License-Identifier: Apache-2.0
"""The two-product form by even and odd halves: what a careful reader of the operator would write."""

from __future__ import annotations

import torch
from torch import Tensor

from .forms import Form


class FoldedTwoProduct(Form):
    """`A x A` by halves: A is its own mirror image, so that even and odd parts do not mix.

    Along an axis the sum and the difference of the two ends are multiplied by matrices of half the size: half
    the operations of the products, and a quarter of those that make A.
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
