# SPDX-License-Identifier: Apache-2.0
"""SoftDiffusionPipeline and `softdiff export`: the images of `softdiff sample`, in and out of folders."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import DDPMPipeline, UNet2DModel
from training_runs import CPU, small

import softdiff_kernels as sk
from softdiff_kernels.cli import main
from softdiff_kernels.commands.evaluate import EvaluateConfig, samples
from softdiff_kernels.diffusion import (
    BlurCorruption,
    GaussianDCTPrior,
    PlainGaussianPrior,
    SoftDenoiser,
    generate,
)
from softdiff_kernels.integrations.diffusers import (
    SoftDiffusionPipeline,
    SoftDiffusionScheduler,
    SoftPrior,
    SoftUNet2DModel,
    load_pipeline,
)
from softdiff_kernels.training.loop import train
from softdiff_kernels.training.weights import load_model

SEEDS = range(3, 8)


@pytest.fixture(scope="module")
def weights(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, long enough that the network says something."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return train(small(blobs, folder, steps=40, lr=4e-3, save_every=40, log_every=40)).weights


@pytest.fixture(scope="module")
def folder(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, exported."""
    out = tmp_path_factory.mktemp("export") / "blobs-8"
    assert main(["export", "--weights", str(weights.parent), "--format", "diffusers", str(out)]) == 0
    return out


def quiet(pipeline: SoftDiffusionPipeline) -> SoftDiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def made(unet: Any = None, corruption: BlurCorruption | None = None) -> SoftDiffusionPipeline:
    """A pipeline of an untrained network whose output is not 0, for grey images of 8 x 8."""
    torch.manual_seed(0)
    unet = SoftUNet2DModel(in_channels=1, sample_size=(8, 8), width=8, blocks=1) if unet is None else unet
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    scheduler = SoftDiffusionScheduler(image_size=8, corruption=corruption)
    batch = torch.rand(32, 1, 8, 8) * 2 - 1
    return quiet(SoftDiffusionPipeline(unet.eval(), scheduler, SoftPrior.fit([batch], scheduler)))


def levels(images: np.ndarray[Any, Any]) -> Tensor:
    """[B, H, W, C] in [0, 1] as levels [B, C, H, W]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).mul(255).round().int()


@pytest.mark.parametrize(("sampler", "steps"), [(None, 10), (None, 40), ("heun", 5), ("ddim", 7)])
def test_the_pipeline_draws_the_images_of_softdiff_sample(
    weights: Path, folder: Path, tmp_path: Path, sampler: str | None, steps: int
) -> None:
    """Rule: for the same seeds, the images are those of the run, to one level of 255. Without a sampler both
    take the best for the number of steps, multistep in 10 and momentum in 40."""
    want = load_model(str(weights), CPU).generate(list(SEEDS), sampler=sampler, steps=steps)
    if sampler is not None:
        folder = tmp_path / "out"
        command = ["export", "--weights", str(weights), "--sampler", sampler, str(folder)]
        assert main(command) == 0
    pipeline = quiet(SoftDiffusionPipeline.from_pretrained(folder))
    got = pipeline(num_inference_steps=steps, seeds=SEEDS, output_type="np").images
    assert want.float().std() > 10  # there is something to see
    assert (levels(got) - want.int()).abs().max() <= 1
    pictures = pipeline(num_inference_steps=steps, seeds=[SEEDS[1]]).images
    assert np.abs(np.asarray(pictures[0]).astype(int) - want[1, 0].numpy()).max() <= 1


def test_softdiff_sample_draws_from_the_folder(weights: Path, folder: Path, tmp_path: Path) -> None:
    """Rule: `softdiff sample --weights FOLDER` writes the same PNGs as from the run, bit for bit; also from a
    folder that save_pretrained wrote of the loaded pipeline."""
    SoftDiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path / "again")
    common = ["--seeds", "0-3", "--steps", "6", "--batch", "3"]
    pictures = []
    for source in (weights, folder, tmp_path / "again"):
        out = tmp_path / f"from-{source.name}"
        assert main(["sample", "--weights", str(source), "--outdir", str(out), *common]) == 0
        pictures.append(np.stack([np.asarray(Image.open(out / f"{seed:06d}.png")) for seed in range(4)]))
        record = json.loads((out / "samples.json").read_text())
        assert (record["step"], record["sampler"]) == (40, "multistep")
    assert pictures[0].std() > 10
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])


def test_the_other_commands_take_the_folder(
    weights: Path, folder: Path, blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: restore, compare-samplers and evaluate give from the folder what they give from the run, bit for
    bit; the spectrum of the training images, which Wiener's filter and steps even in W2 need, is in it."""
    results = []
    for source in (weights, folder):
        outs = {name: str(tmp_path / f"{source.name}-{name}") for name in ("r", "c.png", "s")}
        degraded = ["--images", str(blobs), "--degrade", "--blur-std", "1", "--num", "3", "--steps", "3"]
        spaced = ["--seeds", "0-1", "--steps", "3", "--spacing", "w2"]
        of = ["--weights", str(source)]
        for argv in (
            ["restore", *of, *degraded, "--outdir", outs["r"]],
            ["sample", *of, *spaced, "--outdir", outs["s"]],
            ["compare-samplers", *of, "--seeds", "0-1", "--steps", "2", "--out", outs["c.png"]],
        ):
            assert main(argv) == 0, capsys.readouterr().err
        restored = json.loads((Path(outs["r"]) / "restored.json").read_text())["results"]
        assert "Wiener" in restored
        config = EvaluateConfig(str(blobs), weights=str(source), seeds="0-3", steps=3)
        measured = samples(config, print).pixels()
        assert measured.float().std() > 10
        pictures = [Path(outs["s"]) / "grid.png", Path(outs["r"]) / "grid.png"]
        results.append((restored, measured.tolist(), [path.read_bytes() for path in pictures]))
    assert results[0] == results[1]


