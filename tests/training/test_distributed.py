# SPDX-License-Identifier: Apache-2.0
"""Two processes over gloo: the noise of a split batch, and DDP's gradients, are those of one process."""

from __future__ import annotations

import gloo
import pytest
import torch
from checks import picture
from gloo import WORLD

import softdiff_kernels as sk

pytestmark = gloo.needs_gloo

BATCH = 6
SHAPE = (BATCH, 3, 12, 10)
STREAM = 2**40  # the first image's number
STD = torch.linspace(0.5, 4.0, BATCH)


def network() -> torch.nn.Module:
    torch.manual_seed(11)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3, padding=1)
    )


def training_step(model, part: slice):
    """Loss and corrupted images of a part of the batch, named by its images' streams."""
    x0 = picture(*SHAPE)[part]
    key = sk.NoiseKey(2**63 + 3, STREAM + part.start, 4)
    x_t, residual = sk.corrupt(x0, STD[part], 0.1, key=key, return_residual=True)
    loss = sk.soft_score_loss(model(x_t), residual, STD[part], weight=1 / STD[part])
    return loss, x_t


def work(rank: int) -> dict:
    model = torch.nn.parallel.DistributedDataParallel(network())
    part = slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
    loss, x_t = training_step(model, part)
    loss.backward()
    return {"x_t": x_t.detach(), "gradients": [p.grad for p in model.parameters()]}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes computed."""
    return gloo.run(work, tmp_path_factory.mktemp("ranks"))


def test_the_noise_of_a_split_batch_is_that_of_the_whole(ranks):
    # Each rank names its images by the global stream numbers: bit for bit the one-process images.
    if sk.backends()["native"].usable:
        _, whole = training_step(network(), slice(0, BATCH))
        assert torch.equal(torch.cat([r["x_t"] for r in ranks]), whole)
    # On any backend, the noise alone.
    whole = sk.reference.normal(SHAPE, sk.NoiseKey(2**63 + 3, STREAM, 4))
    parts = [sk.reference.normal((3, *SHAPE[1:]), sk.NoiseKey(2**63 + 3, STREAM + i, 4)) for i in (0, 3)]
    assert torch.equal(torch.cat(parts), whole)


def test_ranks_draw_different_noise(ranks):
    # The check that the parts are not the same images twice.
    clean = sk.blur(picture(*SHAPE), STD)
    noises = [(r["x_t"] - clean[i * 3 : i * 3 + 3]).flatten() / 0.1 for i, r in enumerate(ranks)]
    correlation = float((noises[0] * noises[1]).mean())
    assert abs(correlation) < 5 / noises[0].numel() ** 0.5
    assert float(noises[0].std()) == pytest.approx(1.0, abs=0.1)


def test_gradients_under_ddp_are_those_of_one_process(ranks):
    # DDP averages the ranks' gradients; the mean over the batch is the mean of the halves' means: the same to
    # the rounding of a sum of two, some 1e-6 of its size.
    model = network()
    training_step(model, slice(0, BATCH))[0].backward()
    for rank in ranks:
        for got, parameter in zip(rank["gradients"], model.parameters(), strict=True):
            assert float((got - parameter.grad).norm() / parameter.grad.norm()) < 1e-5
    for one, other in zip(ranks[0]["gradients"], ranks[1]["gradients"], strict=True):
        assert torch.equal(one, other)
