"""How well another task can be learned from frozen states: the same rows and folds before and after.

    a text      mean of the last layer's states over its tokens      u
    a pair      of both texts, each read by itself                   u v, |u - v|
    classes     logistic regression, C = .1      a number  ridge, its penalty by leave-one-out on the fold's train rows

Each row is predicted by the fold that did not train on it. Features are scaled by the train rows of a fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from transformers import PreTrainedTokenizerBase

from spafit_hf.card.forgetting import Transfer
from spafit_hf.choose.probe import FOLDS, out_of_fold
from spafit_hf.choose.reader import Reader, batches
from spafit_hf.data import LABEL
from spafit_hf.reproduce.statistics import resampled, row_error
from spafit_hf.run import RunData
from spafit_hf.words import SpafitError

PENALTIES = tuple(10.0**power for power in range(6))
"""Of ridge: one that suits a text's states is too small for a pair's, which are twice as many."""


@dataclass(frozen=True)
class Probe:
    """A task's rows, as tokens, and its labels."""

    name: str
    figure: str
    regression: bool
    columns: tuple[list[Any], ...]
    """Of one text column or two: rows of tokens."""
    labels: np.ndarray
    """[rows]: class ids or values."""


def probe_of(data: RunData, columns: tuple[list[Any], ...]) -> Probe:
    """A task as a probe of the rows of its first evaluation split, which no training on it has seen.

    Raises:
        SpafitError: for fewer rows, or rows of a class, than there are folds.
    """
    labels = np.array(data.text.splits[data.text.evaluation_splits[0]][LABEL][:])
    regression = not data.labelled.labels
    counts = [len(labels)] if regression else np.unique(labels, return_counts=True)[1].tolist()
    if min(counts) < FOLDS or (not regression and len(counts) < 2):
        raise SpafitError(
            f"{data.title} has {len(labels)} rows to probe with, {min(counts)} of the rarest kind; {FOLDS} of each "
            f"are needed{'' if regression else ', and two classes'}: raise --max_probe_rows, or take another task."
        )
    return Probe(data.title, data.main_figure, regression, columns, labels)


def features(reader: Reader, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Any], device: torch.device) -> Any:
    """Mean of the last states over the tokens of each text: float64 [texts, width]."""
    means: dict[int, torch.Tensor] = {}
    for chosen, batch in batches(tokenizer, rows, device):
        parts = reader.states(batch)[-1].double().split(batch["attention_mask"].sum(1).tolist())
        means |= dict(zip(chosen, (part.mean(0) for part in parts), strict=True))
    return torch.stack([means[index] for index in range(len(rows))]).cpu().numpy()


def predictions(
    probe: Probe, reader: Reader, tokenizer: PreTrainedTokenizerBase, device: torch.device, seed: int
) -> np.ndarray:
    """What the folds predict for each row, from a model's states: [rows], class ids or values."""
    first, *others = (features(reader, tokenizer, rows, device) for rows in probe.columns)
    x = np.concatenate([first * others[0], abs(first - others[0])], axis=1) if others else first
    linear = RidgeCV(PENALTIES) if probe.regression else LogisticRegression(C=0.1, max_iter=1000)
    return out_of_fold(x, probe.labels, probe.regression, seed, linear)


def transfer(probe: Probe, before: np.ndarray, after: np.ndarray, seed: int) -> Transfer:
    """The figures of both predictions [rows], and the error of their difference by drawing other rows, in pairs."""
    scores = resampled(probe.figure, probe.labels, np.stack([before, after]), seed)
    change = scores[:, 1] - scores[:, 0]
    old, new = (float(score) for score in scores[0])
    return Transfer(probe.name, probe.figure, len(probe.labels), old, new, new - old, row_error(change[1:, None]))
