# SPDX-License-Identifier: Apache-2.0
"""The trainer: exact resume, seeds, per-image noise, and what ends a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from training_runs import CPU, losses, make_trainer, small, tensors

from softdiff_kernels.data.choices import parse_seeds
from softdiff_kernels.diffusion import (
    BlurCorruption,
    Corruption,
    LinearCorruption,
    MaskCorruption,
    SpectralCorruption,
    TrainingLoss,
    generate,
    power_spectrum,
    shortest_path_schedule,
)
from softdiff_kernels.errors import UserError
from softdiff_kernels.images import tile, to_uint8
from softdiff_kernels.noise import NoiseKey
from softdiff_kernels.reference import decode
from softdiff_kernels.training import build
from softdiff_kernels.training.build import UNet, build_model, default_multipliers, scales
from softdiff_kernels.training.checkpoint import load_checkpoint
from softdiff_kernels.training.config import TrainConfig
from softdiff_kernels.training.loop import options_of, resumed_options, train
from softdiff_kernels.training.trainer import ema_decay, learning_rate
from softdiff_kernels.training.weights import load_model


def test_six_steps_equal_three_and_three_more_bit_for_bit(blobs: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(small(blobs, whole))
    train(small(blobs, parts, steps=3))
    resumed = dataclasses.replace(small(blobs, parts), resume=str(parts))
    assert train(resumed).folder == parts
    # Raw weights, averaged weights and Adam's moments, every bit: the order of images, t, noise and
    # mirroring depend on the seed and the place in the run alone.
    expected, found = tensors(whole, 6), tensors(parts, 6)
    assert expected.keys() == found.keys()
    assert {name.partition(".")[0] for name in found} == {"model", "ema", "optimizer", "prior", "spectrum"}
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    assert losses(parts) == losses(whole)


def test_resume_drops_what_it_makes_again(blobs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small(blobs, run, keep=0))
    before = losses(run)
    (run / "stats.jsonl").open("a").write('{"step": 99, "lo')
    train(dataclasses.replace(small(blobs, run, keep=0), resume=str(run / "state-00000003.safetensors")))
    # Steps 4 to 6 are there once, with the same loss, and the half line of a kill is gone.
    assert losses(run) == before


def test_seed_rules_the_run(blobs: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name) + seed)  # what the caller's generator holds must not matter
        train(small(blobs, tmp_path / name, steps=2, seed=seed))
    first, again, other = (tensors(tmp_path / name, 2, "weights") for name in "abc")
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["model.net.conv_in.weight"], other["model.net.conv_in.weight"])


def test_a_batch_is_the_sum_of_its_parts(blobs: Path) -> None:
    trainer = make_trainer(blobs)
    x0, key, _ = trainer.batch(17, 8)
    pieces = [trainer.batch(17, 3), trainer.batch(20, 5)]
    # Images, mirroring and streams hang on the place alone, so processes may share out a batch.
    assert torch.equal(x0, torch.cat([x for x, _, _ in pieces]))
    whole = trainer.denoiser.corruption.corrupt(x0, 0.5, key=key)
    split = [trainer.denoiser.corruption.corrupt(x, 0.5, key=k) for x, k, _ in pieces]
    # The noise is bit for bit the same; the blur's products may be grouped otherwise.
    torch.testing.assert_close(whole, torch.cat(split), rtol=0, atol=1e-5)
    plain = make_trainer(blobs, flip=False).batch(17, 8)[0]
    mirrored = [not torch.equal(a, b) for a, b in zip(x0, plain, strict=True)]
    assert all(torch.equal(a.flip(-1), b) for a, b, m in zip(x0, plain, mirrored, strict=True) if m)
    # 8 fair coins all alike: chance 2^-7 over seeds, and fixed for this one.
    assert 0 < sum(mirrored) < 8


def test_averages_follow_their_recursion(blobs: Path) -> None:
    """Rule: the first average is a copy; each later one is decay old + (1 - decay) new, by its own decay."""
    trainer = make_trainer(blobs, ema=(0.4, 0.2))
    name = "net.conv_in.weight"
    expected: list[torch.Tensor | None] = [None, None]
    for step in range(5):
        trainer.advance()
        now = trainer.model.state_dict()[name].double().clone()
        for i, most in enumerate((0.4, 0.2)):
            decay = min(most, (1 + step) / (10 + step))
            assert ema_decay(most, step) == decay
            # The trainer has counted the step before it averages, so the decay is that of the count before.
            old = expected[i]
            expected[i] = now if old is None else decay * old + (1 - decay) * now
    for average, wanted in zip(trainer.averages, expected, strict=True):
        found = average.module.state_dict()[name].double()
        # Five float32 lerps, each off by a rounding of at most 2^-24 of values under 1.
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert not torch.equal(*(average.module.state_dict()[name] for average in trainer.averages))


def test_every_round_calls_the_loss_as_a_module(blobs: Path) -> None:
    """Rule: a step goes through what a wrapper would wrap, and the checkpoint's names know nothing of it."""
    trainer = make_trainer(blobs, batch_gpu=2)
    calls: list[int] = []
    trainer.loss.register_forward_hook(lambda module, given, losses: calls.append(len(losses)))
    trainer.advance()
    assert isinstance(trainer.loss, TrainingLoss) and calls == [2, 2, 2]
    names = set(trainer.state().part("model"))
    assert names == set(trainer.model.state_dict()) and "net.conv_in.weight" in names


