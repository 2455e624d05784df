# SPDX-License-Identifier: Apache-2.0
"""Every op, and every way in which a derivative of it may be asked for: what test_derivatives.py runs.

An op is a function of a module (`softdiff_kernels` or its eager twins) and images. A way turns the op into
numbers that depend on its derivatives; it must not matter which module they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from checks import picture
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import softdiff_kernels as sk

SHAPE = (2, 1, 3, 4)
KEY = sk.NoiseKey(3, 5, 1)
STD = torch.tensor([0.6, 1.4])
SCALE = torch.tensor([0.5, 2.0])
MASKS = [torch.linspace(0.2, 1, 4), torch.linspace(1, 0, 12).view(3, 4)]


def _step(name: str, **coefficients: Any) -> Callable[..., Any]:
    # One blur for the batch and one a sample: both forms of a coefficient go through every way.
    return lambda m, x, y, n: getattr(m, name)(x, y, blur_std_t=STD, blur_std_s=0.5, noise=n, **coefficients)


def _loss(**options: Any) -> Callable[..., Any]:
    return lambda m, x, y: m.soft_score_loss(x, y, STD, floor=0.1, **options)


# Op: (function of a module and images, number of images).
OPS: dict[str, tuple[Callable[..., Any], int]] = {
    "dct2": (lambda m, x: m.dct2(x), 1),
    "idct2": (lambda m, x: m.idct2(x), 1),
    "blur": (lambda m, x: m.blur(x, STD, floor=0.2, scale=SCALE), 1),
    "corrupt": (
        lambda m, x, n: m.corrupt(x, STD, SCALE, floor=0.1, noise=n, return_residual=True),
        2,
    ),
    "corrupt by a key": (lambda m, x: m.corrupt(x, STD, 0.3, scale=0.5, key=KEY), 1),
    "reverse_step": (_step("reverse_step", a=0.7, b=SCALE, floor=0.1), 3),
    "momentum_step": (_step("momentum_step", noise_std_t=SCALE, noise_std_s=0.3 * SCALE, floor=0.1), 3),
    "soft_score_loss": (_loss(weight=SCALE), 2),
    "soft_score_loss, none": (_loss(reduction="none"), 2),
    "spectral_loss": (lambda m, x, y: m.spectral_loss(x, y, MASKS[1], weight=SCALE), 2),
    "spectral_mix by noise": (
        lambda m, x, n: m.spectral_mix([x], MASKS[1:], noise_mask=MASKS[0], noise=n),
        2,
    ),
    "spectral_mix": (lambda m, x, y: m.spectral_mix([x, y], MASKS, noise_mask=MASKS[0], key=KEY), 2),
}


def images(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [picture(*SHAPE, seed=s, dtype=torch.float64).to(dtype) for s in range(count)]


VECTORS = [picture(*SHAPE, seed=10 + s) for s in range(3)]


def vectors(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Directions: float32 numbers in any dtype, so that the truth gets the same."""
    return [v.to(dtype) for v in VECTORS[:count]]


def listed(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def scalar(result: Any) -> Tensor:
    """One number of all results, in which every element has a weight of its own; not linear in them."""
    total = 0.0
    for i, r in enumerate(listed(result)):
        weights = torch.linspace(0.5, 1.5, r.numel(), dtype=r.dtype).view(r.shape)
        total = total + (i + 1) * (weights * r).sum() + 0.1 * (weights * r.square()).sum()
    return total


Function = Callable[..., Any]


def backward(f: Function, xs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in xs]
    scalar(f(*leaves)).backward()
    return [x.grad for x in leaves]


def double_backward(f: Function, xs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in xs]
    first = torch.autograd.grad(scalar(f(*leaves)), leaves, create_graph=True)
    return list(torch.autograd.grad(sum(scalar(g) for g in first), leaves))


def dual_numbers(f: Function, xs: list[Tensor]) -> list[Tensor]:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, v) for x, v in zip(xs, vectors(len(xs), xs[0].dtype), strict=True)]
        return [forward_ad.unpack_dual(r).tangent for r in listed(f(*duals))]


