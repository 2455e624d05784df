# SPDX-License-Identifier: Apache-2.0
"""The model of speed: how often machine code issues its instructions, and what follows for a GPU."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace

import pytest

from softdiff_kernels.backends import _measured

pytest.importorskip("triton")
sass = pytest.importorskip("softdiff_kernels.backends.triton.tools.sass")
model = pytest.importorskip("softdiff_kernels.backends.triton.tools.model")

BASE = 0x210  # of parameters, on sm_90


def code(lines: str) -> list[sass.Instruction]:
    """Instructions 16 bytes apart, as cuobjdump prints them; NAME: marks a place that branches name."""
    places: dict[str, int] = {}
    bare: list[str] = []
    for line in filter(None, map(str.strip, lines.split(";"))):
        if line.endswith(":"):
            places[line[:-1]] = 16 * len(bare)
        else:
            bare.append(line)
    text = "\t\tFunction : kernel\n"
    for n, line in enumerate(bare):
        for name, at in places.items():
            line = line.replace(f"<{name}>", f"{at:#x}")
        text += f"        /*{16 * n:04x}*/          {line} ;       /* 0x0000000000007b1d */\n"
        text += "                              /* 0x000ff00000000800 */\n"
    return sass.parse(text)["kernel"]


def launch(*words: int, threads: int = 32, grid: int = 1) -> sass.Launch:
    return sass.Launch((grid, 1, 1), threads, struct.pack(f"<{len(words)}I", *words), BASE)


def issued(lines: str, *words: int, threads: int = 32, block: int = 0) -> tuple[int, sass.Walk]:
    walked = sass.walk(code(lines), launch(*words, threads=threads, grid=4), block)
    return walked.costs["issue"], walked


def test_straight_code_is_counted_once_a_warp():
    # Two warps and a started third: three times three instructions. What follows EXIT is never reached.
    count, walked = issued("MOV R1, 0x1; IADD3 R2, R1, 0x1, RZ; EXIT; NOP", threads=70)
    assert count == 9 and walked.warps == 3 and not walked.open


LOOP = """
    MOV R4, RZ; top:; FFMA R8, R8, R8, R8; IADD3 R4, R4, 0x1, RZ;
    ISETP.GE.AND P0, PT, R4, c[0x0][0x214], PT; @!P0 BRA <top>; EXIT;
"""


@pytest.mark.parametrize("trips", [1, 3, 40])
def test_a_loop_runs_as_often_as_its_parameter_says(trips):
    count, walked = issued(LOOP, 0, trips)
    assert count == 2 + 4 * trips and walked.costs["fma"] == trips and not walked.open


def test_a_loop_counts_by_multiplied_and_shifted_numbers():
    # 5 = (24 >> 2) - 1 trips, from products, shifts, a logic function and a carry.
    lines = """
        MOV R2, 0x18; SHF.R.U32.HI R2, RZ, 0x2, R2; IMAD R2, R2, 0x1, -0x1;
        LOP3.LUT R2, R2, 0xf, RZ, 0xc0, !PT; LEA R3, R2, RZ, 0x2; MOV R4, RZ; top:; FFMA R8, R8, R8, R8;
        IADD3 R4, R4, 0x1, RZ; IMAD.SHL.U32 R5, R4, 0x4, RZ; ISETP.LT.U32.AND P0, PT, R5, R3, PT;
        @P0 BRA <top>; EXIT;
    """
    count, walked = issued(lines)
    assert count == 7 + 5 * 5 and not walked.open


def test_a_64_bit_comparison_is_put_together_from_two():
    # 2^32 + 1 > 5, although the low words say otherwise.
    lines = """
        MOV R2, 0x1; MOV R3, 0x1; ISETP.GT.U32.AND P0, PT, R2, 0x5, PT;
        ISETP.GT.AND.EX P0, PT, R3, RZ, PT, P0; @!P0 EXIT; NOP; EXIT;
    """
    assert issued(lines)[0] == 7


def test_a_division_by_a_parameter_is_followed():
    # threads / 5 as nvcc writes it for unsigned words: by a reciprocal in float32, and two corrections.
    lines = """
        MOV R5, c[0x0][0x210]; I2F.U32.RP R0, R5; MUFU.RCP R0, R0; IADD3 R2, R0, 0xffffffe, RZ;
        F2I.FTZ.U32.TRUNC.NTZ R3, R2; MOV R2, RZ; IADD3 R7, RZ, -R3, RZ; IMAD R7, R7, R5, RZ;
        IMAD.HI.U32 R3, R3, R7, R2; MOV R6, 0x20; IMAD.HI.U32 R3, R3, R6, RZ; IADD3 R8, -R3, RZ, RZ;
        IMAD R6, R5, R8, R6; ISETP.GE.U32.AND P0, PT, R6, R5, PT; @P0 IADD3 R6, R6, -R5, RZ;
        @P0 IADD3 R3, R3, 0x1, RZ; ISETP.GE.U32.AND P0, PT, R6, R5, PT; @P0 IADD3 R3, R3, 0x1, RZ;
        ISETP.NE.AND P0, PT, R3, 0x6, PT; @P0 EXIT; NOP; EXIT;
    """
    count, walked = issued(lines, 5)
    assert count == lines.count(";") and not walked.open


OPTION = """
    ISETP.NE.U32.AND P0, PT, RZ, c[0x0][0x210], PT; @!P0 BRA <end>; NOP; NOP; end:; EXIT;
