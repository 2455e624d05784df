# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, what it returns, and one line for every mistake."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import softdiff_kernels
from softdiff_kernels import caches, cli
from softdiff_kernels.backends import triton as backends_of_triton
from softdiff_kernels.bench.config import BenchConfig, CompareConfig
from softdiff_kernels.cli import main
from softdiff_kernels.commands import COMMANDS, doctor
from softdiff_kernels.commands.compare_samplers import CompareSamplersConfig
from softdiff_kernels.commands.dataset import DatasetConfig
from softdiff_kernels.commands.demo import SHOWN, DemoConfig
from softdiff_kernels.commands.evaluate import EvaluateConfig
from softdiff_kernels.commands.report import ReportConfig
from softdiff_kernels.commands.sample import SampleConfig
from softdiff_kernels.commands.schedule import ScheduleConfig
from softdiff_kernels.training.config import TrainConfig
from softdiff_kernels.training.weights import load_model

ROOT = Path(__file__).resolve().parents[2]
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
    argv = ["train", "--data", str(dots), "--outdir", str(folder), "--steps", "2"]
    argv += ["--schedule", "wasserstein", "--nodes", "4"]
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
    assert "multistep sampler in 2 steps" in said and "gaussian-dct" in said
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
    line = next(line for line in said.splitlines() if line.startswith("done; sample with: "))
    assert shlex.split(line)[-1] == str(tmp_path / "go on" / "weights-00000003.safetensors")
    argv = ["train", "--resume", str(run), "--batch", "2", "--duration", "100", "--allow-changes"]
    assert "--duration: a run that is resumed with another --batch takes --steps" in refused(capsys, *argv)
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
    # Every block of the picture is named in it and on the terminal, with its steps.
    for sampler in SHOWN:
        assert f"{sampler.capitalize()} sampler, 2 steps" in said
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


def test_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    wanted = f"softdiff_kernels {softdiff_kernels.__version__}, torch {torch.__version__}"
    assert capsys.readouterr().out == wanted + "\n"


class Broken(io.StringIO):
    """A stream that takes text and cannot write it out."""

    def __init__(self, number: int, *, at_once: bool) -> None:
        super().__init__()
        self.number, self.at_once = number, at_once

    def write(self, text: str) -> int:
        if self.at_once:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)

    def flush(self) -> None:
        if self.getvalue():
            raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["schedule", "--help"], ["dataset", "digits"]])
def test_an_output_that_takes_nothing(
    argv: list[str], at_once: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: a full disk is one sentence and not exit code 0, whether it shows at once or when the buffer is
    written out; a reader that has left, as `head` does, is no error to tell of."""
    if argv[0] == "dataset":
        pytest.importorskip("sklearn")
    pytest.importorskip("tyro")
    for number, code, said in (
        (errno.ENOSPC, 2, "softdiff: error: cannot write to standard output: No space left on device\n"),
        (errno.EPIPE, 1, ""),
    ):
        monkeypatch.setattr(sys, "stdout", Broken(number, at_once=at_once))
        assert main(argv) == code
        assert capsys.readouterr().err == said


def test_a_name_that_the_output_cannot_show(
    dots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a name beyond the output's encoding is shown by its number, and ends no command."""
    for name in ("ä", "b"):
        shutil.copytree(dots, tmp_path / "set" / name)
    for encoding, shown in (("ascii", r" \xe4: 8"), ("utf-8", " ä: 8")):
        taken = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(taken, encoding=encoding))
        assert main(["dataset", str(tmp_path / "set")]) == 0
        assert shown in taken.getvalue().decode(encoding)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_leaves_nothing_for_python_to_complain_of() -> None:
    for unbuffered in ("", "1"):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "softdiff_kernels", "--help"],
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
                **{"cwd": ROOT, "stdout": full, "stderr": subprocess.PIPE, "text": True},
            )
        assert done.returncode == 2
        assert done.stderr == "softdiff: error: cannot write to standard output: No space left on device\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals to oneself")
