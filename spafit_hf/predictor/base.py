"""The base that adapters are served on: loaded or given, with its tokenizer and the length that it reads."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from spafit_hf.adapter.tokenizer import base_tokenizer
from spafit_hf.architecture.new import loading_quietly
from spafit_hf.architecture.positions import positions_of
from spafit_hf.hub import hub_is_away
from spafit_hf.names import resolve_base
from spafit_hf.tuner import task_type_of
from spafit_hf.words import first_line

logger = logging.getLogger(__name__)

MAX_LENGTH = 512
"""Tokens per text, where neither base nor caller ask for fewer: some decoders would read a whole book."""


@dataclass(frozen=True)
class Base:
    """A base, ready to serve."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    untrained: frozenset[str]
    """Parameters that its checkpoint had no values for: those of a new head."""


def load_base(
    base: PreTrainedModel | str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    device: str | torch.device | None,
    token: str | bool | None,
) -> Base:
    """A base from its name, or the model itself, which is put into eval mode; arguments as in `SpafitPredictor`."""
    if isinstance(base, nn.Module):
        model = extract_model_from_parallel(base, keep_torch_compile=False)
        _check_model(model)
        if revision is not None or device is not None:
            raise ValueError("revision and device are for a base by name; load or move the model before you give it.")
        name = model.config._name_or_path
        found = tokenizer or (base_tokenizer(resolve_base(name), token=token) if name else None)
        return Base(model.eval(), found, frozenset())
    name = os.fspath(base)
    source = resolve_base(name)
    where: dict[str, Any] = {"revision": revision, "token": token, "local_files_only": hub_is_away(source)}
    try:
        with loading_quietly():  # it warns of the new head, which no adapter uses
            model, report = AutoModelForSequenceClassification.from_pretrained(
                source,
                **where,
                adapter_kwargs={"local_files_only": where["local_files_only"]},
                output_loading_info=True,
                trust_remote_code=False,
            )
    except Exception as error:  # on broken files transformers raises whatever it stumbles over
        raise ValueError(f"the base {name!r} cannot be loaded: {first_line(error)}") from error
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Base(model.eval(), tokenizer or base_tokenizer(source, **where), frozenset(report["missing_keys"]))


def _check_model(model: nn.Module) -> None:
    if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "the base has adapters on it already; give the plain model (model.unload() of a PeftModel gives it back) "
            "and add the adapters from their folders."
        )
    if not isinstance(model, PreTrainedModel) or task_type_of(model) != "SEQ_CLS":
        raise ValueError(
            f"the base is a {type(model).__name__}; a predictor serves models for text classification, such as "
            "AutoModelForSequenceClassification.from_pretrained(...)."
        )


def longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    """Tokens per text: what is asked for, or what base and tokenizer allow up to `MAX_LENGTH`; a ValueError for too
    few."""
    most: Any = tokenizer.model_max_length  # from a file, and of any type
    if isinstance(most, bool) or not isinstance(most, (int, float)) or not most >= 1:
        raise ValueError(
            f"its model_max_length is {most!r:.40}; it must be a number of at least 1: correct it in "
            "tokenizer_config.json."
        )
    positions = positions_of(model)
    limits = [MAX_LENGTH if wanted is None else wanted, most, *([] if positions is None else [positions])]
    limit = int(min(limits))
    needed = tokenizer.num_special_tokens_to_add(pair=True) + 2
    if limit < needed:
        if wanted is not None and wanted < needed:
            fix = "give a max_length of that at least"
        elif most < needed:
            fix = "raise model_max_length in tokenizer_config.json"
        else:
            fix = "take another base"
        raise ValueError(
            f"texts would be cut to {limit} tokens, and at least {needed} are needed: {needed - 2} special ones and "
            f"one for each text of a pair; {fix}."
        )
    return limit
