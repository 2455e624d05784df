# SPDX-License-Identifier: Apache-2.0
"""The op `identity`, which does nothing: the template of a new op, from Python to each backend's kernel.

template: copy this file for a new op. Its values are the twin's, by `checks.check`, instead of bit for bit.
"""

from __future__ import annotations

import pytest
import torch
from checks import BACKENDS, picture, poisoned
from torch.library import opcheck

import softdiff_kernels as sk
from softdiff_kernels.backends import triton
from softdiff_kernels.functional import identity

SHAPES = [(2, 3, 10, 14), (1, 1, 1, 1), (3, 1, 33, 7), (1, 2, 70, 130)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "sliced": lambda x: torch.nn.functional.pad(x, (1, 2, 3, 1), value=float("nan"))[:, :, 3:-1, 1:-2],
    "expanded": lambda x: x[:1, :1].expand(x.shape),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    torch._dynamo.reset()
    with sk.use_backend(request.param), poisoned():
        yield request.param


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_bit_is_copied_into_the_layout_that_is_promised(backend, shape, dtype, layout):
    x = LAYOUTS[layout](picture(*shape, dtype=dtype))
    y = identity(x)
    assert torch.equal(y, x) and torch.equal(sk.reference.identity(x), x)
    assert y.dtype == dtype and y.stride() == torch.empty_like(x).stride()
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number_is_kept(backend, dtype):
    # Zeros of both signs, infinities, NaN; subnormal float16 (Triton's interpreter loses subnormal bfloat16).
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 2, 128, 256)
    x = torch.where(x.abs() < torch.finfo(dtype).tiny, 0 * x, x) if dtype == torch.bfloat16 else x
    y = identity(x)
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y.nan_to_num(0.5).view(torch.int16), x.nan_to_num(0.5).view(torch.int16))


def test_an_empty_batch(backend):
    for shape in ((0, 3, 8, 8), (2, 0, 8, 8)):
        assert identity(torch.empty(shape)).shape == shape


def test_bad_arguments_are_refused():
    for bad, error in ((torch.zeros(3, 8, 8), ValueError), (torch.zeros(1, 1, 8, 8).int(), TypeError)):
        with pytest.raises(error, match="identity: expected x as"):
            identity(bad)
    with pytest.raises(ValueError, match="softdiff::identity: expected images of one shape"):
        torch.ops.softdiff.identity(torch.zeros(3, 8, 8, 1, 1))


def test_opcheck(backend):
    x = picture(2, 3, 9, 10)
    for image in (x, x.bfloat16().mT, x.clone().requires_grad_()):
        opcheck(torch.ops.softdiff.identity.default, (image,))


def test_derivatives(backend):
    x, v = picture(2, 1, 5, 6), picture(2, 1, 5, 6, seed=1)
    image = x.clone().requires_grad_()
    (first,) = torch.autograd.grad((identity(image) + v).square().sum(), image, create_graph=True)
    assert torch.equal(first, 2 * (x + v))
    (second,) = torch.autograd.grad((first * v).sum(), image)
    assert torch.equal(second, 2 * v)
    value, tangent = torch.func.jvp(identity, (x,), (v,))
    assert torch.equal(value, x) and torch.equal(tangent, v)
    assert torch.autograd.gradcheck(identity, x.double().requires_grad_(), check_forward_ad=True)


@pytest.mark.parametrize("dim", [0, 2, 4])
def test_vmap(backend, dim):
    x = torch.stack([picture(2, 3, 6, 5, seed=s) for s in range(4)], dim=dim)
    assert torch.equal(torch.vmap(identity, in_dims=dim, out_dims=dim)(x), x)
    gradient = torch.vmap(torch.func.grad(lambda i: identity(i).square().sum()), in_dims=dim, out_dims=dim)
    assert torch.equal(gradient(x), 2 * x)


def test_a_compiled_graph(backend):
    def step(x):
        return identity(2 * x) + 1

    x = picture(2, 3, 9, 10).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = torch.compile(step, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(y, step(x)) and y.stride() == step(x).stride()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 2))


@pytest.mark.skipif(triton.interpreted(), reason="nothing is compiled where Triton interprets")
@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
def test_the_triton_kernel_compiles_without_spills(architecture):
    pytest.importorskip("triton")
    from softdiff_kernels.backends.triton import ops
    from softdiff_kernels.backends.triton.launch import recording
    from softdiff_kernels.backends.triton.tools import aot

    with recording() as launches:
        ops.identity(picture(2, 3, 64, 64))
        ops.identity(picture(2, 3, 33, 70, dtype=torch.bfloat16).mT)
    for one in launches:
        code = aot.compile_for(one.kernel, one.kinds, one.constants, architecture, one.warps)
        assert aot.resources(code).stack == 0
