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

from collections.abc import Callable, Iterator, Sequence
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


def reduce(op: str, loss: Tensor, reduction: str) -> Tensor:
    """[..., B] to what `reduction` says."""
    args.choice(f"softdiff::{op}", "reduction", reduction, ("none", "mean", "sum"))
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

    op: its name; direct: what it does below autograd, set where it is registered. coefficients, masks:
    position among the Function's arguments, and name, of each that has no derivative.
    """

    op: str
    direct: Callable[..., Any]
    coefficients: tuple[tuple[int, str], ...] = ()
    masks: tuple[tuple[int, str], ...] = ()

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
        for what, places in (("coefficients", cls.coefficients), ("masks", cls.masks)):
            for position, name in places:
                if marks[position] is not None and marks[position] is not False:
                    raise args.not_differentiable(cls.op, name, how, what)


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


class _Out(_Rule):
    """No derivative: the result is written where another tensor was."""

    @classmethod
    def record(cls, keys: Any, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and _any_requires_grad(*arguments):
            raise cls.refused("requires grad")
        # Only a Function is told, at every level, whether one of its arguments carries a tangent.
        super().record(keys, *_tensors(arguments))
        return cls.run(_state(keys), *arguments)

    @staticmethod
    def forward(ctx: Any, state: _State, *tensors: Tensor) -> None:
        """Nothing: a tensor made here would be one more node of a graph, which inductor counts."""

    @classmethod
    def moved(cls, ctx: Any, *tangents: Any) -> Any:
        raise cls.refused(_TANGENT)

    @classmethod
    def refused(cls, how: str) -> ValueError:
        return ValueError(
            f"{cls.op}: an argument {how}, but out= cannot be differentiated; drop it, or work under "
            "torch.no_grad()"
        )


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, and in their lists."""
    for a in arguments:
        if isinstance(a, Tensor):
            yield a
        elif isinstance(a, (list, tuple)):
            yield from _tensors(a)


class StepOut(_Out):
    op = "step_out"


class SpectralMixOut(_Out):
    op = "spectral_mix_out"


