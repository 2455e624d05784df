# SPDX-License-Identifier: Apache-2.0
"""The plots of a result, by matplotlib; from bench.json alone, so that an old one can be drawn again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cases import HEADLINE, NOISY, bytes_of, dense_operations
from .report import load
from .rows import AGAIN, OURS, Row

# One colour for one way to compute, in all plots.
_COLOURS = {
    OURS: "#0b5fa5",
    "two-product bmm": "#c8553d",
    "four-product": "#e09f3e",
    "scipy": "#3f8f5f",
    "FFTW": "#5f6f1f",
    "DUCC": "#2aa198",
    "FFT-DCT": "#7d5ba6",
}
_LIMITS = {"color": "#444444", "linewidth": 1.1}
_OTHERS = "#9a9a9a"
_LEGEND = {"fontsize": 8, "frameon": False}


def _panels(figure: Any, names: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Axes side by side, one for each name, with one y axis."""
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    return list(zip(axes, names, strict=True))


def _axis(ax: Any, title: str, x: str, y: str, ticks: Sequence[float] = ()) -> None:
    """Titles and grid. ticks: where given, a logarithmic x axis with these. y: shown on the first panel."""
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y if ax.get_subplotspec().is_first_col() else "")
    ax.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if ticks:
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(ticks), [f"{t:g}" for t in ticks])
        ax.minorticks_off()


def _logarithmic(ax: Any) -> None:
    """A logarithmic y axis with 1, 2 and 5 of each decade written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _line(ax: Any, points: Sequence[tuple[float, float]], name: str) -> None:
    """One way to compute, ours thicker and on top; nothing without points."""
    size, width, order = (4.5, 2.4, 3) if name == OURS else (3.5, 1.3, 2)
    if points:
        style = {"color": _COLOURS.get(name, _OTHERS), "label": name, "zorder": order}
        ax.plot(*zip(*points, strict=True), marker="o", markersize=size, linewidth=width, **style)


def _legend_below(figure: Any, columns: int) -> None:
    """Every label of the figure's axes once."""
    handles: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, **_LEGEND)


def _float32(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r.dtype == "float32"] or list(rows)


def time_per_value(result: dict[str, Any], rows: Sequence[Row], figure: Any) -> None:
    """ns per value against size, with what the machine allows drawn in: the ops of the headline (or the first
    three), float32, the largest thread count, the first backend."""
    floats = _float32(rows)
    most = max(r.threads for r in floats)
    plain = [r for r in floats if r.threads == most and r.backend == floats[0].backend]
    ops = list(dict.fromkeys(r.op for r in plain))
    for ax, op in _panels(figure, [op for op in HEADLINE if op in ops] or ops[:3]):
        chosen = sorted((r for r in plain if r.op == op), key=lambda r: r.px)
        sizes = [r.px for r in chosen]
        for name in _COLOURS:
            _line(ax, [(r.px, r.timings[name]["median"]) for r in chosen if name in r.timings], name)
        limits = result["limits"].get("gpu" if chosen[0].device == "cuda" else str(most))
        if limits is not None:
            ax.axhline(bytes_of(op) / limits["copy_gb_s"], label="memory copy", **_LIMITS)
            dense = [dense_operations(op, px) / limits["gemm_gflop_s"] for px in sizes]
            if any(dense):
                ax.plot(sizes, dense, linestyle="--", label="dense products at peak", **_LIMITS)
            if op in NOISY:
                ax.axhline(limits["normal_ns"], linestyle=":", label="noise alone", **_LIMITS)
        _axis(ax, op, "image side, px", "ns per value", sizes)
        _logarithmic(ax)
    _legend_below(figure, 4)


def ratio(result: dict[str, Any], rows: Sequence[Row], figure: Any) -> None:
    """How many times as long the fastest baseline takes, at each thread count."""
    floats = _float32(rows)
    for ax, count in _panels(figure, sorted({r.threads for r in floats})):
        here = sorted((r for r in floats if r.threads == count), key=lambda r: r.px)
        for i, op in enumerate(dict.fromkeys(r.op for r in here)):
            chosen = [r for r in here if r.op == op]
            ax.errorbar(
                [r.px for r in chosen],
                [r.ratio for r in chosen],
                yerr=[r.ratio * min(r.noise, 1.0) for r in chosen],
                marker="os^Dv<>Pp"[i % 9],
                markersize=4,
                linewidth=1.8 if op in HEADLINE else 0.9,
                capsize=2,
                color=f"C{i}",
                label=op,
            )
        ax.axhline(1.0, **_LIMITS)
        title = f"{count} thread{'s' if count > 1 else ''}" if here[0].device == "cpu" else "GPU"
        _axis(ax, title, "image side, px", "fastest baseline / ours", sorted({r.px for r in here}))
        ax.set_ylim(0, 1.15 * max(r.ratio for r in floats))
    _legend_below(figure, 5)


