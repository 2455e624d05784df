# SPDX-License-Identifier: Apache-2.0
"""The eager twins of the fused ops, in plain PyTorch: the specification.

They have the names and signatures of the public functions, take any image dtype, and are differentiable by
autograd. They are written for clarity, not for speed. float64 images are computed in float64, which the tests
call the truth; float32 images in float32; bfloat16 and float16 in float32, rounded once at the end.
Images are [B, C, H, W] in [-1, 1], blur_std is in pixels, noise_std in units of the image. Bad
arguments raise ValueError or TypeError.

The public functions share the docstrings. In their examples, `sk` is `softdiff_kernels`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _arguments as args
from . import spectrum
from .images import decode
from .noise import NoiseKey, key_rows, pack_key, philox_normal

Coefficient = float | Tensor


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _relaxed_float32() -> bool:
    """Whether a global flag allows float32 products of lower precision."""
    return torch.get_float32_matmul_precision() != "highest"


def _transform(x: Tensor, *, inverse: bool) -> Tensor:
    """D_H x D_W^T, or its inverse, in x's dtype regardless of autocast and the precision flags."""
    with torch.autocast(x.device.type, enabled=False):
        # A float64 product is slow on a GPU, so it is used only if a flag would round a float32 product.
        dtype = torch.float64 if x.dtype == torch.float32 and _relaxed_float32() else x.dtype
        along_h = spectrum.dct_basis(x.shape[-2], dtype=dtype, device=x.device)
        along_w = spectrum.dct_basis(x.shape[-1], dtype=dtype, device=x.device)
        if inverse:
            along_h, along_w = along_h.T, along_w.T
        return (along_h @ x.to(dtype) @ along_w.T).to(x.dtype)


def _per_sample(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).view(-1, 1, 1, 1)


