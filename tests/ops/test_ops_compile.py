# SPDX-License-Identifier: Apache-2.0
"""torch.library.opcheck of every op, and torch.compile(fullgraph=True) forward and backward.

Most graphs run under backend="aot_eager": it traces, functionalises and partitions as inductor does, and
needs no C++ compiler. One training step goes through inductor where there is one.
"""

from __future__ import annotations

import pytest
import torch
from checks import BACKENDS, needs_compiler, picture
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import softdiff_kernels as sk

KEY = sk.NoiseKey(3, 5, 1)
STD = torch.tensor([0.5, 2.0])
MASK = torch.linspace(0, 1, 10)


@pytest.fixture(params=BACKENDS)
def backend(request):
    torch._dynamo.reset()
    with sk.use_backend(request.param):
        yield request.param
    torch._dynamo.reset()


def images(count=3, dtype=torch.float32):
    return [picture(2, 3, 9, 10, seed=s, dtype=dtype) for s in range(count)]


X, Y, Z = images()
C1, C2 = STD.double(), torch.full((1,), 0.5, dtype=torch.float64)
INTS, ROWS = [3, 5, 1], torch.tensor([[3, 5, 1]])
ops = torch.ops.softdiff
SAMPLES = {
    "dct2": [(X, False), (X.contiguous(memory_format=torch.channels_last), True), (X.bfloat16().mT, False)],
    "blur": [(X, STD, None, 0.0), (X.half(), C2, STD, 0.1)],
    "corrupt": [
        (X, STD, C2, None, 0.0, INTS, None, None, True),
        (X, STD, C2, STD, 0.1, [], ROWS, None, False),
        (X, STD, C2, None, 0.0, [], None, Y, True),
        ((X * 100).to(torch.uint8), STD, C2, None, 0.0, INTS, None, None, True),
    ],
    "step": [
        (X, Y, 2 * STD, STD, C1, C2, "given", 0.1, INTS, None, None),
        (X, Y, 2 * STD, STD, C1, C2 * 0, "large", 0.1, [], ROWS, None),
        (None, Y, 2 * STD, STD, C1, C2, "given", 0.0, [], None, None),
    ],
    "step_out": [
        (X, Y, 2 * STD, STD, C1, C2, "given", 0.0, INTS, None, None, torch.zeros_like(X)),
        (X, Y, 2 * STD, STD, C1, C2 * 0, "small", 0.0, [], None, Z, torch.zeros_like(X)),
    ],
    "soft_score_loss": [(X, Y, STD, None, 0.0, "mean"), (X, Y.bfloat16(), STD, STD, 0.1, "none")],
    "soft_score_loss_and_gradient": [(X, Y, STD, None, 0.0, "sum"), (X, Y.bfloat16(), STD, STD, 0.1, "none")],
    "spectral_loss": [(X, Y, MASK, None, "mean"), (X, Y.bfloat16(), MASK.double(), STD, "none")],
    "spectral_loss_and_gradient": [(X, Y, MASK, None, "sum"), (X, Y.bfloat16(), X[:, :1], STD, "none")],
    "spectral_mix": [
        ([X, Y], [MASK, MASK.square()], MASK, INTS, None, None),
        ([X], [MASK], MASK, [], None, Z),
        ([X], [MASK], None, [], None, None),
    ],
    "spectral_mix_out": [
        ([X, Y], [MASK, MASK], MASK, INTS, None, None, torch.zeros_like(X)),
        ([X], [MASK], MASK, [], None, Z, torch.zeros_like(X)),
    ],
    "identity": [(X,)],
    "normal": [([2, 3, 5], INTS, None, torch.float32, torch.device("cpu"))],
}


def test_every_registered_op_is_checked():
    names = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("softdiff::")
    }
    assert names == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(backend, name):
    # Schema (nothing is mutated or aliased that is not declared), fake tensors (shape, dtype, strides), and
    # tracing with dynamic shapes, as torch checks them.
    for sample in SAMPLES[name]:
        opcheck(getattr(ops, name).default, sample)


def momentum(x, y, n):
    return sk.momentum_step(
        x, y, blur_std_t=2 * STD, blur_std_s=STD, noise_std_t=0.2, noise_std_s=0.1, floor=0.1, noise=n
    )


