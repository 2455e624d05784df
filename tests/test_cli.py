# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, what it returns, and one line for every mistake."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

import softdiff_kernels
from softdiff_kernels.cli import COMMANDS, main
from softdiff_kernels.training import doctor

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--width", "8", "--blocks", "1", "--batch", "4", "--no-progress"]
TINY += ["--sample-count", "4", "--sample-steps", "2"]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The sentence with which a command line is refused: exit code 2 and one line on stderr."""
    code = main(list(argv))
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("softdiff: error: ") and said.count("\n") == 1 and "Traceback" not in said
    return said


@pytest.fixture(scope="module")
def dots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight grey 8 x 8 PNG files."""
    folder = tmp_path_factory.mktemp("dots")
    for i in range(8):
        pixels = np.zeros((8, 8), np.uint8)
        pixels[i, 1:6] = 200
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(dots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    pytest.importorskip("diffusers")
    pytest.importorskip("tyro")
    folder = tmp_path_factory.mktemp("runs") / "run"
    argv = ["train", "--data", str(dots), "--outdir", str(folder), "--steps", "2", "--nodes", "4"]
    assert main([*argv, *TINY]) == 0
    return folder


def test_a_run_leaves_what_the_manual_says(run: Path) -> None:
    assert sorted(p.name for p in run.iterdir()) == [
        *("config.yaml", "corruption.png", "real.png", "samples-00000002.png", "schedule.json"),
        *("state-00000002.safetensors", "stats.jsonl", "weights-00000002.safetensors"),
    ]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["width"] == 8 and config["seed"] == 0 and "outdir" not in config
    # Four samples stand 2 x 2, at 48 px a side with 2 px between and around.
    assert Image.open(run / "samples-00000002.png").size == (102, 102)


def test_runs_are_numbered(dots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("tyro")
    monkeypatch.chdir(tmp_path)
    argv = ["train", "--data", str(dots), "--steps", "1", *TINY, "--schedule", "paper", "--sample-count", "0"]
    assert main(argv) == main(argv) == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == [f"0000{i}-{dots.name}-bs4-fp32" for i in (0, 1)]


def test_sample_writes_a_png_a_seed_and_names_the_prior(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(run / "weights-00000002.safetensors")
    argv = ["sample", "--weights", weights, "--seeds", "3,5-6", "--steps", "2", "--outdir"]
    assert main([*argv, str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "momentum sampler in 2 steps" in said and "gaussian-dct" in said
    names = ["000003.png", "000005.png", "000006.png", "grid.png", "samples.json"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    assert main([*argv, str(tmp_path / "b"), "--batch", "1", "--no-grid"]) == 0
    for name in names[:3]:
        first, second = (np.asarray(Image.open(tmp_path / d / name)).astype(int) for d in "ab")
        # Alone or in company a seed has one image; a float's last digit may tip a rounding.
        assert first.shape == (8, 8) and np.abs(first - second).max() <= 1


def test_resume_by_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "go on")
    assert main(["train", "--resume", str(run), "--outdir", out, "--steps", "3"]) == 0
    said = capsys.readouterr().out
    assert "steps 2 to 3" in said
    # A line to copy, whatever the folder's name.
    line = next(line for line in said.splitlines() if line.startswith("done; draw images by: "))
    assert shlex.split(line)[-1] == str(tmp_path / "go on" / "weights-00000003.safetensors")
    argv = ["train", "--resume", str(run), "--batch", "2", "--duration", "100", "--allow-changes"]
    assert "--duration: a run that goes on with another --batch takes --steps" in refused(capsys, *argv)
    assert "--width: expected 8" in refused(capsys, "train", "--resume", str(run), "--width", "16")


def test_a_runs_file_makes_a_new_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: --config takes the config.yaml of a run as it is, and flags override it."""
    out = tmp_path / "again"
    argv = ["train", "--config", str(run / "config.yaml"), "--steps", "1", "--outdir", str(out)]
    assert main(argv) == 0
    assert (out / "weights-00000001.safetensors").is_file()
    # A dry run refuses what the run would refuse.
    said = refused(capsys, "train", "--resume", str(out), "--width", "16", "-n")
    assert "--width: expected 8, got 16" in said
    assert "--width: expected 8, got 16" in refused(capsys, "train", "--resume", str(out), "--width", "16")


def test_schedule_is_saved_plotted_and_used(
    dots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tyro")
    pytest.importorskip("matplotlib")
    out, plot = str(tmp_path / "s.json"), tmp_path / "s.png"
    argv = ["schedule", "--data", str(dots), "--levels", "24", "--nodes", "6", "--out", out]
    assert main([*argv, "--plot", str(plot)]) == 0
    assert "6 nodes of 24 levels" in capsys.readouterr().out
    assert Image.open(plot).size[0] > 100
    pytest.importorskip("diffusers")
    argv = ["train", "--data", str(dots), "--schedule", out, "--outdir", str(tmp_path / "run"), *TINY]
    assert main([*argv, "--steps", "1"]) == 0
    saved = [json.loads(p.read_text())["blur_std"] for p in (Path(out), tmp_path / "run" / "schedule.json")]
    assert saved[0] == saved[1]
    capsys.readouterr()
    assert "8 x 8" in refused(capsys, *argv, "--image-size", "9", "--outdir", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    (tmp_path / "cut.json").write_text(Path(out).read_text()[:50])
    assert "cut.json" in refused(capsys, *argv[:3], "--schedule", str(tmp_path / "cut.json"))
    away = str(tmp_path / "no" / "s.json")
    assert "cannot write" in refused(capsys, "schedule", "--data", str(dots), "--nodes", "4", "--out", away)


def test_mistakes_are_one_line(
    dots: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "expected a command" in refused(capsys, "trian")
    assert "--data" in refused(capsys, "train")
    assert "--nonsense" in refused(capsys, "train", "--data", "digits", "--nonsense")
    assert "--width" in refused(capsys, "train", "--data", "digits", "--width", "wide")
    assert "--steps: expected at least 1" in refused(capsys, "train", "--data", "digits", "--steps", "0")
    assert "found none" in refused(capsys, "train", "--data", str(tmp_path))
    assert "no such file" in refused(capsys, "sample", "--weights", str(tmp_path / "none.safetensors"))
    state = str(run / "state-00000002.safetensors")
    assert "got a training state file" in refused(capsys, "sample", "--weights", state)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((run / "weights-00000002.safetensors").read_bytes()[:-100])
    assert "truncated" in refused(capsys, "sample", "--weights", str(cut))
    assert "--device" in refused(capsys, "sample", "--weights", str(run), "--device", "abacus")
    assert "--seeds" in refused(capsys, "sample", "--weights", str(run), "--seeds", "x")
    assert "doctor takes no options" in refused(capsys, "doctor", "--verbose")


def test_a_missing_extra_is_one_line_that_says_how_to_get_it(
    dots: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("diffusers", "tyro"):
        # None in sys.modules makes an import fail as if the package were not there.
        monkeypatch.setitem(sys.modules, module, None)
        said = refused(capsys, "train", "--data", str(dots), "--steps", "1")
        assert f"needs {module}, which is not installed" in said
        assert 'pip install "softdiff_kernels[train]"' in said

    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    # A package that was built for another torch fails in its own way; that is one line, too.
    monkeypatch.setattr(importlib, "import_module", broken)
    said = refused(capsys, "train", "--data", str(dots), "--steps", "1")
    assert "fails to import here: operator torchvision::nms does not exist" in said


def test_demo_draws_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("diffusers", "tyro", "sklearn"):
        pytest.importorskip(module)
    assert main(["demo", "--steps", "1", "--sampler-steps", "2", "--outdir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "digits.png") in said and "gaussian-dct" in said
    width, height = Image.open(tmp_path / "digits.png").size
    # 15 columns of digits of at least 48 px, in three blocks of 4 rows.
    assert width > 15 * 48 and height > 12 * 48
    assert (tmp_path / "00000-digits" / "weights-00000001.safetensors").exists()


def test_doctor_reports_every_probe_and_every_backend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = {
        "reference": SimpleNamespace(usable=True, reason=""),
        "cuda": SimpleNamespace(usable=False, reason="no GPU here"),
    }
    monkeypatch.setattr(softdiff_kernels, "backends", lambda: backends, raising=False)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, _ in doctor.PROBES:
        assert any(line.startswith(name) and len(line.split()) > 1 for line in lines), name
    rows = [line.split(None, 2) for line in lines]
    assert ["reference", "yes"] in rows and ["cuda", "no", "no GPU here"] in rows


def test_doctor_survives_what_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> str:
        raise RuntimeError("driver\nlost")

    def no_backends() -> None:
        raise OSError("cannot load")

    monkeypatch.setattr(doctor, "PROBES", (("GPU", broken), ("Python", doctor._python)))
    monkeypatch.setattr(softdiff_kernels, "backends", no_backends, raising=False)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "unknown (RuntimeError: driver lost)" in said and "unknown (OSError: cannot load)" in said
    assert "Python" in said


def test_doctor_and_help_need_torch_alone() -> None:
    # A path hook that refuses the extras stands for an environment without them.
    extras = ["diffusers", "tyro", "tqdm", "sklearn", "scipy", "PIL", "safetensors", "matplotlib"]
    program = f"""
import sys
extras = {extras!r}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in extras:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
from softdiff_kernels.cli import main
assert main(["--help"]) == 0
assert main(["doctor"]) == 0
assert not set(extras) & set(sys.modules)
assert main(["train", "--data", "digits"]) == 2
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'needs tyro, which is not installed: pip install "softdiff_kernels[train]"' in done.stderr


def test_module_form_lists_the_commands() -> None:
    command = [sys.executable, "-m", "softdiff_kernels", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
