"""The training curve as a picture: loss above, the figure that counts below, readable on a phone."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from spafit_hf.card.facts import CardFacts
from spafit_hf.files import write_whole
from spafit_hf.words import figure_name

CURVE_FILE = "training_curve.png"

BLUE, ORANGE, GREY = "#2563eb", "#d97706", "#6b7280"


def draw_curve(facts: CardFacts, folder: Path) -> str | None:
    """Draw the steps into `folder / CURVE_FILE`; its name, or None without steps.

    Equal facts give equal bytes with one version of matplotlib.
    """
    main = main_figure(facts)
    train = [(step.step, step.train_loss) for step in facts.steps if step.train_loss is not None]
    measured = [(step.step, step.eval_loss) for step in facts.steps if step.eval_loss is not None]
    figures = [(step.step, step.figures[main]) for step in facts.steps if main in step.figures]
    losses = [("Training loss", BLUE, train), ("Validation loss", ORANGE, measured)]
    panels = [[line for line in losses if line[2]], [(figure_name(main or ""), ORANGE, figures)]]
    panels = [panel for panel in panels if any(len(points) > 1 for *_, points in panel)]
    if not panels:
        return None
    # Imported here so that importing the trainer does not wait for matplotlib.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # A Figure of its own and no pyplot: nothing of the caller's matplotlib is touched.
    figure = Figure(figsize=(6, 2.6 * len(panels)), dpi=160, facecolor="white", layout="constrained")
    axes: Any = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        for label, color, points in panel:
            marker = "o" if len(points) <= 30 and color != BLUE else None
            axis.plot(*zip(*points, strict=True), color=color, linewidth=1.8, marker=marker, markersize=4, label=label)
        axis.set_ylabel(panel[0][0] if len(panel) == 1 else "Loss", fontsize=12)
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
    picture = BytesIO()
    figure.savefig(picture, metadata={"Software": None})
    write_whole(folder / CURVE_FILE, picture.getvalue())  # in place of a link, too
    return CURVE_FILE


def main_figure(facts: CardFacts) -> str | None:
    """The figure that counts: the one named, else the first that is measured."""
    if facts.main_figure is not None:
        return facts.main_figure
    names = [name for score in facts.scores for name in score.figures]
    names += [name for step in facts.steps for name in step.figures]
    return next((name for name in names if name not in ("loss", "eval_loss")), None)
