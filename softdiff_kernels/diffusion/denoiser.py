# SPDX-License-Identifier: Apache-2.0
"""Any network f(x_t, t) as a denoiser of the soft corruption, with its training loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _arguments as args
from .. import functional
from ..noise import NoiseKey
from . import _images, _wrappers
from ._stream import uniform_from_words, words_after
from .corruption import Corruption

PREDICTION_TYPES = ("residual", "sample")
WEIGHTS = ("paper", "uniform")


class SoftDenoiser(_wrappers.Wrappable):
    """Wraps `inner_model(x_t, t[B], **kw)` so that it is called and trained by what it means.

    prediction_type: "residual" where the network gives phi = x_0 - x_t, so `x0_hat = phi + x_t`
    (the paper's), "sample" where it gives x0_hat. weight, of the loss at t: "paper", 1 /
    noise_std(t)^2; "uniform", 1; or a function of t [B] that gives [B]. soft: whether the loss sees
    errors through C_t (Soft Score Matching) or plainly, `w(t) ||phi - (x_0 - x_t)||^2`, kept for
    comparison. The network may return a tensor or an object with a tensor `.sample`, and may work in
    bfloat16 under autocast.

    Networks preconditioned for plain noise (EDM's) do not drop in: they take x_t for x_0 plus noise.
    """

    def __init__(
        self,
        inner_model: nn.Module,
        corruption: Corruption,
        prediction_type: str = "residual",
        weight: str | Callable[[Tensor], Tensor] = "paper",
        soft: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(corruption, Corruption):
            raise TypeError(f"SoftDenoiser: expected a Corruption, got {type(corruption).__name__}")
        args.choice("SoftDenoiser", "prediction_type", prediction_type, PREDICTION_TYPES)
        if not callable(weight):
            args.choice("SoftDenoiser", "weight", weight, WEIGHTS)
        if weight == "paper" and corruption.noise_std_nodes[0] == 0.0:
            raise ValueError(
                "SoftDenoiser: expected noise_std over 0 for the weight 1 / noise_std^2, got 0 at t = 0"
            )
        self.inner_model = inner_model
        self.corruption = corruption
        self.prediction_type = prediction_type
        self.weight = weight
        self.soft = soft

    def forward(self, x: Tensor, t: float | Tensor, **kw: Any) -> Tensor:
        """The estimate x0_hat of x_0, [B, C, H, W] in x's dtype.

        x: x_t [B, C, H, W]; t: a number in [0, 1] or [B], as in `Corruption.blur_std`; kw goes to the
        network.
        """
        args.image("SoftDenoiser", "x", x)
        _images.check_size("SoftDenoiser", x, self.corruption.image_size)
        out = self._predict(x, self._time(x, t), kw)
        return (out + x.to(out.dtype) if self.prediction_type == "residual" else out).to(x.dtype)

    def loss(
        self,
        x0: Tensor,
        t: float | Tensor | None = None,
        *,
        key: NoiseKey | None = None,
        noise: Tensor | None = None,
        reduction: str = "none",
        **kw: Any,
    ) -> Tensor:
        """Soft Score Matching: `w(t) ||C_t (phi - (x_0 - x_t))||^2`, or with x0_hat - x_0. float32 [B].

        x0: [B, C, H, W] in [-1, 1], or uint8. t: number, [B], or None: uniform in (0, 1), of each
        image's own stream if a key is given, else from torch's generator. key, noise: of the
        corruption, as in `functional.corrupt`. reduction: "none", "mean" over the batch, or "sum".
        kw goes to the network. Summed over an image's elements (float64 for float64 images).
        Daras et al. 2022, eq. 12. Under DDP, FSDP2 or accelerate, wrap and call `TrainingLoss(denoiser)`:
        RuntimeError where this would bypass a DDP of several processes, or FSDP.
        """
        op = "SoftDenoiser.loss"
        _wrappers.refuse_bypass(op, self)
        args.image(op, "x0", x0, uint8=True)
        if t is None:
            t = self.draw_time(x0, key)
        time = self._time(x0, t)
        x_t, residual = self.corruption.corrupt(x0, time, key=key, noise=noise, return_residual=True)
        out = self._predict(x_t, time, kw)
        target = residual if self.prediction_type == "residual" else _images.decode(x0)
        return functional.soft_score_loss(
            out,
            target.to(out.dtype),
            self.corruption.blur_std(time) if self.soft else 0.0,
            weight=self._weight(time),
            reduction=reduction,
        )

    def _predict(self, x_t: Tensor, time: Tensor, kw: dict[str, Any]) -> Tensor:
        """The network's answer, in float32 or wider."""
        try:
            out = self.inner_model(x_t, time, **kw)
        except RuntimeError as error:
            _wrappers.explain_sharded("SoftDenoiser", self, error)
            raise
        out = out if isinstance(out, Tensor) else getattr(out, "sample", None)
        if not isinstance(out, Tensor):
            raise TypeError("SoftDenoiser: expected the network to return a tensor or an object with .sample")
        if out.shape != x_t.shape:
            raise ValueError(
                f"SoftDenoiser: expected the network to return shape {list(x_t.shape)}, got {list(out.shape)}"
            )
        return out.to(torch.float64 if x_t.dtype == torch.float64 else torch.float32)

    def _time(self, x: Tensor, t: float | Tensor) -> Tensor:
        batch = x.shape[0]
        t = args.time("SoftDenoiser", t)
        if not isinstance(t, Tensor):
            return torch.full((batch,), t, dtype=torch.float32, device=x.device)
        if not args.one_or(batch, t.numel()) or t.dim() > 1:
            raise ValueError(
                f"SoftDenoiser: expected t as a number or a tensor [{batch}], got {args.describe(t)}"
            )
        if t.device != x.device:
            raise ValueError(f"SoftDenoiser: expected t on {x.device}, got {args.describe(t)}")
        return t.reshape(-1).expand(batch)

    def draw_time(self, x0: Tensor, key: NoiseKey | None) -> Tensor:
        """The t in (0, 1) that `loss` draws where it is given none, for x0 [B, C, H, W]: float32 [B]."""
        if key is None:
            return torch.rand(x0.shape[0], device=x0.device)
        elements = x0.shape[1] * x0.shape[2] * x0.shape[3]
        return uniform_from_words(words_after(key, x0.shape[0], elements, 1, x0.device)[:, 0])

    def _weight(self, time: Tensor) -> Tensor | None:
        if callable(self.weight):
            return self.weight(time)
        return self.corruption.noise_std(time).square().reciprocal() if self.weight == "paper" else None
