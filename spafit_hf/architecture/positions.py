"""How many tokens a model has positions for."""

from __future__ import annotations

from torch import nn


def positions_of(model: nn.Module) -> int | None:
    """Tokens of a text at most, of a pair of models those of the smaller; None where positions are relative."""
    found = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    limits = [found] if isinstance(found, int) and found > 0 else []
    for name, module in model.named_modules():
        # RoBERTa's first positions are for padding: its table is longer than the texts it reads.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limits, default=None)