# Every public op as a function of images.
FUNCTIONS = {
    "dct2": lambda x, y, n: sk.dct2(x),
    "idct2": lambda x, y, n: sk.idct2(x),
    "blur": lambda x, y, n: sk.blur(x, STD, floor=0.1, scale=0.5),
    "corrupt": lambda x, y, n: sk.corrupt(x, STD, 0.1, key=KEY, return_residual=True),
    "corrupt by noise": lambda x, y, n: sk.corrupt(x, 1.5, STD, noise=n),
    "reverse_step": lambda x, y, n: sk.reverse_step(
        x, y, blur_std_t=2 * STD, blur_std_s=STD, a=0.5, b=0.1, noise=n
    ),
    "momentum_step": momentum,
    "soft_score_loss": lambda x, y, n: sk.soft_score_loss(x, y, STD, weight=STD),
    "soft_score_loss none": lambda x, y, n: sk.soft_score_loss(x, y, STD, reduction="none"),
    "spectral_loss": lambda x, y, n: sk.spectral_loss(x, y, MASK, weight=STD),
    "spectral_mix": lambda x, y, n: sk.spectral_mix([x, y], [MASK, MASK], noise_mask=MASK, key=KEY),
    "spectral_mix by noise": lambda x, y, n: sk.spectral_mix([x, y], [MASK, MASK], noise_mask=MASK, noise=n),
    "normal": lambda x, y, n: x * sk.normal(x.shape, KEY),
}


def outputs(function, arguments, gradients):
    arguments = [a.clone().requires_grad_(gradients) for a in arguments]
    result = function(*arguments)
    results = result if isinstance(result, tuple) else (result,)
    if not gradients:
        return list(results)
    total = sum((r * torch.linspace(0.5, 1, r.shape[-1] if r.dim() else 1)).sum() for r in results)
    total.backward()
    return [*(r.detach() for r in results), *(a.grad for a in arguments if a.grad is not None)]


@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_is_eager(backend, name, gradients):
    # One graph, and the same ops in it: the results and the gradients are the eager ones, bit for bit on one
    # op; gradients may be summed in another order, so two roundings there.
    compiled = torch.compile(FUNCTIONS[name], backend="aot_eager", fullgraph=True)
    expected = outputs(FUNCTIONS[name], images(), gradients)
    got = outputs(compiled, images(), gradients)
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert float((one - other).abs().max()) <= 2.0**-22 * float(other.abs().max())


def test_one_tensor_in_two_places(backend):
    # The same image or coefficient given twice is two arguments to the op, inside a graph too.
    calls = [
        lambda x: sk.soft_score_loss(x, Y, STD, weight=STD, reduction="none"),
        lambda x: sk.corrupt(x, STD, STD, scale=STD, noise=x),
        lambda x: sk.reverse_step(x, x, blur_std_t=STD, blur_std_s=STD, a=STD, b=STD, noise=x),
        lambda x: sk.spectral_loss(x, Y, X, weight=STD, reduction="none"),
        lambda x: sk.spectral_mix([x, x], [MASK, MASK], noise_mask=MASK, noise=x),
    ]
    for call in calls:
        expected = outputs(call, [X], True)
        got = outputs(torch.compile(call, backend="aot_eager", fullgraph=True), [X], True)
        for one, other in zip(got, expected, strict=True):
            assert float((one - other).abs().max()) <= 2.0**-22 * float(other.abs().max())


@pytest.mark.parametrize("step", ["reverse_step", "momentum_step", "spectral_mix"])
def test_out_inside_a_compiled_loop(backend, step):
    # out= is a declared mutation, so functionalisation keeps it: x is written in place, step by step.
    rest = {"a": 0.5, "b": 0.1} if step == "reverse_step" else {"noise_std_t": 0.2, "noise_std_s": 0.1}

    def loop(x, y):
        for draw in range(3):
            last = {"key": KEY.at(draw), "out": x}
            if step == "spectral_mix":
                sk.spectral_mix([x, y], [MASK, MASK], noise_mask=MASK, **last)
            else:
                getattr(sk, step)(x, y, blur_std_t=2.0, blur_std_s=1.0, **rest, **last)
        return x * 2

    x, y, _ = images()
    with torch.no_grad():
        expected = loop(x.clone(), y)
        given = x.clone()
        got = torch.compile(loop, backend="aot_eager", fullgraph=True)(given, y)
    assert torch.equal(got, expected)
    assert torch.equal(given * 2, expected)