def _coefficient(
    op: str,
    name: str,
    value: Coefficient,
    x: Tensor,
    *,
    nonnegative: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    coefficient = args.coefficient(op, name, value, x.shape[0], x.device, nonnegative=nonnegative)
    if isinstance(value, Tensor):
        args.values(op, name, coefficient, nonnegative=nonnegative)
    return args.on(coefficient, x.device).to(dtype or _compute_dtype(x))


def _noise(key: NoiseKey | None, noise: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    if noise is not None:
        return noise.to(dtype)
    batch = like.shape[0]
    rows = key_rows(*pack_key(key, batch, like.device), batch, like.device)
    return philox_normal(like.shape, rows, dtype)


def _check_noise(op: str, key: NoiseKey | None, noise: Tensor | None, like: Tensor) -> None:
    if noise is not None:
        if key is not None:
            raise ValueError(f"{op}: expected key or noise, got both")
        args.image(op, "noise", noise, like=like)


def dct2(x: Tensor) -> Tensor:
    """Orthonormal 2-D DCT-II over the last two axes: `u = D_H x D_W^T`.

    Ahmed, Natarajan & Rao 1974. The same as `scipy.fft.dctn(x, axes=(-2, -1), norm="ortho")`.

    Args:
        x: Images [B, C, H, W].

    Returns:
        The spectrum [B, C, H, W] in x's dtype. `u[..., 0, 0]` is the image's mean times sqrt(H W).

    Examples:
        >>> x = torch.ones(1, 1, 4, 4)
        >>> sk.dct2(x).abs().sum(dim=(2, 3))  # a constant image has only the frequency (0, 0)
        tensor([[4.]])
    """
    args.image("dct2", "x", x)
    return _transform(x.to(_compute_dtype(x)), inverse=False).to(x.dtype)


def idct2(u: Tensor) -> Tensor:
    """Inverse of `dct2`, the orthonormal 2-D DCT-III: `x = D_H^T u D_W`.

    Args:
        u: Spectra [B, C, H, W].

    Returns:
        Images [B, C, H, W] in u's dtype.

    Examples:
        >>> x = sk.normal([2, 3, 16, 16], sk.NoiseKey(0))
        >>> torch.allclose(sk.idct2(sk.dct2(x)), x, atol=1e-5)
        True
    """
    args.image("idct2", "u", u)
    return _transform(u.to(_compute_dtype(u)), inverse=True).to(u.dtype)


def identity(x: Tensor) -> Tensor:
    """`y = x`. template: copy this for a new op.

    Args:
        x: Images [B, C, H, W].

    Returns:
        A copy, of x's shape and dtype.

    Examples:
        >>> x = sk.normal([2, 3, 8, 8], sk.NoiseKey(0))
        >>> torch.equal(sk.functional.identity(x), x)
        True
    """
    args.image("identity", "x", x)
    return x.clone()


def _filter(x: Tensor, gain: Tensor) -> Tensor:
    return _transform(gain * _transform(x, inverse=False), inverse=True)


def blur(x: Tensor, blur_std: Coefficient, *, floor: float = 0.0, scale: Coefficient = 1.0) -> Tensor:
    """Gaussian blur, `y = C x = IDCT2(m DCT2(x))`, with half-sample symmetric boundaries.

    The mask is `m = scale ((1 - floor) exp(-lambda blur_std^2 / 2) + floor)`, with
    `lambda[k, l] = (pi k / H)^2 + (pi l / W)^2`. Rissanen et al. 2022; the floor is Hoogeboom & Salimans
    2022, eq. 26.

    Args:
        x: Images [B, C, H, W].
        blur_std: Standard deviation of the blur in pixels, a number or [B]. 0 returns `scale x` exactly.
        floor: Part of the identity that is mixed in, in [0, 1].
        scale: Factor of the result, a number or [B].

    Returns:
        The blurred images, of x's shape and dtype.

    Examples:
        >>> x = sk.normal([2, 3, 32, 32], sk.NoiseKey(0))
        >>> y = sk.blur(x, torch.tensor([1.0, 4.0]))  # one blur for each image
        >>> torch.allclose(y.mean(dim=(2, 3)), x.mean(dim=(2, 3)), atol=1e-6)  # the mean is kept
        True
    """
    args.image("blur", "x", x)
    floor = args.number("blur", "floor", floor, most=1.0)
    std = _coefficient("blur", "blur_std", blur_std, x)
    factor = _coefficient("blur", "scale", scale, x, nonnegative=False)
    return _blur(x.to(_compute_dtype(x)), std, floor, factor).to(x.dtype)


def _blur(x: Tensor, std: Tensor, floor: float, scale: Tensor) -> Tensor:
    gain = spectrum.heat_gain(std, x.shape[-2], x.shape[-1], floor=floor)
    blurred = torch.where(_per_sample(std, x.dtype) == 0, x, _filter(x, gain))
    return _per_sample(scale, x.dtype) * blurred


def corrupt(
    x0: Tensor,
    blur_std: Coefficient,
    noise_std: Coefficient,
    *,
    floor: float = 0.0,
    scale: Coefficient = 1.0,
    key: NoiseKey | None = None,
    noise: Tensor | None = None,
    return_residual: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Blur and noise, `x_t = C_t x_0 + noise_std n`, and, on request, the residual `x_0 - x_t`.

    Daras et al. 2022 (Soft Diffusion), eq. 1.

    Args:
        x0: Images [B, C, H, W]. uint8 images are decoded as `x / 127.5 - 1`, and give float32 results.
        blur_std: Standard deviation of the blur in pixels, a number or [B].
        noise_std: Standard deviation of the noise in units of the image, a number or [B].
        floor: As in `blur`.
        scale: As in `blur`.
        key: Key of the noise. None takes a fresh key from torch's default generator.
        noise: The noise n itself, of x0's shape, in place of a key.
        return_residual: Whether to return the residual, too. It is formed before x_t is rounded to its dtype.

    Returns:
        x_t, or the pair (x_t, residual), each of x0's shape.

    Examples:
        >>> x0 = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        >>> x_t, residual = sk.corrupt(x0, 2.0, 0.1, key=sk.NoiseKey(seed=0), return_residual=True)
        >>> torch.allclose(x_t + residual, -torch.ones(4, 3, 32, 32), atol=1e-6)  # x_0: black is -1
        True
        >>> alone = sk.corrupt(x0[3:], 2.0, 0.1, key=sk.NoiseKey(seed=0, stream=3))
        >>> torch.equal(alone, x_t[3:])  # image 3 has the same noise in any batch
        True
    """
    args.image("corrupt", "x0", x0, uint8=True)
    floor = args.number("corrupt", "floor", floor, most=1.0)
    _check_noise("corrupt", key, noise, x0)
    std = _coefficient("corrupt", "blur_std", blur_std, x0)
    sigma = _coefficient("corrupt", "noise_std", noise_std, x0)
    factor = _coefficient("corrupt", "scale", scale, x0, nonnegative=False)
    dtype = _compute_dtype(x0)
    out_dtype = torch.float32 if x0.dtype == torch.uint8 else x0.dtype
    clean = decode(x0).to(dtype)
    x_t = _blur(clean, std, floor, factor) + _per_sample(sigma, dtype) * _noise(key, noise, x0, dtype)
    if return_residual:
        return x_t.to(out_dtype), (clean - x_t).to(out_dtype)
    return x_t.to(out_dtype)


def _write(result: Tensor, out: Tensor | None) -> Tensor:
    return result if out is None else out.copy_(result)


def reverse_step(
    x_t: Tensor,
    x0_hat: Tensor,
    *,
    blur_std_t: Coefficient,
    blur_std_s: Coefficient,
    a: Coefficient,
    b: Coefficient,
    floor: float = 0.0,
    key: NoiseKey | None = None,
    noise: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One step of any first-order sampler of the family: `x_s = a x_t + (C_s - a C_t) x0_hat + b n`.

    The naive sampler has a = 0 and b = noise_std_s. Cold Diffusion's Algorithm 2 (TACoS) has a = 1 and
    b = 0. Others have their own (a, b). The mask is formed by expm1 (`spectrum.reverse_gain`).

    Args:
        x_t: Images at time t, [B, C, H, W].
        x0_hat: Estimate of the clean images, of the same shape.
        blur_std_t: Standard deviation of the blur at time t in pixels, a number or [B].
        blur_std_s: The same at time s < t.
        a: Factor of x_t, a number or [B].
        b: Standard deviation of the fresh noise n, a number or [B].
        floor: As in `blur`.
        key: As in `corrupt`.
        noise: As in `corrupt`.
        out: Tensor that the result is written to. Not differentiable.

    Returns:
        x_s, of x_t's shape and dtype.

    Examples:
        >>> x0 = sk.normal([1, 3, 16, 16], sk.NoiseKey(0))
        >>> x_t = sk.blur(x0, 4.0)
        >>> x_s = sk.reverse_step(x_t, x0, blur_std_t=4.0, blur_std_s=3.0, a=1.0, b=0.0)
        >>> torch.allclose(x_s, sk.blur(x0, 3.0), atol=1e-5)  # the true x_0 leads to the weaker blur
        True
    """
    op = "reverse_step"
    args.image(op, "x_t", x_t)
    args.image(op, "x0_hat", x0_hat, like=x_t)
    floor = args.number(op, "floor", floor, most=1.0)
    _check_noise(op, key, noise, x_t)
    args.output(op, out, x_t, x0_hat, noise)
    std_t = _coefficient(op, "blur_std_t", blur_std_t, x_t)
    std_s = _coefficient(op, "blur_std_s", blur_std_s, x_t)
    # 1 - a is computed in float64: then a near 1 loses no digits that a float32 image can show.
    keep = _coefficient(op, "a", a, x_t, nonnegative=False, dtype=torch.float64)
    inject = _coefficient(op, "b", b, x_t)
    return _reverse(x_t, x0_hat, std_t, std_s, keep, 1.0 - keep, inject, floor, key, noise, out)


def _reverse(
    x_t: Tensor,
    x0_hat: Tensor,
    std_t: Tensor,
    std_s: Tensor,
    keep: Tensor,
    one_minus_keep: Tensor,
    inject: Tensor,
    floor: float,
    key: NoiseKey | None,
    noise: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    dtype = _compute_dtype(x_t)
    (rows,) = torch.broadcast_shapes(std_t.shape, std_s.shape, keep.shape)
    std_t, std_s = std_t.expand(rows), std_s.expand(rows)
    one_minus_keep = one_minus_keep.to(dtype).expand(rows)
    clean = x0_hat.to(dtype)
    gain = spectrum.reverse_gain(std_t, std_s, one_minus_keep, x_t.shape[-2], x_t.shape[-1], floor=floor)
    unblurred = (_per_sample(std_t, dtype) == 0) & (_per_sample(std_s, dtype) == 0)
    moved = torch.where(unblurred, _per_sample(one_minus_keep, dtype) * clean, _filter(clean, gain))
    x_s = _per_sample(keep, dtype) * x_t.to(dtype) + moved
    x_s = x_s + _per_sample(inject, dtype) * _noise(key, noise, x_t, dtype)
    return _write(x_s.to(x_t.dtype), out)


def momentum_coefficients(
    noise_std_t: Tensor, noise_std_s: Tensor, variance: str = "large"
) -> tuple[Tensor, Tensor, Tensor]:
    """(a, 1 - a, b) of the Momentum Sampler, in float64.

    a = s_s^2 / s_t^2; b = sqrt(s_t^2 - s_s^2) for "large" (the paper's), times s_s / s_t for
    "small" (the exact posterior). Where s_t = 0 the step is deterministic: a = 1, b = 0.
    """
    t, s = torch.broadcast_tensors(noise_std_t.double(), noise_std_s.double())
    gap = (t - s) * (t + s)
    silent = t == 0
    safe = torch.where(silent, torch.ones_like(t), t)
    ratio = torch.where(silent, torch.ones_like(t), s / safe)
    b = gap.clamp(min=0).sqrt()
    return (
        ratio.square(),
        torch.where(silent, 0.0, gap / safe.square()),
        b * ratio if variance == "small" else b,
    )


def momentum_step(
    x_t: Tensor,
    x0_hat: Tensor,
    *,
    blur_std_t: Coefficient,
    blur_std_s: Coefficient,
    noise_std_t: Coefficient,
    noise_std_s: Coefficient,
    variance: str = "large",
    floor: float = 0.0,
    key: NoiseKey | None = None,
    noise: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One step of the Momentum Sampler: `x_s = r x_t + (C_s - r C_t) x0_hat + sqrt(s_t^2 - s_s^2) n`.

    Here s_t and s_s are noise_std_t and noise_std_s, and r = s_s^2 / s_t^2. Daras et al. 2022, Algorithm 2,
    in one line.

    Args:
        x_t: Images at time t, [B, C, H, W].
        x0_hat: Estimate of the clean images, of the same shape.
        blur_std_t: Standard deviation of the blur at time t in pixels, a number or [B].
        blur_std_s: The same at time s < t; at most blur_std_t.
        noise_std_t: Standard deviation of the noise at time t, a number or [B].
        noise_std_s: The same at time s; at most noise_std_t.
        variance: "large" takes the paper's fresh noise, "small" the exact posterior's.
        floor: As in `blur`.
        key: As in `corrupt`.
        noise: As in `corrupt`.
        out: Tensor that the result is written to. Not differentiable.

    Returns:
        x_s, of x_t's shape and dtype.

    Examples:
        >>> x0_hat = torch.zeros(1, 3, 16, 16)
        >>> x_t = sk.normal([1, 3, 16, 16], sk.NoiseKey(0))
        >>> stds = dict(blur_std_t=4.0, blur_std_s=3.0, noise_std_t=0.2, noise_std_s=0.1)
        >>> x_s = sk.momentum_step(x_t, x0_hat, **stds, noise=torch.zeros_like(x_t))
        >>> torch.allclose(x_s, 0.25 * x_t)  # r = 0.1^2 / 0.2^2
        True
    """
    op = "momentum_step"
    args.image(op, "x_t", x_t)
    args.image(op, "x0_hat", x0_hat, like=x_t)
    args.choice(op, "variance", variance, ("large", "small"))
    floor = args.number(op, "floor", floor, most=1.0)
    _check_noise(op, key, noise, x_t)
    args.output(op, out, x_t, x0_hat, noise)
    std_t = _coefficient(op, "blur_std_t", blur_std_t, x_t)
    std_s = _coefficient(op, "blur_std_s", blur_std_s, x_t)
    sigma_t = _coefficient(op, "noise_std_t", noise_std_t, x_t, dtype=torch.float64)
    sigma_s = _coefficient(op, "noise_std_s", noise_std_s, x_t, dtype=torch.float64)
    args.ordered(op, "blur_std_s", std_s, "blur_std_t", std_t)
    args.ordered(op, "noise_std_s", sigma_s, "noise_std_t", sigma_t)
    keep, one_minus_keep, inject = momentum_coefficients(sigma_t, sigma_s, variance)
    inject = inject.to(_compute_dtype(x_t))
    return _reverse(x_t, x0_hat, std_t, std_s, keep, one_minus_keep, inject, floor, key, noise, out)


def soft_score_loss(
    prediction: Tensor,
    target: Tensor,
    blur_std: Coefficient,
    *,
    weight: Coefficient | None = None,
    floor: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Soft Score Matching loss, `w_t ||C_t (prediction - target)||^2`, summed over an image.

    Computed as `w sum_k m_k^2 DCT2(prediction - target)_k^2` (Parseval), which stays accurate where the
    blur removes nearly everything. Daras et al. 2022, eq. 12.

    Args:
        prediction: The network's output, [B, C, H, W].
        target: What it is compared with, of the same shape.
        blur_std: Standard deviation of the blur in pixels, a number or [B].
        weight: w_t, a number or [B]. None is 1.
        floor: As in `blur`.
        reduction: "none" gives a loss for each image [B], "mean" their mean over the batch, "sum" their sum.

    Returns:
        The loss, float32 (float64 for float64 images).

    Examples:
        >>> prediction = torch.ones(2, 3, 8, 8, requires_grad=True)
        >>> loss = sk.soft_score_loss(prediction, torch.zeros(2, 3, 8, 8), 2.0, reduction="sum")
        >>> loss.backward()
        >>> round(loss.item(), 3), round(prediction.grad.mean().item(), 3)  # a blur keeps a constant error
        (384.0, 2.0)
    """
    op = "soft_score_loss"
    args.image(op, "prediction", prediction)
    args.image(op, "target", target, like=prediction)
    floor = args.number(op, "floor", floor, most=1.0)
    args.choice(op, "reduction", reduction, ("none", "mean", "sum"))
    std = _coefficient(op, "blur_std", blur_std, prediction)
    gain = spectrum.heat_gain(std, prediction.shape[-2], prediction.shape[-1], floor=floor)
    return _loss(op, prediction, target, gain, weight, reduction)


def _loss(
    op: str,
    prediction: Tensor,
    target: Tensor,
    gain: Tensor,
    weight: Coefficient | None,
    reduction: str,
) -> Tensor:
    factor = _coefficient(op, "weight", 1.0 if weight is None else weight, prediction)
    dtype = _compute_dtype(prediction)
    error = prediction.to(dtype) - target.to(dtype)
    loss = factor * (gain.to(dtype) * _transform(error, inverse=False)).square().sum(dim=(1, 2, 3))
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def spectral_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    weight: Coefficient | None = None,
    reduction: str = "mean",
) -> Tensor:
    """A loss with any weight over the frequencies, `w sum_k mask_k^2 DCT2(prediction - target)_k^2`.

    The sum is over an image's channels and frequencies. `soft_score_loss` is the case of a blur's mask, which
    its kernel forms itself; the general form is Daras et al. 2022, eq. 12, for a C_t diagonal in the DCT.

    Args:
        prediction: The network's output, [B, C, H, W].
        target: What it is compared with, of the same shape.
        mask: Gain of each frequency, not its square, broadcasting to [B, C, H, W]. It may be negative.
        weight: w, a number or [B]. None is 1.
        reduction: As in `soft_score_loss`.

    Returns:
        The loss, float32 (float64 for float64 images).

    Examples:
        >>> x, y = sk.normal([2, 1, 3, 8, 8], sk.NoiseKey(0)).unbind(0)
        >>> flat = sk.spectral_loss(x, y, torch.ones(1))  # a flat mask: the plain squared error
        >>> torch.allclose(flat, (x - y).square().sum())
        True
    """
    op = "spectral_loss"
    args.image(op, "prediction", prediction)
    args.image(op, "target", target, like=prediction)
    args.mask(op, "mask", mask, prediction.shape, prediction.device)
    args.choice(op, "reduction", reduction, ("none", "mean", "sum"))
    return _loss(op, prediction, target, mask, weight, reduction)


def spectral_mix(
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    noise_mask: Tensor | None = None,
    key: NoiseKey | None = None,
    noise: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Any step that is linear and diagonal in the DCT: `IDCT2(sum_k m_k DCT2(x_k) + d n)`.

    Serves for Blurring Diffusion's ancestral step (Hoogeboom & Salimans 2022, appendix A), IHDM and
    coloured noise.

    Args:
        inputs: One or more images x_k, [B, C, H, W].
        masks: As many masks m_k over the frequencies, each broadcasting to [B, C, H, W].
        noise_mask: d, likewise. None adds no noise.
        key: Key of the white noise n over the frequencies, in C, H, W order. None takes a fresh key from
            torch's default generator.
        noise: The noise n itself, over the frequencies, [B, C, H, W], in place of a key.
        out: Tensor that the result is written to, like the first input. Not differentiable.

    Returns:
        The mixture, [B, C, H, W] in the first input's dtype.

    Examples:
        >>> x, y = sk.normal([2, 1, 3, 16, 16], sk.NoiseKey(0)).unbind(0)
        >>> half = torch.full((16, 16), 0.5)
        >>> torch.allclose(sk.spectral_mix([x, y], [half, half]), (x + y) / 2, atol=1e-6)
        True
    """
    op = "spectral_mix"
    check_mix(op, inputs, masks, noise_mask, noise, out)
    first = inputs[0]
    _check_noise(op, key, noise, first)
    dtype = _compute_dtype(first)
    spectra = [
        m.to(dtype) * _transform(x.to(dtype), inverse=False) for x, m in zip(inputs, masks, strict=True)
    ]
    total = sum(spectra[1:], start=spectra[0])
    if noise_mask is not None:
        total = total + noise_mask.to(dtype) * _noise(key, noise, first, dtype)
    return _write(_transform(total, inverse=True).to(first.dtype), out)


def check_mix(
    op: str,
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    noise_mask: Tensor | None,
    noise: Tensor | None,
    out: Tensor | None,
) -> None:
    """The checks of spectral_mix, shared with the fused op."""
    for given in (inputs, masks):
        if not isinstance(given, Sequence):
            got = "a tensor" if isinstance(given, Tensor) else args.describe(given)
            raise TypeError(f"{op}: expected inputs and masks as sequences of tensors, got {got}")
    if not inputs or len(inputs) != len(masks):
        raise ValueError(
            f"{op}: expected as many masks as inputs, at least one; "
            f"got {len(inputs)} inputs and {len(masks)} masks"
        )
    for i, x in enumerate(inputs):
        args.image(op, f"inputs[{i}]", x, like=inputs[0] if i else None)
    shape, device = inputs[0].shape, inputs[0].device
    for i, m in enumerate(masks):
        args.mask(op, f"masks[{i}]", m, shape, device)
    if noise_mask is not None:
        args.mask(op, "noise_mask", noise_mask, shape, device)
    elif noise is not None:
        raise ValueError(f"{op}: expected noise_mask with noise, got None; torch.ones(1) leaves noise white")
    args.output(op, out, inputs[0], *inputs[1:], noise)


def normal(
    shape: Sequence[int],
    key: NoiseKey,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normals from a key: sample b is the noise of image `stream + b`.

    Philox4x32-10 and Box-Muller, see `noise.py`. Salmon et al. 2011; Box & Muller 1958.

    Args:
        shape: [B, ...].
        key: Names the noise.
        device: Where to draw. The values are the same on every device, within 2e-6.
        dtype: float64, float32, bfloat16 or float16.

    Returns:
        A tensor of this shape.

    Examples:
        >>> key = sk.NoiseKey(seed=0)
        >>> torch.equal(sk.normal([4, 8], key)[2:], sk.normal([2, 8], sk.NoiseKey(seed=0, stream=2)))
        True
        >>> torch.equal(sk.normal([4, 8], key), sk.normal([4, 8], key.at(1)))  # another draw
        False
    """
    shape = check_normal(shape, key, dtype)
    where = args.indexed(torch.device(device))
    return philox_normal(tuple(shape), key_rows(*pack_key(key, shape[0], where), shape[0], where), dtype)


def check_normal(shape: Sequence[int], key: NoiseKey, dtype: torch.dtype) -> list[int]:
    """The checks of normal, shared with the fused op; returns the shape as ints."""
    if not isinstance(key, NoiseKey):
        raise TypeError(f"normal: expected key as a NoiseKey, got {args.describe(key)}")
    sizes = args.listed(shape, args.whole)
    if not sizes or any(n < 0 for n in sizes):
        got = args.shown(shape if sizes is None else sizes)
        raise ValueError(f"normal: expected shape as [B, ...] of sizes of at least 0, got {got}")
    if all(isinstance(n, int) for n in sizes) and math.prod(sizes) >= 2**63:
        raise ValueError(f"normal: expected shape of fewer than 2^63 elements, got {args.shown(sizes)}")
    if not isinstance(dtype, torch.dtype) or dtype not in args.IMAGE_DTYPES:
        raise TypeError(
            f"normal: expected dtype as float64, float32, bfloat16 or float16, got {args.shown(dtype)}"
        )
    return sizes
