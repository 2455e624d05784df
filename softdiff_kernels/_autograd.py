# SPDX-License-Identifier: Apache-2.0
"""Derivative rules of the registered ops: reverse and forward mode, each in terms of the ops.

All ops are linear in their images or quadratic, and the operator is its own adjoint. So each rule is again a
call of an op, whose own rule gives the next order. A rule is the op's kernel for the dispatch key Autograd:
it holds for `torch.ops.softdiff.*` however it is reached (eager calls, torch.func, a compiled, exported or
traced graph). Coefficients and masks have no derivative: one that asks for it is refused.

The rules are autograd Functions of a single level: at each level of torch.func's transforms the dispatcher
calls the kernel with that level's tensors, and `forward` passes the call on to the level below. `forward`
takes the context, for the other style inspects a signature at every call (100 us for ten arguments).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _C, Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import _arguments as args
from .reference import momentum_coefficients

_ops = torch.ops.softdiff

# The dispatch keys of a call that has only the op itself left to do after autograd. It is made at once; one
# that modes, transforms or subclasses still wait for goes on through the dispatcher.
_PLAIN = frozenset(
    (_C.DispatchKeySet(device) | _C.DispatchKeySet(autograd)).raw_repr()
    for device, autograd in (
        (_C.DispatchKey.CPU, _C.DispatchKey.AutogradCPU),
        (_C.DispatchKey.CUDA, _C.DispatchKey.AutogradCUDA),
    )
)
_TANGENT = "carries a tangent"


def share(reduction: str, batch: int) -> float:
    """What one image's loss counts for in the reduced loss."""
    return 1.0 / max(batch, 1) if reduction == "mean" else 1.0


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """[..., B] to what `reduction` says."""
    args.choice("softdiff::soft_score_loss", "reduction", reduction, ("none", "mean", "sum"))
    return loss if reduction == "none" else loss.mean(-1) if reduction == "mean" else loss.sum(-1)


def _wide(*images: Tensor) -> torch.dtype:
    """The dtype to compute in."""
    return torch.float64 if any(x.dtype == torch.float64 for x in images) else torch.float32


