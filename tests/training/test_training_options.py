# SPDX-License-Identifier: Apache-2.0
"""What the trainer's options do: classes, precision, several averages, networks, processes of corruption."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from training_runs import CPU, losses, make_trainer, small, tensors

from softdiff_kernels.commands.sample import SampleConfig, sample
from softdiff_kernels.data import load_images
from softdiff_kernels.data.choices import class_list, labels_of
from softdiff_kernels.diffusion import BlurCorruption, Guided, generate
from softdiff_kernels.diffusion.named import farthest
from softdiff_kernels.errors import UserError
from softdiff_kernels.training.build import build_model, make_corruption
from softdiff_kernels.training.checkpoint import load_checkpoint
from softdiff_kernels.training.config import TrainConfig
from softdiff_kernels.training.loop import run_name, train
from softdiff_kernels.training.metrics import Meter
from softdiff_kernels.training.ncsnpp import NCSNpp
from softdiff_kernels.training.presets import PRESETS
from softdiff_kernels.training.trainer import Trainer
from softdiff_kernels.training.weights import load_model


@pytest.fixture(scope="module")
def two_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty 8 x 8 pictures of two classes: upright stripes and level stripes, which a strong blur hides."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 40, size=(40, 8, 8)).astype(np.uint8)
    labels = np.arange(40) % 2
    images[labels == 0, :, ::2] += 200
    images[labels == 1, ::2, :] += 200
    path = tmp_path_factory.mktemp("data") / "kinds.npz"
    np.savez(path, images=images, labels=labels)
    return path


def test_a_conditional_model_learns_its_classes(two_kinds: Path, tmp_path: Path) -> None:
    """Rule: an image asked for by class is of that class, and a guided one is so the more."""
    run = tmp_path / "run"
    options: dict[str, Any] = {"conditional": True, "flip": False, "batch": 16, "class_dropout": 0.2}
    train(small(two_kinds, run, steps=120, lr=4e-3, save_every=120, ema=(0.9,), **options))
    model = load_model(str(run), CPU)
    assert model.classes == ("0", "1")

    def leaning(label: int, guidance: float) -> float:
        images = generate(
            model.denoiser,
            model.prior,
            range(16),
            steps=8,
            device=CPU,
            labels=[label] * 16,
            guidance=guidance,
        ).double()
        return float(images.diff(dim=-1).abs().mean() - images.diff(dim=-2).abs().mean())

    # In truth about 190 and -190. The starts are the same, so all that tells the images apart is the label.
    apart = leaning(0, 1.0) - leaning(1, 1.0)
    assert apart > 40
    assert leaning(0, 2.0) - leaning(1, 2.0) > apart
    # Some labels are hidden, at about the share that was asked for, and as a function of the place alone.
    trainer = make_trainer(two_kinds, **options)
    told = torch.cat([trainer.batch(i * 40, 40)[2]["class_labels"] for i in range(20)])
    assert 0.2 - 4 * 0.015 < float((told == 2).double().mean()) < 0.2 + 4 * 0.015  # sqrt(.2 * .8 / 800)
    parts = [trainer.batch(80 + i * 8, 8)[2]["class_labels"] for i in range(5)]
    assert torch.equal(torch.cat(parts), told[80:120])


def test_guidance_is_what_the_formula_says(two_kinds: Path) -> None:
    """Rule: x0_hat(any) + w (x0_hat(class) - x0_hat(any)), and the class alone at w = 1."""
    trainer = make_trainer(two_kinds, conditional=True)
    torch.nn.init.normal_(trainer.model.net.conv_out.weight, generator=torch.Generator().manual_seed(0))
    denoiser = trainer.averaged
    denoiser.inner_model.load_state_dict(trainer.model.state_dict())
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels, t = torch.tensor([0, 1, 1]), torch.full((3,), 0.5)
    with torch.no_grad():
        by_class, free = denoiser(x, t, class_labels=labels), denoiser(x, t)
        hidden = denoiser(x, t, class_labels=torch.full((3,), 2))
        assert torch.equal(free, hidden) and not torch.equal(free, by_class)
        assert torch.equal(Guided(denoiser, labels, 1.0)(x, t), by_class)
        # A lerp of numbers of size 10 in float32: a few roundings of 6e-7.
        torch.testing.assert_close(Guided(denoiser, labels, 2.5)(x, t), free + 2.5 * (by_class - free))
    with pytest.raises(TypeError, match="expected class_labels as int64"):
        Guided(denoiser, labels.float())


def test_guidance_needs_images_without_a_class_in_training(two_kinds: Path, tmp_path: Path) -> None:
    train(small(two_kinds, tmp_path / "run", steps=1, conditional=True, class_dropout=0.0))
    with pytest.raises(UserError, match="never saw an image without its class"):
        sample(SampleConfig(str(tmp_path / "run"), outdir=str(tmp_path / "out"), steps=1, guidance=2.0))


def test_no_seeds_make_no_images(blobs: Path) -> None:
    """Rule: a process that is left without images takes part in gathering all the same."""
    trainer = make_trainer(blobs)
    none = generate(trainer.averaged, trainer.prior, [], steps=2, device=CPU)
    assert none.shape == (0, 1, 8, 8) and none.dtype == torch.uint8


def test_classes_need_labels_and_a_model_that_knows_them(
    blobs: Path, two_kinds: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="label"):
        train(small(blobs, tmp_path / "none", conditional=True))
    assert not (tmp_path / "none").exists()
    train(small(blobs, tmp_path / "plain", steps=1))
    train(small(two_kinds, tmp_path / "kinds", steps=1, conditional=True))
    plain, kinds = (str(tmp_path / name) for name in ("plain", "kinds"))
    for changes in ({"classes": "0"}, {"guidance": 2.0}):
        with pytest.raises(UserError, match="was trained without classes"):
            sample(SampleConfig(plain, outdir=str(tmp_path / "out"), steps=1, **changes))
    model = load_model(kinds, CPU)
    with pytest.raises(UserError, match="--classes: expected numbers under 2"):
        class_list("0-2", model.classes)
    # Seed 5 gets the same class whatever is drawn beside it.
    assert labels_of([4, 5, 9], class_list(None, model.classes)) == [0, 1, 1]
    assert labels_of([5], class_list("1,0,0", model.classes)) == [0]
    # Labels that changed make it another run.
    other = tmp_path / "other.npz"
    np.savez(other, images=np.load(two_kinds)["images"], labels=1 - np.load(two_kinds)["labels"])
    resumed = small(other, tmp_path / "kinds", steps=2, conditional=True, resume=kinds)
    with pytest.raises(UserError, match="expected the images that the run was trained on"):
        train(resumed)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
def test_low_precision_trains_as_float32_does(precision: Any, blobs: Path, tmp_path: Path) -> None:
    """Rule: the losses of a few steps follow float32's to the type's precision, and a resume is exact."""
    changes: dict[str, Any] = {"steps": 4, "save_every": 2, "keep": 0}
    train(small(blobs, tmp_path / "exact", **changes))
    try:
        train(small(blobs, tmp_path / "low", precision=precision, **changes))
        resumed = small(blobs, tmp_path / "again", precision=precision, **changes)
        state = str(tmp_path / "low" / "state-00000002.safetensors")
        train(dataclasses.replace(resumed, resume=state))
        wanted = "high" if precision == "tf32" else "highest"
        assert torch.get_float32_matmul_precision() == wanted
    finally:
        torch.set_float32_matmul_precision("highest")
    pairs = zip(losses(tmp_path / "low"), losses(tmp_path / "exact"), strict=True)
    # bfloat16 rounds to 2^-9; through some ten layers and a squared error, 5 % is generous and far from 1.
    assert all(low[1] == pytest.approx(exact[1], rel=0.05) for low, exact in pairs)
    found, wanted = tensors(tmp_path / "again", 4), tensors(tmp_path / "low", 4)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    # Master weights stay in float32.
    assert wanted["model.net.conv_in.weight"].dtype == torch.float32


def test_a_gradient_that_overflows_in_float16_is_left_out_and_counted(blobs: Path) -> None:
    """Rule: the step is skipped, the scale falls, and the run's line counts it instead of ending."""
    trainer = make_trainer(blobs, precision="fp16", warmup=0)
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**100})
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    meter = Meter(trainer)
    found = trainer.advance()
    meter.add(found)
    line = meter.line(-1)
    assert not bool(found.norm.isfinite()) and line["overflows"] == 1 and line["grad_norm"] == 0
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert trainer.scaler.get_scale() == 2.0**99
    json.dumps(line, allow_nan=False)
    # Without a scale that could fall the weights are spoiled, and the run ends before they are saved.
    exact = make_trainer(blobs)
    meter = Meter(exact)
    meter.add(exact.advance()._replace(norm=torch.tensor(float("inf"))))
    with pytest.raises(UserError, match=r"gradient is no longer finite in 1 of the 1 steps"):
        meter.line(-1)


