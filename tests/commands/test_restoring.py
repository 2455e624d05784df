# SPDX-License-Identifier: Apache-2.0
"""`softdiff restore`: what it writes and measures, masks, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from training_runs import CPU

import softdiff_kernels as sk
from softdiff_kernels.cli import main
from softdiff_kernels.commands.restore import RestoreConfig, measured, restore_images
from softdiff_kernels.diffusion import DDIM, MaskCorruption, blur_gain, power_spectrum, restore, wiener
from softdiff_kernels.errors import UserError
from softdiff_kernels.images import decode, to_uint8
from softdiff_kernels.training.checkpoint import load_checkpoint
from softdiff_kernels.training.config import TrainConfig
from softdiff_kernels.training.loop import train
from softdiff_kernels.training.weights import load_model

SIZE = 12
BLUR = {"blur_std": 0.8, "noise_std": 0.03}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty grey pictures of 12 x 12 pixels: discs."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    centres = generator.uniform(3, 9, (20, 2))
    discs = np.stack([np.hypot(y - a, x - b) < 3 for a, b in centres])
    path = tmp_path_factory.mktemp("data") / "discs.npz"
    np.savez(path, images=(255 * discs).astype(np.uint8))
    return path


def trained(data: Path, folder: Path, **changes: Any) -> Path:
    options: dict[str, Any] = {
        **{"width": 8, "blocks": 1, "batch": 6, "steps": 3, "warmup": 1, "save_every": 3, "log_every": 3},
        **{"sample_count": 0, "progress": False, **changes},
    }
    return train(TrainConfig(data=str(data), outdir=str(folder), **options)).weights


@pytest.fixture(scope="module")
def weights(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps: what it restores is wrong, but all that is written about it is not."""
    return trained(clean, tmp_path_factory.mktemp("runs") / "blur", schedule="paper")