class _LossAndGradient(_Rule):
    """A loss w |C (prediction - target)|^2, and its gradient for the prediction, from the same pass.

    With L = 2 w C^2, times an image's share, the gradient is L (prediction - target): linear in both images.
    As an output of the op it is itself differentiable where `backward` multiplies by it. A subclass has C in
    `filtered`. Its Function takes (state, shown, prediction, target, what gives C, weight, options of C,
    reduction). shown: whether the caller gets to see the gradient; else it is for `backward` alone.
    """

    @classmethod
    def record(cls, keys: Any, *arguments: Any, shown: bool = True) -> Any:
        return super().record(keys, shown, *arguments)

    @classmethod
    def forward(cls, ctx: Any, state: _State, shown: bool, *arguments: Any) -> tuple[Tensor, Tensor]:
        prediction, target, given, weight, *options, reduction = arguments
        loss, gradient = cls.run(state, *arguments)
        cls.begin(ctx, gradient, given, weight)
        ctx.save_for_forward(prediction, target, given, weight)
        ctx.options, ctx.reduction, ctx.shown = options, reduction, shown
        ctx.target_dtype = target.dtype
        if not shown and not any(ctx.needs_input_grad):
            ctx.mark_non_differentiable(gradient)
        return loss, gradient

    @classmethod
    def gradients(cls, ctx: Any, g: Tensor | None, g_gradient: Tensor | None) -> Any:
        """What `backward` gives, which compiled autograd takes only as a static method of the subclass."""
        gradient, given, weight = ctx.saved_tensors
        total = None if g is None else _times(gradient, g, alone=not ctx.shown and g_gradient is None)
        if g_gradient is not None:
            once = cls.filtered(g_gradient, given, *ctx.options)
            total = _sum(total, cls._curvature(ctx, once, given, weight))
        g_prediction = total if ctx.needs_input_grad[2] else None
        g_target = None if total is None or not ctx.needs_input_grad[3] else -total.to(ctx.target_dtype)
        return None, None, g_prediction, g_target, *[None] * (len(ctx.needs_input_grad) - 4)

    @classmethod
    def moved(cls, ctx: Any, *tangents: Any) -> Any:
        cls.refuse(tangents, _TANGENT)
        prediction, target, given, weight = ctx.saved_tensors
        dtype = _wide(prediction)
        moved = _sum(
            None if tangents[2] is None else tangents[2].to(dtype),
            None if tangents[3] is None else -tangents[3].to(dtype),
        )
        assert moved is not None
        # Between filtered images: <gradient, moved> loses digits where the filter removes most of `moved`.
        once = cls.filtered(moved, given, *ctx.options)
        error = cls.filtered(_primal(prediction).to(dtype) - _primal(target).to(dtype), given, *ctx.options)
        each = 2.0 * (error * once).sum(dim=(1, 2, 3))
        if weight is not None:
            each = each * args.on(weight, each.device).to(dtype)
        gradient = None
        if ctx.shown or any(ctx.needs_input_grad):
            gradient = cls._curvature(ctx, once, given, weight).to(prediction.dtype)
        return reduce(cls.op.removesuffix("_and_gradient"), each, ctx.reduction), gradient

    @classmethod
    def _curvature(cls, ctx: Any, once: Tensor, given: Tensor, weight: Tensor | None) -> Tensor:
        """L v of once = C v."""
        factor = 2.0 * share(ctx.reduction, once.shape[0])
        return cls.scaled(once, given, weight, factor, *ctx.options)

    @staticmethod
    def filtered(v: Tensor, given: Tensor, *options: Any) -> Tensor:
        """C v."""
        raise NotImplementedError

    @staticmethod
    def scaled(v: Tensor, given: Tensor, weight: Tensor | None, factor: float, *options: Any) -> Tensor:
        """factor * weight * C v."""
        raise NotImplementedError


class SoftScoreLossAndGradient(_LossAndGradient):
    op = "soft_score_loss_and_gradient"
    coefficients = ((4, "blur_std"), (5, "weight"))

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_gradient: Tensor | None) -> Any:
        return SoftScoreLossAndGradient.gradients(ctx, g, g_gradient)

    @staticmethod
    def filtered(v: Tensor, given: Tensor, *options: Any) -> Tensor:
        out: Tensor = _ops.blur.default(v, given, None, *options)
        return out

    @staticmethod
    def scaled(v: Tensor, given: Tensor, weight: Tensor | None, factor: float, *options: Any) -> Tensor:
        scale = torch.full_like(given[:1], factor) if weight is None else weight * factor
        out: Tensor = _ops.blur.default(v, given, scale, *options)
        return out


class SpectralLossAndGradient(_LossAndGradient):
    op = "spectral_loss_and_gradient"
    coefficients = ((5, "weight"),)
    masks = ((4, "mask"),)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_gradient: Tensor | None) -> Any:
        return SpectralLossAndGradient.gradients(ctx, g, g_gradient)

    @staticmethod
    def filtered(v: Tensor, given: Tensor, *options: Any) -> Tensor:
        return SpectralMix.mixed([v], [given])

    @staticmethod
    def scaled(v: Tensor, given: Tensor, weight: Tensor | None, factor: float, *options: Any) -> Tensor:
        once = SpectralMix.mixed([v], [given])
        return once * factor if weight is None else _scaled(weight * factor, once, once.dtype)


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
        return SoftScoreLossAndGradient.record(keys, *arguments, shown=False)[0]


class SpectralLoss(_Rule):
    """As `SoftScoreLoss`."""

    op = "spectral_loss"

    @classmethod
    def record(cls, keys: Any, *arguments: Any) -> Any:
        return SpectralLossAndGradient.record(keys, *arguments, shown=False)[0]


