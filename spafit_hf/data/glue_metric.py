"""The GLUE metric: evaluate's own where the Hub answers, the same figures computed here where it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import numpy as np

from spafit_hf.data import no_hub
from spafit_hf.data.figures import compute, reduce_prediction
from spafit_hf.data.glue import TASKS, GlueTask, get_task
from spafit_hf.words import first_line

if TYPE_CHECKING:
    from transformers import EvalPrediction

logger = logging.getLogger(__name__)


class GlueMetric(evaluate.Metric):
    """evaluate's GLUE metric by another author: same inputs, same figures, same names, and nothing to download.

    `GlueMetric("mrpc").compute(predictions=[0, 1], references=[0, 1])` gives `{"accuracy": 1.0, "f1": 1.0}`.
    Inputs are int64 class ids, float32 for stsb. It works in memory: no cache file, no lock, any number of processes.

    Args:
        task: one of the nine GLUE tasks.
        kwargs: of `evaluate.Metric`; `keep_in_memory` is True by default.
    """

    def __init__(self, task: str, **kwargs: Any) -> None:
        name = get_task(task).name
        super().__init__(config_name=name, **{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        task = TASKS[self.config_name]
        value = datasets.Value("float32" if task.regression else "int64")
        return evaluate.MetricInfo(
            description=f"GLUE metric of {task.title}: {', '.join(task.metrics)}.",
            citation="Wang et al. (2019), GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language "
            "Understanding, ICLR 2019.",
            inputs_description="predictions, references: one class id (stsb: one score) per example.",
            features=datasets.Features({"predictions": value, "references": value}),
            format="numpy",
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return compute(TASKS[self.config_name].metrics, predictions, references)


def load_glue_metric(task: str | GlueTask) -> evaluate.EvaluationModule:
    """evaluate's GLUE metric from the Hub, or `GlueMetric` where that cannot be had, which is logged with the reason.

    Raises:
        ValueError: unknown task.
    """
    name = get_task(task).name
    reason = no_hub()
    if not reason:
        try:
            # With the full id, so that a folder named glue in the working directory is not taken for the metric.
            return evaluate.load("evaluate-metric/glue", name, module_type="metric", keep_in_memory=True)
        except (OSError, ImportError, ValueError, TypeError, RuntimeError) as error:
            reason = f"evaluate's metric did not load: {first_line(error)}"
    logger.info("GLUE metric of %s: computed locally with scikit-learn and scipy (%s).", name, reason)
    return GlueMetric(name)


def compute_metrics_for(task: str | GlueTask) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's `compute_metrics` for a GLUE task: of an `EvalPrediction` (see `reduce_prediction`), figures by name.

    Raises:
        ValueError: unknown task. The function itself raises it for labels that are hidden (-1) and for no rows.
    """
    found = get_task(task)
    metric = load_glue_metric(found)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        predictions, references = reduce_prediction(prediction, found.regression)
        figures = metric.compute(predictions=predictions, references=references)
        assert figures is not None  # None only in processes other than the first, which num_process=1 rules out
        return {name: float(figures[name]) for name in found.metrics}

    return compute_metrics
