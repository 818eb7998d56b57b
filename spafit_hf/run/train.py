"""One run, from names to a folder: data and base are loaded, a strategy is trained, measured and saved.

    DataArguments -> RunData ---+
    base ----------> model -----+--> SpafitTrainer --> output_dir: adapter (or model), tokenizer, results.json
    strategy -------------------+

`spafit train`, `spafit evaluate` and `spafit quickstart` are this, called from the command line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback

from spafit_hf.card import Score, glue_data
from spafit_hf.data import jsonable
from spafit_hf.data.glue import TASKS
from spafit_hf.names import BASE_LICENSE, CONFIG_FILE, published_base, resolve_base
from spafit_hf.run import generation
from spafit_hf.run.base import BaseArguments, load_trained, texts_in
from spafit_hf.run.classification import CLASSIFICATION
from spafit_hf.run.data import MAX_LENGTH, RunData
from spafit_hf.run.result import RunResult
from spafit_hf.run.task import Task
from spafit_hf.trainer import SpafitSeq2SeqTrainer, SpafitTrainer
from spafit_hf.trainer.arguments import SpafitSeq2SeqTrainingArguments, SpafitTrainingArguments
from spafit_hf.trainer.machine import machine, versions
from spafit_hf.trainer.wrapping import has_adapter
from spafit_hf.words import listed

Arguments = SpafitTrainingArguments | SpafitSeq2SeqTrainingArguments
"""The second for summarization."""
AnyTrainer = SpafitTrainer | SpafitSeq2SeqTrainer


def task_of(data: RunData) -> Task:
    """What the task of the data brings to a run."""
    return generation.TASKS.get(data.task, CLASSIFICATION)


def train(
    data: RunData,
    base: BaseArguments,
    args: Arguments,
    recorded: dict[str, Any],
    command: str | None = None,
    when_ready: Callable[[AnyTrainer], None] | None = None,
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
    max_length = recorded.get("max_length", MAX_LENGTH)
    trainer, splits = prepare(data, base, args, ("train", *names), max_length)
    _refuse_other_kind(trainer, Path(str(args.output_dir)))
    _describe(trainer, data, base, max_length, command)
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
    data: RunData, base: BaseArguments, args: Arguments, names: Sequence[str], max_length: int = MAX_LENGTH
) -> tuple[AnyTrainer, DatasetDict]:
    """What `train` trains with: the trainer of a fresh model, and the named splits as tokens.

    Args: as for `train`; `max_length` is the tokens per text or pair.

    Returns:
        The trainer, whose `eval_dataset` is the first evaluation split, and the splits.
    """
    generation.check_flags(data, args)
    _check_figure(data, args)
    torch.manual_seed(args.seed)  # of the new head; the trainer seeds everything after it
    model, tokenizer = task_of(data).load(base, data)
    return _make_trainer(model, tokenizer, data, names, args, max_length)


def _refuse_other_kind(trainer: AnyTrainer, folder: Path) -> None:
    """Raise a ValueError for a folder with an adapter where a model is to be written, and the other way round: whoever
    reads it finds the adapter, be it the older one."""
    kinds = {"an adapter": [folder / CONFIG_FILE], "a whole model": sorted(folder.glob("model*.safetensors"))}
    kind = "an adapter" if has_adapter(trainer.model) else "a whole model"
    (other,) = kinds.keys() - {kind}
    found = [file.name for file in kinds[other] if file.exists()]
    if found:
        raise ValueError(
            f"{folder} holds {other} of another run ({found[0]}), and this one writes {kind}; take another "
            "--output_dir, or remove that one."
        )


def _check_figure(data: RunData, args: Arguments) -> None:
    figure = args.metric_for_best_model
    if figure is not None and figure.removeprefix("eval_") not in data.measured:
        raise ValueError(
            f"--metric_for_best_model is {figure!r}, which is not measured on {data.title}; allowed are "
            f"{listed(data.measured)}."
        )


def parameters_of(trainer: AnyTrainer) -> tuple[int, int]:
    """Values that train, and those of the model before it was adapted."""
    parameters = list(trainer.model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return trained, trainer.plan.total_parameters if trainer.plan else sum(p.numel() for p in parameters)


def _make_trainer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    data: RunData,
    names: Sequence[str],
    args: Arguments,
    max_length: int,
    **others: Any,
) -> tuple[AnyTrainer, DatasetDict]:
    """The trainer, and the named splits as tokens; the first to measure on is its `eval_dataset`."""
    text = DatasetDict({name: data.text.splits[name] for name in names})
    task = task_of(data)
    splits = task.tokens(text, tokenizer, data, max_length)
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False  # there is nothing to copy to, and torch warns of it in each pass
    trainer = task.trainer(
        model,
        args,
        train_dataset=splits.get("train"),
        eval_dataset=splits[data.text.evaluation_splits[0]],
        processing_class=tokenizer,
        **task.parts(model, tokenizer, data, args),
        **others,
    )
    return trainer, splits


def _describe(trainer: AnyTrainer, data: RunData, base: BaseArguments, max_length: int, command: str | None) -> None:
    """Give the card what the trainer can't know."""
    trainer.task = {**({"name": data.task} if data.task else {}), "columns": list(data.text.columns)}
    known = task_of(data).facts(trainer.model, data)
    if resolve_base(base.base) != base.base:
        known["base"] = {
            "id": published_base(base.base),
            "name": None,
            "license": BASE_LICENSE,
            **known.get("base", {}),
        }
    trainer.describe(command=command, **known)
    if data.task in TASKS:
        glue = glue_data(data.task, max_length=max_length)
        glue = replace(glue, train_rows=data.train_rows, turned_rows=data.turned_rows or None)
        trainer.describe(data=glue, main_figure=data.main_figure)
    else:
        turned = {"train_rows": data.train_rows, "turned_rows": data.turned_rows} if data.turned_rows else {}
        cut = {"max_length": max_length, "max_target_length": data.max_target_length or None}
        trainer.describe(data={**cut, **turned})


