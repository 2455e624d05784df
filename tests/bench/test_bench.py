# SPDX-License-Identifier: Apache-2.0
"""`softdiff bench`: what it measures is right, what it writes can be read, and nothing measured is lost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("scipy")
pytest.importorskip("tyro")

from softdiff_kernels.backends import chosen
from softdiff_kernels.bench import machine, plots, report, rows, sweeps, timing
from softdiff_kernels.bench import run as suite
from softdiff_kernels.bench.config import BenchConfig
from softdiff_kernels.cli import main
from softdiff_kernels.errors import UserError

TINY = ["--sizes", "8", "--batch", "2", "--threads", "1", "--compile", "none", "--no-progress"]


def timed(median: float, doubt: float = 0.0) -> timing.Timing:
    return timing.Timing(median, median, median, 9, doubt)


def test_the_interval_of_a_median() -> None:
    """Rule: of 100 values the ranks 50 -+ 9.8 enclose the median; 40.2 and 59.8 become 40 and 60 from 0."""
    taken = timing.summary([float(i) for i in range(100)])
    assert taken.median == 49.5
    assert taken.doubt == pytest.approx((60 - 40) / (2 * 49.5))
    assert timing.summary([1.0]).doubt == math.inf
    assert timing.summary([2.0, 1.0, 3.0]).doubt == pytest.approx(2 / (2 * 2.0))


def test_the_interval_holds_the_median() -> None:
    """Rule: over repeated draws the interval misses the true median in about 5 of 100; 12 is the bound.

    Of 400 draws the count of misses has mean 20 and standard deviation 4.4: 48 is more than six of them.
    """
    generator = torch.Generator().manual_seed(3)
    missed = 0
    for _ in range(400):
        values = torch.rand(41, generator=generator).exp()  # a skewed distribution, median exp(1/2)
        taken = timing.summary(values.tolist())
        missed += abs(taken.median - math.exp(0.5)) > 2 * taken.doubt * taken.median
    assert missed < 48


def test_noise_floor() -> None:
    """Rule: the larger of what the same call twice differs by, and both medians' doubts in quadrature."""
    assert timing.noise_floor(timed(1.0), timed(1.1), timed(5.0)) == pytest.approx(math.log(1.1))
    doubtful = timing.noise_floor(timed(1.0, 0.03), timed(1.01), timed(5.0, 0.04))
    assert doubtful == pytest.approx(0.05)
    assert timing.differs(1.06, doubtful) and not timing.differs(1.05, doubtful)
    assert timing.differs(1 / 1.06, doubtful) and not timing.differs(1 / 1.05, doubtful)


def test_warm_up_takes_its_time() -> None:
    """Rule: a call is made until the time is over, twice at least, and the shortest is what it takes."""
    now = [0.0]
    lengths = iter([5.0, 2.0, 3.0, 3.0])

    def call() -> None:
        now[0] += next(lengths)

    clock = timing.Clock(lambda: now[0])
    assert timing.warm_up(call, clock, 9.0) == 2.0
    assert now[0] == 10.0
    lengths = iter([4.0, 4.0, 1.0])
    assert timing.warm_up(call, clock, 0.1) == 4.0


def test_limits_are_measured_in_whatever_time_there_is() -> None:
    # A first call that outlasts its time, as on a busy machine, must not leave the limit unmeasured.
    found = machine.limits(0.0)
    assert all(0 < rate < math.inf for rate in found.values())


def test_a_difference_below_the_floor_is_none() -> None:
    """Rule: a ratio within the noise is printed as none, and one that misses its goal says so."""
    assert report.against(1.04, 0.05) == "none"
    assert report.against(1.06, 0.05) == "1.06"
    assert report.against(None, 0.05) == ""
    assert report.against(4.5, 0.05, 5.0) == "4.50 (goal 5, missed)"
    assert report.against(5.5, 0.05, 5.0) == "5.50 (goal 5)"


def test_what_a_row_holds() -> None:
    """Rule: times are positive, ratios are of medians, ours has an error of float32's size, the same call
    is timed twice, and the fastest is the smallest of its group."""
    row = rows.measure("corrupt", 8, rows.Conditions(budget=1e-3), batch=2, compile=False)
    own = row.timings[rows.OURS]
    assert {rows.OURS, rows.AGAIN} <= row.timings.keys()
    main = {n: t for n, t in row.timings.items() if t["group"] == "main"}
    assert row.fastest == min(main, key=lambda n: main[n]["median"])
    assert all(t["ratio"] == pytest.approx(t["median"] / own["median"]) for t in row.timings.values())
    assert row.ratio == row.timings[row.fastest]["ratio"] and row.noise >= 0
    assert row.error is not None and 0 < row.error < 1e-6
    assert (row.px, row.batch, row.dtype, row.device, row.backend) == (8, 2, "float32", "cpu", "auto")