def one_dual_number(f: Function, xs: list[Tensor]) -> list[Tensor]:
    """A tangent on the last image alone."""
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(xs[-1], vectors(1, xs[0].dtype)[0])
        return [forward_ad.unpack_dual(r).tangent for r in listed(f(*xs[:-1], dual))]


def forward_over_backward(f: Function, xs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in xs]
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(x, v) for x, v in zip(leaves, vectors(len(xs), xs[0].dtype), strict=True)
        ]
        grads = torch.autograd.grad(scalar(f(*duals)), leaves, create_graph=True)
        return [forward_ad.unpack_dual(g).tangent for g in grads]


def batched_backward(f: Function, xs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in xs]
    total = scalar(f(*leaves))
    factors = torch.linspace(1, 2, 3, dtype=total.dtype)
    return list(torch.autograd.grad(total, leaves, factors, is_grads_batched=True))


def func_grad(f: Function, xs: list[Tensor]) -> list[Tensor]:
    return list(torch.func.grad(lambda *a: scalar(f(*a)), argnums=tuple(range(len(xs))))(*xs))


def func_vjp(f: Function, xs: list[Tensor]) -> list[Tensor]:
    total, pull = torch.func.vjp(lambda *a: scalar(f(*a)), *xs)
    return [*pull(torch.ones_like(total)), *pull(2 * torch.ones_like(total))]


def func_jvp(f: Function, xs: list[Tensor]) -> list[Tensor]:
    values, tangents = torch.func.jvp(f, tuple(xs), tuple(vectors(len(xs), xs[0].dtype)))
    return [*listed(values), *listed(tangents)]


def func_jacrev(f: Function, xs: list[Tensor]) -> list[Tensor]:
    return _flat(torch.func.jacrev(f, argnums=tuple(range(len(xs))))(*xs))


def func_jacfwd(f: Function, xs: list[Tensor]) -> list[Tensor]:
    return _flat(torch.func.jacfwd(f, argnums=tuple(range(len(xs))))(*xs))


def func_hessian(f: Function, xs: list[Tensor]) -> list[Tensor]:
    return _flat(torch.func.hessian(lambda *a: scalar(f(*a)), argnums=tuple(range(len(xs))))(*xs))


def func_vmap(f: Function, xs: list[Tensor]) -> list[Tensor]:
    """Over a new axis, in the middle of the first image; the last image has none where there are several."""
    several = [torch.stack([x, 2 * x, x.flip(3)], dim=2) for x in xs]
    dims: list[int | None] = [2] * len(xs)
    if len(xs) > 1:
        several[-1], dims[-1] = xs[-1], None
    return listed(torch.func.vmap(f, in_dims=tuple(dims), out_dims=0)(*several))


def per_sample_gradients(f: Function, xs: list[Tensor]) -> list[Tensor]:
    several = [torch.stack([x, 2 * x, x.flip(3)]) for x in xs]
    each = torch.func.grad(lambda *a: scalar(f(*a)), argnums=tuple(range(len(xs))))
    return list(torch.func.vmap(each)(*several))


def _flat(tree: Any) -> list[Tensor]:
    leaves: list[Tensor] = torch.utils._pytree.tree_leaves(tree)
    return leaves


class Network(nn.Module):
    """The op of images times a parameter: what is exported, traced, checkpointed and trained."""

    def __init__(self, f: Function, dtype: torch.dtype) -> None:
        super().__init__()
        self.f = f
        self.factor = nn.Parameter(torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=dtype))

    def forward(self, *xs: Tensor) -> Any:
        return self.f(*(x * self.factor for x in xs))


def _trained(network: Any, xs: list[Tensor]) -> list[Tensor]:
    """The gradient of the network's one parameter."""
    (parameter,) = network.parameters()
    scalar(network(*xs)).backward()
    return [parameter.grad]


def trained(f: Function, xs: list[Tensor]) -> list[Tensor]:
    """The same without a graph: what a graph's training must be equal to."""
    return _trained(Network(f, xs[0].dtype), xs)


