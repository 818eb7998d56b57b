"""Texts or pairs of them into classes or numbers: a model with a head, and the figures of the data."""

from __future__ import annotations

import shlex
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, PreTrainedTokenizerBase

from spafit_hf.data import TextData, tokenize
from spafit_hf.run.base import BaseArguments, load_pretrained
from spafit_hf.run.data import RunData
from spafit_hf.run.padding import warn_of_padding
from spafit_hf.run.task import Task
from spafit_hf.trainer import SpafitTrainer


def load_classifier(base: BaseArguments, text: TextData) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The pretrained model with a head for the text's labels, and its tokenizer.

    A head that the base brings along stays where it has as many outputs; another is replaced by a new one.

    Raises:
        ValueError: when the base cannot be loaded.
    """
    names = dict(enumerate(text.labels)) or {0: "score"}

    def load(name: str, **where: Any) -> tuple[Any, dict[str, Any]]:
        return AutoModelForSequenceClassification.from_pretrained(
            name,
            **where,
            adapter_kwargs={"local_files_only": where["local_files_only"]},
            id2label=names,
            label2id={label: index for index, label in names.items()},
            problem_type=text.problem_type,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )

    return load_pretrained(base, load)


def _check_labels(model: Any, data: RunData) -> None:
    model_labels = [model.config.id2label[index] for index in range(len(model.config.id2label))]
    labels = data.labelled.labels
    if labels and model_labels != list(labels):
        said = "measure it on the task that it was trained for"
        names = f"--labels {','.join(map(shlex.quote, model_labels))}"
        if not data.task and set(labels) <= set(model_labels):  # other rows may lack a class
            said = f"name them as the model does: {names}"
        elif not data.task and set(labels) <= set(map(str, range(len(model_labels)))):
            said = f"if these are the ids of the model's, name those: {names}"
        if len(model_labels) == 1 and all(label.isdecimal() for label in labels):
            said = "if these are numbers to predict, say so: --regression true"
        raise ValueError(f"the model's labels are {model_labels}, those of {data.title} are {list(labels)}; {said}.")
    if not labels and len(model_labels) != 1:
        raise ValueError(f"{data.title} asks for one number, and the model has the labels {model_labels}.")


CLASSIFICATION = Task(
    auto=AutoModelForSequenceClassification,
    trainer=SpafitTrainer,
    load=lambda base, data: load_classifier(base, data.labelled),
    check=_check_labels,
    tokens=lambda splits, tokenizer, data, length: tokenize(splits, tokenizer, data.text.columns, max_length=length),
    parts=lambda model, tokenizer, data, args: {
        "data_collator": DataCollatorWithPadding(tokenizer),
        "compute_metrics": data.compute_metrics,
    },
    warn=warn_of_padding,
)
