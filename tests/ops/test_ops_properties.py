# SPDX-License-Identifier: Apache-2.0
"""What must hold for any image and any coefficients: the algebra of one diagonal operator."""

from __future__ import annotations

import pytest
import torch
from checks import BACKENDS, INTERPRETED
from hypothesis import given, settings
from hypothesis import strategies as st

import softdiff_kernels as sk
from softdiff_kernels import spectrum

EXAMPLES = 8 if INTERPRETED else 25
settings.register_profile("ops", deadline=None, max_examples=EXAMPLES, derandomize=True, print_blob=True)
COMMON = settings.get_profile("ops")

SIZES = st.integers(1, 40)
BLURS = st.one_of(st.just(0.0), st.floats(1e-3, 50.0))
SEEDS = st.integers(0, 2**64 - 1)
FLOORS = st.sampled_from([0.0, 0.0, 0.1, 1.0])
# An interpreted plane takes its time, however small it is: fewer of them there.
MOST = (2, 2) if INTERPRETED else (3, 4)
SHAPES = st.tuples(st.integers(1, MOST[0]), st.integers(1, MOST[1]), SIZES, SIZES)
# Each op is right to 1e-6 of the larger of what goes in and out; where a rule compares a few of them, this.
BOUND = 4e-6


@pytest.fixture(params=BACKENDS, scope="module", autouse=True)
def backend(request):
    with sk.use_backend(request.param):
        yield request.param


def noise(shape, seed, stream=0):
    return sk.reference.normal(shape, sk.NoiseKey(seed, stream))


def apart(x, y, size):
    """Distance in units of a size."""
    return float((x.double() - y.double()).norm()) / max(float(size), 1e-30)


@COMMON
@given(SHAPES, BLURS, FLOORS, SEEDS, st.floats(-3, 3))
def test_linearity(shape, std, floor, seed, factor):
    # C (x + f y) = C x + f C y.
    x, y = noise(shape, seed), noise(shape, seed, 100)
    together = sk.blur(x + factor * y, std, floor=floor)
    apiece = sk.blur(x, std, floor=floor) + factor * sk.blur(y, std, floor=floor)
    assert apart(together, apiece, x.norm() + abs(factor) * y.norm()) < BOUND


@COMMON
@given(SHAPES, BLURS, FLOORS, SEEDS)
def test_self_adjointness(shape, std, floor, seed):
    # <C x, y> = <x, C y>.
    x, y = noise(shape, seed), noise(shape, seed, 100)
    left = (sk.blur(x, std, floor=floor).double() * y.double()).sum()
    right = (x.double() * sk.blur(y, std, floor=floor).double()).sum()
    assert abs(float(left - right)) <= BOUND * float(x.norm() * y.norm())


@COMMON
@given(SHAPES, BLURS, BLURS, SEEDS)
def test_semigroup(shape, p, q, seed):
    # Blurs add in the square: blur(blur(x, p), q) = blur(x, sqrt(p^2 + q^2)), in either order.
    x = noise(shape, seed)
    once = sk.blur(x, (p * p + q * q) ** 0.5)
    assert apart(sk.blur(sk.blur(x, p), q), once, x.norm()) < BOUND
    assert apart(sk.blur(sk.blur(x, q), p), once, x.norm()) < BOUND


@COMMON
@given(SHAPES, BLURS, FLOORS, SEEDS)
def test_the_mean_is_kept(shape, std, floor, seed):
    # The gain at frequency zero is 1, floor or not: every plane keeps its mean within 1e-6.
    x = noise(shape, seed).clamp(-1, 1)
    y = sk.blur(x, std, floor=floor)
    assert float((y.double() - x.double()).mean(dim=(2, 3)).abs().max()) < 1e-6


@COMMON
@given(SHAPES, BLURS, SEEDS)
def test_blur_never_amplifies(shape, std, seed):
    # All gains lie in [0, 1], and the blur is an average of pixels: neither norm nor range grows.
    x = noise(shape, seed)
    y = sk.blur(x, std)
    assert float(y.norm()) <= float(x.norm()) * (1 + BOUND)
    largest = x.abs().amax()
    assert float(y.amax()) <= float(x.amax() + BOUND * largest)
    assert float(y.amin()) >= float(x.amin() - BOUND * largest)


@COMMON
@given(SHAPES, SEEDS)
def test_very_strong_blur_leaves_the_mean(shape, seed):
    x = noise(shape, seed)
    y = sk.blur(x, 1e3)
    mean = x.double().mean(dim=(2, 3), keepdim=True).expand(shape)
    assert apart(y, mean, x.norm()) < BOUND


