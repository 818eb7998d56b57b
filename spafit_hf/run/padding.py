"""Whether a model's answers depend on the padding beside a row."""

from __future__ import annotations

import logging

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from spafit_hf.shortcuts.probe import difference, evaluating, tolerance
from spafit_hf.trainer.sampler import example_lengths

logger = logging.getLogger(__name__)


def warn_of_padding(model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> None:
    """Warn where a short row gets other logits beside a long one than alone: GPT-2 padded on the left, for instance.

    Its figures are then those of the batches that it was measured in; a predictor pads no row so.

    Args:
        model: on its device.
        tokenizer: which pads the batches.
        rows: as tokens.
    """
    lengths = example_lengths(rows, tokenizer, "length")
    assert lengths is not None  # as they are tokens
    names = [name for name in tokenizer.model_input_names if name in rows.column_names]
    device = next(model.parameters()).device

    def logits(*places: int) -> torch.Tensor:
        batch = tokenizer.pad([{name: rows[place][name] for name in names} for place in places], return_tensors="pt")
        with evaluating(model), torch.no_grad():
            return model(**batch.to(device)).logits[0]

    shortest = lengths.index(min(lengths))
    alone = logits(shortest)
    beside = logits(shortest, lengths.index(max(lengths)))
    found = difference({"": alone}, {"": beside}, max(1.0, float(alone.abs().max())))
    if found.relative > tolerance(alone.dtype, device):
        logger.warning(
            "Padding on the %s changes a row's logits, by %.2g for one: these figures depend on what stands beside "
            "it, and SpafitPredictor gives others. Set the other padding_side in tokenizer_config.json, and train so.",
            tokenizer.padding_side,
            found.by,
        )