def test_every_average_has_its_own_weights_file(blobs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small(blobs, run, ema=(0.9, 0.2), keep=1))
    assert sorted(p.name for p in run.glob("*.safetensors")) == [
        *("state-00000006.safetensors", "weights-00000006.safetensors"),
        "weights-ema0.2-00000006.safetensors",
    ]
    first, second = load_model(str(run), CPU), load_model(str(run), CPU, 0.2)
    name = "inner_model.net.conv_in.weight"
    stored = tensors(run, 6)
    for model, part in ((first, "ema"), (second, "ema1")):
        assert torch.equal(model.denoiser.state_dict()[name], stored[f"{part}.net.conv_in.weight"])
    assert not torch.equal(first.denoiser.state_dict()[name], second.denoiser.state_dict()[name])
    # The first goes by its decay, too; one that no file holds is refused, and a file of another.
    by_decay = load_model(str(run), CPU, 0.9).denoiser.state_dict()
    assert torch.equal(by_decay[name], first.denoiser.state_dict()[name])
    with pytest.raises(UserError, match=r"--ema: expected 0\.9, which .* contains, got 0\.5"):
        load_model(str(run), CPU, 0.5)
    with pytest.raises(UserError, match=r"--ema: expected 0\.2"):
        load_model(str(run / "weights-ema0.2-00000006.safetensors"), CPU, 0.9)
    resumed = small(blobs, run, ema=(0.9, 0.2), steps=8, resume=str(run))
    assert train(resumed).step == 8