@COMMON
@given(SHAPES, SEEDS)
def test_transforms_keep_the_norm_and_are_inverse(shape, seed):
    x = noise(shape, seed)
    u = sk.dct2(x)
    assert abs(float(u.double().norm() / x.double().norm()) - 1) < BOUND
    assert apart(sk.idct2(u), x, x.norm()) < BOUND


@COMMON
@given(SHAPES, BLURS, SEEDS)
def test_mirroring_commutes_with_blur(shape, std, seed):
    # The boundary is symmetric: blurring the mirror image is mirroring the blurred one.
    x = noise(shape, seed)
    assert apart(sk.blur(x.flip(-1), std), sk.blur(x, std).flip(-1), x.norm()) < BOUND
    assert apart(sk.blur(x.mT, std), sk.blur(x, std).mT, x.norm()) < BOUND


@COMMON
@given(SHAPES, BLURS, SEEDS, SEEDS, st.data())
def test_any_split_of_the_batch_is_the_same(shape, std, seed, stream, data):
    # Bit for bit on the kernels; the eager products may sum a batch of other size in another order.
    shape = (5, *shape[1:])
    x, cut = noise(shape, seed), data.draw(st.integers(0, 5))
    whole = sk.corrupt(x, std, 0.3, key=sk.NoiseKey(seed, stream, 4))
    parts = [
        sk.corrupt(x[:cut], std, 0.3, key=sk.NoiseKey(seed, stream, 4)),
        sk.corrupt(x[cut:], std, 0.3, key=sk.NoiseKey(seed, torch.arange(5)[cut:] + signed(stream), 4)),
    ]
    if sk.blur(x, 0.7).equal(sk.reference.blur(x, 0.7)):
        assert apart(torch.cat(parts), whole, whole.norm()) < BOUND
    else:
        assert torch.equal(torch.cat(parts), whole)


def signed(value):
    return value - 2**64 if value >= 2**63 else value


@COMMON
@given(SHAPES, BLURS, FLOORS, SEEDS)
def test_the_loss_is_the_energy_of_the_blurred_difference(shape, std, floor, seed):
    # By Parseval, w ||C (p - t)||^2 is what the loss sums over frequencies.
    p, t = noise(shape, seed), noise(shape, seed, 100)
    loss = sk.soft_score_loss(p, t, std, weight=1.5, floor=floor, reduction="none")
    energy = 1.5 * sk.blur(p - t, std, floor=floor).double().square().sum(dim=(1, 2, 3))
    scale = 1.5 * (p - t).double().square().sum(dim=(1, 2, 3))
    # Both square numbers that are right to 1e-6 of |p - t|.
    assert bool(((loss.double() - energy).abs() <= BOUND * (energy * scale).sqrt() + 1e-12 * scale).all())


@COMMON
@given(SHAPES, BLURS, FLOORS, SEEDS)
def test_soft_score_loss_is_a_spectral_loss(shape, std, floor, seed):
    # With the heat gains as its mask; both are right to 1e-6 of |p - t|.
    p, t = noise(shape, seed), noise(shape, seed, 100)
    mask = spectrum.heat_gain(torch.tensor([std], dtype=torch.float64), *shape[2:]) * (1 - floor) + floor
    loss = sk.spectral_loss(p, t, mask, weight=1.5, reduction="none").double()
    soft = sk.soft_score_loss(p, t, std, weight=1.5, floor=floor, reduction="none").double()
    scale = 1.5 * (p - t).double().square().sum(dim=(1, 2, 3))
    assert bool(((loss - soft).abs() <= BOUND * (soft * scale).sqrt() + 1e-12 * scale).all())


@COMMON
@given(SHAPES, st.floats(0.01, 20), st.floats(0, 1), st.floats(0.05, 1), st.floats(0, 1), SEEDS)
def test_algorithm_2_as_printed_is_momentum_step(shape, blur_t, part, noise_t, ratio, seed):
    # Daras et al. 2022, Algorithm 2, line by line.
    x_t, x0_hat = noise(shape, seed), noise(shape, seed, 100)
    blur_s, noise_s = blur_t * part, noise_t * ratio
    key = sk.NoiseKey(seed, 7)
    y_hat_t = sk.blur(x0_hat, blur_t)
    y_hat_s = sk.blur(x0_hat, blur_s)
    eta = sk.normal(shape, key)
    epsilon = y_hat_t - x_t
    z = x_t - (noise_s**2 - noise_t**2) / noise_t**2 * epsilon + (noise_t**2 - noise_s**2) ** 0.5 * eta
    printed = z + y_hat_s - y_hat_t
    step = sk.momentum_step(
        x_t,
        x0_hat,
        blur_std_t=blur_t,
        blur_std_s=blur_s,
        noise_std_t=noise_t,
        noise_std_s=noise_s,
        key=key,
    )
    assert apart(step, printed, x_t.norm() + x0_hat.norm() + eta.norm()) < BOUND


