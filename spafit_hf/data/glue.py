"""The nine GLUE tasks as data: columns, label names in id order, splits, figures, and the paper's scores.

Source: Wang et al. (2019), GLUE, arXiv:1804.07461; ids and splits as in `nyu-mll/glue` on the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spafit_hf.data.labels import Labelled
from spafit_hf.strategy.reading import closest
from spafit_hf.words import listed

DATASET_ID = "nyu-mll/glue"
"""The benchmark on the Hub; its configurations are the names of the tasks."""


@dataclass(frozen=True)
class GlueTask(Labelled):
    """One task of the benchmark.

    Attributes:
        name: as on the Hub (the configuration of `nyu-mll/glue`).
        title: as in the GLUE paper's tables.
        description: what is decided, for a reader of a card.
        domain: where the texts are from (GLUE paper, Table 1).
        license: of the data as GLUE or the data's own paper states it; "not stated" where neither does.
        columns: the text column, or the two of a pair.
        labels: names in id order; empty for regression.
        rows: official number of rows of train and of each validation split, the one to select on first.
        metrics: the figures evaluate's GLUE metric gives, the main one first.
        symmetric: whether the label of a pair is the same with its texts swapped.
    """

    name: str
    title: str
    description: str
    domain: str
    license: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    rows: Mapping[str, int]
    metrics: tuple[str, ...]
    symmetric: bool = False

    @property
    def main_metric(self) -> str:
        """The figure of the paper's Table 2, and the one to choose a model by."""
        return self.metrics[0]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits with labels: train and validation."""
        return tuple(self.rows)

    @property
    def validation(self) -> tuple[str, ...]:
        """The validation splits, the one to select on first."""
        return self.splits[1:]


TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            name="cola", title="CoLA", description="whether an English sentence is grammatical",
            domain="examples from the linguistics literature", license="CC0", columns=("sentence",),
            labels=("unacceptable", "acceptable"), rows={"train": 8551, "validation": 1043},
            metrics=("matthews_correlation",),
        ),
        GlueTask(
            name="sst2", title="SST-2", description="whether a movie-review phrase is positive",
            domain="movie reviews", license="MIT", columns=("sentence",), labels=("negative", "positive"),
            rows={"train": 67349, "validation": 872}, metrics=("accuracy",),
        ),
        GlueTask(
            name="mrpc", title="MRPC", description="whether two sentences say the same", domain="news",
            license="Microsoft Shared Source", columns=("sentence1", "sentence2"),
            labels=("not_equivalent", "equivalent"), rows={"train": 3668, "validation": 408},
            metrics=("f1", "accuracy"), symmetric=True,
        ),
        GlueTask(
            name="stsb", title="STS-B", description="how similar two sentences are in meaning, from 0 to 5",
            domain="news, captions and forums", license="not stated", columns=("sentence1", "sentence2"), labels=(),
            rows={"train": 5749, "validation": 1500}, metrics=("pearson", "spearmanr"), symmetric=True,
        ),
        GlueTask(
            name="qqp", title="QQP", description="whether two questions ask the same", domain="questions from Quora",
            license="Quora's own, non-commercial", columns=("question1", "question2"),
            labels=("not_duplicate", "duplicate"), rows={"train": 363846, "validation": 40430},
            metrics=("accuracy", "f1"), symmetric=True,
        ),
        GlueTask(
            name="mnli", title="MNLI", description="whether a premise entails a hypothesis, contradicts it or neither",
            domain="ten genres of written and spoken English", license="OANC, CC BY-SA 3.0 and others, by genre",
            columns=("premise", "hypothesis"), labels=("entailment", "neutral", "contradiction"),
            rows={"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832}, metrics=("accuracy",),
        ),
        GlueTask(
            name="qnli", title="QNLI", description="whether a sentence holds the answer to a question",
            domain="Wikipedia", license="CC BY-SA 4.0", columns=("question", "sentence"),
            labels=("entailment", "not_entailment"), rows={"train": 104743, "validation": 5463}, metrics=("accuracy",),
        ),
        GlueTask(
            name="rte", title="RTE", description="whether one text entails another", domain="news and Wikipedia",
            license="CC BY 4.0", columns=("sentence1", "sentence2"), labels=("entailment", "not_entailment"),
            rows={"train": 2490, "validation": 277}, metrics=("accuracy",),
        ),
        GlueTask(
            name="wnli", title="WNLI",
            description="whether a sentence with its pronoun resolved follows from the original", domain="fiction",
            license="CC BY 4.0", columns=("sentence1", "sentence2"), labels=("not_entailment", "entailment"),
            rows={"train": 635, "validation": 71}, metrics=("accuracy",),
        ),
    )
}  # fmt: skip
"""The nine tasks by name, in the order of the GLUE paper's Table 1."""

