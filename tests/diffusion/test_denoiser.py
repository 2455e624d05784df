# SPDX-License-Identifier: Apache-2.0
"""SoftDenoiser: what it calls the network with, what its answer means, and the loss."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import softdiff_kernels as sk
from softdiff_kernels import reference, spectrum
from softdiff_kernels.diffusion import (
    LOSSES,
    PREDICTIONS,
    BlurCorruption,
    Corruption,
    Guided,
    SoftDenoiser,
    sample_momentum,
    time_steps,
    time_warp,
)
from softdiff_kernels.diffusion.denoiser import INCREMENT_STEP

PAPER = C = BlurCorruption.paper((6, 8))
KEY = sk.NoiseKey(3, stream=20)


class Net(nn.Module):
    """A network of one convolution and one weight for t."""

    def __init__(self, channels: int = 2, wrap: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.wrap = wrap
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, bias: float = 0.0) -> Any:
        self.seen.append((x, t))
        out = self.conv(x) + t.view(-1, 1, 1, 1) + bias
        return SimpleNamespace(sample=out) if self.wrap else out


class Answer(nn.Module):
    """A network that gives a stated answer."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.answer


def _x0(batch: int = 3) -> Tensor:
    return torch.rand(batch, 2, 6, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("prediction", ["residual", "sample"])
def test_forward_gives_x0_hat(prediction: str, wrap: bool) -> None:
    net = Net(wrap=wrap)
    x, t = _x0(), torch.tensor([0.1, 0.5, 1.0])
    got = SoftDenoiser(net, C, prediction)(x, t, bias=0.25)
    expected = net.conv(x) + t.view(-1, 1, 1, 1) + 0.25
    # A residual network predicts x_0 - x_t, so x_t is added back.
    torch.testing.assert_close(got, expected + x if prediction == "residual" else expected)
    assert torch.equal(net.seen[0][1], t)


def test_a_number_stands_for_the_same_time_in_every_row() -> None:
    net = Net()
    denoiser = SoftDenoiser(net, C)
    assert torch.equal(denoiser(_x0(), 0.5), denoiser(_x0(), torch.full((3,), 0.5)))
    assert torch.equal(denoiser(_x0(), torch.tensor(0.5)), denoiser(_x0(), 0.5))
    assert all(t.shape == (3,) and t.dtype == torch.float32 for _, t in net.seen)


@pytest.mark.parametrize("prediction", ["residual", "sample"])
def test_loss_is_the_papers_equation_12(prediction: str) -> None:
    net = Net().double()
    x0, t = _x0().double(), torch.tensor([0.05, 0.3, 0.9], dtype=torch.float64)
    n = sk.normal(x0.shape, KEY, dtype=torch.float64)
    got = SoftDenoiser(net, C, prediction).loss(x0, t, key=KEY)
    sigma = C.noise_std(t)
    x_t = reference.blur(x0, C.blur_std(t)) + sigma.view(-1, 1, 1, 1) * n
    phi = net(x_t, t)
    target = x0 - x_t if prediction == "residual" else x0
    expected = reference.blur(phi - target, C.blur_std(t)).square().sum(dim=(1, 2, 3)) / sigma.square()
    # float64 throughout; Parseval's sum in another order.
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=0)
    by_noise = SoftDenoiser(net, C, prediction).loss(x0, t, noise=n)
    torch.testing.assert_close(by_noise, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("prediction", ["residual", "sample"])
def test_the_true_answer_costs_nothing(prediction: str) -> None:
    x0, t = _x0(), torch.tensor([0.1, 0.5, 1.0])
    x_t = C.corrupt(x0, t, key=KEY)
    answer = x0 - x_t if prediction == "residual" else x0
    loss = SoftDenoiser(Answer(answer), C, prediction).loss(x0, t, key=KEY)
    # The residual is formed before x_t is rounded: 2^-24 of up to 2, squared, over 96 elements and 0.02^2.
    assert loss.max() < 96 * (2 * 2.0**-23) ** 2 / 0.02**2
    wrong = SoftDenoiser(Answer(answer + 0.01), C, prediction).loss(x0, t, key=KEY)
    # A constant error passes every blur: 96 times 0.01^2 over noise_std^2.
    torch.testing.assert_close(wrong, 96 * 1e-4 / C.noise_std(t).square(), rtol=1e-3, atol=0)


def test_weights() -> None:
    x0, t = _x0(), torch.tensor([0.1, 0.5, 1.0])
    uniform = SoftDenoiser(Net(), C, weight="uniform").loss(x0, t, key=KEY)
    paper = SoftDenoiser(Net(), C).loss(x0, t, key=KEY)
    own = SoftDenoiser(Net(), C, weight=lambda t: 1 + t).loss(x0, t, key=KEY)
    torch.testing.assert_close(paper, uniform / C.noise_std(t).square())
    torch.testing.assert_close(own, uniform * (1 + t))


@pytest.mark.parametrize("loss", LOSSES)
def test_reductions(loss: str) -> None:
    denoiser, t = SoftDenoiser(Net(), C, loss=loss), torch.tensor([0.1, 0.5, 1.0])
    each = denoiser.loss(_x0(), t, key=KEY)
    assert each.shape == (3,) and each.dtype == torch.float32
    torch.testing.assert_close(denoiser.loss(_x0(), t, key=KEY, reduction="mean"), each.mean())
    torch.testing.assert_close(denoiser.loss(_x0(), t, key=KEY, reduction="sum"), each.sum())


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_the_weighted_square_of_the_masked_spectral_error(name: str, prediction: str) -> None:
    """Rule: a loss by name is w(t) sum_k mask[k]^2 DCT2(error)[k]^2, fused or not, or by a mask."""
    x0, t, net = _x0().double(), torch.tensor([0.01, 0.3, 0.9]), Net().double()
    C = {
        "noise": BlurCorruption.blurring_diffusion((6, 8), floor=0.1),
        "edm": BlurCorruption.noise_only((6, 8), noise_std_max=2.0),
    }.get(prediction, PAPER)
    x_t, residual = C.corrupt(x0, t, key=KEY, return_residual=True)
    skipped = 0.25 / (0.25 + C.noise(t.double()).square()) * x_t
    targets = {"residual": residual, "sample": x0, "noise": C.white(x0, KEY), "edm": x0 - skipped}
    error = net(x_t, t.double()) - targets[prediction]
    of_image = ("increment", "ihdm")
    weight = 1.0 if name in of_image else C.noise_std(t).double().square().reciprocal()
    seen = 1.0 if prediction != "noise" else C.noise(t.double()) / C.gain(t.double())  # an error of x0_hat
    masked = LOSSES[name](C, t.double()) * seen * reference.dct2(error)
    expected = weight * masked.square().sum(dim=(1, 2, 3))
    by_name = SoftDenoiser(net, C, prediction, loss=name).loss(x0, t.double(), key=KEY)
    # float64; the weight is of a float32 t in one of them: 2^-23, squared.
    torch.testing.assert_close(by_name, expected, rtol=1e-6, atol=0)
    kind = "uniform" if name in of_image else "paper"
    own = SoftDenoiser(net, C, prediction, kind, LOSSES[name]).loss(x0, t.double(), key=KEY)
    torch.testing.assert_close(own, by_name, rtol=1e-10, atol=0)


def test_a_loss_of_ones_own_sees_the_frequencies_that_it_names() -> None:
    """Rule: a function (corruption, t) -> mask is a loss, of weight 1 unless one is given."""
    seen: list[Tensor] = []

    def mean_only(corruption: Corruption, t: Tensor) -> Tensor:
        assert corruption is C
        seen.append(t)
        mask = torch.zeros(len(t), 1, *corruption.image_size)
        mask[:, :, 0, 0] = 2.0
        return mask

    x0, t = _x0(), torch.tensor([0.1, 0.5, 1.0])
    answer = x0 - C.corrupt(x0, t, key=KEY) + 0.25
    denoiser = SoftDenoiser(Answer(answer), C, loss=mean_only)
    # A constant error of 0.25 in 2 channels of 48 pixels: coefficient (0, 0) is 0.25 sqrt(48), the gain is 2.
    expected = torch.full((3,), 2 * 4 * 48 * 0.25**2)
    torch.testing.assert_close(denoiser.loss(x0, t, key=KEY), expected, rtol=1e-4, atol=0)
    assert torch.equal(seen[0], t)
    weighted = SoftDenoiser(Answer(answer), C, weight=lambda t: 1 + t, loss=mean_only)
    torch.testing.assert_close(weighted.loss(x0, t, key=KEY), expected * (1 + t), rtol=1e-4, atol=0)
    trained = SoftDenoiser(Net(), C, loss=mean_only)
    trained.loss(x0, t, key=KEY, reduction="mean").backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in trained.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert trained.loss(x0, t, key=KEY).dtype == torch.float32


def test_a_predicted_noise_gives_back_the_image_and_needs_a_floor() -> None:
    """Rule: x0_hat = V[(V^T x_t - s V^T n) / m]; with the true noise it is x_0, to rounding times 1 / m."""
    process = BlurCorruption.blurring_diffusion((6, 8), floor=0.1)
    x0 = _x0().double()
    for t in (0.0, 0.4, 1.0):
        noise = process.white(x0, KEY)
        x_t = process.corrupt(x0, t, noise=noise)
        denoiser = SoftDenoiser(Answer(noise), process, prediction="noise")
        # The denoiser's t, and so its gains, are float32; 1 / gain is at most 14000 here.
        torch.testing.assert_close(denoiser(x_t, t), x0, rtol=0, atol=5e-7 / process.gain(t).min().item())
        # The published loss: the squared error of the noise, here of a network that is off by 1/4.
        off = SoftDenoiser(Answer(noise + 0.25), process, prediction="noise").loss(x0, t, noise=noise)
        torch.testing.assert_close(off, torch.full_like(off, x0[0].numel() / 16), rtol=1e-6, atol=0)
    with pytest.raises(
        ValueError, match=r'expected a gain of at least 1e-06 .* "noise", got .* give .* a floor'
    ):
        SoftDenoiser(Net(), PAPER, prediction="noise")


def test_guidance_acts_within_its_interval() -> None:
    """Rule: outside the interval the weight is 1, and the unconditional network is not asked."""
    asked: list[bool] = []

    def network(x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        asked.append(class_labels is None)
        return torch.zeros_like(x) if class_labels is None else torch.ones_like(x)

    denoiser = SoftDenoiser(network, C, prediction="sample")  # type: ignore[arg-type]
    guided = Guided(denoiser, torch.tensor([0, 1, 2]), 3.0, interval=(0.2, 0.6))
    for t, mean, calls in ((0.1, 1.0, [False]), (0.4, 3.0, [False, True]), (0.7, 1.0, [False])):
        asked.clear()
        assert guided(_x0(), t).mean() == pytest.approx(mean) and asked == calls
    mixed = guided(_x0(), torch.tensor([0.1, 0.4, 0.7])).mean(dim=(1, 2, 3))
    torch.testing.assert_close(mixed, torch.tensor([1.0, 3.0, 1.0]))
    with pytest.raises(ValueError, match="interval as two rising times"):
        Guided(denoiser, torch.tensor([0]), 3.0, interval=(0.6, 0.2))


def test_the_t_of_training_follows_a_warp() -> None:
    """Rule: `time` maps a uniform u to t; one in blur_std makes blur_std(t) uniform over its range."""
    warped = SoftDenoiser(Net(), C, time=time_warp("log_blur_std", C))
    plain = SoftDenoiser(Net(), C)
    x0 = torch.zeros(4000, 1, 1, 1)
    u, t = plain.draw_time(x0, KEY), warped.draw_time(x0, KEY)
    share = (C.blur_std(t).double() / C.blur_std(0.0)).log() / math.log(C.blur_std(1.0) / C.blur_std(0.0))
    torch.testing.assert_close(share, u.double(), rtol=0, atol=2e-2)  # 2049 nodes, the steepest at the start
    assert t.mean() < 0.6 * u.mean()


def test_bad_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="loss as one of 'soft', 'plain', 'increment', 'ihdm', got 'hard'"):
        SoftDenoiser(Net(), C, loss="hard")
    for mask, sentence in (
        (lambda c, t: torch.ones(3, 1, 8, 8), r"expected mask to broadcast to \[3, 2, 6, 8\]"),
        (lambda c, t: torch.ones(6, 8, requires_grad=True), "mask requires grad"),
    ):
        with pytest.raises((TypeError, ValueError), match=sentence):
            SoftDenoiser(Net(), C, loss=mask).loss(_x0(), 0.5, key=KEY)
    with pytest.raises(ValueError, match="reduction as one of"):
        SoftDenoiser(Net(), C, loss="increment").loss(_x0(), 0.5, key=KEY, reduction="max")


def test_the_increment_mask_is_the_gain_of_a_sampler_step() -> None:
    """Rule: its square is (m_s - m_t noise_s^2 / noise_t^2) / (t - s), at 0 and without noise, too."""
    c = BlurCorruption.paper((12, 9))
    t = torch.tensor([0.004, 0.1, 0.3, 0.9], dtype=torch.float64)
    s = (t - INCREMENT_STEP).clamp(min=0.0)
    share = 1 - (c.noise_std(s) / c.noise_std(t)).square()
    # Without the cancellation of the difference; in float64 either form is right to 1e-10 or better.
    gain = spectrum.reverse_gain(c.blur_std(t), c.blur_std(s), share, 12, 9)
    expected = gain / (t - s).view(-1, 1, 1, 1)
    torch.testing.assert_close(LOSSES["increment"](c, t).square(), expected, rtol=1e-9, atol=1e-12)
    assert LOSSES["increment"](c, torch.tensor([0.0])).amax() == 0
    silent = BlurCorruption.from_tables((12, 9), [0, 1], [0, 3], [0, 0])
    assert bool(LOSSES["increment"](silent, t).isfinite().all())


def test_uint8_images_are_decoded() -> None:
    x0 = torch.randint(0, 256, (3, 2, 6, 8), dtype=torch.uint8)
    for kind in ("residual", "sample"):
        denoiser = SoftDenoiser(Net(), C, kind)
        torch.testing.assert_close(
            denoiser.loss(x0, key=KEY), denoiser.loss(x0 / 127.5 - 1, key=KEY), rtol=1e-5, atol=0
        )


def test_gradient_reaches_the_network_and_lowers_the_loss() -> None:
    net = Net()
    denoiser = SoftDenoiser(net, C)
    assert {name for name, _ in denoiser.named_parameters()} == {
        "inner_model.conv.weight",
        "inner_model.conv.bias",
    }
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    x0, losses = _x0(16), []
    for _ in range(30):
        loss = denoiser.loss(x0, key=KEY, reduction="mean")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_under_autocast_the_network_may_work_in_bfloat16_and_the_loss_is_float32() -> None:
    net = Net()
    denoiser, t = SoftDenoiser(net, C), torch.tensor([0.1, 0.5, 1.0])
    plain = denoiser.loss(_x0(), t, key=KEY)
    dtypes: list[torch.dtype] = []
    net.conv.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = denoiser.loss(_x0(), t, key=KEY)
        x0_hat = denoiser(_x0(), 0.5)
    assert dtypes == [torch.bfloat16] * 2
    assert loss.dtype == x0_hat.dtype == net.seen[-1][0].dtype == torch.float32
    # A bfloat16 answer is off by 2^-8 of itself; the loss by a few times that.
    torch.testing.assert_close(loss, plain, rtol=0.05, atol=0)


def test_times_are_uniform_and_an_images_own() -> None:
    net = Net(1)
    denoiser = SoftDenoiser(net, BlurCorruption.paper((4, 4)))
    count = 4000
    denoiser.loss(torch.zeros(count, 1, 4, 4), key=KEY)
    x_t, t = net.seen[-1]
    assert t.min() > 0 and t.max() < 1
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand.
    order = t.sort().values
    grid = torch.arange(1, count + 1) / count
    assert (order - grid).abs().max() < 1.95 / math.sqrt(count)
    # No word serves both time and noise: their correlation is under five standard errors.
    noise = x_t[:, 0, 0, 0] / denoiser.corruption.noise_std(t)
    assert torch.corrcoef(torch.stack((t, noise)))[0, 1].abs() < 5 / math.sqrt(count)
    denoiser.loss(torch.zeros(5, 1, 4, 4), key=sk.NoiseKey(3, stream=20 + 100))
    assert torch.equal(net.seen[-1][1], t[100:105])


def test_an_images_loss_depends_on_its_stream_alone() -> None:
    denoiser, x0 = SoftDenoiser(Net(), C), _x0(6)
    whole = denoiser.loss(x0, key=KEY)
    parts = torch.cat([denoiser.loss(x0[:2], key=KEY), denoiser.loss(x0[2:], key=sk.NoiseKey(3, stream=22))])
    # Convolutions may sum in another order at another batch size.
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)
    streams = torch.tensor([25, 20, 23, 22, 21, 24])
    shuffled = denoiser.loss(x0[streams - 20], key=sk.NoiseKey(3, stream=streams))
    torch.testing.assert_close(shuffled, whole[streams - 20], rtol=1e-5, atol=0)


