# SPDX-License-Identifier: Apache-2.0
"""Every op times every way in which a derivative may be asked for, against the eager twin in float64.

The table in docs/derivatives.md is written from the same lists, and is held to them:
`PYTHONPATH=tests python tests/core/test_derivatives.py` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checks import ROUNDING, needs_compiler, needs_native
from ways import COMPILED, MASKS, OPS, STD, TRAINED, WAYS, all_ops, images, listed, scalar, trained, vectors

import softdiff_kernels as sk
from softdiff_kernels.diffusion import BlurCorruption

BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
TABLE = Path(__file__).resolve().parents[2] / "docs" / "derivatives.md"


@pytest.fixture(params=BACKENDS)
def backend(request):
    with sk.use_backend(request.param):
        yield request.param


def assert_equal_to_the_truth(got, truth):
    # float32 against float64, through at most two derivatives of an op and a square: a few hundred roundings
    # of 6e-8 each. A derivative that is dropped or doubled is off by its own size.
    assert len(got) == len(truth) > 0
    for one, exact in zip(got, truth, strict=True):
        assert one is not None, "no derivative"
        assert one.shape == exact.shape
        assert float((one.double() - exact).norm()) <= 2e-5 * float(exact.norm()) + 1e-6


def truth_of(way, name):
    op, count = OPS[name]
    way = trained if way in TRAINED else way
    return way(lambda *xs: op(sk.reference, *xs), images(count, torch.float64))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("way", WAYS)
def test_eager(backend, way, name):
    # Right by every way, for the fused kernels and for the eager ones behind the same op.
    op, count = OPS[name]
    got = WAYS[way](lambda *xs: op(sk, *xs), images(count))
    assert_equal_to_the_truth(got, truth_of(WAYS[way], name))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("way", COMPILED)
def test_traced_and_cut_for_a_compiler(way, dynamic):
    # One graph without a break, traced, functionalised and cut as inductor does it.
    assert_compiled(way, backend="aot_eager", dynamic=dynamic)


@pytest.mark.parametrize("way", COMPILED)
@needs_compiler
def test_compiled(way):
    # The same for real, with one op of each kind of rule: what is compiled is what stands between the ops.
    # With sizes that it does not know where derivatives are most used.
    names = ("blur", "corrupt", "momentum_step", "soft_score_loss", "spectral_mix")
    assert_compiled(way, names, backend="inductor", dynamic=way in ("backward", "vmap(grad)"))


def assert_compiled(way, names=tuple(OPS), **options):
    try:
        got = compiled(way, all_ops(sk, names), **options)
    except Exception:
        unless_torch_fails_alone(way, **options)
        raise
    assert_equal_to_the_truth(got, WAYS[way](all_ops(sk.reference, names), images(3, torch.float64)))


def compiled(way, f, **options):
    torch._dynamo.reset()
    graph = torch.compile(COMPILED[way](f), fullgraph=True, **options)
    xs = images(3)
    if way != "backward":
        return listed(graph(*xs))
    xs = [x.requires_grad_() for x in xs]
    graph(*xs).backward()
    return [x.grad for x in xs]


def unless_torch_fails_alone(way, **options):
    """Skips where this torch cannot compile the way of its own ops either (2.6: jacrev and hessian)."""
    try:
        compiled(way, lambda x, y, n: (x.sin() * y, y.cos() + n), **options)
    except Exception as error:
        pytest.skip(f"torch {torch.__version__} cannot compile {way} of its own ops: {type(error).__name__}")


def test_of_every_op_as_it_is_registered(backend):
    # Whoever reaches torch.ops gets the same derivatives: those of the eager twins, for each output.
    std, scale, one = torch.tensor([0.6, 1.4]), torch.tensor([0.5, 2.0]), torch.ones(1)
    masks, key = [torch.linspace(0.2, 1, 4)] * 2, sk.NoiseKey(3, 5, 1)
    ops, twin = torch.ops.softdiff, sk.reference

    def slope(x, y):
        return torch.autograd.grad(twin.soft_score_loss(x, y, std, weight=scale), x, create_graph=True)[0]

    steps = {"blur_std_t": std, "blur_std_s": 0.5 * std}
    pairs = {
        "dct2": (lambda x: ops.dct2(x, True), lambda x: twin.idct2(x)),
        "blur": (lambda x: ops.blur(x, std, scale, 0.2), lambda x: twin.blur(x, std, floor=0.2, scale=scale)),
        "corrupt": (
            lambda x: ops.corrupt(x, std, scale, None, 0.0, [3, 5, 1], None, None, True),
            lambda x: twin.corrupt(x, std, scale, key=key, return_residual=True),
        ),
        "step": (
            lambda x, y, n: ops.step(x, y, std, 0.5 * std, scale, 0.5 * scale, "small", 0.0, [], None, n),
            lambda x, y, n: twin.momentum_step(
                x, y, **steps, noise_std_t=scale, noise_std_s=0.5 * scale, variance="small", noise=n
            ),
        ),
        "step without x_t": (
            lambda y: ops.step(None, y, std, 0.5 * std, scale, one, "given", 0.0, [], None, None),
            lambda y: twin.reverse_step(torch.zeros_like(y), y, **steps, a=scale, b=0.0),
        ),
        "soft_score_loss": (
            lambda x, y: ops.soft_score_loss(x, y, std, scale, 0.0, "sum"),
            lambda x, y: twin.soft_score_loss(x, y, std, weight=scale, reduction="sum"),
        ),
        "soft_score_loss_and_gradient": (
            lambda x, y: ops.soft_score_loss_and_gradient(x, y, std, scale, 0.0, "mean"),
            lambda x, y: (twin.soft_score_loss(x, y, std, weight=scale), slope(x, y)),
        ),
        "spectral_mix": (
            lambda x, y: ops.spectral_mix([x, y], masks, None, [], None, None),
            lambda x, y: twin.spectral_mix([x, y], masks),
        ),
    }
    counts = {"step": 3, "dct2": 1, "blur": 1, "corrupt": 1, "step without x_t": 1}
    for name, (op, twins) in pairs.items():
        for way in ("backward", "double backward", "forward_ad"):
            if way == "forward_ad" and name == "soft_score_loss_and_gradient":
                continue  # its twin takes a gradient, which has no forward mode there; the next test has it
            count = counts.get(name, 2)
            truth = WAYS[way](twins, images(count, torch.float64))
            assert_equal_to_the_truth(WAYS[way](op, images(count)), truth)


def test_the_kept_gradient_is_differentiated_forward_too(backend):
    # Both outputs of the op, the loss and its gradient, against the twin's loss and its gradient.
    std, scale = torch.tensor([0.6, 1.4]), torch.tensor([0.5, 2.0])
    x, y = images(2)
    v, w = vectors(2)

    def op(x, y):
        return torch.ops.softdiff.soft_score_loss_and_gradient(x, y, std, scale, 0.0, "mean")

    def twin(x, y):
        return torch.func.grad_and_value(lambda p: sk.reference.soft_score_loss(p, y, std, weight=scale))(x)

    values, tangents = torch.func.jvp(op, (x, y), (v, w))
    (slope, loss), (slope_moved, loss_moved) = torch.func.jvp(
        twin, (x.double(), y.double()), (v.double(), w.double())
    )
    assert_equal_to_the_truth([*values, *tangents], [loss, slope, loss_moved, slope_moved])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_returned_gradient_is_what_the_op_keeps(backend, reduction):
    # What is handed out may be written to: a second backward through the kept graph gives the same again.
    x, y = images(2)
    x.requires_grad_(), y.requires_grad_()
    loss = sk.soft_score_loss(x, y, 1.0, reduction=reduction).sum()
    first = torch.autograd.grad(loss, (x, y), retain_graph=True)
    expected = [g.clone() for g in first]
    for g in first:
        g.mul_(2)
    for keep in (True, False):
        second = torch.autograd.grad(loss, (x, y), retain_graph=keep)
        assert all(torch.equal(g, e) for g, e in zip(second, expected, strict=True))
        for g in second:
            g.zero_()


def test_the_gradient_that_the_registered_op_returns_is_the_callers(backend):
    # Both were once one tensor: the op's second output and what backward hands out.
    x, y = images(2)
    x.requires_grad_()
    op = torch.ops.softdiff.soft_score_loss_and_gradient
    loss, slope = op(x, y, torch.ones(1), None, 0.0, "mean")
    (g,) = torch.autograd.grad(loss, x)
    assert torch.equal(g, slope)
    g.zero_()
    assert slope.abs().sum() > 0


@pytest.mark.parametrize("random", ["different", "same"])
def test_vmap_draws_what_its_randomness_says(backend, random):
    # A key is data: every slice gets the noise that it would get alone. Without one torch's own rule holds.
    x = torch.zeros(3, *images(1)[0].shape)
    by_key = torch.func.vmap(lambda image: sk.corrupt(image, 0.0, 1.0, key=sk.NoiseKey(7, 2)))(x)
    assert all(torch.equal(slice, sk.corrupt(x[0], 0.0, 1.0, key=sk.NoiseKey(7, 2))) for slice in by_key)
    streams = torch.tensor([4, 9, 1])
    each = torch.func.vmap(lambda image, s: sk.corrupt(image, 0.0, 1.0, key=sk.NoiseKey(7, s)))(x, streams)
    for slice, stream in zip(each, streams.tolist(), strict=True):
        assert torch.equal(slice, sk.corrupt(x[0], 0.0, 1.0, key=sk.NoiseKey(7, stream)))
    drawn = torch.func.vmap(lambda image: sk.corrupt(image, 0.0, 1.0), randomness=random)(x)
    assert torch.equal(drawn[0], drawn[1]) == (random == "same")
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda image: sk.corrupt(image, 0.0, 1.0))(x)


def test_vmap_maps_coefficients_masks_and_normals(backend):
    # An axis of coefficients, of masks or of streams alone gives what a loop over it gives.
    x = images(1)[0]
    stds, factors = torch.tensor([[0.5, 1.0], [2.0, 0.0], [1.0, 3.0]]), torch.tensor([0.1, 0.2, 0.3])
    got = torch.func.vmap(lambda s, f: sk.blur(x, s, scale=f))(stds, factors)
    assert torch.equal(got, torch.stack([sk.blur(x, s, scale=f) for s, f in zip(stds, factors, strict=True)]))
    masks = torch.rand(3, 2, 1, 1, 4)
    key = sk.NoiseKey(1)
    for mask in (masks, masks[:, 0], masks[:, 0, 0, 0]):
        mixed = torch.func.vmap(lambda m: sk.spectral_mix([x, x], [m, MASKS[0]], noise_mask=m, key=key))(mask)
        loop = [sk.spectral_mix([x, x], [m, MASKS[0]], noise_mask=m, key=key) for m in mask]
        assert torch.equal(mixed, torch.stack(loop))
    drawn = torch.func.vmap(lambda d: sk.normal((2, 5), sk.NoiseKey(3, 1, d)))(torch.tensor([0, 6]))
    assert torch.equal(drawn, torch.stack([sk.normal((2, 5), sk.NoiseKey(3, 1, d)) for d in (0, 6)]))


def test_out_under_vmap(backend):
    # Written where every slice lies, also in place; one out= for all slices is refused and left alone.
    x = torch.stack([*images(3)])
    step = {"blur_std_t": 2.0, "blur_std_s": 1.0, "a": 0.5, "b": 0.0}
    expected = torch.stack([sk.reverse_step(image, x[0], **step) for image in x])
    out = torch.zeros_like(x)
    torch.func.vmap(lambda a, o: sk.reverse_step(a, x[0], out=o, **step))(x, out)
    assert torch.equal(out, expected)
    place = x.clone()
    torch.func.vmap(lambda a: sk.reverse_step(a, x[0], out=a, **step))(place)
    assert torch.equal(place, expected)
    one = torch.zeros_like(x[0])
    with pytest.raises(ValueError, match="one tensor for all slices; drop out=, or map over it too"):
        torch.func.vmap(lambda a: sk.reverse_step(a, x[0], out=one, **step))(x)
    assert not one.any()


OUT_WAYS = {
    "forward_ad": lambda f, x, v: dual(f, x, v),
    "func.jvp": lambda f, x, v: torch.func.jvp(f, (x,), (v,)),
    "func.grad": lambda f, x, v: torch.func.grad(lambda a: f(a).sum())(x),
    "backward": lambda f, x, v: f(x.clone().requires_grad_()),
}


def dual(f, x, v):
    with torch.autograd.forward_ad.dual_level():
        return f(torch.autograd.forward_ad.make_dual(x, v))


@pytest.mark.parametrize("way", OUT_WAYS)
def test_out_is_refused_where_a_derivative_is_asked_for(backend, way):
    # A result that is written into another tensor has no derivative: refused in words, nothing written.
    x, v, out = images(1)[0], vectors(1)[0], torch.zeros(2, 1, 3, 4)
    step = {"blur_std_t": 2.0, "blur_std_s": 1.0, "a": 0.5, "b": 0.0}
    with pytest.raises(ValueError, match="out= cannot be differentiated; drop it, or work under"):
        OUT_WAYS[way](lambda a: sk.reverse_step(a, a, out=out, **step), x, v)
    assert not out.any()


def test_tangents_within_a_compiled_function():
    # forward_ad's own levels: opened inside the graph they are right; around it too, or torch (2.14) refuses.
    x, v = images(1)[0], vectors(1)[0]
    expected = dual_tangent(lambda a: sk.blur(a, STD), x, v)
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def inside(x, v):
        return dual_tangent(lambda a: sk.blur(a, STD), x, v)

    assert torch.equal(inside(x, v), expected)
    around = torch.compile(lambda a: sk.blur(a, STD), backend="aot_eager", fullgraph=True)
    try:
        assert torch.equal(dual_tangent(around, x, v), expected)
    except torch._dynamo.exc.Unsupported as refused:
        assert "tangent" in str(refused)


def dual_tangent(f, x, v):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(f(torch.autograd.forward_ad.make_dual(x, v))).tangent


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPS)
def test_tangents_have_their_results_dtype(backend, name, dtype):
    # Within two roundings of float64's largest: of the op's result, and of a sum of two where there is one.
    op, count = OPS[name]
    got = WAYS["func.jvp"](lambda *xs: op(sk, *xs), images(count, dtype))
    truth = WAYS["func.jvp"](lambda *xs: op(sk.reference, *xs), [x.double() for x in images(count, dtype)])
    half = len(got) // 2
    for value, tangent, exact in zip(got[:half], got[half:], truth[half:], strict=True):
        assert tangent.dtype == value.dtype
        assert float((tangent.double() - exact).abs().max()) <= 2 * ROUNDING[dtype] * float(exact.abs().max())


def test_no_grad_within_a_transform_is_kept():
    # What a function computes under no_grad is a constant of every level around it, as for torch's own ops.
    def f(module):
        def g(x):
            with torch.no_grad():
                fixed = module.blur(x, 1.0)
            return (fixed * x).sum()

        return g

    x, v = images(1)[0], vectors(1)[0]
    for transform in (
        torch.func.grad,
        lambda h: torch.func.grad(lambda a: (torch.func.grad(h)(a) * v).sum()),
        lambda h: lambda a: torch.func.jvp(torch.func.grad(h), (a,), (v,))[1],
    ):
        assert_equal_to_the_truth([transform(f(sk))(x)], [transform(f(sk.reference))(x).double()])


@pytest.mark.parametrize("name", OPS)
def test_forward_over_forward(backend, name):
    # A tangent that depends on the image, so that linear ops have a second derivative, too; three levels.
    op, count = OPS[name]

    def twice(module, xs, vs):
        f = lambda *x: torch.func.jvp(lambda *a: op(module, *a), x, tuple(a * a for a in x))[1]  # noqa: E731
        g = lambda *x: torch.func.jvp(f, x, tuple(a * a for a in x))[1]  # noqa: E731
        return [*listed(torch.func.jvp(f, xs, vs)[1]), *listed(torch.func.jvp(g, xs, vs)[1])]

    truth = twice(sk.reference, tuple(images(count, torch.float64)), tuple(vectors(count, torch.float64)))
    assert_equal_to_the_truth(twice(sk, tuple(images(count)), tuple(vectors(count))), truth)
    hessian = torch.func.jacfwd(torch.func.jacfwd(lambda *x: scalar(op(sk, *x))))(*images(count))
    exact = torch.func.hessian(lambda *x: scalar(op(sk.reference, *x)))(*images(count, torch.float64))
    assert_equal_to_the_truth([hessian], [exact])


@pytest.mark.parametrize("name", OPS)
def test_linearized(backend, name):
    # make_fx within a level of forward_ad: where the eager backend looks at its coefficients below autograd.
    op, count = OPS[name]
    _, push = torch.func.linearize(lambda *xs: op(sk, *xs), *images(count))
    xs, vs = images(count, torch.float64), vectors(count, torch.float64)
    _, truth = torch.func.jvp(lambda *xs: op(sk.reference, *xs), tuple(xs), tuple(vs))
    assert_equal_to_the_truth(listed(push(*vectors(count))), listed(truth))


@pytest.mark.parametrize("name", OPS)
def test_vmap_over_nothing(backend, name):
    # No slice and no image: empty, of the shape that a stack of the results would have.
    op, count = OPS[name]
    for slices, batch in ((0, 2), (3, 0), (0, 0)):
        if batch == 0 and name not in ("dct2", "idct2"):
            continue  # the coefficients of these functions are of two images
        xs = [torch.zeros(slices, batch, *x.shape[1:]) for x in images(count)]
        for r, one in zip(
            listed(torch.func.vmap(lambda *x: op(sk, *x))(*xs)), listed(op(sk, *images(count))), strict=True
        ):
            assert r.shape == (slices, *((batch, *one.shape[1:]) if one.dim() else ()))


def test_numbers_below_vmap_are_looked_at():
    # Each of these was taken for another number: a draw by its lowest 32 bits, a time as 1.
    corruption = BlurCorruption.paper((3, 4))
    x = images(1)[0]
    vmap = torch.func.vmap
    with pytest.raises(ValueError, match=r"draw in \[0, 4294967296\), got 4294967296"):
        vmap(lambda d: sk.normal((2, 3), sk.NoiseKey(1, 0, d)))(torch.tensor([1, 2**32]))
    with pytest.raises(ValueError, match=r"t as finite numbers of at least 0 and at most 1, got 7\.0"):
        vmap(vmap(lambda t: corruption.corrupt(x, t, key=sk.NoiseKey(1))))(torch.tensor([[0.5], [7.0]]))
    with pytest.raises(ValueError, match=r"at most 1, got 7\.0"):
        torch.func.grad(lambda a: vmap(lambda t: corruption.corrupt(a, t))(torch.tensor([7.0])).sum())(x)


def test_vmap_over_no_streams(backend):
    none = torch.func.vmap(lambda s: sk.normal((2, 3), sk.NoiseKey(1, s)))(torch.zeros(0, dtype=torch.int64))
    assert none.shape == (0, 2, 3)


@pytest.mark.parametrize("name", OPS)
def test_forward_mode_of_several_tangents_at_once(backend, name):
    # torch.autograd.functional's own way, whose batched tensors are not torch.func's.
    op, count = OPS[name]
    jacobian = torch.autograd.functional.jacobian
    exact = jacobian(lambda *x: op(sk.reference, *x), tuple(images(count, torch.float64)))
    got = jacobian(lambda *x: op(sk, *x), tuple(images(count)), vectorize=True, strategy="forward-mode")
    flat = torch.utils._pytree.tree_leaves
    assert_equal_to_the_truth(flat(got), flat(exact))


@pytest.mark.parametrize("name", OPS)
def test_backward_that_torch_compiles(backend, name):
    # Compiled autograd: a forward pass that nobody compiled, a backward pass traced from the rules.
    from torch._dynamo import compiled_autograd

    op, count = OPS[name]
    torch._dynamo.reset()
    compiler = lambda graph: torch.compile(graph, backend="eager", fullgraph=True)  # noqa: E731
    leaves = [x.requires_grad_() for x in images(count)]
    total = scalar(op(sk, *leaves))
    with compiled_autograd._enable(compiler):
        total.backward()
    truth = WAYS["backward"](lambda *xs: op(sk.reference, *xs), images(count, torch.float64))
    assert_equal_to_the_truth([x.grad for x in leaves], truth)


def test_coefficients_of_a_known_size_in_a_graph_of_unknown_ones():
    # A module's buffers have fixed sizes where the images' are symbols: they are compared, not looked up.
    class Buffers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = torch.nn.Buffer(MASKS[1].clone())
            self.std, self.stream = torch.nn.Buffer(STD.clone()), torch.nn.Buffer(torch.tensor([4, 9]))

        def forward(self, x):
            x = sk.spectral_mix([x], [self.mask], noise_mask=torch.ones(3, 1), key=sk.NoiseKey(1))
            return sk.corrupt(x, self.std, 0.2, key=sk.NoiseKey(1, self.stream))

    torch._dynamo.reset()
    module, x = Buffers(), images(1)[0]
    graph = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    assert torch.equal(graph(x), module(x))


def table() -> str:
    """What the tests above show, as the docs have it."""
    names = list(OPS)
    rows = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    ways = [*WAYS, *(f"torch.compile of {way}" for way in COMPILED)]
    rows += [f"| {way} | {' | '.join(['right'] * len(names))} |" for way in ways]
    rows += [f"| out= of a step, {way} | {' | '.join(out_entry(n) for n in names)} |" for way in OUT_WAYS]
    return "\n".join(rows)


def out_entry(name: str) -> str:
    return "refused" if name.endswith("_step") else ""


BEGIN, END = "<!-- table: written by tests/core/test_derivatives.py -->", "<!-- end of table -->"


def test_the_table_in_the_docs_is_that_of_the_tests():
    # The docs claim what is run here, no more and no less.
    assert table() in TABLE.read_text().split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    before, _, rest = TABLE.read_text().partition(BEGIN)
    TABLE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}")