def _ours_and_other(ax: Any, entries: Sequence[dict[str, Any]], varied: str) -> None:
    _line(ax, [(e[varied], e["ours"]) for e in entries], OURS)
    _line(ax, [(e[varied], e["other"]) for e in entries], entries[0]["other_name"])


def by_blur(result: dict[str, Any], rows: Sequence[Row], figure: Any) -> None:
    """Cost against blur_std."""
    entries = result["sweeps"]["blur"]
    for ax, px in _panels(figure, sorted({e["px"] for e in entries})):
        chosen = [e for e in entries if e["px"] == px]
        _ours_and_other(ax, chosen, "blur_std")
        _axis(ax, f"corrupt, {px} px", "blur_std, px", "ns per value")
        ax.set_xscale("symlog", linthresh=0.1)
        ticks = [t for t in (0, 0.1, 1, 10, 100) if t <= max(e["blur_std"] for e in chosen)]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    figure.axes[0].set_ylim(0, 1.1 * max(max(e["ours"], e["other"]) for e in entries))
    figure.axes[0].legend(**_LEGEND)


def by_batch(result: dict[str, Any], rows: Sequence[Row], figure: Any) -> None:
    """Cost of an image against the batch size."""
    entries = result["sweeps"]["batch"]
    for ax, op in _panels(figure, list(dict.fromkeys(e["op"] for e in entries))):
        chosen = [e for e in entries if e["op"] == op]
        _ours_and_other(ax, chosen, "batch")
        _axis(ax, f"{op}, {chosen[0]['px']} px", "batch", "us an image", [e["batch"] for e in chosen])
        _logarithmic(ax)
    figure.axes[0].legend(**_LEGEND)


def host(result: dict[str, Any], rows: Sequence[Row], figure: Any) -> None:
    """Host microseconds of a call."""
    entries = result["sweeps"]["host"]
    ax = figure.subplots()
    for i, entry in enumerate(entries):
        other = entry["other_name"]
        bars = {OURS: ("ours", _COLOURS[OURS]), f"{OURS}, key given": ("key_given", "#7fb2dd")}
        bars[other] = ("other", _COLOURS.get(other, _OTHERS))
        present = [(name, entry[key], colour) for name, (key, colour) in bars.items() if key in entry]
        for j, (name, value, colour) in enumerate(present):
            label = name if name not in ax.get_legend_handles_labels()[1] else None
            ax.barh(i + 0.25 * j, value, height=0.23, color=colour, label=label)
            ax.text(value, i + 0.25 * j, f" {value:.0f}", va="center", fontsize=7.5)
    ax.set_yticks([i + 0.25 for i in range(len(entries))], [e["op"] for e in entries])
    ax.invert_yaxis()
    _axis(ax, "host time of a call", "microseconds", "")
    ax.legend(**_LEGEND)


# By file name: what draws it, the sweep that it needs (None: the rows), and its size in inches.
PLOTS: dict[str, tuple[Callable[..., None], str | None, tuple[float, float]]] = {
    "time-per-value": (time_per_value, None, (10.5, 4.3)),
    "ratio": (ratio, None, (9.5, 4.4)),
    "blur-std": (by_blur, "blur", (8.0, 3.4)),
    "batch": (by_batch, "batch", (10.5, 3.4)),
    "host": (host, "host", (7.0, 3.2)),
}


def draw(path: Path, folder: Path) -> list[Path]:
    """Draws what the result has data for into PNG files; their paths. AGAIN is left out everywhere."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    result, rows = load(str(path))
    for row in rows:
        row.timings.pop(AGAIN, None)
    drawn = []
    for name, (plot, sweep, size) in PLOTS.items():
        if not (rows if sweep is None else result["sweeps"][sweep]):
            continue
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        plot(result, rows, figure)
        machine = result["machine"]
        about = (machine["gpu"] or {}).get("name") or f"{machine['cpu']}, {machine['instruction_set']}"
        figure.suptitle(f"{about}, {machine['date'][:10]}", fontsize=8, x=0.99, ha="right", color="#666666")
        file = folder / f"{name}.png"
        figure.savefig(file, dpi=110)
        drawn.append(file)
    return drawn
