"""A column of labels -> class ids with their names, or numbers.

    ClassLabel              its names, in its order
    "yes" "no"              words in alphabetical order
    3 1 2, "3" "1" "2"      whole numbers in order, as words "1" "2" "3"
    true false              "false" "true"
    0.5, "0.5"              regression

Every label is brought to a word first, so that ids and words can never be mixed up between splits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from spafit_hf.data.table import DataError

if TYPE_CHECKING:
    from datasets import Dataset

LABEL = "label"
"""Name of the target column in everything this package loads."""

LARGEST = 3.4028235e38
"""Largest number in fp32."""


class Labelled:
    """What follows from the names of the labels, in id order; a number to be predicted has none."""

    labels: tuple[str, ...]

    @property
    def regression(self) -> bool:
        """Whether the label is a number to be predicted, not a class."""
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Outputs of the task head: the number of classes, 1 for regression."""
        return len(self.labels) or 1

    @property
    def problem_type(self) -> str:
        """`PretrainedConfig.problem_type` of the task."""
        return "regression" if self.regression else "single_label_classification"


def encode_labels(
    splits: dict[str, Dataset],
    column: str,
    given: Sequence[str] | None,
    regression: bool | None,
    origin: str,
    notes: list[str],
) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """Replace the label column of every split by `label`: class ids with names, or float32.

    Args:
        splits: the splits; the names of the classes are those of `train`, or of the first split where there is none.
        column: the label column: plain values, no empty cells.
        given: label names in id order; integer labels 0..n-1 are then their ids. None: inferred.
        regression: whether labels are numbers to predict. None: inferred.
        origin: what the data is called in errors.
        notes: receives a sentence for each thing inferred.

    Returns:
        The splits, and the label names in id order (empty for regression).

    Raises:
        DataError: non-finite numbers, a class outside those of train, one class only.
    """
    from datasets import ClassLabel

    values = {name: split[column][:] for name, split in splits.items()}
    everything = [value for split in values.values() for value in split]
    features = {name: split.features[column] for name, split in splits.items()}
    class_label = next((feature for feature in features.values() if isinstance(feature, ClassLabel)), None)
    numbers = None if class_label else _numbers(everything)
    if regression is None:
        regression = (
            numbers is not None
            and given is None
            and any(isinstance(value, float) or (isinstance(value, str) and not _whole(value)) for value in everything)
        )
        if regression:
            notes.append(
                f"Label '{column}' holds numbers with decimals: regression. For classes, say regression=False."
            )
    if regression:
        return _as_numbers(splits, column, given, numbers, origin), ()
    words = {
        name: [_word(value, features[name], f"the {name} split of {origin}") for value in split]
        for name, split in values.items()
    }
    reference = words["train" if "train" in words else next(iter(words))]
    names, how = _label_names(reference, class_label, given)
    if how:
        notes.append(f"Label '{column}': {len(names)} classes, {_listing(names)} ({how}).")
    digits = [str(index) for index in range(len(names))]
    ids = {word: index for index, word in enumerate(digits if given and set(digits) >= set(reference) else names)}
    _check_classes(words, names, ids, column, origin, given is not None)
    if class_label is None and given is None and len(names) > 20 and len(names) == len(reference):
        raise DataError(
            f"Every row of {origin} has a label of its own in '{column}'. Name the column that holds the class."
        )
    feature = ClassLabel(names=list(names))
    return {
        name: _with_label(split, column, [ids[word] for word in words[name]], feature)
        for name, split in splits.items()
    }, names


def _as_numbers(
    splits: dict[str, Dataset], column: str, given: Sequence[str] | None, numbers: list[float] | None, origin: str
) -> dict[str, Dataset]:
    from datasets import Value

    if given:
        raise DataError(f"Regression has no label names, but {', '.join(given)} were given. Leave one of them out.")
    if numbers is None:
        raise DataError(f"Label column '{column}' of {origin} is not made of finite numbers; regression needs them.")
    largest = max(numbers, key=abs, default=0.0)
    if abs(largest) > LARGEST:
        raise DataError(
            f"Label column '{column}' of {origin} holds {largest:g}; labels are kept in fp32, which ends at "
            f"{LARGEST:.3g}. Scale the column down."
        )
    return {
        name: _with_label(split, column, [float(value) for value in split[column][:]], Value("float32"))
        for name, split in splits.items()
    }


def _check_classes(
    words: dict[str, list[str]], names: Sequence[str], ids: Collection[str], column: str, origin: str, given: bool
) -> None:
    for name, split in words.items():
        unknown = sorted(set(split) - set(ids))
        if unknown:
            allowed = "given as label names" if given else "in the train split"
            raise DataError(
                f"The {name} split of {origin} has the label{'s' * (len(unknown) > 1)} {_listing(unknown)}, not "
                f"{allowed} ({_listing(names)}). Correct the rows, or name every label."
            )
    if len(names) < 2:
        raise DataError(
            f"Every row of {origin} has the label {_listing(names)}; classification needs two classes or more. "
            f"Check the label column '{column}'."
        )


def _label_names(words: Sequence[str], class_label: Any, given: Sequence[str] | None) -> tuple[tuple[str, ...], str]:
    """The label names in id order, and how they were found when that needs saying."""
    if given is not None:
        if len(set(given)) != len(given) or not all(given):
            raise DataError(f"Label names must be different words; got {', '.join(map(repr, given))}.")
        return tuple(given), ""
    if class_label is not None:
        return tuple(class_label.names), ""
    found = set(words)
    if all(_whole(word) for word in found):
        return tuple(sorted(found, key=lambda word: (int(word), word))), "inferred from whole numbers, in order"
    return tuple(sorted(found)), "inferred from the words, in alphabetical order"


def _listing(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _whole(value: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", value.strip()) is not None


def _numbers(values: Sequence[Any]) -> list[float] | None:
    """The values as finite numbers, or None if one is something else (booleans are classes, not numbers)."""
    try:
        numbers = [math.nan if isinstance(value, bool) else float(value) for value in values]
    except (TypeError, ValueError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _word(value: Any, feature: Any, whose: str) -> str:
    """A label as its name: what a ClassLabel calls it, a whole number as digits, a string without outer blanks."""
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        if not 0 <= value < len(feature.names):
            raise DataError(
                f"A row of {whose} has the label id {value}; ids go from 0 to {len(feature.names) - 1} "
                f"({', '.join(feature.names)}). Rows without a label (-1) cannot be used."
            )
        return str(feature.names[value])
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).strip()


def _with_label(split: Dataset, column: str, values: list[Any], feature: Any) -> Dataset:
    return split.remove_columns(column).add_column(LABEL, values, feature=feature)
