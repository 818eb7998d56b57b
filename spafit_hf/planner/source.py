"""A model without weights, from whatever names it: Hub id, folder, config.json, config, or a model itself."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import TypeAlias

import torch
import transformers
from accelerate.utils import is_compiled_module
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from spafit_hf.hub import hub_is_away
from spafit_hf.names import resolve_base

ModelLike: TypeAlias = "str | os.PathLike[str] | PretrainedConfig | nn.Module"
"""A model as `plan` takes it: Hub id, folder, path of a config.json, config or model."""


def build_model(model: ModelLike, num_labels: int | None = None) -> nn.Module:
    """The model as a module without weights (meta device); a module is returned as it is.

    Args: as for `plan`.

    Raises:
        ValueError: when the config cannot be read or has no model class, `num_labels` contradicts a model, or parts of
            a model are compiled or in DataParallel.
    """
    if num_labels is not None and (not isinstance(num_labels, int) or isinstance(num_labels, bool) or num_labels < 1):
        raise ValueError(f"num_labels is {num_labels!r}; it must be a positive integer (1 for regression).")
    if isinstance(model, nn.Module):
        own = model.config.num_labels if isinstance(model, PreTrainedModel) else None
        if num_labels is not None and num_labels != own:
            raise ValueError(
                f"num_labels is {num_labels} but the model was built with {own}; "
                "leave num_labels out, or pass the model's config."
            )
        for name, module in model.named_modules():
            if is_compiled_module(module) or isinstance(module, nn.DataParallel):
                instead = "put the part itself in its place" if name else "give the model that is within"
                raise ValueError(
                    f"{name or 'the model'} is within {type(module).__name__}, and what trains there would have names "
                    f"that no other model knows: {instead}, and compile it there (its compile()) or give the trainer "
                    "torch_compile=True."
                )
        return model
    config = copy.deepcopy(model if isinstance(model, PretrainedConfig) else _read_config(model))
    if num_labels is not None:
        config.num_labels = num_labels
    try:
        with torch.device("meta"):
            return _from_config(config, num_labels)
    except _CONFIG_ERRORS as error:
        raise ValueError(
            f"the config of model type {config.model_type!r} makes no model: {_first_sentence(error)}"
        ) from error


# What transformers raises, beside ValueError, for a config with wrong values in it.
_CONFIG_ERRORS = (AssertionError, AttributeError, KeyError, TypeError, StrictDataclassError)

# Classes that are fine-tuned as they are; the masked language model that most encoders name is not among them.
_TASK_CLASS = re.compile(
    r"For(SequenceClassification|TokenClassification|ImageClassification|QuestionAnswering|MultipleChoice|CausalLM"
    r"|ConditionalGeneration)$|LMHeadModel$"
)
_LABELS_CLASS = re.compile(r"For(SequenceClassification|TokenClassification|ImageClassification)$")


def _from_config(config: PretrainedConfig, num_labels: int | None) -> nn.Module:
    wanted = _TASK_CLASS if num_labels is None else _LABELS_CLASS
    for name in config.architectures or ():
        kind = getattr(transformers, name, None) if wanted.search(name) else None
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel) and kind.config_class is type(config):
            return kind(config)
    if type(config) in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return transformers.AutoModelForSequenceClassification.from_config(config)
    if type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return transformers.AutoModelForImageClassification.from_config(config)
    if num_labels is not None:
        raise ValueError(
            f"model type {config.model_type!r} has no classification head in transformers {transformers.__version__}; "
            "leave num_labels out to plan for the model without one."
        )
    return AutoModel.from_config(config)


def _read_config(model: str | os.PathLike[str]) -> PretrainedConfig:
    """The config of a folder, a config.json or a Hub id."""
    if not isinstance(model, (str, os.PathLike)):
        raise ValueError(
            f"a model is {model!r}; it must be a Hub id, a folder, the path of a config.json, a config or a model."
        )
    name = resolve_base(model)
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        reason = (
            "it is an adapter; give its base model"
            if (path / "adapter_config.json").is_file()
            else "it has no config.json"
        )
        raise ValueError(f"{name}: not a model folder: {reason}.")
    if not path.exists() and (
        path.is_absolute() or name.startswith((".", "~")) or name.endswith(".json") or name.count("/") > 1
    ):
        raise ValueError(
            f"{name}: no such file or folder; check the path, or give a Hub id such as google-bert/bert-large-cased."
        )
    try:
        return AutoConfig.from_pretrained(name, local_files_only=hub_is_away(name))
    except OSError as error:
        if path.exists():
            raise ValueError(f"{name}: the config cannot be read: {_first_sentence(error)}") from error
        raise ValueError(
            f"{name}: the config could not be fetched from the Hub ({_first_sentence(error)}); check the name and the "
            "connection, or pass a folder with a config.json, or the path of one."
        ) from error
    except (ValueError, *_CONFIG_ERRORS) as error:
        raise ValueError(f"{name}: the config is not one transformers knows: {_first_sentence(error)}") from error


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") if lines else type(error).__name__