def _last_evaluation(trainer: AnyTrainer) -> dict[str, float] | None:
    """What the training measured of the model that it ended with, the best one or the last; None if nothing."""
    state = trainer.state
    step = state.best_global_step if trainer.args.load_best_model_at_end else state.global_step
    return next((entry for entry in state.log_history if "eval_loss" in entry and entry["step"] == step), None)


def evaluate(
    data: RunData, base: str | None, folder: str, args: Arguments, max_length: int = MAX_LENGTH
) -> dict[str, dict[str, float | None]]:
    """Measure a folder: an adapter, or a plain fine-tuned model.

    Args:
        data: what to measure on.
        base: the base of the adapter; None for the one it names.
        folder: adapter folder, adapter repository, or folder of a plain model.
        args: batch size and the like.
        max_length: tokens per text or pair (`trained_on` tells those of the training).

    Returns:
        Evaluation split -> figure -> value.

    Raises:
        ValueError: when the folder cannot be loaded, is of another task, or its labels are not those of the data.
    """
    generation.check_flags(data, args)
    task = task_of(data)
    model, tokenizer = load_trained(base, folder, task.auto)
    task.check(model, data)
    texts, columns = texts_in(folder), data.text.columns
    if texts not in (None, len(columns)):
        kind, example = ("pairs", "first,second") if texts == 2 else ("single texts", "text")
        raise ValueError(
            f"{folder} was trained on {kind}, and of {data.title} is read: {listed(columns)}; measure on {kind}, as "
            f"in --text_columns {example}."
        )
    names = data.text.evaluation_splits
    strategy = None if has_adapter(model) else "full"  # nothing is trained: a plain model stays plain
    trainer, splits = _make_trainer(model, tokenizer, data, names, args, max_length, strategy=strategy)
    trainer.remove_callback(PrinterCallback)  # the caller prints the figures, and prints them once
    if task.warn is not None:
        for split in splits.values():
            task.warn(trainer.model, tokenizer, split)
    return {name: _figures(trainer.evaluate(split), data) for name, split in splits.items()}


def _figures(metrics: dict[str, float], data: RunData) -> dict[str, float | None]:
    names = (*data.figures, *data.spreads)
    return jsonable({name: metrics[f"eval_{name}"] for name in names} | {"loss": metrics["eval_loss"]})
