"""Figures as tables: the scores, beside the paper's where it has one, and the way there."""

from __future__ import annotations

from spafit_hf.card.facts import FACTS_FILE, CardFacts, Score, Step
from spafit_hf.data.glue import PAPER_SCORES, TASKS
from spafit_hf.words import count, figure, figure_name, method_title, plain, table

SHOWN_STEPS = 12
MOST_STEPS = 60


def row_count(score: Score) -> str:
    return f" ({count(score.rows)} rows)" if score.rows else ""


def _paper_score(facts: CardFacts) -> tuple[str, float] | None:
    """The paper's figure for this task and method: its name and value."""
    value = PAPER_SCORES.get(facts.data.glue or "", {}).get(facts.method)
    return (TASKS[facts.data.glue or ""].main_metric, value) if value is not None else None


def score_table(facts: CardFacts) -> tuple[str, bool]:
    """The table of scores, and whether the paper's stands beside them."""
    scores = [score for score in facts.scores if score.figures]
    if not scores:
        return "", False
    names = list(dict.fromkeys(name for score in scores for name in score.figures))
    paper = _paper_score(facts)
    header = ["", *(plain(score.split).replace("\\_", " ") + row_count(score) for score in scores)]
    rows = []
    for name in names:
        cells = [figure(score.figures[name]) if name in score.figures else "" for score in scores]
        theirs = [f"{paper[1]:.2f}" if paper[0] == name else ""] if paper else []
        rows.append([figure_name(name), *cells, *theirs])
    return table(
        [*header, *(["Paper"] if paper else [])], rows, "l" + "r" * (len(header) - 1 + bool(paper))
    ), paper is not None


def paper_note(facts: CardFacts) -> str:
    matched = ", on the matched part" if facts.data.glue == "mnli" else ""
    other = (
        ""
        if (facts.base.id or "").endswith("bert-large-cased")
        else " The base here is another one, so the two are not the same experiment."
    )
    return (
        f"Paper: {method_title(facts.method)} in Table 2 of [arXiv:2405.00201](https://arxiv.org/abs/2405.00201), "
        f"BERT-large-cased, best of the authors' runs on the validation set{matched}, no spread given.{other}"
    )


def step_table(facts: CardFacts, known: list[Step]) -> str:
    names = list(dict.fromkeys(name for step in known for name in step.figures))
    columns: list[tuple[str, list[str]]] = [("Step", [count(step.step) for step in known])]

    def add(title: str, values: list[float | None], digits: int = 4) -> None:
        if any(value is not None for value in values):
            columns.append((title, ["" if value is None else f"{value:.{digits}f}" for value in values]))

    add("Epoch", [step.epoch for step in known], 2)
    add("Train loss", [step.train_loss for step in known])
    add("Val. loss", [step.eval_loss for step in known])
    for name in names:
        add(figure_name(name), [step.figures.get(name) for step in known])
    rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    kept = [index for index, step in enumerate(known) if step.step == facts.best_step]
    for index in kept:
        rows[index] = [f"**{cell}**" if cell else "" for cell in rows[index]]
    left_out = ""
    if len(rows) > MOST_STEPS:
        # Every evaluation stays, and of the rest as many as there is room for, evenly.
        stride = -(-len(rows) // MOST_STEPS)
        chosen = [
            i
            for i, step in enumerate(known)
            if step.figures or step.eval_loss is not None or i % stride == 0 or i in kept
        ]
        left_out = f"\n\n{len(chosen)} of {len(rows)} logged steps; all are in `{FACTS_FILE}`."
        rows = [rows[i] for i in chosen]
    note = "\n\nThe weights here are those of the step in bold." if kept else ""
    return table([title for title, _ in columns], rows, "r" * len(columns)) + left_out + note
