# SPDX-License-Identifier: Apache-2.0
"""The programs of examples/ run, with fewer steps than by default, and do what they say."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from softdiff_kernels.images import decode

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The examples set the number of threads for their own process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(name: str) -> ModuleType:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture_size(path: Path) -> tuple[int, int]:
    return pytest.importorskip("PIL.Image").open(path).size


@pytest.mark.parametrize("name", NAMES)
def test_every_example_has_help_and_a_test(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load(name).main(["--help"])
    assert ended.value.code == 0 and "--steps" in capsys.readouterr().out
    assert f'load("{name}")' in Path(__file__).read_text()


def test_train_your_own_loop(tmp_path: Path) -> None:
    main = load("train_your_own_loop").main
    options = ["--steps", "120", "--sampler-steps", "10"]
    result = main([*options, "--out", str(tmp_path / "digits.png")])
    losses, samples = result["losses"], result["samples"]
    # A network that answers 0 stays at the first loss.
    assert np.mean(losses[-20:]) < 0.2 * losses[0]
    assert samples.shape == (20, 1, 8, 8) and torch.isfinite(samples).all()
    assert picture_size(tmp_path / "digits.png") == (20 * 10 * 6, 3 * 10 * 6)
    assert torch.equal(main(options)["samples"], samples)
    assert not torch.equal(main([*options, "--seed", "1"])["samples"], samples)


def test_soft_denoiser(tmp_path: Path) -> None:
    main = load("soft_denoiser").main
    options = ["--steps", "120", "--sampler-steps", "10"]
    result = main([*options, "--out", str(tmp_path / "samplers.png")])
    losses, samples = result["losses"], result["samples"]
    assert np.mean(losses[-20:]) < 0.3 * losses[0]
    assert picture_size(tmp_path / "samplers.png") == (20 * 10 * 6, (1 + len(samples)) * 10 * 6)
    again = main(options)["samples"]
    for name, images in samples.items():
        assert images.shape == (20, 1, 8, 8) and torch.isfinite(images).all()
        assert torch.equal(again[name], images)
    # Every sampler starts from the same images, and they differ in what they make of them.
    assert not torch.equal(samples["naive"], samples["momentum"])


def test_deblur_pipeline(tmp_path: Path) -> None:
    example = load("deblur_pipeline")
    options = ["--size", "32", "--epochs", "2"]
    path = tmp_path / "pairs.png"
    first = example.main([*options, "--steps", "4", "--batch", "6", "--workers", "2", "--out", str(path)])
    assert picture_size(path) == (6 * 32, 2 * 32)
    # The same images in other batches, by another number of workers; the second epoch differs from the first.
    second = example.main([*options, "--steps", "3", "--batch", "8", "--workers", "0"])
    np.testing.assert_allclose(first["checksums"], second["checksums"], rtol=1e-9)
    assert abs(first["checksums"][1] / first["checksums"][0] - 1) > 1e-5


def test_the_pairs_of_the_pipeline_are_a_blur_of_the_photograph(tmp_path: Path) -> None:
    example = load("deblur_pipeline")
    photographs = example.read(None)
    for i, photograph in enumerate(photographs):
        pytest.importorskip("PIL.Image").fromarray(photograph).save(tmp_path / f"{i}.png")
    np.testing.assert_array_equal(example.read(tmp_path), photographs)
    crops = example.Crops(photographs, 48, 4)
    items = [crops[i] for i in range(4)]
    assert all(torch.equal(items[i][1], crops[i][1]) for i in range(4))
    blurred, sharp = example.degrade(0, 0, 5.0, 0.0)(items)
    # Without noise a blur keeps each channel's mean and takes from every other frequency.
    torch.testing.assert_close(blurred.mean(dim=(2, 3)), sharp.mean(dim=(2, 3)), rtol=0, atol=1e-5)
    assert (blurred.var(dim=(2, 3)) < sharp.var(dim=(2, 3))).all()


def test_own_corruption(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("tyro")
    example = load("own_corruption")
    classes = ast.parse((EXAMPLES / "own_corruption.py").read_text()).body
    fog = next(node for node in classes if isinstance(node, ast.ClassDef) and node.name == "Fog")
    assert fog.end_lineno - fog.decorator_list[0].lineno < 20
    options = ["--steps", "20", "--sampler-steps", "5"]
    result = example.main([*options, "--out", str(tmp_path / "fog.png")])
    fog, foggy, samples = result["corruption"], result["foggy"], result["samples"]
    # It was read from the weights file, and is what was trained with.
    assert type(fog) is example.Fog and fog.to_dict() == example.Fog((8, 8)).to_dict()
    assert fog.to_dict()["kind"] == "fog" and picture_size(tmp_path / "fog.png")[0] > 12 * 48
    # A fog leaves the mean alone and takes contrast, more at each t; what is left at the end is mostly noise.
    means, spreads = foggy.mean(dim=(1, 2, 3)), foggy.std(dim=(1, 2, 3))
    assert (means - means[0]).abs().max() < 0.05 and (spreads.diff() < 0).all()
    assert spreads[-1] < 0.35 * spreads[0]
    assert samples.shape == (12, 1, 8, 8) and samples.float().std() > 30
    # Restored images are nearer to the clean ones than those in the fog.
    clean = decode(result["digits"])
    errors = {name: (result[name] - clean).square().mean() for name in ("in_fog", "restored")}
    assert errors["restored"] < 0.5 * errors["in_fog"]
    # Twelve seeds, twelve images, and the same again.
    assert len(samples.flatten(1).unique(dim=0)) == 12
    assert torch.equal(example.main(options)["samples"], samples)
