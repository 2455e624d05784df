# SPDX-License-Identifier: Apache-2.0
"""The benchmark's baselines compute what the ops compute, and its clock is read fairly."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

pytest.importorskip("scipy")

from softdiff_kernels.bench import baselines, cases, rows, timing

# A baseline in float64 rounds at 1.1e-16. Its sums have at most 4 x 20 terms, an FFT's growth is below that,
# and the largest weight of the reverse mask's plain difference is under 1, so that 1e-13 holds with much
# room; a wrong scaling, twiddle or sign is over 1e-3.
BOUND = 1e-13
SIZES = [(16, 16), (12, 20), (9, 7), (1, 5)]
WITH_NOISE = ("corrupt", "blurring_corrupt", "momentum_step", "reverse_step")


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("op", [op for op in baselines.OPS if op != "normal"])
def test_every_baseline_equals_the_specification(op: str, size: tuple[int, int]) -> None:
    """Rule: on the same float64 numbers and noise, every baseline equals the reference to rounding.

    But for what is only the nearest thing of another package: tests/bench/test_bench_peers.py.
    """
    case = cases.make(op, *size, 3, dtype=torch.float64)
    exact = cases.truth(case)
    given = {} if case.noise is None else {"noise": case.noise}
    for baseline in baselines.baselines(op, *size, dtype=torch.float64):
        if not baseline.same:
            continue
        result = baseline.call(*case.arguments.values(), **given)
        assert cases.relative_error(result, exact) < BOUND, baseline.name


def test_the_comparison_sees_a_small_error() -> None:
    """Rule: a blur off by one part in a thousand fails the bound above."""
    case = cases.make("blur", 16, 16, 3, dtype=torch.float64)
    exact = cases.truth(case)
    x, blur_std = case.arguments.values()
    for baseline in baselines.baselines("blur", 16, 16, dtype=torch.float64):
        assert cases.relative_error(baseline.call(x, 1.001 * blur_std), exact) > 1e3 * BOUND, baseline.name


@pytest.mark.parametrize("op", WITH_NOISE)
def test_baselines_draw_noise_when_none_is_given(op: str) -> None:
    """Rule: without given noise a baseline adds fresh standard normals under the op's own standard deviation.

    The noise is what is left after the noise-free result. Of n = 6144 values the mean has standard
    deviation 1/sqrt(n) = 0.013 and the standard deviation 1/sqrt(2 n) = 0.009: 0.08 is six of the larger.
    """
    case = cases.make(op, 32, 64, 1, dtype=torch.float32)
    values = case.arguments
    std = {
        "corrupt": lambda: values["noise_std"],
        "blurring_corrupt": lambda: values["noise_std"],
        "momentum_step": lambda: (values["noise_std_t"].square() - values["noise_std_s"].square()).sqrt(),
        "reverse_step": lambda: values["b"],
    }[op]()
    assert case.noise is not None
    for baseline in baselines.baselines(op, 32, 64):
        still = baseline.call(*values.values(), noise=torch.zeros_like(case.noise))
        first, second = ((baseline.call(*values.values()) - still) / std.view(-1, 1, 1, 1) for _ in range(2))
        assert abs(first.mean()) < 0.08 and abs(first.std() - 1) < 0.08, baseline.name
        assert not torch.equal(first, second), baseline.name


def test_noise_baselines_are_standard_normal() -> None:
    """Rule: as above for the baselines of `normal`, with n = 6144."""
    like = torch.empty(1, 3, 32, 64)
    for baseline in baselines.baselines("normal", 32, 64):
        drawn = baseline.call(like)
        assert drawn.shape == like.shape and drawn.dtype == torch.float32
        assert abs(drawn.mean()) < 0.08 and abs(drawn.std() - 1) < 0.08, baseline.name


def test_unknown_op_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of corrupt, .*, got 'sharpen'"):
        baselines.baselines("sharpen", 8, 8)
    with pytest.raises(ValueError, match="got 'sharpen'"):
        cases.make("sharpen", 8, 8, 1)


class Clock:
    """A clock that only the timed calls move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def call(self, name: str, seconds: float) -> timing.Call:
        def run() -> None:
            self.now += seconds
            self.log.append(name)

        return run


def test_calls_are_interleaved_and_ratios_are_of_medians() -> None:
    """Rule: each call gets its budget or `least` rounds, spread over the run, and its own time."""
    clock = Clock()
    calls = {"fast": clock.call("fast", 2.0), "slow": clock.call("slow", 64.0)}
    timings = timing.interleaved(calls, timing.Clock(lambda: clock.now), budget=80.0, least=4, most=1000)
    assert (timings["fast"].rounds, timings["slow"].rounds) == (40, 4)
    assert timings["slow"].median == timings["slow"].low == timings["slow"].high == 64.0
    assert timing.ratios(timings, "fast") == {"fast": 1.0, "slow": 32.0}
    places = [i for i, name in enumerate(clock.log[4:]) if name == "slow"]
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert all(10 <= gap <= 12 for gap in gaps), places