@pytest.mark.parametrize("form", ["script", "module", "library"])
def test_ctrl_c_within_the_imports(form: str, tmp_path: Path) -> None:
    """Rule: exit code 130 and no traceback in both forms of the command, also where what is being imported
    would catch the exception; a program that imports the library gets its KeyboardInterrupt."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    raise ImportError('interrupted') from None\n"
    )
    # As pip writes it.
    script = "import sys\nfrom softdiff_kernels.cli import main\nsys.exit(main())\n"
    (tmp_path / "softdiff").write_text(script)
    command = {
        "script": [str(tmp_path / "softdiff"), "doctor"],
        "module": ["-m", "softdiff_kernels", "doctor"],
        "library": ["-c", "import softdiff_kernels"],
    }[form]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    if form == "library":
        assert done.returncode == 1 and "ImportError: interrupted" in done.stderr
    else:
        assert (done.returncode, done.stderr, done.stdout) == (130, "softdiff: stopped\n", "")


@pytest.mark.parametrize("form", ["module", "library"])
@pytest.mark.parametrize(
    "raised", ["MemoryError", "ImportError('libtorch_cpu.so: failed to map segment from shared object')"]
)
def test_no_memory_within_the_imports(form: str, raised: str, tmp_path: Path) -> None:
    """Rule: a sentence, as for a command that runs; a program that imports the library gets the error."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"raise {raised}\n")
    command = {"module": ["-m", "softdiff_kernels", "doctor"], "library": ["-c", "import softdiff_kernels"]}
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *command[form]],
        **{"env": {**os.environ, "PYTHONPATH": path}, "capture_output": True, "text": True},
    )
    if form == "library":
        assert done.returncode == 1 and "Traceback" in done.stderr
    else:
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith("softdiff: error: out of memory while torch is imported")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("SOFTDIFF_CACHE_MB", value) for value in ("x", "-1", "1e3", "1.5", "٣", "9" * 13)),
        ("SOFTDIFF_BACKEND", "fast"),
        ("SOFTDIFF_BACKEND", "triton"),
    ],
)
def test_a_variable_that_says_nothing_is_refused_before_any_work(
    dots: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setattr(caches, "_limit", None)
    monkeypatch.setattr(backends_of_triton, "status", lambda: (False, "no GPU"))
    monkeypatch.setenv(name, value)
    said = refused(capsys, "dataset", str(dots))
    assert f"{name}: " in said and ("expected" in said or "does not work here: no GPU" in said)
    # What tells how to put it right, and what is usable, is told all the same.
    assert main(["doctor"]) == 0
    assert main(["dataset", "--help"]) == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--steps", "1e3"], "--steps: expected a whole number, got '1e3'"),
        (["--steps="], "--steps: expected a whole number, got ''"),
        (["--batch-gpu", "x"], "--batch-gpu: expected a whole number, got 'x'"),
        (["--lr", ".inf"], "--lr: expected a number, got '.inf'"),
        (["--blur-std-max", "x"], "--blur-std-max: expected a number, got 'x'"),
        (["--image-size", "8,8"], "--image-size: expected numbers with spaces between, got '8,8'"),
        (["--multipliers", "1", "x"], "--multipliers: expected numbers with spaces between, got '1', 'x'"),
        (["--resume", ""], "expected the name of a file or folder as resume, got an empty text"),
        (["--config", ""], "expected the name of a file or folder as config, got an empty text"),
    ],
)
def test_a_value_of_another_kind(
    dots: Path, capsys: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    # Rule: what was expected and what was got, without the parser's inner life.
    said = refused(capsys, "train", "--data", str(dots), "--dry-run", *given)
    assert said.startswith(f"softdiff: error: {told}")
    assert "helptext" not in said and "parsing" not in said


def test_a_schedule_file_that_is_nested_without_end(
    dots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.json").write_text("[" * 100_000)
    argv = ["train", "--data", str(dots), "--schedule", str(tmp_path / "s.json"), "--steps", "1"]
    assert "expected a whole JSON file" in refused(capsys, *argv, "--outdir", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_plot_is_drawn_whole_or_not_at_all(
    dots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure")

    def full(_: object, file: Any, **options: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(figure.Figure, "savefig", full)
    plot = tmp_path / "s.png"
    argv = ["schedule", "--data", str(dots), "--out", str(tmp_path / "s.json"), "--overwrite"]
    said = refused(capsys, *argv, "--plot", str(plot))
    assert f"cannot write {plot}: No space left on device" in said
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]
    # A folder by that name is no file to replace.
    plot.mkdir()
    (tmp_path / "s.json").unlink()
    assert "--plot: expected the name of a file to write" in refused(capsys, *argv, "--plot", str(plot))
    plot.rmdir()
    # A form that cannot be drawn is refused before the work, not after it.
    assert "ends in .png, .svg or .pdf" in refused(capsys, *argv, "--plot", str(tmp_path / "s.bmpx"))
    assert not list(tmp_path.iterdir())


def test_ctrl_c_within_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_command", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "softdiff: stopped\n"


def test_no_memory_is_a_sentence_in_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: Python's, torch's on the CPU and on a GPU; an error of another kind keeps its traceback."""

    def failing(error: Exception) -> Any:
        def run(*_: object) -> int:
            raise error

        return run

    text = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    for error in (
        *(MemoryError(), RuntimeError(f"{text}you tried to allocate 40 bytes. Error code 12")),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    ):
        monkeypatch.setattr(cli, "run_command", failing(error))
        for command in COMMANDS:
            assert "out of " in refused(capsys, *command.split())
    monkeypatch.setattr(cli, "run_command", failing(RuntimeError("a mistake of ours")))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main(["doctor"])


def test_memory_that_ran_out_is_no_damaged_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: a file that memory has no room for is not told to be damaged."""

    def none(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("safetensors.safe_open", none)
    with pytest.raises(OSError, match="Cannot allocate"):
        load_model(str(run), torch.device("cpu"))


def test_variables_of_torchrun(
    run: Path, dots: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: an empty one is as good as none; one that is no number, or beyond the others, is a sentence."""
    train, sample = ["train", "--data", str(dots), "-n"], ["sample", "--weights", str(run), "--seeds", "x"]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    assert main(train) == 0
    assert "global batch 64 = 1 x 64 x 1" in capsys.readouterr().out
    assert "--seeds" in refused(capsys, *sample)
    sample = [*sample[:-1], "0", "--steps", "1"]
    several = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for changed, words in (
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number, as torchrun sets it, got 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: expected at least 1, got 0"),
        ({"RANK": "-1"}, "RANK: expected a whole number"),
        ({"RANK": "2"}, "RANK: expected under 2"),
        ({"WORLD_SIZE": ""}, "RANK: expected under 1"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK: expected a whole number"),
        ({"LOCAL_RANK": ""}, "RANK is set but LOCAL_RANK is not"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT: expected a whole number"),
    ):
        for name, value in {**several, **changed}.items():
            monkeypatch.setenv(name, value)
        assert main(sample) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setenv("RANK", "5")
    assert main(train) == 2  # before a dry run prints what would not be


def test_devices_that_are_not_there(run: Path, dots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: one short sentence with what can be given, in every command that takes a device; devices of torch
    that the ops and the trainer are not made for are refused even where torch has them."""
    commands = (
        *(["train", "--data", str(dots)], ["sample", "--weights", str(run)], ["bench", "--no-plots"]),
        ["evaluate", "--images", str(dots), "--reference", str(dots)],
    )
    for command in commands:
        for device in ("mps", "meta", "xpu:0", "", "CPU", "cuda:-1"):
            said = refused(capsys, *command, f"--device={device}")
            assert f"--device: expected auto, cpu, cuda or cuda:N, got {device!r}; softdiff runs on" in said
            assert len(said) < 200
        assert "got 'cuda:99', which is not usable here" in refused(capsys, *command, "--device", "cuda:99")


def test_what_a_schedule_would_replace_stays(
    dots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: as of `softdiff dataset`: a file that exists is replaced with --overwrite alone."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    argv = ["schedule", "--data", str(dots), "--levels", "16", "--nodes", "4"]
    for extra, name in (([], "schedule.json"), (["--plot", "s.png", "--out", "other.json"], "s.png")):
        Path(name).write_text("mine")
        assert f"{name} exists already: choose another" in refused(capsys, *argv, *extra)
        assert Path(name).read_text() == "mine" and not Path("other.json").exists()
        assert main([*argv, *extra, "--overwrite"]) == 0
        assert Path(name).read_bytes() != b"mine"


def test_a_run_is_gone_on_with_from_another_folder(
    dots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: a run's relative places are of the folder that it was started in, wherever it is gone on with;
    where nothing is there any more they are looked for here, and else a sentence tells of both folders."""
    start, other = tmp_path / "start", tmp_path / "other"
    other.mkdir()
    shutil.copytree(dots, start / "pics")
    monkeypatch.chdir(start)
    assert main(["schedule", "--data", "pics", "--nodes", "4", "--levels", "16", "--out", "s.json"]) == 0
    argv = ["train", "--data", "pics", "--schedule", "s.json", "--outdir", "run", "--steps", "1", *TINY]
    assert main([*argv, "--sample-count", "0"]) == 0
    monkeypatch.chdir(other)
    assert main(["train", "--resume", "../start/run", "--steps", "2"]) == 0
    # The run's file, too, is good from anywhere, and its record of weights.
    written = yaml.safe_load((start / "run" / "config.yaml").read_text())
    assert (written["data"], written["schedule"]) == (str(start / "pics"), str(start / "s.json"))
    assert main(["train", "--config", "../start/run/config.yaml", "--steps", "1", "--outdir", "new"]) == 0
    assert main(["sample", "--weights", "../start/run", "--seeds", "0", "--steps", "1"]) == 0
    assert json.loads(Path("samples/samples.json").read_text())["weights"] == str(start / "run")
    # The same schedule by another name, or a copy of it, is no change; another one is.
    resumed = ["train", "--resume", "../start/run", "--steps", "2", "-n", "--schedule"]
    shutil.copy(start / "s.json", "copy.json")
    assert main([*resumed, "../start/s.json"]) == main([*resumed, "copy.json"]) == 0
    Path("copy.json").write_text("{}")
    assert "--schedule: expected" in refused(capsys, *resumed, "copy.json")
    # Of the state of the first step, which was started elsewhere and whose images have gone since.
    monkeypatch.chdir(start)
    assert main([*argv, "--sample-count", "0", "--outdir", "again"]) == 0
    (start / "pics").rename(other / "pics")
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "train", "--resume", "start/again", "--steps", "2")
    assert f"pics: no such file or folder here, nor in {start}, where the run was started" in said
    assert "--data" in said
    monkeypatch.chdir(other)
    assert main(["train", "--resume", "../start/again", "--steps", "2"]) == 0


def test_home_in_every_path(
    dots: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: a shell leaves ~ as it is behind `--flag=`; here it is the home folder in every option that names
    a file, also in a YAML file, and in no other option."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(dots)
    shutil.copytree(dots, tmp_path / "pics")
    assert main(["dataset", "~/pics", "--out=~/set.npz"]) == 0
    argv = ["schedule", "--data=~/set.npz", "--levels", "16", "--nodes", "4", "--out=~/s.json"]
    assert main(argv) == 0
    (tmp_path / "c.yaml").write_text("data: ~/pics\nschedule: ~/s.json\noutdir: ~/run\ndesc: ~/kept\n")
    tiny = [*TINY, "--sample-count", "0"]
    assert main(["train", "--config=~/c.yaml", "--steps", "1", *tiny]) == 0
    assert "desc: ~/kept" in (tmp_path / "run" / "config.yaml").read_text()
    assert main(["train", "--resume=~/run", "--steps", "2", "--outdir=~/on"]) == 0
    assert main(["train", "--resume=auto", "--data=~/pics", "--outdir=~/on", "--steps=3"]) == 0
    argv = ["sample", "--weights=~/on", "--seeds", "0", "--steps", "1", "--outdir=~/drawn", "--npz=~/a/b.npz"]
    assert main(argv) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"set.npz", "s.json", "run", "on", "drawn", "a"} <= names
    assert not any(Path(dots).glob("~*"))
    # Those that are only read name the place where they looked.
    for argv in (
        ["evaluate", "--images=~/none", "--reference=~/pics"],
        ["evaluate", "--images=~/pics", "--reference=~/none"],
        *(["bench", "compare", "~/none", "~/none"], ["dataset", "hf:~/none"]),
    ):
        assert str(tmp_path / "none") in refused(capsys, *argv)


def test_an_empty_path_is_not_the_present_folder(
    dots: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: what `--data=$UNSET` stands for is refused, where the present folder's images would be taken."""
    monkeypatch.chdir(dots)
    for argv in (["dataset", ""], ["train", "--data=", "-n"], ["train", "--data", ".", "--outdir=", "-n"]):
        assert "expected the name of a file or folder as" in refused(capsys, *argv)


def test_every_option_of_text_is_a_path_or_known_to_be_none() -> None:
    """Rule: who adds an option of text decides whether ~ in it is the home folder."""
    none = {
        *("preset", "desc", "duration", "wandb", "device"),  # train
        *("seeds", "classes", "metric"),
    }
    configs = (
        *(TrainConfig, SampleConfig, ScheduleConfig, DemoConfig, EvaluateConfig, DatasetConfig),
        *(BenchConfig, CompareConfig, ReportConfig, CompareSamplersConfig),
    )
    for config in configs:
        for name, hint in get_type_hints(config, include_extras=True).items():
            if hint in (str, str | None):
                assert name in none, f"{config.__name__}.{name}"


def test_module_form_lists_the_commands() -> None:
    command = [sys.executable, "-m", "softdiff_kernels", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_the_choices_of_an_optional_flag_are_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: the same sentence in every run, without None, although tyro lists them as a set."""
    assert "--channels: expected one of 1, 3, 4, got '2'" in refused(
        capsys, "dataset", "digits", "--channels", "2"
    )
