"""Stand-ins for trained adapters: a tiny encoder that reads real words, and an adapter of random values per task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import models
import torch
from spafit_space.service import Service
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spafit_hf import Strategy, get_spafit_model, save_adapter
from spafit_hf.data.glue import PAPER_SCORES, TASKS
from spafit_hf.names import embedded_base


@dataclass(frozen=True)
class Launched:
    """A Space that listens."""

    url: str
    service: Service


STRATEGY = "spafit-4-9-II"
WORDS = 30522
"""Tokens of the packaged tokenizer."""


def write_base(folder: Path) -> Path:
    """A BERT of 6 layers, 16 wide, with the packaged encoder's tokenizer."""
    model = models.tiny("bert", vocab_size=WORDS, num_hidden_layers=6, max_position_embeddings=64, pad_token_id=0)
    model.bert.save_pretrained(folder)  # without a head, as pretrained encoders come
    AutoTokenizer.from_pretrained(embedded_base()).save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path, task: str, *, strategy: str = STRATEGY, seed: int = 0) -> Path:
    """An adapter for a task, with its result file."""
    wrapped = get_spafit_model(_classifier(base, task), Strategy.from_name(strategy, r=4, lora_alpha=8))
    models.stir(wrapped, seed=seed)
    save_adapter(wrapped, folder, task={"name": task})
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    write_result(folder, task, strategy, trained, score=PAPER_SCORES[task][strategy] - 0.1)
    return folder


def write_result(folder: Path, task: str, strategy: str, trained: int, score: float) -> None:
    """What `spafit train` would write, as far as the page reads it."""
    figure, split = TASKS[task].main_metric, TASKS[task].validation[0]
    facts = {
        "task": task,
        "strategy": strategy,
        "metrics": {split: {figure: score}},
        "main_figure": figure,
        "trained_parameters": trained,
        "total_parameters": 500_000,
        "train_rows": 1234,
        "train_seconds": 5.0,
        "arguments": {},
    }
    (folder / "results.json").write_text(json.dumps(facts), encoding="utf-8")


def write_full_model(base: Path, folder: Path, task: str) -> Path:
    """A whole model for a task, every weight moved a little."""
    model = _classifier(base, task)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    write_result(folder, task, "full", 500_000, score=0.9)
    return folder


def write_all(folder: Path) -> tuple[Path, Path]:
    """A base; and a folder with an adapter per task, LoRA and a full model besides for sentiment."""
    base, adapters = write_base(folder / "base"), folder / "adapters"
    for seed, task in enumerate(TASKS):
        write_adapter(base, adapters / task, task, seed=seed)
    write_adapter(base, adapters / "sst2-lora", "sst2", strategy="lora-II", seed=99)
    write_full_model(base, adapters / "sst2-full", "sst2")
    return base, adapters


def _classifier(base: Path, task: str) -> torch.nn.Module:
    names = dict(enumerate(TASKS[task].labels or ("score",)))
    return AutoModelForSequenceClassification.from_pretrained(
        base, id2label=names, problem_type=TASKS[task].problem_type
    )
