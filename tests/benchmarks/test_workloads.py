# SPDX-License-Identifier: Apache-2.0
"""The workloads that the ops dominate: rows that make sense, right baselines, a table that follows them."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("scipy")

from benchmarks import command, workloads
from benchmarks.workloads import cold_loop, pipeline, statistics
from softdiff_kernels.bench import forms, timing
from softdiff_kernels.bench.timing import Timing
from softdiff_kernels.errors import UserError

CPU = torch.device("cpu")
Case = Callable[[torch.device], list[dict[str, Any]]]
CASES: dict[str, Case] = {
    "statistics": partial(statistics, size=8, count=40, budget=0.001),
    "pipeline": partial(pipeline, size=16, count=6, batch=4, budget=0.001),
    "cold loop": partial(cold_loop, size=8, batch=2, steps=3, budget=0.001),
}
KEYS = {*("case", "what", "size", "batch", "ours", "other", "other_name", "unit", "ratio", "noise", "note")}


def on_cuda(*_: object) -> None:
    raise AssertionError("CUDA was used")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rows(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: numbers are finite and positive, a ratio is that of the two times and beyond the noise, what was
    not timed says why, the rows are JSON, and on a CPU nothing touches CUDA."""
    for name in ("_lazy_init", "synchronize", "Event", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, on_cuda)
    rows = case(CPU)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    timed = [row for row in rows if row["ours"] is not None]
    assert len(timed) >= 2 and all(set(row) == KEYS for row in rows)
    for row in timed:
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in ("ours", "other"))
        assert row["noise"] >= 0 and row["size"] > 0 and row["batch"] > 0
        if row["ratio"] is not None:
            quotient = row["other"] / row["ours"]
            expected = 1 / quotient if row["unit"] == "images/s" else quotient
            assert row["ratio"] == pytest.approx(expected)
            assert abs(math.log(row["ratio"])) > row["noise"]
    for row in rows:
        if row["ours"] is None:
            assert row["other"] is None and row["ratio"] is None and "CUDA" in row["note"]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_wrong_baseline_is_not_timed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: where the operators or gains of a form are 1 % off, the case ends with WrongResult, untimed."""
    monkeypatch.setattr(timing, "sample", on_cuda)
    gains, dct2 = forms.Form.gains, forms.FourProduct.dct2
    monkeypatch.setattr(forms.Form, "gains", lambda self, std: tuple(1.01 * g for g in gains(self, std)))
    monkeypatch.setattr(forms.FourProduct, "dct2", lambda self, x: 1.01 * dct2(self, x))
    with pytest.raises(command.WrongResult, match="relative error"):
        case(CPU)


@pytest.mark.parametrize("name", ["statistics", "pipeline"])
def test_without_scipy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: where scipy is missing the others are timed, and its row says what to install."""

    monkeypatch.setattr(workloads, "make", lambda *_: (None, "the transform needs scipy"))
    rows = CASES[name](CPU)
    absent = [row for row in rows if "scipy" in row["other_name"]]
    assert len(absent) == 1 and absent[0]["ours"] is None and "needs scipy" in absent[0]["note"]
    assert len([row for row in rows if row["ours"] is not None]) >= 2


