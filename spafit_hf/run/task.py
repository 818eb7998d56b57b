"""What a task brings of its own to a run; everything else is the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from spafit_hf.run.base import BaseArguments
from spafit_hf.run.data import RunData
from spafit_hf.trainer import SpafitSeq2SeqTrainer, SpafitTrainer


@dataclass(frozen=True)
class Task:
    """One kind of task."""

    auto: Any
    """The class of transformers that loads a model fine-tuned whole."""
    trainer: type[SpafitTrainer] | type[SpafitSeq2SeqTrainer]
    load: Callable[[BaseArguments, RunData], tuple[Any, PreTrainedTokenizerBase]]
    """A base and its tokenizer."""
    check: Callable[[Any, RunData], None]
    """Raises a ValueError for a trained model that is of another task than the data."""
    tokens: Callable[[DatasetDict, PreTrainedTokenizerBase, RunData, int], DatasetDict]
    """The splits as tokens; a text has at most so many."""
    parts: Callable[[Any, PreTrainedTokenizerBase, RunData, TrainingArguments], dict[str, Any]]
    """Arguments of the trainer: collator, figures."""
    facts: Callable[[Any, RunData], dict[str, Any]] = lambda model, data: {}
    """What the card is told of the model."""
    warn: Callable[[nn.Module, PreTrainedTokenizerBase, Dataset], None] | None = None
    """A look at the rows of a split before they are measured."""
