# SPDX-License-Identifier: Apache-2.0
"""The networks at their start, and NCSN++ against its equations: those of score_sde's VE configuration,
written out in float64 with plain convolutions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from softdiff_kernels.errors import UserError
from softdiff_kernels.training.build import UNet, build_model
from softdiff_kernels.training.checkpoint import fitting
from softdiff_kernels.training.config import TrainConfig
from softdiff_kernels.training.ncsnpp import NCSNpp

pytest.importorskip("diffusers")


def randomised(network: torch.nn.Module) -> Any:
    """The network with no weight left at its start, where zeros would hide most of it."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return network


class Equations:
    """NCSN++ with the weights of a network, whose levels have `blocks` residual blocks each."""

    KERNEL = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8] * 2)

    def __init__(self, weights: dict[str, Tensor], blocks: int, levels: int, attention: int | None) -> None:
        self.weights, self.blocks, self.levels, self.attention = weights, blocks, levels, attention

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        channels = x.shape[1]
        return F.group_norm(x, min(channels // 4, 32), *self.of(name), eps=1e-6)

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.of(name)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def filtered(self, x: Tensor, kind: str) -> Tensor:
        """Each channel with the filter: its mean kept, at half, double or (2 px wider) the same size."""
        channels = x.shape[1]
        kernel = self.KERNEL.expand(channels, 1, 4, 4)
        if kind == "up":
            return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=1, groups=channels)
        stride, padding = (2, 1) if kind == "down" else (1, 2)
        return F.conv2d(x, kernel, stride=stride, padding=padding, groups=channels)

    def block(self, name: str, x: Tensor, time: Tensor, resample: str = "") -> Tensor:
        name = f"{name}.resnet"
        h = F.silu(self.norm(f"{name}.norm1", x))
        if resample:
            h, x = self.filtered(h, resample), self.filtered(x, resample)
        h = (
            self.conv(f"{name}.conv1", h)
            + F.linear(F.silu(time), *self.of(f"{name}.time_emb_proj"))[..., None, None]
        )
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)))
        if resample or x.shape != h.shape:
            x = self.conv(f"{name}.conv_shortcut", x)
        return (x + h) / math.sqrt(2)

    def attend(self, name: str, x: Tensor) -> Tensor:
        name = f"{name}.attention"
        flat = self.norm(f"{name}.group_norm", x).flatten(2).transpose(1, 2)
        q, k, v = (F.linear(flat, *self.of(f"{name}.to_{which}")) for which in "qkv")
        mixed = (q @ k.transpose(1, 2) / math.sqrt(x.shape[1])).softmax(dim=-1) @ v
        h = F.linear(mixed, *self.of(f"{name}.to_out.0")).transpose(1, 2).view_as(x)
        return (x + h) / math.sqrt(2)

    def __call__(self, x: Tensor, fourier: Tensor) -> Tensor:
        time = F.silu(F.linear(fourier, *self.of("embedding.linear_1")))
        time = F.linear(time, *self.of("embedding.linear_2"))
        h, image = self.conv("conv_in", x), x
        kept = [h]
        for level in range(self.levels):
            for i in range(self.blocks):
                h = self.block(f"down.{level}.{i}", h, time)
                h = self.attend(f"down.{level}.{i}", h) if level == self.attention else h
                kept.append(h)
            if level < self.levels - 1:
                h = self.block(f"shrink.{level}", h, time, "down")
                weight, bias = self.of(f"pyramid.{level}.Conv2d_0")
                image = (F.conv2d(self.filtered(image, "wider"), weight, bias, stride=2) + h) / math.sqrt(2)
                h = image
                kept.append(h)
        h = self.attend("middle.0", self.block("middle.0", h, time))
        h = self.block("middle.1", h, time)
        for row, level in enumerate(reversed(range(self.levels))):
            for i in range(self.blocks + 1):
                h = self.block(f"up.{row}.{i}", torch.cat([h, kept.pop()], dim=1), time)
            h = self.attend(f"up.{row}.{self.blocks}", h) if level == self.attention else h
            h = self.block(f"grow.{row}", h, time, "up") if level else h
        assert not kept
        return self.conv("conv_out", F.silu(self.norm("norm_out", h)))


@pytest.mark.parametrize(("levels", "blocks", "attention"), [(1, 1, None), (3, 2, 1)])
def test_ncsnpp_follows_its_equations(levels: int, blocks: int, attention: int | None) -> None:
    """Rule: both are in float64 from the same embedding, so they differ by rounding alone, of which 1e-9 of
    the largest value is generous after some 40 layers."""
    torch.manual_seed(0)
    multipliers = (1, 2, 2)[:levels]
    network = randomised(NCSNpp(2, 16, multipliers, blocks, attention)).double().eval()
    x, t = torch.randn(3, 2, 12, 8).double(), torch.tensor([0.0, 0.31, 1.0])
    with torch.no_grad():
        found = network(x, t)
    wanted = Equations(network.state_dict(), blocks, levels, attention)(x, network.fourier(t).double())
    assert float(wanted.std()) > 0.1
    assert float((found - wanted).abs().max()) <= 1e-9 * float(wanted.abs().max())


