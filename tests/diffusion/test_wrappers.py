# SPDX-License-Identifier: Apache-2.0
"""Training under DDP, FSDP2 and accelerate: the gradients of one process, or a sentence."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
import torch.distributed as dist
from gloo import WORLD
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from softdiff_kernels import NoiseKey
from softdiff_kernels.diffusion import BlurCorruption, SoftDenoiser, TrainingLoss

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "distributed.md").read_text()
SETUP, *BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
BATCH, STEPS = 6, 2
EACH = BATCH // WORLD
# Few nodes: torch.compile traces every one.
C = BlurCorruption.from_tables((12, 10), [0.0, 0.25, 1.0], [0.01, 1.0, 4.0], [0.01, 0.1, 0.1])
# Torch 2.6 shards on GPUs alone: it takes a method of streams that those of the CPU got later.
SHARDS = hasattr(torch.cpu.Stream, "record_event")
needs_sharding = pytest.mark.skipif(not SHARDS, reason="this torch shards on GPUs alone")
ACCELERATE = importlib.util.find_spec("accelerate") is not None
needs_accelerate = pytest.mark.skipif(not ACCELERATE, reason="accelerate is not installed")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.last(nn.functional.silu(self.first(x) + t.view(-1, 1, 1, 1).to(x.dtype)))
        return out


class Owner(nn.Module):
    """A module of the user's own, that calls the loss in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser = SoftDenoiser(Net(), C)

    def forward(self, *args: Any, **kw: Any) -> Tensor:
        return self.denoiser.loss(*args, **kw)


def images(step: int = 0) -> Tensor:
    return torch.rand(BATCH, 3, 12, 10, generator=torch.Generator().manual_seed(step)) * 2 - 1


def new_loss() -> TrainingLoss:
    return TrainingLoss(SoftDenoiser(Net(), C))


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def gradients(module: nn.Module) -> list[Tensor]:
    return [whole(p.grad) for p in module.parameters() if p.grad is not None]


class Rank:
    """What one of the processes does; each method gives gradients, or what was said."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.images = slice(rank * EACH, (rank + 1) * EACH)

    def call(self, loss: Callable[..., Tensor], part: slice = slice(None)) -> Tensor:
        """The loss of (a part of) this process's images."""
        numbers = range(BATCH)[self.images][part]
        return loss(images()[numbers.start : numbers.stop], key=NoiseKey(5, numbers.start), reduction="mean")

    def step(self, module: nn.Module, loss: Callable[..., Tensor] | None = None) -> list[Tensor]:
        self.call(loss or module).backward()
        return gradients(module)

    def refused(self, loss: Callable[..., Tensor]) -> str:
        try:
            self.call(loss)
        except RuntimeError as error:
            return str(error)
        return "nothing"

    def ddp(self) -> dict[str, Any]:
        results: dict[str, Any] = {"loss": self.step(DistributedDataParallel(new_loss()))}
        accumulated = DistributedDataParallel(new_loss())
        with accumulated.no_sync():
            (self.call(accumulated, slice(0, 1)) / EACH).backward()
        (self.call(accumulated, slice(1, EACH)) * ((EACH - 1) / EACH)).backward()
        results["accumulated"] = gradients(accumulated)
        results["owner"] = self.step(DistributedDataParallel(Owner()))
        inner = SoftDenoiser(DistributedDataParallel(Net()), C)
        results["network"] = self.step(inner, inner.loss)
        results["compiled"] = self.step(torch.compile(DistributedDataParallel(new_loss()), backend="eager"))
        network = torch.compile(Net(), backend="aot_eager")
        results["compiled network"] = self.step(
            DistributedDataParallel(TrainingLoss(SoftDenoiser(network, C)))
        )

        ddp = DistributedDataParallel(SoftDenoiser(Net(), C))
        under = DistributedDataParallel(new_loss())
        results["refused"] = {
            "module": self.refused(ddp.module.loss),
            "under a loss": self.refused(under.module.denoiser.loss),
        }
        with torch.no_grad():
            value = self.call(ddp.module.loss)
        with ddp.no_sync():
            free = self.step(ddp.module, ddp.module.loss)
        frozen = SoftDenoiser(Net(), C)
        both = nn.ModuleDict({"teacher": frozen.requires_grad_(False), "student": Net()})
        kept = DistributedDataParallel(both)
        teacher = self.call(kept.module["teacher"].loss)
        denoiser = copy.deepcopy(ddp.module)
        ddp.circle = ddp  # which garbage collection alone frees
        given_up = ddp.module
        del ddp
        results["allowed"] = [value, self.call(denoiser.loss), self.call(given_up.loss), teacher]
        results["own"] = free
        return results

    def fsdp(self) -> dict[str, Any]:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh("cpu", (WORLD,))
        results: dict[str, Any] = {"loss": self.step(fully_shard(new_loss(), mesh=mesh))}
        both = new_loss()
        fully_shard(both.denoiser.inner_model, mesh=mesh)
        results["network and loss"] = self.step(fully_shard(both, mesh=mesh))
        results["the denoiser then"] = both.denoiser(images(), 0.5).detach()
        inner = SoftDenoiser(fully_shard(Net(), mesh=mesh), C)
        results["network"] = self.step(inner, inner.loss)
        registered = fully_shard(SoftDenoiser(Net(), C), mesh=mesh)
        register_fsdp_forward_method(registered, "loss")
        results["registered"] = self.step(registered, registered.loss)
        half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        network = fully_shard(Net(), mesh=mesh, mp_policy=half)
        results["half"] = self.step(fully_shard(TrainingLoss(SoftDenoiser(network, C)), mesh=mesh))

        sharded = fully_shard(SoftDenoiser(Net(), C), mesh=mesh)
        refused = {"before a forward": self.refused(sharded.loss)}
        sharded(images(), 0.5)  # leaves the parameters whole
        refused["after a forward"] = self.refused(sharded.loss)
        under = fully_shard(new_loss(), mesh=mesh)
        refused["under a loss"] = self.refused(under.denoiser.loss)
        with torch.no_grad():
            refused["sharded"] = self.refused(under.denoiser.loss)
            refused["denoiser"] = self.refused(lambda x, **_: under.denoiser(x, 0.5))
            self.call(under)
        refused["under a loss that was called"] = self.refused(under.denoiser.loss)
        results["refused"] = refused
        return results

    def accelerate(self) -> dict[str, Any]:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=EACH)
        model = accelerator.prepare(new_loss())
        for i in range(EACH):
            with accelerator.accumulate(model):
                accelerator.backward(self.call(model, slice(i, i + 1)))
        results: dict[str, Any] = {"accumulated": gradients(model)}
        results["refused"] = {"unwrapped": self.refused(accelerator.unwrap_model(model).denoiser.loss)}
        return results

    def page(self, block: str) -> list[Tensor]:
        """The weights after a block of the page."""
        batches = [images(step)[self.images] for step in range(STEPS)]
        names = {"network": Net(), "corruption": C, "batches": batches}
        for code in (SETUP, block):
            exec(compile(code, "distributed.md", "exec"), names)
        return [whole(p.detach()) for p in names["network"].parameters()]


