"""Text columns -> token columns, unpadded, with the length that Trainer groups by."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spafit_hf.data.labels import LABEL
from spafit_hf.data.table import DataError, require_columns

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
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

    Raises:
        DataError: for a limit that leaves no token of a text.
    """
    special = tokenizer.num_special_tokens_to_add(pair=len(columns) == 2)
    limit = _limit(max_length, tokenizer, special + len(columns))

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
        tokenized[name] = _warned(encoded, name, limit, most=tokenizer.model_max_length)
    return DatasetDict(tokenized)


def _limit(wanted: int, tokenizer: PreTrainedTokenizerBase, needed: int, setting: str = "max_length") -> int:
    """Tokens that a row keeps."""
    limit = min(wanted, tokenizer.model_max_length)
    if limit < needed:
        raise DataError(
            f"{setting} is {wanted}, the tokenizer's {tokenizer.model_max_length}; rows need {needed} tokens or "
            "more. Raise the lower one."
        )
    return limit


def _warned(
    encoded: Dataset,
    name: str,
    limit: int,
    what: str = "rows",
    setting: str = "max_length",
    most: float = math.inf,
) -> Dataset:
    """Without the column "cut", after a warning of the rows that it marks; `most` is what the tokenizer allows."""
    cut = sum(encoded["cut"][:])
    if cut:
        logger.warning(
            "%s: %d of %d %s are longer than %d tokens and lose their end; %s.",
            *(name, cut, encoded.num_rows, what, limit),
            f"raise {setting} to keep it" if limit < most else f"{limit} is the most that the base reads",
        )
    return encoded.remove_columns("cut")


def tokenize_targets(
    splits: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[str],
    *,
    max_length: int = 128,
    max_target_length: int = 64,
) -> DatasetDict:
    """`tokenize`, and in place of `label`, the text to be written, its tokens as `labels`: at most
    `max_target_length`, special ones included; of how many the end was cut off is logged."""
    limit = _limit(max_target_length, tokenizer, tokenizer.num_special_tokens_to_add() + 1, "max_target_length")
    tokenized = tokenize(splits, tokenizer, columns, max_length=max_length)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        whole = tokenizer(text_target=batch[LABEL], padding=False, verbose=False)["input_ids"]
        kept = tokenizer(text_target=batch[LABEL], truncation=True, max_length=limit, padding=False)
        cut = [len(ids) > limit for ids in whole]
        return {"labels": kept["input_ids"], "cut": cut}

    for name, split in tokenized.items():
        encoded = split.map(encode, batched=True, remove_columns=[LABEL], desc=f"Tokenizing {name}")
        named = ("texts to be written", "max_target_length")
        tokenized[name] = _warned(encoded, name, limit, *named, most=tokenizer.model_max_length)
    return tokenized


def tokenize_texts(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, column: str, *, max_length: int = 128
) -> DatasetDict:
    """Tokens of whole texts, a row each, for a model that predicts every next one: `input_ids`, `labels`, `length`.

    A text ends with the tokenizer's end token, which says that it is over; one longer than `max_length` tokens loses
    its end, that token with it, and how many do is logged.

    Raises:
        DataError: for a tokenizer without an end token, and a limit that leaves no token to predict.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise DataError("The base's tokenizer has no end token (eos_token); set one in its tokenizer_config.json.")
    limit = _limit(max_length, tokenizer, 2)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        found = tokenizer(batch[column], padding=False, verbose=False)["input_ids"]
        whole = [ids if ids[-1:] == [end] else [*ids, end] for ids in found]
        kept = [ids[:limit] for ids in whole]
        cut = [len(ids) > limit for ids in whole]
        masks = [[1] * len(ids) for ids in kept]
        return {"input_ids": kept, "attention_mask": masks, "labels": kept, "length": list(map(len, kept)), "cut": cut}

    from datasets import DatasetDict

    tokenized = {}
    for name, split in splits.items():
        encoded = split.map(encode, batched=True, remove_columns=split.column_names, desc=f"Tokenizing {name}")
        tokenized[name] = _warned(encoded, name, limit, most=tokenizer.model_max_length)
    return DatasetDict(tokenized)