"""


def test_code_of_an_absent_option_is_not_counted():
    assert issued(OPTION, 0)[0] == 3 and issued(OPTION, 7)[0] == 5


def test_lanes_that_diverge_are_counted_on_both_sides_and_meet_again():
    # 16 lanes take each side: both are issued, and the rest once.
    lines = """
        S2R R0, SR_TID.X; ISETP.GE.AND P0, PT, R0, 0x10, PT; @P0 BRA <other>; NOP; NOP; BRA <end>;
        other:; NOP; end:; NOP; EXIT;
    """
    assert issued(lines)[0] == 3 + 3 + 1 + 2
    # The second warp is on one side as a whole.
    assert issued(lines, threads=64)[0] == 9 + 3 + 1 + 2


def test_blocks_tell_their_numbers():
    lines = "S2R R0, SR_CTAID.X; ISETP.NE.AND P0, PT, R0, RZ, PT; @P0 EXIT; NOP; EXIT"
    assert [issued(lines, block=b)[0] for b in (0, 1)] == [5, 3]


@pytest.mark.parametrize(
    ("compare", "taken"),
    [
        ("FSETP.NEU.AND P0, PT, R2, RZ, PT", True),
        ("FSETP.EQ.AND P0, PT, R2, RZ, PT", False),
        ("DSETP.NEU.AND P0, PT, R2, RZ, PT", True),
        ("FSETP.GTU.FTZ.AND P0, PT, |R2|, +INF , PT", False),
        ("FSETP.GEU.AND P0, PT, |R2|, 1.175494350822287508e-38, PT", True),
        ("FSETP.NAN.AND P0, PT, R2, R2, PT", False),
    ],
)
def test_loaded_floats_are_finite_normal_and_equal_to_nothing(compare, taken):
    lines = f"LDG.E R2, desc[UR4][R4.64]; {compare}; @P0 BRA <end>; NOP; end:; EXIT"
    count, walked = issued(lines)
    assert count == 5 - taken and not walked.open and walked.assumed == {0x10}


def test_what_nothing_decides_is_open():
    # A loaded integer, or the order of two loaded floats.
    for compare in ("ISETP.GE.AND P0, PT, R2, 0x5, PT", "FSETP.GT.AND P0, PT, R2, R3, PT"):
        lines = f"LDG.E.64 R2, desc[UR4][R4.64]; {compare}; @P0 BRA <end>; NOP; end:; EXIT"
        assert issued(lines)[1].open == {0x20}


def test_a_call_for_special_cases_is_not_made_and_others_return():
    slow = """
        LDG.E R2, desc[UR4][R4.64]; ISETP.GE.U32.AND P0, PT, R2, 0x5, PT; @!P0 BRA <on>;
        CALL.REL.NOINC <sub>; on:; EXIT; sub:; NOP; RET.REL.NODEC R8 0x0;
    """
    assert issued(slow)[0] == 4 and not issued(slow)[1].open
    both = "MOV R8, <on>; CALL.REL.NOINC <sub>; on:; EXIT; sub:; NOP; RET.REL.NODEC R8 0x0"
    assert issued(both)[0] == 5


def test_what_a_barrier_in_memory_waits_for_is_there():
    lines = """
        SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4+0x4000], R64; @!P0 BRA <wait>; EXIT;
        wait:; SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4+0x4000], R64; @!P0 BRA <wait>; EXIT;
    """
    count, walked = issued(lines)
    assert count == 3 and not walked.open


def test_a_flag_that_one_thread_leaves_for_the_others_is_known():
    lines = """
        S2R R0, SR_TID.X; MOV R3, c[0x0][0x210]; ISETP.NE.AND P0, PT, R0, RZ, PT; @!P0 STS [0x10], R3;
        BAR.SYNC.DEFER_BLOCKING 0x0; LDS R4, [RZ+0x10]; ISETP.NE.AND P1, PT, R4, RZ, PT; @!P1 EXIT; NOP;
        EXIT;
    """
    for flag, count in ((0, 2 * 8), (1, 2 * 10)):
        got, walked = issued(lines, flag, threads=64)
        assert got == count and not walked.open


def test_a_word_that_two_stores_disagree_on_is_unknown():
    lines = """
        S2R R0, SR_TID.X; STS [0x10], R0; BAR.SYNC.DEFER_BLOCKING 0x0; LDS R4, [0x10];
        ISETP.NE.AND P1, PT, R4, RZ, PT; @!P1 BRA <end>; NOP; end:; EXIT;
    """
    assert issued(lines)[1].open == {0x50}


def test_code_that_never_ends_is_an_error(monkeypatch):
    monkeypatch.setattr(sass, "_MOST_STEPS", 100)
    with pytest.raises(sass.Unreadable, match="no end after"):
        issued("top:; NOP; BRA <top>")


@pytest.mark.parametrize(
    ("op", "wanted"),
    [
        ("FFMA", {"fma": 1}),
        ("IMAD.WIDE.U32", {"imad": 1}),
        ("IADD3", {"alu": 1}),
        ("MUFU.EX2", {"xu": 1}),
        ("DFMA", {"fp64": 1}),
        ("LDS.128", {"shared": 4}),
        ("LDSM.16.M88.4", {"shared": 4}),
        ("SHFL.BFLY", {"shared": 1}),
        ("LDG.E.64", {"global": 256, "lsu": 1}),
        ("STG.E.U16", {"global": 64, "stored": 64, "lsu": 1}),
        ("HMMA.16816.F32", {"mma": 64}),
        ("HGMMA.64x64x16.F32", {"wgmma": 512}),
        ("UIADD3", {}),
        ("BAR.SYNC.DEFER_BLOCKING", {}),
    ],
)
def test_what_an_instruction_occupies(op, wanted):
    assert dict(sass.cost(op)) == {"issue": 1, **wanted}


# --- Whole kernels, against numbers that are known by arithmetic ---


@pytest.mark.parametrize(
    ("op", "px", "dtype", "products", "stored"),
    [
        ("corrupt", 32, "float32", 3, 4),
        ("soft_score_loss", 32, "bfloat16", 3, 2),
        ("corrupt", 128, "bfloat16", 1, None),
    ],
)
def test_a_triton_kernel_has_the_products_that_it_needs(op, px, dtype, products, stored):
    # Four products of px multiply-adds a pixel, each of one or three parts, whatever loops they are in; the
    # result stored once, where there is no scratch (a loss adds 4 bytes an image).
    found = model.triton_count(model._case((op, px, dtype, "sm_90")))
    per_pixel = Counter(found.per_pixel)
    assert per_pixel["mma"] + per_pixel["wgmma"] == pytest.approx(4 * products * px)
    assert found.open == 0 and not any(k.stack for k in found.kernels)
    if stored is not None:
        assert per_pixel["stored"] == pytest.approx(stored, abs=0.1)
    made = model.row(model._case((op, px, dtype, "sm_90")), "triton", found, model.GPUS["H200"])
    assert made.limit == ("L2" if px > 64 else made.limit) and made.expected <= made.percent <= 100


BUILDS = sorted(model.ROOT.glob("build/cuda-*/csrc/cuda"))


@pytest.mark.skipif(not BUILDS, reason="this checkout has built no CUDA kernels (SOFTDIFF_CUDA=1)")
def test_the_cuda_modules_launches_are_recorded_and_counted():
    # In a process of its own, which loads the module on a pretended runtime. The noise alone takes more than
    # 20 instructions a pixel; 8 bytes are moved, of which 4 are the result.
    built = json.loads((model.PACKAGE / "_build.json").read_text())["cuda_archs"]
    arch = next(f"sm_{number}" for number in built if f"sm_{number}" in model.OF_ARCH)
    case = ("corrupt", 64, "float32", arch)
    script = f"""
