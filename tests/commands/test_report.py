# SPDX-License-Identifier: Apache-2.0
"""`softdiff report`: what the page says is so, it stands alone, and a browser shows it at any width."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import fields, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from training_runs import CPU, small

from softdiff_kernels.commands.report import ReportConfig, read_stats, report, sources
from softdiff_kernels.diffusion import CORRUPTIONS, LinearCorruption, time_steps
from softdiff_kernels.errors import UserError
from softdiff_kernels.evaluation.curves import thinned
from softdiff_kernels.evaluation.page import COLOURS, picture, tag
from softdiff_kernels.training.config import TrainConfig, flag
from softdiff_kernels.training.config_file import PER_CALL, to_yaml
from softdiff_kernels.training.loop import train
from softdiff_kernels.training.weights import load_model

NASTY = "<img src=x onerror=alert(1)> & \"both' {quotes} ‮"
CLASSES = ("<script>alert(2)</script>", "a & b", "c" * 90)
VOID = {"img", "meta", "br"}


class Page(HTMLParser):
    """The elements of a page, and the text of each section; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.section = ""
        self.text: dict[str, str] = {"": ""}
        self.feed(text)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attributes}
        self.elements.append((name, given))
        if name == "section":
            self.section = given["aria-labelledby"]
            self.text[self.section] = ""
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name
        if name == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text[self.section] += data + " "

    def all(self, name: str) -> list[dict[str, str]]:
        return [given for element, given in self.elements if element == name]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve RGB images of 10 x 6 in three classes whose names try to be HTML."""
    path = tmp_path_factory.mktemp("data") / "a & b <i>.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 6, 3), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(12) % 3, classes=np.array(CLASSES))
    return path


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional run in a folder whose name tries to be HTML."""
    folder = tmp_path_factory.mktemp("runs") / NASTY.replace("/", "")
    options = {"sample_count": 4, "sample_every": 2, "sample_steps": 2, "flip": False, "conditional": True}
    train(small(photos, folder, **options))
    return folder


def write(folder: Path, **options: Any) -> tuple[str, list[str]]:
    """The page and what the command said."""
    said: list[str] = []
    options = {"steps": 0, "device": "cpu", **options}
    path = report(ReportConfig(str(folder), **options), said.append)
    return path.read_text(encoding="utf-8"), said


def check_form(page: Page) -> None:
    """Rule: one h1, no level left out, alternative texts, links that lead somewhere, nothing foreign."""
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    identifiers = [given["id"] for _, given in page.elements if "id" in given]
    assert len(identifiers) == len(set(identifiers))
    for given in page.all("a"):
        assert given["href"] == "https://arxiv.org/abs/2209.05442" or given["href"][1:] in identifiers
    for given in page.all("img"):
        assert given["src"].startswith("data:image/png;base64,") and given["alt"]
        with Image.open(io.BytesIO(base64.b64decode(given["src"].partition(",")[2]))) as image:
            assert (str(image.width), str(image.height)) == (given["width"], given["height"])
    assert all(given["aria-label"] for _, given in page.elements if given.get("role") == "img")
    known = (
        "html head meta title style body header main footer nav section article h1 h2 h3 p a ul li dl dt dd "
    )
    known += "div span small figure figcaption img svg path table thead tbody tr th td pre code"
    assert {name for name, _ in page.elements} <= set(known.split())
    assert not any(key.startswith("on") for _, given in page.elements for key in given)
    assert page.all("html") == [{"lang": "en"}]


