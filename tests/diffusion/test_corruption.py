# SPDX-License-Identifier: Apache-2.0
"""Corruption processes: what blur and noise they give at each t, and what they refuse."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softdiff_kernels import functional
from softdiff_kernels.diffusion import (
    CORRUPTIONS,
    SCHEDULES,
    BlurCorruption,
    Corruption,
    CorruptionOptions,
    blur,
    named,
    power_spectrum,
)
from softdiff_kernels.diffusion.named import farthest
from softdiff_kernels.noise import NoiseKey


def test_paper_ranges_at_64_pixels() -> None:
    c = BlurCorruption.paper((64, 64))
    # Blur is linear from 0.01 to 23 px; noise 0.01 -> 0.10 geometrically until t = 0.25, then flat.
    assert c.blur_std(0.0) == pytest.approx(0.01, rel=1e-12)
    assert c.blur_std(0.5) == pytest.approx((0.01 + 23.0) / 2, rel=1e-12)
    assert c.blur_std(1.0) == pytest.approx(23.0, rel=1e-12)
    assert c.noise_std(0.0) == pytest.approx(0.01, rel=1e-12)
    assert c.noise_std(0.125) == pytest.approx(0.01 * math.sqrt(10), rel=3.2e-4)
    for t in (0.25, 0.3, 0.77, 1.0):
        assert c.noise_std(t) == pytest.approx(0.10, rel=1e-12)


@pytest.mark.parametrize(
    ("size", "most"), [((32, 32), 11.5), ((8, 8), 2.875), ((48, 128), 46.0), ((1, 7), 23 * 7 / 64)]
)
def test_paper_blur_keeps_its_proportion_to_the_longer_side(size: tuple[int, int], most: float) -> None:
    assert BlurCorruption.paper(size).blur_std(1.0) == pytest.approx(most, rel=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "full_at"), [(0.01, 0.1, 0.25), (0.001, 2.0, 1.0), (0.05, 0.05, 0.3)]
)
def test_tabulated_noise_is_geometric_to_within_its_bound(low: float, high: float, full_at: float) -> None:
    c = BlurCorruption.paper((16, 16), noise_std_min=low, noise_std_max=high, noise_full_at=full_at)
    t = torch.linspace(0, 1, 5001, dtype=torch.float64)
    truth = low * (high / low) ** (t / full_at).clamp(max=1.0)
    # A chord of exp over a step h of its argument lies at most h^2 / 8 (times e^h) over it; h <= 0.05.
    bound = 0.05**2 / 8 * math.exp(0.05)
    assert ((c.noise_std(t) - truth) / truth).abs().max() <= bound


def test_tables_interpolate_linearly_and_alike_for_numbers_and_tensors() -> None:
    c = BlurCorruption.from_tables((4, 6), [0, 0.2, 1], [0, 1, 5], [0.1, 0.1, 0.5])
    expected = {0.0: (0, 0.1), 0.1: (0.5, 0.1), 0.2: (1, 0.1), 0.6: (3, 0.3), 1.0: (5, 0.5)}
    times = torch.tensor(list(expected), dtype=torch.float64).reshape(5, 1)
    blur, noise = c.blur_std(times), c.noise_std(times)
    assert blur.shape == noise.shape == (5, 1) and blur.dtype == torch.float64
    for row, (t, (b, n)) in enumerate(expected.items()):
        # A handful of float64 roundings.
        assert c.blur_std(t) == pytest.approx(b, abs=1e-15) == blur[row].item()
        assert c.noise_std(t) == pytest.approx(n, abs=1e-15) == noise[row].item()
    single = c.blur_std(times.float())
    # The float32 time is off by 2^-25 relative, times the slope 5; then one float32 rounding.
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), blur, rtol=2.0**-22, atol=1e-7)


def test_values_never_fall_between_neighbouring_times() -> None:
    # momentum_step refuses noise that falls by a single rounding, so interpolation must not.
    steps = [0.0, 0.1, 0.3, 0.7, 1.0]
    c = BlurCorruption.from_tables((4, 4), steps, [0.1, 0.3, 0.3, 1.7, 1.9], [0.01, 0.07, 0.1, 0.1, 0.1])
    t = sorted({*torch.linspace(0, 1, 997).tolist(), *steps, *(math.nextafter(s, 0) for s in steps)})
    for value in (c.blur_std, c.noise_std):
        numbers = [value(s) for s in t]
        assert all(a <= b for a, b in itertools.pairwise(numbers))
        assert (value(torch.tensor(t, dtype=torch.float32)).diff() >= 0).all()


def test_interpolation_traces_without_reading_values() -> None:
    # fullgraph raises at any read of a tensor's value on the host, which on a GPU would synchronise.
    c = BlurCorruption.paper((8, 8))
    t = torch.tensor([0.0, 0.1, 0.9, 1.0])
    compiled = torch.compile(lambda t: (c.blur_std(t), c.noise_std(t)), fullgraph=True, backend="eager")
    blur, noise = compiled(t)
    assert torch.equal(blur, c.blur_std(t)) and torch.equal(noise, c.noise_std(t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_corrupt_is_the_op_at_the_interpolated_levels(dtype: torch.dtype) -> None:
    c = BlurCorruption.paper((6, 9))
    x0 = torch.randint(0, 256, (3, 2, 6, 9)).to(dtype)
    x0 = x0 if dtype == torch.uint8 else x0 / 127.5 - 1
    t = torch.tensor([0.05, 0.4, 1.0])
    key = NoiseKey(5, stream=11)
    x_t, residual = c.corrupt(x0, t, key=key, return_residual=True)
    expected = functional.corrupt(x0, c.blur_std(t), c.noise_std(t), key=key, return_residual=True)
    assert torch.equal(x_t, expected[0]) and torch.equal(residual, expected[1])
    # A number stands for the same time in every row.
    assert torch.equal(
        c.corrupt(x0, 0.4, key=key), c.corrupt(x0, torch.full((3,), 0.4, dtype=torch.float64), key=key)
    )


def test_gain_is_the_factor_of_each_frequency() -> None:
    c = BlurCorruption.paper((6, 9))
    x, t = torch.rand(2, 3, 6, 9, dtype=torch.float64), torch.tensor([0.05, 0.4], dtype=torch.float64)
    blurred = functional.idct2(c.gain(t) * functional.dct2(x))
    torch.testing.assert_close(blurred, functional.blur(x, c.blur_std(t)), rtol=0, atol=1e-12)
    assert torch.equal(c.gain(0.4), c.gain(t)[1:]) and c.gain(t.float()).dtype == torch.float32


def test_dictionary_survives_json() -> None:
    for c in (
        BlurCorruption.paper((20, 33)),
        BlurCorruption.from_tables((3, 3), [0, 1], [0, 0], [0.5, 0.5], name="noise only"),
    ):
        assert Corruption.from_dict(json.loads(json.dumps(c.to_dict()))) == c


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "other"}, "expected a dictionary of format"),
        ({"t": None}, "t missing"),
        ({"blur_std": None, "name": None}, "blur_std, name missing"),
        ({"t": "abc"}, "expected t as a list of numbers"),
        ({"image_size": 8}, r"expected image_size as \(H, W\)"),
        ({"noise_std": [0.1]}, "expected noise_std_nodes with"),
    ],
)
def test_foreign_dictionaries_are_refused(change: dict, sentence: str) -> None:
    content = {**BlurCorruption.from_tables((8, 8), [0, 1], [0, 1], [0.1, 0.1]).to_dict(), **change}
    content = {k: v for k, v in content.items() if v is not None}
    with pytest.raises(ValueError, match=sentence):
        Corruption.from_dict(content)
    with pytest.raises(ValueError, match="expected a dictionary"):
        Corruption.from_dict([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("t", "blur", "noise"),
    [
        ([0], [1], [1]),
        ([0, 0.5], [0, 1], [0, 1]),
        ([0.1, 1], [0, 1], [0, 1]),
        ([0, 0.5, 0.5, 1], [0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 0.7, 0.3, 1], [0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 1], [1, 0.9], [0, 1]),
        ([0, 1], [-1, 1], [0, 1]),
        ([0, 1], [0, 1], [-0.1, 1]),
        ([0, 1], [0, math.nan], [0, 1]),
        ([0, 1], [0, 1], [0, math.inf]),
        ([0, 1], [0, 1, 2], [0, 1]),
        ([0, 1], [0, "x"], [0, 1]),
    ],
)
def test_bad_tables_are_refused(t: list, blur: list, noise: list) -> None:
    with pytest.raises(ValueError, match=r"Corruption: expected .*, got"):
        BlurCorruption.from_tables((8, 8), t, blur, noise)


def test_bad_times_sizes_and_ranges_are_refused() -> None:
    c = BlurCorruption.paper((8, 8))
    for t in (-0.01, 1.01, math.nan, 10**400):
        with pytest.raises(
            ValueError, match="expected t as a finite number of at least 0 and at most 1, got"
        ):
            c.blur_std(t)
    with pytest.raises(ValueError, match=r"for images of 8 x 8, got .*\[1, 1, 8, 9\]"):
        c.corrupt(torch.zeros(1, 1, 8, 9), 0.5)
    with pytest.raises(ValueError, match="noise_std_min <= noise_std_max"):
        BlurCorruption.paper((8, 8), noise_std_min=0.2)
    with pytest.raises(ValueError, match="noise_full_at in"):
        BlurCorruption.paper((8, 8), noise_full_at=0.0)
    with pytest.raises(ValueError, match="image_size of at least 1"):
        BlurCorruption.paper((0, 8))


T = torch.tensor([0.25, 0.5])
X = torch.linspace(-1, 1, 2 * 8 * 8).reshape(2, 1, 8, 8)
C = BlurCorruption.paper((8, 8))
OF_T = {
    "blur_std": C.blur_std,
    "noise_std": C.noise_std,
    "corrupt": lambda t: C.corrupt(X, t, key=NoiseKey(1)),
}


@pytest.mark.parametrize("entry", OF_T)
def test_nobody_differentiates_by_t(entry: str) -> None:
    # Rule: as for coefficients. A derivative by t was dropped without a word.
    call = OF_T[entry]
    with pytest.raises(ValueError, match=r"^BlurCorruption: t requires grad, but .*; pass t\.detach\(\)$"):
        call(T.clone().requires_grad_())
    with pytest.raises(ValueError, match="t requires grad"):
        torch.func.grad(lambda t: call(t).sum())(T)
    with pytest.raises(ValueError, match="t requires grad"):
        torch.func.vmap(torch.func.grad(lambda t: call(t.expand(2)).sum()))(T)
    for forward in (torch.func.jvp, lambda f, p, v: torch.func.jacfwd(f)(*p)):
        with pytest.raises(ValueError, match=r"^BlurCorruption: t carries a tangent, but"):
            forward(call, (T,), (T,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ValueError, match="t carries a tangent"):
        call(torch.autograd.forward_ad.make_dual(T, T))
    assert torch.equal(call(T.clone().requires_grad_().detach()), call(T))


def test_a_compiled_derivative_by_t_is_right_or_refused() -> None:
    # Within a graph t's level is not seen. blur_std(t) has a derivative there, the slope of its piece, and
    # an op that gets it as a coefficient refuses it.
    table = BlurCorruption.from_tables((8, 8), [0, 0.5, 1], [0, 1, 5], [0.1, 0.1, 0.1])
    t = torch.tensor([0.25, 0.75])
    by_t = torch.func.grad(lambda t: table.blur_std(t).sum())
    slope = torch.compile(by_t, fullgraph=True, backend="aot_eager")(t)
    torch.testing.assert_close(slope, torch.tensor([2.0, 8.0]))


@pytest.mark.parametrize("entry", OF_T)
def test_times_in_a_tensor_are_held_to_0_to_1(entry: str) -> None:
    # Rule: a tensor on the CPU as a number. 250 was taken for 1.
    call = OF_T[entry]
    for bad in (250.0, -0.5, math.nan, math.inf):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            wanted = "^BlurCorruption: expected t as finite numbers of at least 0 and at most 1"
            with pytest.raises(ValueError, match=f"{wanted}, got {bad} for sample 1$"):
                call(torch.tensor([0.5, bad], dtype=dtype))
    for t in (torch.tensor([0, 1]), torch.tensor([False, True]), torch.tensor([0j, 1])):
        with pytest.raises(
            TypeError, match=r"^BlurCorruption: expected t as a number or a floating-point tensor, got"
        ):
            call(t)
    call(torch.tensor([0.0, 1.0]))


def test_times_that_cannot_be_seen_are_clamped() -> None:
    # In a graph, as on a device, nobody looks; below vmap they can be seen.
    far = torch.tensor([-3.0, 0.5, 250.0])
    assert torch.equal(torch.compile(C.blur_std, backend="eager")(far), C.blur_std(far.clamp(0, 1)))
    with pytest.raises(ValueError, match=r"t as finite numbers of at least 0 and at most 1, got -3\.0"):
        torch.func.vmap(C.blur_std)(far)
    assert C.blur_std(far.to("meta")).shape == (3,)


@pytest.mark.parametrize("entry", OF_T)
def test_t_is_a_number_of_any_library(entry: str) -> None:
    call = OF_T[entry]
    expected = torch.as_tensor(call(0.25))
    for t in (np.float32(0.25), np.array(0.25), Fraction(1, 4), Decimal("0.25")):
        assert torch.equal(torch.as_tensor(call(t)), expected)
    for t in (1, np.int64(1), np.array(1)):
        assert torch.equal(torch.as_tensor(call(t)), torch.as_tensor(call(1.0)))
    for t in ("0.5", True, np.bool_(True), 0.5 + 0j, [0.5], np.array([0.5]), None, "x" * 10**6):
        with pytest.raises(
            TypeError, match=r"^BlurCorruption: expected t as a number or a .*, got "
        ) as refused:
            call(t)
        assert len(str(refused.value)) < 250


def test_tables_are_kept_as_plain_tensors() -> None:
    # Rule: tables that a transform or a fake mode made first are not those that a plain call gets later.
    for i, transform in enumerate(
        (torch.func.functionalize, torch.func.vmap, lambda f: torch.func.grad(lambda t: f(t).sum()))
    ):
        c = BlurCorruption.paper((8, 8), noise_std_min=0.001 * (i + 1))
        transform(lambda y, c=c: y * c.noise_std(T).sum())(T)
        kept = blur._kept_tables(c, "noise_std_nodes", T.device)
        assert not torch._C._functorch.is_functorch_wrapped_tensor(kept)
    c = BlurCorruption.paper((8, 8), noise_std_min=0.005)
    with torch._subclasses.FakeTensorMode() as mode:
        assert c.noise_std(mode.from_tensor(T)).shape == (2,)
    expected = torch.tensor([c.noise_std(float(t)) for t in T])
    torch.testing.assert_close(c.noise_std(T), expected)


def test_builders_take_numbers_of_any_library() -> None:
    for make in (BlurCorruption.paper, BlurCorruption.geometric):
        expected = make((8, 16), blur_std_min=0.5, blur_std_max=3.0, noise_std_max=0.25, noise_full_at=0.5)
        got = make(
            np.array([8, 16]),
            blur_std_min=Fraction(1, 2),
            blur_std_max=np.int64(3),
            noise_std_max=np.array(0.25),
            noise_full_at=Decimal("0.5"),
        )
        assert got == expected and all(type(n) is int for n in got.image_size)
    a = BlurCorruption.from_tables(
        (8, 8), [0, Fraction(1, 2), 1], np.arange(3), torch.tensor([0.0, 0.5, 1.0])
    )
    assert a == BlurCorruption.from_tables((8, 8), [0.0, 0.5, 1.0], [0.0, 1.0, 2.0], [0.0, 0.5, 1.0])
    assert all(type(v) is float for v in (*a.t, *a.blur_std_nodes))


@pytest.mark.parametrize("wrong", ["0.5", True, np.bool_(True), 0.5j, [0.5], None], ids=repr)
def test_builders_refuse_what_is_no_number(wrong: object) -> None:
    for make, name in (
        (lambda v: BlurCorruption.paper((8, 8), blur_std_min=v), "blur_std_min"),
        (lambda v: BlurCorruption.paper((8, 8), noise_std_max=v), "noise_std_max"),
        (lambda v: BlurCorruption.geometric((8, 8), blur_std_min=v), "blur_std_min"),
        (lambda v: BlurCorruption.geometric((8, 8), noise_full_at=v), "noise_full_at"),
        (lambda v: BlurCorruption.noise_only((8, 8), noise_std_max=v), "noise_std_max"),
        (lambda v: BlurCorruption.from_tables((8, 8), [0, 1], [0, v], [0, 1]), "blur_std"),
        (lambda v: BlurCorruption.from_tables((8, 8), v, [0, 1], [0, 1]), "t"),
        (lambda v: BlurCorruption.paper((8, v)), "image_size"),
        (lambda v: BlurCorruption.paper(v), "image_size"),
    ):
        if wrong == [0.5] and name == "t":
            continue
        with pytest.raises((TypeError, ValueError), match=rf"^BlurCorruption.*: expected {name} as "):
            make(wrong)
    for size in ((8.0, 8.0), (8, 8, 8), (10**400, 8), "88", (0, 8), (2**31, 1)):
        with pytest.raises(
            ValueError, match=r"^BlurCorruption.paper: expected image_size .*, got "
        ) as refused:
            BlurCorruption.paper(size)
        assert len(str(refused.value)) < 250
    with pytest.raises(ValueError, match="noise_std_min"):
        BlurCorruption.noise_only((8, 8), noise_std_min=0.0, noise_std_max=1.0)


class Blobs:
    """A data set of smooth images, as a named corruption takes one."""

    name = "blobs"
    pixels = (
        (
            120
            + 100
            * functional.blur(torch.randn(30, 2, 8, 12, generator=torch.Generator().manual_seed(0)), 2.0)
        )
        .clamp(0, 255)
        .byte()
    )
    spectrum = power_spectrum([pixels])


NAMED = {**{f"soft {name}": choice for name, choice in SCHEDULES.items()}, **CORRUPTIONS}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_corruption_uses_the_options_that_it_says(name: str) -> None:
    """Rule: an option has an effect if the registry lists it, and none otherwise."""
    if name in ("soft", "soft wasserstein"):
        pytest.importorskip("scipy")
    make, told, uses = NAMED[name]
    options = CorruptionOptions(nodes=6, blur_std_max=2.0, noise_std_min=0.02, noise_std_max=0.2)
    c, schedule = make(Blobs(), options)
    assert c.image_size == (8, 12) and told
    assert schedule is None or BlurCorruption.from_schedule(schedule) == c
    if "noise_std_max" in uses:
        least = 0.02 if "noise_std_min" in uses else 0.2
        assert c.noise(0.0).item() == pytest.approx(least) and c.noise(1.0).item() == pytest.approx(0.2)
    changes: dict[str, Any] = {
        **{"schedule": "linear", "nodes": 8, "blur_std_max": 3.0, "noise_std_min": 0.03},
        **{"noise_std_max": 0.3, "floor": 0.1, "logsnr_min": -5.0, "logsnr_max": 5.0, "softness": 0.5},
    }
    assert set(changes) == set(vars(options))
    for field, value in changes.items():
        changed = make(Blobs(), dataclasses.replace(options, **{field: value}))[0]
        assert (changed.to_dict() != c.to_dict()) == (field in uses), field


def test_defaults_of_the_named_corruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: noise up to the paper's 0.1, or to noise_std_min where that is more; without blur up to the
    largest distance between two images; IHDM's 0.01 of images in [0, 1]."""
    for least, most in ((0.01, 0.1), (0.3, 0.3)):
        options = CorruptionOptions(schedule="linear", noise_std_min=least)
        c = CORRUPTIONS["soft"].make(Blobs(), options)[0]
        assert isinstance(c, BlurCorruption)
        assert c.noise_std(1.0) == most and c.blur_std(1.0) == pytest.approx(23 * 12 / 64)
    flat = Blobs.pixels.flatten(1).double() / 127.5
    largest = max(float((a - b).norm()) for a in flat for b in flat)
    assert farthest(Blobs.pixels) == pytest.approx(largest, rel=1e-5)
    with monkeypatch.context() as patch:  # in blocks of four images, as of large ones
        patch.setattr(named, "_FARTHEST_NUMBERS", 4 * Blobs.pixels[0].numel() + 1)
        assert farthest(Blobs.pixels) == pytest.approx(largest, rel=1e-5)
    made = {name: CORRUPTIONS[name].make(Blobs(), CorruptionOptions())[0] for name in ("noise", "ihdm")}
    assert made["noise"].noise(1.0) == farthest(Blobs.pixels)
    assert made["ihdm"].noise(0.0) == made["ihdm"].noise(1.0) == 0.02
    assert made["ihdm"].to_dict()["blur_std"][-1] == 6.0


def test_a_file_of_a_corruption(tmp_path: Path) -> None:
    """Rule: `load` gives what `save` wrote, or one sentence with the file's name."""
    file = tmp_path / "c.json"
    paper = BlurCorruption.paper((8, 12))
    paper.save(file)
    assert Corruption.load(file) == paper and Corruption.load(file, (3, 8, 12)) == paper
    with pytest.raises(ValueError, match=r"c\.json: images: the corruption is for images of"):
        Corruption.load(file, (3, 5, 5))
    file.write_text(file.read_text()[:-9])
    with pytest.raises(ValueError, match=r"c\.json: expected a whole JSON file"):
        Corruption.load(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"c\.json: Corruption: expected a dictionary of format"):
        Corruption.load(file)


def test_tables_are_not_differentiated_by() -> None:
    nodes = torch.tensor([0.0, 1.0], requires_grad=True)
    with pytest.raises(ValueError, match=r"^BlurCorruption: blur_std requires grad, but .* in their tables"):
        BlurCorruption.from_tables((8, 8), [0, 1], nodes, [0, 1])