def test_a_second_visit_adds_to_the_first() -> None:
    """Rule: timings of both visits are pooled; compiled baselines keep those of the first."""
    measurement = rows.prepare("blur", 8, rows.Conditions(budget=1e-4, least=3), batch=2, compile=False)
    late = replace(measurement.working["four-product"], name="late", compiled=True)
    measurement.working["late"] = late
    measurement.time()
    first = {name: list(samples) for name, samples in measurement.samples.items()}
    measurement.time()
    assert len(first[rows.OURS]) >= 3 and measurement.samples["late"] == first["late"]
    for name in first.keys() - {"late"}:
        assert measurement.samples[name][: len(first[name])] == first[name]
        assert len(measurement.samples[name]) >= len(first[name]) + 3
    row = measurement.row()
    assert row.timings[rows.OURS]["rounds"] == len(measurement.samples[rows.OURS])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_timed(dtype: torch.dtype) -> None:
    """Rule: images in half precision are timed beside baselines that give the same to its rounding.

    bfloat16 rounds by 2^-9 = 2e-3 and float16 by 2^-12 at most; several times that is the bound of `rows`.
    """
    row = rows.measure("corrupt", 8, rows.Conditions(dtype=dtype, budget=1e-3), batch=2, compile=False)
    assert row.dtype == str(dtype).split(".")[1]
    assert row.error is not None and 1e-5 < row.error < 5e-3
    assert row.fastest_error is not None and row.fastest_error < 2e-2


def test_the_backend_asked_for_is_the_one_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: within a row of a backend, that backend is in force."""
    seen = set()
    real = rows.sample

    def spy(calls: object, *clock: object, **limits: object) -> object:
        seen.add(chosen())
        return real(calls, *clock, **limits)  # type: ignore[arg-type]

    monkeypatch.setattr(rows, "sample", spy)
    row = rows.measure("blur", 8, rows.Conditions(backend="reference", budget=1e-4), batch=2, compile=False)
    assert seen == {"reference"} and row.backend == "reference"


def test_sweeps() -> None:
    """Rule: one entry for each value, none over a third of the side, ours and the eager form positive."""
    place = rows.Conditions(budget=1e-3)
    by_blur = sweeps.by_blur(9, place, stds=(0.0, 1.0, 3.0, 4.0))
    assert [e["blur_std"] for e in by_blur] == [0.0, 1.0, 3.0]
    by_batch = sweeps.by_batch("momentum_step", 8, place, (1, 2))
    assert [e["batch"] for e in by_batch] == [1, 2]
    (host,) = sweeps.host_time("corrupt", place, calls=20)
    assert "key_given" not in sweeps.host_time("soft_score_loss", place, calls=20)[0]
    for entry in [*by_blur, *by_batch]:
        assert entry["ours"] > 0 and entry["ratio"] == pytest.approx(entry["other"] / entry["ours"])
    assert min(host["ours"], host["other"], host["again"], host["key_given"]) > 0


def test_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: `softdiff bench` writes a result that can be read back, its tables and its plots."""
    out = tmp_path / "one"
    words = ["bench", "--ops", "corrupt", "blur", *TINY, "--out", str(out)]
    assert main(words) == 0
    result, measured = report.load(str(out))
    assert result["complete"] and not result["problems"]
    assert [(r.op, r.px, r.batch, r.threads) for r in measured] == [("corrupt", 8, 2, 1), ("blur", 8, 2, 1)]
    assert result["command"].startswith("softdiff bench --ops corrupt blur --sizes 8")
    about = result["machine"]
    assert about["cpu"] and about["versions"]["torch"] == torch.__version__ and about["date"]
    assert result["seed"] > 0 and result["limits"]["1"]["gemm_gflop_s"] > 0 and result["seconds"] > 0
    text = (out / "bench.md").read_text()
    for wanted in ("two-product bmm", "four-product", "FFT-DCT", "scipy", "of GEMM peak", about["cpu"]):
        assert wanted in text
    assert "corrupt" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    for name in ("time-per-value.png", "ratio.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")

    assert main(words) == 2
    assert "already holds a result" in capsys.readouterr().err
    assert main(["bench", "compare", str(out), str(out / "bench.json")]) == 0
    assert "Of 2 rows 0 are faster and 0 slower beyond the noise, 2 are the same" in capsys.readouterr().out


