"""The charts of a report as SVG, both axes logarithmic; the only module that imports matplotlib.

The text stays text, and nothing in the file depends on when or where it was drawn: the same report gives the same file.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from report import Chart, Report

MARKERS = "osD^vP*Xhp<>"
LEVELS = ("low", "median", "high")


def draw(report: Report, folder: Path) -> list[Path]:
    """One file for each name of a chart; those that several sections have are put together. Returns the files."""
    charts: dict[str, list[Chart]] = {}
    for section in report.sections:
        for chart in section.charts:
            charts.setdefault(chart.name, []).append(chart)
    return [_draw(parts, folder / f"{name}.svg") for name, parts in charts.items()]


def _draw(parts: list[Chart], path: Path) -> Path:
    first = parts[0]
    lines = {name: line for part in parts for name, line in part.lines.items()}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": first.name, "font.family": "sans-serif"}):
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.add_subplot()
        for (name, line), marker in zip(lines.items(), MARKERS, strict=False):
            across = [at for at, _ in line]
            low, median, high = ([getattr(spread, which) * first.factor for _, spread in line] for which in LEVELS)
            (drawn,) = axes.plot(across, median, marker=marker, markersize=5, linewidth=1.5, label=name)
            axes.fill_between(across, low, high, alpha=0.15, color=drawn.get_color(), linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel=first.across, ylabel=first.up, title=first.title)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which("{x:,g}")
        axes.grid(visible=True, which="major", alpha=0.3)
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
    return path
