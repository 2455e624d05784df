# SPDX-License-Identifier: Apache-2.0
"""`auto` on a GPU goes by what was measured, else by what is predicted, with made-up tables here."""

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
COMMITTED = _measured.TABLE


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Neither measurements nor predictions, unless a test makes some."""
    monkeypatch.delenv("SOFTDIFF_BACKEND", raising=False)
    (tmp_path / "none.json").write_text(json.dumps({"gpu": None, "faster": {}, "rows": []}))
    monkeypatch.setattr(_measured, "TABLE", tmp_path / "none.json")
    monkeypatch.setattr(_measured, "PREDICTED", tmp_path / "none.json")
    _measured.forget()
    yield
    monkeypatch.undo()
    _measured.forget()


def measured(monkeypatch, tmp_path, faster):
    path = tmp_path / "faster.json"
    path.write_text(json.dumps({"gpu": "made up", "faster": faster}))
    monkeypatch.setattr(_measured, "TABLE", path)


def predicted(monkeypatch, tmp_path, percents, expected=(0, 0), arch="sm_90"):
    """percents: (op, px, dtype) -> (Triton's, CUDA's) percent of a copy."""
    rows = [
        {
            "op": op,
            "px": px,
            "dtype": dtype,
            "backend": backend,
            "arch": arch,
            "percent": percent,
            "expected": e,
        }
        for (op, px, dtype), each in percents.items()
        for backend, percent, e in zip(("triton", "cuda"), each, expected, strict=True)
    ]
    path = tmp_path / "predicted.json"
    path.write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(_measured, "PREDICTED", path)


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
    table = json.loads(COMMITTED.read_text())
    assert (table["gpu"] is None) == (table["faster"] == {})
    for sizes in table["faster"].values():
        assert set(sizes.values()) <= {"triton", "cuda"}


def test_without_measurement_and_prediction_auto_keeps_its_order(monkeypatch, tmp_path):
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


CASES = {
    ("corrupt", 64, "float32"): (79, 82),
    ("corrupt", 64, "bfloat16"): (56, 41),
    ("corrupt", 128, "bfloat16"): (20, 38),
    ("momentum_step", 64, "float32"): (90, 60),
}


def test_until_something_was_measured_the_model_decides(monkeypatch, tmp_path):
    # The larger percent of a copy, at the nearest size; float32 for dtypes of no row; blur as corrupt.
    gpu_backends(monkeypatch)
    predicted(monkeypatch, tmp_path, CASES)
    assert [taken("corrupt", 64, dtype) for dtype in (torch.float32, torch.bfloat16, torch.uint8)] == [
        "cuda",
        "triton",
        "cuda",
    ]
    assert [taken("corrupt", side, torch.bfloat16) for side in (90, 91, 512)] == ["triton", "cuda", "cuda"]
    assert taken("blur", 64) == "cuda" and taken("step", 64) == taken("step_out", 64) == "triton"
    assert taken("dct2", 64) == "triton"  # which the model does not know: the usual order


def test_equal_limits_are_told_apart_by_what_is_expected(monkeypatch, tmp_path):
    gpu_backends(monkeypatch)
    predicted(monkeypatch, tmp_path, {("corrupt", 64, "float32"): (100, 100)}, expected=(60, 70))
    assert taken("corrupt", 64) == "cuda"


def test_a_case_that_one_backend_has_no_row_of_is_no_prediction(monkeypatch, tmp_path):
    gpu_backends(monkeypatch)
    predicted(monkeypatch, tmp_path, CASES)
    table = json.loads(_measured.PREDICTED.read_text())
    table["rows"] = [r for r in table["rows"] if r["backend"] == "cuda"]
    _measured.PREDICTED.write_text(json.dumps(table))
    assert taken("corrupt", 64) == "triton"


def test_other_architectures_are_for_reports(monkeypatch, tmp_path):
    gpu_backends(monkeypatch)
    predicted(monkeypatch, tmp_path, CASES, arch="sm_80")
    assert taken("corrupt", 64) == "triton"
    assert _measured.prediction("corrupt", 64, "float32", "cuda", "sm_80")["percent"] == 82
    assert _measured.prediction("corrupt", 64, "float32", "cuda") is None


def test_what_was_measured_comes_before_what_is_predicted(monkeypatch, tmp_path):
    # An op that was not measured still goes by the model.
    gpu_backends(monkeypatch)
    predicted(monkeypatch, tmp_path, CASES)
    measured(monkeypatch, tmp_path, {"corrupt": {"64": "triton"}})
    assert taken("corrupt", 64) == taken("corrupt", 128, torch.bfloat16) == "triton"
    measured(monkeypatch, tmp_path, {"momentum_step": {"64": "cuda"}})
    _measured.forget()
    assert taken("corrupt", 64) == taken("step", 64) == "cuda"


def test_a_predicted_backend_that_cannot_take_a_call_is_passed_over(monkeypatch, tmp_path):
    predicted(monkeypatch, tmp_path, CASES)
    gpu_backends(monkeypatch, usable=("triton",))
    assert taken("corrupt", 64) == "triton"
    gpu_backends(monkeypatch, covering=("triton",))
    assert taken("corrupt", 64) == "triton"
    gpu_backends(monkeypatch)
    with BACKENDS.use_backend("triton"):
        assert taken("corrupt", 64) == "triton"


def test_a_prediction_is_looked_up_by_the_benchmarks_names(monkeypatch, tmp_path):
    predicted(monkeypatch, tmp_path, {**CASES, ("soft_score_loss", 32, "float32"): (90, 100)})
    row = _measured.prediction("soft_score_loss, op alone", 32, "float32", "cuda")
    assert row is not None and row["percent"] == 100
    assert _measured.prediction("reverse_step", 64, "float32", "triton")["percent"] == 90
    assert _measured.prediction("blur", 64, "float32", "triton")["percent"] == 79
    assert _measured.prediction("dct2", 64, "float32", "triton") is None


def test_backends_says_what_auto_takes_and_how_that_is_known(monkeypatch, tmp_path):
    gpu_backends(monkeypatch)
    predicted(monkeypatch, tmp_path, {case: each for case, each in CASES.items() if case[0] == "corrupt"})
    reasons = {name: BACKENDS.backends()[name].reason for name in ("triton", "cuda")}
    assert reasons == {
        "triton": "made up; auto takes it for bfloat16 at 64 px, by a model of the machine code (nothing "
        "was measured on a GPU); for ops that are in no table",
        "cuda": "made up; auto takes it for float32 at all sizes and bfloat16 at 128 px, by a model of the "
        "machine code (nothing was measured on a GPU)",
    }
    predicted(monkeypatch, tmp_path, CASES)
    measured(monkeypatch, tmp_path, {"corrupt": {"64": "cuda", "128": "triton"}})
    _measured.forget()
    assert BACKENDS.backends()["cuda"].reason == (
        "made up; auto takes it for float32 at 64 px, as measured on made up"
    )


def test_ops_are_named_where_they_differ(monkeypatch, tmp_path):
    predicted(monkeypatch, tmp_path, CASES)
    assert _measured.reason("triton", others=False).startswith(
        "auto takes it for momentum_step of float32 at all sizes and corrupt of bfloat16 at 64 px, by a model"
    )


def test_backends_says_nothing_of_auto_where_there_is_no_choice(monkeypatch, tmp_path):
    predicted(monkeypatch, tmp_path, CASES)
    gpu_backends(monkeypatch, usable=("triton",))
    assert BACKENDS.backends()["triton"].reason == "made up"
    gpu_backends(monkeypatch)
    (tmp_path / "predicted.json").write_text(json.dumps({"rows": []}))
    _measured.forget()
    assert BACKENDS.backends()["triton"].reason == "made up; auto takes it for ops that are in no table"
    assert BACKENDS.backends()["cuda"].reason == "made up"
