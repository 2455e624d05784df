# SPDX-License-Identifier: Apache-2.0
"""--corruption on the command line: each name trains, is saved whole, and samples by its own sampler."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from softdiff_kernels.cli import main
from softdiff_kernels.diffusion import CORRUPTIONS, Corruption, LinearCorruption, register
from softdiff_kernels.training.weights import load_model

pytest.importorskip("diffusers")
pytest.importorskip("tyro")
TINY = ["--width", "8", "--blocks", "1", "--batch", "4", "--no-progress", "--sample-count", "2"]
TINY += ["--sample-steps", "2", "--steps", "2", "--device", "cpu"]
# The sampler of few steps, and of many.
SUITS = {"soft": ("multistep", "momentum"), "blurring": ("multistep", "ancestral")}
SUITS |= {"ihdm": ("multistep", "ihdm"), "mask": ("multistep",) * 2, "noise": ("multistep",) * 2}
SUITS |= {"equal-snr": ("ddim",) * 2, "file": ("momentum",) * 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve grey 8 x 8 images."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        pixels = torch.randint(0, 256, (8, 8), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def runs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each corruption that has a name, and of one in a file."""
    folder = tmp_path_factory.mktemp("runs")
    LinearCorruption.downsampling((8, 8), 4).save(folder / "file.json")
    found = {}
    for name in (*CORRUPTIONS, "file"):
        found[name] = folder / name
        argv = ["train", "--data", str(pictures), "--outdir", str(found[name]), *TINY]
        argv += ["--corruption", str(folder / "file.json") if name == "file" else name]
        own = {"soft": ["--sampler", "naive"], "blurring": ["--prediction", "noise"]}
        argv += own.get(name, [])
        assert main(argv) == 0, name
    return found


