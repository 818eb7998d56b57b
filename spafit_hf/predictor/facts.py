"""What a predictor knows of an adapter besides its tensors, and what the adapter says of a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from spafit_hf.adapter import AdapterError, VerifiedAdapter
from spafit_hf.words import listing


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter on a predictor: what it decides, and what it takes."""

    name: str
    source: str
    """The folder or repository that it was added from."""
    labels: tuple[str, ...]
    """Names of the head's outputs, in their order."""
    problem_type: str
    """As in transformers: regression, single_label_classification or multi_label_classification."""
    texts: int | None
    """1 for single texts, 2 for pairs, None where the adapter does not say."""
    task: dict[str, Any] = field(default_factory=dict)
    """What the folder says of the task, such as {"name": "mrpc"}."""
    strategy: str | None = None
    """Name of the strategy that it was trained with, where the folder says."""
    layers: tuple[int, ...] = ()
    """Layers of the base's first stack that it changes, from zero."""
    depth: int = 0
    memory_bytes: int = 0
    """Of its tensors while they are loaded."""
    file_bytes: int = 0
    tokenizer: str = ""
    """In what the tokenizer in its folder differs from the one that its texts go through; "" where in nothing."""


@dataclass(frozen=True)
class Prediction:
    """One adapter's answer to one text or pair."""

    adapter: str
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


class NoAnswer(AdapterError):
    """Adapters without an answer, in a call in which others may have one.

    Args:
        problems: name of each -> what is wrong with it, in a sentence.
        answers: the predictions that there are, in their order.
    """

    def __init__(self, problems: Mapping[str, str], answers: Sequence[Prediction] = ()) -> None:
        _, *others = problems
        more = f" There is no answer from {listing(list(map(repr, others)))} either." if others else ""
        super().__init__(next(iter(problems.values())) + more)
        self.problems = dict(problems)
        self.answers = tuple(answers)


def overflow(name: str, text: object) -> str:
    """What is wrong with an adapter whose numbers for a text are not finite."""
    return (
        f"{name!r} can give no finite number for {text!r:.60}, since its weights are so large that they overflow; ask "
        "another adapter, or train it again at a lower learning rate."
    )


def labels_of(adapter: VerifiedAdapter, outputs: int) -> tuple[tuple[str, ...], str]:
    """Names of the head's outputs and the kind of problem.

    A folder without labels (plain PEFT writes none) gets those that transformers would give: LABEL_0, LABEL_1, ...
    """
    labels = adapter.labels or {"id2label": {str(index): f"LABEL_{index}" for index in range(outputs)}}
    names = tuple(labels["id2label"][str(index)] for index in range(len(labels["id2label"])))
    problem = labels.get("problem_type") or ("regression" if len(names) == 1 else "single_label_classification")
    if len(names) != outputs:
        raise AdapterError(f"the adapter names {len(names)} labels, and its head has {outputs} outputs.")
    if problem == "regression" and outputs != 1:
        raise AdapterError(f"the adapter's head gives {outputs} numbers per text; a predictor serves one number.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise AdapterError(f"two of the adapter's labels are called {twice[0]!r}; save it with names that differ.")
    return names, problem