def test_ncsnpp_has_the_parameters_of_the_published_network() -> None:
    """Rule: the preset's network has exactly the weights of score_sde's CIFAR-10 NCSN++ for VE, 62.8 million,
    here counted from the published list of layers."""

    def conv(inside: int, outside: int, side: int = 3) -> int:
        return inside * outside * side**2 + outside

    def block(inside: int, outside: int, resample: bool = False) -> int:
        shortcut = conv(inside, outside, 1) if resample or inside != outside else 0
        norms = 2 * inside + 2 * outside
        return norms + conv(inside, outside) + conv(512, outside, 1) + conv(outside, outside) + shortcut

    attention = 2 * 256 + 4 * conv(256, 256, 1)
    ends = conv(256, 512, 1) + conv(512, 512, 1) + conv(3, 128) + 2 * 128 + conv(128, 3)
    down = 4 * block(128, 128) + block(128, 256) + 11 * block(256, 256)
    shrink = (
        block(128, 128, True) + 2 * block(256, 256, True) + conv(3, 128) + conv(128, 256) + conv(256, 256)
    )
    # On the way up the inputs are doubled by what the way down left: 5 blocks a level.
    up = 5 * block(512, 256) + 5 * block(512, 256) + 4 * block(512, 256) + block(256 + 128, 256)
    up += block(256 + 128, 128) + 4 * block(128 + 128, 128) + 3 * block(256, 256, True)
    middle = 2 * block(256, 256) + attention
    with torch.device("meta"):
        network = build_model(TrainConfig.from_preset("cifar10", data="x"), (3, 32, 32)).net
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == ends + down + shrink + middle + up + 4 * attention + attention == 62_758_787


@pytest.mark.parametrize("network", ["ddpm", "ncsnpp"])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 1, 2), (1, 2, 2, 2)])
def test_every_network_starts_at_0(network: Any, multipliers: tuple[int, ...]) -> None:
    """Rule: exactly, whatever the input, the labels, the scale and the mode: x0_hat is x_t at the start."""
    for channels, patch, classes in ((3, 1, 0), (1, 2, 3)):
        scale = torch.linspace(1, 60, 257)
        unet = UNet(
            channels, (24, 16), 8, multipliers, 2, patch, scale, network=network, dropout=0.1, classes=classes
        )
        x, t = torch.randn(2, channels, 24, 16), torch.tensor([0.0, 0.7])
        for mode in (True, False):
            unet.train(mode)
            assert torch.equal(unet(x, t), torch.zeros_like(x)), (channels, patch, classes, mode)
        # The check can fail: one weight of the last layer shows.
        torch.nn.init.constant_(unet.net.conv_out.bias, 0.1)
        assert bool((unet(x, t) != 0).all())


def test_the_fourier_embedding_is_of_log_sigma() -> None:
    """Rule: sine and cosine of 2 pi W log sigma, sigma = 0.01 * 5000^t as in score_sde, W of deviation 16. A
    phase of up to 2000 is known in float32 to 2e-4, or with its logarithm's rounding to 1e-3."""
    torch.manual_seed(0)
    network = NCSNpp(1, 128, (1,), 1)
    t = torch.linspace(0, 1, 41)
    sigma = 0.01 * 5000 ** t.double()
    phase = 2 * math.pi * sigma.log()[:, None] * network.frequencies.double()
    found = network.fourier(t).double()
    assert float((found - torch.cat([phase.sin(), phase.cos()], dim=1)).abs().max()) < 1e-3
    # 128 normal numbers: their deviation is within a fifth (three standard errors) of 16.
    assert 0.8 * 16 < float(network.frequencies.std()) < 1.2 * 16


def test_the_fourier_embedding_tells_280_steps_apart() -> None:
    """Rule: no two of 281 even t have similar embeddings. The cosine between two is the mean of cos(2 pi W d)
    over W: exp(-(2 pi 16 d)^2 / 2), .009 at d = log(5000) / 280, and noise of 1 / sqrt(256), of which the
    largest of 40,000 is 4.5 deviations, .28. Of t itself, neighbours would have .94."""
    torch.manual_seed(0)
    network = NCSNpp(1, 128, (1,), 1)
    embedded = network.fourier(torch.linspace(0, 1, 281))
    alike = (embedded @ embedded.T / 128).fill_diagonal_(0)
    assert float(alike.abs().max()) < 0.4
    raw = 2 * math.pi * torch.linspace(0, 1, 281)[:, None] * network.frequencies
    neighbours = (raw[1:] - raw[:-1]).cos().mean(dim=1)
    assert float(neighbours.min()) > 0.85


def test_the_frequencies_belong_to_the_weights() -> None:
    """Rule: they come from the seed, are stored, are not trained, and survive a cast to 16 bits bit for bit,
    for other frequencies would be another network."""
    first = build_model(TrainConfig("x", network="ncsnpp", width=8, blocks=1, seed=1), (1, 8, 8))
    again = build_model(TrainConfig("x", network="ncsnpp", width=8, blocks=1, seed=1), (1, 8, 8))
    other = build_model(TrainConfig("x", network="ncsnpp", width=8, blocks=1, seed=2), (1, 8, 8))
    kept = first.net.frequencies.clone()
    assert torch.equal(kept, again.net.frequencies)
    assert not torch.equal(kept, other.net.frequencies)
    assert "net.frequencies" in first.state_dict()
    assert not any("frequencies" in name for name, _ in first.named_parameters())
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.net.frequencies, kept)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(again.to(dtype).net.frequencies.float(), kept)


def test_weights_of_the_form_before_are_refused() -> None:
    """Rule: by the words of what is expected; `load_model` and a resumed run put the file in front."""
    network = UNet(3, (8, 8), 32, (1, 2), 1, network="ncsnpp")
    before = {
        "net.conv_in.weight": torch.zeros(32, 3, 3, 3),
        "net.down_blocks.0.skip_conv.bias": torch.zeros(32),
    }
    said = r"^w\.safetensors: expected weights of --network ncsnpp in its present form, .*; train anew"
    with pytest.raises(UserError, match=said), fitting("w.safetensors", "together"):
        network.load_state_dict(before)