def test_dropout_is_resumed_exactly(blobs: Path, tmp_path: Path) -> None:
    """Rule: what is dropped depends on the seed and the place alone, and something is."""
    for name, dropout in (("whole", 0.3), ("none", 0.0)):
        train(small(blobs, tmp_path / name, dropout=dropout))
    train(small(blobs, tmp_path / "parts", dropout=0.3, steps=3))
    torch.manual_seed(123)
    train(small(blobs, tmp_path / "parts", dropout=0.3, resume=str(tmp_path / "parts")))
    whole, parts = tensors(tmp_path / "whole", 6), tensors(tmp_path / "parts", 6)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert losses(tmp_path / "whole") != losses(tmp_path / "none")


def test_a_preset_for_other_channels_is_refused(tmp_path: Path) -> None:
    """Rule: before anything is written, with what was got, what the preset wants, and a way out."""
    colours = tmp_path / "colours.npz"
    np.savez(colours, images=np.zeros((20, 8, 8, 3), np.uint8))
    config = small(colours, tmp_path / "run", preset="mnist", channels=1)
    said = r"expected images of 1 channels \(preset mnist\), got 3; convert them with .*--channels 3"
    with pytest.raises(UserError, match=said):
        train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [(32, 32), (28, 20), (9, 7)])
@pytest.mark.parametrize(
    ("network", "channels", "patch"), [("ncsnpp", 3, 1), ("ncsnpp", 1, 2), ("ddpm", 1, 2), ("ddpm", 4, 3)]
)
def test_networks_of_the_presets_take_images_of_any_size(
    network: Any, channels: int, patch: int, size: tuple[int, int]
) -> None:
    config = TrainConfig("x", network=network, width=32, multipliers=(1, 2, 2), blocks=1, patch=patch)
    model = build_model(config, (channels, *size)).eval()
    x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    assert isinstance(model.net, NCSNpp) == (network == "ncsnpp")
    assert model(x, torch.rand(2)).shape == x.shape
    model.train()
    model(x, torch.rand(2)).sum().backward()
    # Everything learns from the first step on, but what a last layer of zeros hides.
    assert float(model.net.conv_out.weight.grad.abs().sum()) > 0


