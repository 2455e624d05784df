# SPDX-License-Identifier: Apache-2.0
"""Cold Diffusion's loop, `x_s = x_t + (C_s - C_t) x0_hat`, with next to no network: milliseconds a step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..diffusion import Corruption, time_steps
from .dominated_rows import compete
from .eager_step import decoded, placed, shared_product
from .forms import FftDct, FourProduct, TwoProduct
from .pictures import natural_images
from .turns import agree

_CASE = "Cold Diffusion's loop"


def _estimate(x_t: Tensor) -> Tensor:
    """In the network's place: x_t, cut off at the range of an image."""
    return x_t.clamp(-1.0, 1.0)


@torch.no_grad()
def cold_loop(device: torch.device, size: int, batch: int, steps: int, budget: float) -> list[dict[str, Any]]:
    """The whole loop from t = 1 to 0, fused and with two blurs a step. Bansal et al. 2022, Algorithm 2.

    What an eager loop can make before it starts is made before it is timed: operators or masks for all times.
    """
    corruption = Corruption.paper((size, size))
    levels = [corruption.blur_std(float(t)) for t in time_steps(steps)]
    std = torch.tensor(levels, device=device)
    start = functional.blur(decoded(natural_images(batch, size)).to(device), levels[0])
    two, four, fft = (placed(kind(size, size), device) for kind in (TwoProduct, FourProduct, FftDct))
    assert isinstance(two, TwoProduct) and isinstance(four, FourProduct) and isinstance(fft, FftDct)
    operators = list(two.operators(std)[0])
    gains = list(four.gain(std)[:, None])

    def fused() -> Tensor:
        x = start
        for t, s in pairwise(levels):
            x = functional.reverse_step(x, _estimate(x), blur_std_t=t, blur_std_s=s, a=1.0, b=0.0)
        return x

    def two_blurs() -> Tensor:
        x = start
        for a_t, a_s in pairwise(operators):
            x0_hat = _estimate(x)
            x = x - shared_product(a_t, x0_hat, a_t) + shared_product(a_s, x0_hat, a_s)
        return x

    def one_mask(form: FourProduct | FftDct) -> Callable[[], Tensor]:
        """`idct2((m_s - m_t) dct2(x0_hat))`: the two blurs share their transforms."""

        def loop() -> Tensor:
            x = start
            for gain_t, gain_s in pairwise(gains):
                x = x + form.idct2((gain_s - gain_t) * form.dct2(_estimate(x)))
            return x

        return loop

    others = {
        "two blurs, operators kept": two_blurs,
        "one mask, four-product": one_mask(four),
        "one mask, FFT-DCT": one_mask(fft),
    }
    exact = fused()
    for name, loop in others.items():
        agree(f"Cold Diffusion's loop, {name}", exact, loop())
    about = {"case": _CASE, "what": f"a step, of {steps}", "size": size, "batch": batch}
    return compete(about, fused, others, device, budget=budget, unit="ms", count=steps, least=3)
