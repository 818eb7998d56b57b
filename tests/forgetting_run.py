"""Tiny models with language-model heads in their checkpoints, and adapters on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from models import stir, tiny_generator
from reviews_run import BAD, GOOD, NOUNS, write_base
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM

from spafit_hf import get_spafit_model
from spafit_hf.adapter import save_adapter

TEXTS = tuple(f"a {word} {noun}" for word in (*GOOD, *BAD) for noun in NOUNS)


def write_lm(folder: Path, kind: str) -> Path:
    """A base with its head: "masked" (BERT), or "causal" (GPT-2, whose tokenizer has no padding token)."""
    write_base(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind == "masked":
        torch.manual_seed(1)
        BertForMaskedLM.from_pretrained(folder).save_pretrained(folder)
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    else:
        tiny_generator("gpt2").save_pretrained(folder)
        tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path, strategy: str, kind: Any = AutoModelForSequenceClassification) -> Path:
    """An adapter with random values, as if it had been trained for long."""
    plain = kind.from_pretrained(base)
    plain.config.pad_token_id = 0
    model = get_spafit_model(plain, strategy, r=2)
    stir(model)
    save_adapter(model, folder)
    return folder
