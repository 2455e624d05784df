# SPDX-License-Identifier: Apache-2.0
"""Any network f(x_t, t) as a denoiser of the soft corruption, its training loss, and guidance by a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _arguments as args
from .. import functional
from ..images import decode
from ..noise import NoiseKey, uniform_from_words, words_after
from . import _wrappers
from .corruption import Corruption

Mask = Callable[[Corruption, Tensor], Tensor]
"""(corruption, t [B]) -> [B, 1, H, W]: the gain with which a loss sees the error at each DCT frequency."""


class Prediction(NamedTuple):
    """What a network's output means. x0_hat: from (output, x_t); target: from (x_0, x_0 - x_t)."""

    x0_hat: Callable[[Tensor, Tensor], Tensor]
    target: Callable[[Tensor, Tensor], Tensor]


PREDICTIONS: dict[str, Prediction] = {
    "residual": Prediction(lambda out, x_t: out + x_t.to(out.dtype), lambda x0, residual: residual),
    "sample": Prediction(lambda out, x_t: out, lambda x0, residual: decode(x0)),
}
"""What the network predicts: the residual x_0 - x_t (the paper's), or x_0."""


def paper_weight(corruption: Corruption, t: Tensor) -> Tensor:
    """1 / noise_std(t)^2, the paper's: [B]."""
    return corruption.noise_std(t).square().reciprocal()


def uniform_weight(corruption: Corruption, t: Tensor) -> None:
    """1 at every t."""


WEIGHTS: dict[str, Callable[[Corruption, Tensor], Tensor | None]] = {
    "paper": paper_weight,
    "uniform": uniform_weight,
}
"""The weights w(t) of the loss by name; None stands for 1."""


def soft_mask(corruption: Corruption, t: Tensor) -> Tensor:
    """Soft Score Matching: errors seen through the blur.

    The mask is the gain m_t of C_t. Daras et al. 2022, eq. 12.
    """
    return corruption.gain(t)


def plain_mask(corruption: Corruption, t: Tensor) -> Tensor:
    """The plain squared error: all frequencies alike."""
    return torch.ones_like(corruption.gain(t))


INCREMENT_STEP = 1 / 64


def increment_mask(corruption: Corruption, t: Tensor) -> Tensor:
    """Errors weighted by what the sampler's next step adds to the image.

    The mask is the root of (m_s - a m_t) / (t - s), with s = t - 1/64 (at least 0) and
    a = noise_std(s)^2 / noise_std(t)^2.

    A step from t to s adds `(C_s - a C_t) x0_hat` to the image. Soft Score Matching weighs an error of x0_hat
    by C_t^2, so it is blind to the frequencies that the step newly adds; the plain loss weighs all
    frequencies alike. Here the weight of an error is the step's own gain, so an error counts at the t where
    it enters the image. The blur's part of it, m_s - m_t, sums to 1 over t for every frequency that C_1
    removes, so by Jensen's inequality the sum of the loss over t bounds the squared error of the whole path.
    Ours; docs/experiments.md has measurements.
    """
    t = t.double()  # in which the difference of the gains keeps its digits
    s = (t - INCREMENT_STEP).clamp(min=0.0)
    noise_std_t = corruption.noise_std(t)
    ratio = torch.where(noise_std_t == 0, 1.0, corruption.noise_std(s) / noise_std_t)
    gain = corruption.gain(s) - ratio.square().view(-1, 1, 1, 1) * corruption.gain(t)
    step = (t - s).clamp(min=1e-3)  # at t = 0 there is no step, and the gain is 0
    return (gain / step.view(-1, 1, 1, 1)).clamp(min=0.0).sqrt()


LOSSES: dict[str, Mask] = {"soft": soft_mask, "plain": plain_mask, "increment": increment_mask}
"""The losses by name, each as the gain with which it sees the error. Command options and help texts (a
docstring's first line) derive from this."""

# The losses whose mask is a Gaussian blur's gain: the fused op computes them from its blur_std.
_FUSED: dict[str, Callable[[Corruption, Tensor], Tensor | float]] = {
    "soft": lambda corruption, t: corruption.blur_std(t),
    "plain": lambda corruption, t: 0.0,
}


