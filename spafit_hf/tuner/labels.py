"""The names of a head's outputs: where a model holds them, and how an adapter puts its own there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def apply_labels(model: nn.Module, labels: dict[str, Any] | None) -> None:
    """Write `labels` into a model's configuration; None changes nothing. Inverse of `labels_of`."""
    if labels is None:
        return
    id2label = {int(index): label for index, label in labels["id2label"].items()}
    model.config.id2label = id2label
    model.config.label2id = {label: index for index, label in id2label.items()}
    model.config.problem_type = labels["problem_type"]
    if "num_labels" in model.__dict__:  # heads of transformers keep their own copy for the loss
        model.num_labels = labels["num_labels"]


def check_heads_stack(labels: Mapping[str, dict[str, Any] | None]) -> None:
    """Refuse adapters in one batch whose heads have different numbers of outputs; adapter -> its labels."""
    sizes = {name: len(each["id2label"]) for name, each in labels.items() if each}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}: {size}" for name, size in sorted(sizes.items()))
        raise ValueError(
            f"the heads of these adapters have different numbers of outputs ({listed}), which do not stack into "
            "one tensor of logits. Call the model once per number of outputs, or use SpafitPredictor."
        )