def test_loss_falls_well_below_doing_nothing(blobs: Path) -> None:
    trainer = make_trainer(blobs, lr=4e-3, batch=32, warmup=5, flip=False)
    # Twenty images, each at eight times, under noise that training never draws: the same before and after.
    t = torch.linspace(0.5, 0.95, 8).repeat_interleave(20)
    x0 = trainer.pixels.repeat(8, 1, 1, 1)

    @torch.no_grad()
    def held_out() -> float:
        return float(trainer.denoiser.loss(x0, t, key=NoiseKey(99)).mean())

    before = held_out()
    for _ in range(80):
        trainer.advance()
    # The last layer starts at 0, so the loss before is that of x0_hat = x_t, of which the strong blurs
    # hide all but a third. The sum is over the same noise, so any true gain shows; 0.64 was measured.
    assert held_out() < 0.8 * before


def test_learning_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(data="digits", steps=1000, warmup=100, lr=1.0)
    assert [learning_rate(config, s) for s in (0, 49, 99, 500, 999)] == [0.01, 0.5, 1.0, 1.0, 1.0]
    cosine = dataclasses.replace(config, decay="cosine")
    assert learning_rate(cosine, 100) == 1.0
    # Half way the cosine is 0: 5 % + 95 % / 2; at the end 5 %.
    assert learning_rate(cosine, 550) == pytest.approx(0.525)
    assert learning_rate(cosine, 1000) == pytest.approx(0.05)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 5), (28, 20)])
def test_network_takes_any_size_and_tells_times_apart(channels: int, size: tuple[int, int]) -> None:
    config = TrainConfig(data="digits", width=8, blocks=1)
    model = build_model(config, (channels, *size)).eval()
    x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x, torch.zeros(2)), torch.zeros_like(x))
    torch.nn.init.normal_(model.net.conv_out.weight, generator=torch.Generator().manual_seed(1))
    first, second = model(x, torch.tensor([0.2, 0.2])), model(x, torch.tensor([0.2, 0.3]))
    assert first.shape == x.shape and bool(first.isfinite().all())
    torch.testing.assert_close(first[0], second[0])
    # t has to reach the output even of the narrowest network, whose norms see one channel a group.
    assert float((first[1] - second[1]).detach().abs().max()) > 1e-3


def test_levels_follow_the_shorter_side() -> None:
    sides = {1: 1, 7: 1, 8: 2, 15: 2, 16: 3, 28: 3, 32: 4, 256: 4}
    assert {side: len(default_multipliers(side, 300)) for side in sides} == sides
    with pytest.raises(UserError, match="--width: expected a multiple of 4, got 6"):
        UNet(1, (8, 8), 6, (1,), 1)


@pytest.mark.parametrize(
    "corruption",
    [
        BlurCorruption.paper((8, 6)),
        MaskCorruption((8, 6)),
        LinearCorruption.downsampling((8, 6)),
        SpectralCorruption.equal_snr(torch.linspace(4.0, 0.1, 48).view(8, 6)),
    ],
    ids=lambda corruption: corruption.name,
)
def test_scales_are_the_deviations_of_the_residual_and_of_x_t(
    corruption: Corruption, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (400, 2, 8, 6), dtype=torch.uint8, generator=generator)
    images: Any = SimpleNamespace(pixels=pixels, shape=(2, 8, 6), spectrum=power_spectrum([pixels]))
    scale, input_scale = scales(images, corruption)
    with monkeypatch.context() as patch:  # a few t at a time, as of large images
        patch.setattr(build, "SCALE_NUMBERS", 1000)
        for whole, parts in zip((scale, input_scale), scales(images, corruption), strict=True):
            assert torch.allclose(whole, parts, rtol=1e-6, atol=0)
    for node in (0, 37, 128, 256):
        noise = torch.randn(400, 2, 8, 6, generator=generator)
        x_t, residual = corruption.corrupt(pixels, node / 256, noise=noise, return_residual=True)
        # 38 400 nearly independent residuals: the mean square is off by some sqrt(2 / 38400) = 0.7 %,
        # its root by half of that; four deviations.
        # Without a DCT, 128 of the images stand for all: another 0.7 %.
        assert float(residual.square().mean().sqrt()) == pytest.approx(float(scale[node]), rel=0.02)
        assert float(x_t.square().mean().sqrt()) == pytest.approx(float(input_scale[node]), rel=0.02)


