# SPDX-License-Identifier: Apache-2.0
"""Baselines under torch.compile, in half precision and on another device compute what the eager ones do."""

from __future__ import annotations

import shutil

import pytest
import torch

pytest.importorskip("scipy")

from softdiff_kernels.bench import baselines, cases, forms, timing

OPS = baselines.OPS[:-1]


def check(op: str, dtype: torch.dtype, bound: float, candidates: list[baselines.Baseline]) -> None:
    case = cases.make(op, 12, 12, 2, dtype=dtype)
    exact = cases.truth(case)
    given = {} if case.noise is None else {"noise": case.noise}
    for one in candidates:
        result = one.call(*case.arguments.values(), **given)
        assert cases.relative_error(result, exact) < bound, (op, one.name)


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_compiled_baselines_that_are_right(op: str) -> None:
    """Rule: traced whole, each equals the specification in float64 to rounding.

    The backend "eager" runs what was traced without generating code: the wiring, in seconds.
    """
    torch.compiler.reset()
    found = baselines.compiled(op, 12, 12, torch.float64, backend="eager", fft=True)
    names = [one.name for one in found]
    assert {"four-product compiled", "FFT-DCT compiled"} <= set(names)
    for form in ("two-product bmm", "folded two-product"):
        assert (f"{form} compiled" in names) == (op not in baselines.NEEDS_TRANSFORM)
    assert len(set(names)) == len(names)
    check(op, torch.float64, 1e-13, found)


def test_each_compiled_baseline_has_an_eager_one_of_its_name() -> None:
    # The table finds a compiled baseline's error under the eager one's name.
    for op in OPS:
        eager = {one.name: one.group for one in baselines.baselines(op, 8, 8)}
        for one in baselines.compiled(op, 8, 8, backend="eager", fft=True):
            assert eager[one.name.removesuffix(" compiled")] == one.group


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("op", ["corrupt", "soft_score_loss"])
def test_generated_code_is_right(op: str) -> None:
    """Rule: as above in float32 for the code that Inductor generates, with its backward pass.

    Relative L2 1e-5: float32 has 6e-8, the sums 4 x 12 terms. FFT-DCT is left out: half a minute to compile.
    """
    torch.compiler.reset()
    found = [one for one in baselines.compiled(op, 12, 12) if one.group == "main"]
    assert len(found) >= 2
    check(op, torch.float32, 1e-5, found)


def test_the_slow_one_to_compile_is_asked_for() -> None:
    for op in OPS:
        names = [one.name for one in baselines.compiled(op, 8, 8, backend="eager")]
        assert ("FFT-DCT compiled" in names) == (op == "corrupt")


def test_compiled_once_for_a_size_and_a_number_of_threads() -> None:
    """Rule: more calls compile nothing; another number of threads does, so that it belongs to the warm-up."""
    torch.compiler.reset()
    compiles = []

    def backend(graph, inputs):
        compiles.append(torch.get_num_threads())
        return graph.forward

    case = cases.make("momentum_step", 8, 8, 2)
    late = baselines.compiled("momentum_step", 8, 8, backend=backend)[0]
    with timing.threads(1):
        for _ in range(3):
            late.call(*case.arguments.values())
    assert compiles == [1]
    with timing.threads(2):
        for _ in range(3):
            late.call(*case.arguments.values())
    assert compiles == [1, 2]
    with timing.threads(1):
        late.call(*case.arguments.values())
    assert compiles == [1, 2]


def test_given_noise_is_left_as_it_is() -> None:
    # One baseline adds its product onto the noise in place: onto its own alone.
    case = cases.make("corrupt", 8, 8, 2)
    assert case.noise is not None
    before = case.noise.clone()
    for one in baselines.baselines("corrupt", 8, 8):
        one.call(*case.arguments.values(), noise=case.noise)
        assert torch.equal(case.noise, before), one.name


def test_normal_is_not_compiled_and_unknown_ops_are_refused() -> None:
    assert baselines.compiled("normal", 8, 8) == []
    with pytest.raises(ValueError, match="got 'sharpen'"):
        baselines.compiled("sharpen", 8, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
def test_half_images_are_computed_in_float32(op: str, dtype: torch.dtype) -> None:
    """Rule: an image result of half precision has its type and one rounding of it, a loss is float32.

    One rounding is at most half the spacing, 2^-9 for bfloat16 and 2^-12 for float16, of a value; float32's
    own error is far below. The loss is exact but for float32.
    """
    case = cases.make(op, 12, 12, 2, dtype=dtype)
    exact = cases.truth(case)
    given = {} if case.noise is None else {"noise": case.noise}
    torch.compiler.reset()
    eager = [one for one in baselines.baselines(op, 12, 12, dtype) if one.same]
    for one in [*eager, *baselines.compiled(op, 12, 12, dtype, backend="eager")]:
        result = one.call(*case.arguments.values(), **given)
        parts = result if isinstance(result, tuple) else (result,)
        assert [part.dtype for part in parts] == [torch.float32, dtype][-len(parts) :], one.name
        assert cases.relative_error(result, exact) < torch.finfo(dtype).eps / 2 + 1e-5, one.name


def test_widened_leaves_other_images_as_they_are() -> None:
    seen = []
    call = baselines.widened(lambda x, std, noise=None: seen.append((x.dtype, std.dtype)) or x)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.ones(1, 1, 2, 2, dtype=dtype)
        assert call(x, torch.ones(1)).dtype == dtype
    assert seen == [(d, torch.float32) for d in (torch.float64, torch.float32, torch.float32)]


@pytest.mark.parametrize("kind", baselines.FORMS, ids=lambda kind: kind.__name__)
def test_a_form_moves_with_all_its_tables(kind: type[forms.Form]) -> None:
    # The meta device has shapes alone: a table that stayed behind would mix devices in the blur.
    form = kind(6, 9).to("meta")
    assert form.basis_h.device.type == "meta"
    x = torch.empty(2, 3, 6, 9, device="meta")
    assert form.blur(x, torch.empty(2, device="meta")).shape == x.shape


def test_only_what_runs_there_is_offered_on_another_device() -> None:
    for op in baselines.OPS:
        names = [one.name for one in baselines.baselines(op, 8, 8, device="meta")]
        assert names and not any("scipy" in name or "numpy" in name for name in names), op
