# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: every replay draws new noise, and the noise that its key names."""

from __future__ import annotations

import pytest
import torch
from on_gpu import DEVICE, OPS, call, captured, image, marks, name_of, on, sizes, stream, synchronize

import softdiff_kernels as sk

pytestmark = marks

# One tile; planes of several, in a batch too small for one launch and in one large enough.
SHAPES = sizes([(2, 3, 64, 64), (2, 3, 128, 128), (60, 3, 128, 128)], [(2, 1, 8, 8), (1, 1, 66, 70)])
CASES = pytest.mark.parametrize("shape", SHAPES, ids=name_of)
NOISY = ["corrupt", "reverse_step", "momentum_step", "spectral_mix", "normal"]


@pytest.mark.parametrize("op", NOISY)
@CASES
def test_a_draw_that_counts_inside_the_graph(backend, shape, op):
    # The graph adds one to the draw, so that replay i is the eager call with draw i, bit for bit.
    x, y = image(*shape), image(*shape, seed=1)
    draw = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    key = sk.NoiseKey(5, 2**35, draw)

    def step():
        draw.add_(1)
        return call(op, x, y, key=key)

    with sk.use_backend(backend):
        replay, result = captured(step)
        for start in (0, 2**32 - 3):
            draw.fill_(start)
            for i in range(1, 3):
                replay()
                synchronize()
                assert torch.equal(result, call(op, x, y, key=sk.NoiseKey(5, 2**35, start + i)))


@pytest.mark.parametrize("op", NOISY[:-1])
@CASES
def test_without_a_key_each_replay_draws_anew(backend, shape, op):
    # The key comes from torch's generator, which graphs advance: two replays differ, and setting the seed
    # gives the same two again.
    x, y = image(*shape), image(*shape, seed=1)

    def results():
        torch.manual_seed(3)
        for _ in range(2):
            replay()
            synchronize()
            yield result.clone()

    with sk.use_backend(backend):
        replay, result = captured(lambda: call(op, x, y))
        first, again = list(results()), list(results())
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("op", OPS)
@CASES
def test_replays_read_what_is_there_then(backend, shape, op):
    # Images and coefficients are read at the replay, not kept from the capture.
    x, y, std, level = image(*shape), image(*shape, seed=1), on([1.5]), on([0.25])
    key = sk.NoiseKey(4)
    with sk.use_backend(backend):
        replay, result = captured(lambda: call(op, x, y, key=key, std=std, level=level))
        x.copy_(image(*shape, seed=7))
        y.mul_(0.5)
        std.fill_(3.0)
        level.fill_(0.5)
        replay()
        synchronize()
        assert torch.equal(result, call(op, x, y, key=key, std=std, level=level))


@pytest.mark.parametrize("side", sizes([40, 200], [8]))
def test_a_graph_outlives_what_the_caches_drop(backend, side):
    # Its kernel and its tables stay, while all else is dropped and the memory is written to by others.
    x = image(2, 3, side, side + 4)
    with sk.use_backend(backend):
        expected = sk.dct2(x)
        replay, result = captured(lambda: sk.dct2(x))
        sk.dct2(image(2, 3, side + 1, side + 2))
        bound = sk.cache_info().limit
        sk.set_cache_limit(0)
        try:
            assert sum(sk.cache_info().held.values()) == 0
            written = []
            for _ in range(64):  # twice the streams that torch has
                with stream():
                    written += [
                        torch.full((n,), float("nan"), device=DEVICE) for n in (256, 1 << 16, 1 << 18)
                    ]
            synchronize()
            result.fill_(float("nan"))
            replay()
            synchronize()
            assert torch.equal(result, expected)
            assert torch.equal(sk.dct2(x), expected)
        finally:
            sk.set_cache_limit(bound)


def test_a_warm_up_is_enough_before_a_capture(backend):
    # A shape that no other test has; its kernel is launched for the first time inside the graph.
    if backend != "triton":
        pytest.skip("only Triton compiles at first use")
    shape = sizes([(2, 3, 52, 44)], [(2, 1, 8, 6)])[0]
    x = image(*shape)
    with sk.use_backend(backend):
        sk.warm_up(shape, ops="dct2", device=DEVICE)
        replay, result = captured(lambda: sk.dct2(x), warm=0)
        replay()
        synchronize()
        assert torch.equal(result, sk.dct2(x))


def test_a_training_step_in_a_graph(backend):
    # Corrupt, a network, the loss and its backward pass: the gradient in the graph is the eager one, whose
    # sums atomic additions may order anew.
    shape = sizes([(8, 3, 64, 64)], [(2, 3, 8, 8)])[0]
    x0, layer = image(*shape), torch.nn.Conv2d(3, 3, 3, padding=1).to(DEVICE)
    std, level = on(torch.linspace(0.5, 3, shape[0])), on(torch.linspace(0.1, 0.3, shape[0]))
    key = sk.NoiseKey(1, 2, torch.zeros(1, dtype=torch.int64, device=DEVICE))

    def step():
        layer.zero_grad(set_to_none=False)
        x_t, residual = sk.corrupt(x0, std, level, key=key, return_residual=True)
        loss = sk.soft_score_loss(layer(x_t), residual, std, weight=1 / level**2)
        loss.backward()
        return loss.detach()

    with sk.use_backend(backend):
        eager = step()
        gradient = layer.weight.grad.clone()
        replay, result = captured(step)
        layer.weight.grad.zero_()
        replay()
        synchronize()
    assert float((result - eager).abs()) <= 1e-5 * float(eager.abs())
    assert float((layer.weight.grad - gradient).norm()) <= 1e-4 * float(gradient.norm())