from softdiff_kernels.backends.triton.tools import model
case = model._case({case!r})
with model.cuda_module(model.built_objects(), {arch!r}) as module:
    found = model.cuda_count(module, case)
    made = model.row(case, "cuda", found, model.GPUS[model.OF_ARCH[{arch!r}]])
print(made.instructions, found.per_pixel["stored"], found.per_pixel["global"], made.warps, made.percent)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=model.ROOT)
    assert done.returncode == 0, done.stderr
    instructions, stored, moved, warps, percent = map(float, done.stdout.split())
    assert 20 < instructions < 400 and stored == pytest.approx(4, abs=0.1) and moved >= 8
    assert warps > 0 and 0 < percent <= 100


H200 = replace(model.GPUS["H200"], multiprocessors=100, hertz=1e9, copy=4e12, l2=8e12)


def counted(**per_pixel: float) -> model.Count:
    return model.Count(per_pixel, [model.Kernel("k", 128, 0, 20_000, 4)])


def test_percent_of_a_copy_by_limit():
    # 8 bytes take 2 ps at 4 TB/s, and 0.2 clocks of each of 100 multiprocessors at 1 GHz. 51.2 instructions
    # take 51.2 / 128 = 0.4 clocks: half.
    found = counted(issue=51.2, fma=12.8, alu=6.4, xu=3.2, shared=1.6, **{"global": 8})
    percent, l2_bytes, kind = model.limits(found, 8, 4, H200)
    wanted = {"issue": 50, "fma": 200, "alu": 200, "mufu": 100, "shared": 20 / (0.05 + 0.0625), "L2": 200}
    assert percent == pytest.approx(wanted) and (l2_bytes, kind) == (8, "straight")