def test_a_conditional_run_of_noise_alone(tmp_path: Path) -> None:
    """Rule: what else a run can be (EDM's prediction, NCSN++, classes, guidance) is in the folder, too: the
    pipeline's images are the run's, and the folder's are, bit for bit."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 6, 10, 3), dtype=np.uint8)
    data = tmp_path / "two.npz"
    np.savez(data, images=pixels, labels=np.arange(12) % 2, classes=["cat", "dog"])
    options = {"corruption": "noise", "noise_std_max": 8.0, "prediction": "edm", "weight": "edm"}
    options |= {"network": "ncsnpp", "conditional": True, "steps": 3, "schedule": "linear", "lr": 1e-2}
    run = train(small(data, tmp_path / "run", **options)).weights
    assert main(["export", "--weights", str(run), str(tmp_path / "out")]) == 0
    pipeline = quiet(SoftDiffusionPipeline.from_pretrained(tmp_path / "out"))
    models = [load_model(str(run), CPU), load_pipeline(str(tmp_path / "out"), CPU)]
    drawing: dict[str, Any] = {"steps": 6, "labels": [0, 1, 1], "guidance": 2.0}
    want, again = (model.generate([1, 2, 3], **drawing) for model in models)
    assert torch.equal(want, again) and want.float().std() > 10
    assert models[1].classes == ("cat", "dog") and models[1].step == 3
    got = pipeline(
        num_inference_steps=6, seeds=[1, 2, 3], class_labels=[0, 1, 1], guidance_scale=2.0, output_type="np"
    ).images
    assert (levels(got) - want.int()).abs().max() <= 1
    assert "| classes | cat, dog |" in (tmp_path / "out" / "README.md").read_text()


ANOTHER_PROCESS = """
import sys
from softdiff_kernels.integrations.diffusers import SoftDiffusionPipeline
import numpy as np, torch

folder, out = sys.argv[1:]
drawn = {}
for name in ("float32", "float16", "bfloat16"):
    pipe = SoftDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, name))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.dtype == getattr(torch, name)
    drawn[name] = pipe(num_inference_steps=5, seeds=range(3), output_type="np").images
    if name == "float32":
        pipe.to("cpu", torch.bfloat16)
        drawn["to"] = pipe(num_inference_steps=5, seeds=range(3), output_type="np").images
