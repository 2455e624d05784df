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
    "two-product": "#e0a899",
    "four-product": "#e09f3e",
    "scipy": "#3f8f5f",
    "FFT-DCT": "#7d5ba6",
    "FFTW": "#5f6f1f",
    "DUCC": "#2aa198",
}
_LIMITS = "#444444"
_OTHERS = "#9a9a9a"
_NAMED = ("two-product bmm", "four-product", "scipy", "FFTW", "DUCC", "FFT-DCT")


def _axis(ax: Any, title: str, x: str, y: str, ticks: Sequence[float] = ()) -> None:
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
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


def _line(ax: Any, x: Sequence[float], y: Sequence[float], name: str) -> None:
    own = name == OURS
    ax.plot(
        *(x, y),
        marker="o",
        markersize=4.5 if own else 3.5,
        linewidth=2.4 if own else 1.3,
        color=_COLOURS.get(name, _OTHERS),
        label=name,
        zorder=3 if own else 2,
    )


def _labels(axes: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Every label of some axes once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return list(handles.values()), list(handles)


def _plain(rows: Sequence[Row]) -> list[Row]:
    """The rows of the largest thread count in float32, by the first backend: what one plot can show."""
    floats = [r for r in rows if r.dtype == "float32"] or list(rows)
    most = max(r.threads for r in floats)
    return [r for r in floats if r.threads == most and r.backend == floats[0].backend]


def _seen(rows: Sequence[Row]) -> list[str]:
    """The headline's ops that were timed, or the first few others."""
    ops = list(dict.fromkeys(r.op for r in rows))
    return [op for op in HEADLINE if op in ops] or ops[:3]


def _limits_of(result: dict[str, Any], row: Row) -> dict[str, float] | None:
    limits: dict[str, Any] = result["limits"]
    return limits.get("gpu" if row.device == "cuda" else str(row.threads))


def time_per_value(result: dict[str, Any], rows: Sequence[Row], figure: Any) -> None:
    """ns per value against size, with what the machine allows drawn in."""
    plain = _plain(rows)
    ops = _seen(plain)
    axes = figure.subplots(1, len(ops), sharey=True, squeeze=False)[0]
    for ax, op in zip(axes, ops, strict=True):
        chosen = sorted((r for r in plain if r.op == op), key=lambda r: r.px)
        sizes = [r.px for r in chosen]
        for name in (OURS, *_NAMED):
            points = [(r.px, r.timings[name]["median"]) for r in chosen if name in r.timings]
            if points:
                _line(ax, [x for x, _ in points], [y for _, y in points], name)
        limits = _limits_of(result, chosen[0])
        if limits is not None:
            bytes_a_value = bytes_of(op)
            ax.axhline(bytes_a_value / limits["copy_gb_s"], color=_LIMITS, linewidth=1.1, label="memory copy")
            dense = [dense_operations(op, px) / limits["gemm_gflop_s"] for px in sizes]
            if any(dense):
                ax.plot(
                    sizes, dense, color=_LIMITS, linewidth=1.1, linestyle="--", label="dense products at peak"
                )
            if op in NOISY:
                ax.axhline(
                    limits["normal_ns"], color=_LIMITS, linewidth=1.1, linestyle=":", label="noise alone"
                )
        _axis(ax, op, "image side, px", "ns per value" if ax is axes[0] else "", sizes)
        _logarithmic(ax)
    figure.legend(*_labels(axes), loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def ratio(result: dict[str, Any], rows: Sequence[Row], figure: Any) -> None:
    """How many times as long the fastest baseline takes, at each thread count."""
    floats = [r for r in rows if r.dtype == "float32"] or list(rows)
    counts = sorted({r.threads for r in floats})
    axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    markers = "os^Dv<>Pp"
    for ax, count in zip(axes, counts, strict=True):
        here = [r for r in floats if r.threads == count]
        sizes = sorted({r.px for r in here})
        for i, op in enumerate(dict.fromkeys(r.op for r in here)):
            chosen = sorted((r for r in here if r.op == op), key=lambda r: r.px)
            ax.errorbar(
                [r.px for r in chosen],
                [r.ratio for r in chosen],
                yerr=[r.ratio * min(r.noise, 1.0) for r in chosen],
                marker=markers[i % len(markers)],
                markersize=4,
                linewidth=1.8 if op in HEADLINE else 0.9,
                capsize=2,
                color=f"C{i}",
                label=op,
            )
        ax.axhline(1.0, color=_LIMITS, linewidth=1.1)
        title = f"{count} thread{'s' if count > 1 else ''}" if here[0].device == "cpu" else "GPU"
        _axis(ax, title, "image side, px", "fastest baseline / ours" if ax is axes[0] else "", sizes)
        ax.set_ylim(0, 1.15 * max(r.ratio for r in floats))
    figure.legend(*_labels(axes), loc="outside lower center", ncols=5, fontsize=8, frameon=False)


def by_blur(result: dict[str, Any], rows: Sequence[Row], figure: Any) -> None:
    """Cost against blur_std."""
    entries = result["sweeps"]["blur"]
    sizes = sorted({e["px"] for e in entries})
    axes = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for ax, px in zip(axes, sizes, strict=True):
        chosen = [e for e in entries if e["px"] == px]
        x = [e["blur_std"] for e in chosen]
        _line(ax, x, [e["ours"] for e in chosen], OURS)
        _line(ax, x, [e["other"] for e in chosen], chosen[0]["other_name"])
        _axis(ax, f"corrupt, {px} px", "blur_std, px", "ns per value" if ax is axes[0] else "")
        ax.set_xscale("symlog", linthresh=0.1)
        ticks = [t for t in (0, 0.1, 1, 10, 100) if t <= max(x)]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes[0].set_ylim(0, 1.1 * max(max(e["ours"], e["other"]) for e in entries))
    axes[0].legend(fontsize=8, frameon=False)


def by_batch(result: dict[str, Any], rows: Sequence[Row], figure: Any) -> None:
    """Cost of an image against the batch size."""
    entries = result["sweeps"]["batch"]
    ops = list(dict.fromkeys(e["op"] for e in entries))
    axes = figure.subplots(1, len(ops), sharey=True, squeeze=False)[0]
    for ax, op in zip(axes, ops, strict=True):
        chosen = [e for e in entries if e["op"] == op]
        x = [e["batch"] for e in chosen]
        _line(ax, x, [e["ours"] for e in chosen], OURS)
        _line(ax, x, [e["other"] for e in chosen], chosen[0]["other_name"])
        _axis(ax, f"{op}, {chosen[0]['px']} px", "batch", "us an image" if ax is axes[0] else "", x)
        _logarithmic(ax)
    axes[0].legend(fontsize=8, frameon=False)


def host(result: dict[str, Any], rows: Sequence[Row], figure: Any) -> None:
    """Host microseconds of a call."""
    entries = result["sweeps"]["host"]
    ax = figure.subplots()
    for i, entry in enumerate(entries):
        bars = [(OURS, entry["ours"], _COLOURS[OURS])]
        if "key_given" in entry:
            bars.append((f"{OURS}, key given", entry["key_given"], "#7fb2dd"))
        bars.append((entry["other_name"], entry["other"], _COLOURS.get(entry["other_name"], _OTHERS)))
        for j, (name, value, colour) in enumerate(bars):
            label = name if name not in ax.get_legend_handles_labels()[1] else None
            ax.barh(i + 0.25 * j, value, height=0.23, color=colour, label=label)
            ax.text(value, i + 0.25 * j, f" {value:.0f}", va="center", fontsize=7.5)
    ax.set_yticks([i + 0.25 for i in range(len(entries))], [e["op"] for e in entries])
    ax.invert_yaxis()
    _axis(ax, "host time of a call", "microseconds", "")
    ax.legend(fontsize=8, frameon=False)


def _has_rows(result: dict[str, Any], rows: Sequence[Row]) -> bool:
    return bool(rows)


def _swept(name: str) -> Callable[[dict[str, Any], Sequence[Row]], bool]:
    return lambda result, rows: bool(result["sweeps"][name])


PLOTS: dict[str, tuple[Callable[..., None], Callable[..., bool], tuple[float, float]]] = {
    "time-per-value": (time_per_value, _has_rows, (10.5, 4.3)),
    "ratio": (ratio, _has_rows, (9.5, 4.4)),
    "blur-std": (by_blur, _swept("blur"), (8.0, 3.4)),
    "batch": (by_batch, _swept("batch"), (10.5, 3.4)),
    "host": (host, _swept("host"), (7.0, 3.2)),
}


def draw(path: Path, folder: Path) -> list[Path]:
    """Draws what the result has data for into PNG files; their paths. AGAIN is left out everywhere."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    result, rows = load(str(path))
    for row in rows:
        row.timings.pop(AGAIN, None)
    drawn = []
    for name, (plot, has_data, size) in PLOTS.items():
        if not has_data(result, rows):
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
