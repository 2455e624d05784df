# SPDX-License-Identifier: Apache-2.0
"""The general step against a dense float64 construction, and the samplers of before against their op calls.

    x_s = A x_t + (m_s - A m_t) x0_hat + B n,  products in the basis V

Here V is a matrix over all elements of an image, and the products are written out. Nothing of the package is
used but the corruption's tables and its white noise.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import softdiff_kernels as sk
from softdiff_kernels.diffusion import (
    DDIM,
    IHDM,
    Ancestral,
    BlurCorruption,
    Corruption,
    Langevin,
    LinearCorruption,
    MaskCorruption,
    Momentum,
    Naive,
    SpectralCorruption,
    TACoS,
    sample_ddim,
    sample_momentum,
    sample_naive,
    sample_tacos,
)

KEY = sk.NoiseKey(11, stream=5, draw=2)
F64 = torch.float64


def dct_matrix(n: int) -> Tensor:
    """D[k, i] = sqrt(2 / n) cos(pi k (2 i + 1) / (2 n)), row 0 over sqrt(2)."""
    rows = [[math.cos(math.pi * k * (2 * i + 1) / (2 * n)) for i in range(n)] for k in range(n)]
    matrix = math.sqrt(2 / n) * torch.tensor(rows, dtype=F64)
    matrix[0] /= math.sqrt(2)
    return matrix


class Turned(Corruption):
    """A corruption over a basis of its own: a random rotation of all pixels of a channel."""

    basis = "turned"

    def __init__(self, image_size: tuple[int, int], gain: Tensor, noise: Tensor) -> None:
        self.image_size = image_size
        self.ends = gain, noise
        n = image_size[0] * image_size[1]
        self.turn = torch.linalg.qr(torch.randn(n, n, dtype=F64))[0]  # V^T

    def gain(self, t: float | Tensor) -> Tensor:
        time = torch.as_tensor(t, dtype=F64).reshape(-1, 1, 1, 1)
        return 1 + time * (self.ends[0] - 1)

    def noise(self, t: float | Tensor) -> Tensor:
        return torch.as_tensor(t, dtype=F64).reshape(-1, 1, 1, 1) * self.ends[1] + 0.05

    def to_basis(self, x: Tensor) -> Tensor:
        return (x.flatten(2) @ self.turn.T.to(x.dtype)).view_as(x)

    def from_basis(self, u: Tensor) -> Tensor:
        return (u.flatten(2) @ self.turn.to(u.dtype)).view_as(u)

    def config(self) -> dict[str, Any]:
        return {}


def _spectral(size: tuple[int, int], channels: int) -> Corruption:
    nodes = random.randint(2, 4)
    noise = torch.rand(nodes, *size, dtype=F64).sort(dim=0)[0] if random.random() < 0.5 else [0.1] * nodes
    wide = (channels,) if random.random() < 0.5 else ()
    return SpectralCorruption(size, torch.randn(nodes, *wide, *size, dtype=F64), noise)


# Each as (image size, channels) -> corruption, with whatever makes its paths differ.
MADE: dict[str, Callable[[tuple[int, int], int], Corruption]] = {
    "paper": lambda size, c: BlurCorruption.paper(size),
    "floor": lambda size, c: BlurCorruption.from_tables(size, [0, 1], [0.1, 3], [0.1, 0.4], floor=0.2),
    "falling mean": lambda size, c: BlurCorruption.blurring_diffusion(size, blur_std_max=3.0),
    "rising mean": lambda size, c: BlurCorruption.from_tables(
        size, [0, 1], [0.0, 2], [0.1, 0.9], mean=[1.0, 1.7]
    ),
    "falling noise": lambda size, c: BlurCorruption.from_tables(size, [0, 1], [0.0, 2], [0.5, 0.1]),
    "spectral": _spectral,
    "equal-snr": lambda size, c: SpectralCorruption.equal_snr(torch.rand(c, *size, dtype=F64) + 0.01),
    "anisotropic": lambda size, c: SpectralCorruption.anisotropic(size, 2.0, 0.5),
    "low-pass": lambda size, c: SpectralCorruption.ideal_low_pass(size),
    "mask": lambda size, c: MaskCorruption(size),
    "map": lambda size, c: MaskCorruption(size, torch.rand(*size, dtype=F64), softness=0.7),
    "turned": lambda size, c: Turned(size, torch.rand(*size, dtype=F64), torch.rand(1, 1, 1, 1, dtype=F64)),
}
LINEAR: dict[str, Callable[[tuple[int, int], int], LinearCorruption]] = {
    "motion-blur": lambda size, c: LinearCorruption.motion_blur(size, 3.0, 30.0),
    "downsampling": lambda size, c: LinearCorruption.downsampling(size, 4),
    "channel-blur": lambda size, c: LinearCorruption.channel_blur(size, [0.5 + i for i in range(c)]),
    "function": lambda size, c: LinearCorruption(
        lambda x, t: x.cumsum(3) * t.view(-1, 1, 1, 1) - x.flip(2), size
    ),
}
RULES = {
    "naive": Naive(),
    "momentum": Momentum(),
    "small": Momentum("small"),
    "ddim": DDIM(),
    "eta": DDIM(eta=0.6),
    "tacos": TACoS(),
    "ancestral": Ancestral(),
    "ihdm": IHDM(),
    "delta": IHDM(0.2),
    "langevin": Langevin(),
}


def basis_matrix(c: Corruption, channels: int) -> Tensor:
    """V^T over all elements of an image."""
    height, width = c.image_size
    if isinstance(c, Turned):
        one = c.turn
    elif c.basis == "pixels":
        one = torch.eye(height * width, dtype=F64)
    else:
        one = torch.kron(dct_matrix(height), dct_matrix(width))
    return torch.block_diag(*[one] * channels)


def gain_of(c: Corruption, t: float) -> Tensor:
    """m_t; of a blur written out, else from the corruption."""
    if not isinstance(c, BlurCorruption):
        return c.gain(t)
    height, width = c.image_size
    k, l = torch.arange(height, dtype=F64)[:, None], torch.arange(width, dtype=F64)
    heat = torch.exp(-((math.pi * k / height) ** 2 + (math.pi * l / width) ** 2) * c.blur_std(t) ** 2 / 2)
    return c.mean(t) * ((1 - c.floor) * heat + c.floor)


def dense_step(
    c: Corruption, x_t: Tensor, x0: Tensor, t: float, s: float, A: Any, B: Any, wrong: str = ""
) -> Tensor:
    """The step with V as a matrix. wrong: a mistake to make."""
    forth = basis_matrix(c, x_t.shape[1])
    u_t, u_0 = (x.flatten(1) @ forth.T for x in (x_t, x0))
    masks = [torch.as_tensor(m, dtype=F64) for m in (A, B, gain_of(c, t), gain_of(c, s))]
    keep, spread, m_t, m_s = (m.expand(x_t.shape).flatten(1) for m in masks)
    # The noise of a step with masks is drawn over the basis, that of a step with numbers as in `corrupt`.
    n = sk.normal(x_t.shape, KEY, dtype=F64)
    masked = isinstance(A, Tensor) or isinstance(B, Tensor)
    white = n.flatten(1) if masked else c.white(x_t, KEY).flatten(1) @ forth.T
    moved = {"": m_s - keep * m_t, "m_s": m_s * (1 - keep), "m_t": (1 - keep) * m_t, "sum": m_s + keep * m_t}
    u_s = keep * u_t + moved[wrong if wrong in moved else ""] * u_0 + spread * white
    return (u_s @ (forth if wrong != "V" else forth.T)).view_as(x_t)


def _images(seed: int, batch: int, channels: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_t, x0 = torch.randn(2, batch, channels, *size, dtype=F64, generator=generator)
    return x_t, x0


def _random_mask(shape: tuple[int, ...]) -> Tensor:
    part = [n if random.random() < 0.7 else 1 for n in shape]
    return torch.rand(part, dtype=F64)


def _case(seed: int) -> tuple[Corruption, Tensor, Tensor, float, float, Any, Any]:
    random.seed(seed)
    torch.manual_seed(seed)
    size = random.randint(1, 9), random.randint(1, 9)
    batch, channels = random.randint(1, 3), random.randint(1, 3)
    c = MADE[random.choice(list(MADE))](size, channels)
    x_t, x0 = _images(seed, batch, channels, size)
    s, t = sorted((random.random(), random.random()))
    if random.random() < 0.3:
        shape = batch, channels, *size
        A: Any = _random_mask(shape) if random.random() < 0.8 else 0.7
        B: Any = random.choice([0.0, 0.4, _random_mask(shape)])
        return c, x_t, x0, t, s, A, B
    while True:  # until a rule takes this process
        rule = RULES[random.choice(list(RULES))]
        try:
            return c, x_t, x0, t, s, *rule(c, t, s)
        except ValueError as error:
            assert "does not rise" in str(error)


def _bound(B: Any) -> float:
    """The noise of fused kernels has float32's accuracy; all else is float64, d = 243 terms at most."""
    return 1e-11 if not isinstance(B, Tensor) and B == 0 else 2e-6


