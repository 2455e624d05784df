# SPDX-License-Identifier: Apache-2.0
"""Any network f(x_t, t) as a denoiser of the soft corruption, its training loss, and guidance by a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _arguments as args
from ..images import decode
from ..noise import NoiseKey, fresh_key, uniform_from_words, words_after
from . import _wrappers
from .corruption import Corruption, Factor

Mask = Callable[[Corruption, Tensor], Factor]
"""(corruption, t [B]) -> the gain with which a loss sees the error at each frequency: [B, 1, H, W], or a
number for all."""


class Preconditioning(NamedTuple):
    """EDM's factors, each [B, 1, 1, 1]: of x_t in x0_hat, of the network's output, and of its input x_t."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


def preconditioning(corruption: Corruption, t: Tensor, data_std: float) -> Preconditioning:
    """The factors of `x0_hat = c_skip x_t + c_out F(c_in x_t)` at t [B]. Karras et al. 2022, table 1.

    With sigma the noise over the mean, and r^2 = sigma^2 + data_std^2: `c_skip = data_std^2 / r^2`,
    `c_out = sigma data_std / r`, `c_in = 1 / r`. The network's input and target then have the variance 1,
    and no other c_skip has a smaller c_out. x_t is a_t times theirs, so that c_skip and c_in are divided by
    the mean a_t.

    Their c_noise = ln(sigma) / 4 is what the network sees of t: `BlurCorruption.noise_only` is geometric, so
    ln(sigma) is linear in t.
    """
    mean = corruption.gain(t)[:, :1, :1, :1]
    sigma = corruption.noise(t) / mean
    square = sigma.square() + data_std**2
    root = square.sqrt()
    return Preconditioning(data_std**2 / (square * mean), sigma * data_std / root, 1 / (root * mean))


class Corrupted(NamedTuple):
    """What a target is made of: x_0 as it was given, x_t, x_0 - x_t, and, if asked for, the noise."""

    x0: Tensor
    x_t: Tensor
    residual: Tensor
    noise: Tensor | None


class Prediction(NamedTuple):
    """What a network's output means. x0_hat: from (output, x_t, denoiser, t [B]); target: from (the corrupted
    images, denoiser, t)."""

    x0_hat: Callable[[Tensor, Tensor, SoftDenoiser, Tensor], Tensor]
    target: Callable[[Corrupted, SoftDenoiser, Tensor], Tensor | None]


def _without_noise(out: Tensor, x_t: Tensor, denoiser: SoftDenoiser, t: Tensor) -> Tensor:
    """V[(V^T x_t - s_t V^T out) / m_t]."""
    corruption = denoiser.corruption
    gain = corruption.gain(t)
    return corruption.mix([x_t.to(out.dtype), out], [1.0 / gain, -corruption.noise(t) / gain])


def _skipped(x_t: Tensor, denoiser: SoftDenoiser, t: Tensor) -> Tensor:
    """c_skip x_t, at least in float32."""
    return preconditioning(denoiser.corruption, t, denoiser.data_std).c_skip * x_t


PREDICTIONS: dict[str, Prediction] = {
    "residual": Prediction(lambda out, x_t, *_: out + x_t.to(out.dtype), lambda images, *_: images.residual),
    "sample": Prediction(lambda out, *_: out, lambda images, *_: decode(images.x0)),
    "noise": Prediction(_without_noise, lambda images, *_: images.noise),
    "edm": Prediction(
        lambda out, x_t, denoiser, t: out + _skipped(x_t, denoiser, t).to(out.dtype),
        lambda images, denoiser, t: decode(images.x0) - _skipped(images.x_t, denoiser, t),
    ),
}
"""What the network predicts: the residual x_0 - x_t (the paper's), x_0, the white noise n, or EDM's
x_0 - c_skip x_t."""

DATA_STD = 0.5
"""EDM's sigma_data."""

_LEAST_GAIN = 1e-6
"""Smallest gain over which x_0 is still told from the noise: 1 / gain amplifies the network's rounding."""


def paper_weight(corruption: Corruption, t: Tensor, data_std: float) -> Tensor:
    """1 / noise(t)^2, the paper's.

    [B]; for coloured noise frequency by frequency, so that it broadcasts to [B, C, H, W].
    """
    weight = corruption.noise(t).square().reciprocal()
    return weight.reshape(-1) if weight.numel() == t.numel() else weight


