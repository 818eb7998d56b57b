"""Trainer in strata; see `trainer`."""

from spafit_hf.trainer.arguments import SpafitSeq2SeqTrainingArguments, SpafitTrainingArguments
from spafit_hf.trainer.trainer import SpafitSeq2SeqTrainer, SpafitTrainer

__all__ = ["SpafitSeq2SeqTrainer", "SpafitSeq2SeqTrainingArguments", "SpafitTrainer", "SpafitTrainingArguments"]
