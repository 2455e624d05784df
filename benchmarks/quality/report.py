# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of what was measured, from its lines alone."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

from softdiff_kernels.images import labelled, save_png

from .measure import grid_name, read
from .plan import IMAGES, NAMES, NETWORKS, PARTS, PLAIN, SAMPLERS, Drawing

COLOURS = ("#0b5fa5", "#c8553d", "#3f8f5f", "#e09f3e", "#7d5ba6", "#111111", "#8fc0a5")
SAMPLER_NAMES = {
    "momentum": "momentum, large variance (the paper's)",
    "naive": "naive",
    "momentum variance=small": "momentum, small variance",
    "ddim": "DDIM, deterministic",
}


def report(out: Path) -> str:
    """The tables as Markdown; plots and pictures beside them, in out."""
    parts = []
    for part, title in (
        ("samplers", "Samplers: the preset's weights"),
        ("variances", "Samplers: weights of the paper's loss"),
        ("networks", "Losses, corruptions and schedules: the momentum sampler"),
        ("plain", "Schedules under the plain loss, and the increment-weighted loss"),
        ("crossed", "Schedules: where they train, and where the sampler's steps are"),
        ("linear", "Samplers: the plain loss, linear schedule, to the preset's end"),
    ):
        found = _found(out, part)
        if found:
            parts += [f"## {title}", "", _table(part, found), ""]
            _plot(out / f"{part}.png", part, found)
    _pictures(out / "samplers-grids.png", out, [(SAMPLERS[0], 100), (SAMPLERS[1], 100)])
    _pictures(out / "networks-grids.png", out, [(drawing, 25) for drawing in NETWORKS])
    _pictures(out / "plain-grids.png", out, [(drawing, 25) for drawing in PLAIN])
    return "\n".join(parts)


def _pictures(path: Path, out: Path, shown: list[tuple[Drawing, int]]) -> None:
    """The first images of several curves, one under the other."""
    rows = []
    for drawing, steps in shown:
        file = out / "grids" / grid_name(drawing, steps)
        if file.exists():
            rows.append((f"{_label(drawing)}, {steps} steps", Image.open(file)))
    if rows:
        save_png(path, labelled(rows, size=14))


def _found(out: Path, part: str) -> dict[tuple[str, int], list[float]]:
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for line in read(out / f"{part}.jsonl"):
        found[line["name"], line["steps"]].append(line["distance"])
    return found


def _label(drawing: Drawing) -> str:
    """What sets a curve apart: its network where several are compared at one step, else its sampler."""
    if drawing.step is not None:
        where = f", steps at the blurs of {drawing.blurs_of}" if drawing.blurs_of else ""
        return NAMES[drawing.network] + (", DDIM" if drawing.sampler == "ddim" else "") + where
    return SAMPLER_NAMES[drawing.name.partition(" ")[2]]


def _cell(values: list[float] | None) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}"


def _table(part: str, found: dict[tuple[str, int], list[float]]) -> str:
    plan = PARTS[part]
    steps = sorted({n for drawing in plan for n in drawing.steps})
    rows = ["| | " + " | ".join(f"{n} steps" for n in steps) + " |", "|---" * (len(steps) + 1) + "|"]
    for drawing in plan:
        cells = [_cell(found.get((drawing.name, n))) for n in steps]
        rows.append(f"| {_label(drawing)} | " + " | ".join(cells) + " |")
    real = _cell(found.get(("real", 0)))
    rows += ["", f"{IMAGES} real images of the training set, in the samples' place: {real}."]
    return "\n".join(rows)


def _plot(path: Path, part: str, found: dict[tuple[str, int], list[float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    ax: Any = figure.subplots()
    for colour, drawing in zip(COLOURS, PARTS[part], strict=False):
        steps = [n for n in drawing.steps if found.get((drawing.name, n))]
        means = [statistics.mean(found[drawing.name, n]) for n in steps]
        ax.plot(steps, means, "o-", color=colour, label=_label(drawing), linewidth=1.8, markersize=4)
        for n in steps:
            values = found[drawing.name, n]
            ax.plot([n] * len(values), values, "_", color=colour, markersize=7, alpha=0.7)
    ax.axhline(statistics.mean(found["real", 0]), color="#444444", linestyle=":", label="real images")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ticks = sorted({n for drawing in PARTS[part] for n in drawing.steps})
    ax.set_xticks(ticks, [str(n) for n in ticks])
    low, high = ax.get_ylim()
    heights = [v * 10**k for k in range(4) for v in (1, 2, 3, 5) if low <= v * 10**k <= high]
    ax.set_yticks(heights, [str(v) for v in heights])
    ax.minorticks_off()
    ax.set_xlabel("sampler steps")
    ax.set_ylabel("classifier Fréchet distance")
    ax.grid(True, color="#e6e6e6")
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
