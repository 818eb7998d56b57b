"""Three pictures of a summary: score over trained parameters, differences to full fine-tuning, what the rate does.

Equal results give equal bytes with one version of matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from spafit_hf.data.glue import TASKS
from spafit_hf.reproduce.statistics import MARGIN
from spafit_hf.reproduce.summary import Summary
from spafit_hf.reproduce.text import MISSING, rate_text, signed, title
from spafit_hf.strategy import METHODS
from spafit_hf.words import figure_name

# Okabe and Ito's colours, which the colour-blind tell apart, and grey; the marker says the same once more.
COLORS = ("#000000", "#e69f00", "#56b4e9", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f7f7f")
MARKERS = ("*", "o", "s", "D", "^", "v", "P", "X", "<", ">", "p")
LIMIT = 10.0
"""Points that have a colour of their own: a run that broke down must not bleach all others. Cells have the number."""


def draw_pictures(summary: Summary, folder: Path) -> list[Path]:
    """Draw what there are results for, and return the files: parameters.png, differences.png, rates.png."""
    folder.mkdir(exist_ok=True)
    paths = []
    for name, draw in (("parameters", _parameters), ("differences", _differences), ("rates", _rates)):
        path, figure = folder / f"{name}.png", draw(summary)
        path.unlink(missing_ok=True)  # of results that are there no more
        if figure is not None:
            # Without the name of the software, so that the bytes do not change with it.
            figure.savefig(path, metadata={"Software": None})
            paths.append(path)
    return paths


def _parameters(summary: Summary) -> Figure | None:
    """Mean score over trained parameters; the band is a point below full fine-tuning to that."""
    there = [(entry, 100 * entry.mean) for entry in summary.entries.values() if entry.mean is not None]
    panels = _Panels(summary, [entry.task for entry, _ in there], "Trained parameters")
    for entry, mean in there:
        axis, trained = panels.axes[entry.task], entry.average_of("trained_parameters")
        if entry.method == "full":
            band = mean - 100 * MARGIN, mean
            axis.axhspan(*band, color="#00000018", linewidth=0, label="up to a point below full")
        style = _style(summary, entry.method)
        axis.plot(trained, mean, linestyle="", markersize=7.5, label=title(entry.method), **style)
    return panels.finish()


def _differences(summary: Summary) -> Figure | None:
    """Methods by tasks: points above or below full fine-tuning, and whether that is not worse by more than one."""
    methods, tasks = [method for method in summary.methods if method != "full"], summary.tasks
    found = {(method, task): summary.difference(task, method, "full") for method in methods for task in tasks}
    table = np.array([[100 * one.mean if (one := found[m, t]) else np.nan for t in tasks] for m in methods])
    if not np.isfinite(table).any():
        return None
    figure = new_figure(2.6 + 0.95 * len(tasks), 1.5 + 0.5 * len(methods))
    axis: Any = figure.subplots()
    most = float(np.nanmax(np.abs(table)))
    limit = min(LIMIT, max(1.0, most))
    image = axis.imshow(table, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_facecolor("#eeeeee")  # under cells without a number
    for (row, method), (column, task) in ((r, c) for r in enumerate(methods) for c in enumerate(tasks)):
        one = found[method, task]
        text = MISSING if (task, method) in summary.entries else "not planned"
        style: dict[str, Any] = {"color": "#6b7280", "style": "italic"}
        if one is not None:
            text = f"{signed(one.mean)}\n{one.not_worse}"
            style = {"color": "white" if abs(100 * one.mean) > 0.55 * limit else "black"}
        axis.text(column, row, text, ha="center", va="center", fontsize=8, **style)
    axis.set_xticks(range(len(tasks)), [TASKS[task].title for task in tasks])
    axis.set_yticks(range(len(methods)), [title(method) for method in methods])
    axis.tick_params(length=0, labelsize=9)
    axis.spines[:].set_visible(False)
    axis.set_title("Points above or below full fine-tuning, and\nwhether not worse by more than 1 point", fontsize=10)
    bar = figure.colorbar(image, ax=axis, extend="both" if most > limit else "neither")
    bar.ax.tick_params(labelsize=8)
    return figure


def _rates(summary: Summary) -> Figure | None:
    """Mean score over learning rate: of the search where there was one, else of the table."""
    runs: dict[tuple[str, str, str], dict[float, list[float]]] = {}
    for cell in summary.results:
        if cell["status"] != "failed":
            place = runs.setdefault((cell["task"], cell["method"], cell["stage"]), {})
            place.setdefault(cell["learning_rate"], []).append(((cell["best"] or {}).get("score") or 0.0) * 100)
    several = {place: rates for place, rates in runs.items() if len(rates) > 1}
    panels = _Panels(summary, [task for task, *_ in several], "Learning rate")
    for method in summary.methods:
        for (task, name, _), rates in several.items():
            if name == method:
                means, style = [np.mean(rates[rate]) for rate in sorted(rates)], _style(summary, method)
                panels.axes[task].plot(sorted(rates), means, markersize=5, label=title(method), **style)
    for task, axis in panels.axes.items():
        ticks = sorted({rate for place, rates in several.items() if place[0] == task for rate in rates})
        axis.set_xticks(ticks, [rate_text(rate) for rate in ticks], rotation=90, fontsize=7)
        axis.xaxis.set_minor_locator(NullLocator())
    return panels.finish()


def new_figure(width: float, height: float) -> Figure:
    """A white figure, in inches."""
    # A Figure of its own and no pyplot: nothing of the caller's matplotlib is touched.
    return Figure(figsize=(width, height), dpi=130, facecolor="white", layout="constrained")


def _style(summary: Summary, method: str) -> dict[str, Any]:
    number = list(summary.grid["methods"]).index(method)
    color = COLORS[number % len(COLORS)]
    inside = color if method in METHODS else "white"
    return {"color": color, "marker": MARKERS[number % len(MARKERS)], "markerfacecolor": inside, "alpha": 0.85}


class _Panels:
    """A figure with a panel for each task, up to three side by side, and one legend below; hollow are the controls."""

    def __init__(self, summary: Summary, tasks: Sequence[str], xlabel: str) -> None:
        names = [task for task in summary.tasks if task in tasks]
        across = min(3, len(names))
        down = math.ceil(len(names) / max(1, across))
        self.figure = new_figure(max(6.0, 3.6 * across), 3 * down + 1.2)
        self.methods = summary.methods
        self.axes: dict[str, Any] = {}
        for number, task in enumerate(names, 1):
            axis = self.axes[task] = self.figure.add_subplot(down, across, number)
            axis.set_title(f"{TASKS[task].title}, {figure_name(TASKS[task].main_metric)}", fontsize=10)
            axis.set_xscale("log")
            axis.set_xlabel(xlabel, fontsize=9)
            axis.set_ylabel("Points", fontsize=9)
            axis.tick_params(labelsize=9)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)

    def finish(self) -> Figure | None:
        """The figure with its legend; None where nothing was to be drawn."""
        found: dict[str, Any] = {}
        for axis in self.axes.values():
            handles, labels = axis.get_legend_handles_labels()
            found |= dict(zip(labels, handles, strict=True))
        order = [title(method) for method in self.methods]
        names = sorted(found, key=lambda name: order.index(name) if name in order else -1)
        handles = [found[name] for name in names]
        self.figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
        return self.figure if self.axes else None