@pytest.mark.parametrize("name", SUITS)
def test_a_run_of_each_corruption_samples_by_the_sampler_for_its_steps(
    name: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: weights carry the corruption whatever it is, and sample takes the sampler that suits it and the
    number of steps, and says so; also where the run's own option, of the grids in training, is another."""
    saved = load_model(str(runs[name]), torch.device("cpu"))
    corruption = saved.denoiser.corruption
    few, many = SUITS[name]
    assert (corruption.best_sampler(3), corruption.best_sampler(1000)) == (few, many)
    assert (
        Corruption.from_dict(json.loads(json.dumps(corruption.to_dict()))).to_dict() == corruption.to_dict()
    )
    assert saved.spectrum is not None and saved.spectrum.power.shape == (1, 8, 8)
    argv = ["sample", "--weights", str(runs[name]), "--seeds", "0-1", "--steps", "3", "--device", "cpu"]
    assert main([*argv, "--outdir", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "samples.json").read_text())
    assert record["sampler"] == few
    chosen = "in 3 steps, chosen for this number of steps"
    assert f"the {few} sampler {chosen}" in capsys.readouterr().out
    assert main([*argv, "--outdir", str(tmp_path / "asked"), "--sampler", few]) == 0
    assert "chosen" not in capsys.readouterr().out
    # An even spacing in what the data travel, where there are frequencies.
    code = main([*argv, "--outdir", str(tmp_path / "w2"), "--spacing", "w2"])
    if corruption.basis == "dct":
        assert code == 0
    else:
        said = capsys.readouterr().err
        assert code == 2 and "--spacing: " in said and "over DCT frequencies" in said


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    said = capsys.readouterr().err
    assert said.startswith("softdiff: error: ") and said.count("\n") == 1
    return said


def test_what_makes_no_sense_is_refused_before_anything_is_drawn(
    runs: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: one sentence with the reason, and no file."""
    out = str(tmp_path / "out")
    for name, sampler, reason in (
        ("noise", "tacos", "expected little noise, for it keeps that of t = 1"),
        ("file", "ancestral", "diagonal in a basis"),
    ):
        argv = ["sample", "--weights", str(runs[name]), "--sampler", sampler, "--outdir", out]
        assert reason in refused(capsys, *argv, "--device", "cpu")
    train = ["train", "--data", str(pictures), "--outdir", out, *TINY]
    assert "--corruption: expected soft, blurring, " in refused(capsys, *train, "--corruption", "blur")
    assert "tacos: expected little noise" in refused(
        capsys, *train, "--corruption", "noise", "--sampler", "tacos"
    )
    assert "--density: " in refused(capsys, *train, "--corruption", "mask", "--density", "w2")
    assert "for the prediction" in refused(capsys, *train, "--corruption", "mask", "--prediction", "noise")
    LinearCorruption.downsampling((8, 8), 4).save(tmp_path / "small.json")
    said = refused(capsys, *train, "--corruption", str(tmp_path / "small.json"), "--loss", "increment")
    assert "--prediction and --loss: " in said and "diagonal in a basis" in said
    LinearCorruption.downsampling((16, 16), 4).save(tmp_path / "large.json")
    said = refused(capsys, *train, "--corruption", str(tmp_path / "large.json"))
    assert "large.json: " in said and "16 x 16" in said
    (tmp_path / "not.json").write_text("{")
    assert "a whole JSON file" in refused(capsys, *train, "--corruption", str(tmp_path / "not.json"))
    assert not Path(out).exists()


def test_noise_alone_is_trained_and_sampled_as_edm_does(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: the noise-only baseline needs options alone; with them blur is refused before it is trained."""
    edm = ["--prediction", "edm", "--weight", "edm", "--loss", "plain", "--density", "log_normal"]
    train = ["train", "--data", str(pictures), "--outdir", str(tmp_path / "run"), *TINY]
    assert main([*train, "--corruption", "noise", *edm, "--sampler", "heun"]) == 0
    draw = ["sample", "--weights", str(tmp_path / "run"), "--seeds", "0-1", "--steps", "3", "--device", "cpu"]
    draw += ["--sampler", "heun", "--spacing", "karras", "--outdir", str(tmp_path / "images")]
    assert main(draw) == 0
    record = json.loads((tmp_path / "images" / "samples.json").read_text())
    assert (record["sampler"], record["spacing"]) == ("heun", "karras")
    for flags, reason in (
        (edm[:2], 'expected white noise alone for "edm"'),
        (edm[2:4], 'expected white noise alone for "edm"'),
        (edm[6:], "--density: .* expected noise over mean that grows with t"),
    ):
        said = refused(capsys, *train[:3], "--outdir", str(tmp_path / "out"), *TINY, *flags)
        assert re.search(reason, said), said
    assert not (tmp_path / "out").exists()


def test_a_corruption_of_ones_own_is_named_by_its_file(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: what is registered can be trained, saved and sampled; what is not is refused by its kind."""

    class Fade(Corruption):
        def __init__(self, image_size: Any) -> None:
            self.image_size = tuple(image_size)

        def gain(self, t: Any) -> torch.Tensor:
            return (1 - torch.as_tensor(t, dtype=torch.float64) / 2).reshape(-1, 1, 1, 1)

        def noise(self, t: Any) -> torch.Tensor:
            return torch.full_like(self.gain(t), 0.1)

        def config(self) -> dict[str, Any]:
            return {"image_size": list(self.image_size)}

    register("test-fade")(Fade)
    file = tmp_path / "fade.json"
    Fade((8, 8)).save(file)
    argv = ["train", "--data", str(pictures), "--outdir", str(tmp_path / "run"), *TINY, "--corruption"]
    assert main([*argv, str(file)]) == 0
    again = load_model(str(tmp_path / "run"), torch.device("cpu"))
    assert isinstance(again.denoiser.corruption, Fade)
    draw = ["sample", "--weights", str(tmp_path / "run"), "--seeds", "0", "--steps", "2", "--device", "cpu"]
    assert main([*draw, "--outdir", str(tmp_path / "images")]) == 0
    file.write_text(file.read_text().replace("test-fade", "unknown-fade"))
    said = refused(capsys, *argv, str(file))
    assert "expected a kind among " in said and "import the module that registers it" in said