@pytest.mark.parametrize("first", range(0, 240, 30))
def test_the_step_of_any_corruption_is_the_dense_one(first: int) -> None:
    for seed in range(first, first + 30):
        c, x_t, x0, t, s, A, B = _case(seed)
        got = c.step(x_t, x0, t, s, A, B, key=KEY)
        truth = dense_step(c, x_t, x0, t, s, A, B)
        assert (got - truth).abs().max() <= _bound(B) * max(1.0, truth.abs().max()), (seed, c.name)


@pytest.mark.parametrize("wrong", ["m_s", "m_t", "sum", "V"])
def test_a_wrong_step_is_not_the_dense_one(wrong: str) -> None:
    # Each mistake must show in at least half of the cases of the test above: in the others, such as images
    # of 1 x 1, it is none.
    seen = 0
    for seed in range(60):
        c, x_t, x0, t, s, A, B = _case(seed)
        error = c.step(x_t, x0, t, s, A, B, key=KEY) - dense_step(c, x_t, x0, t, s, A, B, wrong)
        seen += bool(error.abs().max() > 1e-4)
    assert seen >= 30


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("rule", [r for r in RULES if r != "ancestral"])
def test_the_step_of_a_linear_corruption_is_the_dense_one(name: str, rule: str) -> None:
    # C_t as a matrix, column by column.
    size, channels, t, s = (5, 6), 2, 0.8, 0.35
    c = LINEAR[name](size, channels)
    x_t, x0 = _images(3, 2, channels, size)
    units = torch.eye(x0[0].numel(), dtype=F64).view(-1, channels, *size)
    C_t, C_s = (c.corrupt(units, time, noise=torch.zeros_like(units)).flatten(1).T for time in (t, s))
    A, B = RULES[rule](c, t, s)
    got = c.step(x_t, x0, t, s, A, B, key=KEY)
    truth = A * x_t.flatten(1) + x0.flatten(1) @ (C_s - A * C_t).T
    truth = truth + B * sk.normal(x_t.shape, KEY, dtype=F64).flatten(1)
    assert (got.flatten(1) - truth).abs().max() <= _bound(B)
    if A != 0:
        wrong = truth + x0.flatten(1) @ (A * C_t - A * C_s).T
        assert (got.flatten(1) - wrong).abs().max() > 1e-3