def work(rank: int) -> dict[str, Any]:
    this = Rank(rank)
    results = {"ddp": this.ddp(), "ddp page": this.page(BLOCKS[0])}
    if SHARDS:
        results.update({"fsdp": this.fsdp(), "fsdp page": this.page(BLOCKS[1])})
    if ACCELERATE:
        results.update({"accelerate": this.accelerate(), "accelerate page": this.page(BLOCKS[2])})
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return gloo.run(work, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def one_process() -> list[Tensor]:
    """The gradient of the whole batch."""
    loss = new_loss()
    loss(images(), key=NoiseKey(5), reduction="mean").backward()
    return gradients(loss)


def gap(results: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative distance of a tensor."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(results, expected, strict=True))


MARKS = {
    "ddp": gloo.needs_gloo,
    "fsdp": [*gloo.needs_gloo, needs_sharding],
    "accelerate": [*gloo.needs_gloo, needs_accelerate],
}
WAYS = {
    "ddp": ["loss", "accumulated", "owner", "network", "compiled", "compiled network"],
    "fsdp": ["loss", "network and loss", "network", "registered"],
    "accelerate": ["accumulated"],
}


def of(*wrappers: str) -> Any:
    return pytest.mark.parametrize("wrapper", [pytest.param(name, marks=MARKS[name]) for name in wrappers])


@pytest.mark.parametrize(
    ("wrapper", "way"),
    [pytest.param(name, way, marks=MARKS[name]) for name, ways in WAYS.items() for way in ways],
)
def test_gradients_are_those_of_one_process(wrapper: str, way: str, ranks: Any, one_process: Any) -> None:
    # Rule: each process has the gradient of the whole batch, to the rounding of float32 sums of some hundred
    # terms in another order.
    for rank in ranks:
        assert gap(rank[wrapper][way], one_process) < 1e-5


@pytest.mark.parametrize("rank", range(WORLD))
@of(*MARKS)
def test_a_loss_beside_its_wrapper_is_refused(wrapper: str, rank: int, ranks: Any) -> None:
    # Rule: where gradients would stay each process's own, or parameters are sharded, one sentence says what
    # to call.
    for case, said in ranks[rank][wrapper]["refused"].items():
        assert said.startswith("SoftDenoiser") and "TrainingLoss(denoiser)" in said, (case, said)


@pytest.mark.parametrize("rank", range(WORLD))
@of("ddp")
def test_what_is_right_beside_a_wrapper_is_taken(wrapper: str, rank: int, ranks: Any) -> None:
    # Rule: a loss without gradients, one in no_sync(), that of a copy, that of a denoiser whose wrapper is
    # gone, and that of a frozen denoiser are what they are alone.
    loss, this = new_loss(), Rank(rank)
    own = this.step(loss)
    results = ranks[rank][wrapper]
    expected = this.call(loss)
    for value in results["allowed"]:
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    assert gap(results["own"], own) < 1e-6


@of(*MARKS)
def test_the_page_trains_as_one_process(wrapper: str, ranks: Any) -> None:
    # Rule: the page's code, as it stands, moves the weights as one process with the whole batches does. Adam
    # divides by the gradient's size, so rounding in small ones weighs more: 1e-3 of the way.
    network = Net()
    start = [p.detach().clone() for p in network.parameters()]
    loss = TrainingLoss(SoftDenoiser(network, C))
    optimizer = torch.optim.Adam(loss.parameters(), lr=2e-4)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(images(step), key=NoiseKey(0, step * BATCH), reduction="mean").backward()
        optimizer.step()
    way = [p.detach() - p0 for p, p0 in zip(network.parameters(), start, strict=True)]
    for rank in ranks:
        results = [p - p0 for p, p0 in zip(rank[f"{wrapper} page"], start, strict=True)]
        assert gap(results, way) < 1e-3


@of("fsdp")
def test_a_sharded_network_may_work_in_bfloat16_and_samples(
    wrapper: str, ranks: Any, one_process: Any
) -> None:
    # Rule: bfloat16 weights and activations are off by 2^-8 of themselves, the gradient by a few times that;
    # a network that is sharded by itself gives the denoiser its answer as before.
    for rank in ranks:
        assert gap(rank[wrapper]["half"], one_process) < 0.05
        with torch.no_grad():
            alone = SoftDenoiser(Net(), C)(images(), 0.5)
        torch.testing.assert_close(rank[wrapper]["the denoiser then"], alone, rtol=1e-5, atol=1e-5)


def test_it_is_the_denoisers_loss() -> None:
    # Rule: every argument reaches `SoftDenoiser.loss`; parameters are the denoiser's, by name and identity.
    loss, x0 = new_loss(), images()
    noise = torch.randn_like(x0)
    for given in (
        {"key": NoiseKey(3)},
        {"noise": noise, "t": 0.25},
        {"key": NoiseKey(3), "reduction": "sum"},
    ):
        assert torch.equal(loss(x0, **given), loss.denoiser.loss(x0, **given))
    assert torch.equal(loss(x0, 0.5, key=NoiseKey(1)), loss.denoiser.loss(x0, 0.5, key=NoiseKey(1)))
    assert [f"denoiser.{name}" for name in loss.denoiser.state_dict()] == list(loss.state_dict())
    assert all(a is b for a, b in zip(loss.parameters(), loss.denoiser.parameters(), strict=True))
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(x0, key=NoiseKey(3)), loss(x0, key=NoiseKey(3)))


def test_it_compiles_in_one_graph() -> None:
    loss, x0 = new_loss(), images()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    # Rule: as eager, to the rounding of a few operations that are taken apart otherwise.
    expected = torch.autograd.grad(loss(x0, key=NoiseKey(3), reduction="mean"), list(loss.parameters()))
    results = torch.autograd.grad(compiled(x0, key=NoiseKey(3), reduction="mean"), list(loss.parameters()))
    assert gap(list(results), list(expected)) < 1e-5


def test_what_it_does_not_take_is_refused() -> None:
    # Rule: a denoiser within a wrapper would be bypassed, so it is not taken.
    for wrapped in (nn.DataParallel(SoftDenoiser(Net(), C)), torch.compile(SoftDenoiser(Net(), C)), Net()):
        with pytest.raises(
            TypeError, match=r"expected a SoftDenoiser, got .*; wrap or compile the TrainingLoss"
        ):
            TrainingLoss(wrapped)  # type: ignore[arg-type]
    # Rule: replicas would draw the noise of the same images, so a key is not taken by them.
    replica = new_loss()._replicate_for_data_parallel()
    with pytest.raises(ValueError, match="no key under DataParallel"):
        replica(images(), key=NoiseKey(3))
    assert nn.DataParallel(new_loss())(images()).shape == (BATCH,)


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@of("ddp")
def test_one_process_may_call_beside_its_wrapper(wrapper: str, alone: None, one_process: Any) -> None:
    # Rule: where there is nobody to average with, nothing is refused.
    ddp = DistributedDataParallel(SoftDenoiser(Net(), C))
    ddp.module.loss(images(), key=NoiseKey(5), reduction="mean").backward()
    assert gap(gradients(ddp), one_process) < 1e-6