def test_a_page_has_everything_and_stands_alone(run: Path) -> None:
    """Rule: what is known of a run is in the page; names that look like HTML are text; nothing is loaded."""
    text, _ = write(run, steps=3)
    page = Page(text)
    check_form(page)
    assert list(page.text)[1:] == [
        *("samples", "loss", "corruption", "trajectory", "distances", "options", "use-it", "cite")
    ]
    assert "<img src=x onerror=alert(1)> & \"both' {quotes}" in page.text[""] and "\\u202e" in page.text[""]
    assert "0 <script>alert(2)</script>, 1 a & b, 2 cccc" in page.text["use-it"]
    assert "3 classes" in page.text[""] and "10 × 6, RGB" in page.text[""] and "12 images" in page.text[""]
    assert "finished, at step 6 of 6" in page.text[""]
    for name in TrainConfig.__dataclass_fields__:
        shown = f" {flag(name)} " in page.text["options"]
        assert shown == (name not in (*PER_CALL, "preset")), name
    alts = [given["alt"] for given in page.all("img")]
    assert [alt for alt in alts if alt.startswith("Grid of samples")] == [
        f"Grid of samples at step {step}" for step in (2, 4, 6)
    ]
    assert (
        "arXiv:2209.05442" in page.text["cite"] and "Seeds 0 to 4 by the multistep" in page.text["trajectory"]
    )
    assert "default-src 'none'" in text and "@import" not in text and "url(" not in text


def test_the_python_of_a_page_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: what the page says to type draws images, of all classes in turn, whatever the folder."""
    monkeypatch.chdir(run.parent)
    page = Page(write(Path(run.name))[0])
    (code,) = re.findall(r"import torch.*?\[16, C, H, W\]", page.text["use-it"], flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code.replace("\\u202e", "‮"), "page", "exec"), names)
    model = load_model(str(run), CPU)
    wanted = model.generate(range(16), labels=[i % 3 for i in range(16)])
    assert torch.equal(names["images"], wanted)


def test_a_trajectory_ends_with_the_images_of_its_seeds(run: Path) -> None:
    """Rule: the picture's last column are the images of seeds 0, 1, ..., its columns are the times."""
    page = Page(write(run, steps=4, count=3)[0])
    (image,) = [given for given in page.all("img") if given["alt"].startswith("How 3 images form")]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))))
    wanted = load_model(str(run), CPU).generate(range(3), steps=4, labels=[0, 1, 2])
    # 10 x 6 pixels are enlarged by 5 to reach 48, with gaps of 2.
    assert sheet.shape == (3 * 52 + 2, 5 * 32 + 2, 3)
    last = np.stack([sheet[2 + row * 52 :: 5][:10, 2 + 4 * 32 :: 5][:, :6] for row in range(3)])
    assert np.abs(last.astype(int) - wanted.permute(0, 2, 3, 1).numpy()).max() <= 1
    times = ", ".join(f"{t:.2f}" for t in time_steps(4).tolist())
    assert times in image["alt"] and times == "1.00, 0.75, 0.50, 0.25, 0.00"


def test_a_run_without_grids_has_samples_nevertheless(run: Path, tmp_path: Path) -> None:
    """Rule: where the run has drawn no grid, the report draws the images of sixteen seeds."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("samples-*"))
    assert "No grid of samples yet" in Page(write(folder)[0]).text["samples"]
    text, said = write(folder, steps=2)
    page = Page(text)
    check_form(page)
    assert said[0].startswith("drawing 16 images") and "No grid" not in page.text["samples"]
    (image,) = [given for given in page.all("img") if given["alt"].startswith("Grid of 16 images sampled")]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))))
    wanted = load_model(str(run), CPU).generate(range(16), steps=2, labels=[i % 3 for i in range(16)])
    last = sheet[2 + 3 * 52 :: 5][:10, 2 + 3 * 32 :: 5][:, :6]
    assert np.abs(last.astype(int) - wanted[15].permute(1, 2, 0).numpy()).max() <= 1


def points(page: Page, place: int) -> np.ndarray[Any, Any]:
    """The points of a line, in hundredths of the plot's width and height."""
    lines = [
        given["d"]
        for given in page.all("path")
        if given["class"].startswith("line") and "H" not in given["d"]
    ]
    return np.array([[float(v) for v in pair.split()] for pair in re.findall(r"[\d.]+ [\d.]+", lines[place])])


