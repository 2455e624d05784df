# SPDX-License-Identifier: Apache-2.0
"""Derivatives of the ops, in terms of the ops.

All are linear in their images or quadratic, and the operator is its own adjoint, so every backward is
again an op of this file, and derivatives of any order follow. Coefficients have no derivative: the public
functions refuse those that ask for one.

Arguments are spelled out, never `*rest`: torch.compile (2.13) counts them to tell the two styles of
`forward` apart when one function is applied in another's backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _arguments as args
from . import _ops
from .reference import momentum_coefficients


def wanted(*images: Tensor | None) -> bool:
    """Whether autograd has to see the call."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in images)


def per_sample(coefficient: Tensor, g: Tensor) -> Tensor:
    """`coefficient * g`, computed in float32 at least, in g's dtype."""
    dtype = torch.float64 if g.dtype == torch.float64 else torch.float32
    return (args.on(coefficient, g.device).to(dtype).view(-1, 1, 1, 1) * g).to(g.dtype)


class Transform(Function):
    @staticmethod
    def forward(x: Tensor, inverse: bool) -> Tensor:
        return _ops.dct2(x, inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.inverse = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return Transform.apply(g, not ctx.inverse), None


class Blur(Function):
    @staticmethod
    def forward(x: Tensor, blur_std: Tensor, scale: Tensor | None, floor: float) -> Tensor:
        return _ops.blur(x, blur_std, scale, floor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])
        ctx.floor = inputs[3]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        blur_std, scale = ctx.saved_tensors
        return Blur.apply(g, blur_std, scale, ctx.floor), None, None, None


class Corrupt(Function):
    @staticmethod
    def forward(
        x0: Tensor,
        noise: Tensor | None,
        blur_std: Tensor,
        noise_std: Tensor,
        scale: Tensor | None,
        floor: float,
        key: Any,
        rows: Tensor | None,
        residual: bool,
    ) -> tuple[Tensor, Tensor]:
        return _ops.corrupt(x0, blur_std, noise_std, scale, floor, key, rows, noise, residual)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, noise, blur_std, noise_std, scale, floor, _, _, residual = inputs
        ctx.save_for_backward(blur_std, noise_std, scale)
        ctx.floor, ctx.residual = floor, residual
        ctx.noise_dtype = None if noise is None else noise.dtype

    @staticmethod
    def backward(ctx: Any, g: Tensor, g_residual: Tensor) -> Any:
        blur_std, noise_std, scale = ctx.saved_tensors
        # residual = x0 - x_t, so its gradient reaches x_t with the opposite sign, and x0 directly.
        through = g - g_residual if ctx.residual else g
        g_x0 = g_noise = None
        if ctx.needs_input_grad[0]:
            g_x0 = Blur.apply(through, blur_std, scale, ctx.floor)
            g_x0 = g_x0 + g_residual if ctx.residual else g_x0
        if ctx.needs_input_grad[1]:
            g_noise = per_sample(noise_std, through).to(ctx.noise_dtype)
        return g_x0, g_noise, None, None, None, None, None, None, None


class Step(Function):
    @staticmethod
    def forward(
        x_t: Tensor | None,
        x0_hat: Tensor,
        noise: Tensor | None,
        std_t: Tensor,
        std_s: Tensor,
        first: Tensor,
        second: Tensor,
        mode: str,
        floor: float,
        key: Any,
        rows: Tensor | None,
    ) -> Tensor:
        return _ops.step(x_t, x0_hat, std_t, std_s, first, second, mode, floor, key, rows, noise)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, x0_hat, noise, std_t, std_s, first, second, mode, floor, _, _ = inputs
        ctx.save_for_backward(std_t, std_s, first, second)
        ctx.mode, ctx.floor = mode, floor
        ctx.dtypes = x0_hat.dtype, None if noise is None else noise.dtype

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        std_t, std_s, first, second = ctx.saved_tensors
        a, b = first, second
        if ctx.mode != "given":
            stds = args.on(first, g.device), args.on(second, g.device)
            a, _, b = momentum_coefficients(*stds, ctx.mode)
        g_x = g_clean = g_noise = None
        if ctx.needs_input_grad[0]:
            g_x = per_sample(a, g)
        if ctx.needs_input_grad[1]:
            g_clean = Step.apply(None, g, None, std_t, std_s, first, second, ctx.mode, ctx.floor, [], None)
            g_clean = g_clean.to(ctx.dtypes[0])
        if ctx.needs_input_grad[2]:
            g_noise = per_sample(b, g).to(ctx.dtypes[1])
        return g_x, g_clean, g_noise, None, None, None, None, None, None, None, None


