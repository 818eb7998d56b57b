"""The figures of a GLUE task: by evaluate's metric where the Hub answers, the same computed here where it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import evaluate
import numpy as np

from spafit_hf.data import no_hub
from spafit_hf.data.figures import compute, reduce_prediction
from spafit_hf.data.glue import GlueTask, get_task
from spafit_hf.words import first_line

if TYPE_CHECKING:
    from transformers import EvalPrediction

logger = logging.getLogger(__name__)


def _from_hub(task: GlueTask) -> evaluate.EvaluationModule | None:
    """evaluate's metric; None where it cannot be had, which is logged with the reason."""
    reason = no_hub()
    if not reason:
        try:
            # With the full id, so that a folder named glue in the working directory is not taken for the metric.
            return evaluate.load("evaluate-metric/glue", task.name, module_type="metric", keep_in_memory=True)
        except (OSError, ImportError, ValueError, TypeError, RuntimeError) as error:
            reason = f"evaluate's metric did not load: {first_line(error)}"
    logger.info("GLUE metric of %s: computed locally with scikit-learn and scipy (%s).", task.name, reason)
    return None


def compute_metrics_for(task: str | GlueTask) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's `compute_metrics` for a GLUE task: of an `EvalPrediction` (see `reduce_prediction`), figures by name.

    Raises:
        ValueError: unknown task. The function itself raises it for labels that are hidden (-1) and for no rows.
    """
    found = get_task(task)
    metric = _from_hub(found)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        predictions, references = reduce_prediction(prediction, found.regression)
        if metric is None:
            kind = np.float32 if found.regression else np.int64  # as evaluate's takes them
            return compute(found.metrics, predictions.astype(kind), references.astype(kind))
        figures = metric.compute(predictions=predictions, references=references)
        assert figures is not None  # None only in processes other than the first, which num_process=1 rules out
        return {name: float(figures[name]) for name in found.metrics}

    return compute_metrics
