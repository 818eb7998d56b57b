"""Text that a trained model writes: of a text, or on from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from spafit_hf.architecture.positions import positions_of
from spafit_hf.predictor.base import longest
from spafit_hf.predictor.text import check_texts, encode
from spafit_hf.run.base import load_trained, task_type_in
from spafit_hf.run.data import MAX_TARGET_LENGTH
from spafit_hf.run.generation import TASK_TYPES, TASKS
from spafit_hf.tuner.plain import base_of


@dataclass(frozen=True)
class Written:
    """What was written of a text."""

    text: str
    truncated: bool
    """Whether the text it was written of was too long for the model and lost its end."""


def load_writer(base: str | None, folder: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """A folder that was trained to write text, in eval mode, with a tokenizer that can pad; see `load_trained`."""
    kind = task_type_in(folder)
    auto = next(TASKS[task].auto for task, task_type in TASK_TYPES.items() if task_type == kind)
    model, tokenizer = load_trained(base, folder, auto)
    return model.eval(), tokenizer


@torch.no_grad()
def write(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_target_length: int | None = None,
    max_length: int | None = None,
    num_beams: int | None = None,
) -> list[Written]:
    """Write a text for each of some texts: the likeliest, by the search that the model's generation config names.

    Args:
        model: an encoder-decoder or a decoder, plain or with an adapter.
        tokenizer: its own, with a token for padding.
        texts: a batch, none of them empty. A decoder goes on from them, and what it adds is returned.
        max_target_length: tokens to write at most; by default `MAX_TARGET_LENGTH`.
        max_length: tokens to read at most; by default what the model reads.
        num_beams: in place of the generation config's.

    Raises:
        ValueError: for an empty text, and for a model too short for what is asked.
    """
    for name, value in (("max_target_length", max_target_length), ("num_beams", num_beams)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    plain: Any = base_of(model)
    follows = not plain.config.is_encoder_decoder
    most = max_target_length or MAX_TARGET_LENGTH
    limit, positions = longest(plain, tokenizer, max_length), positions_of(plain)
    if positions is not None:
        if max_target_length is None and not follows:
            most = min(most, positions - 1)  # besides the token that a decoder begins with
        if follows or most >= positions:
            limit = min(limit, positions - most)
    if limit < 1:
        raise ValueError(f"the model has {positions} positions, and {most} are to be written: write fewer.")
    rows = encode(check_texts(texts), tokenizer, limit)
    settings: dict[str, Any] = {"max_new_tokens": most, "max_length": None, "do_sample": False}
    settings |= {"pad_token_id": tokenizer.pad_token_id, **({} if num_beams is None else {"num_beams": num_beams})}
    ids = [torch.tensor(row.ids) for row in rows]
    # A decoder writes at the end of its rows, so that padding stands before them.
    side = "left" if follows else "right"
    tokens = pad_sequence(ids, True, float(tokenizer.pad_token_id), side).to(plain.device)
    mask = pad_sequence([torch.ones_like(row) for row in ids], True, 0, side).to(plain.device)
    found = model.generate(input_ids=tokens, attention_mask=mask, **settings)
    answers = tokenizer.batch_decode(found[:, tokens.shape[1] :] if follows else found, skip_special_tokens=True)
    return [Written(text.strip(), row.truncated) for text, row in zip(answers, rows, strict=True)]