def test_a_scratch_counts_against_l2():
    # 40 bytes of which 12 are stored, 4 of them the result: all from L2, 5 ps against 2.
    found = counted(issue=1, mma=100, stored=12, **{"global": 40})
    percent, l2_bytes, kind = model.limits(found, 8, 4, H200)
    assert percent["L2"] == pytest.approx(40) and (l2_bytes, kind) == (40, "products through L2")


@pytest.mark.parametrize(
    ("kernel", "blocks"),
    [
        (model.Kernel("registers", 128, 0, 0, 4), 4),  # 65536 / (128 * 128)
        (model.Kernel("rounded", 121, 0, 0, 4), 4),  # registers go by eights
        (model.Kernel("shared", 32, 0, 56_000, 4), 4),  # 228 KiB / (56,000 + 1024)
        (model.Kernel("warps", 16, 0, 0, 8), 8),  # 64 of them
        (model.Kernel("blocks", 16, 0, 0, 1), 32),
        (model.Kernel("none", 255, 0, 0, 32), 0),
    ],
)
def test_blocks_on_a_multiprocessor(kernel, blocks):
    assert model.resident(kernel, model.GPUS["H200"]) == blocks


# --- What is kept ---


def rows():
    return [model.Row(**fields) for fields in json.loads(_measured.PREDICTED.read_text())["rows"]]


def test_the_kept_table_agrees_with_itself():
    # The tightest limit is the one that is named, and nothing is expected to pass it.
    kept = rows()
    assert {(r.op, r.px, r.dtype) for r in kept} >= {
        (op, px, dtype)
        for op in ("corrupt", "momentum_step", "soft_score_loss")
        for px in (32, 64, 128)
        for dtype in ("float32", "bfloat16")
    }
    for r in kept:
        assert r.percent == min(100, *r.limits.values()) and r.expected <= r.percent
        assert r.limit == "HBM" or r.limits[r.limit] == r.percent
        assert r.backend in ("triton", "cuda") and r.warps > 0


def test_the_documentation_has_the_kept_table():
    if not model.PAGE.is_file():
        pytest.skip("an installed package has no documentation beside it")
    assert model.markdown(rows()) in model.PAGE.read_text()


def test_what_is_kept_of_other_sources_is_told(monkeypatch, tmp_path):
    # A file with another digest is refused; a row of such sources does not survive the next --write.
    path = tmp_path / "predicted.json"
    monkeypatch.setattr(model, "PREDICTED", path)
    some = rows()[:3]
    model.write(some, tmp_path / "none.md")
    assert model.check() == []
    head = json.loads(path.read_text())
    head["sources"] = dict.fromkeys(head["sources"], "another")
    path.write_text(json.dumps(head))
    assert len(model.check()) == len(model.digests())
    model.write(some[:1], tmp_path / "none.md")
    assert json.loads(path.read_text())["rows"] == [asdict(some[0])]
    model.write(some[1:2], tmp_path / "none.md")
    assert len(json.loads(path.read_text())["rows"]) == 2
