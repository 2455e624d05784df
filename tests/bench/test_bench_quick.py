# SPDX-License-Identifier: Apache-2.0
"""`softdiff bench --quick` as a user runs it: every part of the suite works. Times are not looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("scipy")
pytest.importorskip("tyro")
pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")

import softdiff_kernels as sk
from softdiff_kernels.bench import report
from softdiff_kernels.bench.config import OPS, QUICK_SIZES

ROOT = Path(__file__).resolve().parents[2]


# Under a minute on an idle machine with two cores; a busy one may take ten times as long.
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sk.backends()["native"].usable, reason=sk.backends()["native"].reason)
def test_a_quick_run_measures_everything(tmp_path: Path) -> None:
    """Rule: a quick run ends without a failed step, with a row for each op, size and thread count, and with
    every other section filled."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # The other backends' variables slow the ops down by orders of magnitude.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SOFTDIFF_", "TRITON_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-m", "softdiff_kernels", "bench", "--quick", "--out", str(tmp_path / "one")],
        env={**kept, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result, measured = report.load(str(tmp_path / "one"))
    assert result["complete"] and result["problems"] == {}
    counts = sorted(int(count) for count in result["limits"])
    wanted = {(op, px, threads) for op in OPS for px in QUICK_SIZES for threads in counts}
    assert {(r.op, r.px, r.threads) for r in measured} == wanted
    assert all(result["sweeps"].values())
    drawn = {p.stem for p in (tmp_path / "one").glob("*.png")}
    assert drawn == {"time-per-value", "ratio", "blur-std", "batch", "host"}
    text = (tmp_path / "one" / "bench.md").read_text()
    assert "## The ops beside their baselines" in text and "## Host time of a call" in text
