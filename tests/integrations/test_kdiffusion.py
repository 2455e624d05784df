# SPDX-License-Identifier: Apache-2.0
"""Our noise-only models with k-diffusion's samplers, its models with ours, and what neither can do."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import math
import sys
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import softdiff_kernels as sk
from softdiff_kernels import diffusion
from softdiff_kernels.diffusion import (
    BlurCorruption,
    Corruption,
    Guided,
    MaskCorruption,
    SoftDenoiser,
    SpectralCorruption,
    sample_ddim,
    sample_heun,
    time_steps,
)
from softdiff_kernels.integrations import kdiffusion
from softdiff_kernels.integrations.kdiffusion import SigmaDenoiser, from_k_diffusion

SIZE = (8, 6)
NOISE = BlurCorruption.noise_only(SIZE, noise_std_max=20.0)


def fading(nodes: int = 9) -> BlurCorruption:
    """Variance-preserving noise: a_t = cos, s_t = sin of an angle below a right one."""
    t = torch.linspace(0, 1, nodes, dtype=torch.float64)
    angle = 0.01 + 1.5 * t
    tables = (t, [0.0] * nodes, angle.sin())
    return BlurCorruption.from_tables(SIZE, *map(list, tables), mean=angle.cos().tolist())  # type: ignore[arg-type]


PROCESSES = {"noise alone": NOISE, "fading": fading()}


class Net(nn.Module):
    """A network that depends on the image and, smoothly, on t, and notes the t that it gets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64)
        self.seen: list[float] = []

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        self.seen.append(t[0].item())
        out: Tensor = torch.tanh(self.layer(x) + t.double().view(-1, 1, 1, 1))
        return out if class_labels is None else out + class_labels.view(-1, 1, 1, 1)


def start(corruption: Corruption) -> Tensor:
    """x_1, which starts k-diffusion's samplers as x_1 / a_1."""
    noise = sk.normal((2, 1, *SIZE), sk.NoiseKey(1), dtype=torch.float64)
    return corruption.noise(1.0) * noise


