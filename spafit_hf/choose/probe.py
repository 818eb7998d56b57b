"""What a linear reader finds in the states of each layer, and how many layers may freeze by that: N1.

    rows --one pass--> states [layers + 1, rows, 2 width] --a probe per layer, out of fold--> score, standard error

A row's states at a layer are those of the token that the head reads (the first; the last where the head is a causal
model's `score`) beside the mean over its tokens. Layer 0 of the states are the embeddings, layer i what i layers give.

The one-standard-error rule (Breiman et al. 1984) takes the simplest of the models that are within one standard error
of the best. Here it takes the first layer whose probe is: all that any layer offers to a linear reader is there
already, so freezing up to it costs such a reader nothing, and the layers above are left to train. That is no proof
that training the frozen ones would have brought nothing, so the cut is a candidate and the search decides. The last
two layers are never frozen by it: where the best probe is the last layer's, the rule would leave nothing to cut.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spafit_hf.choose.reader import Reader
from spafit_hf.reproduce.statistics import resampled
from spafit_hf.shortcuts.probe import evaluating
from spafit_hf.words import SpafitError

FOLDS = 5
PENALTY = 100.0
"""On the squared weights of features of variance 1, for ridge and logistic regression alike."""
TRAINED_LAYERS = 2
"""Layers that the rule leaves to train at least."""


@dataclass(frozen=True)
class Probes:
    """A score per layer of the states, the embeddings first."""

    scores: tuple[float, ...]
    errors: tuple[float, ...]
    """Standard errors by drawing other rows."""
    best: int
    n1: int
    """Last layer that may freeze, from zero; -1 for none."""


def read_states(
    reader: Reader, batches: Iterable[Mapping[str, torch.Tensor]], *, last: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The states of every row at every layer, in one pass without dropout, and the labels in the same order.

    Args:
        reader: of a model with one stack of layers.
        batches: its inputs, with labels and an attention mask, on its device.
        last: whether the head reads the last token, not the first.

    Returns:
        float32 [layers + 1, rows, 2 width], the head's token and then the mean over tokens; labels [rows].
    """
    parts, labels = [], []
    for batch in batches:
        labels.append(batch["labels"].cpu().numpy())
        with evaluating(reader.body):
            *below, _, top = reader.states({name: value for name, value in batch.items() if name != "labels"})
        lengths = batch["attention_mask"].sum(1).tolist()
        for row in torch.stack([*below, top]).float().cpu().split(lengths, dim=1):
            parts.append(torch.cat([row[:, -1 if last else 0], row.mean(1)], dim=-1))
    return torch.stack(parts, dim=1).numpy(), np.concatenate(labels)


def out_of_fold(states: np.ndarray, labels: np.ndarray, regression: bool, seed: int, linear: Any = None) -> np.ndarray:
    """A linear probe's prediction for every row, made by a fit that has not seen it.

    Args:
        states: [rows, features]; each is scaled by the rows that are fitted.
        labels: values, or class ids.
        regression: whether they are values.
        seed: of the folds, the same for every layer.
        linear: scikit-learn's estimator; None for ridge or logistic regression with `PENALTY`.

    Raises:
        SpafitError: where fewer than two classes have two rows or more, since a fit needs two classes.
    """
    linear = linear or (Ridge(PENALTY) if regression else LogisticRegression(C=1 / PENALTY, max_iter=1000))
    kind = KFold if regression else StratifiedKFold
    found = np.zeros(len(labels), dtype=np.float64 if regression else np.int64)
    counts = [len(labels)] * 2 if regression else sorted([0, *np.unique(labels, return_counts=True)[1].tolist()])
    if counts[-2] < 2:
        raise SpafitError(
            f"of the {len(labels)} rows to probe with, no two classes have two rows or more; give more rows of the "
            "rarer classes."
        )
    folds = kind(min(FOLDS, counts[-2]), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # it is in some folds alone
        places = list(folds.split(states, labels))
    for train, held in places:
        found[held] = make_pipeline(StandardScaler(), linear).fit(states[train], labels[train]).predict(states[held])
    return found


def probe_layers(states: np.ndarray, labels: np.ndarray, figure: str, regression: bool, seed: int) -> Probes:
    """Probe every layer and choose N1.

    Args:
        states: as `read_states` gives them.
        figure: a main figure, of which `resampled` knows all.
    """
    predictions = np.stack([out_of_fold(layer, labels, regression, seed) for layer in states])
    draws = resampled(figure, labels, predictions, seed)
    scores, errors = draws[0].tolist(), draws[1:].std(axis=0, ddof=1).tolist()
    best = int(np.argmax(scores))
    layers = one_standard_error(scores, errors)
    return Probes(tuple(scores), tuple(errors), best, max(0, min(layers, len(scores) - 1 - TRAINED_LAYERS)) - 1)


def one_standard_error(scores: Sequence[float], errors: Sequence[float]) -> int:
    """The first place whose score is within one standard error, the best one's, of the best."""
    best = int(np.argmax(scores))
    return next(place for place, score in enumerate(scores) if score >= scores[best] - errors[best])