def test_every_plot_is_drawn(tmp_path: Path) -> None:
    """Rule: a result with rows and sweeps gives every plot, and one without gives none."""
    pytest.importorskip("matplotlib")
    config = BenchConfig(sizes=(8,), batch=2, threads=(1,), ops=("corrupt",), compile="none")
    run = suite.Run(config, "test")
    place = rows.Conditions(budget=1e-4)
    assert plots.draw(run.finish(tmp_path), tmp_path) == []
    run.rows["corrupt",] = rows.measure("corrupt", 8, place, batch=2, compile=False)
    run.result["limits"]["1"] = {"copy_gb_s": 10.0, "gemm_gflop_s": 50.0, "normal_ns": 1.0, "randn_ns": 5.0}
    run.result["sweeps"] = {
        "blur": sweeps.by_blur(8, place),
        "batch": sweeps.by_batch("corrupt", 8, place, (1, 2)),
        "host": sweeps.host_time("corrupt", place, calls=10),
    }
    drawn = plots.draw(run.finish(tmp_path), tmp_path)
    assert [path.stem for path in drawn] == list(plots.PLOTS)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_a_step_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: what fails is named with its reason in the result, and the others are measured."""

    def broken(size: int, *_: object, **__: object) -> dict[str, float]:
        raise RuntimeError("no luck\nat all")

    monkeypatch.setattr(suite.machine, "parts_of_corrupt", broken)
    assert main(["bench", "--ops", "blur", *TINY, "--out", str(tmp_path / "one"), "--no-plots"]) == 0
    result, measured = report.load(str(tmp_path / "one"))
    assert result["problems"] == {"parts of corrupt, 8 px, 1 threads": "RuntimeError: no luck"}
    assert [row.op for row in measured] == ["blur"] and result["complete"]
    assert "no luck" in (tmp_path / "one" / "bench.md").read_text()


def test_ctrl_c_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: a run that is stopped leaves a result that says so, with the rows that were done."""
    real = suite.rows.prepare

    def stop(op: str, *args: object, **options: object) -> rows.Measurement:
        if op == "dct2":
            raise KeyboardInterrupt
        return real(op, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(suite.rows, "prepare", stop)
    out = tmp_path / "one"
    assert main(["bench", "--ops", "blur", "dct2", "idct2", *TINY, "--out", str(out)]) == 130
    result, measured = report.load(str(out))
    assert not result["complete"] and [row.op for row in measured] == ["blur"]
    assert "Stopped before its end" in (out / "bench.md").read_text()
    assert "stopped" in capsys.readouterr().err


def test_what_is_left_out_when_a_run_is_narrowed() -> None:
    """Rule: naming an op or a size means the ops' section alone, unless sections are named; quick ones skip
    the memory."""
    assert BenchConfig().chosen_sections() == ("ops", "sweeps", "memory")
    assert "memory" not in BenchConfig(quick=True).chosen_sections()
    assert BenchConfig(sizes=(64,)).chosen_sections() == ("ops",)
    assert BenchConfig(ops=("blur",), sections=("sweeps",)).chosen_sections() == ("sweeps",)


@pytest.mark.parametrize(
    "words, told",
    [
        (["--sizes", "0"], "--sizes: expected numbers of at least 1"),
        (["--batch", "0"], "--batch: expected at least 1"),
        (["--ops", "sharpen"], "sharpen"),
        (["--device", "abacus"], "--device"),
        (["--backends", "cuda"], "--backends: cuda does not work here"),
        (["--isa", "avx1024"], "avx1024"),
    ],
)
def test_bad_options_are_one_sentence(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: what the user can put right is one line on stderr and exit code 2, before anything is timed."""
    if words[0] == "--backends" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["bench", *words]) == 2
    err = capsys.readouterr().err.strip()
    assert told in err and "\n" not in err


def test_results_that_cannot_be_read(tmp_path: Path) -> None:
    """Rule: a missing file, another format and a torn file are told apart, each by its path."""
    with pytest.raises(UserError, match=r"nothing\.json: no such file"):
        report.load(str(tmp_path / "nothing.json"))
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"format": "something else"}))
    with pytest.raises(UserError, match=r"expected a result of `softdiff bench`.*got 'something else'"):
        report.load(str(other))
    other.write_text('{"format": ')
    with pytest.raises(UserError, match="not a complete result"):
        report.load(str(other))
    other.write_text(json.dumps({"format": report.FORMAT, "rows": [{"op": "blur"}]}))
    with pytest.raises(UserError, match="not a complete result"):
        report.load(str(other))
