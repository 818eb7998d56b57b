"""Figures for predictions against labels.

    logits [n, k] --argmax--> ids [n]    --> accuracy, f1, f1_macro, matthews_correlation
    logits [n, 1] --squeeze-> values [n] --> pearson, spearmanr, mse

The definitions are those of scikit-learn and scipy. What is undefined stays so: the correlation of constant
predictions is NaN, not 0 and not a number close to it (`jsonable` writes it as null). F1 without any positive and
Matthews' coefficient of constant predictions are 0, which is how scikit-learn defines them.
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

REGRESSION = ("pearson", "spearmanr", "mse")


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of equal ids."""
    return float((predictions == references).mean())


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of class 1 against class 0."""
    from sklearn.metrics import f1_score

    return float(f1_score(y_true=references, y_pred=predictions))


def f1_macro(predictions: np.ndarray, references: np.ndarray) -> float:
    """Mean over classes of each one's F1."""
    from sklearn.metrics import f1_score

    return float(f1_score(y_true=references, y_pred=predictions, average="macro"))


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews' correlation coefficient; 0 when either side is constant."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson's correlation; NaN when either side is constant."""
    from scipy.stats import pearsonr

    return float(pearsonr(predictions, references)[0])


def spearmanr(predictions: np.ndarray, references: np.ndarray) -> float:
    """Spearman's rank correlation; NaN when either side is constant."""
    from scipy import stats

    return float(stats.spearmanr(predictions, references)[0])


def mse(predictions: np.ndarray, references: np.ndarray) -> float:
    """Mean squared error."""
    return float(np.mean((predictions - references) ** 2))


FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearmanr": spearmanr,
    "mse": mse,
}
"""Every figure by the name it has in results."""


def compute_figures(names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's `compute_metrics` for any text task.

    Args:
        names: of `FIGURES`; all of them of classes, or all of regression. See `default_figures`.

    Raises:
        ValueError: an unknown name, none, or classes and regression mixed.
    """
    unknown = [name for name in names if name not in FIGURES]
    if unknown or not names or len({name in REGRESSION for name in names}) > 1:
        raise ValueError(
            f"Cannot compute {', '.join(names) or 'nothing'}. Allowed: some of "
            f"{', '.join(name for name in FIGURES if name not in REGRESSION)}; or some of {', '.join(REGRESSION)}."
        )

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        predictions, references = reduce_prediction(prediction, names[0] in REGRESSION)
        return {name: FIGURES[name](predictions, references) for name in names}

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
