# SPDX-License-Identifier: Apache-2.0
"""`softdiff bench compare`: a change is told from noise, and from a machine that runs at another speed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tyro")

from softdiff_kernels.bench import compare, report, rows
from softdiff_kernels.cli import main

MACHINE = {
    "cpu": "abacus",
    "cores": 2,
    "gpu": None,
    "instruction_set": "beads",
    "versions": {"torch": "2.13.0"},
}


def row(ours: float = 1.0, others: tuple[float, ...] = (5.0, 6.0, 7.0), noise: float = 0.02) -> rows.Row:
    """A row of made-up times; the first of the others is the fastest."""

    def timing(median: float) -> dict[str, Any]:
        return {"median": median, "low": median, "high": median, "group": "main"}

    names = [f"form {i}" for i in range(len(others))]
    timings = {name: timing(value) for name, value in zip(names, others, strict=True)}
    return rows.Row(
        op="corrupt",
        px=64,
        batch=64,
        dtype="float32",
        device="cpu",
        backend="auto",
        threads=1,
        ours=ours,
        low=ours,
        high=ours,
        noise=noise,
        fastest=names[0],
        fastest_ns=others[0],
        ratio=others[0] / ours,
        fft=None,
        fft_ratio=None,
        extra=None,
        extra_ratio=None,
        steady=True,
        error=1e-7,
        fastest_error=1e-7,
        timings={rows.OURS: timing(ours), rows.AGAIN: timing(ours), **timings},
    )


def test_a_change_beyond_the_noise() -> None:
    """Rule: under unchanged baselines 10 % less time is faster, 10 % more slower, 2 % either way none."""
    assert compare.change(row(1.0), row(0.9)).verdict == "faster"
    assert compare.change(row(1.0), row(1.1)).verdict == "slower"
    assert compare.change(row(1.0), row(0.98)).verdict == "none"
    assert compare.change(row(1.0), row(1.02)).verdict == "none"


def test_the_floor_adds_both_noises() -> None:
    """Rule: the floor is the root of the sum of squares: of 3 % and 4 % it is 5 %."""
    assert compare.change(row(noise=0.03), row(noise=0.04)).floor == pytest.approx(0.05)


def test_a_slower_machine_is_no_change() -> None:
    """Rule: where everything takes 1.5 times as long, ours has not changed, and the factor is named."""
    change = compare.change(row(1.0), row(1.5, (7.5, 9.0, 10.5)))
    assert change.verdict == "none"
    assert (change.time, change.machine, change.net) == pytest.approx((1.5, 1.5, 1.0))


def test_baselines_that_disagree_widen_the_floor() -> None:
    """Rule: where the baselines moved by up to a half against each other, a tenth cannot be told."""
    change = compare.change(row(1.0), row(0.9, (5.0, 9.0, 4.5)))
    assert change.verdict == "none" and change.floor > 0.1


def write(folder: Path, timed: list[rows.Row], **machine: Any) -> str:
    """A result as `softdiff bench` writes it."""
    folder.mkdir()
    report.save(folder, {"machine": {**MACHINE, **machine}, "complete": True}, timed)
    return str(folder)


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: the report lists what changed, counts the rest, and says which rows only one result has."""
    other = copy.deepcopy(row())
    other.px = 128
    one = write(tmp_path / "one", [row(1.0), other])
    two = write(tmp_path / "two", [row(0.8)])
    assert main(["bench", "compare", one, two]) == 0
    told = capsys.readouterr().out
    assert "| faster |" in told and "-20.0%" in told
    assert "Of 1 rows 1 are faster and 0 slower beyond the noise, 0 are the same within it." in told
    assert "1 rows are in only one of the two." in told
    assert "different machines" not in told

    assert main(["bench", "compare", one, one]) == 0
    told = capsys.readouterr().out
    assert "|" not in told and "2 are the same within it" in told
    assert main(["bench", "compare", one, one, "--all"]) == 0
    assert capsys.readouterr().out.count("| none") == 2


def test_other_machines_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: another CPU or version is told, and that the times of two machines cannot be compared."""
    one = write(tmp_path / "one", [row()])
    two = write(tmp_path / "two", [row()], cpu="slide rule", versions={"torch": "2.14.1"})
    assert main(["bench", "compare", one, two]) == 0
    told = capsys.readouterr().out
    assert "cpu: abacus before, slide rule after" in told
    assert "torch: 2.13.0 before, 2.14.1 after" in told
    assert "different machines" in told


def test_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: without a common row there is nothing to compare, and a file that is no result is refused."""
    one, two = write(tmp_path / "one", [row()]), write(tmp_path / "two", [])
    assert main(["bench", "compare", one, two]) == 0
    assert "no row in common" in capsys.readouterr().out
    stranger = tmp_path / "stranger.json"
    stranger.write_text(json.dumps([1, 2]))
    assert main(["bench", "compare", one, str(stranger)]) == 2
    assert "expected a result of `softdiff bench`" in capsys.readouterr().err