def test_without_a_key_torchs_seed_rules() -> None:
    denoiser, losses = SoftDenoiser(Net(), C), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append(denoiser.loss(_x0()))
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_empty_batches_work() -> None:
    denoiser = SoftDenoiser(Net(), C)
    assert denoiser(_x0(0), 0.5).shape == (0, 2, 6, 8)
    assert denoiser.loss(_x0(0), key=KEY).shape == denoiser.loss(_x0(0)).shape == (0,)


def test_sampling_from_a_wrapped_network() -> None:
    got = sample_momentum(SoftDenoiser(Net(), C), _x0(), time_steps(3), {"bias": 0.1}, disable=True, key=KEY)
    assert got.shape == (3, 2, 6, 8) and got.isfinite().all() and not got.requires_grad


def test_bad_arguments_are_refused() -> None:
    silent = BlurCorruption.from_tables((6, 8), [0, 1], [0, 3], [0, 0.1])
    with pytest.raises(ValueError, match="noise over 0 for the weight"):
        SoftDenoiser(Net(), silent)
    SoftDenoiser(Net(), silent, weight="uniform")
    with pytest.raises(
        ValueError, match="prediction as one of 'residual', 'sample', 'noise', 'edm', got 'epsilon'"
    ):
        SoftDenoiser(Net(), C, "epsilon")
    with pytest.raises(ValueError, match="weight as one of"):
        SoftDenoiser(Net(), C, weight="snr")
    with pytest.raises(TypeError, match="expected a Corruption, got dict"):
        SoftDenoiser(Net(), {})  # type: ignore[arg-type]
    denoiser = SoftDenoiser(Net(), C)
    for t in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="expected t as"):
            denoiser(_x0(), t)
    with pytest.raises(ValueError, match=r"t as a number or a tensor \[3\]"):
        denoiser(_x0(), torch.zeros(2))
    with pytest.raises(TypeError, match="t as a number or a floating-point tensor"):
        denoiser.loss(_x0(), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="for images of 6 x 8"):
        denoiser.loss(torch.zeros(1, 2, 8, 8))
    with pytest.raises(TypeError, match=r"\(or uint8\), got int64"):
        denoiser.loss(torch.zeros(1, 2, 6, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"return shape \[3, 2, 6, 8\], got \[3, 4, 6, 8\]"):
        SoftDenoiser(Answer(torch.zeros(3, 4, 6, 8)), C)(_x0(), 0.5)
    with pytest.raises(TypeError, match=r"an object with \.sample"):
        SoftDenoiser(Answer((1, 2)), C)(_x0(), 0.5)


OF_T = {
    "forward": lambda t: SoftDenoiser(Net(), C)(_x0(), t),
    "loss": lambda t: SoftDenoiser(Net(), C).loss(_x0(), t, key=KEY),
    "masked loss": lambda t: SoftDenoiser(Net(), C, loss="increment").loss(_x0(), t, key=KEY),
    "plain loss": lambda t: SoftDenoiser(Net(), C, weight="uniform", loss="plain").loss(_x0(), t, key=KEY),
    "guided": lambda t: Guided(SoftDenoiser(Labelled(), C), torch.zeros(3, dtype=torch.int64), 2.0)(_x0(), t),
}


class Labelled(Net):
    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Any:
        return super().forward(x, t)


@pytest.mark.parametrize("entry", OF_T)
def test_t_is_checked_as_coefficients_are(entry: str) -> None:
    # Rule: one rule for t at every entry; see test_corruption for its ways in full.
    call, t = OF_T[entry], torch.tensor([0.1, 0.5, 1.0])
    with pytest.raises(ValueError, match=r"^SoftDenoiser: t requires grad, but .*; pass t\.detach\(\)$"):
        call(t.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"^SoftDenoiser: t requires grad"):
        torch.func.grad(lambda t: call(t).sum())(t)
    with pytest.raises(ValueError, match=r"^SoftDenoiser: t carries a tangent"):
        torch.func.jvp(call, (t,), (t,))
    for bad in (250.0, -0.5, math.nan):
        for given in (torch.tensor(bad), torch.tensor([0.5, 0.5, bad])):
            with pytest.raises(
                ValueError, match=rf"^SoftDenoiser: expected t as finite numbers .*, got {bad} for"
            ):
                call(given)
    for given in (torch.zeros(3, dtype=torch.int64), torch.ones((), dtype=torch.bool)):
        with pytest.raises(
            TypeError, match=r"^SoftDenoiser: expected t as a number or a floating-point tensor, got"
        ):
            call(given)
    assert torch.equal(call(np.float32(0.5)), call(0.5)) and torch.equal(call(Fraction(1, 2)), call(0.5))
    for wrong in ("0.5", True, np.bool_(True), [0.5], 10**400):
        with pytest.raises((TypeError, ValueError), match=r"^SoftDenoiser: expected t as .*, got"):
            call(wrong)


def test_by_other_arguments_the_denoiser_is_differentiated_as_ever() -> None:
    # Rule: what is refused for t stands in nobody's way: per-sample gradients of the weights, a tangent of x,
    # a graph without breaks, export.
    denoiser, x, t = SoftDenoiser(Net(), C), _x0(), torch.tensor([0.1, 0.5, 1.0])
    weights = dict(denoiser.named_parameters())

    def one(weights: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
        return torch.func.functional_call(denoiser, weights, (x[None], t[None])).sum()

    each = torch.func.vmap(torch.func.grad(one), (None, 0, 0))(weights, x, t)
    denoiser(x, t).sum().backward()
    for name, weight in denoiser.named_parameters():
        # Sums of 288 float32 products in another order.
        torch.testing.assert_close(each[name].sum(dim=0), weight.grad, rtol=1e-4, atol=1e-4)
    tangent = torch.func.jvp(lambda x: denoiser(x, t), (x,), (x,))[1]
    zero = denoiser(torch.zeros_like(x), t)
    torch.testing.assert_close(tangent, denoiser(x, t) - zero)  # the network is affine in x
    halving = SoftDenoiser(Half(), C)
    for graph in (
        torch.compile(halving, fullgraph=True, backend="aot_eager"),
        torch.export.export(halving, (x, t)).module(),
    ):
        torch.testing.assert_close(graph(x, t), x * 1.5)
    for name in LOSSES:
        halving = SoftDenoiser(Half(), C, loss=name)
        loss = torch.compile(halving.loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(loss(x, t, key=KEY), halving.loss(x, t, key=KEY))


class Half(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * 0.5


def test_a_weight_is_checked_as_the_ops_check_it() -> None:
    for weight, sentence in (
        (lambda t: -t, "expected weight as finite numbers of at least 0"),
        (lambda t: t / 0, "expected weight as finite numbers"),
        (lambda t: t.clone().requires_grad_(), "weight requires grad"),
        (lambda t: "1", "expected weight as a number or a tensor, got str '1'"),
        (lambda t: np.ones(3), "expected weight as a number or a tensor, got float64 array"),
    ):
        for loss in LOSSES:
            with pytest.raises((TypeError, ValueError), match=sentence):
                SoftDenoiser(Net(), C, weight=weight, loss=loss).loss(_x0(), 0.5, key=KEY)


def test_guidance_takes_numbers_and_labels() -> None:
    denoiser, labels = SoftDenoiser(Labelled(), C), torch.zeros(3, dtype=torch.int64)
    assert Guided(denoiser, labels, np.float32(1.5)).weight == 1.5
    for wrong in ("2", True, math.nan, 10**400):
        with pytest.raises((TypeError, ValueError), match=r"^Guided: expected weight as a .*number"):
            Guided(denoiser, labels, wrong)
    for wrong in ([0, 0, 0], labels.float(), np.zeros(3, dtype=np.int64)):
        with pytest.raises(TypeError, match=r"^Guided: expected class_labels as int64 \[B\], got"):
            Guided(denoiser, wrong)
