"""What reads a text in a model: its body, whose layers are watched, without head and pooler.

    BertForSequenceClassification        PeftModel of it
      bert        the body        <--      the same place, its layers wrapped
        encoder.layer.0 ... 5     -->      states per layer, of tokens alone
      classifier  not looked at

Of an encoder-decoder it is the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from spafit_hf.architecture import find_architecture
from spafit_hf.tuner.plain import base_of, plain_view
from spafit_hf.words import SpafitError

ROWS = 16
"""Of a batch. Every model gets the same batches: what is equal to the bit may depend on what stands beside it."""


@dataclass(frozen=True)
class Reader:
    """The part of a model that reads texts."""

    body: nn.Module
    layers: tuple[nn.Module, ...]

    @torch.no_grad()
    def states(self, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """What the first layer is given for a batch, what each layer returns, and last what the body does, which is
        after a final norm where there is one.

        Returns:
            float tensors [tokens, width], padding left out.

        Raises:
            SpafitError: for states of another shape, or that are not finite.
        """
        found: list[Any] = []

        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])

        with ExitStack() as stack:
            stack.enter_context(self.layers[0].register_forward_pre_hook(enter, with_kwargs=True))
            for layer in self.layers:
                stack.enter_context(layer.register_forward_hook(lambda _module, _args, output: found.append(output)))
            found.append(self.body(**batch)[0])
        states = [output[0] if isinstance(output, tuple) else output for output in found]
        tokens = batch["attention_mask"]
        if len(states) != len(self.layers) + 2 or any(each.shape[:2] != tokens.shape for each in states):
            raise SpafitError(f"{type(self.body).__name__} does not give a state for each token in each layer.")
        kept = [each[tokens.bool()] for each in states]
        if not all(bool(torch.isfinite(each).all()) for each in kept):
            raise SpafitError(f"states of {type(self.body).__name__} are not finite; the training has diverged.")
        return kept


def reader_of(model: nn.Module) -> Reader:
    """The reader of a model of transformers, wrapped by PEFT or not.

    Raises:
        SpafitError: where its layers cannot be found.
    """
    plain: Any = base_of(model)
    try:
        stack = find_architecture(plain_view(plain)).stacks[0]
    except ValueError as error:
        raise SpafitError(str(error)) from error
    body = plain.base_model
    if plain.config.is_encoder_decoder:
        body = body.get_encoder()
    return Reader(body, tuple(plain.get_submodule(layer.path) for layer in stack.layers))


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> tuple[list[Any], int]:
    """Each text as tokens, unpadded, with `special_tokens_mask`; and how many texts lost their end.

    Raises:
        SpafitError: for a text of no tokens.
    """
    whole = tokenizer(list(texts), padding=False, truncation=False, verbose=False)["input_ids"]
    encoded = tokenizer(
        list(texts), padding=False, truncation=True, max_length=max_length, return_special_tokens_mask=True
    )
    rows = [{name: values[index] for name, values in encoded.items()} for index in range(len(texts))]
    for text, row in zip(texts, rows, strict=True):
        if not row["input_ids"]:
            raise SpafitError(f"the text {text[:40]!r} has no tokens; leave it out.")
    return rows, sum(len(ids) > max_length for ids in whole)


def batches(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Any], device: torch.device
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Rows of tokens in batches, like lengths together, padded on the right, and which rows they are."""
    names = [*dict.fromkeys(["attention_mask", *tokenizer.model_input_names])]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    collate = DataCollatorWithPadding(tokenizer)
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        inputs = [{name: rows[index][name] for name in names if name in rows[index]} for index in chosen]
        yield chosen, {name: values.to(device) for name, values in collate(inputs).items()}