@pytest.fixture(scope="module")
def mask_weights(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(clean, tmp_path_factory.mktemp("runs") / "mask", corruption="mask")


def quiet(**options: Any) -> dict[str, Any]:
    options = {name: str(v) if isinstance(v, Path) else v for name, v in options.items()}
    return restore_images(RestoreConfig(**options), lambda _: None)


def pixels(folder: Path, count: int) -> torch.Tensor:
    """uint8 [count, 1, H, W]."""
    files = [np.asarray(Image.open(folder / f"{i:06d}.png")) for i in range(count)]
    return torch.from_numpy(np.stack(files))[:, None]


def observed(clean: Path, path: Path) -> torch.Tensor:
    """The pictures, blurred and noisy, as a file of 8 bits."""
    x = decode(torch.from_numpy(np.load(clean)["images"])[:, None])
    y = to_uint8(sk.corrupt(x, BLUR["blur_std"], BLUR["noise_std"], key=sk.NoiseKey(9)))  # type: ignore[arg-type]
    np.savez(path, images=y[:, 0].numpy())
    return y


def test_the_files_hold_what_the_function_gives(weights: Path, clean: Path, tmp_path: Path) -> None:
    """Rule: the PNGs are `restore` of the images, with the spectrum in the weights, whatever the batch."""
    y = observed(clean, tmp_path / "y.npz")
    out = tmp_path / "out"
    record = quiet(weights=weights, images=tmp_path / "y.npz", **BLUR, outdir=out, steps=3, batch=7, seed=4)
    model = load_model(str(weights), CPU)
    assert model.spectrum is not None
    key = sk.NoiseKey(4, stream=torch.arange(20))
    expected = restore(
        *(model.denoiser, decode(y), blur_gain((SIZE, SIZE), BLUR["blur_std"]), BLUR["noise_std"]),
        rule=DDIM(),
        steps=3,
        power=model.spectrum.variance,
        key=key,
    )
    # A float's last digit may tip a rounding: convolutions differ between batches.
    got = pixels(out, 20)
    assert (got.int() - to_uint8(expected).int()).abs().max() <= 1
    assert record == json.loads((out / "restored.json").read_text())
    assert record["count"] == 20 and record["results"] == {} and record["weights_digest"] == model.digest
    # Three rows of ten images: input, Wiener's filter, restored.
    assert Image.open(out / "grid.png").width == 10 * 50 + 2 + 24
    # Other options give other images: the projection and the seed are not ignored.
    for name, change in (("plain", {"project": False}), ("seed", {"seed": 5}), ("steps", {"steps": 1})):
        options = {**BLUR, "steps": 3, "seed": 4, **change}
        quiet(weights=weights, images=tmp_path / "y.npz", outdir=tmp_path / name, **options)
        assert not torch.equal(pixels(tmp_path / name, 20), got)


def test_clean_images_are_degraded_as_files_would_be(weights: Path, clean: Path, tmp_path: Path) -> None:
    """Rule: --degrade gives the results of the stored, degraded images with their --reference."""
    pytest.importorskip("skimage")
    once = quiet(weights=weights, images=clean, degrade=True, **BLUR, outdir=tmp_path / "once", steps=2)
    x = torch.from_numpy(np.load(clean)["images"])[:, None]
    y = to_uint8(  # the draw that the command keeps for this
        sk.corrupt(decode(x), BLUR["blur_std"], BLUR["noise_std"], key=sk.NoiseKey(0, draw=2**31))  # type: ignore[arg-type]
    )
    for i, image in enumerate(y[:, 0].numpy()):
        (tmp_path / "y").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "y" / f"{i:03d}.png")
    options = {**BLUR, "reference": clean, "outdir": tmp_path / "twice", "steps": 2}
    twice = quiet(weights=weights, images=tmp_path / "y", **options)
    for name in ("input", "Wiener", "restored"):
        for figure in ("psnr", "ssim"):
            assert once["results"][name][figure] == pytest.approx(twice["results"][name][figure], abs=0.05)
    assert once["results"]["Wiener"]["psnr"] > once["results"]["input"]["psnr"] + 1
    # The figures are those of the files that were written.
    figures = measured(pixels(tmp_path / "twice", 20), x)
    assert figures == twice["results"]["restored"]
    # Wiener's is that of the filter with the training images' spectrum.
    best = wiener(decode(y), blur_gain((SIZE, SIZE), 0.8), 0.03, power_spectrum([decode(x)]))
    assert twice["results"]["Wiener"]["psnr"] == pytest.approx(measured(to_uint8(best), x)["psnr"], abs=0.01)


