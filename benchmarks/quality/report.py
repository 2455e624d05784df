# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of the results, from the files that `measure` wrote."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

from softdiff_kernels.images import labelled, save_png

from .measure import grid_name, read
from .plan import IMAGES, PARTS, TRAINED, Drawing

COLOURS = ("#0b5fa5", "#c8553d", "#3f8f5f", "#e09f3e", "#7d5ba6", "#111111", "#8fc0a5")
COLOURS += ("#7fb2dd", "#a05a2c", "#b0b0b0", "#d977a5", "#c9b037")
SAMPLER_NAMES = {
    "momentum": "momentum, large variance (the paper's)",
    "naive": "naive",
    "momentum variance=small": "momentum, small variance",
    "ddim": "DDIM, deterministic",
}


TITLES = {
    "samplers": "Samplers: the preset's weights",
    "variances": "Samplers: weights of the paper's loss",
    "networks": "Losses, corruptions and schedules: the momentum sampler",
    "plain": "Schedules under the plain loss, and the increment-weighted loss",
    "corruptions": "Corruptions: each by its own sampler and by the second-order one",
    "crossed": "Schedules: where they train, and where the sampler's steps are",
    "linear": "Samplers: the plain loss, linear schedule, to the preset's end",
}


def report(out: Path) -> str:
    """The tables as Markdown; writes plots and pictures into out."""
    lines = []
    for part, title in TITLES.items():
        distances = _distances(out, part)
        if distances:
            lines += [f"## {title}", "", _table(part, distances), ""]
            _plot(out / f"{part}.png", part, distances)
    for part, steps in (("samplers", 100), ("networks", 25), ("plain", 25), ("corruptions", 50)):
        _pictures(out / f"{part}-grids.png", out, part, steps)
    return "\n".join(lines)


def _pictures(path: Path, out: Path, part: str, steps: int) -> None:
    """The first images of a part's curves at one number of steps, one curve under the other."""
    rows = []
    for drawing in PARTS[part]:
        file = out / "grids" / grid_name(drawing, steps)
        if file.exists():
            rows.append((f"{_label(drawing)}, {steps} steps", Image.open(file)))
    if rows:
        save_png(path, labelled(rows, size=14))


def _distances(out: Path, part: str) -> dict[tuple[str, int], list[float]]:
    """The distances by (curve, steps), one per seed."""
    distances: dict[tuple[str, int], list[float]] = defaultdict(list)
    for line in read(out / f"{part}.jsonl"):
        distances[line["name"], line["steps"]].append(line["distance"])
    return distances


def _label(drawing: Drawing) -> str:
    """What distinguishes a curve: its network if networks are compared at one step, its network and sampler
    if corruptions are, else its sampler."""
    if drawing in PARTS["corruptions"]:
        network = "Soft Diffusion" if drawing.network == "plain" else TRAINED[drawing.network].label
        return f"{network}, {drawing.sampler}"
    if drawing.step is not None:
        where = f", steps at the blurs of {drawing.blurs_of}" if drawing.blurs_of else ""
        return TRAINED[drawing.network].label + (", DDIM" if drawing.sampler == "ddim" else "") + where
    return SAMPLER_NAMES[drawing.name.partition(" ")[2]]


def _cell(values: list[float] | None) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}"


def _table(part: str, distances: dict[tuple[str, int], list[float]]) -> str:
    plan = PARTS[part]
    steps = sorted({n for drawing in plan for n in drawing.steps})
    rows = ["| | " + " | ".join(f"{n} steps" for n in steps) + " |", "|---" * (len(steps) + 1) + "|"]
    for drawing in plan:
        cells = [_cell(distances.get((drawing.name, n))) for n in steps]
        rows.append(f"| {_label(drawing)} | " + " | ".join(cells) + " |")
    real = _cell(distances.get(("real", 0)))
    rows += ["", f"{IMAGES} real images of the training set instead of samples: {real}."]
    return "\n".join(rows)


def _plot(path: Path, part: str, distances: dict[tuple[str, int], list[float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    ax: Any = figure.subplots()
    for colour, drawing in zip(COLOURS, PARTS[part], strict=False):
        steps = [n for n in drawing.steps if distances.get((drawing.name, n))]
        means = [statistics.mean(distances[drawing.name, n]) for n in steps]
        ax.plot(steps, means, "o-", color=colour, label=_label(drawing), linewidth=1.8, markersize=4)
        for n in steps:
            for value in distances[drawing.name, n]:
                ax.plot(n, value, "_", color=colour, markersize=7, alpha=0.7)
    ax.axhline(statistics.mean(distances["real", 0]), color="#444444", linestyle=":", label="real images")
    ax.set(xscale="log", yscale="log", xlabel="sampler steps", ylabel="classifier Fréchet distance")
    ticks = sorted({n for drawing in PARTS[part] for n in drawing.steps})
    ax.set_xticks(ticks, [str(n) for n in ticks])
    low, high = ax.get_ylim()
    heights = [v * 10**k for k in range(4) for v in (1, 2, 3, 5) if low <= v * 10**k <= high]
    ax.set_yticks(heights, [str(v) for v in heights])
    ax.minorticks_off()
    ax.grid(True, color="#e6e6e6")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
