"""The training curve as a picture: loss above, the figure that counts below, readable on a phone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from spafit_hf.card.facts import CardFacts
from spafit_hf.words import figure_name

CURVE_FILE = "training_curve.png"
LEAST_POINTS = 2

logger = logging.getLogger(__name__)

BLUE, ORANGE, GREY = "#2563eb", "#d97706", "#6b7280"


def draw_curve(facts: CardFacts, folder: Path) -> str | None:
    """Draw the steps into `folder / CURVE_FILE`.

    Equal facts give equal bytes with one version of matplotlib.

    Returns:
        The file's name; None where there is nothing to draw, or no matplotlib to draw it with.
    """
    main = main_figure(facts)
    panels = [
        [series for series in (_losses(facts, "train_loss"), _losses(facts, "eval_loss")) if len(series[0]) > 0],
        [series for series in (_figures(facts, main),) if len(series[0]) >= LEAST_POINTS],
    ]
    panels = [panel for panel in panels if any(len(series[0]) >= LEAST_POINTS for series in panel)]
    if not panels:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        logger.info("The card has no picture of the training curve; pip install matplotlib for one.")
        return None

    # A Figure of its own and no pyplot: nothing of the caller's matplotlib is touched.
    figure = Figure(figsize=(6, 2.6 * len(panels)), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        for steps, values, label, color in panel:
            marker = "o" if len(steps) <= 30 and color != BLUE else None
            axis.plot(steps, values, color=color, linewidth=1.8, marker=marker, markersize=4, label=label)
        axis.set_ylabel(panel[0][2] if len(panel) == 1 else "Loss", fontsize=12)
        axis.tick_params(labelsize=11)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if facts.best_step is not None:
            axis.axvline(facts.best_step, color=GREY, linestyle=":", linewidth=1.4, label="" if number else "kept")
        if len(axis.get_legend_handles_labels()[0]) > 1:
            axis.legend(fontsize=11, frameon=False)
    axes[-1].set_xlabel("Step", fontsize=12)
    # Without the name of the software, so that the bytes do not change with it.
    figure.savefig(folder / CURVE_FILE, metadata={"Software": None})
    return CURVE_FILE


def main_figure(facts: CardFacts) -> str | None:
    """The figure that counts: the one named, else the first that is measured."""
    if facts.main_figure is not None:
        return facts.main_figure
    names = [name for score in facts.scores for name in score.figures]
    names += [name for step in facts.steps for name in step.figures]
    return next((name for name in names if name not in ("loss", "eval_loss")), None)


def _losses(facts: CardFacts, field: str) -> tuple[list[int], list[float], str, str]:
    train = field == "train_loss"
    known = [(s.step, s.train_loss if train else s.eval_loss) for s in facts.steps]
    points = [(step, loss) for step, loss in known if loss is not None]
    label = "Training loss" if train else "Validation loss"
    return [step for step, _ in points], [loss for _, loss in points], label, BLUE if train else ORANGE


def _figures(facts: CardFacts, name: str | None) -> tuple[list[int], list[float], str, str]:
    points = [(s.step, s.figures[name]) for s in facts.steps if name is not None and name in s.figures]
    return [step for step, _ in points], [value for _, value in points], figure_name(name or ""), ORANGE
