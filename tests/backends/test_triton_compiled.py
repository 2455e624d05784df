# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels compiled ahead of time for GPUs that are not here, and what their machine code needs."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from softdiff_kernels.backends import triton as backend

pytest.importorskip("triton")
if backend.interpreted():
    pytest.skip("nothing is compiled where Triton interprets", allow_module_level=True)

from softdiff_kernels.backends.triton import configs
from softdiff_kernels.backends.triton.tools import aot, cases
from softdiff_kernels.backends.triton.tools.aot import Row
from softdiff_kernels.backends.triton.tools.cases import Case


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return aot.compile_all(cases.subset())


def test_every_kernel_passes_the_gate(rows):
    # No stack, hence no spills, and no more shared memory than the architecture has, on all four of them.
    assert {r.case.arch for r in rows} == set(cases.ARCHITECTURES)
    assert {r.kernel for r in rows} == {
        "corrupt_kernel",
        "step_kernel",
        "soft_score_loss_kernel",
        "spectral_loss_kernel",
        "dct2_kernel",
        "spectral_mix_kernel",
        "normal_kernel",
    }
    assert {(r.case, r.fault()) for r in rows if r.fault()} == set()


def test_a_normal_costs_at_most_26_instructions(rows):
    # All of it counted: Philox, Box-Muller, addresses, stores, and what a program does once.
    costs = [r.per_pixel for r in rows if r.kernel == "normal_kernel"]
    assert costs and max(costs) <= 26


def accumulators(code: str) -> tuple[list[str], set[str]]:
    """(what each product of Triton's GPU code accumulates into, what its loops carry)."""
    carried = {
        name for loop in re.findall(r"iter_args\((.*?)\) ->", code) for name in re.findall(r"(%\w+) =", loop)
    }
    return re.findall(r"(?:tt\.dot|warp_group_dot) %[\w#]+, %[\w#]+, (%[\w#]+)", code), carried


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_no_product_of_large_planes_accumulates_over_all_of_k(arch):
    # A tensor core truncates what it adds to. So no product takes the sum that a loop carries: an fma, which
    # rounds, joins each step's products to it. The compiler folds a plain `total += dot` into the product.
    (launch,) = cases.launches(Case("corrupt", 128, 128, "float32", arch))
    compiled = aot.compile_for(
        launch.kernel, launch.kinds, launch.constants, int(arch[3:]), launch.warps, launch.stages
    )
    into, carried = accumulators(compiled.asm["ttgir"])
    assert len(into) == 12 and carried and not carried & set(into)
    joined = re.findall(r"math\.fma %[\w#]+, %[\w#]+, (%[\w#]+)", compiled.asm["ttgir"])
    assert len(joined) == 4 and set(joined) <= carried
    assert accumulators("scf.for iter_args(%sum = %zero) -> (x) { tt.dot %a, %b, %sum }") == (
        ["%sum"],
        {"%sum"},
    )


def test_split_products_take_no_deeper_steps_than_32():
    # With steps of 64, sm_80's truncation leaves 1.3e-6 where constant images of 200 px may have 1.1e-6. The
    # kernel refuses them; neither the table nor what a tuner tries has any.
    for entries in json.loads(configs.TABLE.read_text())["architectures"].values():
        assert all(c["bk"] <= 32 for name, c in entries.items() if "/split/" in name)
    case = Case("corrupt", 128, 128, "float32", "sm_90")
    assert all(c.bk <= 32 for c in cases.choices(case))
    assert any(c.bk == 64 for c in cases.choices(replace(case, dtype="bfloat16")))
    (row,) = aot.measure(case, configs.Config(4, 2, 64))
    assert row.error


def test_the_gate_refuses_spills_and_too_much_shared_memory():
    # A 64 x 64 plane in the registers of one warp cannot fit: the compiler spills, and the gate says so.
    (row,) = aot.measure(Case("corrupt", 64, 64, "float32", "sm_80"), configs.Config(1, 2))
    assert re.fullmatch(r"\d+ bytes of stack", row.fault())
    fits = replace(row, stack=0, shared=aot.SHARED_LIMIT[80])
    assert fits.fault() == ""
    assert "shared memory" in replace(fits, shared=fits.shared + 1).fault()
    assert replace(fits, case=replace(row.case, arch="sm_120")).fault() != ""
    assert replace(fits, error="it broke").fault() == "it broke"


def test_the_table_has_what_calls_look_up_and_says_where_it_is_from():
    # An entry for each case, whatever its images' dtype, and none that no case finds.
    table = json.loads(configs.TABLE.read_text())
    assert set(cases.ARCHITECTURES) | {"amd"} == set(table["architectures"])
    for arch, entries in table["architectures"].items():
        assert set(entries) == {cases.entry(case) for case in cases.table_cases(arch)}
        for case in cases.table_cases(arch):
            for dtype in ("float32", "float16", "bfloat16"):
                assert cases.launches(replace(case, dtype=dtype))
    assert table["chosen_by"] or table["measured"]


def test_an_architecture_that_is_not_in_the_table_takes_the_nearest_older_one():
    known = ["sm_80", "sm_90", "sm_100", "sm_120", "amd"]
    wanted = {"sm_86": "sm_80", "sm_89": "sm_80", "sm_103": "sm_100", "sm_121": "sm_120", "sm_90": "sm_90"}
    wanted |= {"amd": "amd", "interpreter": "sm_80", "sm_75": "sm_80"}
    assert {name: configs.nearest(name, known) for name in wanted} == wanted


def test_kernels_compile_for_an_amd_gpu():
    # Without PTX and libdevice's fast logarithm. What comes out is an AMD code object; none was run.
    for case in (Case("corrupt", 64, 64, "float32", "amd"), Case("step", 128, 128, "float32", "amd")):
        for launch in cases.launches(case):
            compiled = aot.compile_for_amd(launch, "gfx942")
            assert compiled.asm["hsaco"][:4] == b"\x7fELF"
            assert "v_mfma" in compiled.asm["amdgcn"]
