"""What a reader should not expect of a model, as far as it follows from the facts. Short, and never a placeholder."""

from __future__ import annotations

from spafit_hf.card.facts import CardFacts
from spafit_hf.data.glue import TASKS
from spafit_hf.words import figure, plain

TASK_LIMITS = {
    "wnli": "WNLI's validation set was built against its training set: 0.56 is what the larger class alone scores, "
    "and says nothing about understanding.",
    "cola": "The judgments are those of linguists on textbook examples; usage elsewhere may differ.",
    "stsb": "Scores were trained on the range from 0 to 5 but nothing keeps an output inside it.",
    "qqp": "The labels are Quora's own and known to be noisy, and its terms allow no commercial use of the data.",
}


def limits(facts: CardFacts) -> str:
    """The section's items as a Markdown list; "" if nothing follows."""
    data, items = facts.data, []
    if data.domain or facts.language:
        language = ["English" if code == "en" else plain(code) for code in facts.language]
        kind = f"{language[0]} text" if len(language) == 1 else "text"
        where = f" ({plain(data.domain)})" if data.domain else ""
        items.append(f"Trained on {kind}{where}; on anything else it has not been measured.")
    if data.glue in TASK_LIMITS:
        items.append(TASK_LIMITS[data.glue])
    elif facts.regression:
        items.append("Nothing keeps the output inside the range of the training labels.")
    items += _other_rows(facts)
    if data.max_length:
        items.append(f"What stands after the first {data.max_length} tokens of a text was not seen in training.")
    if facts.scores:
        seed = facts.all_hyperparameters.get("seed")
        runs = "One run" if seed is None else f"One run with seed {plain(seed)}"
        best = ", and the checkpoint was chosen on the same split that is reported"
        items.append(f"{runs}: the scores have no spread{best if facts.best_step is not None else ''}.")
        items += _gap(facts)
    if facts.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        items.append("It can write what is false or harmful, as its base can.")
    elif facts.task_type == "SEQ_CLS":
        items.append(
            "Whatever the base learned about groups of people may show in its answers; that was not measured."
        )
    return "\n".join(f"- {item}" for item in items)


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


def _gap(facts: CardFacts) -> list[str]:
    """Where validation loss has risen well above its lowest, a reader should know."""
    losses = [(step.eval_loss, step.step) for step in facts.steps if step.eval_loss is not None]
    if len(losses) < 2 or facts.best_step is not None:
        return []
    (lowest, step), (last, _) = min(losses), losses[-1]
    if last <= 1.2 * lowest:
        return []
    return [
        f"Loss on validation rose from {figure(lowest)} at step {step:,} to {figure(last)} at the end: its "
        "probabilities are too sure of themselves."
    ]