def test_a_weights_file_is_all_that_sampling_needs(blobs: Path, tmp_path: Path) -> None:
    result = train(small(blobs, tmp_path / "run", schedule="wasserstein", steps=3))
    alone = tmp_path / "elsewhere.safetensors"
    result.weights.rename(alone)
    loaded = load_model(str(alone), CPU)
    assert (loaded.shape, loaded.step, loaded.config.schedule) == ((1, 8, 8), 3, "wasserstein")
    state = load_checkpoint(tmp_path / "run" / "state-00000003.safetensors", "state")
    ema = state.part("ema")
    assert ema and all(torch.equal(ema[k], v) for k, v in loaded.denoiser.inner_model.state_dict().items())
    assert loaded.prior.describe().startswith("gaussian-dct")
    assert loaded.denoiser.corruption.name == "schedule"


@pytest.mark.parametrize("sampler", ["momentum", "naive", "ddim", "tacos"])
@pytest.mark.parametrize("prior", ["gaussian", "blurred", "plain"])
def test_a_seed_gives_its_image_in_any_company(blobs: Path, tmp_path: Path, sampler: str, prior: str) -> None:
    result = train(small(blobs, tmp_path / "run", steps=1, prior=prior, flip=False))
    model = load_model(str(result.folder), CPU)
    kwargs: dict[str, Any] = {"sampler": sampler, "steps": 4, "device": CPU}
    together = generate(model.denoiser, model.prior, range(5, 11), batch=6, **kwargs)
    mixed = generate(model.denoiser, model.prior, [9, 2, 5, 10], batch=3, **kwargs)
    # Noise and start are bit for bit the same. The network's sums may be grouped otherwise in another
    # batch, by 1e-6 or so: less than a level, but it can tip a rounding.
    for place, seed in ((0, 9), (2, 5), (3, 10)):
        difference = together[seed - 5].int() - mixed[place].int()
        assert int(difference.abs().max()) <= 1
    assert float((together[0].int() - together[1].int()).abs().float().mean()) > 2


def test_seeds_are_read_as_ranges_and_lists() -> None:
    assert parse_seeds("0-3") == [0, 1, 2, 3]
    assert parse_seeds(" 3,5, 8-10 ") == [3, 5, 8, 9, 10]
    assert parse_seeds("7") == [7]
    for bad in ("", "a", "3-", "-3", "5-2", "0-99999999999", str(2**63)):
        with pytest.raises(UserError, match="--seeds: expected"):
            parse_seeds(bad)


def test_every_level_survives_decoding_and_encoding() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(decode(levels)), levels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_tiles_stand_in_reading_order() -> None:
    pixels = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).mul(40).expand(6, 1, 60, 50).contiguous()
    sheet = np.asarray(tile(pixels, 3, gap=2))
    assert sheet.shape == (2 * 62 + 2, 3 * 52 + 2)
    centres = [[int(sheet[2 + 30 + 62 * r, 2 + 25 + 52 * c]) for c in range(3)] for r in range(2)]
    assert centres == [[0, 40, 80], [120, 160, 200]]


