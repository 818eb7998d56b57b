"""A SpafitTrainer on tiny rows, short enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts import tiny
from torch import nn
from transformers import DataCollatorWithPadding, Trainer

from spafit_hf import SpafitTrainer, SpafitTrainingArguments

ROWS = 24


def spafit_trainer(folder: Path, model: nn.Module | None = None, **given: Any) -> SpafitTrainer:
    """On a tiny BERT without dropout, or `model`; `data` and `collator` replace its own, the rest are fields."""
    data = given.pop("data", None)
    collator = given.pop("collator", None) or DataCollatorWithPadding(tiny.tokenizer())
    fields = {
        "strategy": "spafit-8-16-II",
        "lora_r": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    return SpafitTrainer(
        tiny.bert(dropout=0.0) if model is None else model,
        SpafitTrainingArguments(str(folder), **{**fields, **given}),
        data_collator=collator,
        train_dataset=tiny.dataset(ROWS) if data is None else data,
        eval_dataset=tiny.dataset(12, seed=1),
        processing_class=tiny.tokenizer(),
    )


def losses(trained: Trainer) -> list[float]:
    """The training losses that were logged, in order."""
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]
