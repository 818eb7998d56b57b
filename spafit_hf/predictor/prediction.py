"""What an adapter says of a text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from spafit_hf.predictor.facts import AdapterFacts


@dataclass(frozen=True)
class Prediction:
    """One adapter's answer to one text or pair."""

    adapter: str
    """The adapter's name in the predictor."""
    label: str | None
    """The label with the highest score; None for regression."""
    scores: dict[str, float] | None
    """Label -> probability, in the order of the head's outputs; None for regression. The probabilities add up to 1,
    but for an adapter with several labels per text, where each is the label's own."""
    value: float | None
    """The number that a regression gives; None for the others."""
    truncated: bool = False
    """Whether the text was longer than the base reads, and lost its end."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)

    @classmethod
    def from_logits(cls, facts: AdapterFacts, logits: torch.Tensor, truncated: bool) -> Prediction:
        """Read a row of logits, shape (outputs,), in the way of the adapter's problem."""
        logits = logits.float()
        if facts.problem_type == "regression":
            return cls(facts.name, None, None, float(logits[0]), truncated)
        several = facts.problem_type == "multi_label_classification"
        scores = (logits.sigmoid() if several else logits.softmax(-1)).tolist()
        label = facts.labels[max(range(len(scores)), key=scores.__getitem__)]
        return cls(facts.name, label, dict(zip(facts.labels, scores, strict=True)), None, truncated)
