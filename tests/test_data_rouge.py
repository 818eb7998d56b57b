"""ROUGE beside its author's examples and the package that others count with, and perplexity's error."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from spafit_hf.data.perplexity import perplexity
from spafit_hf.data.rouge import ROUGE, mean_rouge, rouge

WANTED = "police killed the gunman"  # Lin 2004, section 3.1


@pytest.mark.parametrize(
    ("written", "longest", "words", "pairs"),
    [
        ("police kill the gunman", 3 / 4, 3 / 4, 1 / 3),
        ("The gunman kill police.", 2 / 4, 3 / 4, 1 / 3),
        ("the gunman police killed", 2 / 4, 4 / 4, 2 / 3),
        ("police, police", 2 / 6, 2 / 6, 0),
        ("", 0, 0, 0),
    ],
)
def test_worked_examples(written: str, longest: float, words: float, pairs: float) -> None:
    assert rouge(written, WANTED) == pytest.approx({"rougeL": longest, "rouge1": words, "rouge2": pairs})


def test_it_is_what_rouge_score_counts() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(ROUGE)
    draw = random.Random(0)
    for _ in range(300):
        texts = [" ".join(draw.choices("a b c the_cat It's x1, (no) \n", k=draw.randrange(15))) for _ in range(2)]
        found = {name: score.fmeasure for name, score in scorer.score(*texts).items()}
        assert rouge(*texts) == pytest.approx(found), texts


def test_the_interval_is_about_the_mean() -> None:
    draw = random.Random(0)
    rows = [(" ".join(draw.choices("abcd", k=6)), " ".join(draw.choices("abcd", k=6))) for _ in range(200)]
    found = mean_rouge(*zip(*rows, strict=True))
    for name in ROUGE:
        scores = [rouge(*row)[name] for row in rows]
        assert found[name] == pytest.approx(np.mean(scores))
        half = 1.96 * np.std(scores) / math.sqrt(len(rows))
        assert found[f"{name}_ci_low"] == pytest.approx(found[name] - half, abs=half / 8)
        assert found[f"{name}_ci_high"] == pytest.approx(found[name] + half, abs=half / 8)


def test_letters_beyond_ascii_are_words() -> None:
    assert rouge("ein schöner Film", "EIN SCHÖNER FILM")["rouge1"] == 1
    assert rouge("кино", "вода")["rouge1"] == 0


def test_perplexity_of_a_single_text_and_of_a_model_that_knows_nothing() -> None:
    found = perplexity(np.array([3.0]), np.array([2.0]))
    assert found["perplexity"] == pytest.approx(math.exp(1.5))
    assert math.isnan(found["perplexity_se"])
    assert perplexity(np.array([1e6, 1e6]), np.array([1.0, 1.0]))["perplexity"] == math.inf