def _scaled(coefficient: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    """`coefficient * g`, computed in float32 at least, as dtype."""
    return (args.on(coefficient, g.device).to(_wide(g)).view(-1, 1, 1, 1) * g).to(dtype)


def _primal(x: Tensor) -> Tensor:
    """x without its tangent at the level of torch.func, or of forward_ad, that is at work."""
    out: Tensor = forward_ad.unpack_dual(x, level=0).primal
    return out


def _sum(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms that are there."""
    there = [term for term in terms if term is not None]
    return sum(there[1:], start=there[0]) if there else None


def _requires_grad(*arguments: Any) -> bool:
    """Whether a tensor among the arguments, or in a list of them, requires grad."""
    return any(
        a.requires_grad if isinstance(a, Tensor) else isinstance(a, (list, tuple)) and _requires_grad(*a)
        for a in arguments
    )


_any_requires_grad = getattr(_C, "_any_requires_grad", _requires_grad)  # torch 2.6 has none

# The dispatch keys of a call, and whether derivatives are recorded where it was made: backward, forward.
_State = tuple[Any, bool, bool]


def _state(keys: Any) -> _State:
    return keys, torch.is_grad_enabled(), _C._is_fwd_grad_enabled()


class _Rule(_SingleLevelFunction):
    """A Function over (state of the call, the op's arguments), with what the rules share.

    op: its name; direct: what it does below autograd, set where it is registered. coefficients: position
    among the Function's arguments, and name, of each that has no derivative.
    """

    op: str
    direct: Callable[..., Any]
    coefficients: tuple[tuple[int, str], ...] = ()

    @classmethod
    def kernel(cls) -> Callable[..., Any]:
        """The op's kernel for the key Autograd. What costs time at every call is looked up once."""
        direct, record = cls.direct, cls.record
        enabled, any_requires_grad, levels = torch.is_grad_enabled, _any_requires_grad, forward_ad

        def call(keys: Any, *arguments: Any) -> Any:
            # Only a Function is told whether an argument carries a tangent, and a graph of torch.func's
            # transforms opens levels that forward_ad does not know: what is not plain is always recorded.
            if (
                keys.raw_repr() in _PLAIN
                and levels._current_level < 0
                and not (enabled() and any_requires_grad(*arguments))
            ):
                return direct(*arguments)
            return record(keys, *arguments)

        return call

    @classmethod
    def run(cls, state: _State, *arguments: Any) -> Any:
        """The op itself, one level below."""
        keys, backward, forward = state
        if keys.raw_repr() in _PLAIN:
            return cls.direct(*arguments)
        # A Function's `forward` runs with both modes off; the levels below have not been asked yet.
        with (
            _C._AutoDispatchBelowAutograd(),
            torch.set_grad_enabled(backward),
            forward_ad._set_fwd_grad_enabled(forward),
        ):
            overload = getattr(_ops, cls.op).default
            return overload.redispatch(keys & _C._after_autograd_keyset, *arguments)

    @classmethod
    def record(cls, keys: Any, *arguments: Any) -> Any:
        """The op, with its derivative at this level."""
        if not _C._are_functorch_transforms_active():
            return cls.apply(_state(keys), *arguments)  # type: ignore[attr-defined]
        with enable_single_level_autograd_function():
            return cls.apply(_state(keys), *arguments)  # type: ignore[attr-defined]

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Any:
        """The results' tangents, by `moved`, in terms of ops that an outer level differentiates again.

        torch turns forward mode off around a Function's jvp, for that level as well. With it on, `moved` has
        to take images without their tangents of this level (`_primal`).
        """
        with forward_ad._set_fwd_grad_enabled(True):
            return cls.moved(ctx, *tangents)

    @staticmethod
    def moved(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def begin(cls, ctx: Any, *saved: Tensor | None) -> None:
        """Refuses derivatives in coefficients, and keeps what both modes need."""
        cls.refuse(ctx.needs_input_grad, "requires grad")
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def _compiled_autograd_key(ctx: Any) -> tuple[int, ...]:
        """What tells Functions apart in a backward pass that torch compiles."""
        return (ctx._autograd_function_id,)

    @classmethod
    def refuse(cls, marks: Sequence[Any], how: str) -> None:
        """marks: for each argument of the Function True or a tangent where it asks for a derivative."""
        for position, name in cls.coefficients:
            if marks[position] is not None and marks[position] is not False:
                raise args.not_differentiable(cls.op, name, how, "coefficients")


class Dct2(_Rule):
    op = "dct2"

    @staticmethod
    def forward(ctx: Any, state: _State, x: Tensor, inverse: bool) -> Tensor:
        Dct2.begin(ctx)
        ctx.inverse = inverse
        out: Tensor = Dct2.run(state, x, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        return None, None if g is None else _ops.dct2.default(g, not ctx.inverse), None

    @staticmethod
    def moved(ctx: Any, *tangents: Any) -> Any:
        return _ops.dct2.default(tangents[1], ctx.inverse)


class Identity(_Rule):
    """template: copy this for a new op."""

    op = "identity"

    @staticmethod
    def forward(ctx: Any, state: _State, x: Tensor) -> Tensor:
        Identity.begin(ctx)
        out: Tensor = Identity.run(state, x)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        return None, None if g is None else _ops.identity.default(g)

    @staticmethod
    def moved(ctx: Any, *tangents: Any) -> Any:
        return _ops.identity.default(tangents[1])


class Blur(_Rule):
    op = "blur"
    coefficients = ((2, "blur_std"), (3, "scale"))

    @staticmethod
    def forward(
        ctx: Any, state: _State, x: Tensor, blur_std: Tensor, scale: Tensor | None, floor: float
    ) -> Tensor:
        Blur.begin(ctx, blur_std, scale)
        ctx.floor = floor
        out: Tensor = Blur.run(state, x, blur_std, scale, floor)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        return None, None if g is None else Blur._again(ctx, g), None, None, None

    @staticmethod
    def moved(ctx: Any, *tangents: Any) -> Any:
        Blur.refuse(tangents, _TANGENT)
        return Blur._again(ctx, tangents[1])

    @staticmethod
    def _again(ctx: Any, v: Tensor) -> Any:
        return _ops.blur.default(v, *ctx.saved_tensors, ctx.floor)


class Corrupt(_Rule):
    op = "corrupt"
    coefficients = ((2, "blur_std"), (3, "noise_std"), (4, "scale"))

    @staticmethod
    def forward(ctx: Any, state: _State, *arguments: Any) -> tuple[Tensor, Tensor]:
        _, blur_std, noise_std, scale, floor, _, _, noise, return_residual = arguments
        Corrupt.begin(ctx, blur_std, noise_std, scale)
        ctx.floor, ctx.return_residual = floor, return_residual
        ctx.noise_dtype = None if noise is None else noise.dtype
        x_t, residual = Corrupt.run(state, *arguments)
        ctx.dtype = x_t.dtype
        if not return_residual:
            ctx.mark_non_differentiable(residual)
        return x_t, residual

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_residual: Tensor | None) -> Any:
        blur_std, noise_std, scale = ctx.saved_tensors
        if not ctx.return_residual:
            g_residual = None
        # residual = x0 - x_t, so its gradient reaches x_t with the opposite sign, and x0 directly.
        through = _sum(g, None if g_residual is None else -g_residual)
        g_x0 = g_noise = None
        if through is not None and ctx.needs_input_grad[1]:
            g_x0 = _sum(_ops.blur.default(through, blur_std, scale, ctx.floor), g_residual)
        if through is not None and ctx.needs_input_grad[8]:
            g_noise = _scaled(noise_std, through, ctx.noise_dtype)
        return None, g_x0, None, None, None, None, None, None, g_noise, None

    @staticmethod
    def moved(ctx: Any, *tangents: Any) -> Any:
        Corrupt.refuse(tangents, _TANGENT)
        x0, noise = tangents[1], tangents[8]
        blur_std, noise_std, scale = ctx.saved_tensors
        if x0 is not None:
            x_t, residual = _ops.corrupt.default(
                x0, blur_std, noise_std, scale, ctx.floor, [], None, noise, ctx.return_residual
            )
            return x_t, residual if ctx.return_residual else None
        x_t = _scaled(noise_std, noise, ctx.dtype)
        return x_t, -x_t if ctx.return_residual else None


class Step(_Rule):
    op = "step"
    coefficients = ((3, "blur_std_t"), (4, "blur_std_s"), (5, "a or noise_std_t"), (6, "b or noise_std_s"))

    @staticmethod
    def forward(ctx: Any, state: _State, *arguments: Any) -> Tensor:
        _, x0_hat, std_t, std_s, first, second, rule, floor, _, _, noise = arguments
        Step.begin(ctx, std_t, std_s, first, second)
        ctx.rule, ctx.floor = rule, floor
        ctx.clean_dtype, ctx.noise_dtype = x0_hat.dtype, None if noise is None else noise.dtype
        x_s: Tensor = Step.run(state, *arguments)
        ctx.dtype = x_s.dtype
        return x_s

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        g_x = g_clean = g_noise = None
        if g is not None:
            saved = ctx.saved_tensors
            if ctx.needs_input_grad[2]:
                g_clean = Step._linear(ctx, saved, None, g, None).to(ctx.clean_dtype)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[11]:
                a, b = Step._a_and_b(ctx, saved, g.device)
                g_x = _scaled(a, g, g.dtype) if ctx.needs_input_grad[1] else None
                g_noise = _scaled(b, g, ctx.noise_dtype) if ctx.needs_input_grad[11] else None
        return None, g_x, g_clean, None, None, None, None, None, None, None, None, g_noise

    @staticmethod
    def moved(ctx: Any, *tangents: Any) -> Any:
        Step.refuse(tangents, _TANGENT)
        x_t, clean, noise = tangents[1], tangents[2], tangents[11]
        saved = ctx.saved_tensors
        if clean is not None:
            return Step._linear(ctx, saved, x_t, clean, noise).to(ctx.dtype)
        a, b = Step._a_and_b(ctx, saved, (noise if x_t is None else x_t).device)
        return _sum(
            None if x_t is None else _scaled(a, x_t, ctx.dtype),
            None if noise is None else _scaled(b, noise, ctx.dtype),
        )

    @staticmethod
    def _a_and_b(ctx: Any, saved: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        _, _, first, second = saved
        if ctx.rule == "given":
            return first, second
        a, _, b = momentum_coefficients(args.on(first, device), args.on(second, device), ctx.rule)
        return a, b

    @staticmethod
    def _linear(
        ctx: Any, saved: Sequence[Tensor], x_t: Tensor | None, clean: Tensor, noise: Tensor | None
    ) -> Tensor:
        out: Tensor = _ops.step.default(x_t, clean, *saved, ctx.rule, ctx.floor, [], None, noise)
        return out


class StepOut(_Rule):
    """No derivative: the result is written where another tensor was."""

    op = "step_out"

    @classmethod
    def record(cls, keys: Any, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and _any_requires_grad(*arguments):
            raise _out_refused("requires grad")
        # Only a Function is told, at every level, whether one of its arguments carries a tangent.
        super().record(keys, *(a for a in arguments if isinstance(a, Tensor)))
        return cls.run(_state(keys), *arguments)

    @staticmethod
    def forward(ctx: Any, state: _State, *tensors: Tensor) -> None:
        """Nothing: a tensor made here would be one more node of a graph, which inductor counts."""

    @staticmethod
    def moved(ctx: Any, *tangents: Any) -> Any:
        raise _out_refused(_TANGENT)


def _out_refused(how: str) -> ValueError:
    return ValueError(
        f"step_out: an argument {how}, but out= cannot be differentiated; drop it, or work under "
        "torch.no_grad()"
    )


class LossAndGradient(_Rule):
    """The loss, and its gradient for the prediction, which the same pass computes.

    With L = 2 w C^2, times an image's share, the gradient is L (prediction - target): linear in both images.
    As an output of the op it is itself differentiable where `backward` multiplies by it.
    """

    op = "soft_score_loss_and_gradient"
    coefficients = ((3, "blur_std"), (4, "weight"))

    @staticmethod
    def forward(
        ctx: Any,
        state: _State,
        prediction: Tensor,
        target: Tensor,
        blur_std: Tensor,
        weight: Tensor | None,
        floor: float,
        reduction: str,
        shown: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """shown: whether the caller gets to see the gradient; else it is for `backward` alone."""
        loss, gradient = LossAndGradient.run(state, prediction, target, blur_std, weight, floor, reduction)
        LossAndGradient.begin(ctx, gradient, blur_std, weight)
        ctx.save_for_forward(prediction, target, blur_std, weight)
        ctx.floor, ctx.reduction, ctx.shown = floor, reduction, shown
        ctx.target_dtype = target.dtype
        if not shown and not any(ctx.needs_input_grad):
            ctx.mark_non_differentiable(gradient)
        return loss, gradient

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_gradient: Tensor | None) -> Any:
        gradient, blur_std, weight = ctx.saved_tensors
        total = None if g is None else _times(gradient, g, alone=not ctx.shown and g_gradient is None)
        if g_gradient is not None:
            once = _ops.blur.default(g_gradient, blur_std, None, ctx.floor)
            total = _sum(total, LossAndGradient._curvature(ctx, once, blur_std, weight))
        g_prediction = total if ctx.needs_input_grad[1] else None
        g_target = None if total is None or not ctx.needs_input_grad[2] else -total.to(ctx.target_dtype)
        # As many as `apply` was given: without `shown` where the op itself was called.
        return None, g_prediction, g_target, *[None] * (len(ctx.needs_input_grad) - 3)

    @staticmethod
    def moved(ctx: Any, *tangents: Any) -> Any:
        LossAndGradient.refuse(tangents, _TANGENT)
        prediction, target, blur_std, weight = ctx.saved_tensors
        dtype = _wide(prediction)
        moved = _sum(
            None if tangents[1] is None else tangents[1].to(dtype),
            None if tangents[2] is None else -tangents[2].to(dtype),
        )
        assert moved is not None
        # Between blurred images: <gradient, moved> loses digits where the blur removes most of `moved`.
        once = _ops.blur.default(moved, blur_std, None, ctx.floor)
        error = _primal(prediction).to(dtype) - _primal(target).to(dtype)
        error = _ops.blur.default(error, blur_std, None, ctx.floor)
        each = 2.0 * (error * once).sum(dim=(1, 2, 3))
        if weight is not None:
            each = each * args.on(weight, each.device).to(dtype)
        gradient = None
        if ctx.shown or any(ctx.needs_input_grad):
            gradient = LossAndGradient._curvature(ctx, once, blur_std, weight).to(prediction.dtype)
        return reduce(each, ctx.reduction), gradient

    @staticmethod
    def _curvature(ctx: Any, once: Tensor, blur_std: Tensor, weight: Tensor | None) -> Tensor:
        """L v of once = C v."""
        factor = 2.0 * share(ctx.reduction, once.shape[0])
        scale = torch.full_like(blur_std[:1], factor) if weight is None else weight * factor
        out: Tensor = _ops.blur.default(once, blur_std, scale, ctx.floor)
        return out


def _times(gradient: Tensor, g: Tensor, alone: bool) -> Tensor:
    """`g * gradient`, g of shape [] or [B]; the gradient itself where g is one and nobody will see it again.

    `loss.backward()` passes a one: looking spares a pass over memory, where looking costs nothing.
    """
    if (
        alone
        and g.dim() == 0
        and not torch.is_grad_enabled()
        and args.readable(g)
        and not _C._autograd._get_current_graph_task_keep_graph()
        and g.item() == 1.0
    ):
        return gradient.detach()
    return _scaled(g.reshape(-1), gradient, gradient.dtype)


class SoftScoreLoss(_Rule):
    """The loss alone; where a derivative may be asked for, the pass that computes the gradient, too."""

    op = "soft_score_loss"

    @classmethod
    def record(cls, keys: Any, *arguments: Any) -> Any:
        return LossAndGradient.record(keys, *arguments, False)[0]


class SpectralMix(_Rule):
    """Its Function takes the lists spread out: (state, count, noise_mask, key, key_rows, *inputs, *masks)."""

    op = "spectral_mix"

    @classmethod
    def record(cls, keys: Any, *arguments: Any) -> Any:
        inputs, masks, *others = arguments
        return super().record(keys, len(inputs), *others, *inputs, *masks)

    @staticmethod
    def forward(
        ctx: Any, state: _State, count: int, noise_mask: Tensor | None, key: Any, rows: Any, *spread: Tensor
    ) -> Tensor:
        inputs, masks = spread[:count], spread[count:]
        SpectralMix.refuse_masks(ctx.needs_input_grad, count, "requires grad")
        SpectralMix.begin(ctx, *masks)
        ctx.count, ctx.dtypes = count, [x.dtype for x in inputs]
        out: Tensor = SpectralMix.run(state, list(inputs), list(masks), noise_mask, key, rows)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        grads = [
            SpectralMix._mixed([g], [mask]).to(dtype) if needed else None
            for mask, dtype, needed in zip(
                ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[5 : 5 + ctx.count], strict=True
            )
            if g is not None
        ]
        return (None,) * 5 + (*(grads or [None] * ctx.count), *[None] * ctx.count)

    @staticmethod
    def moved(ctx: Any, *tangents: Any) -> Any:
        SpectralMix.refuse_masks(tangents, ctx.count, _TANGENT)
        images = tangents[5 : 5 + ctx.count]
        moved = [(x, m) for x, m in zip(images, ctx.saved_tensors, strict=True) if x is not None]
        # The op's result has its first input's dtype: the widest loses nothing before the last rounding.
        moved.sort(key=lambda pair: -pair[0].dtype.itemsize)
        return SpectralMix._mixed(*zip(*moved, strict=True)).to(ctx.dtypes[0])

    @staticmethod
    def _mixed(inputs: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """The op without noise; of the first input's dtype."""
        if torch.compiler.is_compiling() or not any(map(_C._functorch.is_legacy_batchedtensor, inputs)):
            out: Tensor = _ops.spectral_mix.default(list(inputs), list(masks), None, [], None)
            return out
        # Several gradients or tangents at once, of torch.autograd: that has no rule for lists of tensors.
        dtype = _wide(*inputs)
        total = _sum(
            *(m.to(dtype) * _ops.dct2.default(x.to(dtype), False) for x, m in zip(inputs, masks, strict=True))
        )
        return _ops.dct2.default(total, True).to(inputs[0].dtype)

    @staticmethod
    def refuse_masks(marks: Sequence[Any], count: int, how: str) -> None:
        marked = [("noise_mask", marks[2]), *((f"masks[{i}]", m) for i, m in enumerate(marks[5 + count :]))]
        for name, mark in marked:
            if mark is not None and mark is not False:
                raise args.not_differentiable("spectral_mix", name, how, "masks")


RULES: tuple[type[_Rule], ...] = (
    Dct2,
    Identity,
    Blur,
    Corrupt,
    Step,
    StepOut,
    SoftScoreLoss,
    LossAndGradient,
    SpectralMix,
)