def uniform_weight(corruption: Corruption, t: Tensor, data_std: float) -> None:
    """1 at every t."""


def edm_weight(corruption: Corruption, t: Tensor, data_std: float) -> Tensor:
    """1 / c_out(t)^2, EDM's, for noise alone.

    [B]: (sigma^2 + data_std^2) / (sigma data_std)^2, with which the network's own output has the weight 1.
    Karras et al. 2022, table 1.
    """
    return preconditioning(corruption, t, data_std).c_out.square().reciprocal().reshape(-1)


WEIGHTS: dict[str, Callable[[Corruption, Tensor, float], Tensor | None]] = {
    "paper": paper_weight,
    "uniform": uniform_weight,
    "edm": edm_weight,
}
"""The weights w(t) of the loss by name, from (corruption, t [B], data_std); None stands for 1."""


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

    The mask is the root of |m_s - a m_t| / (t - s), with s = t - 1/64 (at least 0) and
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
    noise_t = corruption.noise(t)
    ratio = torch.where(noise_t == 0, 1.0, corruption.noise(s) / noise_t)
    gain = corruption.gain(s) - ratio.square() * corruption.gain(t)
    step = (t - s).clamp(min=1e-3)  # at t = 0 there is no step, and the gain is 0
    # Negative where gains are, or where the noise falls with t; what a step takes away counts as well.
    return (gain / step.view(-1, 1, 1, 1)).abs().sqrt()


IHDM_STEP = 1 / 100


def ihdm_mask(corruption: Corruption, t: Tensor) -> Tensor:
    """IHDM's: errors seen through the blur of the next level, which its network predicts.

    The mask is the gain at t - 1/100 (at least 0); 100 is the number of levels for MNIST. Rissanen et al.
    2022, eq. 9.
    """
    return corruption.gain((t - IHDM_STEP).clamp(min=0.0))


LOSSES: dict[str, Mask] = {
    "soft": soft_mask,
    "plain": plain_mask,
    "increment": increment_mask,
    "ihdm": ihdm_mask,
}
"""The losses by name, each as the gain with which it sees the error. Command options and help texts (a
docstring's first line) derive from this."""

# The losses for which `Corruption.loss` needs no mask: None is C_t itself.
_UNMASKED: dict[str, float | None] = {"soft": None, "plain": 1.0}