class SpectralMix(_Rule):
    """Its Function takes the lists spread out: (state, count, noise_mask, key, key_rows, noise, *inputs,
    *masks)."""

    op = "spectral_mix"

    @classmethod
    def record(cls, keys: Any, *arguments: Any) -> Any:
        inputs, masks, *others = arguments
        return super().record(keys, len(inputs), *others, *inputs, *masks)

    @staticmethod
    def forward(
        ctx: Any,
        state: _State,
        count: int,
        noise_mask: Tensor | None,
        key: Any,
        rows: Any,
        noise: Tensor | None,
        *spread: Tensor,
    ) -> Tensor:
        inputs, masks = spread[:count], spread[count:]
        SpectralMix.refuse_masks(ctx.needs_input_grad, count, "requires grad")
        SpectralMix.begin(ctx, None if noise is None else noise_mask, *masks)
        ctx.count, ctx.dtypes = count, [x.dtype for x in inputs]
        ctx.noise_dtype = None if noise is None else noise.dtype
        out: Tensor = SpectralMix.run(state, list(inputs), list(masks), noise_mask, key, rows, noise)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        noise_mask, *masks = ctx.saved_tensors
        needed = ctx.needs_input_grad
        grads = [
            SpectralMix.mixed([g], [mask]).to(dtype) if wanted else None
            for mask, dtype, wanted in zip(masks, ctx.dtypes, needed[6 : 6 + ctx.count], strict=True)
            if g is not None
        ]
        g_noise = None
        if g is not None and needed[5]:
            dtype = _wide(g)
            g_noise = (noise_mask.to(dtype) * _ops.dct2.default(g.to(dtype), False)).to(ctx.noise_dtype)
        return (None,) * 5 + (g_noise, *(grads or [None] * ctx.count), *[None] * ctx.count)

    @staticmethod
    def moved(ctx: Any, *tangents: Any) -> Any:
        SpectralMix.refuse_masks(tangents, ctx.count, _TANGENT)
        noise_mask, *masks = ctx.saved_tensors
        noise, images = tangents[5], tangents[6 : 6 + ctx.count]
        moved = [(x, m) for x, m in zip(images, masks, strict=True) if x is not None]
        # The op's result has its first input's dtype: the widest loses nothing before the last rounding.
        moved.sort(key=lambda pair: -pair[0].dtype.itemsize)
        inputs, others = zip(*moved, strict=True) if moved else ((), ())
        return SpectralMix.mixed(inputs, others, None if noise is None else noise_mask, noise).to(
            ctx.dtypes[0]
        )

    @staticmethod
    def mixed(
        inputs: Sequence[Tensor],
        masks: Sequence[Tensor],
        noise_mask: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """The op without a key; there may be no inputs. Of the first input's dtype, or `_wide`."""
        images = inputs if noise is None else (*inputs, noise)
        batched = not torch.compiler.is_compiling() and any(
            map(_C._functorch.is_legacy_batchedtensor, images)
        )
        if inputs and not batched:
            out: Tensor = _ops.spectral_mix.default(list(inputs), list(masks), noise_mask, [], None, noise)
            return out
        # Several gradients or tangents at once, of torch.autograd: that has no rule for lists of tensors.
        dtype = _wide(*images)
        spectra = [
            m.to(dtype) * _ops.dct2.default(x.to(dtype), False) for x, m in zip(inputs, masks, strict=True)
        ]
        if noise is not None and noise_mask is not None:
            spectra.append(noise_mask.to(dtype) * noise.to(dtype))
        mixture: Tensor = _ops.dct2.default(_sum(*spectra), True)
        return mixture.to(inputs[0].dtype) if inputs else mixture

    @staticmethod
    def refuse_masks(marks: Sequence[Any], count: int, how: str) -> None:
        marked = [("noise_mask", marks[2]), *((f"masks[{i}]", m) for i, m in enumerate(marks[6 + count :]))]
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
    SoftScoreLossAndGradient,
    SpectralLoss,
    SpectralLossAndGradient,
    SpectralMix,
    SpectralMixOut,
)