def test_the_loss_is_drawn_where_it_is(run: Path, tmp_path: Path) -> None:
    """Rule: steps are linear across, losses logarithmic down; labels and table say the same."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    stats = [
        {"step": 10 * i, "images": 60 * i, "images_per_second": 30, "loss": 4.0 * 2**-i, "loss_by_t": by_t}
        for i, by_t in enumerate([[1, 2, 4, 9], [None, 1, 2, 9], [0.25, None, 1, 9], [0.125, 0.25, 0.5, 9]])
    ]
    (folder / "stats.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in stats) + '{"step": 40, "los'
    )
    page = Page(write(folder)[0])
    low, high = math.log(0.125), math.log(9)
    for place, (name, values) in enumerate(
        [(f"quarter {i}", [line["loss_by_t"][i] for line in stats]) for i in range(4)]
        + [("all", [line["loss"] for line in stats])]
    ):
        good = [
            (step, value) for step, value in zip((0, 10, 20, 30), values, strict=True) if value is not None
        ]
        wanted = [[100 * x / 30, 100 * (high - math.log(y)) / (high - low)] for x, y in good]
        assert {tuple(p) for p in np.round(points(page, place), 1)} == {
            tuple(p) for p in np.round(wanted, 1)
        }, name
    assert re.search(r"t from 0 to 0\.25\s+1\s+0\.125\s+−88 %", page.text["loss"])
    assert re.search(r"t from 0\.75 to 1\s+9\s+9\s+\+0 %", page.text["loss"])
    (label,) = [g["aria-label"] for g in page.all("div") if g.get("aria-label", "").startswith("Loss over")]
    assert "loss over step from 0 to 30. t from 0 to 0.25 from 1 to 0.125" in label
    # 180 images after the first line, at 30 a second.
    assert "6 s of steps" in page.text[""] and "30 images/s" in page.text[""]


def test_a_long_log_is_thinned_to_means(run: Path, tmp_path: Path) -> None:
    """Rule: of a long log a few hundred points are drawn, each the mean of its lines; the last one counts."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    rng = np.random.default_rng(0)
    losses, count = rng.uniform(1, 2, (10_001, 4)), 10_001
    lines = [
        json.dumps(
            {"step": i + 1, "images": 6 * i, "images_per_second": 9.0, "loss": x.mean(), "loss_by_t": [*x]}
        )
        for i, x in enumerate(losses)
    ]
    (folder / "stats.jsonl").write_text("\n".join(lines) + "\n")
    assert (folder / "stats.jsonl").stat().st_size > 1e6
    text, _ = write(folder)
    shown = thinned(read_stats(folder / "stats.jsonl"), 4)
    assert 300 <= len(shown) <= 400 and shown[-1]["step"] == count and len(text) < 400_000
    size = shown[0]["step"]
    np.testing.assert_allclose(shown[1]["by_t"], losses[size : 2 * size].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        [line["loss"] for line in shown[:-1]],
        [losses[i : i + size].mean() for i in range(0, count - size, size)][: len(shown) - 1],
        rtol=1e-12,
    )
    assert f"A point is the mean of {round(count / len(shown))} lines" in Page(text).text["loss"]


