"""ROUGE: how much of a text's words, pairs of words and order another has.

    rouge1, rouge2   words, pairs of neighbours: those that both texts have, as often as both have them
    rougeL           the longest sequence of words that stands in both, with anything between them

Each is the F measure of the shares of either text (Lin 2004, https://aclanthology.org/W04-1013). On ASCII the figures
are those of the package rouge_score without a stemmer; of other letters, which that drops, words are made here too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

ROUGE = ("rougeL", "rouge1", "rouge2")
RESAMPLES = 1000


def rouge(written: str, wanted: str) -> dict[str, float]:
    """The figures of `ROUGE` for one text against the one that was wanted, from 0 to 1."""
    one, other = (re.findall(r"[^\W_]+", text.lower()) for text in (written, wanted))
    found = {"rougeL": _f(_in_order(one, other), len(one), len(other))}
    for size in (1, 2):
        parts = [Counter(zip(*(words[start:] for start in range(size)), strict=False)) for words in (one, other)]
        found[f"rouge{size}"] = _f((parts[0] & parts[1]).total(), *(part.total() for part in parts))
    return found


def mean_rouge(written: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Means over rows; in `_ci_low` and `_ci_high` the 95 % bootstrap interval of each, over rows."""
    rows = [rouge(*pair) for pair in zip(written, wanted, strict=True)]
    scores = np.array([[row[name] for name in ROUGE] for row in rows])
    draws = np.random.default_rng(0)
    means = [scores[draws.integers(len(scores), size=len(scores))].mean(axis=0) for _ in range(RESAMPLES)]
    values = (scores.mean(axis=0), *np.quantile(means, (0.025, 0.975), axis=0))
    endings = zip(("", "_ci_low", "_ci_high"), values, strict=True)
    return {name + end: float(value) for end, each in endings for name, value in zip(ROUGE, each, strict=True)}


def _f(common: int, one: int, other: int) -> float:
    return 2 * common / (one + other) if one + other else 0.0


def _in_order(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, in one row of bits (Hyyro 2004)."""
    places: dict[str, int] = {}
    for index, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << index
    full = row = (1 << len(one)) - 1
    for word in other:
        both = row & places.get(word, 0)
        row = (row + both | row - both) & full
    return len(one) - row.bit_count()