class SoftDenoiser(_wrappers.Wrappable):
    """A network `inner_model(x_t, t[B], **kw)` as a denoiser x0_hat(x_t, t), and its training loss.

    The loss of an image is `w(t) sum_k mask_t[k]^2 DCT2(prediction - target)[k]^2`.

    Networks that are preconditioned for plain noise (EDM's) do not fit: they take x_t for x_0 plus noise.

    Args:
        inner_model: The network. It may return a tensor or an object with a tensor `.sample`, and may compute
            in bfloat16 under autocast.
        corruption: The corruption that the network undoes.
        prediction: What the network predicts, a name in PREDICTIONS: "residual" for phi = x_0 - x_t, so that
            `x0_hat = phi + x_t` (the paper's), or "sample" for x0_hat itself.
        weight: w, a name in WEIGHTS: "paper", 1 / noise_std(t)^2, or "uniform", 1; or a function of t [B]
            that returns [B]. None is "paper" for "soft" and "plain", and "uniform" for every other loss,
            whose mask can include a weight.
        loss: The mask, a name in LOSSES: "soft" (Soft Score Matching,
            `w(t) ||C_t (prediction - target)||^2`), "plain" (the squared error) or "increment" (see
            `increment_mask`); or a function (corruption, t [B]) -> [B, 1, H, W] of nonnegative gains.

    Examples:
        >>> class Network(torch.nn.Conv2d):  # stands for yours
        ...     def forward(self, x_t, t):
        ...         return super().forward(x_t)
        >>> denoiser = SoftDenoiser(Network(3, 3, 3, padding=1), Corruption.paper((16, 16)))
        >>> loss = denoiser.loss(torch.zeros(4, 3, 16, 16), key=sk.NoiseKey(0))
        >>> loss.mean().backward()
        >>> denoiser(torch.zeros(4, 3, 16, 16), 0.5).shape  # x0_hat
        torch.Size([4, 3, 16, 16])
    """

    def __init__(
        self,
        inner_model: nn.Module,
        corruption: Corruption,
        prediction: str = "residual",
        weight: str | Callable[[Tensor], Tensor] | None = None,
        loss: str | Mask = "soft",
    ) -> None:
        super().__init__()
        if not isinstance(corruption, Corruption):
            raise TypeError(f"SoftDenoiser: expected a Corruption, got {type(corruption).__name__}")
        args.choice("SoftDenoiser", "prediction", prediction, tuple(PREDICTIONS))
        if not callable(loss):
            args.choice("SoftDenoiser", "loss", loss, tuple(LOSSES))
        if weight is None:
            weight = "paper" if isinstance(loss, str) and loss in _FUSED else "uniform"
        if not callable(weight):
            args.choice("SoftDenoiser", "weight", weight, tuple(WEIGHTS))
        if weight == "paper" and corruption.noise_std_nodes[0] == 0.0:
            raise ValueError(
                "SoftDenoiser: expected noise_std over 0 for the weight 1 / noise_std^2, got 0 at t = 0"
            )
        self.inner_model = inner_model
        self.corruption = corruption
        self.prediction = prediction
        self.weight = weight
        self.loss_mask = loss

    def forward(self, x: Tensor, t: float | Tensor, **kw: Any) -> Tensor:
        """The estimate x0_hat of x_0, [B, C, H, W] in x's dtype.

        Args:
            x: x_t [B, C, H, W].
            t: A number in [0, 1] or [B], as in `Corruption.blur_std`.
            **kw: Arguments of the network.
        """
        args.image("SoftDenoiser", "x", x)
        self.corruption.check_size("SoftDenoiser", x)
        out = self._predict(x, self._time(x, t), kw)
        return PREDICTIONS[self.prediction].x0_hat(out, x).to(x.dtype)

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
        """The training loss, summed over an image's elements: float32 [B], float64 for float64 images.

        Under DDP, FSDP2 or accelerate, wrap and call `TrainingLoss(denoiser)`.

        Args:
            x0: Images [B, C, H, W] in [-1, 1], or uint8.
            t: A number or [B]. None draws it uniformly in (0, 1), from each image's own stream if a key is
                given, else from torch's generator.
            key: Of the corruption, as in `softdiff_kernels.corrupt`.
            noise: Likewise.
            reduction: "none", "mean" over the batch, or "sum".
            **kw: Arguments of the network.

        Raises:
            RuntimeError: If this call would bypass a DDP of several processes, or FSDP.
        """
        op = "SoftDenoiser.loss"
        _wrappers.refuse_bypass(op, self)
        args.image(op, "x0", x0, uint8=True)
        if t is None:
            t = self.draw_time(x0, key)
        time = self._time(x0, t)
        x_t, residual = self.corruption.corrupt(x0, time, key=key, noise=noise, return_residual=True)
        out = self._predict(x_t, time, kw)
        target = PREDICTIONS[self.prediction].target(x0, residual).to(out.dtype)
        weight = self._weight(time)
        if isinstance(self.loss_mask, str) and self.loss_mask in _FUSED:
            blur_std = _FUSED[self.loss_mask](self.corruption, time)
            return functional.soft_score_loss(out, target, blur_std, weight=weight, reduction=reduction)
        mask = self.loss_mask if callable(self.loss_mask) else LOSSES[self.loss_mask]
        return _spectral_loss(out, target, mask(self.corruption, time), weight, reduction)

    def _predict(self, x_t: Tensor, time: Tensor, kw: dict[str, Any]) -> Tensor:
        """The network's output, in float32 (float64 for float64 images)."""
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
        """The t in (0, 1) that `loss` draws if none is given, for x0 [B, C, H, W]: float32 [B]."""
        if key is None:
            return torch.rand(x0.shape[0], device=x0.device)
        elements = x0.shape[1] * x0.shape[2] * x0.shape[3]
        return uniform_from_words(words_after(key, x0.shape[0], elements, 1, x0.device)[:, 0])

    def _weight(self, time: Tensor) -> Tensor | None:
        if callable(self.weight):
            return self.weight(time)
        return WEIGHTS[self.weight](self.corruption, time)