np.savez(out, **drawn)
"""


def test_another_process_that_imports_the_class_alone(folder: Path, tmp_path: Path) -> None:
    """Rule: a fresh process loads the folder with weights of 32 and 16 bits; the images of 16 bits are near
    those of 32: a rounding is 2^-8 at most, and here 4 levels in the mean are allowed."""
    out = tmp_path / "drawn.npz"
    subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, str(folder), str(out)], check=True, cwd=tmp_path)
    drawn = np.load(out)
    pipeline = quiet(SoftDiffusionPipeline.from_pretrained(folder))
    here = pipeline(num_inference_steps=5, seeds=range(3), output_type="np").images
    assert np.array_equal(drawn["float32"], here)
    for name in ("float16", "bfloat16", "to"):
        difference = np.abs(drawn[name] - here) * 255
        assert 0 < difference.mean() < 4, name
    assert np.array_equal(drawn["to"], drawn["bfloat16"])


def test_offloading_changes_nothing() -> None:
    """Rule: with the network moved by accelerate's hooks the images are the same. On this machine from the
    CPU to the CPU: the hooks run, and the device is the one that the pipeline asks for."""
    pytest.importorskip("accelerate")
    pipeline = made()
    want = pipeline(num_inference_steps=3, seeds=[0, 1], output_type="np").images
    with patch("diffusers.pipelines.pipeline_utils.empty_device_cache"):
        pipeline.enable_model_cpu_offload(device="cpu")
    assert hasattr(pipeline.unet, "_hf_hook")
    assert np.array_equal(pipeline(num_inference_steps=3, seeds=[0, 1], output_type="np").images, want)


@pytest.mark.parametrize(
    "options",
    [
        {"network": "ncsnpp", "blocks": 1},
        {"sample_size": (5, 7), "multipliers": (1, 2), "patch": 2, "in_channels": 3},
        {"classes": 4, "dropout": 0.1},
    ],
)
def test_every_network_of_softdiff_train_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    """Rule: a saved network has the same output, at timestep k that of `UNet` at t = (k + 1) / T."""
    unet = SoftUNet2DModel(**{"in_channels": 1, "sample_size": (8, 8), "width": 8, **options}).eval()
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    unet.inner_model.scale.mul_(3.0)
    unet.save_pretrained(tmp_path)
    again = SoftUNet2DModel.from_pretrained(tmp_path)
    x = torch.randn(2, unet.config.in_channels, *unet.config.sample_size)
    k, t = torch.tensor([99, 599]), torch.tensor([0.1, 0.6])
    labels = torch.tensor([0, 3]) if unet.config.classes else None
    want = unet.inner_model(x, t, labels)
    got = again(x, k, labels).sample
    assert want.std() > 0 and torch.allclose(got, want, atol=1e-5)
    assert torch.allclose(again(x, 99, labels, return_dict=False)[0][:1], want[:1], atol=1e-5)
    half = again.to(torch.bfloat16)(x.bfloat16(), k, labels).sample
    assert half.dtype == torch.bfloat16 and 0 < (half.float() - want).std() < 0.05 * want.std()


def test_classes_and_guidance_are_those_of_generate() -> None:
    """Rule: class_labels and guidance_scale give the images of `diffusion.generate`; without labels the
    network means any class."""
    pipeline = made(SoftUNet2DModel(in_channels=1, sample_size=(8, 8), width=8, blocks=1, classes=3))
    corruption, prior = pipeline.scheduler.corruption, pipeline.prior.prior
    denoiser = SoftDenoiser(pipeline.unet.inner_model, corruption)
    drawn = {}
    for labels, scale in (([2, 0], 1.0), ([2, 0], 3.0), (1, 1.0), (None, 1.0)):
        listed = [labels] * 2 if isinstance(labels, int) else labels
        want = generate(denoiser, prior, [5, 6], sampler="momentum", steps=4, labels=listed, guidance=scale)
        got = pipeline(
            num_inference_steps=4, seeds=[5, 6], class_labels=labels, guidance_scale=scale, output_type="np"
        ).images
        assert (levels(got) - want.int()).abs().max() <= 1, (labels, scale)
        drawn[str(labels), scale] = want
    assert (drawn["[2, 0]", 3.0].int() - drawn["[2, 0]", 1.0].int()).abs().max() > 3


def test_generators_callbacks_and_forms_of_the_output() -> None:
    """Rule: a list of generators makes each image a function of its own; callbacks see and replace x_s, and
    stop; all forms of the output show the same images."""
    pipeline = made()

    def draw(seeds: list[int], **kw: Any) -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        options: dict[str, Any] = {"num_inference_steps": 4, "output_type": "np", **kw}
        return pipeline(batch_size=len(seeds), generator=generators, **options)

    three, one = draw([1, 2, 3]).images, draw([2]).images
    assert np.abs(three[1:2] - one).max() < 1e-5 and np.abs(three[0] - three[1]).max() > 0.01
    tensor = draw([1, 2, 3], output_type="pt", return_dict=False)[0]
    assert torch.equal(tensor.permute(0, 2, 3, 1), torch.from_numpy(three))
    pictures = draw([1, 2, 3], output_type="pil").images
    assert np.array_equal(np.asarray(pictures[0]), (three[0, ..., 0] * 255).round().astype(np.uint8))

    seen: list[tuple[int, float]] = []

    def halve(pipe: Any, i: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((i, float(timestep)))
        pipe._interrupt = i == 2
        return {"latents": tensors["latents"] * 0.5}

    changed = draw([1, 2, 3], callback_on_step_end=halve).images
    assert seen == [(0, 999.0), (1, 749.0), (2, 499.0)] and pipeline.num_timesteps == 4
    assert np.abs(changed - three).max() > 0.01
    key = sk.NoiseKey(4)
    by_key = [pipeline(3, 4, key, "np").images, pipeline(2, 4, key, "np").images]
    assert np.array_equal(by_key[0][:2], by_key[1])
    assert pipeline(timesteps=[999, 300], output_type="np").images.shape == (1, 8, 8, 1)


def test_a_network_of_diffusers_own(tmp_path: Path) -> None:
    """Rule: a UNet2DModel, which takes timesteps, works in the pipeline, its folder and `softdiff sample`."""
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        layers_per_block=1,
    )
    pipeline = made(unet)
    drawn = pipeline(num_inference_steps=5, seeds=[7, 8], output_type="np").images
    pipeline.save_pretrained(tmp_path / "own")
    model = load_pipeline(str(tmp_path / "own"), CPU)
    want = model.generate([7, 8], sampler="momentum", steps=5)
    assert (levels(drawn) - want.int()).abs().max() <= 1


def test_the_pipeline_of_ddpm_is_warned_about() -> None:
    """Rule: DDPMPipeline begins with white noise, whatever the scheduler, and is met with a warning."""
    pipeline = made()
    other = quiet(DDPMPipeline(pipeline.unet, pipeline.scheduler))
    with pytest.warns(UserWarning, match="DDPMPipeline begins with; draw x_1 from a prior"):
        other(num_inference_steps=2, output_type="np")


def test_the_model_card(weights: Path, folder: Path, tmp_path: Path) -> None:
    """Rule: the card has front matter that YAML reads, and says how the model was made and how far its images
    are, if that was measured."""
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "diffusers" and "softdiff_kernels" in front["tags"]
    for line in ("| data | blobs", "20 images", "| corruption | ", "| preset | none |", "| sampler | auto"):
        assert line in text, line
    assert "| distance | not evaluated |" in text
    results = tmp_path / "results.json"
    digest = load_model(str(weights), CPU).digest
    known = {"metric": "FID", "value": 12.35, "notes": ["few images"], "weights_digest": digest}
    results.write_text(json.dumps([known, {"metric": "KID", "value": 0.5}]))
    out = tmp_path / "card"
    options = ["--evaluation", str(results), "--sampler", "ddim"]
    assert main(["export", "--weights", str(weights), *options, str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "| FID | 12.35 (few images) |" in card
    assert "| KID | 0.5 (not recorded of which weights) |" in card
    assert "| sampler | ddim |" in card and "not evaluated" not in card


# Bad input.


def test_a_folder_without_its_prior(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: without its prior a pipeline is not loaded, nor sampled from; with one passed on, it is."""
    whole = SoftDiffusionPipeline.from_pretrained(folder)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    shutil.rmtree(broken / "prior")
    with pytest.raises(ValueError, match="in prior/, found none"):
        SoftDiffusionPipeline.from_pretrained(broken)
    assert main(["sample", "--weights", str(broken), "--outdir", str(tmp_path / "out")]) == 2
    assert "with its prior" in capsys.readouterr().err
    assert isinstance(SoftDiffusionPipeline.from_pretrained(broken, prior=whole.prior).prior, SoftPrior)
    (broken / "prior").mkdir()
    with pytest.raises(ValueError, match="no such file; expected the prior"):
        SoftDiffusionPipeline.from_pretrained(broken)
    (broken / "prior" / "prior.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match="expected a whole prior"):
        SoftDiffusionPipeline.from_pretrained(broken)
    index = json.loads((broken / "model_index.json").read_text())
    del index["prior"]
    (broken / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="with its prior"):
        SoftDiffusionPipeline.from_pretrained(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["corruption"].update(image_size=[16, 16]), "scheduler 16 x 16, prior 8 x 8"),
        (lambda config: config.update(image_size=[16, 16]), "that of the corruption, [8, 8], got [16, 16]"),
        (lambda config: config.update(format_version=2), "a later softdiff_kernels; upgrade"),
    ],
)
def test_a_folder_whose_scheduler_is_of_another_size_or_later(
    folder: Path, tmp_path: Path, change: Callable[[Any], Any], message: str, capsys: Any
) -> None:
    """Rule: nothing is drawn from it; a sentence says what does not fit."""
    shutil.copytree(folder, tmp_path / "other")
    file = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=re.escape(message)):
        SoftDiffusionPipeline.from_pretrained(tmp_path / "other")
    command = ["sample", "--weights", str(tmp_path / "other"), "--outdir", str(tmp_path / "out")]
    assert main(command) == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_over_something_that_exists(
    weights: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: nothing that exists is changed, and what fails half-way leaves nothing."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["export", "--weights", str(weights), str(folder)]) == 2
    assert "exists already: expected a new folder" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    missing = str(tmp_path / "no" / "out")
    assert main(["export", "--weights", str(weights), missing]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "out")]) == 2
    assert "--weights: expected" in capsys.readouterr().err

    def full(self: SoftPrior, save_directory: Any, **_: Any) -> None:
        raise OSError(28, "No space left on device")

    with patch.object(SoftPrior, "save_pretrained", full):
        assert main(["export", "--weights", str(weights), str(tmp_path / "out")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out.partial").mkdir()
    assert main(["export", "--weights", str(weights), str(tmp_path / "out")]) == 2
    assert "of another export, or of one that was killed" in capsys.readouterr().err
    results = tmp_path / "results.json"
    results.write_text("[1]")
    command = ["export", "--weights", str(weights), "--evaluation", str(results), str(tmp_path / "out")]
    assert main(command) == 2 and "results of `softdiff evaluate" in capsys.readouterr().err
    # The distance of another model is not put on the card.
    results.write_text(json.dumps([{"metric": "FID", "value": 1.0, "weights_digest": "another"}]))
    assert main(command) == 2 and "got those of other weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["sample", "--weights", str(folder), "--ema", "0.5"]) == 2
    assert "--ema:" in capsys.readouterr().err


def other_scheduler(pipeline: SoftDiffusionPipeline) -> None:
    scheduler = SoftDiffusionScheduler(image_size=16)
    SoftDiffusionPipeline(pipeline.unet, scheduler, pipeline.prior)


def other_timesteps(pipeline: SoftDiffusionPipeline) -> None:
    scheduler = SoftDiffusionScheduler(image_size=8, num_train_timesteps=500)
    SoftDiffusionPipeline(pipeline.unet, scheduler, pipeline.prior)


def other_prior(pipeline: SoftDiffusionPipeline) -> None:
    SoftDiffusionPipeline(pipeline.unet, pipeline.scheduler, PlainGaussianPrior((8, 8), 3, 1.0))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (other_scheduler, "images of one size, got scheduler 16 x 16, prior 8 x 8, unet 8 x 8"),
        (other_timesteps, "a scheduler of 1000 timesteps, as the unet, got 500"),
        (other_prior, "a prior of 1 channels"),
        (lambda p: p(output_type="latent"), "output_type"),
        (lambda p: p(batch_size=0), "batch_size"),
        (lambda p: p(seeds=[1], batch_size=2), "one for each image"),
        (lambda p: p(seeds=[1], generator=torch.Generator()), "without a generator"),
        (lambda p: p(class_labels=0), "no class_labels"),
        (lambda p: p(guidance_scale=2.0), "expected class_labels for guidance_scale 2"),
        (lambda p: p(callback_on_step_end_tensor_inputs=["x"]), "among"),
        (lambda p: SoftPrior.fit([{"pixels": torch.zeros(1, 1, 8, 8)}], p.scheduler), "got pixels"),
    ],
)
def test_parts_and_arguments_that_do_not_fit(use: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        use(made())


def test_parts_of_the_wrong_kind() -> None:
    pipeline = made()
    with pytest.raises(TypeError, match="expected a prior, from which sampling starts, got NoneType"):
        SoftDiffusionPipeline(pipeline.unet, pipeline.scheduler, None)
    with pytest.raises(TypeError, match="expected a SoftDiffusionScheduler"):
        SoftDiffusionPipeline(pipeline.unet, None, pipeline.prior)
    with pytest.raises(TypeError, match="expected a Prior"):
        SoftPrior(3)


def test_a_prior_in_a_folder_is_the_same(tmp_path: Path) -> None:
    """Rule: x_1 of a saved prior is the same, bit for bit."""
    scheduler = SoftDiffusionScheduler(image_size=8)
    prior = SoftPrior(GaussianDCTPrior.fit([torch.rand(32, 1, 8, 8)], scheduler.corruption))
    prior.save_pretrained(tmp_path)
    again = SoftPrior.from_pretrained(tmp_path)
    assert torch.equal(prior.sample(3, sk.NoiseKey(1)), again.sample(3, sk.NoiseKey(1)))
