"""Figures for predictions against labels.

    logits [n, k] --argmax--> ids [n]    --> accuracy, f1, f1_macro, matthews_correlation
    logits [n, 1] --squeeze-> values [n] --> pearson, spearmanr, mse

The definitions are those of scikit-learn and scipy. What is undefined stays so: the correlation of constant
predictions, or of one row, is NaN, not 0 and not a number close to it (`jsonable` writes it as null). F1 without any
positive and Matthews' coefficient of constant predictions are 0, which is how scikit-learn defines them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import EvalPrediction

logger = logging.getLogger(__name__)

CLASSES = ("accuracy", "f1", "f1_macro", "matthews_correlation")
REGRESSION = ("pearson", "spearmanr", "mse")


def compute(names: Sequence[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The named figures of `CLASSES` or `REGRESSION` for predictions [n] against labels [n]."""
    from scipy import stats
    from sklearn import metrics

    if set(names) <= set(REGRESSION):  # in fp32 a correlation of values that are nearly equal is rounding
        predictions, references = predictions.astype(np.float64), references.astype(np.float64)
    varied = all(0 < np.ptp(each) < math.inf for each in (predictions, references))  # of others scipy warns or raises

    definitions: dict[str, Callable[[], float]] = {
        "accuracy": lambda: metrics.accuracy_score(references, predictions),
        "f1": lambda: metrics.f1_score(references, predictions),  # of class 1 against class 0
        "f1_macro": lambda: metrics.f1_score(references, predictions, average="macro"),
        "matthews_correlation": lambda: metrics.matthews_corrcoef(references, predictions),
        "pearson": lambda: stats.pearsonr(predictions, references)[0] if varied else math.nan,
        "spearmanr": lambda: stats.spearmanr(predictions, references)[0] if varied else math.nan,
        "mse": lambda: np.mean((predictions - references) ** 2),
    }
    return {name: float(definitions[name]()) for name in names}


def compute_figures(names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's `compute_metrics` for any text task.

    Args:
        names: of `CLASSES`, or of `REGRESSION`; the first is the main one. See `default_figures`.

    Raises:
        ValueError: an unknown name, none, or classes and regression mixed.
    """
    if not names or not (set(names) <= set(CLASSES) or set(names) <= set(REGRESSION)):
        raise ValueError(
            f"Cannot compute {', '.join(names) or 'nothing'}. Allowed: some of {', '.join(CLASSES)}; or some of "
            f"{', '.join(REGRESSION)}."
        )

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return compute(names, *reduce_prediction(prediction, names[0] in REGRESSION))

    return compute_metrics


def default_figures(num_labels: int) -> tuple[str, ...]:
    """What to report for a head with that many outputs; 1 is regression. The first is the main one."""
    return REGRESSION if num_labels == 1 else ("accuracy", "f1_macro")


def jsonable(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """The figures with None for what is undefined (NaN) or infinite, since JSON has no word for either."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def reduce_prediction(prediction: EvalPrediction, regression: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of an EvalPrediction -> one class id, or one value, per row each.

    Args:
        prediction: logits [n, k] (ids [n] if they are reduced already), or a tuple that starts with them; labels [n].
        regression: whether rows have values (k = 1), not classes.

    Returns:
        Predictions [n] and labels [n].

    Raises:
        ValueError: no rows, or hidden labels (negative class ids).
    """
    raw, labels = prediction.predictions, prediction.label_ids
    logits = np.asarray(raw[0] if isinstance(raw, (tuple, list)) else raw)
    references = np.asarray(labels[0] if isinstance(labels, (tuple, list)) else labels)
    if not len(references):
        raise ValueError("There are no rows to score. Give an evaluation split with at least one row.")
    undefined = int((~np.isfinite(logits)).reshape(len(logits), -1).any(axis=1).sum())
    if undefined:
        logger.warning(
            "%d of %d rows have predictions that are not finite: training has diverged; lower the learning rate.",
            undefined, len(logits),
        )  # fmt: skip
    if regression:
        return logits.reshape(len(references)), references
    if (references < 0).any():
        raise ValueError(
            f"{int((references < 0).sum())} of {len(references)} labels are negative: hidden test labels cannot be "
            f"scored. Evaluate on a validation split."
        )
    return (logits if logits.ndim == 1 else logits.argmax(axis=-1)), references
