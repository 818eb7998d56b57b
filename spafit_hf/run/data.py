"""The text of a run: from what the command line names to rows with the figures that count on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from datasets import DatasetDict
from transformers import EvalPrediction

from spafit_hf.data import TextData, carve_validation, compute_figures, default_figures, load_text_data
from spafit_hf.data.generation import load_generation_data
from spafit_hf.data.glue import DATASET_ID, TASKS, get_task
from spafit_hf.data.glue_metric import compute_metrics_for
from spafit_hf.data.glue_rows import load_task
from spafit_hf.data.reviews import LABELS, MOVIE_REVIEWS, TEXT, load_movie_reviews
from spafit_hf.data.rouge import ROUGE
from spafit_hf.data.text_data import Splits
from spafit_hf.trainer.arguments import option
from spafit_hf.trainer.facts import data_of
from spafit_hf.words import SpafitError, listing

GENERATION = {"summarization": ROUGE, "causal-lm": ("perplexity",)}
"""Tasks of text that is written, and the figures that count."""
MAX_LENGTH, MAX_TARGET_LENGTH = 128, 64
"""Tokens of a text or pair, and of a text to be written, where no number is given."""
_GLUE, _REVIEWS = "a --task of GLUE", f"--dataset {MOVIE_REVIEWS}"
_ROWS, _HUB = "labelled rows of --dataset or --train_file", "a --dataset on the Hub"
_SUMMARIES, _CONTINUATIONS = (f"--task {task}" for task in GENERATION)
READERS = {
    "data_dir": (_GLUE,),
    "dataset_config": (_HUB,),
    "text_columns": (_ROWS, _SUMMARIES, _CONTINUATIONS),
    "label_column": (_ROWS, _SUMMARIES),
    "labels": (_ROWS,),
    "regression": (_ROWS,),
    "both_orders": (_GLUE, _REVIEWS, _ROWS),
    "max_target_length": (_SUMMARIES,),
}
"""Flag -> the kinds of data that read it; for the others it would change nothing. What is not here, all read."""
LESS_IS_BETTER = ("loss", "mse", "perplexity")
"""Beginnings of the names of figures that get better as they fall."""

AnyText = TypeVar("AnyText", bound=Splits)


@dataclass
class DataArguments:
    """Which labelled text: a GLUE task, a dataset on the Hub, or files."""

    task: str = option(
        "",
        "A GLUE task: cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb or wnli. Or what is learned from "
        "--dataset or --train_file in place of labels: summarization (to write one text of another) or causal-lm "
        "(to go on with a text).",
    )
    data_dir: str = option("", "Folder with <task>/train.parquet; without it the task is loaded from the Hub.")
    dataset: str = option("", "A dataset on the Hub, a folder or a file; or movie-reviews, which needs no Hub.")
    dataset_config: str = option("", "Configuration of the dataset on the Hub.")
    train_file: str = option("", "CSV, TSV, JSON, JSONL, parquet or text file to train on.")
    validation_file: str = option("", "The same, to measure on.")
    text_columns: str = option("", "The text column, or two of them: premise,hypothesis.")
    label_column: str = option("", "The label column; for summarization that of the summaries.")
    labels: str = option("", "Names of the classes in the order of their ids: negative,positive.")
    regression: bool | None = option(
        None, "Whether the label is a number to predict; by default where one of them is not whole."
    )
    max_length: int = option(MAX_LENGTH, "Tokens per text or pair; longer ones lose their end.")
    max_target_length: int = option(0, "Tokens of a text to be written, for summarization. 0: 64.")
    both_orders: bool = option(
        False,
        "Train on each pair a second time with its texts swapped, where the label stays the same: "
        "paraphrases, similarity.",
    )
    max_train_rows: int = option(0, "Train on so many rows, chosen at random. 0: all.")
    max_validation_rows: int = option(0, "Measure on so many rows, chosen at random. 0: all.")


@dataclass(frozen=True)
class RunData:
    """Text with the figures that count on it."""

    text: Splits
    title: str
    """What tables call it, such as "GLUE MRPC"."""
    figures: tuple[str, ...]
    """Names of the figures, the main one first."""
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None
    """None where the figures need the tokenizer, which decodes what is written."""
    task: str = ""
    """The GLUE task, if it is one, or one of `GENERATION`."""
    turned_rows: int = 0
    """Training rows that are others with their texts swapped."""
    spreads: tuple[str, ...] = ()
    """Names of how sure the figures are."""
    max_target_length: int = 0
    """Tokens of a text to be written; 0 for `MAX_TARGET_LENGTH`."""

    @property
    def train_rows(self) -> int:
        """Training rows of the data themselves."""
        return int(self.text.splits["train"].num_rows) - self.turned_rows

    @property
    def main_figure(self) -> str:
        """The figure that runs are compared and checkpoints chosen by."""
        return self.figures[0]

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of all that an evaluation gives, and that a checkpoint may be chosen by."""
        return (*self.figures, *self.spreads, "loss")

    @property
    def labelled(self) -> TextData:
        """The text of a task that has labels.

        Raises:
            SpafitError: where text is written in their place.
        """
        if not isinstance(self.text, TextData):
            raise SpafitError(
                f"{self.title} has no labels, which this needs; take a task of GLUE, or rows with labels."
            )
        return self.text


