"""Texts as tokens: checked, cut to what the base reads, and padded."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

Text = str | tuple[str, str]
"""One text, or a pair."""


UNORDERED = (set, frozenset)


@dataclass(frozen=True)
class Encoded:
    """One text or pair as tokens, special ones included."""

    ids: tuple[int, ...]
    types: tuple[int, ...] | None
    """Which of the two texts a token is of; None where the tokenizer does not tell."""
    truncated: bool
    empty: bool
    """Whether the tokenizer found nothing in it: all tokens are special."""

    @property
    def key(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Equal for texts that the base cannot tell apart."""
        return self.ids, self.types


def check_texts(texts: Sequence[Text]) -> list[Text]:
    """The texts, pairs as tuples; a ValueError names the place of what is neither, or is empty."""
    if isinstance(texts, (str, tuple)):
        raise ValueError(f"texts is one {'text' if isinstance(texts, str) else 'pair'}; give a list: predict([...]).")
    if not is_list(texts, Mapping, *UNORDERED):
        raise ValueError(f"texts is a {type(texts).__name__}; give a list of strings, or of pairs of them.")
    return [check_text(text, f"text {index}") for index, text in enumerate(texts)]


def is_list(values: object, *wrong: type) -> bool:
    """Whether values can be gone through, as lists, arrays and torch's datasets can, and are none of what is wrong."""
    return (isinstance(values, Iterable) or hasattr(values, "__getitem__")) and not isinstance(values, wrong)


def check_text(text: Text, where: str = "the text") -> Text:
    """One text or pair, as in `check_texts`; errors call it `where`."""
    if isinstance(text, str):
        _check_string(text, where)
        return text
    if not isinstance(text, (tuple, list)) or len(text) != 2:
        found = f"{len(text)} parts" if isinstance(text, (tuple, list)) else f"a {type(text).__name__}"
        raise ValueError(f"{where} has {found}; it must be a string, or a pair of strings.")
    for part, name in zip(text, ("first", "second"), strict=True):
        _check_string(part, f"the {name} part of {where}")
    return text[0], text[1]


def _check_string(text: object, where: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{where} is a {type(text).__name__}; it must be a string.")
    if not text.strip():
        raise ValueError(f"{where} is empty; give it at least one word.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is no valid Unicode: character {error.start} is half of a pair.") from error


def encode(texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Encoded]:
    """Tokenize. A text of more than `max_length` tokens loses its end (pairs: that of the longer part first)."""
    encoded: dict[int, Encoded] = {}
    for group in grouped([isinstance(text, str) for text in texts]):
        some = [texts[index] for index in group]
        parts = zip(*((text,) if isinstance(text, str) else text for text in some), strict=True)
        encoded |= zip(group, _encode(tokenizer, max_length, *map(list, parts)), strict=True)
    return [encoded[index] for index in range(len(texts))]


def _encode(tokenizer: PreTrainedTokenizerBase, max_length: int, *texts: list[str]) -> list[Encoded]:
    try:
        # padding=False also overrides a padding length that tokenizer.json may bring along
        batch = tokenizer(*texts, truncation=True, max_length=max_length, padding=False)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the tokenizer's Rust, and no Exception
            raise
        raise ValueError("the tokenizer cannot read this text.") from error
    ids = batch["input_ids"]
    if batch.encodings is None:  # a tokenizer in Python keeps no trace of what it cut off
        whole = tokenizer(*texts, truncation=False, padding=False, verbose=False)["input_ids"]
        cut = [len(row) < len(full) for row, full in zip(ids, whole, strict=True)]
    else:
        cut = [bool(row.overflowing) for row in batch.encodings]
    if (longest := max(map(len, ids), default=0)) > max_length:
        raise ValueError(f"the tokenizer gives {longest:,} tokens for a text where it was to give {max_length:,}.")
    types = [tuple(row) for row in batch["token_type_ids"]] if "token_type_ids" in batch else [None] * len(ids)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return [
        Encoded(tuple(row), kind, lost, special.issuperset(row))
        for row, kind, lost in zip(ids, types, cut, strict=True)
    ]


def pad(rows: Sequence[Encoded], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch, padded on the right: (rows, tokens) int64 each.

    On the right whatever the tokenizer prefers: a decoder's tokens then have the positions that they have alone.
    """
    columns = [("input_ids", pad_id, [row.ids for row in rows])]
    columns.append(("attention_mask", 0, [(1,) * len(row.ids) for row in rows]))
    if any(row.types is not None for row in rows):  # of rows through several tokenizers some may have none
        columns.append(("token_type_ids", 0, [row.types or (0,) * len(row.ids) for row in rows]))
    return {
        name: pad_sequence([torch.tensor(row, dtype=torch.long) for row in own], True, filling).to(device)
        for name, filling, own in columns
    }


def grouped(keys: Sequence[Hashable]) -> list[list[int]]:
    """Places of equal keys, together; in the order in which the keys come first."""
    groups: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return list(groups.values())
