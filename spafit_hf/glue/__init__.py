"""GLUE: the nine tasks as data, their rows, and their metric.

    tasks    GlueTask, TASKS, PAPER_SCORES          pure data
    load     load_task, tokenize_task               rows from the Hub or a folder
    metric   compute_metrics_for, GlueMetric        evaluate's from the Hub, or the same figures computed here

`metric` is imported when one of its names is first used, since evaluate takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spafit_hf.glue.load import load_task, tokenize_task
from spafit_hf.glue.tasks import DATASET_ID, PAPER_SCORES, TASKS, GlueTask, get_task

if TYPE_CHECKING:
    from spafit_hf.glue.metric import GlueMetric, compute_metrics_for, load_glue_metric

__all__ = [
    "DATASET_ID",
    "PAPER_SCORES",
    "TASKS",
    "GlueMetric",
    "GlueTask",
    "compute_metrics_for",
    "get_task",
    "load_glue_metric",
    "load_task",
    "tokenize_task",
]


def __getattr__(name: str) -> Any:
    if name not in ("GlueMetric", "compute_metrics_for", "load_glue_metric"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spafit_hf.glue import metric

    return getattr(metric, name)