def greater_is_better(figure: str) -> bool:
    """Whether more of a figure, named with or without Trainer's "eval_", is better."""
    return not figure.removeprefix("eval_").startswith(LESS_IS_BETTER)


def load_data(arguments: DataArguments, *, need_train: bool = True) -> RunData:
    """Load what the arguments name.

    Raises:
        ValueError: when they name nothing, or two things, or what they name cannot be loaded, or say something that
            such data do not read.
    """
    for name in ("max_train_rows", "max_validation_rows", "max_target_length"):
        if (count := getattr(arguments, name)) < 0:
            default = MAX_TARGET_LENGTH if name == "max_target_length" else "all"
            raise ValueError(f"--{name} is {count}; it must be 1 or more, or 0 for {default}.")
    generation = arguments.task in GENERATION
    file = "--train_file" if need_train else "--validation_file"
    sources = {
        "--task": "" if generation else arguments.task,
        "--dataset": arguments.dataset,
        file: arguments.train_file or arguments.validation_file,
    }
    named = [flag for flag, value in sources.items() if value]
    if len(named) != 1:
        found = " and ".join(named) or "none of them"
        also = "" if generation else "--task, "
        raise ValueError(f"name one source of data: {also}--dataset, or {file}; found {found}.")
    _refuse_unread(arguments)
    if generation:
        data = _generation(arguments, need_train)
    elif arguments.task:
        task = get_task(arguments.task)
        splits = load_task(task, arguments.data_dir or None)
        text = TextData(splits, task.columns, arguments.data_dir or DATASET_ID, labels=task.labels)
        data = RunData(text, f"GLUE {task.title}", task.metrics, compute_metrics_for(task), task.name)
    elif arguments.dataset == MOVIE_REVIEWS:
        rows = load_movie_reviews(max_train=arguments.max_train_rows or None).select_columns([TEXT, "label"])
        text = TextData(rows, (TEXT,), MOVIE_REVIEWS, labels=LABELS)
        data = RunData(text, "movie reviews", ("accuracy",), compute_figures(("accuracy",)))
    else:
        labels = [name.strip() for name in arguments.labels.split(",")] if arguments.labels else None
        text = load_text_data(
            **_rows_named(arguments), labels=labels, regression=arguments.regression, need_train=need_train
        )
        figures = default_figures(text.num_labels)
        data = RunData(text, text.source, figures, compute_figures(figures))
    if arguments.both_orders:
        _check_orders(data)
    return _limited(data, arguments)


