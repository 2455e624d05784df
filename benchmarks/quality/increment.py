# SPDX-License-Identifier: Apache-2.0
"""`softdiff train` with a loss that sees each frequency as the sampler's next step brings it out.

    python -m benchmarks.quality.increment train --preset mnist --data mnist-train.npz --outdir increment

A step from t to s adds `(C_s - a C_t) x0_hat` to what is there, a = noise_std_s^2 / noise_std_t^2. Soft
Score Matching weighs an error of x0_hat by C_t^2, so it is blind to what the step brings out anew; the
plain loss weighs all frequencies alike. Here the weight is the step's own gain, (m_s - a m_t) / (t - s),
and no other of t, so that an error counts where it gets into the image. (The blur's part, m_s - m_t, sums
to one over t for every frequency that C_1 removes, so the sum bounds the squared error of the whole way, by
Jensen's inequality.)

An experiment on what Soft Score Matching lacks after a short training (docs/experiments.md); no option of the
trainer, whose record of such a run says `loss: plain`.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from softdiff_kernels import functional
from softdiff_kernels.cli import main
from softdiff_kernels.diffusion import SoftDenoiser
from softdiff_kernels.noise import NoiseKey
from softdiff_kernels.spectrum import reverse_gain
from softdiff_kernels.training import trainer

STEP = 1 / 64
LEAST = 1e-3


class IncrementDenoiser(SoftDenoiser):
    """A `SoftDenoiser` that predicts residuals, trained by the increment-weighted loss."""

    def loss(self, x0: Tensor, t: Any = None, *, key: NoiseKey | None = None, **kw: Any) -> Tensor:  # type: ignore[override]
        """`sum_f w_t(f) DCT(phi - (x_0 - x_t))^2`, float32 [B]."""
        corruption = self.corruption
        time = self._time(x0, self.draw_time(x0, key) if t is None else t)
        x_t, residual = corruption.corrupt(x0, time, key=key, return_residual=True)
        error = functional.dct2(self._predict(x_t, time, kw) - residual)
        return (increment_weight(corruption, time) * error.square()).sum((1, 2, 3))


def increment_weight(corruption: Any, t: Tensor) -> Tensor:
    """(m_s - a m_t) / (t - s), s a sixty-fourth before t, but not before 0. float32 [B, 1, H, W]."""
    s = (t - STEP).clamp(min=0.0)
    share = (corruption.noise_std(s) / corruption.noise_std(t)).double().square()
    gain = reverse_gain(
        corruption.blur_std(t).double(), corruption.blur_std(s).double(), 1.0 - share, *corruption.image_size
    )
    return (gain / (t - s).clamp(min=LEAST).double().view(-1, 1, 1, 1)).float()


if __name__ == "__main__":
    trainer.SoftDenoiser = IncrementDenoiser  # type: ignore[misc]
    sys.exit(main())
