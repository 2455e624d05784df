# SPDX-License-Identifier: Apache-2.0
"""`softdiff sample`: what it writes, what it can start from, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from training_runs import CPU, small

from softdiff_kernels.commands.sample import SampleConfig, sample
from softdiff_kernels.diffusion import generate
from softdiff_kernels.errors import UserError
from softdiff_kernels.training.loop import train
from softdiff_kernels.training.weights import load_model


@pytest.fixture(scope="module")
def weights(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, long enough that the network says something."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return train(small(blobs, folder, steps=40, lr=4e-3, save_every=40, log_every=40)).weights


def quiet(config: SampleConfig) -> list[Path]:
    return sample(config, lambda _: None)


def pixels(folder: Path, seeds: range) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(Image.open(folder / f"{seed:06d}.png")) for seed in seeds])


def test_everything_that_was_asked_for_is_written_and_agrees(weights: Path, tmp_path: Path) -> None:
    """Rule: PNGs, .npz, grid and trajectory show the same images, and samples.json how they were made."""
    config = SampleConfig(
        str(weights),
        outdir=str(tmp_path / "out"),
        seeds="3-13",
        sampler="momentum",
        steps=12,
        batch=4,
        npz=str(tmp_path / "new" / "all.npz"),
        trajectory=str(tmp_path / "path.png"),
    )
    files = quiet(config)
    assert all(path.is_file() for path in files) and len(files) == 11 + 4
    images = pixels(tmp_path / "out", range(3, 14))
    packed = np.load(tmp_path / "new" / "all.npz")
    assert packed["arr_0"].dtype == np.uint8 and packed["arr_0"].shape == (11, 8, 8, 1)
    assert np.array_equal(packed["arr_0"][..., 0], images)
    assert packed["seeds"].tolist() == list(range(3, 14)) and "labels" not in packed
    # Eight images as rows, ten times as columns, the last of which is the image; each pixel is 6 wide, so
    # that a cell is 48 px and 2 px of gap.
    strip = np.asarray(Image.open(tmp_path / "path.png"))
    assert strip.shape == (8 * 50 + 2, 10 * 50 + 2)
    ends = strip[2:, 2 + 9 * 50 :][:, :48:6]
    shown = np.stack([ends[row * 50 : row * 50 + 48 : 6] for row in range(8)])
    # The first eight are drawn again in one batch: a float's last digit may tip a rounding.
    assert np.abs(shown.astype(int) - images[:8]).max() <= 1
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["sampler"] == "momentum" and record["variance"] == "large" and record["steps"] == 12
    assert record["seeds"] == "3-13" and record["step"] == 40 and record["class"] is None
    assert record["prior"].startswith("gaussian-dct")
    assert record["weights_digest"] == load_model(str(weights), CPU).digest
    assert json.loads(str(packed["record"])) == record


def test_without_steps_the_runs_own_number_is_taken(weights: Path, tmp_path: Path) -> None:
    """Rule: the steps of the run's grids, 64 for these options, and the best sampler for so many; whether
    by the command or in Python."""
    quiet(SampleConfig(str(weights), outdir=str(tmp_path / "out"), seeds="0-1"))
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    model = load_model(str(weights), CPU)
    assert record["steps"] == model.config.sample_steps == 64
    assert record["sampler"] == model.denoiser.corruption.best_sampler(64)
    drawn = generate(model.denoiser, model.prior, [0, 1], steps=64, device=CPU)
    assert torch.equal(model.generate([0, 1]), drawn)
    assert np.array_equal(pixels(tmp_path / "out", range(2)), drawn[:, 0].numpy())


def test_a_folder_holds_images_of_one_making(weights: Path, tmp_path: Path) -> None:
    """Rule: a second call adds its seeds to the record where it draws alike, and is refused where not."""
    once = SampleConfig(str(weights), outdir=str(tmp_path), seeds="0-3", steps=3)
    quiet(once)
    first = pixels(tmp_path, range(4))
    quiet(dataclasses.replace(once, seeds="3-5", grid=False))
    assert np.array_equal(pixels(tmp_path, range(4)), first)
    record = json.loads((tmp_path / "samples.json").read_text())
    # A grid of the seeds before would show other images than the record names.
    assert record["seeds"] == "0-5" and not (tmp_path / "grid.png").exists()
    with pytest.raises(UserError, match=r"already holds 4 images, .*000002\.png, made differently \(steps\)"):
        quiet(dataclasses.replace(once, seeds="0-1", steps=2))
    assert json.loads((tmp_path / "samples.json").read_text()) == record
    assert len(list(tmp_path.iterdir())) == 7
    # The whole folder anew is no mixture; a call that is cut short leaves none of the images before it.
    with patch("softdiff_kernels.commands.sample.save_png", side_effect=OSError), pytest.raises(OSError):
        quiet(dataclasses.replace(once, seeds="0-5", steps=2))
    assert not list(tmp_path.glob("*.png"))
    quiet(dataclasses.replace(once, seeds="0-5", steps=2))
    (tmp_path / "samples.json").unlink()
    with pytest.raises(UserError, match=r"already holds 6 images, .*000000\.png, without a samples\.json"):
        quiet(once)


def test_an_animation_ends_with_the_images(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "path.gif"
    outdir = str(tmp_path)
    quiet(SampleConfig(str(weights), outdir=outdir, seeds="0-3", steps=5, trajectory=str(path)))
    with Image.open(path) as film:
        # The five states before each step, and the images at last, which stay.
        assert film.n_frames == 6 and film.info["duration"] == 60
        film.seek(5)
        assert film.info["duration"] == 2000
        last = np.asarray(film.convert("L")).astype(int)
    grid = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    # GIF has 256 colours, all of which a grey picture's levels are.
    assert np.abs(last - grid).max() <= 1


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"sampler": "momentum", "variance": "small"}, {"variance": "small"}),
        ({"sampler": "ddim", "eta": 0.5}, {"eta": 0.5}),
        ({"sampler": "tacos"}, {}),
        ({"sampler": "naive"}, {}),
        ({"sampler": "ihdm", "delta": 0.05}, {"delta": 0.05}),
        ({"sampler": "ancestral"}, {}),
        ({"sampler": "langevin"}, {}),
        ({"sampler": "multistep"}, {}),
        ({"sampler": "heun"}, {}),
    ],
)
def test_every_sampler_gets_its_options(
    changes: dict[str, Any], options: dict[str, Any], weights: Path, tmp_path: Path
) -> None:
    quiet(SampleConfig(str(weights), outdir=str(tmp_path), seeds="0-3", steps=5, **changes))
    model = load_model(str(weights), CPU)
    wanted = generate(
        model.denoiser,
        model.prior,
        range(4),
        sampler=changes["sampler"],
        steps=5,
        device=CPU,
        options=options,
    )
    assert np.array_equal(pixels(tmp_path, range(4)), wanted[:, 0].numpy())
    other = "naive" if changes["sampler"] != "naive" else "tacos"
    plain = generate(model.denoiser, model.prior, range(4), sampler=other, steps=5, device=CPU)
    assert not torch.equal(plain, wanted)


def test_another_prior_is_fitted_to_the_data_that_is_given(
    weights: Path, blobs: Path, tmp_path: Path
) -> None:
    """Rule: the start is what --prior says, fitted as in training, and the record names it."""
    config = SampleConfig(str(weights), outdir=str(tmp_path / "a"), seeds="0-3", steps=3)
    quiet(config)
    for name, outdir in (("gaussian", "b"), ("blurred", "c"), ("plain", "d")):
        changes: dict[str, Any] = {"prior": name, "data": str(blobs), "outdir": str(tmp_path / outdir)}
        quiet(dataclasses.replace(config, **changes))
    images = {name: pixels(tmp_path / name, range(4)) for name in "abcd"}
    # The weights were trained with the Gaussian prior of the same images.
    assert np.array_equal(images["a"], images["b"])
    assert not np.array_equal(images["a"], images["c"]) and not np.array_equal(images["a"], images["d"])
    assert json.loads((tmp_path / "c" / "samples.json").read_text())["prior"].startswith("blurred-images")
    other = tmp_path / "other.npz"
    np.savez(other, images=np.zeros((4, 8, 9), np.uint8))
    with pytest.raises(UserError, match=r"--data: expected images of \[1, 8, 8\], got \[1, 8, 9\]"):
        quiet(dataclasses.replace(config, prior="blurred", data=str(other)))


def test_low_precision_and_compiling_draw_nearly_the_same(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: bfloat16 moves a pixel by a few levels; a compiled network is called, and moves it by none."""
    config = SampleConfig(str(weights), outdir=str(tmp_path / "fp32"), seeds="0-3", steps=4)
    quiet(config)
    quiet(dataclasses.replace(config, outdir=str(tmp_path / "bf16"), precision="bf16"))
    calls = []

    def compiled(network: Any) -> Any:
        class Counted(torch.nn.Module):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                calls.append(1)
                return network(*args, **kwargs)

        return Counted()

    # The compiler itself takes a minute and is torch's to test; what is ours is that its network is taken.
    monkeypatch.setattr(torch, "compile", compiled)
    quiet(dataclasses.replace(config, outdir=str(tmp_path / "compiled"), compile=True))
    fp32, bf16, through = (pixels(tmp_path / n, range(4)).astype(int) for n in ("fp32", "bf16", "compiled"))
    assert len(calls) == 4 and np.array_equal(through, fp32)
    # bfloat16 has 8 bits: of x0_hat's own size some 1 to 2 levels, of what four steps add up no more than 8.
    assert 0 < np.abs(bf16 - fp32).max() <= 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"variance": "small", "sampler": "ddim"},
            "--variance is for --sampler momentum, got --sampler ddim",
        ),
        ({"eta": 0.5}, "--eta is for --sampler ddim, got no --sampler, so [a-z]+ for [0-9]+ steps"),
        ({"delta": 0.1, "sampler": "naive"}, "--delta is for --sampler ihdm, got --sampler naive"),
        ({"delta": -1.0, "sampler": "ihdm"}, "--delta: expected a number of at least 0, got -1"),
        ({"guidance_interval": (0.5, 0.2)}, r"--guidance-interval: expected two rising times"),
        ({"eta": 2.0, "sampler": "ddim"}, r"--eta: expected a number in \[0, 1\], got 2"),
        ({"prior": "plain"}, "--prior and --data: expected both"),
        ({"trajectory": "path.mp4"}, "--trajectory: expected a name that ends in .png or .gif"),
        ({"npz": "all.zip"}, "--npz: expected a name that ends in .npz"),
        ({"guidance": float("nan")}, "--guidance: expected a finite number"),
        ({"ema": 0.5}, "--ema: expected 0.9995"),
    ],
)
def test_what_no_sampling_could_mean_is_refused(
    changes: dict[str, Any], words: str, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        quiet(SampleConfig(str(weights.parent), outdir=str(tmp_path / "out"), **changes))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_of_sampling_is_not_replaced(weights: Path, tmp_path: Path) -> None:
    """Rule: a data set or a folder by the name of --npz stays as it is, and nothing is drawn first; the
    archive of an earlier call is replaced."""
    config = SampleConfig(str(weights.parent), outdir=str(tmp_path / "out"), seeds="0", steps=1, grid=False)
    npz = tmp_path / "all.npz"
    np.savez(npz, images=np.zeros((2, 8, 8), np.uint8))
    before = npz.read_bytes()
    folder = tmp_path / "dir.npz"
    folder.mkdir()
    for path, words in (
        (npz, "exists already and was not written by softdiff sample"),
        (folder, "got the folder"),
    ):
        with pytest.raises(UserError, match=words):
            quiet(dataclasses.replace(config, npz=str(path)))
    assert npz.read_bytes() == before and not (tmp_path / "out").exists()
    npz.unlink()
    for seeds in ("0", "0-1"):
        quiet(dataclasses.replace(config, npz=str(npz), seeds=seeds))
    with np.load(npz) as archive:
        assert archive["seeds"].tolist() == [0, 1]