def test_another_run_is_not_a_resumed_one(blobs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small(blobs, run, steps=1))
    again = small(blobs, run, resume=str(run))
    both = r"differ from those .*--width: expected 8, got 16; --seed: expected 0, got 5"
    for change, words in (
        ({"width": 16}, "--width: expected 8"),
        ({"seed": 5}, "--seed: expected 0"),
        ({"seed": 5, "width": 16}, both),
    ):
        with pytest.raises(UserError, match=words):
            train(dataclasses.replace(again, **change))
    other = tmp_path / "other.npz"
    np.savez(other, images=np.zeros((20, 8, 8), np.uint8))
    with pytest.raises(UserError, match="expected the images that the run was trained on"):
        train(dataclasses.replace(again, data=str(other)))
    # Unless it is asked for: another learning rate, and other images; but never another network.
    changed = dataclasses.replace(again, lr=5e-4, data=str(other), steps=2, allow_changes=True)
    resumed = train(dataclasses.replace(changed, outdir=str(tmp_path / "changed")))
    assert resumed.step == 2 and options_of(tmp_path / "changed" / "state-00000002.safetensors").lr == 5e-4
    for change in ({"width": 16}, {"schedule": "linear"}, {"prior": "plain"}, {"ema": (0.5,)}):
        with pytest.raises(UserError, match=r"prior, network and averages of a resumed run cannot change"):
            train(dataclasses.replace(changed, outdir=str(tmp_path / "wider"), **change))
    # What was allowed once is not allowed for ever.
    later = resumed_options(str(tmp_path / "changed"), None)
    assert later is not None and not later.allow_changes
    np.savez(other, images=np.zeros((20, 8, 9), np.uint8))
    with pytest.raises(UserError, match=r"expected images of \[1, 8, 8\]"):
        train(dataclasses.replace(again, data=str(other)))
    with pytest.raises(UserError, match="already contains a run"):
        train(small(blobs, run))
    with pytest.raises(UserError, match="expected a run folder"):
        train(small(blobs, run, resume=str(tmp_path)))


def test_a_run_that_goes_on_from_an_older_state_ends_in_its_own_files(
    blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: what is newest in the folder is of the way that the run went last; what was removed is named."""
    run = tmp_path / "run"
    train(small(blobs, run, keep=0, ema=(0.9, 0.5)))
    older = str(run / "state-00000003.safetensors")
    resumed = small(blobs, run, keep=2, ema=(0.9, 0.5), steps=4, resume=older)
    result = train(resumed)
    assert result.weights.is_file() and result.weights.name == "weights-00000004.safetensors"
    assert "removed state-00000006.safetensors" in capsys.readouterr().err
    for kind in ("state", "weights", "weights-ema0.5"):
        assert [p.name[-20:-12] for p in sorted(run.glob(f"{kind}-0*"))] == ["00000003", "00000004"]
    with pytest.raises(UserError, match="--steps: expected at least 4"):
        train(dataclasses.replace(resumed, steps=2, resume=str(run)))
    # Into another folder: it gets its checkpoint even where there is nothing left to train.
    copied = train(dataclasses.replace(resumed, resume=str(run), outdir=str(tmp_path / "copy")))
    assert copied.weights.is_file()


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_run_begun_again_before_its_first_checkpoint_logs_each_step_once(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: str | None
) -> None:
    """Rule: a log is of the steps that led to the weights; that of an earlier start is set aside."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("softdiff_kernels.training.loop._save", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(small(blobs, run))
    before = losses(run)
    assert [step for step, _ in before] == [1, 2, 3] and not list(run.glob("*.safetensors"))
    train(small(blobs, run, resume=resume))
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4, 5, 6] and losses(run)[:3] == before
    assert losses(run, "stats.jsonl.old") == before


def test_an_unknown_option_is_named_with_its_nearest() -> None:
    """Rule: an option that this version does not know is refused, and a known name that is near is told."""
    with pytest.raises(UserError, match=r"does not know: qqqq; widht \(did you mean width\?\)$"):
        TrainConfig.from_dict({"data": "digits", "widht": 3, "qqqq": 1})


def test_resume_takes_its_options_from_the_run(blobs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small(blobs, run, steps=1))
    found = resumed_options(str(run), None)
    assert found is not None and found.width == 8 and found.resume == str(run)
    assert options_of(run / "state-00000001.safetensors").batch == 6
    assert resumed_options("auto", str(tmp_path / "new")) is None
    with pytest.raises(UserError, match="--outdir"):
        resumed_options("auto", None)


def test_a_schedule_for_another_image_size_is_refused_before_anything_is_written(
    blobs: Path, tmp_path: Path
) -> None:
    pixels = torch.from_numpy(np.load(blobs)["images"])[:, None, :6, :7].contiguous()
    shortest_path_schedule(power_spectrum([pixels]), nodes=4, levels=16).save(tmp_path / "s.json")
    with pytest.raises(UserError, match=r"expected one for images of 8 x 8, got one for 6 x 7"):
        train(small(blobs, tmp_path / "run", schedule=str(tmp_path / "s.json")))
    with pytest.raises(UserError, match=r"--schedule: expected wasserstein, linear, .* or a schedule file"):
        train(small(blobs, tmp_path / "run", schedule="lineal"))
    assert not (tmp_path / "run").exists()