@needs_compiler
def test_out_through_inductor_with_gradients_enabled():
    # Where out= is looked at by autograd, the op must add no node of its own to what inductor traces.
    def call(x, y, out):
        return sk.reverse_step(x, y, blur_std_t=2.0, blur_std_s=1.0, a=0.5, b=0.0, out=out)

    x, y, _ = (image.detach() for image in images())
    out = torch.zeros_like(x)
    torch._dynamo.reset()
    got = torch.compile(call, fullgraph=True)(x, y, out)
    expected = call(x, y, torch.zeros_like(x))
    assert torch.equal(got, expected) and torch.equal(out, expected)


def test_a_draw_number_for_every_step_compiles_twice_at_most(backend):
    # The step's index is a dynamic integer: one graph for the first value, one for all others.
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def step(x, y, draw):
        key = sk.NoiseKey(7, 0, draw)
        return sk.momentum_step(
            x, y, blur_std_t=2.0, blur_std_s=1.0, noise_std_t=0.2, noise_std_s=0.1, key=key
        )

    x, y, _ = images()
    for draw in range(2, 12):
        expected = sk.momentum_step(
            x,
            y,
            blur_std_t=2.0,
            blur_std_s=1.0,
            noise_std_t=0.2,
            noise_std_s=0.1,
            key=sk.NoiseKey(7, 0, draw),
        )
        assert torch.equal(step(x, y, draw), expected)
    assert counter.frame_count <= 2


def test_keys_and_coefficients_in_tensors_compile_once(backend):
    # Tensors are data: draws, streams and coefficients change from step to step within one graph.
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def step(x, std, stream, draw):
        return sk.corrupt(x, std, 0.1, key=sk.NoiseKey(7, stream, draw))

    x = images()[0]
    for i in range(5):
        std, stream, draw = STD * (i + 1), torch.tensor([i, 2 * i]), torch.tensor([i])
        expected = sk.corrupt(x, std, 0.1, key=sk.NoiseKey(7, stream, draw))
        assert torch.equal(step(x, std, stream, draw), expected)
    assert counter.frame_count == 1


def test_batches_of_any_size_compile_twice_at_most(backend):
    # A last, smaller batch makes the size dynamic once; no further sizes recompile.
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def loss(x, y, std):
        return sk.soft_score_loss(x, y, std, weight=1 / std, reduction="none")

    for batch in (6, 5, 4, 3, 7):
        x, y = picture(batch, 1, 8, 8), picture(batch, 1, 8, 8, seed=1)
        std = torch.linspace(0.5, 2, batch)
        expected = sk.soft_score_loss(x, y, std, weight=1 / std, reduction="none")
        assert torch.equal(loss(x, y, std), expected)
    assert counter.frame_count <= 2


def test_a_fresh_key_inside_a_graph_draws_anew_and_follows_the_seed(backend):
    compiled = torch.compile(lambda x: sk.corrupt(x, 1.0, 0.5), backend="aot_eager", fullgraph=True)
    x = images()[0]
    torch.manual_seed(3)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(compiled(x), first)


def test_bad_values_are_found_inside_a_graph(backend):
    # Values in tensors are unknown while tracing: they are checked where they are read, when the graph runs.
    compiled = torch.compile(lambda x, std: sk.blur(x, std), backend="aot_eager", fullgraph=True)
    x = images()[0]
    compiled(x, STD)
    with pytest.raises(ValueError, match=r"blur_std as finite numbers of at least 0, got -1\.0 for sample 1"):
        compiled(x, torch.tensor([1.0, -1.0]))


def test_autocast_inside_a_graph(backend):
    def step(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return sk.blur(x, 1.5)

    x = images()[0]
    got = torch.compile(step, backend="aot_eager", fullgraph=True)(x)
    assert got.dtype == torch.float32
    assert torch.equal(got, sk.blur(x, 1.5))


@needs_compiler
def test_a_training_step_under_inductor():
    # A network between corrupt and the loss, compiled for real: loss and weight gradients as in eager mode,
    # to the rounding of a reordered sum.
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 3, 3, padding=1)
    x0, std = images()[0], STD

    def step(x0, std, draw):
        x_t, residual = sk.corrupt(x0, std, 0.1, key=sk.NoiseKey(7, 0, draw), return_residual=True)
        return sk.soft_score_loss(network(x_t), residual, std, weight=1 / std)

    compiled = torch.compile(step, fullgraph=True)
    for draw in (2, 3):
        values, gradients = [], []
        for function in (step, compiled):
            network.zero_grad()
            loss = function(x0, std, draw)
            loss.backward()
            values.append(loss.item())
            gradients.append(network.weight.grad.clone())
        assert values[1] == pytest.approx(values[0], rel=1e-5)
        assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 1e-5