def test_a_gaussian_filter_with_another_boundary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: scipy's filter with images mirrored about the centres of edge pixels is not our blur."""
    import scipy.ndimage

    right = scipy.ndimage.gaussian_filter
    monkeypatch.setattr(
        scipy.ndimage, "gaussian_filter", lambda x, std, **kw: right(x, std, **{**kw, "mode": "mirror"})
    )
    with pytest.raises(command.WrongResult, match="gaussian_filter"):
        CASES["pipeline"](CPU)


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Makes the row of a call of two steps that took 1 s, and of another with its noise floor."""

    def make(case: str, other: float, floor: float, unit: str = "ms", name: str = "eager") -> dict[str, Any]:
        about = {"case": case, "what": "a step", "size": 64, "batch": 4}
        seconds = {timing.OURS: 1.0, name: other}
        timings = {key: Timing(value, value, value, 9, 0.01) for key, value in seconds.items()}
        monkeypatch.setattr(timing, "contest", lambda *_, **__: (timings, {name: floor}))
        return command.compete(about, lambda: None, {}, CPU, check=None, unit=unit, count=2.0)[0]

    return make


def test_units_and_noise(row: Callable[..., dict[str, Any]]) -> None:
    """Rule: a call of two steps of 1 s is 500 ms a step or 2 images/s; a ratio below its floor is none."""
    assert (row("a", 3.0, 0.1)["ours"], row("a", 3.0, 0.1)["other"]) == (500.0, 1500.0)
    rate = row("a", 4.0, 0.1, "images/s")
    assert (rate["ours"], rate["other"], rate["ratio"]) == (2.0, 0.5, 4.0)
    assert row("a", 1.05, 0.1)["ratio"] is None and row("a", 0.9, 0.05)["ratio"] == 0.9


def test_the_table_follows_the_numbers(row: Callable[..., dict[str, Any]]) -> None:
    """Rule: a row has its ratio, or none within the noise; what could not be timed has its reason instead."""
    about = {"case": "graphs", "what": "a step", "size": 64, "batch": 4}
    rows = [
        row("ahead", 9.0, 0.1),
        row("rate", 2.0, 0.1, "images/s", name="compiled"),
        row("level", 1.05, 0.1),
        row("behind", 0.5, 0.1),
        command.absent(about, "eager in a graph", "ms", "no device"),
    ]
    lines = [" ".join(line.split()) for line in command.table(rows).splitlines()[2:7]]
    assert lines == [
        "| ahead | a step | 64 | 4 | 500 | eager | 4500 | ms | 9.00 | 10% | |",
        "| rate | a step | 64 | 4 | 2 | compiled | 1 | images/s | 2.00 | 10% | |",
        "| level | a step | 64 | 4 | 500 | eager | 525 | ms | none | 10% | |",
        "| behind | a step | 64 | 4 | 500 | eager | 250 | ms | 0.50 | 10% | |",
        "| graphs | a step | 64 | 4 | | eager in a graph | | ms | | | no device |",
    ]


def measured(device: torch.device, case: str) -> list[dict[str, Any]]:
    """The row of a case that was timed."""
    assert device == CPU
    timed = {"ours": 1.0, "other": 2.0, "ratio": 2.0, "noise": 0.1}
    return [
        {**command.absent({"case": case, "what": "a step", "size": 64, "batch": 4}, "", "ms", ""), **timed}
    ]


def broken(device: torch.device) -> list[dict[str, Any]]:
    raise RuntimeError("no luck\nat all")


def stopped(device: torch.device) -> list[dict[str, Any]]:
    raise KeyboardInterrupt


FIRST, LAST = partial(measured, case="one"), partial(measured, case="two")


def test_every_case_is_run_and_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: the rows of all cases come in order, each announced before it runs; one that fails is named with
    its reason and costs no other; the files hold rows, machine and table, and are not overwritten."""
    words = ["--out", str(tmp_path), "--quick", "--device", "cpu", "--threads", "1"]
    quick = [FIRST, partial(broken), LAST]
    assert command.main("workloads", [], quick, words) == 1
    assert capsys.readouterr().out.startswith("measured, case one\nbroken\nmeasured, case two\n")
    result = json.loads((tmp_path / "workloads.json").read_text())
    assert [r["case"] for r in result["rows"]] == ["one", "two"] and result["complete"]
    assert result["problems"] == {"broken": "RuntimeError: no luck"} and result["machine"]["cpu"]
    text = (tmp_path / "workloads.md").read_text()
    assert "| one" in text and "failed: broken: RuntimeError: no luck" in text
    assert result["machine"]["cpu"] in text
    with pytest.raises(UserError, match="already holds a result"):
        command.main("workloads", [], quick, words)


def test_ctrl_c_keeps_the_rows_so_far(tmp_path: Path) -> None:
    """Rule: a run that is stopped leaves the rows that were measured, and says that it was stopped."""
    words = ["--out", str(tmp_path), "--threads", "1", "--device", "cpu"]
    assert command.main("workloads", [FIRST, partial(stopped), LAST], [], words) == 1
    result = json.loads((tmp_path / "workloads.json").read_text())
    assert len(result["rows"]) == 1 and not result["complete"]
    assert "Stopped before its end" in (tmp_path / "workloads.md").read_text()


@pytest.mark.parametrize("plan", [workloads.FULL, workloads.QUICK], ids=["full", "quick"])
def test_the_plans_name_each_workload_once(plan: list[command.Case]) -> None:
    """Rule: the full plan has every workload, the quick one too, under names of their own, with arguments
    that they take."""
    names = [command.label(case) for case in plan]
    assert len(set(names)) == len(names)
    for case in plan:
        inspect.signature(case.func).bind(CPU, **case.keywords)
    assert {case.func for case in plan} == {cold_loop, pipeline, statistics}
