"""How well an adapter does and what it cost, from the result files in its folder; and what the paper reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spafit_hf.adapter import AdapterError
from spafit_hf.card import CardFacts
from spafit_hf.card.facts import FACTS_BOUNDS, CardError
from spafit_hf.data.glue import PAPER_SCORES, TASKS
from spafit_hf.files import read_json, size_of

RUN_FILE = "results.json"
"""Written by `spafit train`."""
FACTS_FILE = "spafit_results.json"
"""The card's facts, which also travel to the Hub."""
LARGEST = 10**15
"""Of what a file may count or measure; it may name numbers that no float holds, and infinity."""

PAPER_BASE = "BERT-large"
PAPER_PARAMETERS = {
    "full": 333.58,
    "bitfit": 31.52,
    "lora-I": 9.44,
    "lora-II": 12.59,
    "spafit-8-12-I": 4.44,
    "spafit-8-12-II": 5.88,
    "spafit-8-16-II": 3.81,
    "spafit-4-9-I": 5.65,
    "spafit-4-9-II": 7.49,
    "spafit-4-14-II": 4.89,
}
"""Trainable parameters in millions, Table 2 of Arora and Wang (2024), arXiv:2405.00201, on BERT-large-cased."""


@dataclass(frozen=True)
class Result:
    """What a result file says. Whatever it leaves open is None."""

    task: str | None = None
    """The GLUE task."""
    method: str | None = None
    figure: str | None = None
    """Name of the main figure."""
    score: float | None = None
    """Its value on the first evaluation split."""
    rows: int | None = None
    """Rows of that split."""
    train_rows: int | None = None
    trained_parameters: int | None = None
    total_parameters: int | None = None
    train_seconds: float | None = None


def read_result(folder: Path) -> Result | None:
    """The folder's result file; None where there is none.

    Raises:
        AdapterError: for one that is there and cannot be read.
    """
    if size_of(folder / RUN_FILE, AdapterError) is not None:
        return _from_run(read_json(folder / RUN_FILE, FACTS_BOUNDS, AdapterError))
    if size_of(folder / FACTS_FILE, AdapterError) is None:
        return None
    data = read_json(folder / FACTS_FILE, FACTS_BOUNDS, AdapterError)
    try:
        return _from_facts(CardFacts.from_data(data))
    except CardError as error:
        raise AdapterError(f"{FACTS_FILE} cannot be read: {error}") from error


def paper_score(task: str | None, method: str | None) -> float | None:
    """Table 2's score of a method on a task, in the task's main figure."""
    return PAPER_SCORES.get(task or "", {}).get(method or "")


def _from_run(data: Any) -> Result:
    if not isinstance(data, dict):
        raise AdapterError(f"{RUN_FILE} holds a {type(data).__name__}; expected is what `spafit train` writes.")
    name = _text(data.get("task"))
    task = name if name in TASKS else None
    metrics = data.get("metrics")
    first: Any = next(iter(metrics.values()), {}) if isinstance(metrics, dict) else {}
    figure = _text(data.get("main_figure"))
    split = next(iter(metrics), "") if isinstance(metrics, dict) else ""
    return Result(
        task=task,
        method=_text(data.get("strategy")),
        figure=figure,
        score=_number(first.get(figure)) if isinstance(first, dict) else None,
        rows=TASKS[task].rows.get(split) if task and not _was_limited(data) else None,
        train_rows=_count(data.get("train_rows")),
        trained_parameters=_count(data.get("trained_parameters")),
        total_parameters=_count(data.get("total_parameters")),
        train_seconds=_number(data.get("train_seconds")),
    )


def _was_limited(data: dict[str, Any]) -> bool:
    arguments = data.get("arguments")
    return isinstance(arguments, dict) and bool(arguments.get("max_validation_rows"))


def _from_facts(facts: CardFacts) -> Result:
    score = facts.scores[0] if facts.scores else None
    name = _text(facts.data.glue)
    task = name if name in TASKS else None
    figure = facts.main_figure or (TASKS[task].main_metric if task else None)
    if score is not None and figure not in score.figures:
        figure = next(iter(score.figures), None)
    return Result(
        task=task,
        method=facts.method,
        figure=figure,
        score=_number(score.figures.get(figure)) if score is not None and figure is not None else None,
        rows=_count(score.rows) if score is not None else None,
        train_rows=_count(facts.data.train_rows),
        trained_parameters=_count(facts.trained_parameters),
        total_parameters=_count(facts.total_parameters),
        train_seconds=_number(facts.cost.seconds),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
    return float(value) if good else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST else None