def exported(f: Function, xs: list[Tensor]) -> list[Tensor]:
    return _trained(torch.export.export(Network(f, xs[0].dtype), tuple(xs), strict=False).module(), xs)


def exported_without_gradients(f: Function, xs: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        program = torch.export.export(Network(f, xs[0].dtype), tuple(xs), strict=False)
    return _trained(program.module(), xs)


def traced(f: Function, xs: list[Tensor]) -> list[Tensor]:
    return _trained(torch.jit.trace(Network(f, xs[0].dtype), tuple(xs), check_trace=False), xs)


def traced_without_gradients(f: Function, xs: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        graph = torch.jit.trace(Network(f, xs[0].dtype), tuple(xs), check_trace=False)
    return _trained(graph, xs)


def checkpointed(f: Function, xs: list[Tensor]) -> list[Tensor]:
    return _checkpointed(f, xs, use_reentrant=False)


def checkpointed_reentrant(f: Function, xs: list[Tensor]) -> list[Tensor]:
    return _checkpointed(f, xs, use_reentrant=True)


def _checkpointed(f: Function, xs: list[Tensor], use_reentrant: bool) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in xs]
    scalar(checkpoint(lambda *a: f(*a), *leaves, use_reentrant=use_reentrant)).backward()
    return [x.grad for x in leaves]


def functional_call(f: Function, xs: list[Tensor]) -> list[Tensor]:
    network = Network(f, xs[0].dtype)
    state = {n: p.detach().clone() for n, p in network.named_parameters()}
    loss = lambda s: scalar(torch.func.functional_call(network, s, tuple(xs)))  # noqa: E731
    return list(torch.func.grad(loss)(state).values())


# Name in the docs: the way.
WAYS: dict[str, Callable[[Function, list[Tensor]], list[Tensor]]] = {
    "backward": backward,
    "double backward": double_backward,
    "backward of several gradients at once": batched_backward,
    "forward_ad": dual_numbers,
    "forward_ad, one image": one_dual_number,
    "forward over backward": forward_over_backward,
    "func.grad": func_grad,
    "func.vjp": func_vjp,
    "func.jvp": func_jvp,
    "func.jacrev": func_jacrev,
    "func.jacfwd": func_jacfwd,
    "func.hessian": func_hessian,
    "func.vmap": func_vmap,
    "vmap(grad)": per_sample_gradients,
    "functional_call": functional_call,
    "checkpoint": checkpointed,
    "checkpoint, reentrant": checkpointed_reentrant,
    "export, then trained": exported,
    "export under no_grad, then trained": exported_without_gradients,
    "jit.trace, then trained": traced,
    "jit.trace under no_grad, then trained": traced_without_gradients,
}
# Those whose truth is the plain training: the eager twins need not be exported or traced.
TRAINED = {exported, exported_without_gradients, traced, traced_without_gradients}
# Those of them that are run as compiled graphs, too: what is compiled is the function of images.
COMPILED = {
    "backward": lambda f: lambda *a: scalar(f(*a)),
    "func.grad": lambda f: lambda *a: func_grad(f, list(a)),
    "func.vjp": lambda f: lambda *a: func_vjp(f, list(a)),
    "func.jvp": lambda f: lambda *a: func_jvp(f, list(a)),
    "func.jacrev": lambda f: lambda *a: func_jacrev(f, list(a)),
    "func.jacfwd": lambda f: lambda *a: func_jacfwd(f, list(a)),
    "func.hessian": lambda f: lambda *a: func_hessian(f, list(a)),
    "func.vmap": lambda f: lambda *a: func_vmap(f, list(a)),
    "vmap(grad)": lambda f: lambda *a: per_sample_gradients(f, list(a)),
}


def all_ops(module: Any, names: Iterable[str] = tuple(OPS)) -> Function:
    """The results of several ops as one function of three images: one graph instead of one an op."""

    def f(x: Tensor, y: Tensor, n: Tensor) -> tuple[Tensor, ...]:
        calls = (OPS[name] for name in names)
        return tuple(r for op, count in calls for r in listed(op(module, *(x, y, n)[:count])))

    return f
