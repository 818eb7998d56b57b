"""The names of a head's outputs, as a model's configuration holds them."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def labels_of(model: nn.Module) -> dict[str, Any] | None:
    """What a classifier's outputs mean, as `SpafitConfig.labels` holds it; None for a model of another task."""
    # Every configuration of transformers has two labels; only in these classes do they say how many outputs there are.
    if not isinstance(model, PreTrainedModel) or "Classification" not in type(model).__name__:
        return None
    config = model.config
    if config.id2label is None:  # as PVT's default
        return None
    return {
        "num_labels": len(config.id2label),
        "id2label": {str(index): str(label) for index, label in config.id2label.items()},
        "problem_type": config.problem_type,
    }