@pytest.mark.parametrize("name", MADE)
def test_x_t_of_any_corruption_is_the_dense_one(name: str) -> None:
    # x_t = V[m_t * V^T x_0 + s_t * V^T n], with n given and with the n of a key, a t for each image.
    size, channels = (5, 6), 2
    torch.manual_seed(0)
    c = MADE[name](size, channels)
    n, x0 = _images(4, 3, channels, size)
    forth = basis_matrix(c, channels)
    times = [0.15, 0.5, 1.0]
    rows = []
    for i, t in enumerate(times):
        gain, noise = (
            torch.as_tensor(v, dtype=F64).expand(1, channels, *size).flatten()
            for v in (gain_of(c, t), c.noise(t))
        )
        u_0, u_n = (x[i].flatten() @ forth.T for x in (x0, n))
        rows.append(((gain * u_0 + noise * u_n) @ forth).view(channels, *size))
    truth, t = torch.stack(rows), torch.tensor(times, dtype=F64)
    got, residual = c.corrupt(x0, t, noise=n, return_residual=True)
    torch.testing.assert_close(got, truth, rtol=0, atol=1e-11)
    torch.testing.assert_close(residual, x0 - truth, rtol=0, atol=1e-11)
    white = c.white(x0, KEY)
    torch.testing.assert_close(c.corrupt(x0, t, key=KEY), c.corrupt(x0, t, noise=white), rtol=0, atol=2e-6)
    single = c.corrupt(x0[1:2], 0.5, noise=n[1:2])
    torch.testing.assert_close(single, truth[1:2], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", MADE)
def test_the_loss_of_any_corruption_is_the_dense_one(name: str) -> None:
    # w sum_k (mask_k (V^T e)_k)^2, for C_t's own mask, a number and a mask; its gradient by autograd.
    size, channels = (4, 5), 2
    torch.manual_seed(0)
    c = MADE[name](size, channels)
    prediction, target = _images(5, 2, channels, size)
    prediction.requires_grad_()
    forth = basis_matrix(c, channels)
    t, weight = torch.tensor([0.3, 0.8], dtype=F64), torch.tensor([2.0, 0.5], dtype=F64)
    own = torch.cat([torch.as_tensor(gain_of(c, float(s))).expand(1, channels, *size) for s in t])
    for mask, seen in ((None, own), (0.7, 0.7), (m := torch.rand(size, dtype=F64), m)):
        mixed = torch.as_tensor(seen, dtype=F64).expand(2, channels, *size).flatten(1)
        each = (mixed * ((prediction - target).flatten(1) @ forth.T)).square().sum(dim=1) * weight
        got = c.loss(prediction, target, t, mask=mask, weight=weight, reduction="none")
        torch.testing.assert_close(got, each, rtol=1e-10, atol=1e-12)
        slope = torch.autograd.grad(got.sum(), prediction)[0]
        torch.testing.assert_close(slope, torch.autograd.grad(each.sum(), prediction)[0], rtol=0, atol=1e-10)
        for reduction in ("mean", "sum"):
            whole = c.loss(prediction, target, t, mask=mask, weight=weight, reduction=reduction)
            torch.testing.assert_close(whole, getattr(each, reduction)(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["paper", "floor", "falling mean", "rising mean"])
@pytest.mark.parametrize("rule", [r for r in RULES if r != "ancestral"])
def test_the_fused_step_is_the_general_one(name: str, rule: str) -> None:
    # Must hold 6, float32: 1e-6 of the images' size, which the mean can make as large as 1 / 0.0067.
    size = 12, 9
    c = MADE[name](size, 2)
    x_t, x0 = (x.float() for x in _images(6, 3, 2, size))
    for t, s in ((0.9, 0.7), (0.4, 0.39), (0.15, 0.02)):
        try:
            A, B = RULES[rule](c, t, s)
        except ValueError as error:
            assert "does not rise" in str(error)
            continue
        fused = RULES[rule].step(c, x_t, x0, t, s, KEY)
        white = c.to_basis(c.white(x_t, KEY))
        general = c.mix([x_t, x0], [A, c.gain(s) - A * c.gain(t)], noise_mask=B, noise=white)
        off = (fused - general).norm() / general.norm()
        assert off <= 1e-6, (t, s, off)


def _model(c: Corruption, function: Callable[..., Tensor]) -> Any:
    def model(x: Tensor, t: Tensor) -> Tensor:
        return function(x, t)

    model.corruption = c  # type: ignore[attr-defined]
    return model


def _bent(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(1.3 * x.roll(1, dims=3) - 0.4 * x + t.view(-1, 1, 1, 1).to(x.dtype))


def _ddim_coefficients(
    noise_std_t: float, noise_std_s: float, nu: float, eta: float | None
) -> tuple[float, float]:
    if noise_std_t == 0.0:
        return 1.0, 0.0
    if eta is not None:
        gap = (noise_std_t - noise_std_s) * (noise_std_t + noise_std_s)
        nu = eta * noise_std_s * math.sqrt(max(gap, 0.0)) / noise_std_t
    return math.sqrt((noise_std_s - nu) * (noise_std_s + nu)) / noise_std_t, nu


def _before(name: str, c: BlurCorruption, nu: float = 0.0, eta: float | None = None) -> Callable[..., Tensor]:
    """A step as the samplers of version 0.2 made it: one call of an op."""

    def step(x_t: Tensor, x0: Tensor, t: float, s: float, key: sk.NoiseKey) -> Tensor:
        blurs = {"blur_std_t": c.blur_std(t), "blur_std_s": c.blur_std(s)}
        noises = {"noise_std_t": c.noise_std(t), "noise_std_s": c.noise_std(s)}
        if name in ("large", "small"):
            return sk.momentum_step(x_t, x0, **blurs, **noises, variance=name, key=key)
        pairs = {"naive": (0.0, c.noise_std(s)), "tacos": (1.0, 0.0)}
        a, b = pairs[name] if name in pairs else _ddim_coefficients(c.noise_std(t), c.noise_std(s), nu, eta)
        return sk.reverse_step(x_t, x0, **blurs, a=a, b=b, key=key)

    return step


BEFORE: dict[str, tuple[Callable[..., Tensor], dict[str, Any], str, dict[str, Any]]] = {
    "naive": (sample_naive, {}, "naive", {}),
    "momentum": (sample_momentum, {}, "large", {}),
    "small": (sample_momentum, {"variance": "small"}, "small", {}),
    "ddim": (sample_ddim, {}, "ddim", {}),
    "nu": (sample_ddim, {"nu": 0.008}, "ddim", {"nu": 0.008}),
    "eta": (sample_ddim, {"eta": 0.7}, "ddim", {"eta": 0.7}),
    "tacos": (sample_tacos, {}, "tacos", {}),
}
PROCESSES = {
    "paper": BlurCorruption.paper((16, 12)),
    "geometric": BlurCorruption.geometric((16, 12)),
    "noise": BlurCorruption.noise_only((16, 12), noise_std_max=5.0),
    "constant": BlurCorruption.from_tables((16, 12), [0, 1], [0.3, 3], [0.1, 0.1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", BEFORE)
def test_the_samplers_of_before_are_the_same_bit_for_bit(name: str, process: str, dtype: torch.dtype) -> None:
    c, ts = PROCESSES[process], [1.0, 0.8, 0.31, 0.2, 0.11, 0.07, 0.0]
    sampler, options, old, arguments = BEFORE[name]
    start = _images(8, 3, 2, (16, 12))[0].to(dtype)
    got = sampler(_model(c, _bent), start, ts, disable=True, key=KEY, **options)
    x, step = start.clone(), _before(old, c, **arguments)
    for i, (t, s) in enumerate(itertools.pairwise(ts)):
        x0 = _bent(x, torch.full((3,), t, dtype=torch.float32)).to(dtype)
        x = x0 if s == 0.0 else step(x, x0, t, s, KEY.at(i + 1))
    assert torch.equal(got, x)
