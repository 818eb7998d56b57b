"""What a reader should not expect of a model, as far as it follows from the facts. Short, and never a placeholder."""

from __future__ import annotations

from spafit_hf.card.facts import CardFacts
from spafit_hf.data.glue import TASKS
from spafit_hf.words import figure, figure_name, plain

TASK_LIMITS = {
    "wnli": "WNLI's validation set was built against its training set: 0.56 is what the larger class alone scores, "
    "and says nothing about understanding.",
    "cola": "The judgments are those of linguists on textbook examples; usage elsewhere may differ.",
    "stsb": "Scores were trained on the range from 0 to 5 but nothing keeps an output inside it.",
    "qqp": "The labels are Quora's own and known to be noisy, and its terms allow no commercial use of the data.",
}


def limits(facts: CardFacts) -> str:
    """The section's items as a Markdown list; "" if nothing follows."""
    return "\n".join(f"- {item}" for item in _items(facts))


def _items(facts: CardFacts) -> list[str]:
    items = []
    data = facts.data
    if data.domain or facts.language:
        language = {"en": "English"}.get(facts.language[0], facts.language[0]) if len(facts.language) == 1 else ""
        kind = f"{language} text" if language else "text"
        where = f" ({plain(data.domain)})" if data.domain else ""
        items.append(f"Trained on {kind}{where}; on anything else it has not been measured.")
    if data.glue in TASK_LIMITS:
        items.append(TASK_LIMITS[data.glue])
    elif facts.regression:
        items.append("Nothing keeps the output inside the range of the training labels.")
    items.extend(_other_rows(facts))
    if data.max_length:
        items.append(f"What stands after the first {data.max_length} tokens of a text was not seen in training.")
    if facts.scores:
        runs = "One run" + (
            f" with seed {seed}" if (seed := facts.all_hyperparameters.get("seed")) is not None else ""
        )
        chosen = (
            ", and the checkpoint was chosen on the same split that is reported" if facts.best_step is not None else ""
        )
        items.append(f"{runs}: the scores have no spread{chosen}.")
        largest = _gap(facts)
        if largest:
            items.append(largest)
    if facts.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        items.append("It can write what is false or harmful, as its base can.")
    elif facts.task_type == "SEQ_CLS":
        items.append(
            "Whatever the base learned about groups of people may show in its answers; that was not measured."
        )
    return items


def _other_rows(facts: CardFacts) -> list[str]:
    """Where the rows of a GLUE task are fewer than GLUE's own."""
    task = TASKS.get(facts.data.glue or "")
    if task is None:
        return []
    items = []
    rows, official = facts.data.train_rows, task.rows["train"]
    if rows and rows != official:
        items.append(f"Trained on {rows:,} rows; GLUE's own training set has {official:,}.")
    sizes = {task.rows[split] for split in task.validation}
    for score in facts.scores:
        if score.rows and score.rows not in sizes:
            items.append(
                f"Measured on {score.rows:,} rows, not on GLUE's own validation set of {max(sizes):,}: the scores do "
                "not compare with published ones."
            )
    return items


def _gap(facts: CardFacts) -> str:
    """Where validation loss has risen well above its lowest, a reader should know."""
    losses = [(step.step, step.eval_loss) for step in facts.steps if step.eval_loss is not None]
    if len(losses) < 2 or facts.best_step is not None:
        return ""
    lowest, last = min(losses, key=lambda point: point[1]), losses[-1]
    if last[1] <= 1.2 * lowest[1]:
        return ""
    return (
        f"{figure_name('loss')} on validation rose from {figure(lowest[1])} at step {lowest[0]:,} to "
        f"{figure(last[1])} at the end: its probabilities are too sure of themselves."
    )