def test_of_many_grids_some_are_shown_and_large_pictures_shrink(run: Path, tmp_path: Path) -> None:
    """Rule: a page stays small: at most eight grids, evenly with both ends, and no picture over 1400 px."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(run / "config.yaml", folder)
    for step in range(0, 210, 10):
        shutil.copy(run / "samples-00000002.png", folder / f"samples-{step:08d}.png")
    shutil.copy(run / "samples-00000002.png", folder / "samples-mine.png")
    Image.new("RGB", (2800, 700)).save(folder / "real.png")
    page = Page(write(folder)[0])
    alts = [given["alt"] for given in page.all("img")]
    steps = [int(alt.rpartition(" ")[2]) for alt in alts if alt.startswith("Grid of samples")]
    assert (
        steps == [0, 30, 60, 90, 110, 140, 170, 200] and "Over time (8 of 21 grids)" in page.text["samples"]
    )
    assert alts[0] == "Grid of images sampled at step 200"
    (real,) = [given for given in page.all("img") if given["alt"].startswith("Grid of images of the")]
    assert (real["width"], real["height"]) == ("1400", "350")


PLOTS = {"soft": ["Blur", "Noise"], "blurring": ["Blur", "Noise", "Mean"], "ihdm": ["Blur", "Noise"]}
PLOTS |= {"mask": ["Gain", "Noise"], "equal-snr": ["Gain", "Noise"], "noise": ["Noise"], "file": ["Noise"]}


@pytest.mark.parametrize("name", [*CORRUPTIONS, "file"])
def test_every_corruption_has_a_page(name: str, blobs: Path, tmp_path: Path) -> None:
    """Rule: the schedule shows what the corruption has; a line's points are the corruption's own values."""
    options: dict[str, Any] = {"steps": 1, "save_every": 1, "schedule": "linear", "corruption": name}
    if name == "file":
        LinearCorruption.downsampling((8, 8), 4).save(tmp_path / "file.json")
        options["corruption"] = str(tmp_path / "file.json")
    if name == "blurring":
        options["prediction"] = "noise"
    folder = tmp_path / "run"
    train(small(blobs, folder, **options))
    page = Page(write(folder, steps=2, count=1)[0])
    check_form(page)
    plots = [given["aria-label"] for given in page.all("div") if given.get("role") == "img"]
    titles = [label.partition(":")[0] for label in plots]
    assert titles == ["Loss over the steps", *PLOTS[name]]
    corruption = load_model(str(folder), CPU).denoiser.corruption
    noise = [float(corruption.noise(t).double().mean()) for t in (0.0, 1.0)]
    if name not in ("equal-snr",):
        assert re.search(rf"Noise from {noise[0]:.4g} to {noise[1]:.4g}\.", " ".join(plots)), plots
    if name == "soft":
        assert f"Blur from 0.01 to {corruption.blur_std(1.0):.4g}" in " ".join(plots)
    if name == "mask":
        gain = corruption.gain(0.0)
        assert f"least of all pixels from {gain.min():.4g} to 0" in " ".join(plots)
    assert ("diagonal in no basis" in page.text["corruption"]) == (name == "file")


def test_a_run_that_has_only_begun(run: Path, tmp_path: Path) -> None:
    """Rule: what is not there yet is a sentence that says when it comes; what is damaged is left out."""
    folder = tmp_path / "new"
    folder.mkdir()
    shutil.copy(run / "config.yaml", folder)
    page = Page(write(folder)[0])
    check_form(page)
    assert "not finished, at step 0 of 6" in page.text[""]
    assert "No loss yet: a line is written every 1 steps" in page.text["loss"]
    assert "No grid of samples yet: one is drawn every 2 steps" in page.text["samples"]
    assert (
        "No weights yet" in page.text["trajectory"] and "has written a checkpoint" in page.text["corruption"]
    )
    (folder / "samples-00000002.png").write_bytes((run / "samples-00000002.png").read_bytes()[:300])
    (folder / "real.png").write_bytes(b"")
    assert Page(write(folder)[0]).all("img") == []
    # The newest weights are damaged: the previous ones are drawn from, and the command says so.
    for path in run.glob("weights-*"):
        shutil.copy(path, folder)
    broken = sorted(folder.glob("weights-*"))[-1]
    broken.write_bytes(broken.read_bytes()[:-100])
    text, said = write(folder, steps=1)
    assert "with the weights of step 3" in Page(text).text["trajectory"]
    assert any("trying the previous one" in line for line in said)
    for path in folder.glob("weights-*"):
        path.write_bytes(b"no")
    text, said = write(folder, steps=1)
    assert "none of its 2 weights files can be read" in Page(text).text["trajectory"]
    assert any(line.startswith("warning: no trajectory") for line in said)


def test_a_folder_with_weights_alone_has_its_options(run: Path, tmp_path: Path) -> None:
    """Rule: without config.yaml the options are those in the checkpoint."""
    (path,) = run.glob("weights-*6.safetensors")
    shutil.copy(path, tmp_path)
    page = Page(write(tmp_path)[0])
    assert re.search(r"--width\s+8\s+given", page.text["options"])
    assert "at step 6 of 6" in page.text[""]


def test_each_option_has_its_source() -> None:
    """Rule: the source is what the preset says, unless the value is another; then it was given."""
    config = TrainConfig.from_preset("digits", steps=7, keep=5)
    found = sources(config, to_yaml(config))
    assert set(found) == {option.name for option in fields(TrainConfig)}
    wanted = {"steps": "given", "keep": "given", "lr": "ours", "corruption": "paper", "loss": "measured: E1"}
    wanted |= {"weight": "measured: E1", "grad_clip": "default", "data": "ours"}
    assert {name: found[name] for name in wanted} == wanted
    plain = TrainConfig(data="x", steps=50_000)
    found = sources(plain, to_yaml(plain))
    assert (found["data"], found["steps"], found["loss"]) == ("given", "default", "measured: E1")
    # The words of an old run's file count, whatever the presets say today.
    assert sources(config, "lr: 0.003  # paper\ndata: 'x  # ours'\n")["lr"] == "paper"
    assert sources(plain, "data: 'x  # ours'\n")["data"] == "given"


def result(weights: Path | None, **changes: Any) -> dict[str, Any]:
    known = {
        "metric": "FID <b>",
        "value": 12.345678,
        "floor": 1.5,
        "samples": 1000,
        "seeds": "0-999",
        "step": 6,
    }
    known |= {"sampler": "multistep", "steps": 25, "reference": 60000, "reference_source": "/x/{test}.npz"}
    known |= {"features": "a network", "notes": ["few"], "weights": None if weights is None else str(weights)}
    return {**known, **changes}


def test_distances_are_those_of_the_run(run: Path, tmp_path: Path) -> None:
    """Rule: results in the run folder are shown with what they depend on; those that may be of another run
    are marked."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "notes.json").write_text('{"metric": 1}')
    (folder / "broken.json").write_text("[")
    (folder / "a.json").write_text(json.dumps([result(folder, std_over_subsets=0.25)]))
    words = Page(write(folder)[0]).text["distances"]
    for part in (
        "FID <b>",
        "12.35 ± 0.25",
        "1.5",
        "1\u202f000, seeds 0-999",
        "60\u202f000 images, {test}.npz",
    ):
        assert part in words
    assert "few" in words and "not known" not in words and "a.json" in words
    other = tmp_path / "other.json"
    digest = load_model(str(folder), CPU).digest
    moved = Path("/moved")
    for entry, marked in (
        (result(tmp_path / "else"), True),
        (result(None), True),
        (result(folder / "weights-00000006.safetensors"), False),
        (result(moved, weights_digest=digest), False),
        (result(moved, weights_digest="0"), True),
    ):
        other.write_text(json.dumps([entry]))
        words = Page(write(folder, distances=str(other))[0]).text["distances"]
        assert ("not known" in words) == marked and "a.json" not in words