class Loss(Function):
    """The loss, reduced; its gradient for the prediction is computed in the same pass and kept."""

    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        target: Tensor,
        blur_std: Tensor,
        weight: Tensor | None,
        floor: float,
        reduction: str,
    ) -> Tensor:
        share = 1.0 / max(prediction.shape[0], 1) if reduction == "mean" else 1.0
        loss, slope = _ops.soft_score_loss(prediction, target, blur_std, weight, floor, share, True)
        ctx.save_for_backward(prediction, target, blur_std, weight, slope)
        ctx.floor, ctx.reduction = floor, reduction
        return reduce(loss, reduction)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        prediction, target, blur_std, weight, slope = ctx.saved_tensors
        # Without create_graph nothing is recorded, and `apply`, which looks up its arguments' names at each
        # call, would take most of the host's time: 390 us a loss with gradient instead of 160, on a busy
        # AMD EPYC, where 256 images of 32 px take 1400.
        record = torch.is_grad_enabled() or torch.compiler.is_compiling()
        each = LossSlope.apply if record else LossSlope.forward
        slope = each(prediction, target, slope, g, blur_std, weight, ctx.floor, ctx.reduction)
        g_prediction = slope if ctx.needs_input_grad[0] else None
        g_target = -slope.to(target.dtype) if ctx.needs_input_grad[1] else None
        return g_prediction, g_target, None, None, None, None


class LossSlope(Function):
    """`g * slope`, slope = 2 w C^2 (prediction - target), as a function of g and both images."""

    @staticmethod
    def forward(
        prediction: Tensor,
        target: Tensor,
        slope: Tensor,
        g: Tensor,
        blur_std: Tensor,
        weight: Tensor | None,
        floor: float,
        reduction: str,
    ) -> Tensor:
        # `loss.backward()` passes a one; on the CPU looking costs nothing, and spares a pass over memory.
        if g.dim() == 0 and g.device.type == "cpu" and not torch.compiler.is_compiling() and bool(g == 1):
            return slope.view_as(slope)
        return per_sample(g.reshape(-1), slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, target, slope, g, blur_std, weight, floor, reduction = inputs
        ctx.save_for_backward(slope, g, blur_std, weight)
        ctx.floor, ctx.reduction, ctx.target_dtype = floor, reduction, target.dtype

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        slope, g, blur_std, weight = ctx.saved_tensors
        g_prediction = g_target = g_g = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            once = Blur.apply(v, blur_std, weight, ctx.floor)
            share = 2.0 / max(v.shape[0], 1) if ctx.reduction == "mean" else 2.0
            g_prediction = per_sample(g.reshape(-1) * share, Blur.apply(once, blur_std, None, ctx.floor))
            g_target = -g_prediction.to(ctx.target_dtype)
        if ctx.needs_input_grad[3]:
            each = (v.to(g.dtype) * slope.to(g.dtype)).sum(dim=(1, 2, 3))
            g_g = each if g.dim() == 1 else each.sum()
        return g_prediction, g_target, None, g_g, None, None, None, None


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """[B] to what `reduction` says."""
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


class Mix(Function):
    @staticmethod
    def forward(
        masks: tuple[Tensor, ...], noise_mask: Tensor | None, key: Any, rows: Any, *inputs: Tensor
    ) -> Tensor:
        return _ops.spectral_mix(inputs, masks, noise_mask, key, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        masks, _, _, _, *images = inputs
        ctx.save_for_backward(*masks)
        ctx.dtypes = [x.dtype for x in images]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        grads = [
            Mix.apply((mask,), None, [], None, g).to(dtype) if needed else None
            for mask, dtype, needed in zip(
                ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[4:], strict=True
            )
        ]
        return None, None, None, None, *grads