def _refuse_unread(arguments: DataArguments) -> None:
    task, dataset = arguments.task, arguments.dataset
    kind = f"--task {task}" if task in GENERATION else _GLUE if task else _ROWS
    if dataset == MOVIE_REVIEWS and not task:
        kind = _REVIEWS
    here = dataset == MOVIE_REVIEWS or Path(dataset).expanduser().exists()
    kinds = {kind, _HUB} if dataset and not here else {kind}
    for flag, readers in READERS.items():
        if getattr(arguments, flag) != getattr(DataArguments, flag) and kinds.isdisjoint(readers):
            given = {"--task": task, "--dataset": dataset, "--train_file": arguments.train_file}
            found = [f"{name} {value}" for name, value in given.items() if value] or ["--validation_file"]
            raise ValueError(
                f"--{flag} is for {listing(readers, 'or')}, and not for {' with '.join(found)}; leave it out."
            )


def _rows_named(arguments: DataArguments) -> dict[str, Any]:
    """Where a user's own rows are and which columns count, as the loaders take it: what is left open is None."""
    given = {
        "source": arguments.dataset,
        "train_file": arguments.train_file,
        "validation_file": arguments.validation_file,
        "config_name": arguments.dataset_config,
        "text_columns": arguments.text_columns,
        "label_column": arguments.label_column,
    }
    return {name: value or None for name, value in given.items()}


def _generation(arguments: DataArguments, need_train: bool) -> RunData:
    with_targets = arguments.task == "summarization"
    text = load_generation_data(**_rows_named(arguments), with_targets=with_targets, need_train=need_train)
    figures = GENERATION[arguments.task]
    spreads = tuple(name + end for name in figures for end in (("_ci_low", "_ci_high") if with_targets else ("_se",)))
    return RunData(
        text,
        text.source,
        figures,
        task=arguments.task,
        spreads=spreads,
        max_target_length=arguments.max_target_length,
    )


def hold_out(data: RunData, rows: int, max_train_rows: int = 0) -> RunData:
    """Take train rows out as a split "selection", which is no validation split, and keep so many of the others.

    Args:
        data: with all of its train rows.
        rows: to hold out, at most a tenth of those that are wanted; 0 for no such split.
        max_train_rows: of the others, chosen at random; 0 for all.
    """
    train = data.text.splits["train"]
    rows = min(rows, (min(max_train_rows, train.num_rows) or train.num_rows) // 10)
    parts = carve_validation(train, data.text.columns, rows=rows) if rows else {"train": train}
    held = {"selection": parts["validation"]} if rows else {}
    text = replace(data.text, splits=DatasetDict({**data.text.splits, "train": parts["train"], **held}))
    return replace(data, text=_cut(text, {"train": max_train_rows}))


def _check_orders(data: RunData) -> None:
    if len(data.text.columns) != 2:
        raise ValueError(f"--both_orders is for pairs, and a row of {data.title} is one text; leave it out.")
    task = data.task or data_of(data.text.splits["train"]).glue  # the same rows may be named as a dataset
    if task and not get_task(task).symmetric:
        symmetric = ", ".join(task.name for task in TASKS.values() if task.symmetric)
        raise ValueError(
            f"--both_orders would give {data.title} wrong labels: they say something of the first text against the "
            f"second. It is for {symmetric} and for pairs of your own; leave it out."
        )


def _limited(data: RunData, arguments: DataArguments) -> RunData:
    text = _cut(data.text, {"train": arguments.max_train_rows})
    # Before rows of the other splits are left out: their pairs are not trained on, measured or not.
    both = text.in_both_orders() if arguments.both_orders and isinstance(text, TextData) else text
    turned = both.splits["train"].num_rows - text.splits["train"].num_rows if arguments.both_orders else 0
    cut = _cut(both, dict.fromkeys(both.evaluation_splits, arguments.max_validation_rows))
    return replace(data, text=cut, turned_rows=turned)


def _cut(text: AnyText, limits: Mapping[str, int]) -> AnyText:
    splits = {
        # a choice at random: files are often sorted by label
        name: split.shuffle(seed=0).select(range(limits[name])) if 0 < limits.get(name, 0) < split.num_rows else split
        for name, split in text.splits.items()
    }
    return replace(text, splits=DatasetDict(splits))
