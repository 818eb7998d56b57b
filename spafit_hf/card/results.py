"""Figures as tables: the scores, beside the paper's where it has one, and the way there."""

from __future__ import annotations

from spafit_hf.card.facts import FACTS_FILE, CardFacts, Score, Step
from spafit_hf.data.glue import PAPER_SCORES, TASKS
from spafit_hf.words import figure, figure_name, method_title, plain, table

SHOWN_STEPS = 12
MOST_STEPS = 60


def row_count(score: Score) -> str:
    return f" ({score.rows:,} rows)" if score.rows else ""


def score_table(facts: CardFacts) -> tuple[str, bool]:
    """The table of scores, and whether the paper's stands beside them."""
    scores = [score for score in facts.scores if score.figures]
    if not scores:
        return "", False
    paper = PAPER_SCORES.get(facts.data.glue or "", {}).get(facts.method)
    header = ["", *(plain(score.split).replace("\\_", " ") + row_count(score) for score in scores)]
    rows = []
    for name in dict.fromkeys(name for score in scores for name in score.figures):
        cells = [figure(score.figures[name]) if name in score.figures else "" for score in scores]
        rows.append([plain(figure_name(name)), *cells])
        if paper is not None:
            rows[-1].append(f"{paper:.2f}" if name == TASKS[facts.data.glue or ""].main_metric else "")
    if paper is not None:
        header.append("Paper")
    return table(header, rows, "l" + "r" * (len(header) - 1)), paper is not None


def paper_note(facts: CardFacts) -> str:
    matched = ", on the matched part" if facts.data.glue == "mnli" else ""
    same = (facts.base.id or "").endswith("bert-large-cased")
    other = "" if same else " The base here is another one, so the two are not the same experiment."
    return (
        f"Paper: {method_title(facts.method)} in Table 2 of [arXiv:2405.00201](https://arxiv.org/abs/2405.00201), "
        f"BERT-large-cased, best of the authors' runs on the validation set{matched}, no spread given.{other}"
    )


def step_table(facts: CardFacts, known: list[Step]) -> str:
    """The table of the steps that something is known of; columns of which nothing is known are left out."""
    names = dict.fromkeys(name for step in known for name in step.figures)
    values: list[tuple[str, str, list[float | None]]] = [
        ("Step", ",", [step.step for step in known]),
        ("Epoch", ".2f", [step.epoch for step in known]),
        ("Train loss", ".4f", [step.train_loss for step in known]),
        ("Val. loss", ".4f", [step.eval_loss for step in known]),
        *((plain(figure_name(name)), ".4f", [step.figures.get(name) for step in known]) for name in names),
    ]
    columns = [
        (title, ["" if value is None else format(value, digits) for value in column])
        for title, digits, column in values
        if any(value is not None for value in column)
    ]
    # Every evaluation stays, and of the rest as many as there is room for, evenly.
    stride = -(-len(known) // MOST_STEPS)
    rows = []
    for index, step in enumerate(known):
        kept = step.step == facts.best_step
        if step.figures or step.eval_loss is not None or index % stride == 0 or kept:
            rows.append([f"**{cells[index]}**" if cells[index] and kept else cells[index] for _, cells in columns])
    text = table([title for title, _ in columns], rows, "r" * len(columns))
    if len(known) > MOST_STEPS:
        text += f"\n\n{len(rows)} of {len(known)} logged steps; all are in `{FACTS_FILE}`."
    if any(step.step == facts.best_step for step in known):
        text += "\n\nThe weights here are those of the step in bold."
    return text