def test_an_image_does_not_depend_on_those_beside_it(weights: Path, clean: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    for name, changes in (("all", {}), ("few", {"num": 5, "batch": 2})):
        quiet(weights=weights, images=clean, degrade=True, **BLUR, outdir=tmp_path / name, steps=2, **changes)
    few = pixels(tmp_path / "few", 5)
    assert (few.int() - pixels(tmp_path / "all", 5).int()).abs().max() <= 1
    assert not (tmp_path / "few" / "000005.png").exists()


def test_figures_are_psnr_and_ssim() -> None:
    pytest.importorskip("skimage")
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=generator)
    b = (a.int() + torch.randint(-9, 10, a.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    error = (a.double() - b.double()).square().mean(dim=(1, 2, 3))
    psnr = (10 * torch.log10(255**2 / error)).mean().item()
    found = measured(b, a)
    assert found["psnr"] == pytest.approx(psnr, abs=1e-9)
    assert found["ssim"] is not None and 0.5 < found["ssim"] < 1
    same = measured(a, a)
    assert math.isinf(same["psnr"] or 0) and same["ssim"] == pytest.approx(1.0)
    assert measured(b[..., :8], a[..., :8])["ssim"] is None  # smaller than SSIM's window


def test_masks_keep_what_is_known(mask_weights: Path, clean: Path, tmp_path: Path) -> None:
    """Rule: known pixels come back as they were; one mask serves all images, or each has its own."""
    x = torch.from_numpy(np.load(clean)["images"])[:, None]
    holes = np.full((20, SIZE, SIZE), 255, np.uint8)
    for i, hole in enumerate(holes):
        hole[5 : 7 + i % 3, 5:7] = 0
    np.savez(tmp_path / "masks.npz", images=holes)
    Image.fromarray(holes[0]).save(tmp_path / "mask.png")
    damaged = np.where(holes > 0, x[:, 0].numpy(), 77)
    np.savez(tmp_path / "y.npz", images=damaged.astype(np.uint8))
    for name, known in (("masks.npz", holes > 0), ("mask.png", np.broadcast_to(holes[0] > 0, holes.shape))):
        out = tmp_path / name.replace(".", "-")
        record = quiet(weights=mask_weights, images=tmp_path / "y.npz", mask=tmp_path / name, outdir=out)
        got, y = pixels(out, 20)[:, 0].numpy(), damaged
        assert np.array_equal(got[known], y[known])
        assert (got[~known] != 77).mean() > 0.9  # what is under the mask has no say
        starts = np.unique(np.atleast_1d(record["start_time"]))
        assert len(starts) == (3 if name == "masks.npz" else 1) and 0 < starts.min() <= starts.max() <= 1
    # One image with its own mask is the same on its own.
    np.savez(tmp_path / "one.npz", images=damaged[:1].astype(np.uint8))
    quiet(
        weights=mask_weights, images=tmp_path / "one.npz", mask=tmp_path / "mask.png", outdir=tmp_path / "one"
    )
    assert (pixels(tmp_path / "one", 1).int() - pixels(tmp_path / "masks-npz", 1).int()).abs().max() <= 1


def test_a_mask_that_the_model_never_learned(clean: Path, tmp_path: Path) -> None:
    """Rule: a model of one region fills in that region, and refuses to fill in others."""
    region = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    region[:, :6] = True
    MaskCorruption.region(region).save(tmp_path / "left.json")
    run = trained(clean, tmp_path / "run", corruption=str(tmp_path / "left.json"))
    left = np.where(region, 0, 255).astype(np.uint8)
    Image.fromarray(left).save(tmp_path / "left.png")
    Image.fromarray(left.T).save(tmp_path / "top.png")
    record = quiet(weights=run, images=clean, mask=tmp_path / "left.png", outdir=tmp_path / "out", steps=2)
    assert record["start_time"] == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(UserError, match="--mask: expected pixels that the model has learned to fill in"):
        quiet(weights=run, images=clean, mask=tmp_path / "top.png", outdir=tmp_path / "none")


def test_weights_without_a_spectrum(weights: Path, clean: Path, tmp_path: Path) -> None:
    """Rule: Wiener's filter is left out, and this is said; --data brings it back."""
    old = load_checkpoint(weights, "weights")
    old.tensors = {name: t for name, t in old.tensors.items() if not name.startswith("spectrum.")}
    old.save(tmp_path / "old.safetensors")
    observed(clean, tmp_path / "y.npz")
    said: list[str] = []
    config = RestoreConfig(
        *(str(tmp_path / "old.safetensors"), str(tmp_path / "y.npz")),
        **BLUR,
        outdir=str(tmp_path / "a"),
        steps=1,
    )
    restore_images(config, said.append)
    assert any("--data names the training images" in line for line in said)
    heights = [Image.open(tmp_path / "a" / "grid.png").height]
    restore_images(replace(config, data=str(clean), outdir=str(tmp_path / "b")), said.append)
    heights.append(Image.open(tmp_path / "b" / "grid.png").height)
    assert heights[1] > heights[0]  # a row more
    assert not torch.equal(pixels(tmp_path / "a", 20), pixels(tmp_path / "b", 20))


def test_refusals(
    weights: Path,
    mask_weights: Path,
    clean: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rule: each in one sentence, before anything is written."""
    wide, grey = tmp_path / "wide.npz", tmp_path / "grey.png"
    np.savez(wide, images=np.zeros((2, 8, 16), np.uint8))
    Image.fromarray(np.full((SIZE, SIZE), 99, np.uint8)).save(grey)
    hole = np.full((SIZE, SIZE), 255, np.uint8)
    hole[4:8, 4:8] = 0
    Image.fromarray(hole).save(tmp_path / "hole.png")
    Image.fromarray(hole[:8]).save(tmp_path / "small.png")
    np.savez(tmp_path / "three.npz", images=np.stack([hole] * 3))
    (tmp_path / "full").mkdir()
    Image.fromarray(hole).save(tmp_path / "full" / "a.png")
    blur, noise = ("--blur-std", "1"), ("--noise-std", "0.03")
    hidden = ("--mask", str(tmp_path / "hole.png"))
    cases: list[tuple[str, tuple[str, ...], Path]] = [
        ("images of 1 x 12 x 12 .*got 1 x 8 x 16", ("--images", str(wide), *blur), weights),
        ("--reference: expected images of 1 x 12 x 12", ("--reference", str(wide), *blur), weights),
        ("--reference: expected 20 images", ("--reference", str(tmp_path / "three.npz"), *blur), weights),
        ("--blur-std: expected a blur under the strongest .*4.312 px", ("--blur-std", "9", *noise), weights),
        ("--noise-std: expected at most 0.1", (*blur, "--noise-std", "0.2"), weights),
        ("--blur-std or --noise-std over 0", (), weights),
        ("--mask: expected a model of masks, got one of BlurCorruption", hidden, weights),
        ("expected --mask or --blur-std, got both", (*hidden, *blur), weights),
        ("expected --mask for a model of masks .*not --blur-std", blur, mask_weights),
        (
            "masks of 12 x 12, as the model's images, got 8 x 12",
            ("--mask", str(tmp_path / "small.png")),
            mask_weights,
        ),
        ("1 mask or 20, as many as --images, got 3", ("--mask", str(tmp_path / "three.npz")), mask_weights),
        ("black .hidden. and white .known. pixels only", ("--mask", str(grey)), mask_weights),
        ("--outdir: .*full already holds images", (*blur, "--outdir", str(tmp_path / "full")), weights),
        ("--sampler: expected one of", (*blur, "--sampler", "none"), weights),
        ("--sampler: expected one of .*, got heun", (*blur, "--sampler", "heun"), weights),
        ("--steps: expected at least 1", (*blur, "--steps", "0"), weights),
        ("--num: expected at least 1", (*blur, "--num", "0"), weights),
        ("--noise-std: expected a finite number", ("--noise-std", "-1"), weights),
        (
            "--degrade takes --images as the reference",
            ("--degrade", "--reference", str(clean), *blur),
            weights,
        ),
        ("--data: expected images of", ("--data", str(wide), *blur), weights),
        ("no such file", ("--images", str(tmp_path / "none"), *blur), weights),
    ]
    if "skimage" not in sys.modules:  # checked before images are read; stands in where it is not installed
        monkeypatch.setitem(sys.modules, "skimage", type(sys)("skimage"))
        monkeypatch.setitem(sys.modules, "skimage.metrics", type(sys)("skimage.metrics"))
    for message, options, run in cases:
        out = tmp_path / "out"
        argv = ["restore", "--weights", str(run), "--images", str(clean), "--outdir", str(out), *options]
        capsys.readouterr()
        assert main(argv) == 2, options
        said = capsys.readouterr().err
        assert said.startswith("softdiff: error: ") and said.count("\n") == 1, said
        assert re.search(message, said), said
        assert not list(out.glob("*")), options
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.delitem(sys.modules, "skimage.metrics", raising=False)
    with pytest.raises(UserError, match=r"PSNR and SSIM needs skimage, .*softdiff_kernels\[restore\]"):
        quiet(weights=weights, images=clean, degrade=True, **BLUR, outdir=tmp_path / "out")