@COMMON
@given(SHAPES, BLURS, st.floats(0, 1), SEEDS)
def test_equal_noise_is_tacos(shape, blur_t, part, seed):
    # With noise_std_s = noise_std_t nothing is forgotten and nothing drawn: Cold Diffusion's Algorithm 2,
    # TACoS, x_s = x_t - C_t x0_hat + C_s x0_hat.
    x_t, x0_hat = noise(shape, seed), noise(shape, seed, 100)
    step = sk.momentum_step(
        x_t, x0_hat, blur_std_t=blur_t, blur_std_s=blur_t * part, noise_std_t=0.3, noise_std_s=0.3
    )
    cold = x_t - sk.blur(x0_hat, blur_t) + sk.blur(x0_hat, blur_t * part)
    assert apart(step, cold, x_t.norm() + x0_hat.norm()) < BOUND
    by_hand = sk.reverse_step(x_t, x0_hat, blur_std_t=blur_t, blur_std_s=blur_t * part, a=1.0, b=0.0)
    assert apart(by_hand, cold, x_t.norm() + x0_hat.norm()) < BOUND


@COMMON
@given(SHAPES, BLURS, st.floats(0, 1), SEEDS)
def test_a_step_of_exact_knowledge_stays_on_the_path(shape, blur_t, part, seed):
    # From x_t = C_t x_0 with x0_hat = x_0, any a leads to C_s x_0.
    x0 = noise(shape, seed)
    x_t = sk.blur(x0, blur_t)
    for a in (0.0, 0.5, 1.0):
        step = sk.reverse_step(x_t, x0, blur_std_t=blur_t, blur_std_s=blur_t * part, a=a, b=0.0)
        assert apart(step, sk.blur(x0, blur_t * part), x0.norm()) < BOUND


@COMMON
@given(SHAPES, BLURS, FLOORS, SEEDS)
def test_corrupt_is_blur_and_noise_and_the_residual_completes_it(shape, std, floor, seed):
    # x_t = C x_0 + s n, and x_0 = x_t + residual.
    x0, key = noise(shape, seed), sk.NoiseKey(seed, 5)
    x_t, residual = sk.corrupt(x0, std, 0.3, floor=floor, key=key, return_residual=True)
    by_parts = sk.blur(x0, std, floor=floor) + 0.3 * sk.normal(shape, key)
    assert apart(x_t, by_parts, x0.norm()) < BOUND
    assert apart(x_t + residual, x0, x0.norm() + x_t.norm()) < 2e-7


@COMMON
@given(SHAPES, BLURS, SEEDS)
def test_blur_is_a_spectral_mix(shape, std, seed):
    # The general op with the heat gains as its mask.
    x = noise(shape, seed)
    mask = spectrum.heat_gain(torch.tensor([std], dtype=torch.float64), *shape[2:])
    assert apart(sk.spectral_mix([x], [mask]), sk.blur(x, std), x.norm()) < BOUND


@COMMON
@given(SHAPES, SEEDS, SEEDS)
def test_a_given_noise_is_that_of_the_key(shape, seed, stream):
    # `noise` takes the place of the stream's normals: noise over frequencies, added to those of the images.
    x, y, key = noise(shape, seed), noise(shape, seed, 100), sk.NoiseKey(seed, stream, 3)
    masks = [noise((2, *shape[1:]), seed, 200)[i].abs() for i in range(2)]
    drawn = sk.spectral_mix([x, y], masks, noise_mask=masks[0], key=key)
    given = sk.spectral_mix([x, y], masks, noise_mask=masks[0], noise=sk.normal(shape, key))
    assert apart(drawn, given, x.norm() + y.norm()) < BOUND
    by_hand = sk.idct2(masks[0] * sk.dct2(x) + masks[1] * sk.dct2(y) + masks[0] * sk.normal(shape, key))
    assert apart(drawn, by_hand, sum(float((m * z).norm()) for m in masks for z in (x, y)) + 1) < BOUND
