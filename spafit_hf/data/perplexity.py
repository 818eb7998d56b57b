"""Perplexity of texts: e to the mean loss of a token."""

from __future__ import annotations

import math

import numpy as np


def perplexity(losses: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Perplexity with its standard error over texts, and the loss per token.

    Args:
        losses: of each text, the sum over its tokens in nats [n].
        tokens: how many of its tokens that sum has [n].

    Returns:
        loss: sum of losses / sum of tokens, so that every token counts the same.
        perplexity: e to the loss; infinite beyond what fp64 holds.
        perplexity_se: that of a ratio of sums over n drawn texts, to first order; NaN of a single text.
    """
    loss = float(losses.sum() / tokens.sum()) if tokens.sum() else math.nan
    value = math.exp(loss) if not loss > 709 else math.inf
    count = len(losses)
    spread = float(((losses - loss * tokens) ** 2).sum())
    error = math.sqrt(spread * count / (count - 1)) / float(tokens.sum()) if count > 1 else math.nan
    return {"perplexity": value, "perplexity_se": value * error, "loss": loss}
