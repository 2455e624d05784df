# SPDX-License-Identifier: Apache-2.0
"""`auto` on a GPU goes by what was measured: faster.json, with made-up tables here."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import targets
from softdiff_kernels.backends import _measured, reference

BACKENDS = importlib.import_module("softdiff_kernels.backends")
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("SOFTDIFF_BACKEND", raising=False)
    _measured.forget()
    yield
    monkeypatch.undo()
    _measured.forget()


def measured(monkeypatch, tmp_path, faster):
    path = tmp_path / "faster.json"
    path.write_text(json.dumps({"gpu": "made up", "faster": faster}))
    monkeypatch.setattr(_measured, "TABLE", path)


def gpu_backends(monkeypatch, usable=("triton", "cuda"), covering=("triton", "cuda")):
    """Backends that take calls, or do not, without a GPU."""
    for name in ("triton", "cuda"):
        fake = SimpleNamespace(
            covers=lambda *call, name=name: name in covering,
            status=lambda name=name: (name in usable, "made up"),
            name=name,
        )
        monkeypatch.setitem(BACKENDS._BACKENDS, name, fake)


def taken(op, side, dtype=torch.float32, device=GPU):
    backend = BACKENDS._implementation(op, device, (2, 3, side, 5), dtype, ())
    return "reference" if backend is reference else backend.name


def test_the_table_in_the_package_says_whether_it_was_measured():
    # Either a GPU is named, or nothing is preferred.
    table = json.loads(_measured.TABLE.read_text())
    assert (table["gpu"] is None) == (table["faster"] == {})
    for sizes in table["faster"].values():
        assert set(sizes.values()) <= {"triton", "cuda"}


def test_without_a_measurement_auto_keeps_its_order(monkeypatch, tmp_path):
    gpu_backends(monkeypatch)
    for table in ({}, {"blur": {"64": "cuda"}}):
        measured(monkeypatch, tmp_path, table)
        _measured.forget()
        assert taken("corrupt", 64) == "triton"
        # Another device has no second backend to prefer.
        only = SimpleNamespace(covers=lambda *call: True, status=lambda: (True, "made up"), name="native")
        monkeypatch.setitem(BACKENDS._BACKENDS, "native", only)
        assert taken("blur", 64, device=torch.device("cpu")) == "native"


@pytest.mark.parametrize(("named", "other"), [("cuda", "triton"), ("triton", "cuda")])
def test_auto_takes_the_backend_that_was_faster(monkeypatch, tmp_path, named, other):
    # At the nearest size in the logarithm of the larger side: 90 lies nearer to 64 than to 128, 91 does not.
    gpu_backends(monkeypatch)
    measured(monkeypatch, tmp_path, {"blur": {"64": named, "128": other, "512": named}})
    got = [taken("blur", side) for side in (1, 64, 90, 91, 128, 255, 257, 1024)]
    assert got == [named, named, named, other, other, other, named, named]


def test_the_larger_side_counts(monkeypatch, tmp_path):
    measured(monkeypatch, tmp_path, {"blur": {"64": "cuda", "256": "triton"}})
    assert _measured.fastest("blur", (1, 3, 20, 250), torch.float32) == "triton"
    assert _measured.fastest("blur", (3, 64), torch.float32) == "cuda"


def test_float32_stands_for_dtypes_that_were_not_measured(monkeypatch, tmp_path):
    gpu_backends(monkeypatch)
    measured(monkeypatch, tmp_path, {"corrupt": {"64": "cuda", "64 bfloat16": "triton"}})
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
    assert [taken("corrupt", 64, dtype) for dtype in dtypes] == ["cuda", "triton", "cuda", "cuda"]


def test_every_step_is_measured_as_momentum_step(monkeypatch, tmp_path):
    gpu_backends(monkeypatch)
    measured(monkeypatch, tmp_path, {"momentum_step": {"64": "cuda"}})
    assert taken("step", 64) == taken("step_out", 64) == "cuda"


def test_what_cannot_take_a_call_is_passed_over(monkeypatch, tmp_path):
    measured(monkeypatch, tmp_path, {"blur": {"64": "cuda"}})
    gpu_backends(monkeypatch, usable=("triton",))
    assert taken("blur", 64) == "triton"
    gpu_backends(monkeypatch, covering=("triton",))
    assert taken("blur", 64) == "triton"
    gpu_backends(monkeypatch, usable=())
    assert taken("blur", 64) == "reference"


def test_the_choice_by_name_overrules_measurements(monkeypatch, tmp_path):
    gpu_backends(monkeypatch)
    measured(monkeypatch, tmp_path, {"blur": {"64": "cuda"}})
    with BACKENDS.use_backend("triton"):
        assert taken("blur", 64) == "triton"


def test_the_table_is_the_one_that_the_report_writes(monkeypatch, tmp_path):
    rows = [
        {"op": op, "px": 64, "dtype": "float32", "kind": "full", "backend": backend, "ours": us}
        for op in ("corrupt", "soft_score_loss, op alone")
        for backend, us in (("triton", 2.0), ("cuda", 1.0))
    ]
    path = tmp_path / "faster.json"
    path.write_text(json.dumps(targets.faster_table({}, targets.faster(rows), "")))
    monkeypatch.setattr(_measured, "TABLE", path)
    for op in ("corrupt", "soft_score_loss"):
        assert _measured.fastest(op, (1, 3, 64, 64), torch.bfloat16) == "cuda"


def test_the_table_is_read_once(monkeypatch, tmp_path):
    gpu_backends(monkeypatch)
    measured(monkeypatch, tmp_path, {"blur": {"64": "cuda"}})
    assert taken("blur", 64) == "cuda"
    _measured.TABLE.unlink()
    assert taken("blur", 64) == taken("blur", 65) == "cuda"
