# SPDX-License-Identifier: Apache-2.0
"""The eager twins of the fused ops, in plain PyTorch: the specification.

They have the names and signatures of the public functions, take any image dtype, and are differentiable by
autograd. They are written for clarity, not for speed. float64 images are computed in float64, which the tests
call the truth; float32 images in float32; bfloat16 and float16 in float32, rounded once at the end.
Images are [B, C, H, W] in [-1, 1], blur_std is in pixels, noise_std in units of the image. Bad
arguments raise ValueError or TypeError.
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
    """Orthonormal 2-D DCT-II: `u = D_H x D_W^T`, over the last two axes of [B, C, H, W].

    Returns [B, C, H, W] in x's dtype. Ahmed, Natarajan & Rao 1974; scipy.fft.dctn(norm="ortho").
    """
    args.image("dct2", "x", x)
    return _transform(x.to(_compute_dtype(x)), inverse=False).to(x.dtype)


def idct2(u: Tensor) -> Tensor:
    """Inverse of `dct2` (the orthonormal 2-D DCT-III): `x = D_H^T u D_W`. Same shapes and dtypes."""
    args.image("idct2", "u", u)
    return _transform(u.to(_compute_dtype(u)), inverse=True).to(u.dtype)


def _filter(x: Tensor, gain: Tensor) -> Tensor:
    return _transform(gain * _transform(x, inverse=False), inverse=True)


def blur(x: Tensor, blur_std: Coefficient, *, floor: float = 0.0, scale: Coefficient = 1.0) -> Tensor:
    """`y = C x = IDCT2(m DCT2(x))`, `m = scale ((1 - floor) exp(-lambda blur_std^2 / 2) + floor)`.

    x: [B, C, H, W]; blur_std, scale: number or [B]; floor in [0, 1]. Returns x's shape and dtype.
    blur_std = 0 returns `scale x` exactly. Rissanen et al. 2022; the floor is Hoogeboom & Salimans
    2022, eq. 26.
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
    """`x_t = C_t x_0 + noise_std n`, and, if asked, the residual `x_0 - x_t`.

    x0: [B, C, H, W], or uint8 (decoded as `x / 127.5 - 1`; the result is float32). blur_std,
    noise_std, scale: number or [B]. n is `noise` if given, else drawn from `key` (None: a fresh key
    from torch's generator). The residual is formed before x_t is rounded to its dtype.
    Daras et al. 2022 (Soft Diffusion), eq. 1.
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
    """`x_s = a x_t + (C_s - a C_t) x0_hat + b n`: every first-order sampler of the family.

    x_t, x0_hat: [B, C, H, W]; blur_std_t, blur_std_s, a, b: number or [B]. Returns x_t's dtype.
    Naive: a = 0, b = noise_std_s. Cold Diffusion's Algorithm 2 (TACoS): a = 1, b = 0. Others by
    their (a, b). The mask is formed by expm1 (`spectrum.reverse_gain`).
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
    key: NoiseKey | None = None,
    noise: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One step of the Momentum Sampler, Daras et al. 2022, Algorithm 2, in one line:

    `x_s = r x_t + (C_s - r C_t) x0_hat + sqrt(s_t^2 - s_s^2) n`, r = s_s^2 / s_t^2.

    x_t, x0_hat: [B, C, H, W]; the stds: number or [B], with blur_std_s <= blur_std_t and
    noise_std_s <= noise_std_t. variance: "large" (the paper's) or "small" (the exact posterior's).
    """
    op = "momentum_step"
    args.image(op, "x_t", x_t)
    args.image(op, "x0_hat", x0_hat, like=x_t)
    args.choice(op, "variance", variance, ("large", "small"))
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
    return _reverse(x_t, x0_hat, std_t, std_s, keep, one_minus_keep, inject, 0.0, key, noise, out)


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

    By Parseval `w sum_k m_k^2 DCT2(prediction - target)_k^2`, which stays accurate where the blur removes
    nearly everything. prediction, target: [B, C, H, W]; blur_std, weight: number or [B]
    (weight None is 1). reduction: "none" gives [B], "mean" the mean over the batch, "sum" the sum.
    Returns float32 (float64 for float64 images). Daras et al. 2022, eq. 12.
    """
    op = "soft_score_loss"
    args.image(op, "prediction", prediction)
    args.image(op, "target", target, like=prediction)
    floor = args.number(op, "floor", floor, most=1.0)
    args.choice(op, "reduction", reduction, ("none", "mean", "sum"))
    std = _coefficient(op, "blur_std", blur_std, prediction)
    factor = _coefficient(op, "weight", 1.0 if weight is None else weight, prediction)
    dtype = _compute_dtype(prediction)
    error = prediction.to(dtype) - target.to(dtype)
    gain = spectrum.heat_gain(std, error.shape[-2], error.shape[-1], floor=floor)
    loss = factor * (gain * _transform(error, inverse=False)).square().sum(dim=(1, 2, 3))
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def spectral_mix(
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    noise_mask: Tensor | None = None,
    key: NoiseKey | None = None,
) -> Tensor:
    """`IDCT2(sum_k m_k DCT2(x_k) + d n)`: any step that is linear and diagonal in the DCT.

    inputs: one or more [B, C, H, W]; masks: as many, each broadcasting to [B, C, H, W] over the
    frequencies; noise_mask: d, likewise; n is white noise from `key`, over the frequencies in
    C, H, W order. Returns the first input's dtype. Blurring Diffusion's ancestral step
    (Hoogeboom & Salimans 2022, appendix A), IHDM, coloured noise.
    """
    check_mix("spectral_mix", inputs, masks, noise_mask)
    first = inputs[0]
    dtype = _compute_dtype(first)
    spectra = [
        m.to(dtype) * _transform(x.to(dtype), inverse=False) for x, m in zip(inputs, masks, strict=True)
    ]
    total = sum(spectra[1:], start=spectra[0])
    if noise_mask is not None:
        total = total + noise_mask.to(dtype) * _noise(key, None, first, dtype)
    return _transform(total, inverse=True).to(first.dtype)


def check_mix(op: str, inputs: Sequence[Tensor], masks: Sequence[Tensor], noise_mask: Tensor | None) -> None:
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


def normal(
    shape: Sequence[int],
    key: NoiseKey,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normals of `shape` = [B, ...] from a key: sample b is image `stream + b`'s noise.

    Philox4x32-10 and Box-Muller, see `noise.py`. Salmon et al. 2011; Box & Muller 1958.
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