_TABLE_2_TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
_TABLE_2 = {
    "full": (0.67, 0.87, 0.91, 0.93, 0.89, 0.76, 0.95, 0.90, 0.56),
    "bitfit": (0.57, 0.82, 0.83, 0.88, 0.89, 0.61, 0.92, 0.87, 0.56),
    "lora-I": (0.64, 0.86, 0.91, 0.92, 0.90, 0.72, 0.93, 0.88, 0.56),
    "lora-II": (0.61, 0.86, 0.92, 0.92, 0.90, 0.71, 0.93, 0.90, 0.56),
    "spafit-8-12-I": (0.62, 0.86, 0.92, 0.92, 0.90, 0.73, 0.93, 0.90, 0.56),
    "spafit-8-12-II": (0.63, 0.86, 0.92, 0.93, 0.90, 0.74, 0.93, 0.90, 0.56),
    "spafit-8-16-II": (0.62, 0.86, 0.91, 0.93, 0.90, 0.73, 0.93, 0.90, 0.56),
    "spafit-4-9-I": (0.64, 0.86, 0.92, 0.92, 0.91, 0.74, 0.93, 0.91, 0.56),
    "spafit-4-9-II": (0.64, 0.87, 0.92, 0.92, 0.91, 0.76, 0.93, 0.90, 0.56),
    "spafit-4-14-II": (0.63, 0.86, 0.92, 0.92, 0.90, 0.73, 0.93, 0.90, 0.56),
}

PAPER_SCORES: dict[str, dict[str, float]] = {
    task: {method: row[column] for method, row in _TABLE_2.items()} for column, task in enumerate(_TABLE_2_TASKS)
}
"""Table 2 of Arora and Wang (2024), arXiv:2405.00201: task -> method -> the task's main metric. BERT-large-cased, the
best of the authors' runs on the validation set (mnli: matched); no seeds and no spread are given."""


def get_task(task: str | GlueTask) -> GlueTask:
    """The task of that name, whatever its case and hyphens ("SST-2" is sst2).

    Raises:
        ValueError: no such task, with the nearest name and all names.
    """
    if isinstance(task, GlueTask):
        return task
    name = task.strip().lower().replace("-", "").replace("_", "")
    if name not in TASKS:
        raise ValueError(f"'{task}' is not a GLUE task{closest(name, TASKS)} The tasks are {listed(TASKS)}.")
    return TASKS[name]


def columns_of(task: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns of the texts of a row, one or two, as an adapter's facts, or the task they name, say; else ()."""
    columns, name = task.get("columns"), task.get("name")
    if isinstance(columns, (list, tuple)) and len(columns) in (1, 2) and all(isinstance(one, str) for one in columns):
        return tuple(columns)
    return TASKS[name].columns if isinstance(name, str) and name in TASKS else ()


def texts_of(task: Mapping[str, Any]) -> int | None:
    """How many texts a row has, from an adapter's facts; None where they do not say."""
    return len(columns_of(task)) or None
