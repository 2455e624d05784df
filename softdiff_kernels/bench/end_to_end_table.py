# SPDX-License-Identifier: Apache-2.0
"""The end-to-end rows as Markdown, and in words where the gain is small and where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SMALL_PERCENT = 5.0
"""A gain below this is called small: few would change their code for it."""

_LEGEND = (
    "Milliseconds of one step, as the sum of its parts, each the median over repetitions. eager: the fastest "
    "form in eager PyTorch here (the sampler's step: Algorithm 2 as printed); FFT: the FFT-DCT of published "
    "code. rest: optimiser and average, batch, t and schedule. share: of the ops in the step, eager > fused. "
    "gain: what fusing saves of the eager step; (?): less than this timing of the network can tell. repeats: "
    "of the network. whole step: the real training step timed as one piece, eager > fused."
)


def _op_cell(row: dict[str, Any], name: str) -> str:
    part = row["ms"].get(name)
    return "" if part is None else f"{part['eager']:.2f} / {part['fft']:.2f} / {part['fused']:.2f}"


def _line(row: dict[str, Any]) -> list[str]:
    ms, whole = row["ms"], row["whole"]
    rest = sum(ms[name]["fused"] for name in ("optimiser", "look-up") if name in ms)
    return [
        str(row["px"]),
        f"{row['network']}, {row['parameters'] / 1e6:.1f} M",
        row["step"],
        str(row["batch"]),
        _op_cell(row, "corruption") or _op_cell(row, "sampler step"),
        _op_cell(row, "loss"),
        f"{ms['network']['fused']:.1f}",
        str(row["rounds"]),
        f"{rest:.2f}",
        f"{row['eager_ms']:.1f} > {row['fused_ms']:.1f}",
        f"{row['eager_share']:.2%} > {row['fused_share']:.2%}",
        f"{row['gain_percent']:.2f} %{' (?)' if row['within_noise'] else ''}",
        f"{whole['eager_ms']:.1f} > {whole['fused_ms']:.1f}" if whole else "",
    ]


_HEAD = [
    *("px", "U-Net", "step", "batch", "corruption or sampler step: eager / FFT / fused"),
    *("loss and gradient: eager / FFT / fused", "network", "repeats", "rest", "step", "share", "gain"),
    "whole step",
]


def _span(rows: Sequence[dict[str, Any]]) -> str:
    low, high = (f"{pick(r['gain_percent'] for r in rows):.2f}" for pick in (min, max))
    return f"{high} %" if low == high else f"{low} to {high} %"


def _small(name: str, rows: Sequence[dict[str, Any]]) -> str:
    share = max(row["eager_share"] for row in rows)
    unseen = sum(row["within_noise"] for row in rows)
    doubt = (
        f"; in {unseen} of {len(rows)} rows that is less than the timing of the network can tell"
        if unseen
        else ""
    )
    return (
        f"The gain is small in the {name} U-Net: the ops are at most {share:.2%} of an eager step, "
        f"and fusing them saves {_span(rows)} of it{doubt}."
    )


def _large(name: str, rows: Sequence[dict[str, Any]]) -> str:
    most = max(rows, key=lambda row: row["gain_percent"])
    unseen = [row for row in rows if row["within_noise"]]
    doubt = f" ({len(unseen)} of {len(rows)} rows within the network's noise)" if unseen else ""
    return (
        f"It is not small in the {name} U-Net: {_span(rows)} of a step{doubt}, most in {most['step']} at "
        f"{most['px']} px."
    )


def sentence(rows: Sequence[dict[str, Any]]) -> str:
    """For each network in the rows, whether the gain is small, by its largest and the noise of it."""
    parts = []
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        seen = [row for row in mine if not row["within_noise"] and row["gain_percent"] >= SMALL_PERCENT]
        parts.append((bool(seen), name, mine))
    small = [_small(name, mine) for seen, name, mine in parts if not seen]
    large = [_large(name, mine) for seen, name, mine in parts if seen]
    return " ".join([*small, *large])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `end_to_end` as a Markdown table, its legend, and the sentence that sums it up."""
    if not rows:
        return "No step was timed."
    lines = [_HEAD, ["-" * len(name) for name in _HEAD], *map(_line, rows)]
    grid = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{sentence(rows)}\n\n{grid}\n\n{_LEGEND}"
