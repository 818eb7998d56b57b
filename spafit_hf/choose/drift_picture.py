"""Drift per layer, a line for each model. Equal figures give equal bytes with one version of matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from spafit_hf.card.forgetting import STATES, Forgetting
from spafit_hf.reproduce.pictures import COLORS, MARKERS, new_figure


def draw_drift(report: Forgetting, path: Path) -> None:
    """Draw 1 - cosine and 1 - CKA over the layers, side by side, as a PNG file."""
    figure = new_figure(8.6, 3.6)
    panels: Any = figure.subplots(1, 2)
    for number, row in enumerate(report.rows):
        style: dict[str, Any] = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
        values = [1 - layer.cosine for layer in row.layers], [1 - layer.cka for layer in row.layers]
        for axis, value in zip(panels, values, strict=True):
            axis.plot(value, label=row.name + STATES[row.state], alpha=0.85, **style)
    for axis, name in zip(panels, ("1 - cosine", "1 - CKA"), strict=True):
        axis.set_title(f"Drift from the base: {name}", fontsize=10)
        axis.set_xlabel("Layer", fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False
    )
    # Without the name of the software, so that the bytes do not change with it.
    figure.savefig(path, format="png", metadata={"Software": None})