def test_what_is_refused(run: Path, tmp_path: Path, photos: Path) -> None:
    """Rule: no run, no results, or a file that is no report: one sentence, and nothing is written."""
    mine = tmp_path / "thesis.html"
    mine.write_text("<!doctype html> the only copy")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.yaml").write_text("steps: 5\n")
    before = sorted(tmp_path.iterdir())
    for config, message in (
        (ReportConfig(str(tmp_path / "none")), "expected a run folder of softdiff train, got no such folder"),
        (ReportConfig(str(photos)), "expected a run folder of softdiff train, got a file"),
        (ReportConfig(str(tmp_path)), "got neither config.yaml nor checkpoints"),
        (ReportConfig(str(tmp_path / "odd")), "config.yaml: .*missing.*'data'"),
        (ReportConfig(str(run), out=str(mine)), "exists already"),
        (ReportConfig(str(run), out=str(tmp_path)), "expected the name of a file"),
        (ReportConfig(str(run), out=str(tmp_path / "no" / "a.html")), "there is no folder"),
        (ReportConfig(str(run), distances=str(mine)), "not readable as JSON"),
        (ReportConfig(str(run), distances=str(tmp_path / "none")), "not readable as JSON"),
    ):
        with pytest.raises(UserError, match=message):
            report(replace(config, steps=0), print)
    assert sorted(tmp_path.iterdir()) == before and "the only copy" in mine.read_text()
    for options in ({"steps": -1}, {"count": 0}):
        with pytest.raises(UserError, match="expected at least"):
            ReportConfig("x", **options)
    # An older report is replaced.
    out = tmp_path / "page.html"
    assert write(run, out=str(out))[0] != "" and write(run, out=str(out))[0] != ""


