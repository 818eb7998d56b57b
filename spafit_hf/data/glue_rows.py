"""A GLUE task's rows from the Hub or a folder, checked so that no label id can change its meaning on the way.

data_dir/mrpc/train.parquet  validation.parquet
data_dir/mnli/train.parquet  validation_matched.parquet  (validation_mismatched.parquet)
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_hf.data import LABEL, DataError, load_hub_dataset, read_table, require_columns
from spafit_hf.data.glue import DATASET_ID, GlueTask, get_task

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)


def load_task(task: str | GlueTask, data_dir: str | Path | None = None) -> DatasetDict:
    """Load a task from the Hub or from a folder.

    Args:
        task: one of the nine tasks.
        data_dir: a folder with `<task>/train.parquet` and `<task>/validation.parquet` (mnli: `validation_matched`,
            and `validation_mismatched` where there is one); file names of the Hub's own repository
            (`train-00000-of-00001.parquet`) are taken too. None: `nyu-mll/glue` on the Hub, or its cached copy.

    Returns:
        Train and the validation splits, with the task's columns, `label` (a `ClassLabel` with the names of
        `GlueTask.labels`; stsb: float32) and whatever else the source has (`idx`). The Hub's test splits have no
        labels and are left out.

    Raises:
        DataError (a ValueError): no Hub and no cache, a missing folder or file, other columns, other labels.
        ValueError: unknown task.
    """
    from datasets import DatasetDict

    found = get_task(task)
    if data_dir is None:
        hint = f"Give a data folder with {found.name}/train.parquet and so on."
        loaded = load_hub_dataset(DATASET_ID, found.name, local_hint=hint)
        parts: dict[str, Dataset] = {name: loaded[name] for name in found.splits}
    else:
        parts = _read_folder(found, Path(data_dir).expanduser())
    for name, split in parts.items():
        logger.info("%s %s: %d rows (the official split has %d).", found.name, name, split.num_rows, found.rows[name])
    return DatasetDict(
        {name: _checked(found, split, f"The {name} split of {found.name}") for name, split in parts.items()}
    )


def _read_folder(task: GlueTask, folder: Path) -> dict[str, Dataset]:
    import datasets

    place = folder / task.name
    if not place.is_dir():
        raise DataError(
            f"There is no folder '{place}'. A data folder holds one folder per task, with {task.name}/train.parquet "
            f"and {task.name}/{task.validation[0]}.parquet."
        )
    parts: dict[str, Dataset] = {}
    for name in task.splits:
        files = sorted(place.glob(f"{name}.parquet")) or sorted(place.glob(f"{name}-*-of-*.parquet"))
        if files:
            parts[name] = datasets.concatenate_datasets([read_table(file) for file in files])
        elif name not in task.validation[1:]:
            there = ", ".join(sorted(path.name for path in place.iterdir())) or "nothing"
            raise DataError(f"There is no '{place / name}.parquet'; the folder holds {there}. Add the file.")
    return parts


def _checked(task: GlueTask, split: Dataset, whose: str) -> Dataset:
    """The split with the task's columns and label ids, or an error: a swapped label order must never pass."""
    from datasets import ClassLabel, Value

    require_columns(split, (*task.columns, LABEL), whose)
    for column in (*task.columns, LABEL):
        nulls = split.data.column(column).null_count
        if nulls:
            raise DataError(f"{whose} has {nulls} rows without a value in '{column}'. Remove or complete them.")
    feature = split.features[LABEL]
    if task.regression:
        if isinstance(feature, ClassLabel) or not str(feature.dtype).startswith("float"):
            raise DataError(
                f"{whose} must have scores (float32) in '{LABEL}', found {feature}. Load the original data."
            )
        return split.cast_column(LABEL, Value("float32"))
    if isinstance(feature, ClassLabel):
        if tuple(feature.names) != task.labels:
            raise DataError(
                f"{whose} has the labels {', '.join(feature.names)} in id order; they must be "
                f"{', '.join(task.labels)} as in {DATASET_ID}. Reorder the ids."
            )
    elif not str(feature.dtype).startswith("int"):
        raise DataError(f"{whose} must have class ids in '{LABEL}', found {feature}. Map the labels to ids first.")
    odd = sorted(set(split.unique(LABEL)) - set(range(task.num_labels)))
    if odd:
        raise DataError(
            f"{whose} has the label ids {', '.join(map(str, odd))}; allowed are 0 to {task.num_labels - 1} "
            f"({', '.join(task.labels)}). Load the original data."
        )
    return split.cast_column(LABEL, ClassLabel(names=list(task.labels)))
