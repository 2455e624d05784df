# SPDX-License-Identifier: Apache-2.0
"""Options of a run: presets, YAML files and flags, in that order; durations; shares of a batch."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

pytest.importorskip("tyro")
pytest.importorskip("yaml")

import yaml

from softdiff_kernels.cli import main, parse
from softdiff_kernels.commands.train import prepare
from softdiff_kernels.errors import UserError
from softdiff_kernels.training.config import TrainConfig, images_of
from softdiff_kernels.training.config_file import to_yaml
from softdiff_kernels.training.presets import PRESETS


def resolve(*argv: str, preset: str | None = None, config: str | None = None) -> TrainConfig:
    given = [*argv, *([f"--preset={preset}"] if preset else []), *([f"--config={config}"] if config else [])]
    return parse(TrainConfig, "train", *prepare(given))


def test_flags_override_the_file_which_overrides_the_preset(tmp_path: Path) -> None:
    """Rule: of one option's values the flag's counts, else the file's, else the preset's."""
    file = tmp_path / "run.yaml"
    # 1e-3 without a dot is text to YAML; both spellings of a name are taken.
    file.write_text("lr: 1e-3\nsample-steps: 9\nmultipliers: [1, 2, 3]\nflip: true\nblur_std_max: null\n")
    found = resolve("--data", "x", "--sample-steps=7", "--no-flip", preset="mnist", config=str(file))
    assert (found.lr, found.sample_steps, found.flip) == (1e-3, 7, False)
    assert (found.multipliers, found.batch, found.blur_std_max) == ((1, 2, 3), 64, None)
    assert found.preset == "mnist" and found.channels == 1 and found.image_size == (28,)
    # A flag of several values takes the place of the file's, however many those were.
    assert resolve("--data", "x", "--multipliers", "4", config=str(file)).multipliers == (4,)


def test_a_runs_own_file_gives_its_options_again(tmp_path: Path) -> None:
    """Rule: config.yaml, read back by --config, is the same options, but for those of a single call."""
    config = TrainConfig(
        *("photos and more", "cifar10"),
        **{"ema": (0.9, 0.99), "lr": 3e-7, "flip": True, "progress": False, "multipliers": (1, 2)},
        **{"noise_std_max": 0.3, "image_size": (8, 12), "desc": "it's: a #test", "precision": "bf16"},
        **{"outdir": "there", "resume": "auto", "allow_changes": True},
    )
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    again = dataclasses.replace(config, outdir=None, resume=None, allow_changes=False)
    assert dataclasses.replace(resolve(config=str(file)), config=None) == again


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("widht: 3\n", r"does not know: widht \(did you mean width\?\)"),
        ("width: wide\n", r"run\.yaml: width: expected a whole number, got 'wide'"),
        ("lr: .inf\n", r"run\.yaml: lr: expected a number, got '\.inf'"),
        ("image_size: 8,8\n", r"run\.yaml: image_size: expected a whole number, got '8,8'"),
        ("precision: fp8\n", r"run\.yaml: precision: expected one of fp32, tf32, bf16, fp16, got 'fp8'"),
        ("sampler: none\n", r"run\.yaml: sampler: expected one of naive, momentum, ddim, .*, got 'none'"),
        ("bach: 3\n", r"run\.yaml: options .* does not know: bach \(did you mean batch\?\)"),
        ("flip: 'yes'\n", r"run\.yaml: flip: expected true or false, got 'yes'"),
        ("flip: null\n", r"run\.yaml: flip: expected true or false, got None"),
        ("wandb: true\n", r"run\.yaml: wandb: expected a value that is not a bool, got true"),
        ("steps: 0\n", r"^--steps: expected at least 1, got 0"),
        ("- width\n", "expected options and their values"),
        ("width: [3\n", "not a readable YAML file"),
        ("width: " + "[" * 5000, "not a readable YAML file"),
        ("steps: 3\nduration: 5k\n", "expected steps or duration, got both"),
        ("sample_steps: 3\nsample-steps: 4\n", "option given twice"),
        ("preset: [mnist]\n", "preset: expected a name"),
        ("data: on\n", r"run\.yaml: data: expected a value that is not a bool, got on; put text in quotes"),
        ("desc: no\n", r"run\.yaml: desc: expected a value that is not a bool, got no; put text in quotes"),
        ("data: null\n", r"run\.yaml: data: expected a value, got null; .* put text in quotes"),
        ("data: ~\n", r"run\.yaml: data: expected a value, got ~"),
        ("schedule:\n", r"run\.yaml: schedule: expected a value, got nothing; remove the line"),
        ("device: Null\n", r"run\.yaml: device: expected a value, got Null"),
        ("data: [a, b]\n", r"run\.yaml: data: expected a name or a number, got a sequence"),
        ("data: {a: b}\n", r"run\.yaml: data: expected a name or a number, got a mapping"),
        ("ema: {a: b}\n", r"run\.yaml: ema: expected a list of values, got a mapping"),
        ("width: 8\nwidth: 16\n", "option given twice: width"),
        ("preset: minst\n", "--preset: expected one of digits, mnist, .*, got 'minst'"),
    ],
)
def test_mistakes_in_a_file_are_one_sentence(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        resolve("--data", "x", config=str(file))
    assert main(["train", "--data", "x", "--config", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match="no such file"):
        resolve("--data", "x", config=str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        ("data: 00123", "data", "00123"),
        ("data: 0o17", "data", "0o17"),
        ("data: 1_000", "data", "1_000"),
        ("data: 12:30:45", "data", "12:30:45"),
        ("data: 2024-01-01", "data", "2024-01-01"),
        ("data: 2024-01-01 10:00:00", "data", "2024-01-01 10:00:00"),
        ("data: 1.50", "data", "1.50"),
        ("data: 1e3", "data", "1e3"),
        ("data: .inf", "data", ".inf"),
        ("data: 'on'", "data", "on"),
        ('desc: "no"', "desc", "no"),
        ("desc: 'null'", "desc", "null"),
        ("desc: null", "desc", None),
        ("desc:", "desc", None),
        ("flip: on", "flip", True),
        ("progress: No", "progress", False),
        # Where a number is wanted, it is the one that a reader sees and that the flag would be.
        ("steps: 010", "steps", 10),
        ("steps: 1_000", "steps", 1000),
        ("image_size: [010, 020]", "image_size", (10, 20)),
    ],
)
def test_a_file_is_taken_as_it_is_written(text: str, option: str, value: object, tmp_path: Path) -> None:
    """Rule: an option is the text that stands in the file, not the number, date or truth value that YAML 1.1
    makes of it; `data: 00123` was the folder 83."""
    (tmp_path / "run.yaml").write_text(text + "\n")
    argv = [] if option == "data" else ["--data", "x"]
    assert getattr(resolve(*argv, config=str(tmp_path / "run.yaml")), option) == value
    # What a run writes for it says the same again.
    config = TrainConfig(**{"data": "x", option: value})  # type: ignore[arg-type]
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert getattr(resolve(config=str(tmp_path / "run.yaml")), option) == value


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_a_whole_run_and_says_whose_its_values_are(name: str) -> None:
    settings = PRESETS[name]
    found = resolve(*([] if "data" in settings else ["--data", "x"]), preset=name)
    for option, setting in settings.items():
        assert getattr(found, option) == setting.value, option
        assert re.fullmatch(r"paper|ncsn\+\+|ours|measured: E[1-6]", setting.source), option
    text = to_yaml(found)
    if found.corruption == "soft":
        assert (found.prediction, found.nodes, found.density) == ("residual", 32, "t")
        assert "nodes: 32  # paper" in text
    if name.endswith("-paper"):
        assert (found.loss, found.schedule, found.sampler) == ("soft", "wasserstein", "momentum")
        assert "measured" not in text
    assert name.partition("-")[2] in ("", "paper", found.corruption)
    once = ("config", "outdir", "resume", "dry_run", "allow_changes")
    assert yaml.safe_load(text) == {k: v for k, v in found.to_dict().items() if k not in once}
    changed = to_yaml(dataclasses.replace(found, nodes=31))
    assert "nodes: 31\n" in changed


@pytest.mark.parametrize("name", [name for name in PRESETS if f"{name}-paper" in PRESETS])
def test_a_preset_differs_from_the_papers_in_what_was_measured_alone(name: str) -> None:
    """Rule: what differs is marked with the experiment, in a run's file, too, and is the default of a run
    without a preset, but for the steps of the grids."""
    best, paper = PRESETS[name], PRESETS[f"{name}-paper"]
    text = to_yaml(resolve("--data", "x", preset=name))
    other = [option for option in best | paper if best.get(option) != paper.get(option)]
    assert other
    for option in other:
        value = best[option].value
        assert best[option].source.startswith("measured: E"), option
        assert f"{option}: {'null' if value is None else value}  # {best[option].source}\n" in text
        assert option == "sample_steps" or getattr(TrainConfig("x"), option) == value


def test_a_dry_run_prints_its_options_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["train", "--preset", "mnist", "--data", "nowhere.npz", "--duration", "1Mi", "-n"]
    assert main([*argv, "--batch-gpu=16"]) == 0
    said = capsys.readouterr().out
    # 2^20 images of 64 a step; the duration is spent once it is steps, so that a resumed run may have more.
    assert yaml.safe_load(said)["steps"] == 2**14 and yaml.safe_load(said)["duration"] is None
    assert "global batch 64 = 1 x 16 x 4" in said
    assert list(tmp_path.iterdir()) == []


def test_one_length_takes_the_place_of_the_other(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("duration: 500k\n")
    assert resolve("--data", "x", "--steps", "100", config=str(file)).resolved().steps == 100
    assert resolve("--data", "x", "--duration", "640", preset="mnist").resolved().steps == 10
    with pytest.raises(UserError, match="expected --steps or --duration, got both"):
        resolve("--data", "x", "--steps", "3", "--duration", "5k")


def test_a_flag_that_would_change_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: a flag that the others make idle is an error that says with what it counts; what a file or a
    preset brings along is not, since it was not asked for beside them."""
    monkeypatch.chdir(tmp_path)
    Path("s.json").write_text("{}")
    for idle, counts in (
        ("--class-dropout 0.2", "--conditional"),
        ("--nodes=8 --schedule linear", "--schedule wasserstein"),
        ("--blur_std_max 5 --corruption noise", "--corruption soft, blurring, ihdm"),
        ("--schedule linear --corruption mask", "--corruption soft"),
        ("--floor 0.1", "--corruption blurring"),
        ("--logsnr-max 5 --corruption s.json", "--corruption blurring, equal-snr"),
        ("--softness .5 --corruption ihdm", "--corruption mask"),
        ("--blur-std-max 5 --schedule s.json", "--schedule wasserstein, linear, paper, geometric"),
        ("--noise-std-min 0.02 --schedule s.json", "--schedule wasserstein, linear, paper, geometric"),
        ("--noise-std-max 0.2 --schedule s.json", "--schedule wasserstein, linear, paper, geometric"),
    ):
        assert main(["train", "--data", "x", "-n", *idle.split()]) == 2
        flag = idle.replace("_", "-").replace("=", " ").split()[0]
        assert f"{flag} has an effect only with {counts}" in capsys.readouterr().err
    Path("run.yaml").write_text("nodes: 8\nclass_dropout: 0.2\n")
    for fine in (
        "--config run.yaml --schedule linear",
        "--class-dropout 0.2 --conditional",
        "--schedule wasserstein --nodes 8 --blur-std-max 5 --noise-std-max 0.2",
        "--corruption noise --noise-std-max 20",
    ):
        assert main(["train", "--data", "x", "-n", *fine.split()]) == 0, capsys.readouterr().err


def test_durations_and_batches() -> None:
    """Rule: k, M, G are decimal, Ki, Mi, Gi binary; a batch is processes x images x rounds or an error."""
    written = {"500": 500, "1.5k": 1500, "8Mi": 2**23, "200M": 200_000_000, " 2 gi ": 2**31, "4.03k": 4030}
    for text, images in written.items():
        assert images_of(text) == images
    for text in ("", "0", "-3", "many", "5T", "1e6"):
        with pytest.raises(UserError, match="--duration"):
            images_of(text)
    config = TrainConfig("x", batch=48)
    assert config.batch_split(1) == (48, 1) and config.batch_split(3) == (16, 1)
    assert dataclasses.replace(config, batch_gpu=8).batch_split(3) == (8, 2)
    assert "48 = 3 x 8 x 2" in dataclasses.replace(config, batch_gpu=8).describe_batch(3)
    for each, processes in ((None, 5), (7, 1), (96, 1), (24, 3)):
        with pytest.raises(UserError, match="--batch 48: expected a multiple of"):
            dataclasses.replace(config, batch_gpu=each).batch_split(processes)
