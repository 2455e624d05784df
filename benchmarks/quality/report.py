# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of the results, from the lines that `measure` wrote."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from softdiff_kernels.images import labelled, save_png

from .measure import REAL, check_together, grid_name, lines_of
from .plan import EXPERIMENTS, MIXTURE, NETWORKS, Curve, Experiment

COLOURS = ("#0b5fa5", "#c8553d", "#3f8f5f", "#e09f3e", "#7d5ba6", "#111111", "#8fc0a5")
COLOURS += ("#7fb2dd", "#a05a2c", "#b0b0b0", "#d977a5", "#c9b037")
DASHES = {"multistep": "-", "momentum": "--", "ddim": "-."}
SHOWN_AT = 10

Distances = dict[tuple[str, int], dict[tuple[int, int], float]]
"""By (curve, evaluations): by (training, sampling)."""


def report(out: Path, plots: Path, names: Iterable[str]) -> str:
    """The tables of experiments as Markdown; writes their plots and pictures into `plots`."""
    parts = []
    plots.mkdir(parents=True, exist_ok=True)
    for name in names:
        experiment = EXPERIMENTS[name]
        distances = distances_of(out, experiment)
        if has_results(experiment, distances):
            parts += [f"## {name}: {experiment.question}", "", table(experiment, distances), ""]
            _plot(plots / f"distances-{name}.png", experiment, distances)
            _pictures(plots / f"samples-{name}.png", experiment, out / "grids")
    return "\n".join(parts)


def distances_of(out: Path, experiment: Experiment) -> Distances:
    """The distances that belong to an experiment. SystemExit if they do not compare with each other."""
    distances: Distances = defaultdict(dict)
    lines = lines_of(out, experiment)
    check_together(lines)
    for line in lines:
        distances[line["curve"], line["evaluations"]][line["training"], line["sampling"]] = line["distance"]
    return distances


def has_results(experiment: Experiment, distances: Distances) -> bool:
    """Whether there is at least one line of its curves."""
    return any((curve.name, n) in distances for curve in experiment.curves for n in curve.evaluations)


def _floor(experiment: Experiment, distances: Distances) -> list[float]:
    exact = experiment.curves[0].network == MIXTURE
    return list(distances.get((f"{REAL} {MIXTURE}" if exact else REAL, 0), {}).values())


def label(curve: Curve, experiment: Experiment) -> str:
    """What distinguishes a curve among those of its experiment."""
    sampler = curve.sampler + curve.spaced
    if len({c.network for c in experiment.curves}) == 1:
        return sampler
    return f"{NETWORKS[curve.network].label}; {sampler}"


def each(values: dict[tuple[int, int], float], experiment: Experiment) -> list[float]:
    """One distance for each training, by its first sampling; of an experiment of one training one for each
    sampling."""
    if len(experiment.trainings) == 1:
        return list(values.values())
    return [distance for (_, sampling), distance in sorted(values.items()) if sampling == 0]


def _cell(values: dict[tuple[int, int], float] | None, experiment: Experiment) -> str:
    if not values:
        return "-"
    distances = each(values, experiment)
    mean = statistics.mean(distances)
    digits = 2 if mean < 100 else 0
    spread = f" ± {statistics.stdev(distances):.{digits}f}" if len(distances) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def table(experiment: Experiment, distances: Distances) -> str:
    """Markdown: a row for each curve, and what a reader needs to read it."""
    curves = [c for c in experiment.curves if any((c.name, n) in distances for n in c.evaluations)]
    steps = sorted({n for curve in curves for n in curve.evaluations if (curve.name, n) in distances})
    rows = ["| evaluations | " + " | ".join(map(str, steps)) + " |", "|---" * (len(steps) + 1) + "|"]
    for curve in curves:
        cells = [_cell(distances.get((curve.name, n)), experiment) for n in steps]
        rows.append(f"| {label(curve, experiment)} | " + " | ".join(cells) + " |")
    floor = _floor(experiment, distances)
    several = len(experiment.trainings) > 1
    between = "trainings" if several else "samplings of one training"
    single = "" if len(experiment.spread_at) > 1 else "; without ± of one"
    notes = [f"Mean ± deviation between {between}, {experiment.images} images each{single}"]
    if several and (spread := _sampling_deviation(experiment, distances)):
        notes.append(f"between samplings of one training the deviation is {spread:.2f}")
    if floor:
        notes.append(
            f"as many {'exact samples' if experiment.curves[0].network == MIXTURE else 'real images'}"
            f": {statistics.mean(floor):.2f}"
        )
    return "\n".join([*rows, "", "; ".join(notes) + "."])


def _sampling_deviation(experiment: Experiment, distances: Distances) -> float | None:
    """Pooled over the curves whose first training was drawn several times."""
    variances = []
    for curve in experiment.curves:
        for n in experiment.spread_at:
            values = distances.get((curve.name, n), {})
            of_first = [d for (training, _), d in values.items() if training == experiment.trainings[0]]
            if len(of_first) > 1:
                variances.append(statistics.variance(of_first))
    return statistics.mean(variances) ** 0.5 if variances else None


def _pictures(path: Path, experiment: Experiment, grids: Path) -> None:
    """The first images of the curves at SHOWN_AT evaluations, one curve under the other."""
    rows = []
    for curve in experiment.curves:
        file = grids / grid_name(curve, SHOWN_AT)
        if file.exists():
            rows.append((f"{label(curve, experiment)}, {SHOWN_AT} evaluations", Image.open(file)))
    if rows:
        save_png(path, labelled(rows, size=14))


def _plot(path: Path, experiment: Experiment, distances: Distances) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    ax: Any = figure.subplots()
    # One colour for each network, or for each sampler where there is one network; a dash for each sampler.
    networks = list(dict.fromkeys(curve.network for curve in experiment.curves))
    for number, curve in enumerate(experiment.curves):
        points = [
            (n, each(distances[curve.name, n], experiment))
            for n in curve.evaluations
            if distances.get((curve.name, n))
        ]
        if not points:
            continue
        colour = COLOURS[networks.index(curve.network) if len(networks) > 1 else number]
        dash = DASHES.get(curve.sampler, ":") if len(networks) > 1 else "-"
        ns = [n for n, _ in points]
        ax.plot(
            ns,
            [statistics.mean(v) for _, v in points],
            f"o{dash}",
            color=colour,
            markersize=4,
            label=label(curve, experiment),
            linewidth=1.6,
        )
        ax.fill_between(
            ns, [min(v) for _, v in points], [max(v) for _, v in points], color=colour, alpha=0.12
        )
    floor = _floor(experiment, distances)
    if floor:
        ax.axhline(statistics.mean(floor), color="#444444", linestyle=":", label="floor")
    ax.set(
        xscale="log", yscale="log", xlabel="evaluations of the network", ylabel="classifier Fréchet distance"
    )
    ticks = sorted({n for curve in experiment.curves for n in curve.evaluations})
    ax.set_xticks(ticks, [str(n) for n in ticks])
    low, high = ax.get_ylim()
    heights = [v * 10**k for k in range(-1, 4) for v in (1, 2, 3, 5) if low <= v * 10**k <= high]
    ax.set_yticks(heights, [f"{v:g}" for v in heights])
    ax.minorticks_off()
    ax.grid(True, color="#e6e6e6")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=130)