def _spectral_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, weight: float | Tensor | None, reduction: str
) -> Tensor:
    """`weight sum_k mask[k]^2 DCT2(prediction - target)[k]^2`, summed over an image's elements: float32 [B].

    prediction, target: [B, C, H, W]; mask: broadcasts to [B, C, H, W]; weight: a number or [B], None is 1.
    reduction: "none", "mean" over the batch, or "sum". float64 for float64 images.
    """
    op, batch, device = "SoftDenoiser.loss", prediction.shape[0], prediction.device
    args.choice(op, "reduction", reduction, ("none", "mean", "sum"))
    args.mask(op, "mask", mask, prediction.shape, device)
    error = functional.dct2(prediction - target)
    loss = (mask.to(error.dtype) * error).square().sum(dim=(1, 2, 3))
    if weight is not None:
        factor = args.coefficient(op, "weight", weight, batch, device)
        args.values(op, "weight", factor)
        loss = args.on(factor, device).to(loss.dtype) * loss
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


class TrainingLoss(nn.Module):
    """`SoftDenoiser.loss` as the forward of a module, to be wrapped by DDP, `fully_shard` or accelerate.

    These act only in the forward of the module that they wrap, so a call of the `loss` of a wrapped denoiser
    bypasses them. Parameters and buffers are those of the denoiser, under `denoiser.`.

    Examples:
        >>> denoiser = SoftDenoiser(lambda x_t, t: torch.zeros_like(x_t), Corruption.paper((16, 16)))
        >>> loss = TrainingLoss(denoiser)  # wrap this in DistributedDataParallel
        >>> x0, key = torch.zeros(4, 3, 16, 16), sk.NoiseKey(0)
        >>> torch.equal(loss(x0, key=key), denoiser.loss(x0, key=key))
        True
    """

    def __init__(self, denoiser: SoftDenoiser) -> None:
        super().__init__()
        if not isinstance(denoiser, SoftDenoiser):
            raise TypeError(
                f"TrainingLoss: expected a SoftDenoiser, got {type(denoiser).__name__}; wrap or compile the "
                "TrainingLoss, or the denoiser's network"
            )
        self.denoiser = denoiser

    def forward(
        self,
        x0: Tensor,
        t: float | Tensor | None = None,
        *,
        key: NoiseKey | None = None,
        noise: Tensor | None = None,
        reduction: str = "none",
        **kw: Any,
    ) -> Tensor:
        """As `SoftDenoiser.loss`. x0 is this process's part of the batch, and key identifies its images.

        So two processes with 8 images each take `NoiseKey(seed, stream=n + 8 * rank)`; with the same key both
        would use the same noise. ValueError for a key under DataParallel, whose replicas would share it.
        """
        if key is not None and getattr(self, "_is_replica", False):
            raise ValueError(
                "TrainingLoss: expected no key under DataParallel, where every replica would draw the noise "
                "of the first images, got one; give t and noise, or use DistributedDataParallel"
            )
        return self.denoiser.loss(x0, t, key=key, noise=noise, reduction=reduction, **kw)


class Guided:
    """A class-conditional denoiser with chosen classes, as the model of a sampler: classifier-free guidance.

    `x0_hat = x0_hat(any) + w (x0_hat(class) - x0_hat(any))`. Ho & Salimans 2022.

    Args:
        denoiser: Its network takes `class_labels` int64 [B]; without them it is unconditional, as it was
            trained on some of the images.
        class_labels: int64 [B], on the images' device.
        weight: w. 1 is the conditional model alone and needs one evaluation instead of two; over 1, images
            match their class better but vary less.

    Examples:
        >>> def network(x_t, t, class_labels=None):  # stands for a conditional network
        ...     return torch.zeros_like(x_t) if class_labels is None else torch.ones_like(x_t)
        >>> denoiser = SoftDenoiser(network, Corruption.paper((16, 16)), prediction="sample")
        >>> guided = Guided(denoiser, torch.tensor([3, 7]), weight=2.0)
        >>> guided(torch.zeros(2, 1, 16, 16), 0.5).mean()  # 0 + 2 (1 - 0)
        tensor(2.)
    """

    def __init__(self, denoiser: SoftDenoiser, class_labels: Tensor, weight: float = 1.0) -> None:
        if (
            not isinstance(class_labels, Tensor)
            or class_labels.dim() != 1
            or class_labels.dtype != torch.int64
        ):
            raise TypeError(f"Guided: expected class_labels as int64 [B], got {args.describe(class_labels)}")
        self.denoiser = denoiser
        self.class_labels = class_labels
        self.weight: float = args.number("Guided", "weight", weight, nonnegative=False)
        self.corruption = denoiser.corruption

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        """x0_hat [B, C, H, W] of x_t."""
        conditional: Tensor = self.denoiser(x, t, class_labels=self.class_labels)
        if self.weight == 1.0:
            return conditional
        unconditional: Tensor = self.denoiser(x, t)
        return torch.lerp(unconditional, conditional, self.weight)