def test_text_cannot_become_an_element() -> None:
    """Rule: whatever is given to an element as text comes out as that text, in attributes, too."""
    words = "</p><script x='\"'>&amp;"
    page = Page(tag("p", words, [words], title=words))
    assert page.text[""] == words + words + " "
    assert page.elements == [("p", {"title": words})]
    with pytest.raises(UserError, match="expected a PNG"):
        picture(b"GIF89a" + bytes(30), "no")


def test_colours_can_be_told_from_the_ground() -> None:
    """Rule (WCAG 2.2, 1.4.3 and 1.4.11): 4.5 to 1 for text, 3 to 1 for lines, in both schemes."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colours in COLOURS.values():
        for ground in ("bg", "card", "tint"):
            for name in ("text", "soft", "accent", "l0", "l1", "l2", "l3", "l4"):
                low, high = sorted((light(colours[ground]), light(colours[name])))
                least = 3.0 if name.startswith("l") else 4.5
                assert (high + 0.05) / (low + 0.05) >= least, (ground, name)


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MEASURE = """<!doctype html><meta charset="utf-8"><body><script>
const out = {}; let left = WIDTHS.length;
for (const width of WIDTHS) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:2000px;border:0`;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    const style = e => frame.contentWindow.getComputedStyle(e);
    const right = e => e.getBoundingClientRect().right;
    const scrolls = e => e && (style(e).overflowX == "auto" || scrolls(e.parentElement));
    const all = [...page.body.querySelectorAll("*")];
    out[width] = {
      inner: root.clientWidth, needed: root.scrollWidth, height: root.scrollHeight,
      beyond: all.filter(e => right(e) > width + 0.5 && !scrolls(e)).map(e => e.outerHTML.slice(0, 80)),
      images: [...page.images].map(i => i.naturalWidth > 0 && i.clientWidth > 20),
      small: all.filter(e => e.textContent && parseFloat(style(e).fontSize) < 9.5).length,
    };
    if (--left === 0) document.body.textContent = "measured:" + btoa(JSON.stringify(out)) + ":end";
  };
  frame.src = PAGE; document.body.append(frame);
}
</script>"""


def browse(folder: Path, *options: str) -> str:
    """Runs a headless browser, and gives what it prints. Skips where there is none."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [
        "--disable-dev-shm-usage",
        "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}",
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_browser_shows_the_page_at_any_width(run: Path, tmp_path: Path) -> None:
    """Rule: at 1280, 400 and 320 px no part lies beyond the right edge but inside a box that scrolls, all
    pictures are shown, and no letter is smaller than 9.5 px. The screenshots are in the test's folder."""
    folder = tmp_path / NASTY.replace("/", "")
    shutil.copytree(run, folder)
    (folder / "a.json").write_text(json.dumps([result(folder, features="long" * 60)]))
    shutil.copy(folder / "real.png", folder / "samplers.png")
    page = tmp_path / "page.html"
    report(ReportConfig(str(folder), out=str(page), steps=3, device="cpu"), lambda _: None)
    wrapper = tmp_path / "wrapper.html"
    script = MEASURE.replace("WIDTHS", "[1280, 400, 320]").replace("PAGE", json.dumps(page.as_uri()))
    wrapper.write_text(script)
    dom = browse(tmp_path, "--virtual-time-budget=20000", "--dump-dom", wrapper.as_uri())
    (found,) = re.findall(r"measured:(.*?):end", dom)
    measured = json.loads(base64.b64decode(found))
    for width, sizes in measured.items():
        assert sizes["inner"] == sizes["needed"] == int(width), (width, sizes)
        assert sizes["beyond"] == [] and sizes["small"] == 0, (width, sizes)
        assert len(sizes["images"]) == 8 and all(sizes["images"]), (width, sizes)
    for width in (1280, 400):
        shot = tmp_path / f"{width}.png"
        size = f"--window-size={width},{measured[str(width)]['height']}"
        browse(tmp_path, size, f"--screenshot={shot}", page.as_uri())
        with Image.open(shot) as image:
            assert image.size == (width, measured[str(width)]["height"])
            # Not blank: cards on a ground, and pictures in which many levels occur.
            assert len(image.convert("L").getcolors()) > 60
