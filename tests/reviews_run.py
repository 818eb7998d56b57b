"""A run in a second: a tiny base on disk, sentences whose label follows from one word, the flags to train on them."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import torch
from models import tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

GOOD, BAD, NOUNS = ("warm", "witty", "bright"), ("dull", "cold", "flat"), ("film", "plot", "cast", "score")


def write_base(folder: Path, **config: Any) -> Path:
    """A tiny BERT with a tokenizer of a few words.

    Its dropout is small: it learns in a few steps, and figures that were taken with dropout would still be others.
    """
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", *GOOD, *BAD, *NOUNS]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.01, "attention_probs_dropout_prob": 0.01}
    tiny("bert", pad_token_id=0, **(dropout | config)).base_model.save_pretrained(folder)
    return folder


def write_reviews(path: Path) -> Path:
    """A CSV file of 216 sentences."""
    rows = [
        (f"a {first} {noun} a {second} {other}", "good" if first in GOOD else "bad")
        for words in (GOOD, BAD)
        for first, second, noun, other in itertools.product(words, words, NOUNS, NOUNS)
        if noun != other
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("review", "verdict"))
        writer.writerows(rows)
    return path


def train_flags(base: Path, reviews: Path, output: Path, **more: object) -> list[str]:
    """The command line of a training on them."""
    flags = {
        "base": base,
        "train_file": reviews,
        "text_columns": "review",
        "label_column": "verdict",
        "output_dir": output,
        "strategy": "spafit-4-9-II",
        "lora_r": 4,
        "lora_alpha": 8,
        "learning_rate": 0.02,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "disable_tqdm": True,
        **more,
    }
    return ["train", *(text for name, value in flags.items() for text in (f"--{name}", str(value)))]