def euler(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
    """Karras et al. 2022, algorithm 1 without its correction: dx = (x - D(x, sigma)) / sigma dsigma."""
    for now, then in pairwise(sigmas):
        x = x + (x - model(x, now.expand(len(x)))) / now * (then - now)
    return x


@pytest.mark.parametrize("name", PROCESSES)
def test_an_euler_step_is_ours_of_ddim(name: str) -> None:
    """Rule: r x + (1 - r) x_0 is the step of both, so that the images differ by rounding: of t and sigma to
    float32 in both ways, some 1e-7 of the network's slope in t."""
    corruption = PROCESSES[name]
    net = Net()
    denoiser = SoftDenoiser(net, corruption, prediction="sample")
    ts = time_steps(7)
    wanted = sample_ddim(denoiser, start(corruption), ts, disable=True)
    ours, net.seen = net.seen, []
    model = SigmaDenoiser(denoiser)
    sigmas = model.sigmas(ts)
    found = euler(model, start(corruption) / corruption.mean(1.0), sigmas.double())
    assert sigmas[-1] == 0 and len(sigmas) == 8
    torch.testing.assert_close(torch.tensor(net.seen), torch.tensor(ours), rtol=0, atol=5e-7)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    # What the comparison is worth: steps at other times give another image.
    other = euler(model, start(corruption) / corruption.mean(1.0), model.sigmas(time_steps(6)).double())
    assert (other - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("name", PROCESSES)
def test_sigma_gives_back_t(name: str) -> None:
    """Rule: t(sigma(t)) is t to float64's rounding (1e-16 of sigma over its slope), between nodes, too."""
    levels = kdiffusion.NoiseLevels("test", PROCESSES[name])
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    mean, sigma = levels.mean_and_sigma(t)
    corruption = PROCESSES[name]
    torch.testing.assert_close(sigma, corruption.noise_std(t) / corruption.mean(t), rtol=1e-14, atol=0)
    torch.testing.assert_close(mean, corruption.mean(t), rtol=1e-14, atol=0)
    back, known = levels.t(sigma)
    assert known.all()
    torch.testing.assert_close(back, t, rtol=0, atol=1e-11)


def test_other_corruptions_are_tabulated() -> None:
    """Rule: of a smooth process without tables sigma is within (h^2 / 8) times its second derivative over
    its value, here 5^2 h^2 / 8 = 7.5e-7, and t correspondingly."""

    class Smooth(Corruption):
        def __init__(self) -> None:
            self.image_size = SIZE

        def gain(self, t: float | Tensor) -> Tensor:
            return torch.ones_like(torch.as_tensor(t, dtype=torch.float64)).reshape(-1, 1, 1, 1)

        def noise(self, t: float | Tensor) -> Tensor:
            return (5 * torch.as_tensor(t, dtype=torch.float64)).exp().reshape(-1, 1, 1, 1) / 10

        def config(self) -> dict[str, Any]:
            return {}

    levels = kdiffusion.NoiseLevels("test", Smooth())
    t = torch.linspace(0, 1, 997, dtype=torch.float64)
    exact = (5 * t).exp() / 10
    assert (levels.mean_and_sigma(t)[1] / exact - 1).abs().max() < 8e-7
    assert (levels.t(exact)[0] - t).abs().max() < 2e-7


def test_what_blurs_is_refused() -> None:
    """Rule: a process that is not white noise alone, or whose noise stands still, gets a sentence."""
    flat = BlurCorruption.from_tables(SIZE, [0, 0.5, 1], [0, 0, 0], [0.1, 0.2, 0.2])
    coloured = SpectralCorruption(SIZE, torch.ones(2, 1, *SIZE), torch.rand(2, 1, *SIZE) + torch.tensor(0.1))
    refused = {
        "does more, such as blur": [BlurCorruption.paper(SIZE), MaskCorruption(SIZE), coloured],
        "does not at t = 0.5": [flat],
    }
    for said, corruptions in refused.items():
        for corruption in corruptions:
            with pytest.raises(ValueError, match=rf"SigmaDenoiser: .*{said}"):
                SigmaDenoiser(SoftDenoiser(Net(), corruption))
            with pytest.raises(ValueError, match=rf"from_k_diffusion: .*{said}"):
                from_k_diffusion(lambda x, sigma: x, corruption)
    with pytest.raises(TypeError, match="expected a model with a Corruption"):
        SigmaDenoiser(lambda x, t: x)
    with pytest.raises(TypeError, match="from_k_diffusion: expected a Corruption, got str"):
        from_k_diffusion(lambda x, sigma: x, "noise")  # type: ignore[arg-type]


def test_a_sigma_outside_the_table_is_refused() -> None:
    """Rule: on the CPU with a sentence; where it is not read, the image is NaN, those of other sigmas not."""
    model = SigmaDenoiser(SoftDenoiser(Net(), NOISE, prediction="sample"))
    x = torch.zeros(3, 1, *SIZE, dtype=torch.float64)
    assert (model.sigma_min, round(model.sigma_max, 9)) == (0.01, 20.0)
    for sigma in (20.01, 0.0099, 0.0, math.nan):
        with pytest.raises(ValueError, match=r"expected sigma from 0\.01 to 20, .*for sample 1"):
            model(x, torch.tensor([1.0, sigma, 2.0]))
    # Ends that float32 has rounded are ends.
    for end in (model.sigma_min, model.sigma_max):
        assert model(x, torch.tensor([end]).expand(3)).isfinite().all()
    levels = kdiffusion.NoiseLevels("test", NOISE)
    # Under vmap nothing is read, as on a device.
    t, known = torch.vmap(levels.t)(torch.tensor([[1.0], [20.01], [0.0]]))
    assert known.flatten().tolist() == [True, False, False]
    assert t[1:].flatten().tolist() == [1.0, 0.0]
    for sigma, error in (
        (torch.ones(2), ValueError),
        (torch.ones(3, dtype=torch.int64), TypeError),
        (1.0, TypeError),
        (torch.ones(3, 1), ValueError),
    ):
        with pytest.raises(error, match="SigmaDenoiser: expected sigma"):
            model(x, sigma)  # type: ignore[arg-type]


def test_images_of_unknown_sigmas_are_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: as on a device, where sigma is not read: NaN for the image whose sigma is outside, no other."""
    model = SigmaDenoiser(SoftDenoiser(Net(), NOISE, prediction="sample"))
    monkeypatch.setattr(kdiffusion.args, "readable", lambda _: False)
    out = model(torch.zeros(3, 1, *SIZE, dtype=torch.float64), torch.tensor([1.0, 20.01, 20.0]))
    assert [image.isnan().all().item() for image in out] == [False, True, False]
    assert out[0].isfinite().all() and out[2].isfinite().all()


def test_arguments_reach_the_network() -> None:
    """Rule: what a sampler passes as extra_args, and guidance, act as with our own samplers."""
    denoiser = SoftDenoiser(Net(), NOISE, prediction="sample")
    x, labels = start(NOISE), torch.tensor([2, 5])
    plain = SigmaDenoiser(denoiser)(x, torch.tensor([3.0]))
    told = SigmaDenoiser(denoiser)(x, torch.tensor([3.0]), class_labels=labels)
    torch.testing.assert_close(told - plain, labels.double().view(-1, 1, 1, 1).expand_as(x))
    guided = SigmaDenoiser(Guided(denoiser, labels, weight=3.0))(x, torch.tensor([3.0]))
    torch.testing.assert_close(guided - plain, 3.0 * (told - plain))


@pytest.mark.parametrize("name", PROCESSES)
def test_a_model_goes_there_and_back(name: str) -> None:
    """Rule: a model of k-diffusion, as ours and back, is the same function, to the rounding of t to
    float32: 6e-8 of t, times the slope of ln sigma in t, 8 for noise alone, and up to 23 at the end of the
    fading one."""

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)

    denoiser = from_k_diffusion(model, PROCESSES[name])
    back = SigmaDenoiser(denoiser)
    x = start(PROCESSES[name])
    for sigma in (0.011, 0.4, 3.0, 9.0):
        there = torch.tensor([sigma], dtype=torch.float64).expand(2)
        torch.testing.assert_close(back(x, there), model(x, there), rtol=1e-5, atol=1e-7)


def test_our_samplers_take_its_models() -> None:
    """Rule: where images are white noise of variance v, D = x v / (v + sigma^2) is exact, and samples have
    the variance v: within 5 standard errors, v sqrt(2 / n), and the steps' error, under 1 %."""
    v, size = 0.25, (32, 32)
    corruption = BlurCorruption.noise_only(size, noise_std_max=20.0)

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v = nn.Parameter(torch.tensor(v))

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            out: Tensor = x * self.v / (self.v + sigma.view(-1, 1, 1, 1) ** 2)
            return out

    denoiser = from_k_diffusion(Exact(), corruption)
    x_1 = 20.0 * sk.normal((8, 3, *size), sk.NoiseKey(2))
    ts = time_steps(40, "karras", corruption=corruption)
    x = sample_heun(denoiser, x_1, ts, disable=True)
    n = x.numel()
    # The start lacks the images' own variance, v of 400, and the last step the 1e-4 at t = 0.
    assert abs(x.var().item() / v - 1) < 5 * (2 / n) ** 0.5 + 0.01
    # Its loss trains it: the parameter is the model's.
    denoiser.loss(torch.zeros(2, 3, *size), key=sk.NoiseKey(0)).mean().backward()
    gradients = {name: p.grad for name, p in denoiser.named_parameters()}
    assert list(gradients) == ["inner_model.model.v"] and gradients["inner_model.model.v"] is not None


def test_the_examples() -> None:
    names = {"sk": sk, "torch": torch, **{n: getattr(diffusion, n) for n in diffusion.__all__}}
    done = doctest.testmod(kdiffusion, extraglobs=names)
    assert done.attempted > 8 and done.failed == 0


@pytest.fixture
def k_diffusion(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """k_diffusion's `sampling` and `external`, without its __init__, which imports CLIP, W&B and more.

    pip install --no-deps k-diffusion torchsde trampoline torchdiffeq
    """
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        pytest.skip("k-diffusion is not installed")
    for needed in ("torchsde", "torchdiffeq", "scipy", "tqdm"):
        pytest.importorskip(needed)
    for name in [name for name in sys.modules if name.partition(".")[0] == "k_diffusion"]:
        monkeypatch.delitem(sys.modules, name)
    package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    package.__path__ = list(found.submodule_search_locations or ())
    # All that both use of it; it imports torchvision.
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "k_diffusion", package)
    monkeypatch.setitem(sys.modules, "k_diffusion.utils", utils)
    yield tuple(importlib.import_module(f"k_diffusion.{name}") for name in ("sampling", "external"))  # type: ignore[misc]
    for name in ("sampling", "external"):
        sys.modules.pop(f"k_diffusion.{name}", None)


def test_its_samplers_give_what_ours_do(k_diffusion: tuple[ModuleType, ModuleType]) -> None:
    """Rule: sample_euler is sample_ddim and sample_heun is sample_heun, to the rounding of sigma and t to
    float32. Others follow the same flow, and end within 0.02 in 60 steps; those that add noise run."""
    sampling, _ = k_diffusion
    for corruption in PROCESSES.values():
        denoiser = SoftDenoiser(Net(), corruption, prediction="sample")
        model, ts = SigmaDenoiser(denoiser), time_steps(7)
        x_1 = start(corruption)
        for its, ours in ((sampling.sample_euler, sample_ddim), (sampling.sample_heun, sample_heun)):
            wanted = ours(denoiser, x_1, ts, disable=True)
            found = its(model, x_1 / corruption.mean(1.0), model.sigmas(ts).double(), disable=True)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    # Many steps of any deterministic sampler follow one flow.
    denoiser = SoftDenoiser(Net(), NOISE, prediction="sample")
    model, sigmas = SigmaDenoiser(denoiser), SigmaDenoiser(denoiser).sigmas(time_steps(60)).double()
    wanted = sampling.sample_heun(model, start(NOISE), sigmas, disable=True)
    for name in ("sample_dpm_2", "sample_dpmpp_2m"):
        found = getattr(sampling, name)(model, start(NOISE), sigmas, disable=True)
        assert (found - wanted).abs().max() < 0.02, name
    torch.manual_seed(0)
    for name in ("sample_euler_ancestral", "sample_dpmpp_2s_ancestral", "sample_dpmpp_2m_sde"):
        assert getattr(sampling, name)(model, start(NOISE), sigmas, disable=True).isfinite().all(), name
    with pytest.raises(ValueError, match="no churn at its upper end"):
        sampling.sample_euler(model, start(NOISE), sigmas, disable=True, s_churn=10.0)


def test_its_wrappers_are_networks_of_ours(k_diffusion: tuple[ModuleType, ModuleType]) -> None:
    """Rule: its VDenoiser is its own x_0, called at sigma of our t."""
    _, external = k_diffusion
    inner = external.VDenoiser(Net())
    denoiser = from_k_diffusion(inner, NOISE)
    x = start(NOISE)
    sigma = torch.tensor([NOISE.noise_std(0.6)], dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, 0.6), inner(x, sigma.expand(2)), rtol=1e-5, atol=1e-6)
