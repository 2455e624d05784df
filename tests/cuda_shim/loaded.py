# SPDX-License-Identifier: Apache-2.0
"""The test kernels' module, for the shim's own tests: `from cuda_shim.loaded import k`."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from pathlib import Path

import pytest
from cuda_shim.build import build

pytest.importorskip("pybind11")
if shutil.which("g++") is None or platform.system() != "Linux":
    pytest.skip("the shim is built with g++ on Linux", allow_module_level=True)

KERNELS = Path(__file__).parent / "kernels"
SOURCES = sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.cpp")])
ORDERS = ["forward", "reverse", "shuffle:0", "shuffle:1", "shuffle:2", "shuffle:3"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build("shim_kernels", SOURCES, tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def k(path):
    spec = importlib.util.spec_from_file_location("shim_kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=ORDERS)
def order(request, monkeypatch):
    monkeypatch.setenv("SOFTDIFF_SHIM_ORDER", request.param)
    return request.param


def address(array):
    return array.ctypes.data
