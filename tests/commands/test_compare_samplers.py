# SPDX-License-Identifier: Apache-2.0
"""`softdiff compare-samplers`: each field of the picture is what `generate` draws, in its row and column."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from training_runs import CPU, small

from softdiff_kernels.commands.compare_samplers import CompareSamplersConfig, compare
from softdiff_kernels.commands.report import ReportConfig, report
from softdiff_kernels.diffusion import SAMPLERS
from softdiff_kernels.errors import UserError
from softdiff_kernels.images import labelled_grid, tile
from softdiff_kernels.training.loop import train
from softdiff_kernels.training.weights import load_model


@pytest.fixture(scope="module")
def run(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run long enough that samplers differ."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(small(blobs, folder, steps=20, lr=4e-3, save_every=20, log_every=20))
    return folder


def places(sheet: np.ndarray[Any, Any], picture: Image.Image) -> list[tuple[int, int]]:
    """Where a picture stands in another: (top, left) of each occurrence."""
    cell = np.asarray(picture.convert("RGB"))
    height, width = cell.shape[:2]
    rows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], width, axis=1)
    # The second row, as the first is a border.
    starts = np.argwhere((rows == cell[2, :, 0]).all(axis=2))
    found = [(int(top) - 2, int(left)) for top, left in starts]
    return [
        (top, left)
        for top, left in found
        if np.array_equal(sheet[top : top + height, left : left + width], cell)
    ]


def test_every_field_holds_the_images_of_its_sampler_and_steps(run: Path, tmp_path: Path) -> None:
    """Rule: a row is a sampler, a column a number of steps, a field the images of all seeds, as `softdiff
    sample` draws them; so all fields have the same starts."""
    out = tmp_path / "out.png"
    samplers, steps, seeds = ("momentum", "naive", "heun"), (4, 2, 6), [5, 2, 9]
    said: list[str] = []
    config = CompareSamplersConfig(str(run), samplers=samplers, steps=steps, seeds="5,2,9", out=str(out))
    assert compare(config, said.append) == out
    assert said[-1].startswith(f"{out}: 27 images in ") and " s, " in said[-1]
    sheet = np.asarray(Image.open(out))
    model = load_model(str(run), CPU)
    tops, lefts = [], []
    for sampler in samplers:
        for n in steps:
            images = model.generate(seeds, sampler=sampler, steps=n)
            ((top, left),) = places(sheet, tile(images, 3))
            tops.append(top)
            lefts.append(left)
    grid = np.array(tops).reshape(3, 3), np.array(lefts).reshape(3, 3)
    assert (grid[0] == grid[0][:, :1]).all() and (np.diff(grid[0][:, 0]) > 52).all()
    assert (grid[1] == grid[1][:1]).all() and (np.diff(grid[1][0]) > 152).all()
    # Labels are dark on white at the left of each row and above each column.
    assert all((sheet[top : top + 25, : lefts[0] - 4] < 100).any() for top in grid[0][:, 0])
    assert all((sheet[tops[0] - 26 : tops[0], left : left + 60] < 100).any() for left in grid[1][0])


def test_the_default_is_what_suits_and_lies_where_a_report_finds_it(run: Path, tmp_path: Path) -> None:
    """Rule: without options all samplers that the corruption allows are drawn, beside the weights; a report
    of that run then shows the picture."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    said: list[str] = []
    (weights,) = folder.glob("weights-*")
    path = compare(CompareSamplersConfig(str(weights), steps=(1,), seeds="0"), said.append)
    assert path == folder / "samplers.png"
    assert [line.partition(":")[0] for line in said[:-1]] == list(SAMPLERS)
    page = report(ReportConfig(str(folder), steps=0, device="cpu"), said.append).read_text(encoding="utf-8")
    assert 'id="samplers"' in page


def test_a_sampler_that_makes_no_sense_is_left_out(blobs: Path, tmp_path: Path) -> None:
    """Rule: what the corruption refuses has no row, but a sentence; nothing but it is an error."""
    folder = tmp_path / "run"
    train(small(blobs, folder, steps=1, save_every=1, corruption="noise"))
    said: list[str] = []
    compare(
        CompareSamplersConfig(str(folder), samplers=("ddim", "tacos"), steps=(1, 2), seeds="0"), said.append
    )
    assert said[0].startswith("left out: tacos") and "little noise" in said[0]
    assert said[1].startswith("ddim:") and len(said) == 3
    with pytest.raises(UserError, match="expected one that suits the corruption, got none"):
        compare(CompareSamplersConfig(str(folder), samplers=("tacos",)), said.append)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samplers": ("momentun",)}, r"got momentun \(did you mean momentum\?\)"),
        ({"samplers": ("ddim", "ddim")}, "--samplers: expected each once, got ddim ddim"),
        ({"steps": (5, 0)}, r"--steps: expected numbers of at least 1, got \[5, 0\]"),
        ({"steps": ()}, "--steps: expected numbers of at least 1"),
        ({"steps": (5, 5)}, "--steps: expected each once"),
        ({"seeds": "0-64"}, "--seeds: expected at most 64, which a field can show, got 65"),
        ({"seeds": "x"}, "--seeds: expected a form such as"),
        ({"out": "picture.jpg"}, "--out: expected a name that ends in .png"),
        ({"out": "none/picture.png"}, "--out: cannot write none/picture.png: there is no folder none"),
        ({"classes": "3"}, "--classes: the model was trained without classes"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str, run: Path) -> None:
    """Rule: one sentence that names the option."""
    with pytest.raises(UserError, match=message):
        compare(CompareSamplersConfig(str(run), **changes), lambda _: None)
    assert not (run / "samplers.png").exists()


def test_labels_have_room() -> None:
    """Rule: no label runs into a picture or out of the sheet, however long."""
    cells = [[tile(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))] * 2]
    sheet = labelled_grid(
        cells, ["a very long name\nof two lines"], ["many, many, many steps", "1"], ["w" * 60]
    )
    pixels = np.asarray(sheet)
    found = places(pixels, cells[0][0])
    assert len(found) == 2
    for top, left in found:
        pixels = pixels.copy()
        pixels[top : top + 52, left : left + 52] = 255
    # What is left are labels, which end before the border.
    assert (pixels[:, -8:] == 255).all() and (pixels < 128).any()
    (top, left), (_, second) = found
    assert (pixels[top:, left - 8 : left] == 255).all()
    assert (pixels[: top - 1, second - 6 : second] == 255)[top - 30 :].all()