def test_corruption_processes_are_what_their_names_say(blobs: Path) -> None:
    images = load_images(str(blobs))
    options = TrainConfig(str(blobs), nodes=8)

    def made(**changes: Any) -> BlurCorruption:
        corruption = make_corruption(dataclasses.replace(options, **changes), images)[0]
        assert isinstance(corruption, BlurCorruption)
        return corruption

    noise, geometric, linear = (
        made(corruption="noise"),
        made(schedule="geometric"),
        made(schedule="linear"),
    )
    assert noise.blur_std(1.0) == 0 and noise.noise_std(0.0) == 0.01
    # By definition the largest distance between two images in [-1, 1], here of 20.
    flat = images.pixels.flatten(1).double() / 127.5
    largest = max(float((a - b).norm()) for a in flat for b in flat)
    assert farthest(images.pixels) == pytest.approx(largest, rel=1e-5)
    assert noise.noise_std(1.0) == pytest.approx(largest, rel=1e-5)
    # Geometric in t: the logarithm is a line, but for 3.2e-4 between its nodes.
    assert noise.noise_std(0.5) == pytest.approx((0.01 * largest) ** 0.5, rel=1e-3)
    assert geometric.blur_std(0.0) == 0.01 and geometric.blur_std(0.01) == pytest.approx(0.5)
    most = linear.blur_std(1.0)
    assert geometric.blur_std(1.0) == most == pytest.approx(23 / 8)
    assert geometric.blur_std(0.505) == pytest.approx((0.5 * most) ** 0.5, rel=1e-3)
    assert linear.blur_std(0.5) == pytest.approx((0.01 + most) / 2)
    assert geometric.noise_std(1.0) == linear.noise_std(1.0) == 0.1
    assert made(corruption="noise", noise_std_max=3.0).noise_std(1.0) == 3.0
    # A preset must not hold VE to the paper's 0.1, which is for blurs.
    values = {key: setting.value for key, setting in PRESETS["mnist"].items()}
    ve = TrainConfig(**{"data": str(blobs), **values, "corruption": "noise"})
    assert make_corruption(ve, images)[0].noise(1.0).item() == pytest.approx(largest, rel=1e-5)
    soft = TrainConfig(**{"data": str(blobs), **values, "schedule": "linear"})
    assert make_corruption(soft, images)[0].noise(1.0) == 0.1


def test_a_run_is_named_by_what_it_is() -> None:
    config = TrainConfig("x", preset="cifar10", batch=256, precision="bf16", desc="try two")
    assert run_name(config, "photos") == "photos-cifar10-bs256-bf16-try two"
    assert run_name(TrainConfig("digits", preset="digits"), "digits") == "digits-bs64-fp32"


def test_edms_preconditioning_is_restored_with_its_deviation(blobs: Path, tmp_path: Path) -> None:
    """Rule: data_std is the deviation of the images that a run began with; generated images are the trainer's
    own from its weights file, and after a resumption with other images."""
    edm: dict[str, Any] = {"prediction": "edm", "weight": "edm", "loss": "plain", "corruption": "noise"}
    config = small(blobs, tmp_path / "run", steps=3, sample_steps=3, lr=0.05, **edm)
    train(config)
    loaded, images = load_model(str(tmp_path / "run"), CPU), load_images(str(blobs))
    values = images.pixels.double() / 127.5 - 1
    # The spectrum is of float32 transforms.
    assert loaded.denoiser.data_std == pytest.approx(float(values.std(correction=0)), rel=1e-6)
    assert abs(loaded.denoiser.data_std - 0.5) > 0.01  # no default is taken for it
    c, network = loaded.denoiser.corruption, loaded.denoiser.inner_model
    assert isinstance(c, BlurCorruption)
    sigma, std = c.noise_std(torch.linspace(0, 1, 257, dtype=torch.float64)), loaded.denoiser.data_std
    root = (sigma**2 + std**2).sqrt()
    torch.testing.assert_close(network.scale, (sigma * std / root).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(network.input_scale, root.float(), rtol=1e-6, atol=0)
    for kept in (images, dataclasses.replace(images, pixels=images.pixels // 2)):
        trainer = Trainer(config, kept, c, loaded.prior, CPU)
        started = trainer.data_std
        trainer.load_state(load_checkpoint(tmp_path / "run" / "state-00000003.safetensors", "state"), "state")
        assert trainer.denoiser.data_std == trainer.averaged.data_std == trainer.data_std == std
        got = trainer.sample(range(3))
        assert torch.equal(got, loaded.generate(range(3), steps=3, batch=6)) and got.float().std() > 1
        assert trainer.weights().meta["data_std"] == std
    assert started < 0.6 * std
    trainer.averaged.data_std = started
    assert not torch.equal(trainer.sample(range(3)), got)  # so that the deviation matters


def test_edms_preconditioning_is_for_noise_alone(blobs: Path, tmp_path: Path) -> None:
    for changes in ({"prediction": "edm"}, {"weight": "edm"}):
        with pytest.raises(
            UserError, match=r'--prediction.*: SoftDenoiser: expected white noise alone for "edm"'
        ):
            train(small(blobs, tmp_path / "run", **changes))