def test_blocks_are_timed_as_one_and_contexts_are_not_timed() -> None:
    """Rule: a block's seconds are divided by its calls; the context of a name is entered for each block and
    for its warm-up, outside of what is timed; the order rotates by one each round."""
    clock = Clock()

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        clock.call("enter", 100.0)()
        yield

    calls = {name: clock.call(name, seconds) for name, seconds in (("a", 2.0), ("b", 3.0))}
    limits = {"budget": 0.0, "least": 2, "block": 3, "warmup": 0.0}
    timings = timing.interleaved(calls, timing.Clock(lambda: clock.now), within={"b": context}, **limits)
    assert (timings["a"].median, timings["b"].median, timings["a"].rounds) == (2.0, 3.0, 2)
    words = "a a enter b b  a a a enter b b b  enter b b b a a a"
    assert clock.log == words.split()


def test_a_gpus_clock_reads_events_after_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: of single calls a round is enqueued behind some work, and read once the device is done; of blocks
    there is no such work; the host's clock waits before each block. Events by a stand-in."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            log.append(f"event on {stream}")

        def elapsed_time(self, end: Event) -> float:
            log.append("read")
            return 6.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    gpu = torch.device("cuda", 0)
    calls = {"a": lambda: log.append("call")}
    limits = {"budget": 0.0, "least": 1, "most": 1, "warmup": 0.0}
    assert timing.interleaved(calls, timing.clock_of(gpu), **limits)["a"].median == 6e-3
    once = ["sleep", "event on stream", "call", "event on stream", "wait", "read"]
    assert log[-6:] == once and "sleep" not in log[:-6]
    log.clear()
    assert timing.interleaved(calls, timing.clock_of(gpu), **limits, block=2)["a"].median == 3e-3
    assert log[-6:] == ["event on stream", "call", "call", "event on stream", "wait", "read"]
    assert "sleep" not in log
    log.clear()
    timing.interleaved(calls, timing.HostClock(gpu), **limits, block=2)
    assert log[-4:] == ["wait", "call", "call", "wait"] and "read" not in log


@pytest.mark.parametrize(
    "moved, l2, count", [(2**29, 50 * 2**20, 2), (2**20, 2**20, 6), (1000, 999, 6), (10, 0, 1), (0, 10, 51)]
)
def test_rotations(moved: int, l2: int, count: int) -> None:
    """Rule: ceil(5 L2 / bytes) + 1 sets of inputs; no bytes count as one."""
    assert timing.rotations(moved, l2) == count


def test_inputs_rotate_over_all_calls() -> None:
    """Rule: each call takes the next set of inputs, whichever call it is, without the comparison's noise."""
    case = cases.make("corrupt", 8, 8, 2)
    moved = sum(value.nbytes for value in case.arguments.values())
    following = rows.in_rotation(case, moved * 2 // 5)
    seen = [following() for _ in range(6)]
    places = [one.arguments["x0"].data_ptr() for one in seen]
    assert len(set(places[:3])) == 3 and places[3:] == places[:3]
    assert all(torch.equal(one.arguments["x0"], case.arguments["x0"]) and one.noise is None for one in seen)


def test_quantiles() -> None:
    """Rule: the 20 % and 80 % quantiles of 0..10 are 2 and 8, whatever the order."""
    taken = timing.summary([float((7 * i) % 11) for i in range(11)])
    assert (taken.low, taken.median, taken.high, taken.rounds) == (2.0, 5.0, 8.0, 11)


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one call"):
        timing.interleaved({}, timing.Clock())


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with timing.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_baseline_that_fails_to_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: a baseline that cannot be compiled is listed with its reason, and the others are timed."""

    def broken(*_: object) -> None:
        raise RuntimeError("no compiler\nand more")

    late = baselines.Baseline("broken", "main", "a test", broken)
    same = [one for one in baselines.baselines("corrupt", 8, 8) if one.same]
    monkeypatch.setattr(rows, "baselines", lambda *_: same)
    monkeypatch.setattr(rows, "compiled", lambda *_: [late])
    row = rows.measure("corrupt", 8, rows.Conditions(budget=1e-4), batch=2)
    assert row.failures == {"broken": "RuntimeError: no compiler"}
    assert "broken" not in row.timings and row.fastest in row.timings
    assert row.ratio == pytest.approx(row.fastest_ns / row.ours)


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: what differs from the specification stops the comparison, by name."""
    wrong = baselines.Baseline("wrong", "main", "a test", lambda x, blur_std: 1.01 * x)
    monkeypatch.setattr(rows, "baselines", lambda *_: [wrong])
    with pytest.raises(AssertionError, match="wrong"):
        rows.measure("blur", 8, rows.Conditions(budget=1e-4), batch=2, compile=False)
