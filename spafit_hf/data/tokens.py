"""Text columns -> token columns, unpadded, with the length that Trainer groups by."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spafit_hf.data.labels import LABEL
from spafit_hf.data.table import require_columns

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def tokenize(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, columns: Sequence[str], *, max_length: int = 128
) -> DatasetDict:
    """Tokenize one text column, or the two of a pair, without padding (the collator pads each batch).

    Args:
        splits: string `columns`, and `label` where there is one; other columns are dropped.
        tokenizer: of the base.
        columns: one column, or two.
        max_length: tokens per row, special tokens included; longer rows lose their end (pairs: the end of the longer
            text first), and how many did is logged. The tokenizer's own limit applies too.

    Returns:
        The splits with the tokenizer's columns (1-D int64, one value per token), `label`, and `length` (tokens, int),
        which Trainer reads for `train_sampling_strategy="group_by_length"` and drops before the collator, unless
        `remove_unused_columns=False`.
    """
    limit = min(max_length, tokenizer.model_max_length)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        # padding=False also overrides a padding length that tokenizer.json may bring along
        encoded = tokenizer(*(batch[column] for column in columns), truncation=True, max_length=limit, padding=False)
        tokens = encoded["input_ids"]
        if encoded.encodings is None:  # a tokenizer in Python keeps no trace of what it cut off
            cut = [len(row) == limit for row in tokens]
        else:
            cut = [bool(row.overflowing) for row in encoded.encodings]
        return {**encoded, "length": [len(row) for row in tokens], "cut": cut}

    from datasets import DatasetDict

    tokenized = {}
    for name, split in splits.items():
        require_columns(split, columns, f"The {name} split")
        dropped = [column for column in split.column_names if column != LABEL]
        encoded = split.map(encode, batched=True, remove_columns=dropped, desc=f"Tokenizing {name}")
        cut = sum(encoded["cut"])
        if cut:
            logger.warning(
                "%s: %d of %d rows are longer than %d tokens and lose their end; raise max_length to keep it.",
                name, cut, split.num_rows, limit,
            )  # fmt: skip
        tokenized[name] = encoded.remove_columns("cut")
    return DatasetDict(tokenized)
