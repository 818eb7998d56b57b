"""A GLUE task's rows from the Hub or a folder, checked so that no label id can change its meaning on the way.

data_dir/mrpc/train.parquet  validation.parquet
data_dir/mnli/train.parquet  validation_matched.parquet  (validation_mismatched.parquet)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_hf.data import LABEL, DataError, load_hub_dataset, read_table, require_columns
from spafit_hf.data.glue import DATASET_ID, GlueTask, get_task

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)


def load_task(
    task: str | GlueTask,
    data_dir: str | Path | None = None,
    *,
    splits: Sequence[str] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> DatasetDict:
    """Load a task from the Hub or from a folder.

    Args:
        task: one of the nine tasks.
        data_dir: a folder with `<task>/train.parquet` and `<task>/validation.parquet` (mnli: `validation_matched`,
            and `validation_mismatched` where there is one); file names of the Hub's own repository
            (`train-00000-of-00001.parquet`) are taken too. None: `nyu-mll/glue` on the Hub, or its cached copy.
        splits: the splits to load; train and every validation split if None. Test splits have no labels (all are -1)
            and are loaded only when named.
        revision, cache_dir: of the Hub dataset.

    Returns:
        The splits, with the task's columns, `label` (a `ClassLabel` with the names of `GlueTask.labels`; stsb:
        float32) and whatever else the source has (`idx`).

    Raises:
        DataError (a ValueError): no Hub and no cache, a missing folder or file, other columns, other labels.
        ValueError: unknown task.
    """
    from datasets import DatasetDict

    found = get_task(task)
    if data_dir is None:
        loaded = load_hub_dataset(
            DATASET_ID,
            found.name,
            revision=revision,
            cache_dir=cache_dir,
            local_hint=f"Give a data folder with {found.name}/train.parquet and so on.",
        )
        missing = [name for name in splits or found.splits if name not in loaded]
        if missing:
            raise DataError(f"{found.title} has no split {', '.join(missing)}; it has {', '.join(loaded)}.")
        parts: dict[str, Dataset] = {name: loaded[name] for name in splits or found.splits}
    else:
        parts = _read_folder(found, Path(data_dir).expanduser(), splits)
    checked = {name: _checked(found, name, split) for name, split in parts.items()}
    for name, split in checked.items():
        official = found.rows.get(name)
        logger.info(
            "%s %s: %d rows%s.", found.name, name, split.num_rows,
            "" if official in (None, split.num_rows) else f" (the official split has {official})",
        )  # fmt: skip
    return DatasetDict(checked)


def _read_folder(task: GlueTask, folder: Path, splits: Sequence[str] | None) -> dict[str, Dataset]:
    import datasets

    place = folder / task.name
    if not place.is_dir():
        raise DataError(
            f"There is no folder '{place}'. A data folder holds one folder per task, with {task.name}/train.parquet "
            f"and {task.name}/{task.validation[0]}.parquet."
        )
    parts: dict[str, Dataset] = {}
    for name in splits or task.splits:
        files = sorted(place.glob(f"{name}.parquet")) or sorted(place.glob(f"{name}-*-of-*.parquet"))
        if files:
            parts[name] = datasets.concatenate_datasets([read_table(file) for file in files])
        elif splits is not None or name not in task.validation[1:]:
            there = ", ".join(sorted(path.name for path in place.iterdir())) or "nothing"
            raise DataError(f"There is no '{place / name}.parquet'; the folder holds {there}. Add the file.")
    return parts


def _checked(task: GlueTask, name: str, split: Dataset) -> Dataset:
    """The split with the task's columns and label ids, or an error: a swapped label order must never pass."""
    from datasets import ClassLabel, Value

    whose = f"The {name} split of {task.name}"
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
    ids = set(split.unique(LABEL))
    allowed = {-1} if name.startswith("test") else set()
    allowed |= set(range(task.num_labels))
    if not ids <= allowed:
        raise DataError(
            f"{whose} has the label ids {', '.join(map(str, sorted(ids - allowed)))}; allowed are 0 to "
            f"{task.num_labels - 1} ({', '.join(task.labels)}). Load the original data."
        )
    return split if isinstance(feature, ClassLabel) else split.cast_column(LABEL, ClassLabel(names=list(task.labels)))
