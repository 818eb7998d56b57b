"""Tiny models, a tokenizer and rows with something to learn in them, all offline and from a seed."""

from __future__ import annotations

import functools
import random
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = ["good", "bad", "film", "plot", "actor", "very", "not", "the", "a", "scene", "music", "end"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = {word: index for index, word in enumerate(SPECIAL + WORDS)}


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
    )


def sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with `text` of 3 to 12 words and `label`: 1 where "good" stands at least as often as "bad"."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(3, 12))
        rows.append({"text": " ".join(words), "label": int(words.count("good") >= words.count("bad"))})
    return rows


@functools.cache
def dataset(count: int, seed: int = 0, label: Any = None) -> Dataset:
    """`sentences`, tokenized, unpadded: input_ids, attention_mask, label. `label` maps a row to another label."""
    encode = tokenizer()
    rows = sentences(count, seed)
    return Dataset.from_list(
        [{**encode(row["text"]), "label": row["label"] if label is None else label(row)} for row in rows]
    )


def bert(layers: int = 6, dropout: float = 0.1, seed: int = 0, **config: Any) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            **config,
        )
    )


def llama(layers: int = 4, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=32,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        )
    )


def bart(layers: int = 2, seed: int = 0) -> BartForConditionalGeneration:
    torch.manual_seed(seed)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(VOCABULARY),
            d_model=16,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=32,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=2,
            forced_eos_token_id=3,
        )
    )


def state(model: PreTrainedModel | torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every tensor of a model."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differences(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are missing on one side or not bit-equal."""
    return sorted(
        name
        for name in {*first, *second}
        if name not in first or name not in second or not torch.equal(first[name], second[name])
    )