class SoftDenoiser(_wrappers.Wrappable):
    """A network `inner_model(x_t, t[B], **kw)` as a denoiser x0_hat(x_t, t), and its training loss.

    The loss of an image is `w(t) sum_k mask_t[k]^2 DCT2(prediction - target)[k]^2`.

    Args:
        inner_model: The network. It may return a tensor or an object with a tensor `.sample`, and may compute
            in bfloat16 under autocast.
        corruption: The corruption that the network undoes.
        prediction: What the network predicts, a name in PREDICTIONS: "residual" for phi = x_0 - x_t, so that
            `x0_hat = phi + x_t` (the paper's), "sample" for x0_hat itself, "noise" for the white noise n,
            which needs a gain over 0 at every frequency and t, or "edm" for x_0 - c_skip x_t, for white noise
            alone (see `preconditioning`; a network with its own c_in and c_out gives c_out F(c_in x_t)).
        weight: w, a name in WEIGHTS: "paper", 1 / noise_std(t)^2, "uniform", 1, or "edm", 1 / c_out^2, for
            white noise alone; or a function of t [B] that returns [B]. None is "paper" for "soft" and
            "plain", and "uniform" for every other loss, whose mask can include a weight.
        loss: The mask, a name in LOSSES: "soft" (Soft Score Matching,
            `w(t) ||C_t (prediction - target)||^2`), "plain" (the squared error), "increment" (see
            `increment_mask`) or "ihdm" (see `ihdm_mask`); or a function (corruption, t [B]) -> [B, 1, H, W]
            of nonnegative gains. All are of the error of x0_hat: with "noise" predicted, "soft" with the
            paper's weight is the plain squared error of the noise.
        time: From u, uniform in (0, 1), to the t of training, such as `time_warp("w2", ...)`. None trains on
            t uniform in (0, 1).
        data_std: EDM's sigma_data, for its prediction and weight: the standard deviation of the images'
            elements about their mean, 0.5 for CIFAR-10 and 0.62 for MNIST. A trained network needs the same
            one again.

    Examples:
        >>> class Network(torch.nn.Conv2d):  # stands for yours
        ...     def forward(self, x_t, t):
        ...         return super().forward(x_t)
        >>> denoiser = SoftDenoiser(Network(3, 3, 3, padding=1), BlurCorruption.paper((16, 16)))
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
        time: Callable[[Tensor], Tensor] | None = None,
        data_std: float = DATA_STD,
    ) -> None:
        super().__init__()
        if not isinstance(corruption, Corruption):
            raise TypeError(f"SoftDenoiser: expected a Corruption, got {type(corruption).__name__}")
        args.choice("SoftDenoiser", "prediction", prediction, tuple(PREDICTIONS))
        if not callable(loss):
            args.choice("SoftDenoiser", "loss", loss, tuple(LOSSES))
        if weight is None:
            weight = "paper" if isinstance(loss, str) and loss in _UNMASKED else "uniform"
        if not callable(weight):
            args.choice("SoftDenoiser", "weight", weight, tuple(WEIGHTS))
        # "noise" with the paper's weight divides by what it multiplies with.
        divides = weight == "paper" and prediction != "noise"
        if (divides or weight == "edm") and corruption.noise(0.0).min() == 0.0:
            raise ValueError("SoftDenoiser: expected noise over 0 for the weight 1 / noise^2, got 0 at t = 0")
        if prediction == "noise":
            _check_floor(corruption)
        if "edm" in (prediction, weight):
            check_noise_alone(corruption)
            if data_std == 0.0:
                raise ValueError(
                    "SoftDenoiser: expected data_std over 0, that of images that differ, got 0.0"
                )
        self.inner_model = inner_model
        self.corruption = corruption
        self.prediction = prediction
        self.weight = weight
        self.loss_mask = loss
        self.time = time
        self.data_std: float = args.number("SoftDenoiser", "data_std", data_std)

    def forward(self, x: Tensor, t: float | Tensor, **kw: Any) -> Tensor:
        """The estimate x0_hat of x_0, [B, C, H, W] in x's dtype.

        Args:
            x: x_t [B, C, H, W].
            t: A number in [0, 1] or [B], as in `Corruption.blur_std`.
            **kw: Arguments of the network.
        """
        args.image("SoftDenoiser", "x", x)
        self.corruption.check_size("SoftDenoiser", x)
        time = self._time(x, t)
        out = self._predict(x, time, kw)
        return PREDICTIONS[self.prediction].x0_hat(out, x, self, time).to(x.dtype)

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
            t: A number or [B]. None draws it, from each image's own stream if a key is given, else from
                torch's generator.
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
        if self.prediction == "noise" and noise is None:
            noise = self.corruption.white(x0, fresh_key() if key is None else key)
            key = None
        x_t, residual = self.corruption.corrupt(x0, time, key=key, noise=noise, return_residual=True)
        out = self._predict(x_t, time, kw)
        target = PREDICTIONS[self.prediction].target(Corrupted(x0, x_t, residual, noise), self, time)
        assert target is not None
        mask, weight = self._view(time)
        return self.corruption.loss(
            out, target.to(out.dtype), time, mask=mask, weight=weight, reduction=reduction
        )

    def _view(self, time: Tensor) -> tuple[float | Tensor | None, Tensor | None]:
        """(mask, weight [B]) with which the loss sees an error of the network, as `Corruption.loss` takes
        them."""
        corruption, name = self.corruption, self.loss_mask
        mask: float | Tensor | None
        if isinstance(name, str) and name in _UNMASKED:
            mask = _UNMASKED[name]
        else:
            mask = (LOSSES[name] if isinstance(name, str) else name)(corruption, time)
        predicts_noise = self.prediction == "noise"
        if predicts_noise:  # an error e of the noise is one of -s_t e / m_t of x0_hat
            mask = 1.0 if mask is None else mask / corruption.gain(time)
            if self.weight == "paper":
                return mask, None
        weight = self._weight(time)
        noise = corruption.noise(time) if predicts_noise else None
        if noise is not None and noise.numel() == time.numel():
            seen = noise.reshape(-1).square()
            weight = seen if weight is None else seen * weight
        elif noise is not None:
            mask = (1.0 if mask is None else mask) * noise
        if isinstance(weight, Tensor) and weight.dim() == 4:  # coloured noise
            mask = (corruption.gain(time) if mask is None else mask) * weight.sqrt()
            weight = None
        return mask, weight

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
            u = torch.rand(x0.shape[0], device=x0.device)
        else:
            elements = x0.shape[1] * x0.shape[2] * x0.shape[3]
            u = uniform_from_words(words_after(key, x0.shape[0], elements, 1, x0.device)[:, 0])
        return u if self.time is None else self.time(u)

    def _weight(self, time: Tensor) -> Tensor | None:
        if callable(self.weight):
            return self.weight(time)
        return WEIGHTS[self.weight](self.corruption, time, self.data_std)


def _check_floor(corruption: Corruption) -> None:
    """Raises ValueError where x_0 cannot be told from the noise."""
    least = corruption.gain(1.0).min().item() if corruption.basis else 0.0
    if least < _LEAST_GAIN:
        raise ValueError(
            f"SoftDenoiser: expected a gain of at least {_LEAST_GAIN:g} everywhere for the prediction "
            f'"noise", got {least:.3g} at t = 1; predict "residual" or "sample", or give the corruption a '
            "floor"
        )


def check_noise_alone(corruption: Corruption) -> None:
    """Raises ValueError where EDM's factors are not those of the process: x_t is not a_t x_0 + s_t n, n
    white."""
    fades = False
    if corruption.basis:
        gain = corruption.gain(1.0)
        fades = bool(gain.min() > 0) and bool(gain.max() - gain.min() <= 1e-6 * gain.max())
    if not fades or corruption.noise(1.0).numel() != 1:
        raise ValueError(
            'SoftDenoiser: expected white noise alone for "edm", such as BlurCorruption.noise_only, got a '
            f"{type(corruption).__name__} that does more, or less; take another prediction and weight"
        )


class TrainingLoss(nn.Module):
    """`SoftDenoiser.loss` as the forward of a module, to be wrapped by DDP, `fully_shard` or accelerate.

    These act only in the forward of the module that they wrap, so a call of the `loss` of a wrapped denoiser
    bypasses them. Parameters and buffers are those of the denoiser, under `denoiser.`.

    Examples:
        >>> denoiser = SoftDenoiser(lambda x_t, t: torch.zeros_like(x_t), BlurCorruption.paper((16, 16)))
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
        interval: (low, high). At other t the weight is 1. Kynkäänniemi et al. 2024.

    Examples:
        >>> def network(x_t, t, class_labels=None):  # stands for a conditional network
        ...     return torch.zeros_like(x_t) if class_labels is None else torch.ones_like(x_t)
        >>> denoiser = SoftDenoiser(network, BlurCorruption.paper((16, 16)), prediction="sample")
        >>> guided = Guided(denoiser, torch.tensor([3, 7]), weight=2.0)
        >>> guided(torch.zeros(2, 1, 16, 16), 0.5).mean()  # 0 + 2 (1 - 0)
        tensor(2.)
    """

    def __init__(
        self,
        denoiser: SoftDenoiser,
        class_labels: Tensor,
        weight: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if (
            not isinstance(class_labels, Tensor)
            or class_labels.dim() != 1
            or class_labels.dtype != torch.int64
        ):
            raise TypeError(f"Guided: expected class_labels as int64 [B], got {args.describe(class_labels)}")
        self.denoiser = denoiser
        self.class_labels = class_labels
        self.weight: float = args.number("Guided", "weight", weight, nonnegative=False)
        ends = args.numbers("Guided", "interval", interval)
        if len(ends) != 2 or not 0.0 <= ends[0] <= ends[1] <= 1.0:
            raise ValueError(
                f"Guided: expected interval as two rising times in [0, 1], got {args.shown(interval)}"
            )
        self.interval = ends[0], ends[1]
        self.corruption = denoiser.corruption

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        """x0_hat [B, C, H, W] of x_t."""
        conditional: Tensor = self.denoiser(x, t, class_labels=self.class_labels)
        if self.weight == 1.0:
            return conditional
        if self.interval == (0.0, 1.0):
            unconditional: Tensor = self.denoiser(x, t)
            return torch.lerp(unconditional, conditional, self.weight)
        time = t if isinstance(t, Tensor) else torch.tensor(float(t), device=x.device)
        guided = (time >= self.interval[0]) & (time <= self.interval[1])
        # On a device nothing is read, and both are evaluated.
        if guided.device.type == "cpu" and not guided.any():
            return conditional
        weight = torch.where(guided, self.weight, 1.0).to(x.dtype).reshape(-1, 1, 1, 1)
        return torch.lerp(self.denoiser(x, t), conditional, weight)
