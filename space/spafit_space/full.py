"""A fully fine-tuned model, to compare adapters with. It answers like an adapter and costs a whole base of memory."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spafit_hf.adapter import AdapterError
from spafit_hf.predictor import AdapterFacts, NoAnswer, Prediction
from spafit_hf.predictor.base import longest
from spafit_hf.predictor.facts import overflow
from spafit_hf.predictor.text import Text, check_text, encode, pad
from spafit_hf.words import first_line

MODEL_FILES = ("config.json", "model.safetensors")


def is_full_model(folder: Path) -> bool:
    """Whether a folder holds a whole model, as `spafit train --strategy full` writes it."""
    return not (folder / "adapter_config.json").exists() and all((folder / name).is_file() for name in MODEL_FILES)


class FullModel:
    """One task, every weight its own.

    Args:
        source: folder or repository of a model for sequence classification, as safetensors. No code in it is run.
        name: what it is called.
        revision: of the repository.
        texts: 1 for single texts, 2 for pairs, None if unknown.

    Raises:
        AdapterError: if it cannot be loaded.
    """

    def __init__(self, source: str, name: str, *, revision: str | None = None, texts: int | None = None) -> None:
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                source, revision=revision, use_safetensors=True, trust_remote_code=False
            )
            self._tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        except Exception as error:  # on broken files transformers raises whatever it stumbles over
            raise AdapterError(f"the model {source} cannot be loaded: {first_line(error)}") from error
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._max_length = longest(model, self._tokenizer, None)
        self._lock = threading.Lock()
        labels = tuple(str(label) for _, label in sorted(model.config.id2label.items()))
        problem = model.config.problem_type or ("regression" if len(labels) == 1 else "single_label_classification")
        self.facts = AdapterFacts(name, source, labels, problem, texts, depth=model.config.num_hidden_layers)

    @property
    def file_bytes(self) -> int:
        """Of its weights."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def predict(self, text: Text) -> Prediction:
        """Its answer to a text or pair.

        Raises:
            ValueError: for an empty text, and (`NoAnswer`) where its numbers are not finite.
        """
        with self._lock, torch.inference_mode():
            tokens = encode([check_text(text)], self._tokenizer, self._max_length)[0]
            batch = pad([tokens], self._tokenizer.pad_token_id or 0, self.model.device)
            logits = self.model(**batch).logits[0].cpu()
        if not torch.isfinite(logits).all():
            raise NoAnswer({self.facts.name: overflow(self.facts.name, text)})
        return Prediction.from_logits(self.facts, logits, tokens.truncated)
